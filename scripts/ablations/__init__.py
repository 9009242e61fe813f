"""Lists of variants, and what their scripts share."""
