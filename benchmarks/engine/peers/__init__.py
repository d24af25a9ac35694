"""The runtimes that are compared, each with its inputs and outputs bound where it computes."""
