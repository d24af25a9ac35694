"""Whether a graph that was given other ends, or a free batch, still labels pictures as the artifact does."""

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fcn_deploy.errors import ParityError
from fcn_deploy.images import SAMPLE_PHOTO, Labels, Pixels
from fcn_deploy.model_info import PIXELS_NAME
from fcn_deploy.onnx_file import write_model
from fcn_deploy.parity.inputs import Shape, photo_input, pixel_noise_input
from fcn_deploy.parity.tolerance import TIERS
from fcn_deploy.runtime.ends import feed_of, labels_of
from fcn_deploy.runtime.ort import OrtRunner

_SEED = 0


def require_same_labels(source: Path, served: ir.Model, shape: Shape) -> None:
    """Compare labels of `served` with those of the ONNX file `source`, on a photo and on noise, on the CPU.

    Args:
        source: the artifact's model.
        served: the graph from pixels to labels that is to be packaged.
        shape: N, 3, H, W of the artifact; batches of 1 and of N are compared.

    Raises:
        ParityError: more pixels have another label than a change in the order of sums explains.
    """
    pictures = [photo_input(SAMPLE_PHOTO, shape), pixel_noise_input(_SEED, shape)]
    pixels = np.concatenate([one.pixels for one in pictures if one.pixels is not None])
    with OrtRunner(source) as runner:
        parts = np.split(pixels, len(pictures))
        expected = np.concatenate([labels_of(runner.run(feed_of(runner.inputs[0], part))) for part in parts])
    bound = TIERS["fp32"].label_agreement or 1.0
    for batch in sorted({1, shape[0]}):
        found = _labels(served, pixels, batch)
        flips = int(np.count_nonzero(found != expected))
        # One pixel may always differ, since small maps cannot resolve the share.
        if flips > 1 and flips > (1 - bound) * expected.size:
            raise ParityError(
                f"the graph for Triton labels {flips} of {expected.size} pixels unlike {source}, in batches of {batch}",
                remedy="Nothing was written. Pass --backend python, which runs the artifact as it is.",
            )


def _labels(model: ir.Model, pixels: Pixels, batch: int) -> Labels:
    fixed = model.clone()
    image = fixed.graph.inputs[0]
    image.shape = ir.Shape((batch, *pixels.shape[1:]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "served.onnx"
        write_model(fixed, path)
        with OrtRunner(path) as runner:
            parts = np.split(pixels, len(pixels) // batch)
            return np.concatenate([labels_of(runner.run({PIXELS_NAME: part})) for part in parts])
