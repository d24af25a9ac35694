"""Ways out of PyTorch: ONNX export, graph simplification, and the pipeline that writes a verified bundle."""
