"""The files of a pair, read and decoded."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fcn_deploy.errors import FcnDeployError, ImageError
from fcn_deploy.evaluation.dataset import Pair
from fcn_deploy.evaluation.truth import decode_truth
from fcn_deploy.images import Labels, Pixels, decode_image


@dataclass(frozen=True)
class Failure:
    """An image that has no score.

    Attributes:
        name: of its pair.
        error: what is wrong with the photo or its labels.
    """

    name: str
    error: FcnDeployError


@dataclass(frozen=True)
class Files:
    """The two files of a pair, as they are on disk.

    Attributes:
        pair: where they lie.
        photo: the photo's bytes.
        labels: the label map's bytes.
    """

    pair: Pair
    photo: bytes
    labels: bytes

    @cached_property
    def sha256(self) -> tuple[str, str]:
        """Of the photo and of the labels, in hex."""
        return hashlib.sha256(self.photo).hexdigest(), hashlib.sha256(self.labels).hexdigest()

    def decode(self, num_classes: int) -> tuple[Pixels, Labels]:
        """H x W x 3 uint8 RGB, and the H x W uint8 truth.

        Raises:
            ImageError: the photo cannot be decoded.
            InputFileError: the labels are none for this photo, or for K classes.
        """
        photo = decode_image(self.photo, str(self.pair.photo))
        height, width = photo.shape[:2]
        return photo, decode_truth(self.labels, str(self.pair.labels), (height, width), num_classes)


def read_files(pair: Pair) -> Files:
    """Read both files of a pair.

    Raises:
        ImageError: one of them cannot be read.
    """
    return Files(pair, _read(pair.photo), _read(pair.labels))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}", remedy="Check its permissions.") from error
