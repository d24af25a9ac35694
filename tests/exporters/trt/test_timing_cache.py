"""The timing cache, on TensorRT-RTX: its calls are there but do nothing, except that they read what they are given."""

from pathlib import Path

import pytest

import fcn_deploy as fd
from exporters.tensorrt import builder
from tests.engines import rtx
from tests.messages import missing

pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")


@pytest.mark.parametrize(("data", "said"), [
    (b"no timing cache" * 20, "Failed to deserialize timing cache"), (b"", "refuses it"),
])  # fmt: skip
def test_a_corrupt_cache_is_an_error(tmp_path: Path, data: bytes, said: str) -> None:
    """TensorRT itself goes on with an empty one."""
    flavour, path = rtx(), tmp_path / "cache"
    path.write_bytes(data)
    config = flavour.trt.Builder(flavour.log.logger).create_builder_config()

    with pytest.raises(fd.InputFileError) as caught:
        builder.load(flavour, config, path)

    assert missing(f"{path} {len(data)}", caught.value.problem) == []
    assert said in caught.value.problem
    assert caught.value.remedy
    assert caught.value.exit_code == 3
    assert path.read_bytes() == data


def test_without_a_file_there_is_a_new_cache(tmp_path: Path) -> None:
    flavour = rtx()
    config = flavour.trt.Builder(flavour.log.logger).create_builder_config()

    assert builder.load(flavour, config, tmp_path / "cache") is not None
    assert list(tmp_path.iterdir()) == []
