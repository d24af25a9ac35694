"""Read checkpoint files safely: tensors only, never code."""

import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fcn_deploy.errors import CheckpointError
from fcn_deploy.models.families import FAMILIES, Family, StateDict
from fcn_deploy.models.vgg import BLOCKS
from fcn_deploy.storage import file_sha256

# Where training scripts put the state dict inside a checkpoint.
_CONTAINERS = ("model_state_dict", "state_dict", "model_state", "model")
# wkentaro/pytorch-fcn keeps its best score beside the weights as a NumPy number: data, not code.
_NUMPY_SCALARS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
]
_BLOCKED_GLOBAL = re.compile(r"GLOBAL (\S+)")
_RESAVE = "Save the bare weights where you trained: torch.save(model.state_dict(), 'weights.pth')."
_REFETCH = "Copy or download it again, and compare its size with the original."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's tensors under this toolkit's names."""

    path: Path  # the file
    sha256: str  # of the file, in hex
    family: Family  # the naming family of the file
    state: Mapping[str, Tensor]  # float32 tensors by this toolkit's parameter names
    dropped: tuple[str, ...]  # names in the file that an FCN does not have
    class_names: tuple[str, ...] = ()  # names of the classes, in order; empty when the file has none

    @property
    def num_classes(self) -> int | None:
        """K, from the shape of the scores; None for a starting point that has none."""
        scores = self.state.get("score_fr.weight")
        return None if scores is None or scores.dim() == 0 else len(scores)

    @property
    def channel_divisor(self) -> int:
        """How many times narrower than VGG16 its first layer is."""
        first = self.state.get("conv1_1.weight")
        return 1 if first is None or first.dim() == 0 else max(1, BLOCKS[0][0] // max(1, len(first)))


@dataclass(frozen=True)
class StoredState:
    """The tensors of a checkpoint file under the file's own names."""

    sha256: str  # of the file, in hex
    state: StateDict  # the tensors, as they are stored
    class_names: tuple[str, ...]  # names of the classes, in order; empty when the file has none


def read_state(path: Path) -> StoredState:
    """Read a .pth, .pt or .safetensors file; no code in it is run.

    Raises:
        CheckpointError: missing, truncated, not a state dict, or with code.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file", remedy="Check the path.")
    state = _state_dict(path, _load(path))
    _check_records(path, state)
    return StoredState(file_sha256(path), state, _class_names(path))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a .pth, .pt or .safetensors file and recognise its naming family.

    Raises:
        CheckpointError: missing, truncated, not a state dict, of an unknown family, or with code or non-finite values.
    """
    stored = read_state(path)
    state = _without_module(path, stored.state)
    family = next((f for f in FAMILIES if f.recognises(state)), None)
    if family is None:
        raise CheckpointError(
            f"checkpoint {path} has no layer names of a known FCN or VGG16; its first are {', '.join(list(state)[:4])}",
            remedy="Rename its keys to Caffe's (conv1_1.weight ... fc7.weight, score_fr.weight, upscore.weight).",
        )
    dropped = tuple(key for key in state if key.rpartition(".")[0] in family.dropped)
    converted = {name: _as_float32(path, name, tensor) for name, tensor in _converted(path, family, state).items()}
    found = Checkpoint(path, stored.sha256, family, converted, dropped, stored.class_names)
    check_class_names(path, found.class_names, found.num_classes)
    return found


def check_class_names(path: Path, names: Collection[str], num_classes: int | None) -> None:
    """Check that a checkpoint names as many classes as a network scores, two for a single class; CheckpointError."""
    if names and (num_classes is None or len(names) != max(num_classes, 2)):
        raise CheckpointError(
            f"checkpoint {path} names {len(names)} classes but scores {num_classes}",
            remedy="Correct its metadata: class_names is one string of names with spaces between.",
        )


