"""Triton model repositories: layout, configuration, client and Kubernetes manifest."""
