"""Export from PyTorch: ONNX, graph simplification and rewrites, and the pipeline that writes a verified bundle."""
