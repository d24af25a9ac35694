"""Choose the inputs of a parity check: photos, noise, and difficult pictures.

All are N x 3 x H x W float32 network inputs and reproducible; pictures are also available as N x H x W x 3 pixels.
The images of a batch differ (each is rolled by some columns), so that a runtime that mixes them up is detected.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_deploy.choices import ImageInput, Precision
from fcn_deploy.errors import ImageError, UsageError
from fcn_deploy.images import SAMPLE_PHOTO, FloatArray, Pixels, read_image, resize
from fcn_deploy.model_info import ModelInfo, TensorSpec
from fcn_deploy.preprocessing import Preprocessing

Shape = tuple[int, int, int, int]

_CAFFE = Preprocessing()
# Of those of `hard_inputs`, the ones without any contrast.
FLAT_INPUTS = frozenset({"mean colour", "zeros"})
_ROLL_COLUMNS = 37
_EXTREMES_SEED = 255


@dataclass(frozen=True)
class ParityInput:
    """One named input."""

    name: str  # its name in reports
    image: FloatArray  # N x 3 x H x W float32, the network's input
    pixels: Pixels | None = None  # the same as N x H x W x 3 uint8 RGB; None for inputs that are not pictures

    def feed(self, spec: TensorSpec) -> npt.NDArray[Any]:
        """Return the input as `spec` states; raises UsageError if the model takes pixels and this is not a picture."""
        if spec.dtype != "uint8":
            return self.image.astype(spec.dtype, copy=False)
        if self.pixels is None:
            raise UsageError(f"{self.name} is not a picture, but {spec} needs pixels", remedy="Use a picture as input.")
        return self.pixels


def parity_inputs(
    info: ModelInfo, shape: Shape, photos: Sequence[ParityInput] = (), *, noise: int = 1, hard: bool = False
) -> tuple[ParityInput, ...]:
    """Choose the inputs on which a model is compared with PyTorch: photos, noise, and difficult pictures.

    A model in int8 is compared on photos alone, because 8 bits are calibrated for them; one that takes pixels, on
    inputs that have pixels.

    Args:
        info: the model's facts.
        shape: N, 3, H, W of its input.
        photos: from `photo_inputs`; without any, the bundled photo.
        noise: number of noise inputs.
        hard: also take `hard_inputs`.

    Raises:
        ImageError: a saved input holds floats, and the model takes pixels.
    """
    preprocessing = info.preprocessing
    shown = tuple(photos) or photo_inputs([SAMPLE_PHOTO], shape, preprocessing)
    on_pixels = info.image_input is ImageInput.UINT8
    for photo in shown:
        if on_pixels and photo.pixels is None:
            raise ImageError(
                f"saved input {photo.name} holds floats; this model takes uint8 pixels",
                remedy="Replay it on the model it was saved from.",
            )
    if info.precision is Precision.INT8:
        return shown
    make_noise = pixel_noise_input if on_pixels else noise_input
    noises = [make_noise(seed, shape, preprocessing) for seed in range(noise)]
    inputs = (*shown, *noises, *(hard_inputs(shape, preprocessing) if hard else ()))
    return tuple(given for given in inputs if given.pixels is not None) if on_pixels else inputs


def photo_inputs(paths: Sequence[Path], shape: Shape, preprocessing: Preprocessing = _CAFFE) -> tuple[ParityInput, ...]:
    """Read each photo once with `photo_input`; those of one name in several folders are called by their paths."""
    different = list(dict.fromkeys(paths))
    names = Counter(path.name for path in different)
    called = {path: path.name if names[path.name] == 1 else str(path) for path in different}
    return tuple(photo_input(path, shape, preprocessing, name) for path, name in called.items())


def photo_input(
    path: Path, shape: Shape, preprocessing: Preprocessing = _CAFFE, name: str | None = None
) -> ParityInput:
    """Return a photo stretched to the input, or an input saved earlier as .npy; its default name is that of the file.

    Saved inputs are float32 of `shape`, or the uint8 pixels of such an input.

    Raises:
        ImageError: the file cannot be read, or the saved input has another shape.
    """
    if path.suffix == ".npy":
        return _saved_input(path, shape, preprocessing, name or path.name)
    return _picture(name or path.name, resize(read_image(path), *shape[2:]), shape, preprocessing)


def pixel_noise_input(seed: int, shape: Shape, preprocessing: Preprocessing = _CAFFE) -> ParityInput:
    """Return uniform noise over all pixel values."""
    batch, channels, height, width = shape
    noise = np.random.default_rng(seed).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    return ParityInput(f"noise {seed}", preprocessing.apply(noise), noise)


def noise_input(seed: int, shape: Shape, preprocessing: Preprocessing = _CAFFE) -> ParityInput:
    """Return uniform noise over the range of real inputs."""
    noise = np.random.default_rng(seed).uniform(*preprocessing.bounds, shape)
    return ParityInput(f"noise {seed}", noise.astype(np.float32))


def hard_inputs(shape: Shape, preprocessing: Preprocessing = _CAFFE) -> tuple[ParityInput, ...]:
    """Return the mean colour, zeros, uint8 extremes, hard edges and a checkerboard."""
    pictures: Sequence[tuple[str, Callable[[int, int], Pixels]]] = (
        ("mean colour", preprocessing.mean_image),
        ("extremes", _extremes),
        ("edges", _edges),
        ("checkerboard", _checkerboard),
    )
    drawn = [_picture(name, draw(*shape[2:]), shape, preprocessing) for name, draw in pictures]
    return (*drawn, ParityInput("zeros", np.zeros(shape, dtype=np.float32)))


def rolled_batch(image: Pixels, batch: int) -> Pixels:
    """Return a batch of different images made from an H x W x 3 image: each is rolled by more columns."""
    return np.stack([np.roll(image, _ROLL_COLUMNS * i, axis=1) for i in range(batch)])


def _picture(name: str, image: Pixels, shape: Shape, preprocessing: Preprocessing) -> ParityInput:
    pixels = rolled_batch(image, shape[0])
    return ParityInput(name, preprocessing.apply(pixels), pixels)


def _saved_input(path: Path, shape: Shape, preprocessing: Preprocessing, name: str) -> ParityInput:
    try:
        saved = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(f"saved input {path} cannot be read: {error}", remedy="Use a file `verify` saved.") from error
    batch, channels, height, width = shape
    if saved.shape == (batch, height, width, channels) and saved.dtype == np.uint8:
        return ParityInput(name, preprocessing.apply(saved), saved)
    if saved.shape != shape or saved.dtype != np.float32:
        raise ImageError(
            f"saved input {path} is {saved.dtype} {saved.shape}; this model takes float32 {shape}",
            remedy="Replay it on the model it was saved from.",
        )
    return ParityInput(name, np.asarray(saved, dtype=np.float32))


def _extremes(height: int, width: int) -> Pixels:
    bits = np.random.default_rng(_EXTREMES_SEED).integers(0, 2, (height, width, 3), dtype=np.uint8)
    return bits * np.uint8(255)


def _edges(height: int, width: int) -> Pixels:
    """Return a black image with a white quarter and a saturated block that touches the image's borders."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[: height // 2, width // 2 :] = 255
    image[height // 3 :, : width // 3] = (255, 0, 0)
    return image


def _checkerboard(height: int, width: int) -> Pixels:
    rows, columns = np.indices((height, width))
    return np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[:, :, None], 3, axis=2)
