"""The methods: a table of what is shared and trained, and the update of a client that follows from it."""
