"""Narrow bundles of every kind of input and output and two batches, and photos with their labels by PyTorch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fcn_deploy as fd
from exporters.rewrite import with_heads
from fcn_deploy.onnx_file import write_model
from tests.conftest import Once, narrow_options

SIZE = 96
Bundles = Callable[[fd.ImageInput, fd.Head, int], Path]


@pytest.fixture(scope="session")
def bundles(once: Once, shared_bundle: Path) -> Bundles:
    """A narrow FCN-8s for 96x96 by its input, its output and its batch; made once.

    With float images and logits it is a bundle, with another input or output a bare ONNX file made from that.
    """

    def plain(batch: int) -> Path:
        if batch == 1:
            return shared_bundle

        def fill(folder: Path) -> None:
            onnx = fd.OnnxOptions(SIZE, SIZE, batch=batch)
            fd.export(replace(narrow_options(folder / "fcn8s"), onnx=onnx, verify=False))

        return once(f"batch-{batch}", fill) / "fcn8s"

    def made(image_input: fd.ImageInput, head: fd.Head, batch: int) -> Path:
        if (image_input, head) == (fd.ImageInput.FLOAT, fd.Head.LOGITS):
            return plain(batch)
        bundle = fd.open_bundle(plain(batch))

        def fill(folder: Path) -> None:
            info = replace(bundle.info, image_input=image_input, head=head)
            model = with_heads(bundle.model, info)
            model.metadata_props.update(info.to_metadata())
            write_model(model, folder / "fcn8s.onnx")

        return once(f"{image_input}-{head}-{batch}", fill) / "fcn8s.onnx"

    return made


def pictures(count: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Count x H x W x 3 uint8 pixels: smooth, sharp and noisy parts, no two alike."""
    rng = np.random.default_rng(7)
    rows, columns = np.indices((height, width))
    waves = [
        np.stack([rows * (i + 2), columns * 3, (rows // 20 + columns // (9 + i)) % 2 * 255], 2) for i in range(count)
    ]
    return ((np.array(waves) + rng.integers(0, 60, (count, height, width, 3))) % 256).astype(np.uint8)
