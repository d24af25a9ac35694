"""A TensorRT engine on disk: a plain plan that any TensorRT tool reads, and beside it what is known of it.

The sidecar of `fcn8s.plan` is `fcn8s.plan.json`. A plan runs only on the TensorRT and the GPU it was built for, and
says so late and badly; with the sidecar it can be said early and well.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcn_deploy.choices import FlavourName
from fcn_deploy.errors import BundleError
from fcn_deploy.model_info import ModelInfo, TensorSpec
from fcn_deploy.storage import file_sha256


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: as the driver calls it.
        capability: its compute capability, e.g. `8.9`.
        driver: the newest CUDA its driver runs, e.g. `13.0`.
    """

    name: str
    capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


PLAN_SUFFIX = ".plan"
SCHEMA_VERSION = 1
_BUILD_AGAIN = "Build the engine again with `fcn-deploy tensorrt`."


@dataclass(frozen=True)
class LayerTypes:
    """How many layers give what type of numbers.

    Attributes:
        seen_in: `engine`, as its inspector reports it on a GPU; `builder`, as that lists the engine in its log; or
            `network`, as TensorRT's parser typed it, before layers were fused.
        counts: layers by type, e.g. `{"fp16": 31, "fp32": 2}`; layers of shapes and indices are left out.
    """

    seen_in: str
    counts: Mapping[str, int]

    def share(self, precision: str) -> float:
        """Share of the layers that give `precision`, 0 to 1."""
        return self.counts.get(precision, 0) / max(1, sum(self.counts.values()))


@dataclass(frozen=True)
class Engine:
    """A TensorRT engine and its sidecar.

    Attributes:
        path: the plan.
        metadata: the model's facts, as in an ONNX file's metadata.
        input_shape: N, 3, H, W.
        inputs: what it takes.
        outputs: what it gives.
        source_sha256: of the ONNX file it was built from.
        plan_sha256: of the plan.
        plan_bytes: its size.
        flavour: which product built it, and so runs it.
        version: of that.
        capabilities: the compute capabilities it was built for ahead of time; empty when it was built for `device`.
        device: the GPU it was built on and for.
        key: hash of everything that decides what is built; the same key would build the same engine.
        workspace_mb: the limit on scratch memory, or None.
        layers: by type.
        build_seconds: how long TensorRT took.
    """

    path: Path
    metadata: Mapping[str, str]
    input_shape: tuple[int, int, int, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
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
    def has_graph(self) -> bool:
        """False: TensorRT has fused the layers."""
        return False

    @property
    def photos(self) -> tuple[Path, ...]:
        """None: unlike a bundle, an engine brings no photos to be compared on."""
        return ()

    @property
    def built_for(self) -> str:
        """The GPU it runs on, in words."""
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
    """Where the engine of a bundle or an ONNX file is put unless it is told otherwise: `fcn8s.plan` beside `fcn8s`."""
    # `.` and `..` have no name of their own.
    named = source.resolve() if source.name in ("", "..") else source
    return Path(f"{named.with_suffix('') if named.suffix == '.onnx' else named}{PLAN_SUFFIX}")


def sidecar_path(plan: Path) -> Path:
    """Where a plan's sidecar lies."""
    return plan.with_name(plan.name + ".json")


def open_engine(path: Path) -> Engine:
    """Read a plan's sidecar, and check the plan against it.

    Raises:
        BundleError: the plan or its sidecar is missing, damaged, or not of the other.
    """
    if not path.is_file():
        raise BundleError(f"{path} is not a file", remedy="Build it with `fcn-deploy tensorrt`.")
    engine = read_sidecar(path)
    size = path.stat().st_size
    if size != engine.plan_bytes:
        raise BundleError(
            f"{path} has {size} bytes; {sidecar_path(path).name} says {engine.plan_bytes}",
            remedy="Copy the engine again, or build it again with `fcn-deploy tensorrt`.",
        )
    if file_sha256(path) != engine.plan_sha256:
        raise BundleError(
            f"{path} is not the plan that {sidecar_path(path).name} describes (SHA-256 differs)", remedy=_BUILD_AGAIN
        )
    return engine


def read_sidecar(plan: Path) -> Engine:
    """What is known of a plan, without reading the plan.

    Raises:
        BundleError: there is no sidecar, it is damaged, or of another schema version.
    """
    path = sidecar_path(plan)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["schema_version"]
        if version == SCHEMA_VERSION:
            return _engine(plan, facts)
    except OSError as error:
        raise BundleError(
            f"{plan} has no sidecar {path.name}, so its model, TensorRT and GPU are unknown",
            remedy=f"Copy {path.name} along with the plan, or build it with `fcn-deploy tensorrt`.",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged: {type(error).__name__} {error}", remedy=_BUILD_AGAIN) from error
    raise BundleError(
        f"{path} has schema version {version}; this fcn-deploy reads {SCHEMA_VERSION}", remedy=_BUILD_AGAIN
    )


def _engine(plan: Path, facts: dict[str, Any]) -> Engine:
    facts = {key: value for key, value in facts.items() if key not in ("schema_version", "path")}
    batch, channels, height, width = (int(n) for n in facts.pop("input_shape"))
    device = facts.pop("device")
    return Engine(
        path=plan,
        input_shape=(batch, channels, height, width),
        inputs=_specs(facts.pop("inputs")),
        outputs=_specs(facts.pop("outputs")),
        flavour=FlavourName(facts.pop("flavour")),
        capabilities=tuple(facts.pop("capabilities")),
        device=Device(**device) if device is not None else None,
        layers=LayerTypes(**facts.pop("layers")),
        **facts,
    )


def _specs(values: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(value["name"], tuple(value["shape"]), value["dtype"]) for value in values)
