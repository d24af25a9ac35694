"""Where a model can run; importing this loads no runtime."""

from enum import StrEnum


class Provider(StrEnum):
    """Where ONNX Runtime runs a model."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
