"""The networks and their weights: what the toolkit ships, knowing nothing of how it is shipped."""
