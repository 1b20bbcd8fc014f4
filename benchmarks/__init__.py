"""Measurements, each written to its own section of RESULTS.md."""
