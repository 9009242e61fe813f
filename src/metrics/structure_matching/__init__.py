"""Matching of ordered crystals with pymatgen's verdict, many pairs at a time.

The public calls are in `calls`, and importable from `src.metrics`.
"""
