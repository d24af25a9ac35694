"""Models of this toolkit whose metadata and graph contradict each other, or whose graph means nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import fcn_deploy as fd
from exporters.onnx import MAX_PIXELS
from fcn_deploy import model_info
from fcn_deploy.artifact import bundle as bundles
from fcn_deploy.models.vgg import INPUT_CHANNELS
from fcn_deploy.models.weights import SEEDS
from fcn_deploy.runtime.ort import OrtRunner
from tests.conftest import Call
from tests.messages import missing

Change = Callable[[onnx.ModelProto], object]


def says(key: str, value: str) -> Change:
    """Change one fact in the metadata."""

    def change(model: onnx.ModelProto) -> None:
        kept = [prop for prop in model.metadata_props if prop.key != f"fcn_deploy.{key}"]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        model.metadata_props.add(key=f"fcn_deploy.{key}", value=value)

    return change


def fewer(model: onnx.ModelProto) -> None:
    says("num_classes", "20")(model)
    says("palette", " ".join(["000000"] * 20))(model)


def sized(index: int, size: int | str) -> Change:
    """Change one size of the input."""

    def change(model: onnx.ModelProto) -> None:
        dimension = model.graph.input[0].type.tensor_type.shape.dim[index]
        if isinstance(size, int):
            dimension.dim_value = size
        else:
            dimension.dim_param = size

    return change


def renamed(old: str, new: str) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]

    return change


def cut(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def starved(model: onnx.ModelProto) -> None:
    model.graph.initializer.add(name="image", data_type=1, dims=[1], float_data=[0])
    del model.graph.input[:]


def not_utf_8(model: onnx.ModelProto) -> None:
    model.graph.node[3].name = "replaced"


def called_by_itself(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="my", version=1)
    function = model.functions.add(name="round", domain="my", input=["a"], output=["b"])
    function.opset_import.add(domain="my", version=1)
    function.node.add(op_type="round", domain="my", input=["a"], output=["b"])


def typed(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64


def a_sequence(model: onnx.ModelProto) -> None:
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, (1, 3, 96, 96))
    model.graph.input[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(kind))


def second_output(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(model.graph.output[0])
    model.graph.output[1].name = model.graph.node[3].output[0]


CONTRADICTIONS: tuple[tuple[Change, str], ...] = (
    (says("num_classes", "20"), "palette 21 20"),
    (fewer, "20 logits 1 96 21"),
    (says("image_input", "uint8"), "uint8 pixels image FLOAT 1 3 96"),
    (says("head", "labels"), "labels logits 21"),
    (says("num_classes", "1e999"), "`$.network.num_classes`"),
    (says("rng_seed", "-1"), "rng_seed -1"),
    (says("min_agreement", "nan"), "min_agreement nan"),
    (says("class_names", "cat dog"), "class_names 2 21"),
    (says("variant", "\0"), "`$.network.variant`"),
    (renamed("image", "data"), "image data"),
    (renamed("logits", "scores"), "logits scores"),
    (typed, "image INT64 FLOAT"),
    (a_sequence, "image (sequence)"),
    (second_output, "output logits"),
    (cut, "no outputs"),
    (starved, "no inputs"),
    (called_by_itself, "function round"),
    (not_utf_8, "UTF-8"),
    (sized(1, 4), "image 4 3"),
)


@pytest.fixture
def changed(shared_bundle: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Change the narrow model, as a bare file."""

    def made(change: Change) -> Path:
        model = onnx.load(shared_bundle / "model.onnx")
        change(model)
        data = model.SerializeToString()
        (tmp_path / "odd.onnx").write_bytes(data.replace(b"replaced", b"repl\xff\xfeed"))
        return tmp_path / "odd.onnx"

    return made


@pytest.mark.parametrize(("change", "facts"), CONTRADICTIONS)
def test_every_command_refuses_contradictions(
    changed: Callable[[Change], Path], call_cli: Call, photo: Path, change: Change, facts: str
) -> None:
    path = changed(change)

    for arguments in (
        ("inspect", path), ("predict", path, photo), ("verify", path), ("package", path, "--output", "p"),
        ("package", path, "--output", "p", "--backend", "python"),
    ):  # fmt: skip
        code, output, errors = call_cli(*arguments)
        assert (code, missing(f"odd.onnx {facts}", errors)) == (3, []), (arguments, output, errors)


