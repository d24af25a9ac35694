"""The photos that paths, directories and patterns name."""

import glob
from collections.abc import Sequence
from pathlib import Path

from fcn_deploy.errors import ImageError
from fcn_deploy.images import readable_suffixes

# What `predict` writes beside each other for a photo; such files are no photos.
LABELS_SUFFIX, OVERLAY_SUFFIX = ".labels.png", ".overlay.png"

_GLOB_CHARACTERS = frozenset("*?[")


def find_images(arguments: Sequence[str]) -> list[Path]:
    """The image files that paths, directories and glob patterns name, each once, directories and patterns sorted.

    A path that does not exist is kept, to be reported with the rest. Of a directory, neither its directories are
    searched nor what `predict` wrote there is taken.

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
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in known and p.is_file() and not _is_result(p))
    elif not path.exists() and _GLOB_CHARACTERS & set(argument):
        files = sorted(Path(name) for name in glob.glob(argument, recursive=True) if Path(name).is_file())  # noqa: PTH207 - absolute patterns
    else:
        return [path]
    if not files:
        raise ImageError(f"{argument} names no image", remedy="Check the directory or the pattern.")
    return files


def _is_result(path: Path) -> bool:
    """Whether a file is one that `predict` wrote: results may lie beside their photos."""
    return path.name.endswith((LABELS_SUFFIX, OVERLAY_SUFFIX))
