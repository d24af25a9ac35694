"""Hostile input for every way in: mutated files and requests, and what no command may do with them (`make fuzz`)."""