def _check_records(path: Path, state: StateDict) -> None:
    """Check that the archive has a record of the size that each tensor's storage claims.

    PyTorch maps the file, and would read what follows a record that was cut short.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        sizes = Counter(record.file_size for record in archive.infolist() if "/data/" in record.filename)
    names = {t.untyped_storage().data_ptr(): name for name, t in state.items() if _is_plain(t)}
    for name in names.values():
        claimed = state[name].untyped_storage().nbytes()
        if claimed and not sizes[claimed]:
            raise CheckpointError(
                f"checkpoint {path}: {name} claims {claimed} bytes, and no record has as many", remedy=_REFETCH
            )
        sizes[claimed] -= 1


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta


def _class_names(path: Path) -> tuple[str, ...]:
    """Read the class names from the metadata of a safetensors file."""
    if path.suffix != ".safetensors":
        return ()
    with safe_open(path, "pt") as file:
        return tuple((file.metadata() or {}).get("class_names", "").split())


def _converted(path: Path, family: Family, state: StateDict) -> dict[str, Tensor]:
    try:
        return family.convert(state)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path} names one layer twice: {error}", remedy=_RESAVE) from error


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    try:
        if zipfile.is_zipfile(path):
            _check_checksums(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_SCALARS):
            # Problems that PyTorch only warns about either fail below or do not affect the tensors.
            warnings.simplefilter("ignore", UserWarning)
            # Files older than PyTorch 1.6 are plain pickles and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise _unsafe(path, str(error)) from error
    except Exception as error:  # readers raise many kinds of errors for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"checkpoint {path} is truncated or not a PyTorch file ({path.stat().st_size} bytes): {reason}",
            remedy=_REFETCH,
        ) from error


def _check_checksums(path: Path) -> None:
    """Compare each record with its CRC-32: PyTorch maps the records without doing so.

    After `torch.serialization.set_crc32_options(False)`, PyTorch writes 0 for all of them.
    """
    with zipfile.ZipFile(path) as archive:
        if any(record.CRC for record in archive.infolist()) and (damaged := archive.testzip()):
            raise zipfile.BadZipFile(f"CRC-32 of {damaged} differs")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path} is not a complete safetensors file: {error}", remedy=_REFETCH
        ) from error


def _unsafe(path: Path, message: str) -> CheckpointError:
    found = _BLOCKED_GLOBAL.search(message)
    if found is None:
        return CheckpointError(f"checkpoint {path} is damaged, or not a PyTorch file", remedy=_REFETCH)
    return CheckpointError(
        f"checkpoint {path} contains code or objects ({found.group(1)}) besides tensors; no code was run",
        remedy=_RESAVE,
    )


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)), loaded)
        if inner and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in inner.items()):
            return dict(inner)
    raise CheckpointError(
        f"checkpoint {path} contains a {type(loaded).__name__} that is not a state dict (names to tensors, "
        f"at the top level or under {', '.join(_CONTAINERS)})",
        remedy=_RESAVE,
    )


def _without_module(path: Path, state: StateDict) -> dict[str, Tensor]:
    """Remove DataParallel's leading `module.`."""
    stripped = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if len(stripped) < len(state):
        twice = next(key for key in state if f"module.{key}" in state)
        raise CheckpointError(f"checkpoint {path} has both {twice} and module.{twice}", remedy=_RESAVE)
    return stripped


def without_common_prefix(path: Path, state: StateDict, expected: Collection[str]) -> tuple[str, dict[str, Tensor]]:
    """Remove the prefix before most of the expected names, such as DataParallel's `module.`; returns it, too.

    Raises:
        CheckpointError: a name occurs with and without it.
    """

    def known(prefix: str) -> int:
        return sum(name.removeprefix(prefix) in expected for name in state if name.startswith(prefix))

    parts = next(iter(state)).split(".")
    prefixes = ["", *(".".join(parts[:count]) + "." for count in range(1, len(parts)))]
    prefix = max(prefixes, key=known)
    twice = [name for name in state if prefix and f"{prefix}{name}" in state]
    if twice:
        raise CheckpointError(f"checkpoint {path} has both {twice[0]} and {prefix}{twice[0]}", remedy=_RESAVE)
    return prefix, {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def check_tensors(path: Path, expected: StateDict, state: StateDict, what: str, remedy: str) -> None:
    """Check that a checkpoint has exactly the tensors of a network.

    Raises:
        CheckpointError: lists every missing, extra and mis-shaped tensor; `what` names file and network.
    """
    problems = [f"missing {name} {_shape(tensor)}" for name, tensor in expected.items() if name not in state]
    problems += [f"extra {name} {_shape(tensor)}" for name, tensor in state.items() if name not in expected]
    problems += [
        f"mis-shaped {name}: {_shape(state[name])} in the file, {_shape(tensor)} in the network"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(f"checkpoint {path} {what}:\n  " + "\n  ".join(problems), remedy=remedy)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape)


def as_type(path: Path, name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor of a checkpoint in the type of the network's; raises CheckpointError if that loses anything.

    Infinities, as in masks, are accepted where the network's own buffer has some.
    """
    if like.dtype is torch.float32 and (like.requires_grad or bool(torch.isfinite(like).all())):
        return _as_float32(path, name, tensor)
    if tensor.dtype is not like.dtype or not _is_plain(tensor):
        raise CheckpointError(
            f"checkpoint {path}: {name} is {tensor.dtype}, and {like.dtype} in the network", remedy=_RESAVE
        )
    return tensor


def _as_float32(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not _is_plain(tensor):
        raise CheckpointError(
            f"checkpoint {path}: {name} is not a plain tensor ({tensor.layout}, {tensor.device})",
            remedy="Convert it where it was trained: {k: v.to_dense().cpu() for k, v in state.items()}.",
        )
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > held:
        raise CheckpointError(
            f"checkpoint {path}: {name} claims {claimed} bytes, of which the file holds {held}", remedy=_RESAVE
        )
    # float64 would lose digits, and integers are not weights: neither is converted silently.
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(
            f"checkpoint {path}: {name} is {tensor.dtype}; float32, float16 and bfloat16 convert without loss",
            remedy="Convert it where it was trained: {k: v.float() for k, v in state.items()}.",
        )
    converted = tensor.to(torch.float32).contiguous()
    if not bool(torch.isfinite(converted).all()):
        raise CheckpointError(
            f"checkpoint {path}: {name} has non-finite values",
            remedy="Use a checkpoint from before training diverged.",
        )
    return converted
