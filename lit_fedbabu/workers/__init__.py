"""Processes that work for this one: how they start, what they are asked, and what becomes of one that dies."""
