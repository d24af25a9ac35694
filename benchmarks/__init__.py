"""Measuring: what the toolkit costs, against what a plain script costs."""
