"""The server: it asks clients for a round, averages their weights, and records what failed."""
