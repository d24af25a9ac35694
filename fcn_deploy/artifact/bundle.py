"""Bundles: directories of `model.onnx` and `manifest.json`, written in one move and checked on opening.

The manifest holds the model's facts, the SHA-256 of every file, the record of the parity check, and its own SHA-256.
An int8 bundle also holds some of its calibration photos, for `verify` and `bench`.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import msgspec
import onnx

from fcn_deploy.choices import Head, ImageInput
from fcn_deploy.errors import BundleError, CheckpointError, ModuleError, SizeError, UsageError
from fcn_deploy.geometry import check_fits
from fcn_deploy.model_info import (
    INPUT_NAME,
    LABELS_NAME,
    METADATA_PREFIX,
    OUTPUT_NAME,
    PIXELS_NAME,
    ModelInfo,
    NetworkSpec,
    Provenance,
)
from fcn_deploy.onnx_file import model_of, read_checked
from fcn_deploy.storage import file_sha256, parse_json

if TYPE_CHECKING:
    import onnx_ir as ir

SCHEMA_VERSION = 1
MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
PHOTOS_FOLDER = "calibration"
INPUT_CHANNELS = 3
MAX_PIXELS = 4096 * 4096  # of one run, as for `export`
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_BYTES = frozenset({onnx.TensorProto.UINT8})
_SELF_HASH = "manifest_sha256"
_OTHER_GRAPH = "The metadata belong to another graph: export it again."
_AGAIN = "Export the bundle again."
# Relative POSIX names that stay within the bundle's directory.
_FILE_NAME = re.compile(rf"{re.escape(MODEL_FILE)}|{PHOTOS_FOLDER}/(?!\.\.?\Z)[^/\\\x00-\x1f]+")


@dataclass(frozen=True)
class FileRecord:
    """What a manifest states about a file."""

    bytes: Annotated[int, msgspec.Meta(ge=0)]  # its size
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]  # in hex


@dataclass(frozen=True)
class _Manifest:
    """The fields of a manifest that are read back; all others are a record for people."""

    schema_version: int  # of these fields
    files: dict[str, FileRecord]  # by relative POSIX name: `model.onnx`, and `calibration/NAME` for each photo
    model: dict[str, str]  # the metadata of the ONNX file
    optimize: str  # the optimization level
    parity: dict[str, Any] | None  # the record of the parity check; None with --no-verify


@dataclass(frozen=True)
class _Versioned:
    schema_version: int


_Facts = TypeVar("_Facts")


# Name, types and sizes of an input or output; None is any size.
_Wanted = tuple[str, frozenset[int], tuple[int | None, ...]]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, or a bare ONNX file.

    Attributes:
        path: as the user named it: a bundle's directory, or a bare ONNX file.
        model_path: the ONNX file.
        proto: its message; large weights stay in the file.
        manifest: the bundle's manifest, or None for a bare file.
        has_graph: True; engines have False.
    """

    path: Path
    model_path: Path
    proto: onnx.ModelProto = field(repr=False, compare=False)
    manifest: Mapping[str, Any] | None
    has_graph: ClassVar[bool] = True

    @cached_property
    def model(self) -> "ir.Model":
        """Its graph; large weights are read when they are used. What changes it does not change the message."""
        return model_of(self.proto, self.model_path)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the ONNX file."""
        return {entry.key: entry.value for entry in self.proto.metadata_props}

    @property
    def info(self) -> ModelInfo:
        """The model's facts; raises BundleError for a bare file that this toolkit did not write.

        They are checked against the graph: its only input and its only output are what the facts say.
        """
        info = ModelInfo.from_metadata(self.metadata, str(self.model_path))
        self._check_tensors(info)
        return info

    @property
    def has_facts(self) -> bool:
        """Whether the file has any metadata of this toolkit."""
        return any(key.startswith(METADATA_PREFIX) for key in self.metadata)

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the model's file, in hex; a bare file is read to compute it."""
        return str(self.manifest["files"][MODEL_FILE]["sha256"]) if self.manifest else file_sha256(self.model_path)

    @property
    def photos(self) -> tuple[Path, ...]:
        """The calibration photos that lie beside the model; empty without any."""
        files = self.manifest["files"] if self.manifest is not None else ()
        return tuple(self.path / name for name in sorted(files) if name.startswith(f"{PHOTOS_FOLDER}/"))

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """N, 3, H and W of the only input, which are fixed; raises BundleError if the model has no such input."""
        inputs = self.proto.graph.input
        image = inputs[0]
        sizes = [size for size in _sizes(image) if size is not None]
        if len(inputs) != 1 or len(sizes) != 4 or len(_sizes(image)) != 4:
            raise BundleError(
                f"{self.model_path}: its inputs are {_described(inputs)}, not a fixed N x 3 x H x W",
                remedy="Export it with fixed sizes.",
            )
        batch, *rest = sizes
        # Pixels come with their channels last.
        channels, height, width = rest if image.name != PIXELS_NAME else (rest[2], *rest[:2])
        pixels = batch * height * width
        if channels != INPUT_CHANNELS or min(batch, height, width) < 1 or pixels > MAX_PIXELS:
            raise BundleError(
                f"{self.model_path}: its input is {_described([image])}: N x {INPUT_CHANNELS} x H x W have to be at "
                f"least 1, and at most {MAX_PIXELS} pixels in all",
                remedy="Export it with such sizes.",
            )
        return batch, channels, height, width

    def _check_tensors(self, info: ModelInfo) -> None:
        """Check that the graph's input and output are those of the facts; raises BundleError with both."""
        classes, pixels = info.network.num_classes, info.image_input is ImageInput.UINT8
        given = _sizes(self.proto.graph.input[0])
        batch, height, width = (None,) * 3
        if len(given) == 4:
            batch, height, width = given[0], *(given[1:3] if pixels else given[2:])
        image: _Wanted = (INPUT_NAME, _FLOATS, (None, INPUT_CHANNELS, None, None))
        if pixels:
            image = (PIXELS_NAME, _BYTES, (None, None, None, INPUT_CHANNELS))
        result: _Wanted = (OUTPUT_NAME, _FLOATS, (batch, classes, height, width))
        if info.head is Head.LABELS:
            result = (LABELS_NAME, _BYTES, (batch, height, width))
        graph = self.proto.graph
        for kind, values, wanted in (("input", graph.input, image), ("output", graph.output, result)):
            if len(values) != 1 or not _is(values[0], *wanted):
                raise BundleError(
                    f"{self.model_path}: its metadata say {info.image_input} images, {info.head} and {classes} "
                    f"classes, so its only {kind} would be {_wanted(*wanted)}; it is {_described(values)}",
                    remedy=_OTHER_GRAPH,
                )
        self._check_fits(info, height, width)

    def _check_fits(self, info: ModelInfo, height: int | None, width: int | None) -> None:
        """Check that the network of the facts takes images of the graph's size, where that is fixed."""
        if not isinstance(info.network, NetworkSpec) or not height or not width or min(height, width) < 0:
            return
        try:
            check_fits(height, width, info.network.variant, info.network.geometry)
        except SizeError as error:
            raise BundleError(f"{self.model_path}: {error.problem}", remedy=_OTHER_GRAPH) from error

    def copy_to(self, folder: Path, name: str) -> str:
        """Copy the files that the manifest lists, or the bare file, into `folder`; returns the copy's name."""
        if self.manifest is None:
            shutil.copyfile(self.path, folder / f"{name}{self.path.suffix}")
            return f"{name}{self.path.suffix}"
        _check_files(self.path / MANIFEST_FILE, self.manifest["files"])
        for file in (*self.manifest["files"], MANIFEST_FILE):
            copy = folder / name / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path / file, copy)
        return name


