"""The networks and their weights; nothing here depends on how they are exported."""
