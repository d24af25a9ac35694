"""True labels as they are stored: PNG files whose pixel values are the labels themselves."""

import numpy as np
from PIL import Image, UnidentifiedImageError

from fcn_deploy.errors import FcnDeployError, InputFileError
from fcn_deploy.images import Labels, open_picture
from fcn_deploy.model_info import VOID_LABEL

# In the PNG header: the byte with the bits per sample, and the kinds of picture whose samples are read unscaled.
_DEPTH_BYTE = 24
_INDEXED_MODES = ("P", "L")
_REMEDY = "Save it as a palette PNG (mode P) whose pixel values are the labels."


def decode_truth(data: bytes, name: str, size: tuple[int, int], num_classes: int) -> Labels:
    """Decode a label PNG from memory to H x W uint8, unscaled: 0..K-1, and 255 for void.

    Args:
        data: the file.
        name: stands for it in errors.
        size: H and W of its photo.
        num_classes: K.

    Raises:
        InputFileError: it is no PNG or damaged, has colours, 16 bits or scaled grey levels instead of labels, another
            size than its photo, or a value that is neither a class nor void.
    """
    try:
        # Its size is checked against the photo's before anything is decoded.
        with open_picture(data, ["PNG"]) as image:
            _check_kind(image, name, data[_DEPTH_BYTE])
            _check_size(image, name, size)
            labels = np.array(image)
    except UnidentifiedImageError as error:
        raise InputFileError(f"labels {name} ({len(data)} bytes) are no PNG", remedy=_REMEDY) from error
    except FcnDeployError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise InputFileError(f"labels {name} are truncated or damaged: {error}", remedy="Copy them again.") from error
    _check_values(labels, name, num_classes)
    return labels


def _check_kind(image: Image.Image, name: str, depth: int) -> None:
    if image.mode in _INDEXED_MODES and (image.mode == "P" or depth == 8):
        if getattr(image, "n_frames", 1) > 1:
            raise InputFileError(f"labels {name} are an animation", remedy="Save the frame you mean as a PNG.")
        return
    if image.mode in ("RGB", "RGBA"):
        raise InputFileError(
            f"labels {name} are of mode {image.mode}: colours, which say no label without their palette",
            remedy=f"{_REMEDY} Of Pascal VOC, take SegmentationClass as it was published.",
        )
    raise InputFileError(
        f"labels {name} are of mode {image.mode} with {depth} bits, where 8-bit labels are wanted", remedy=_REMEDY
    )


def _check_size(image: Image.Image, name: str, size: tuple[int, int]) -> None:
    height, width = size
    if (image.height, image.width) != size:
        raise InputFileError(
            f"labels {name} are {image.width}x{image.height} pixels, their photo is {width}x{height}",
            remedy="Save them in the size of the photo as it is shown: upright, if its EXIF turns it.",
        )


def _check_values(labels: Labels, name: str, num_classes: int) -> None:
    strange = labels[(labels >= num_classes) & (labels != VOID_LABEL)]
    if strange.size:
        values = np.unique(strange)
        shown = f"value{'s' if values.size > 1 else ''} {', '.join(map(str, values[:5]))}{', ...' * (values.size > 5)}"
        raise InputFileError(
            f"labels {name} have {shown} in {strange.size} pixels; the model has {num_classes} classes, "
            f"0 to {num_classes - 1}, and {VOID_LABEL} is void",
            remedy="Map them to the model's classes, and what it does not know to void.",
        )
