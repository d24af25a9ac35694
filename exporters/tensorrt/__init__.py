"""Building TensorRT engines, step by step; `exporters.tensorrt` puts the steps together."""
