"""Inspect a data set before training: its contents, rejected crystals and duplicates."""
