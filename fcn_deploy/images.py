"""Photos and label maps: decoding, fitting, label images and overlays.

Shapes: an image is H x W x 3 uint8 RGB, a label map H x W uint8 (0..K-1, 255 = void).
"""

import glob
import io
import re
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from fcn_deploy.choices import MAX_MEGAPIXELS
from fcn_deploy.errors import ImageError
from fcn_deploy.model_info import ModelInfo, Rgb

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]

MAX_PIXELS = MAX_MEGAPIXELS * 1_000_000
# Formats of photos; others, such as PostScript, are not tried.
_FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "AVIF", "JPEG2000", "BMP", "GIF", "PPM")
# 16-bit steps per 8-bit step: 65535 / 255.
_SIXTEEN_BIT_STEP = 257
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")

# Warning filters belong to the process; photos are decoded in several threads.
_WARNING_FILTERS = threading.Lock()

# A portrait of Eileen Collins on which every export is checked (NASA, public domain).
SAMPLE_PHOTO = Path(__file__).parent / "assets" / "astronaut.jpg"


def read_image(path: Path) -> Pixels:
    """Decode one still picture to 8-bit RGB, upright (EXIF), transparency over white, 16-bit grey scaled to 8 bits.

    Raises:
        ImageError: missing, empty, truncated, in an unknown format, animated, larger than MAX_PIXELS, or of a pixel
            type with no defined range (32-bit integers and floats).
    """
    return decode_image(read_file(path, f"image {path}"), str(path))


def read_file(path: Path, name: str) -> bytes:
    """Return the content of a file; raises ImageError, which calls it `name`, if there is none or it is unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        if not path.is_file():
            raise ImageError(f"{name} is not a file", remedy="Check the path.") from error
        raise ImageError(f"{name} cannot be read: {error.strerror}", remedy="Check its permissions.") from error


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode a picture's file from memory as `read_image` does, or with a lower bound on its pixels.

    Its ImageErrors call the picture `name`.
    """
    try:
        with open_picture(data, _known_formats()) as image:
            _check_still(name, image, max_pixels)
            return _to_rgb(name, image)
    except Image.DecompressionBombError as error:
        (size, *_) = re.findall(r"\d+", str(error))
        raise _too_large(name, size, max_pixels) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"image {name} ({len(data)} bytes): unknown image format", remedy="Use a PNG or JPEG file."
        ) from error
    except ImageError:
        raise
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise ImageError(f"image {name} is truncated or damaged: {error}", remedy="Copy it again.") from error


def open_picture(data: bytes, formats: list[str]) -> Image.Image:
    """Open a picture in memory and read only its header, so that callers can check its size before decoding.

    Raises:
        PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError: as Pillow, but without its warnings.
    """
    with _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=formats)


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def readable_suffixes() -> set[str]:
    """Return the file name suffixes of the supported formats, in lower case, with their dot."""
    formats = _known_formats()
    return {suffix for suffix, name in Image.registered_extensions().items() if name in formats}


