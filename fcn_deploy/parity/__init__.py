"""Verification that an artifact computes the network it was exported from: inputs, comparison, tolerances."""
