"""Enumerations of the values that options accept. Importing this module loads no other package."""

from enum import StrEnum


class Variant(StrEnum):
    """The three FCNs, named after the stride of their final up-sampling."""

    FCN32S = "32s"
    FCN16S = "16s"
    FCN8S = "8s"


class Geometry(StrEnum):
    """How pools round odd sizes, which decides every size after them."""

    FLOOR = "floor"
    CAFFE = "caffe"


class Precision(StrEnum):
    """The arithmetic of a graph; its inputs and outputs keep their types."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"  # the trunk; scores and up-sampling in float32
    INT8 = "int8"  # the trunk; scores and up-sampling in float


class ImageInput(StrEnum):
    """The input of a graph."""

    FLOAT = "float"  # `image`: N x 3 x H x W float32, pre-processed
    UINT8 = "uint8"  # `pixels`: N x H x W x 3 uint8, RGB


class ChannelOrder(StrEnum):
    """The order of the channels in a network's input; pictures are RGB."""

    RGB = "rgb"
    BGR = "bgr"


class Preset(StrEnum):
    """Well-known pre-processings, by name."""

    CAFFE = "caffe"  # BGR, 0..255, less VGG's mean: the published FCNs
    IMAGENET = "imagenet"  # RGB, 0..1, less ImageNet's mean, over its standard deviation: torchvision's weights
    UNIT = "unit"  # RGB, 0..1


class UpsampleMode(StrEnum):
    """How logits that are smaller than the image are brought to its size."""

    NONE = "none"
    BILINEAR = "bilinear"
    NEAREST = "nearest"


class Head(StrEnum):
    """The output of a graph."""

    LOGITS = "logits"  # N x K x H x W float32
    LABELS = "labels"  # N x H x W uint8


class Optimize(StrEnum):
    """The levels of optimization, each of which includes the one before."""

    NONE = "none"
    SIMPLIFY = "simplify"
    EXACT = "exact"


class Target(StrEnum):
    """The device that a graph is rewritten for; which exact rewrites are fastest depends on it."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


class Calibration(StrEnum):
    """How int8 calibration chooses the threshold beyond which a map's values are clipped."""

    MINMAX = "minmax"  # clips nothing
    PERCENTILE = "percentile"  # clips the largest 0.001 %
    ENTROPY = "entropy"  # least Kullback-Leibler divergence between the values and their 8-bit versions


class Provider(StrEnum):
    """Where ONNX Runtime runs a model."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


class OutputFormat(StrEnum):
    """The file format of predictions."""

    PNG = "png"  # NAME.labels.png, a palette image of the labels, and NAME.overlay.png
    NPZ = "npz"  # NAME.npz: `labels`, h x w uint8
    RLE_JSON = "rle-json"  # NAME.json: COCO run lengths of each class
    PARQUET = "parquet"  # rows of part-*.parquet, labels as PNG


class EngineName(StrEnum):
    """What runs the stages of a prediction."""

    LOCAL = "local"  # threads of this process
    RAY = "ray"  # tasks and actors of a Ray cluster


class CacheAction(StrEnum):
    """What `fcn-deploy cache` does."""

    LIST = "list"
    WHERE = "where"
    CLEAR = "clear"


class FlavourName(StrEnum):
    """The two TensorRT products, by the names of their extras: `pip install 'fcn-deploy[...]'`."""

    TENSORRT = "tensorrt"
    RTX = "tensorrt-rtx"


class TritonBackend(StrEnum):
    """What runs the model inside Triton."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    PYTHON = "python"  # a generated model.py over this toolkit's own runtime


# Decoded as RGB, the largest photo takes 0.5 GB; a few kilobytes of file can claim far more. Pillow refuses 179 Mpx.
MAX_MEGAPIXELS = 178
