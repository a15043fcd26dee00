"""A client's part in a round: its update, its memory, its noise."""