def _check_still(name: str, image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise _too_large(name, f"{image.width}x{image.height}", max_pixels)
    frames = getattr(image, "n_frames", 1)
    # The further frames of a camera's MPO are depth, gain or preview maps of the one photo.
    if frames > 1 and image.format != "MPO":
        raise ImageError(
            f"image {name} has {frames} frames and is not a still picture", remedy="Save the frame you want as a PNG."
        )


def _too_large(name: str, size: str, max_pixels: int) -> ImageError:
    return ImageError(
        f"image {name} claims {size} pixels; at most {max_pixels} are decoded",
        remedy="Check where it comes from. If it is intended, scale it down; predict and serve have --max-photo-mpx.",
    )


def _to_rgb(name: str, image: Image.Image) -> Pixels:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BIT_MODES or (upright.mode, image.format) == ("I", "PPM"):
        # Pillow's own conversion clips at 255 and would leave a white picture.
        grey = np.rint(np.asarray(upright, dtype=np.float64) / _SIXTEEN_BIT_STEP).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.mode not in _EIGHT_BIT_MODES:
        raise ImageError(
            f"image {name} has pixel type {upright.mode}, whose range is not defined",
            remedy="Scale it to 8 or 16 bits per channel first.",
        )
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(upright.convert("RGB"))


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's fixed input, in pixels, and its original size."""

    height: int  # rows of the input that the image fills, from the top
    width: int  # columns of the input that the image fills, from the left
    image_height: int  # rows of the image itself
    image_width: int  # columns of the image itself

    def restore(self, labels: Labels) -> Labels:
        """Cut the input's label map to the image and resize it to the image's size with nearest neighbours."""
        part = Image.fromarray(labels[: self.height, : self.width])
        return np.array(part.resize((self.image_width, self.image_height), Image.Resampling.NEAREST))


def place(image: Pixels, canvas: Pixels, *, keep_aspect: bool) -> tuple[Pixels, Placement]:
    """Fit an image of any size into `canvas`, an H x W image of the padding's colour, which is overwritten.

    Stretched to fill it, or, with `keep_aspect`, scaled to the top left.
    """
    height, width = canvas.shape[:2]
    image_height, image_width = image.shape[:2]
    scale = min(height / image_height, width / image_width)
    inner = (height, width)
    if keep_aspect:
        inner = max(round(image_height * scale), 1), max(round(image_width * scale), 1)
    canvas[: inner[0], : inner[1]] = resize(image, *inner)
    return canvas, Placement(*inner, image_height, image_width)


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Resize an image to H x W bilinearly, with Pillow's anti-aliasing when it shrinks."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def label_image(labels: Labels, info: ModelInfo) -> Image.Image:
    """Return a label map as a palette image (mode P), whose pixel values are the labels."""
    image = Image.fromarray(labels)
    image.putpalette([channel for colour in info.palette for channel in colour])
    return image


# Suffixes of the results of `predict`, which may lie beside their photos but are not photos.
LABELS_SUFFIX, OVERLAY_SUFFIX = ".labels.png", ".overlay.png"

_GLOB_CHARACTERS = frozenset("*?[")


def find_images(arguments: Sequence[str]) -> list[Path]:
    """Find the image files of paths, directories and glob patterns, each once; directories and patterns are sorted.

    A path that does not exist is kept, to be reported later. In directories, subdirectories and results of `predict`
    are skipped.

    Raises:
        ImageError: a directory or pattern holds no image.
    """
    found: dict[Path, None] = {}
    for argument in [arguments] if isinstance(arguments, str) else arguments:
        found.update(dict.fromkeys(_expand(argument)))
    return list(found)


def _expand(argument: str) -> list[Path]:
    path = Path(argument)
    if path.is_dir():
        known = readable_suffixes()
        photos = (p for p in path.iterdir() if not p.name.endswith((LABELS_SUFFIX, OVERLAY_SUFFIX)))
        files = sorted(p for p in photos if p.suffix.lower() in known and p.is_file())
    elif not path.exists() and _GLOB_CHARACTERS & set(argument):
        files = sorted(Path(name) for name in glob.glob(argument, recursive=True) if Path(name).is_file())  # noqa: PTH207 - absolute patterns
    else:
        return [path]
    if not files:
        raise ImageError(f"{argument} matches no image", remedy="Check the directory or the pattern.")
    return files


OPACITY = 0.55
LEGEND_ROWS = 12
# The legend beside a photo that is one pixel wide would have hundreds of times the photo's pixels.
_MAX_WITH_LEGEND = 4_000_000
_TEXT_COLOUR = (32, 32, 32)
_NOTE_COLOUR = (170, 30, 30)


def overlay(image: Pixels, labels: Labels, info: ModelInfo) -> Image.Image:
    """Blend the label colours over an H x W photo and put a legend of the largest classes to its right.

    The legend is left out where it would double a large photo, such as one of 1 x 50,000,000 pixels.
    """
    photo = Image.blend(Image.fromarray(image), label_image(labels, info).convert("RGB"), OPACITY)
    # Small photos are enlarged by whole factors so that the legend beside them stays readable.
    factor = max(1, min(round(320 / min(photo.size)), 1000 // max(photo.size)))
    photo = photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.NEAREST)
    return _with_legend(photo, class_shares(labels), info)


def class_shares(labels: Labels) -> list[tuple[int, float]]:
    """Return every label that occurs with its share of the pixels (0..1), largest first."""
    counts = np.bincount(labels.ravel())
    found = sorted(np.flatnonzero(counts), key=lambda label: -counts[label])
    return [(int(label), float(counts[label] / labels.size)) for label in found]


def _with_legend(photo: Image.Image, shares: list[tuple[int, float]], info: ModelInfo) -> Image.Image:
    size = max(12, min(photo.height // 22, 40))
    font = ImageFont.load_default(size)
    rows = _legend_rows(shares, info)
    row, margin = round(size * 1.5), size
    width = 3 * margin + size + round(max(font.getlength(text) for text, _, _ in rows))
    height = max(photo.height, 2 * margin + row * len(rows))
    if (photo.width + width) * height > max(_MAX_WITH_LEGEND, 2 * photo.width * photo.height):
        return photo
    canvas = Image.new("RGB", (photo.width + width, height), "white")
    canvas.paste(photo, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (text, text_colour, swatch) in enumerate(rows):
        left, top = photo.width + margin, margin + row * index
        if swatch is not None:
            draw.rectangle((left, top, left + size, top + size), fill=swatch, outline=_TEXT_COLOUR)
            left += round(1.5 * size)
        draw.text((left, top + size / 2), text, fill=text_colour, font=font, anchor="lm")
    return canvas


def _legend_rows(shares: list[tuple[int, float]], info: ModelInfo) -> list[tuple[str, Rgb, Rgb | None]]:
    """Return the text of each row, the colour of the text, and the colour of the swatch before it, if any."""
    rows: list[tuple[str, Rgb, Rgb | None]] = [
        (f"{info.class_names[k]}  {share:.1%}", _TEXT_COLOUR, info.palette[k]) for k, share in shares[:LEGEND_ROWS]
    ]
    rest = sum(share for _, share in shares[LEGEND_ROWS:])
    rows += [(f"{len(shares) - LEGEND_ROWS} more  {rest:.1%}", _TEXT_COLOUR, None)] if rest else []
    warning = ("untrained weights:", "labels mean nothing") if info.provenance.untrained else ()
    return rows + [(text, _NOTE_COLOUR, None) for text in warning]
