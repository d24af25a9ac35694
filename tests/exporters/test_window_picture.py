from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

import fcn_deploy as fd
from exporters.window_picture import regions_of
from fcn_deploy.artifact.bundle import open_bundle
from fcn_deploy.regions import map_regions
from tests.conftest import Call, narrow_options
from tests.exporters.passes.graphs import Trunk
from tests.messages import missing

LIVE, MOAT, RIM = (230, 159, 0), (191, 227, 247), (0, 114, 178)


def test_the_maps_of_a_bundle_are_those_of_the_network_it_was_made_from(shared_bundle: Path) -> None:
    maps = regions_of(open_bundle(shared_bundle))

    assert [one.name for one in maps if one.ends_block] == [f"pool{n}" for n in range(1, 6)]
    assert {one.name: one.height for one in maps} == map_regions(96, fd.Geometry.FLOOR)
    assert 0 < maps[0].live_share < 0.12


def test_the_maps_of_another_file_are_read_off_its_graph(tmp_path: Path) -> None:

    onnx.save(ir.to_proto(Trunk(60, 50, padding=30).model()), tmp_path / "trunk.onnx")

    maps = regions_of(open_bundle(tmp_path / "trunk.onnx"))

    assert maps[0].name == "conv1_1"
    assert (maps[0].height, maps[0].width) == tuple(
        map_regions(size, fd.Geometry.FLOOR, padding=30)["conv1_1"] for size in (60, 50)
    )


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_command_draws(call_cli: Call, shared_bundle: Path, tmp_path: Path, suffix: str) -> None:
    code, output, _ = call_cli("inspect", shared_bundle, "--picture", f"maps{suffix}")

    assert code == 0
    assert f"wrote maps{suffix}" in output
    if suffix == ".svg":
        text = (tmp_path / "maps.svg").read_text()
        assert "<svg" in text
        return
    with Image.open(tmp_path / "maps.png") as picture:
        colours = {tuple(c) for c in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert {LIVE, MOAT, RIM} <= colours


@pytest.mark.parametrize(("name", "message"), [
    ("maps.gif", "ends in neither .png nor .svg"), ("maps", "ends in neither .png nor .svg"),
])  # fmt: skip
def test_other_names_are_refused(call_cli: Call, shared_bundle: Path, name: str, message: str) -> None:
    code, _, errors = call_cli("inspect", shared_bundle, "--picture", name)

    assert (code, message in errors) == (2, True)


def test_a_missing_extra_is_named(call_cli: Call, shared_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    code, _, errors = call_cli("inspect", shared_bundle, "--picture", "maps.png")

    assert (code, "fcn-deploy[report]" in errors) == (2, True)


def test_a_graph_without_a_frame_has_nothing_to_draw(call_cli: Call, tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 18]> g (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "plain.onnx")

    code, _, errors = call_cli("inspect", "plain.onnx", "--picture", "maps.png")

    assert code == 3
    assert missing("Conv Pad", errors) == []
    assert not (tmp_path / "maps.png").exists()


def test_wide_images_keep_their_shape(tmp_path: Path) -> None:
    options = narrow_options(tmp_path / "wide", fd.Variant.FCN32S)
    bundle = fd.export(fd.ExportOptions(options.variant, options.output, channel_divisor=16, verify=False,
                                        onnx=fd.OnnxOptions(64, 160))).path  # fmt: skip

    assert {(one.height.size, one.width.size) for one in regions_of(open_bundle(bundle))} >= {(262, 358)}