# Tells of a file whether it is known to have a hash.
IsKnown = Callable[[Path, str], bool]


def never_known(_path: Path, _sha256: str) -> bool:
    """Return False: every file is read to compute its hash."""
    return False


def open_bundle(path: Path, is_known: IsKnown = never_known, *, with_graph: bool = True) -> Bundle:
    """Open a bundle's directory, or a bare ONNX file, and check everything that can be checked.

    The hash of a file is not computed again where `is_known`. Without `with_graph`, the graph is read when it is used
    first: what only runs a model leaves that to the runtime.

    Raises:
        BundleError: it is missing or incomplete, has another schema version, or differs from its manifest.
    """
    bundle = _opened(path, is_known)
    if with_graph:
        _ = bundle.model
    return bundle


def _opened(path: Path, is_known: IsKnown) -> Bundle:
    if path.is_file():
        return Bundle(path, path, read_checked(path), None)
    if not path.is_dir():
        raise BundleError(f"{path} is neither a bundle nor an ONNX file", remedy="Write one with `fcn-deploy export`.")
    manifest = _read_manifest(path / MANIFEST_FILE)
    for name, record in manifest["files"].items():
        file = FileRecord(record["bytes"], record["sha256"])
        check_file(path / name, file, MANIFEST_FILE, _AGAIN, is_known)
    bundle = Bundle(path, path / MODEL_FILE, read_checked(path / MODEL_FILE), manifest)
    if bundle.metadata != manifest["model"]:
        raise BundleError(f"{path}: manifest and {MODEL_FILE} describe different models", remedy=_AGAIN)
    return bundle


