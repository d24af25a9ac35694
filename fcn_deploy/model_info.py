"""The facts that are stored with a model: its network, weights, input and output conventions.

They are written to the ONNX file's metadata and the bundle's manifest, and read back by every later command. Nothing
here needs PyTorch.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any

import msgspec
import numpy.typing as npt

from fcn_deploy.choices import Geometry, Head, ImageInput, Precision, UpsampleMode, Variant
from fcn_deploy.errors import BundleError, UsageError, check_range
from fcn_deploy.preprocessing import Preprocessing
from fcn_deploy.storage import parse_json


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
# Of the whole map before any rewrite: height and width of its receptive field, and the share that depends on the image.
FIELD_KEY, LIVE_KEY = METADATA_PREFIX + "receptive_field", METADATA_PREFIX + "live"

# fmt: off
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on

BINARY_CLASSES = "background", "foreground"
DEFAULT_THRESHOLD = 0.5

Rgb = tuple[int, int, int]
_COLOUR, _SPACE = re.compile("[0-9a-fA-F]{6}"), re.compile(r"\s")


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
        return f"FCN-{self.variant} ({self.geometry} geometry, {_counted(self.num_classes)}{narrow})"

    @property
    def name(self) -> str:
        """`FCN-8s`."""
        return f"FCN-{self.variant}"


def _counted(classes: int) -> str:
    return "1 class" if classes == 1 else f"{classes} classes"


NO_ARGUMENTS = "{}"
_MOST_ARGUMENTS = 10_000  # characters


def check_module(source: str, arguments: str) -> dict[str, Any]:
    """Check the source and the arguments of a user's own network; returns the arguments.

    Raises:
        UsageError: the source is neither FILE.py:NAME nor PACKAGE.MODULE:NAME, or the arguments are no JSON object of
            at most 10,000 characters.
    """
    place, _, name = source.rpartition(":")
    if not place or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(
            f"module {source[:200]!r} is neither FILE.py:NAME nor PACKAGE.MODULE:NAME",
            remedy="Pass the file or the module, a colon, and the name of the class, such as net.py:Net.",
        )
    try:
        found = parse_json(arguments.encode())
    except ValueError as error:
        raise _bad_arguments(arguments, f"are not valid JSON: {error}") from error
    if not isinstance(found, dict) or len(arguments) > _MOST_ARGUMENTS:
        raise _bad_arguments(arguments, f"are not a JSON object of at most {_MOST_ARGUMENTS} characters")
    return found


def _bad_arguments(text: str, problem: str) -> UsageError:
    return UsageError(
        f"module arguments {text[:200]!r} {problem}",
        remedy="""Pass the keyword arguments as a JSON object: --module-args '{"num_classes": 5}'.""",
    )


@dataclass(frozen=True)
class ModuleSpec:
    """A network of the user's own code, and how its output becomes logits.

    Attributes:
        source: `path/to/net.py:Name` or `package.module:Name`, as it was given.
        sha256: of its file, in hex.
        num_classes: K, 1 to 255.
        arguments: a JSON object with its keyword arguments.
        output_key: the key of the logits in its output; None for a single tensor.
        upsample: how its logits are brought to the size of the image.
        align_corners: whether bilinear up-sampling aligns the corners.

    Raises:
        UsageError: a value out of its bounds, as for `check_module`.
    """

    source: str
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    num_classes: int
    arguments: str = NO_ARGUMENTS
    output_key: str | None = None
    upsample: UpsampleMode = UpsampleMode.NONE
    align_corners: bool = False

    def __post_init__(self) -> None:
        check_range("number of classes", self.num_classes, 1, MAX_CLASSES, option="--module-args")
        check_module(self.source, self.arguments)

    def __str__(self) -> str:
        arguments = f" {self.arguments}" if self.arguments != NO_ARGUMENTS else ""
        return f"{self.source}{arguments} ({_counted(self.num_classes)})"

    @property
    def name(self) -> str:
        """The name of the class or function."""
        return self.source.rpartition(":")[2]


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
        prefix: what all names of the checkpoint begin with; None if nothing was removed from them.
        own_weights: whether a user's own network has weights that do not depend on the seed; where it has them from is
            not known.
        weights_sha256: hash of the weights of a user's own network (`modules.state_sha256`).
    """

    rng_seed: int | None = None
    checkpoint_sha256: str | None = None
    family: str | None = None
    at_once: bool = False
    initialised: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    prefix: str | None = None
    own_weights: bool = False
    weights_sha256: str | None = None

    @property
    def untrained(self) -> bool:
        """Whether any parameter is random."""
        return self.rng_seed is not None and not self.own_weights

    def __str__(self) -> str:
        if self.checkpoint_sha256 is None:
            own = f"weights of unknown origin that its code brings along (SHA-256 {str(self.weights_sha256)[:12]})"
            return f"untrained (random weights, seed {self.rng_seed})" if self.untrained else own
        facts = [f"{self.family} names"] if self.family is not None else []
        facts += ["at-once"] if self.at_once else []
        facts += [f"prefix {self.prefix} removed"] if self.prefix is not None else []
        described = f" ({', '.join(facts)})" if facts else ""
        source = f"checkpoint {self.checkpoint_sha256[:12]}{described}"
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
        names: names of the labels, when the checkpoint has them or they were given.
        min_agreement: smallest mean IU with the float labels that was accepted for int8; None otherwise.
        preprocessing: how pixels become its input.
        colours: one RGB colour per label; empty means Pascal VOC's.
        threshold: probability above which a pixel has the label 1, where K is 1; None for 0.5, and with several
            classes, of which the one with the largest logit is taken.
    """

    network: NetworkSpec | ModuleSpec
    provenance: Provenance
    image_input: ImageInput = ImageInput.FLOAT
    head: Head = Head.LOGITS
    precision: Precision = Precision.FP32
    versions: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    min_agreement: float | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    colours: tuple[Rgb, ...] = ()
    threshold: float | None = None

    @property
    def num_labels(self) -> int:
        """Number of labels: K, or 2 for a network whose only class is there or not."""
        return max(self.network.num_classes, 2)

    @property
    def boundary(self) -> float:
        """The logit of a network's only class above which a pixel is labelled 1: where its sigmoid is `threshold`."""
        threshold = self.threshold or DEFAULT_THRESHOLD
        return math.log(threshold / (1 - threshold))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the labels: as given, or VOC's for 21, or two of one class, or `class 0`, `class 1`, ..."""
        count = self.num_labels
        if self.names:
            return self.names
        if self.network.num_classes == 1:
            return BINARY_CLASSES
        return VOC_CLASSES if count == len(VOC_CLASSES) else tuple(f"class {i}" for i in range(count))

    @property
    def palette(self) -> tuple[Rgb, ...]:
        """One RGB colour per label, 0..255."""
        return self.colours or voc_palette(self.num_labels)

    def to_metadata(self) -> dict[str, str]:
        """Return the facts as pairs of strings, for an ONNX file's metadata_props."""
        facts: dict[str, Any] = {
            **_network_facts(self.network),
            "palette": " ".join("{:02x}{:02x}{:02x}".format(*colour) for colour in self.palette),
            **_preprocessing_facts(self.preprocessing),
            "image_input": self.image_input,
            "head": self.head,
            "precision": self.precision,
            "class_names": self.names,
            "min_agreement": self.min_agreement,
            "threshold": self.threshold,
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


@dataclass(frozen=True)
class _Facts:
    """What metadata state, but for the network."""

    provenance: Provenance
    preprocessing: Preprocessing
    versions: dict[str, str]
    names: tuple[str, ...]
    image_input: ImageInput = ImageInput.FLOAT
    head: Head = Head.LOGITS
    precision: Precision = Precision.FP32
    min_agreement: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class _FcnFacts(_Facts):
    network: NetworkSpec


@dataclass(frozen=True, kw_only=True)
class _ModuleFacts(_Facts):
    network: ModuleSpec


def _from_facts(facts: Mapping[str, str]) -> ModelInfo:
    lists = {key: _from_text(facts.get(key, "")) for key in ("initialised", "dropped", "class_names")}
    parts = {
        "network": _network_from(facts),
        "provenance": {**facts, **lists, "at_once": facts["at_once"]},
        "preprocessing": _preprocessing_from(facts),
        "versions": {k.removeprefix("version."): v for k, v in facts.items() if k.startswith("version.")},
        "names": lists["class_names"],
    }
    kind = _ModuleFacts if "module" in facts else _FcnFacts
    found = msgspec.convert({**facts, **parts}, kind, strict=False)
    info = ModelInfo(**{each.name: getattr(found, each.name) for each in fields(found)})
    info = replace(info, colours=_colours_from(facts, info))
    _check_bounds(info)
    return info


def _network_facts(network: NetworkSpec | ModuleSpec) -> dict[str, Any]:
    facts = asdict(network)
    renamed = {"source": "module", "sha256": "module_sha256", "arguments": "module_args"}
    return {renamed.get(key, key): value for key, value in facts.items()}


def _network_from(facts: Mapping[str, str]) -> dict[str, str]:
    if "module" not in facts:
        return {key: facts[key] for key in ("variant", "geometry", "num_classes", "channel_divisor")}
    found = {"source": facts["module"], "sha256": facts["module_sha256"], "arguments": facts["module_args"]}
    return {**facts, **found}


def _preprocessing_facts(preprocessing: Preprocessing) -> dict[str, Any]:
    return {
        "channel_order": str(preprocessing.channel_order).upper(),
        "scale": preprocessing.scale,
        "mean": " ".join(map(str, preprocessing.mean)),
        "std": " ".join(map(str, preprocessing.std)),
    }


def _preprocessing_from(facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the pre-processing; older files have neither scale nor std."""
    return {
        "channel_order": facts["channel_order"].lower(),
        "scale": facts.get("scale", "1"),
        "mean": facts["mean"].split(),
        "std": facts.get("std", "1 1 1").split(),
    }


def _colours_from(facts: Mapping[str, str], info: ModelInfo) -> tuple[Rgb, ...]:
    """Read the palette; empty if it is Pascal VOC's."""
    found = tuple(parse_colour(text) for text in facts.get("palette", "").split())
    if found and len(found) != len(info.palette):
        raise ValueError(f"palette has {len(found)} colours, and there are {len(info.palette)} labels")
    return found if found != info.palette else ()


def parse_colour(text: str) -> Rgb:
    """Parse `rrggbb` in hexadecimal digits, perhaps after a `#`; raises ValueError for anything else."""
    digits = text.removeprefix("#")
    if not _COLOUR.fullmatch(digits):
        raise ValueError(f"{text!r} is not a colour such as #1f77b4")
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def _check_bounds(info: ModelInfo) -> None:
    """Check what types do not; raises ValueError with the value and its bounds."""
    seed, agreement, network = info.provenance.rng_seed, info.min_agreement, info.network
    if seed is not None and not 0 <= seed < SEEDS:
        raise ValueError(f"rng_seed is {seed}, not 0 to {SEEDS - 1}")
    if agreement is not None and not 0 <= agreement <= 1:
        raise ValueError(f"min_agreement is {agreement}, not 0 to 1")
    is_8s = isinstance(network, NetworkSpec) and network.variant is Variant.FCN8S
    if info.provenance.at_once and (not is_8s or info.provenance.checkpoint_sha256 is None):
        raise ValueError(f"at_once is true, and only checkpoints of FCN-8s have its scales; this is {network.name}")
    if isinstance(network, ModuleSpec) and network.align_corners and network.upsample is not UpsampleMode.BILINEAR:
        raise ValueError(
            f"align_corners is true, and upsample is {network.upsample}: only bilinear has corners to align"
        )
    if info.names and len(info.names) != info.num_labels:
        raise ValueError(f"class_names are {len(info.names)}, and there are {info.num_labels} labels")
    if info.threshold is not None and not (0 < info.threshold < 1 and info.network.num_classes == 1):
        raise ValueError(f"threshold is {info.threshold}: only a single class has one, between 0 and 1")


def _to_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        joined = " ".join(value)
        return json.dumps(value) if any(_SPACE.search(one) for one in value) or joined.startswith("[") else joined
    return str(value)


def _from_text(text: str) -> list[str]:
    """Read a list of names, which is JSON where a name has spaces."""
    return list(parse_json(text.encode())) if text.startswith('["') else text.split()


def voc_palette(count: int) -> tuple[Rgb, ...]:
    """Return the first `count` colours of Pascal VOC's colormap, which deals a label's bits to R, G and B (VOCcode)."""
    return tuple(_voc_colour(label) for label in range(count))


def _voc_colour(label: int) -> Rgb:
    channels = [sum(((label >> (3 * bit + c)) & 1) << (7 - bit) for bit in range(8)) for c in range(3)]
    return channels[0], channels[1], channels[2]
