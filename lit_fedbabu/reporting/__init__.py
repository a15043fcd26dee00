"""Runs side by side: comparisons, tables and figures."""
