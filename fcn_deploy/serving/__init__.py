"""A server of the Open Inference Protocol for one artifact."""
