"""Triton model repositories: layout, configuration, and what lies beside them."""
