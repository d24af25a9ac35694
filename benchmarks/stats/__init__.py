"""Statistics of latency samples."""