def bundle_files(path: Path) -> set[str]:
    """Return the relative names of a bundle's files: those that its manifest lists, and the manifest itself.

    Raises:
        BundleError: it is not a bundle, or its manifest is damaged.
    """
    return {MANIFEST_FILE, *_read_manifest(path / MANIFEST_FILE)["files"]}


def _sizes(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Return a value's sizes, None for each that is not fixed; empty without a shape."""
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in sizes)


def _is(value: onnx.ValueInfoProto, name: str, dtypes: Collection[int], shape: Sequence[int | None]) -> bool:
    """Return whether a value has the name, one of the types, and the sizes that are known of both."""
    sizes = _sizes(value)
    same = all(found is None or size is None or found == size for found, size in zip(sizes, shape, strict=False))
    dtype = value.type.tensor_type.elem_type
    return same and len(sizes) == len(shape) and value.name == name and dtype in dtypes


def _wanted(name: str, dtypes: Collection[int], shape: Sequence[int | None]) -> str:
    sizes = " x ".join("any" if size is None else str(size) for size in shape)
    return f"{name} {' or '.join(sorted(map(_type_name, dtypes)))} {sizes}"


def _described(values: Sequence[onnx.ValueInfoProto]) -> str:
    return ", ".join(f"{value.name} {_type_text(value.type)}" for value in values) or "none"


def _type_text(kind: onnx.TypeProto) -> str:
    which = kind.WhichOneof("value")
    if which != "tensor_type":
        return f"({which.removesuffix('_type').replace('_', ' ')})" if which else "of no type"
    sizes = kind.tensor_type.shape.dim
    shape = " x ".join(str(n.dim_value) if n.HasField("dim_value") else n.dim_param or "any" for n in sizes)
    known = kind.tensor_type.HasField("shape")
    return f"{_type_name(kind.tensor_type.elem_type)} {shape if known else 'of unknown shape'}"


def _type_name(data_type: int) -> str:
    known = onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(data_type)) if data_type in known else f"of unknown type {data_type}"


@dataclass(frozen=True)
class RebuildOptions:
    """What a network is rebuilt from, besides the facts of its artifact.

    Attributes:
        checkpoint: the checkpoint the artifact was exported from, if there was one.
        module: the user's own network that it was exported from, if it was; its code is run.
        module_changed: accept that the file of `module` is not the one that was exported.
    """

    checkpoint: Path | None = None
    module: str | None = None
    module_changed: bool = False


def check_rebuild(info: ModelInfo, options: RebuildOptions) -> None:
    """Check, before any code is run, that the network of an artifact can be rebuilt from `options`.

    Raises:
        CheckpointError: it came from a checkpoint and none is given.
        ModuleError: it came from the user's own code and none is given.
        UsageError: it came from random weights and a checkpoint is given, or from an FCN and a module is given.
    """
    check_checkpoint(info.provenance, options.checkpoint)
    if isinstance(info.network, NetworkSpec):
        if options.module is not None or options.module_changed:
            raise UsageError(
                f"this artifact was exported from {info.network}, not from a module", remedy="Omit --module."
            )
    elif options.module is None:
        raise ModuleError(
            f"this artifact states that it was exported from {info.network}, SHA-256 {info.network.sha256}",
            remedy="Pass your own copy with --module: its code is run, with the arguments that the artifact states.",
        )


