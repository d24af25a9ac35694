"""Engines built by TensorRT-RTX for tests, and what tests need to know of the machine."""

from pathlib import Path

import pytest

import fcn_deploy as fd
from exporters.tensorrt import EngineBuild
from fcn_deploy.model_info import Precision
from fcn_deploy.runtime.cuda_driver import current_device
from fcn_deploy.runtime.tensorrt_flavour import Flavour, FlavourName, find_flavour

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
