"""The naming families of FCN checkpoints: how each is recognised, and how its names map to this toolkit's.

Sources of the names: wkentaro/pytorch-fcn and shelhamer's Caffe nets (identical to this toolkit's), torchvision's
VGG16, meetps/pytorch-semseg (ptsemseg).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fcn_deploy.choices import Geometry
from fcn_deploy.geometry import FC6_KERNEL

StateDict = Mapping[str, Tensor]

# (block, convolutions) of VGG16, in order of execution.
_CONVOLUTIONS = [f"conv{b}_{i}" for b, n in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for i in range(1, n + 1)]
_TORCHVISION_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_FC_KERNELS = {"fc6": FC6_KERNEL, "fc7": 1}


@dataclass(frozen=True)
class Family:
    """One way of naming an FCN's parameters."""

    name: str  # name shown to the user
    keys: frozenset[str]  # parameter names that all have to be present
    geometry: Geometry  # default geometry of its networks
    # maps its layer names to this toolkit's; layers not listed keep their name
    layers: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()  # layers that an FCN does not have; they are reported as dropped
    starting_point: bool = False  # whether the file has only the trunk, so that the heads are untrained
    # reshapes a weight, by this toolkit's layer name, to that of a convolution
    reshape: Callable[[str, Tensor], Tensor] = lambda _layer, weight: weight

    def recognises(self, state: StateDict) -> bool:
        """Return whether the checkpoint's names belong to this family."""
        return self.keys <= state.keys()

    def convert(self, state: StateDict) -> dict[str, Tensor]:
        """Return the checkpoint under this toolkit's names, without the layers in `dropped`.

        Raises:
            ValueError: two of the checkpoint's tensors would get the same name.
        """
        converted: dict[str, Tensor] = {}
        for key, tensor in state.items():
            layer, _, kind = key.rpartition(".")
            if layer in self.dropped:
                continue
            ours = self.layers.get(layer, layer)
            if f"{ours}.{kind}" in converted:
                raise ValueError(f"{key} and another tensor both map to {ours}.{kind}")
            converted[f"{ours}.{kind}"] = self.reshape(ours, tensor) if kind == "weight" else tensor
        return converted


def _linear_as_convolution(layer: str, weight: Tensor) -> Tensor:
    """Reshape a fully connected layer's out x (in * k * k) weight to out x in x k x k; return others as they are."""
    kernel = _FC_KERNELS.get(layer, 0)
    if kernel and weight.dim() == 2 and weight.shape[1] % kernel**2 == 0:
        return weight.reshape(weight.shape[0], -1, kernel, kernel)
    return weight


FAMILIES = (
    Family(
        name="flat",
        keys=frozenset({"conv15.weight"}),
        geometry=Geometry.FLOOR,
        layers={
            **{f"conv{i}": ours for i, ours in enumerate(_CONVOLUTIONS, start=1)},
            "conv14": "fc6",
            "conv15": "fc7",
            "upscore32": "upscore",
            "upscore2x2": "upscore_pool4",
        },
    ),
    Family(name="Caffe", keys=frozenset({"fc7.weight"}), geometry=Geometry.CAFFE),
    Family(
        name="torchvision VGG16",
        keys=frozenset({"features.0.weight", "classifier.6.weight"}),
        geometry=Geometry.FLOOR,
        layers={
            **{f"features.{i}": ours for i, ours in zip(_TORCHVISION_FEATURES, _CONVOLUTIONS, strict=True)},
            "classifier.0": "fc6",
            "classifier.3": "fc7",
        },
        dropped=frozenset({"classifier.6"}),
        starting_point=True,
        reshape=_linear_as_convolution,
    ),
    Family(
        name="ptsemseg",
        keys=frozenset({"conv_block1.0.weight"}),
        # All its pools round up.
        geometry=Geometry.CAFFE,
        layers={
            **{f"conv_block{c[4]}.{2 * (int(c[6]) - 1)}": c for c in _CONVOLUTIONS},
            "classifier.0": "fc6",
            "classifier.3": "fc7",
            "classifier.6": "score_fr",
            "upscore4": "upscore_pool4",
        },
    ),
)