def check_checkpoint(made_from: Provenance, path: Path | None, sha256: str | None = None) -> None:
    """Check that `path` can be the checkpoint an artifact was exported from, and is given only if there was one.

    Args:
        made_from: the artifact's provenance.
        path: the checkpoint the user names, or None.
        sha256: hash of that file; None skips the check of its content.

    Raises:
        CheckpointError: the artifact came from a checkpoint and none, or another one, is given.
        UsageError: it came from random weights and a checkpoint is given.
    """
    if made_from.checkpoint_sha256 is None:
        if path is not None:
            raise UsageError("this artifact was exported without a checkpoint", remedy="Omit --checkpoint.")
        return
    if path is None:
        raise CheckpointError(
            f"this artifact was exported from a checkpoint (SHA-256 {made_from.checkpoint_sha256})",
            remedy="Pass that file with --checkpoint: the check needs the trained weights.",
        )
    if sha256 is not None and sha256 != made_from.checkpoint_sha256:
        raise CheckpointError(
            f"checkpoint {path} has SHA-256 {sha256}; the artifact was exported from {made_from.checkpoint_sha256}",
            remedy="Pass the checkpoint it was exported from, or export this one.",
        )


def write_manifest(directory: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of what is in `directory`: `facts`, the files' hashes, and its own."""
    found = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST_FILE)
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in found
    }
    manifest = {"schema_version": SCHEMA_VERSION, **facts, "files": files}
    manifest[_SELF_HASH] = _self_hash(manifest)
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_facts(path, SCHEMA_VERSION, _AGAIN)
    except OSError as error:
        raise BundleError(
            f"{path.parent} is not a bundle: {path.name}: {error.strerror}",
            remedy="Pass a directory that `fcn-deploy export` wrote.",
        ) from error
    if manifest.get(_SELF_HASH) != _self_hash(manifest):
        raise BundleError(f"{path} was edited after it was written", remedy=_AGAIN)
    _check_files(path, convert_facts(manifest, _Manifest, path, _AGAIN).files)
    return manifest


def read_facts(path: Path, known_version: int, remedy: str) -> dict[str, Any]:
    """Read a manifest or a sidecar; raises BundleError with `remedy` if it is damaged or of another schema version."""
    try:
        facts = parse_json(path.read_bytes())
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}", remedy=remedy) from error
    version = convert_facts(facts, _Versioned, path, remedy).schema_version
    if version != known_version:
        raise BundleError(f"{path} has schema version {version}; this fcn-deploy reads {known_version}", remedy=remedy)
    return dict(facts)


def convert_facts(facts: Any, kind: type[_Facts], path: Path, remedy: str) -> _Facts:
    """Convert what `path` holds to a class; raises BundleError with `remedy` if its fields are others."""
    try:
        return msgspec.convert(facts, kind)
    except ValueError as error:  # msgspec's, or of a field that cannot be UTF-8
        raise BundleError(f"{path} is damaged: {error}", remedy=remedy) from error


def _check_files(path: Path, files: Mapping[str, FileRecord]) -> None:
    unexpected = [name for name in files if not _FILE_NAME.fullmatch(name)]
    if unexpected:
        raise BundleError(
            f"{path} lists the file {unexpected[0]!r}; a bundle has only {MODEL_FILE} and {PHOTOS_FOLDER}/NAME",
            remedy=_AGAIN,
        )
    if MODEL_FILE not in files:
        raise BundleError(f"{path} is damaged: $.files has no {MODEL_FILE}", remedy=_AGAIN)


def _self_hash(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != _SELF_HASH}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def check_file(path: Path, record: FileRecord, source: str, remedy: str, is_known: IsKnown = never_known) -> None:
    """Check a file against what its manifest or sidecar, `source`, records; raises BundleError if it differs."""
    found = path.stat().st_size if path.is_file() else None
    if found != record.bytes:
        raise BundleError(
            f"{path} has {'no file' if found is None else f'{found} bytes'}; {source} says {record.bytes} bytes",
            remedy=f"Copy it again. If that does not help: {remedy}",
        )
    if not is_known(path, record.sha256) and file_sha256(path) != record.sha256:
        raise BundleError(f"{path} is not the file that {source} describes (SHA-256 differs)", remedy=remedy)