@pytest.mark.parametrize(("change", "facts"), [
    (sized(2, 0), "image 0 1"),
    (sized(2, -1), "image"),
    (sized(0, 0), "image 0 1"),
    (sized(3, "W"), "image W N"),
    (sized(0, "N"), "image N"),
    (sized(2, 1), "height 1 fc6 7 6"),
    (sized(2, 2**40), f"image {2**40} {MAX_PIXELS}"),
])  # fmt: skip
def test_sizes_that_no_photo_has(
    changed: Callable[[Change], Path], call_cli: Call, photo: Path, change: Change, facts: str
) -> None:
    def unknown_output(model: onnx.ModelProto) -> None:
        change(model)
        for dimension in model.graph.output[0].type.tensor_type.shape.dim[::2]:
            dimension.dim_param = "any"
        model.graph.output[0].type.tensor_type.shape.dim[3].dim_param = "any"

    path = changed(unknown_output)

    for arguments in (("predict", path, photo), ("verify", path), ("package", path, "--output", "p")):
        code, output, errors = call_cli(*arguments)
        assert (code, missing(f"odd.onnx {facts}", errors)) == (3, []), (arguments, output, errors)


@pytest.mark.parametrize(("change", "facts"), [(cut, "no outputs"), (called_by_itself, "function round")])
def test_optimize_refuses_them_too(
    changed: Callable[[Change], Path], call_cli: Call, change: Change, facts: str
) -> None:
    changed(change)

    code, _, errors = call_cli("optimize", "odd.onnx", "out.onnx")

    assert (code, missing(f"odd.onnx {facts}", errors)) == (3, [])


def test_what_onnx_runtime_raises_while_it_runs_is_a_damage(tmp_path: Path) -> None:
    text = (
        """<ir_version: 10, opset_import: ["": 18]> g (int64[1] i, float[2] x) => (float[1] y) { y = Gather(x, i) }"""
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    feeds = {"i": np.array([7]), "x": np.zeros(2, np.float32)}
    with OrtRunner(tmp_path / "m.onnx") as runner:
        with pytest.raises(fd.BundleError, match=r"ONNX Runtime refuses .*m\.onnx: .*idx=7"):
            runner.run(feeds)
        binding = runner.bind()
        binding.upload(feeds)
        with pytest.raises(fd.BundleError, match=r"ONNX Runtime refuses .*m\.onnx: .*idx=7"):
            binding.run()


def test_the_bounds_are_those_of_the_modules_that_need_pytorch() -> None:
    assert (bundles.MAX_PIXELS, bundles.INPUT_CHANNELS) == (MAX_PIXELS, INPUT_CHANNELS)
    assert model_info.SEEDS == SEEDS


def unreadable(model: onnx.ModelProto) -> None:
    """Give a value inside the graph a type that does not exist: the message is sound, the graph is not."""
    model.graph.value_info.add(name=model.graph.node[0].output[0]).type.tensor_type.elem_type = 99


def test_a_graph_that_cannot_be_read_is_refused_before_anything_is_done(
    changed: Callable[[Change], Path], shared_bundle: Path, call_cli: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.engine.run.Schedule.measure_ceilings", lambda *_: pytest.fail("measured"))
    path = changed(unreadable)

    for arguments in (
        ("inspect", path), ("verify", path), ("package", path, "--output", "p", "--backend", "python"),
        ("bench", shared_bundle, path, "--rows", "ort"),
    ):  # fmt: skip
        code, output, errors = call_cli(*arguments)
        assert (code, missing("odd.onnx graph cannot be read 99", errors)) == (3, []), (arguments, output, errors)
        assert "PyTorch" not in errors


def test_a_model_that_does_not_open_leaves_the_list_of_failures(
    changed: Callable[[Change], Path], call_cli: Call, photo: Path, tmp_path: Path
) -> None:
    path = changed(unreadable)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "failures.jsonl").write_text('{"image": "a.png", "problem": "p", "remedy": "r"}\n')
    code, _, errors = call_cli("predict", path, photo, "--output", "out")
    assert (code, missing("odd.onnx ONNX Runtime refuses 99", errors)) == (3, [])
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["failures.jsonl"]


def test_a_bench_needs_the_opset(changed: Callable[[Change], Path], call_cli: Call) -> None:
    path = changed(lambda model: model.ClearField("opset_import"))

    code, _, errors = call_cli("bench", path, "--rows", "ort")

    assert (code, missing("odd.onnx states no opset", errors)) == (3, [])


def test_bare_files_are_equal_by_their_paths(shared_bundle: Path) -> None:
    one, other = (fd.open_bundle(shared_bundle / "model.onnx") for _ in range(2))

    assert (one, hash(one)) == (other, hash(other))
    assert "proto" not in repr(one)
