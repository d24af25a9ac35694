"""The command line: parses, calls one library function, renders. The only place that prints or exits."""
