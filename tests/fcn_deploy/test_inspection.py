from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import fcn_deploy as fd
from fcn_deploy.model_info import DIRECT_KEY
from tests.conftest import narrow_options


def test_layers_sizes_and_totals(tmp_path: Path) -> None:
    plain = fd.export(replace(narrow_options(tmp_path / "plain"), optimize=fd.Optimize.SIMPLIFY, verify=False)).path
    found = fd.inspect(plain)

    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["conv1_1"].shape == (1, 4, 294, 294)
    assert by_name["conv1_1"].parameters == 4 * 3 * 9 + 4
    assert by_name["conv1_1"].multiply_adds == 4 * 3 * 9 * 294 * 294
    # 3 x 96 x 96 in, 4 x 294 x 294 out, and the weights, 4 bytes each.
    assert by_name["conv1_1"].moved_bytes == 4 * (3 * 96 * 96 + 4 * 294 * 294 + 4 * 3 * 9 + 4)
    assert by_name["upscore8"].multiply_adds == 21 * 21 * 16 * 16 * by_name["fuse_pool3"].shape[2] ** 2
    assert found.multiply_adds == sum(layer.multiply_adds for layer in found.layers)
    assert found.operators == {"Conv": 18, "Relu": 15, "MaxPool": 5, "ConvTranspose": 3, "Slice": 3, "Add": 2}
    assert (found.inputs, found.outputs) == (("image FLOAT 1x3x96x96",), ("logits FLOAT 1x21x96x96",))
    assert found.opset == 18
    assert found.file_bytes == (plain / "model.onnx").stat().st_size


@pytest.mark.parametrize("recorded", ["9" * 5000, "-1", "1.5", "many", ""])
def test_a_record_of_direct_multiply_adds_that_is_none_is_passed_over(bundle: Path, recorded: str) -> None:
    path = bundle / "model.onnx"
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.metadata_props.add(key=DIRECT_KEY, value=recorded)
    onnx.save(model, path)

    found = next(layer for layer in fd.inspect(path).layers if layer.name == node.name)

    assert found.direct_multiply_adds == found.multiply_adds > 0


def test_untrained_weights_are_noted(shared_bundle: Path) -> None:
    assert fd.inspect(shared_bundle).notes == ("The weights are untrained: labels mean nothing.",)


def test_the_shift_of_floor_32s_is_noted(tmp_path: Path) -> None:
    options = replace(narrow_options(tmp_path / "floor", fd.Variant.FCN32S), verify=False)
    fd.export(options)
    fd.export(replace(options, output=tmp_path / "caffe", geometry=fd.Geometry.CAFFE))

    assert any("13 px to the right of and below" in note for note in fd.inspect(tmp_path / "floor").notes)
    assert not any("px" in note for note in fd.inspect(tmp_path / "caffe").notes)
    assert any("--no-verify" in note for note in fd.inspect(tmp_path / "floor").notes)


def test_a_bare_file_and_a_foreign_one(shared_bundle: Path, tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) { y = Relu (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "foreign.onnx")

    assert any("bare ONNX file" in note for note in fd.inspect(shared_bundle / "model.onnx").notes)
    foreign = fd.inspect(tmp_path / "foreign.onnx")
    assert foreign.operators == {"Relu": 1}
    assert foreign.layers[0].shape == (1, 2)
    assert "no fcn_deploy metadata" in foreign.notes[0]


def test_damage_is_an_error(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"")

    with pytest.raises(fd.BundleError):
        fd.inspect(bundle)


def test_what_maps_depend_on_is_that_of_the_plain_graph(shared_bundle: Path, tmp_path: Path) -> None:
    """Rewritten graphs compute windows, in tiles: what an export recorded is that of the network itself."""
    plain = replace(narrow_options(tmp_path / "plain"), optimize=fd.Optimize.SIMPLIFY, verify=False)
    computed = {layer.name: layer for layer in fd.inspect(fd.export(plain).path).layers}

    found = fd.inspect(shared_bundle)

    recorded = {layer.name: layer for layer in found.reach}
    assert len(recorded) >= 20
    for name, layer in recorded.items():
        assert layer.receptive_field == computed[name].receptive_field
        assert layer.live == pytest.approx(computed[name].live, abs=1e-6)
    assert {layer.name: layer.receptive_field for layer in found.layers}["relu6"] == (96, 96)


@pytest.mark.full
def test_the_published_receptive_field_of_fc7(tmp_path: Path) -> None:
    """404 pixels: Long et al., CVPR 2015, section 4.1."""
    options = fd.ExportOptions(
        fd.Variant.FCN32S, tmp_path / "wide", channel_divisor=16, optimize=fd.Optimize.SIMPLIFY, verify=False
    )

    layers = {layer.name: layer for layer in fd.inspect(fd.export(options).path).layers}

    assert layers["fc7"].receptive_field == (404, 404)
    assert layers["conv1_1"].live == pytest.approx((502 / 698) ** 2)
