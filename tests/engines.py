"""Engines built by TensorRT-RTX for tests, and what tests need to know of the machine."""

from pathlib import Path

import pytest

import fcn_deploy as fd
from exporters.tensorrt.build import EngineBuild
from fcn_deploy.choices import FlavourName, Precision
from fcn_deploy.runtime.nvidia import current_device
from fcn_deploy.runtime.tensorrt_flavour import Flavour, find_flavour

WITHOUT_GPU = pytest.mark.skipif(current_device() is not None, reason="there is a GPU")


def rtx() -> Flavour:
    """TensorRT-RTX, or the test is skipped."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    return find_flavour(FlavourName.RTX)


def built(source: Path, output: Path, precision: Precision | None = None) -> EngineBuild:
    """An engine for Ada and Blackwell GPUs."""
    return fd.build_engine(
        fd.EngineOptions(source, output, precision, flavour=rtx().name, capabilities=("8.9", "12.0"))
    )
