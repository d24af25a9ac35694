"""Build TensorRT engines from bundles."""
