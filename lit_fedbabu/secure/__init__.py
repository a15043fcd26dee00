"""Secure aggregation: masks that hide each client's update and cancel in the sum."""
