"""What a client learns. Nothing outside this folder imports from ``tasks.images``: it imports from the files here."""
