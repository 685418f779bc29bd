"""Ranked passages to numbers: metrics, significance, leakage, comparisons."""
