"""TensorRT engines on disk: a plan that any TensorRT tool reads, and a sidecar with its facts.

The sidecar of `fcn8s.plan` is `fcn8s.plan.json`. A plan runs only on the TensorRT and the GPU it was built for; the
sidecar lets these be checked, with a clear message, before the plan is loaded.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec

from fcn_deploy.artifact.bundle import FileRecord, check_file, convert_facts, read_facts
from fcn_deploy.choices import FlavourName
from fcn_deploy.errors import BundleError
from fcn_deploy.model_info import ModelInfo, TensorSpec


@dataclass(frozen=True)
class Device:
    """A GPU."""

    name: str  # as the driver calls it
    capability: str  # its compute capability, e.g. `8.9`.
    driver: str  # the newest CUDA its driver runs, e.g. `13.0`.

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


PLAN_SUFFIX = ".plan"
SCHEMA_VERSION = 1
# The models of this toolkit have one input and one output.
_OneTensor = Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=1)]
_Size = Annotated[int, msgspec.Meta(ge=1)]
_DTYPES = ("float32", "float16", "uint8", "int8", "int32", "int64", "bool")
_BUILD_AGAIN = "Build the engine again with `fcn-deploy tensorrt`."


@dataclass(frozen=True)
class LayerTypes:
    """How many layers compute in which type."""

    # source of the types: `engine`, TensorRT's engine inspector on a GPU; `builder`, the list of layers in the
    # builder's log; `network`, TensorRT's parser, before layers were fused
    seen_in: str
    # layers by type, e.g. `{"fp16": 31, "fp32": 2}`; layers of shapes and indices are left out.
    counts: Mapping[str, int]

    def share(self, precision: str) -> float:
        """Share of the layers that compute in `precision`, 0 to 1."""
        return self.counts.get(precision, 0) / max(1, sum(self.counts.values()))


@dataclass(frozen=True)
class Engine:
    """A TensorRT engine and its sidecar.

    Attributes:
        path: the plan.
        metadata: the model's facts, as in an ONNX file's metadata.
        input_shape: N, 3, H, W.
        inputs: the single input.
        outputs: the single output.
        source_sha256: hash of the ONNX file it was built from.
        plan_sha256: of the plan.
        plan_bytes: its size.
        flavour: the TensorRT product that built it, which is also needed to run it.
        version: version of that product.
        capabilities: the compute capabilities it was built for ahead of time; empty when it was built for `device`.
        device: the GPU it was built on and for.
        key: hash of all inputs of the build; equal keys mean equal engines.
        workspace_mb: the limit on scratch memory, or None.
        layers: by type.
        build_seconds: how long TensorRT took.
    """

    path: Path
    metadata: Mapping[str, str]
    input_shape: tuple[_Size, _Size, _Size, _Size]
    inputs: _OneTensor
    outputs: _OneTensor
    source_sha256: str
    plan_sha256: str
    plan_bytes: int
    flavour: FlavourName
    version: str
    capabilities: tuple[str, ...]
    device: Device | None
    key: str
    workspace_mb: int | None
    layers: LayerTypes
    build_seconds: float
    has_graph: ClassVar[bool] = False  # TensorRT has fused the layers
    photos: ClassVar[tuple[Path, ...]] = ()  # no calibration photos lie beside an engine

    @property
    def info(self) -> ModelInfo:
        """The model's facts."""
        return ModelInfo.from_metadata(self.metadata, str(sidecar_path(self.path)))

    @property
    def model_path(self) -> Path:
        """The file that runs: the plan."""
        return self.path

    @property
    def model_sha256(self) -> str:
        """SHA-256 of the file that runs, in hex."""
        return self.plan_sha256

    @property
    def built_for(self) -> str:
        """The GPU or the compute capabilities that it runs on, as text."""
        return f"compute capability {', '.join(self.capabilities)}" if self.capabilities else str(self.device)

    def copy_to(self, folder: Path, name: str) -> str:
        """Copy plan and sidecar into `folder`; returns the plan's new name."""
        copy = folder / f"{name}{PLAN_SUFFIX}"
        shutil.copyfile(self.path, copy)
        shutil.copyfile(sidecar_path(self.path), sidecar_path(copy))
        return copy.name

    def to_dict(self) -> dict[str, Any]:
        """Every fact, for JSON."""
        return asdict(self) | {"path": str(self.path)}

    def sidecar(self) -> str:
        """The text of the sidecar; it does not name the plan's folder."""
        facts = {"schema_version": SCHEMA_VERSION, **self.to_dict(), "path": self.path.name}
        return json.dumps(facts, indent=2, allow_nan=False) + "\n"


def plan_beside(source: Path) -> Path:
    """Return the default path of the engine of a bundle or an ONNX file: `fcn8s.plan` beside `fcn8s`."""
    # `.` and `..` have no name of their own.
    named = source.resolve() if source.name in ("", "..") else source
    return Path(f"{named.with_suffix('') if named.suffix == '.onnx' else named}{PLAN_SUFFIX}")


def sidecar_path(plan: Path) -> Path:
    """Return the path of a plan's sidecar."""
    return plan.with_name(plan.name + ".json")


def open_engine(path: Path) -> Engine:
    """Read a plan's sidecar, and check the plan against it.

    Raises:
        BundleError: the plan or its sidecar is missing or damaged, or the two do not belong together.
    """
    if not path.is_file():
        raise BundleError(f"{path} is not a file", remedy="Build it with `fcn-deploy tensorrt`.")
    engine = read_sidecar(path)
    check_file(path, FileRecord(engine.plan_bytes, engine.plan_sha256), sidecar_path(path).name, _BUILD_AGAIN)
    return engine


def read_sidecar(plan: Path) -> Engine:
    """Read a plan's facts, not the plan; raises BundleError if they are missing, damaged or of another version."""
    path = sidecar_path(plan)
    try:
        facts = read_facts(path, SCHEMA_VERSION, _BUILD_AGAIN)
    except OSError as error:
        raise BundleError(
            f"{plan} has no sidecar {path.name}, so its model, TensorRT and GPU are unknown",
            remedy=f"Copy {path.name} next to the plan, or build the engine with `fcn-deploy tensorrt`.",
        ) from error
    engine = convert_facts({**facts, "path": plan}, Engine, path, _BUILD_AGAIN)
    unknown = [spec for spec in (*engine.inputs, *engine.outputs) if spec.dtype not in _DTYPES]
    if unknown:
        raise BundleError(
            f"{path} is damaged: tensor {unknown[0].name} has dtype {unknown[0].dtype!r}, not {', '.join(_DTYPES)}",
            remedy=_BUILD_AGAIN,
        )
    return engine
