"""The facts that are stored with a model: its network, weights, input and output conventions.

They are written to the ONNX file's metadata and the bundle's manifest, and read back by every later command. Nothing
here needs PyTorch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec
import numpy.typing as npt

from fcn_deploy.choices import Geometry, Head, ImageInput, Precision, Variant
from fcn_deploy.errors import BundleError, UsageError, check_range


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and NumPy dtype of one input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {'x'.join(str(n) for n in self.shape)}"

    @classmethod
    def of(cls, name: str, array: npt.NDArray[Any]) -> "TensorSpec":
        """Return the spec of `array` under `name`."""
        return cls(name, array.shape, array.dtype.name)


MAX_CLASSES = 255  # labels are uint8 and 255 means void
VOID_LABEL = 255
SEEDS = 2**63  # of PyTorch's generators

# Mean of ImageNet's training images per channel: B, G, R, 0..255 (Long et al.'s voc_layers.py; VGG's published means).
MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
CHANNEL_ORDER = "BGR"

INPUT_NAME = "image"
OUTPUT_NAME = "logits"
# Names of the input and output of a graph that takes pixels and returns labels.
PIXELS_NAME = "pixels"
LABELS_NAME = "labels"

METADATA_PREFIX = "fcn_deploy."
# Metadata of single nodes: the row and column of the whole map where a computed window begins, the factor that keeps a
# map away from the limit of its type, and the index of an input whose numbers are an algorithm's, not trained.
WINDOW_KEY, SCALE_KEY = METADATA_PREFIX + "window", METADATA_PREFIX + "scale"
TRANSFORM_KEY = METADATA_PREFIX + "transform"
DIRECT_KEY = METADATA_PREFIX + "direct_multiply_adds"

# fmt: off
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that determines a network's layers and parameter shapes.

    Attributes:
        variant: which FCN.
        geometry: how pools round odd sizes.
        num_classes: K, 1 to 255.
        channel_divisor: divides every channel count except the classes; 1 is the real network, more a test network.

    Raises:
        UsageError: a value out of its bounds.
    """

    variant: Variant
    geometry: Geometry = Geometry.FLOOR
    num_classes: int = 21
    channel_divisor: int = 1

    def __post_init__(self) -> None:
        # Labels are 8-bit with 255 as void.
        check_range("number of classes", self.num_classes, 1, MAX_CLASSES, option="--num-classes")
        check_range("channel divisor", self.channel_divisor, 1, option="--channel-divisor")

    def __str__(self) -> str:
        narrow = f", channels / {self.channel_divisor}" if self.channel_divisor > 1 else ""
        return f"FCN-{self.variant} ({self.geometry} geometry, {self.num_classes} classes{narrow})"


@dataclass(frozen=True)
class Provenance:
    """Where a network's weights came from.

    Attributes:
        rng_seed: seed of the parameters that were initialised at random, or None when there are none.
        checkpoint_sha256: hash of the checkpoint file, or None without one.
        family: naming family of the checkpoint.
        at_once: whether the scales of fcn8s-atonce were folded into the skips.
        initialised: parameters that were initialised at random because a starting point lacks them.
        dropped: tensors of the checkpoint that an FCN does not have.
    """

    rng_seed: int | None = None
    checkpoint_sha256: str | None = None
    family: str | None = None
    at_once: bool = False
    initialised: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def untrained(self) -> bool:
        """Whether any parameter is random."""
        return self.rng_seed is not None

    def __str__(self) -> str:
        if self.checkpoint_sha256 is None:
            return f"untrained (random weights, seed {self.rng_seed})"
        source = f"checkpoint {self.checkpoint_sha256[:12]} ({self.family} names{', at-once' if self.at_once else ''})"
        if self.untrained:
            return f"untrained heads (random, seed {self.rng_seed}) on {source}: only a starting point"
        return source


