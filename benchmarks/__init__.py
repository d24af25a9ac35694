"""Measurements of the toolkit: latency, accuracy and cost, compared with other tools."""
