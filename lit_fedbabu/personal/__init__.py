"""After the federation: personal models of clients, and of people who had no part in it."""