@dataclass(frozen=True)
class ModelInfo:
    """A model's facts, as recorded in its metadata.

    Attributes:
        network: the network's specification.
        provenance: where its weights came from.
        image_input: form of the graph's input.
        head: form of the graph's output.
        precision: arithmetic of the graph.
        versions: versions of the packages that wrote the file, by name.
        names: names of the classes, when the checkpoint has them.
        min_agreement: smallest mean IU with the float labels that was accepted for int8; None otherwise.
    """

    network: NetworkSpec
    provenance: Provenance
    image_input: ImageInput = ImageInput.FLOAT
    head: Head = Head.LOGITS
    precision: Precision = Precision.FP32
    versions: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    min_agreement: float | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The checkpoint's names, or else VOC's for 21 classes, or else `class 0`, `class 1`, ..."""
        count = self.network.num_classes
        if self.names:
            return self.names
        return VOC_CLASSES if count == len(VOC_CLASSES) else tuple(f"class {i}" for i in range(count))

    @property
    def palette(self) -> tuple[Rgb, ...]:
        """One RGB colour per class, 0..255."""
        return voc_palette(self.network.num_classes)

    def to_metadata(self) -> dict[str, str]:
        """Return the facts as pairs of strings, for an ONNX file's metadata_props."""
        facts: dict[str, Any] = {
            **asdict(self.network),
            "palette": " ".join("{:02x}{:02x}{:02x}".format(*colour) for colour in self.palette),
            "mean": " ".join(str(value) for value in MEAN_BGR),
            "channel_order": CHANNEL_ORDER,
            "image_input": self.image_input,
            "head": self.head,
            "precision": self.precision,
            "class_names": self.names,
            "min_agreement": self.min_agreement,
            "weights": "untrained" if self.provenance.untrained else "trained",
            **asdict(self.provenance),
            **{f"version.{package}": version for package, version in self.versions.items()},
        }
        return {METADATA_PREFIX + key: _to_text(value) for key, value in facts.items() if value not in (None, ())}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> "ModelInfo":
        """Read back what `to_metadata` wrote; `source` names the file in errors.

        Raises:
            BundleError: a fact is missing or invalid.
        """
        facts = {k.removeprefix(METADATA_PREFIX): v for k, v in metadata.items() if k.startswith(METADATA_PREFIX)}
        if not facts:
            raise BundleError(
                f"{source} has no fcn_deploy metadata, so its variant, classes and mean are unknown",
                remedy="Use a model written by `fcn-deploy export`.",
            )
        try:
            return _from_facts(facts)
        except (KeyError, ValueError, UsageError) as error:
            raise BundleError(
                f"{source}: metadata is incomplete or altered: {type(error).__name__} {error}",
                remedy="Export it again.",
            ) from error


def _from_facts(facts: Mapping[str, str]) -> ModelInfo:
    expected = {"mean": " ".join(str(value) for value in MEAN_BGR), "channel_order": CHANNEL_ORDER}
    for key, value in expected.items():
        if facts[key] != value:
            raise ValueError(f"{key} is {facts[key]}, and this version supports only {value}")
    required = {key: facts[key] for key in ("variant", "geometry", "num_classes", "channel_divisor", "at_once")}
    lists = {key: facts.get(key, "").split() for key in ("initialised", "dropped", "class_names")}
    versions = {k.removeprefix("version."): v for k, v in facts.items() if k.startswith("version.")}
    parts = {"network": required, "provenance": {**facts, **lists}, "names": lists["class_names"], "versions": versions}
    info = msgspec.convert({**facts, **parts}, ModelInfo, strict=False)
    _check_bounds(info)
    return info


def _check_bounds(info: ModelInfo) -> None:
    """Check what types do not; raises ValueError with the value and its bounds."""
    seed, agreement, variant = info.provenance.rng_seed, info.min_agreement, info.network.variant
    if seed is not None and not 0 <= seed < SEEDS:
        raise ValueError(f"rng_seed is {seed}, not 0 to {SEEDS - 1}")
    if agreement is not None and not 0 <= agreement <= 1:
        raise ValueError(f"min_agreement is {agreement}, not 0 to 1")
    if info.provenance.at_once and (variant is not Variant.FCN8S or info.provenance.checkpoint_sha256 is None):
        raise ValueError(f"at_once is true, and only checkpoints of FCN-8s have its scales; this is FCN-{variant}")
    if info.names and len(info.names) != info.network.num_classes:
        raise ValueError(f"class_names are {len(info.names)}, and num_classes is {info.network.num_classes}")


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value) if isinstance(value, tuple) else str(value)


def voc_palette(count: int) -> tuple[Rgb, ...]:
    """Return the first `count` colours of Pascal VOC's colormap, which deals a label's bits to R, G and B (VOCcode)."""
    return tuple(_voc_colour(label) for label in range(count))


def _voc_colour(label: int) -> Rgb:
    channels = [sum(((label >> (3 * bit + c)) & 1) << (7 - bit) for bit in range(8)) for c in range(3)]
    return channels[0], channels[1], channels[2]
