"""The node: it answers messages of the server for the clients that it hosts."""
