"""What is checked before a bundle is published: ONNX's own checker, then the numbers against PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from PIL import Image

from exporters.eight_bit import GO_ALONG
from fcn_deploy.errors import ParityError
from fcn_deploy.graph import typed_skeleton
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.model_info import ImageInput, ModelInfo, Precision
from fcn_deploy.models.fcn import FCN
from fcn_deploy.parity.bisect import compare_layers
from fcn_deploy.parity.inputs import ParityInput, Shape, noise_input, photo_input, pixel_noise_input
from fcn_deploy.parity.report import ParityReport
from fcn_deploy.parity.run import Outputs, compare_all, run_all
from fcn_deploy.parity.tolerance import tier_of
from fcn_deploy.runtime.eager import EagerRunner
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.steps import OnStep

_JPEG_QUALITY = 95


def write_photos(calibration: Sequence[ParityInput], folder: Path, shape: Shape) -> tuple[ParityInput, ...]:
    """Write the first pictures of `calibration` into a new folder, in the size the network takes, as JPEG files.

    Returns:
        `calibration` with what was written in the place of what it was written from.
    """
    folder.mkdir()
    kept = list(calibration)
    for index, given in enumerate(calibration[:GO_ALONG]):
        if given.pixels is not None:
            path = folder / f"{index}.jpg"
            Image.fromarray(given.pixels[0]).save(path, quality=_JPEG_QUALITY)
            kept[index] = photo_input(path, shape)
    return tuple(kept)


@dataclass(frozen=True)
class Reference:
    """What PyTorch computed; the network itself may be gone from memory.

    Attributes:
        name: what it ran on.
        inputs: what it was run on.
        outputs: one per input.
    """

    name: str
    inputs: tuple[ParityInput, ...]
    outputs: list[Outputs]


def check_graph(graph: ir.Model) -> None:
    """ONNX's own checker with full shape inference, on the graph as it is written.

    Raises:
        ParityError: the graph is not valid.
    """
    try:
        onnx.checker.check_model(typed_skeleton(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"ONNX's checker refuses the graph: {error}", remedy="Try --optimize none.") from error


def compared_inputs(info: ModelInfo, shape: Shape, calibration: Sequence[ParityInput]) -> tuple[ParityInput, ...]:
    """What a fresh artifact is compared on: a photo and noise, or those of its photos that go along with it in int8."""
    if info.precision is Precision.INT8:
        return tuple(calibration[:GO_ALONG])
    noise = pixel_noise_input if info.image_input is ImageInput.UINT8 else noise_input
    return photo_input(SAMPLE_PHOTO, shape), noise(0, shape)


def run_reference(network: FCN, inputs: tuple[ParityInput, ...], shape: Shape, on_step: OnStep) -> Reference:
    """Run PyTorch on `inputs`."""
    runner = EagerRunner(network, shape)
    return Reference(runner.name, inputs, run_all(runner, inputs, on_step))


def require_parity(
    info: ModelInfo, reference: Reference, path: Path, network: Callable[[], FCN], on_step: OnStep
) -> ParityReport:
    """Run the artifact in `path` on the reference's inputs, and judge it by the tier of its arithmetic.

    Args:
        info: the artifact's facts.
        reference: what it is compared with.
        path: the ONNX file.
        network: makes the network anew, to find the layer that went wrong.
        on_step: told what is being done.

    Raises:
        ParityError: it does not compute the network; names the worst input and the first layer that went wrong.
    """
    candidate = OrtRunner(path)
    outputs = run_all(candidate, reference.inputs, on_step)
    with on_step("compare the two"):
        comparisons = compare_all(reference.inputs, reference.outputs, outputs)
    report = ParityReport(reference.name, candidate.name, tier_of(info), comparisons)
    if not report.passed:
        worst = reference.inputs[comparisons.index(report.worst)]
        found = compare_layers(path, network(), worst, report.tier.max_error, on_step=on_step)
        report.require(found.verdict)
    return report
