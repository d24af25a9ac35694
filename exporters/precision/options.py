"""The precision options of a graph: importable without PyTorch, ONNX and ONNX Runtime."""

from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.choices import Calibration, Precision
from fcn_deploy.errors import UsageError
from fcn_deploy.model_info import Provenance

MIN_AGREEMENT = 0.95


@dataclass(frozen=True)
class PrecisionOptions:
    """The precision of a graph, and how it is reached.

    Attributes:
        precision: the arithmetic.
        calibration: images, or folders of them, like those the artifact is for; int8 needs them.
        method: how int8's clipping thresholds are chosen; None is min-max.
        min_agreement: least mean IU between int8's labels and float's on the calibration images; None requires
            `MIN_AGREEMENT` of trained weights, and nothing of random ones.

    Raises:
        UsageError: int8 without calibration images, an option of another precision, or an agreement out of its bounds.
    """

    precision: Precision = Precision.FP32
    calibration: tuple[Path, ...] = ()
    method: Calibration | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        if self.precision is Precision.INT8 and not self.calibration:
            raise UsageError(
                "int8 needs calibration images, and none are given",
                remedy="Pass --calibration with a folder of at least a dozen photos like those the model is for.",
            )
        unused = {
            "calibration images": self.calibration and self.precision is Precision.FP32,
            "a calibration method": self.method and self.precision is not Precision.INT8,
            "a minimum agreement": self.min_agreement is not None and self.precision is not Precision.INT8,
        }
        for option in (name for name, given in unused.items() if given):
            raise UsageError(f"{self.precision} does not use {option}", remedy="Omit it, or pass --precision int8.")
        if self.min_agreement is not None and not 0 < self.min_agreement <= 1:
            raise UsageError(
                f"min agreement {self.min_agreement:g} is out of bounds: above 0, at most 1",
                remedy="Pass a mean IU; the default is 0.95.",
            )

    def agreement(self, provenance: Provenance) -> float | None:
        """Return the least mean IU for weights of that origin; None where agreement is not judged.

        Labels of random weights depend on margins far below the resolution of 8 bits.
        """
        if self.min_agreement is not None:
            return self.min_agreement
        return MIN_AGREEMENT if self.precision is Precision.INT8 and not provenance.untrained else None
