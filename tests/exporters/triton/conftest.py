"""Narrow bundles of every kind of ends and two batches, and photos with what PyTorch says of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import fcn_deploy as fd
from exporters.rewrite import with_heads
from fcn_deploy.onnx_file import write_model
from tests.conftest import NARROW

SIZE = 96
Bundles = Callable[[fd.ImageInput, fd.Head, int], Path]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, shared_bundle: Path) -> Bundles:
    """A narrow FCN-8s for 96x96 by what it takes, what it gives, and its batch; made once.

    With float images and logits it is a bundle, with other ends a bare ONNX file made from that.
    """

    @cache
    def made(image_input: fd.ImageInput, head: fd.Head, batch: int) -> Path:
        folder = tmp_path_factory.mktemp("bundles")
        if (image_input, head) != (fd.ImageInput.FLOAT, fd.Head.LOGITS):
            bundle = fd.open_bundle(made(fd.ImageInput.FLOAT, fd.Head.LOGITS, batch))
            model = with_heads(bundle.model, image_input, head)
            model.metadata_props.update(replace(bundle.info, image_input=image_input, head=head).to_metadata())
            write_model(model, folder / "fcn8s.onnx")
            return folder / "fcn8s.onnx"
        if batch == 1:
            return shared_bundle
        onnx = fd.OnnxOptions(SIZE, SIZE, batch=batch)
        options = fd.ExportOptions(fd.Variant.FCN8S, folder / "fcn8s", channel_divisor=NARROW, onnx=onnx, verify=False)
        return fd.export(options).path

    return made


def pictures(count: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Count x H x W x 3 uint8 pixels: smooth, sharp and noisy parts, no two alike."""
    rng = np.random.default_rng(7)
    rows, columns = np.indices((height, width))
    waves = [
        np.stack([rows * (i + 2), columns * 3, (rows // 20 + columns // (9 + i)) % 2 * 255], 2) for i in range(count)
    ]
    return ((np.array(waves) + rng.integers(0, 60, (count, height, width, 3))) % 256).astype(np.uint8)
