from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_deploy import BundleError, OutputError, inspect, onnx_file
from fcn_deploy.onnx_file import LARGE_TENSOR_BYTES, read_model, skeleton_bytes, write_model
from tests.messages import states

LARGE = LARGE_TENSOR_BYTES // 4


def model_with(tensors: dict[str, np.ndarray]) -> ir.Model:
    """A chain of Adds over one input, one initializer each."""
    longest = max(tensor.size for tensor in tensors.values())
    values = ["x", *(f"y{i}" for i in range(len(tensors)))]
    nodes = [
        onnx.helper.make_node("Add", [values[i], name], [values[i + 1]], name=f"add{i}")
        for i, name in enumerate(tensors)
    ]
    ends = [onnx.helper.make_tensor_value_info(v, onnx.TensorProto.FLOAT, [longest]) for v in (values[0], values[-1])]
    weights = [onnx.numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(model, {"greeting": "grüße"})
    return ir.serde.deserialize_model(model)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([1, 5, LARGE - 1, LARGE, LARGE + 3, 3 * LARGE]), min_size=1, max_size=5),
    st.integers(0, 99),
)
def test_a_written_file_parses_as_the_same_model(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    rng = np.random.default_rng(seed)
    tensors = {f"w{i}": rng.standard_normal(size, dtype=np.float32) for i, size in enumerate(sizes)}
    model = model_with(tensors)

    write_model(model, path)

    loaded = onnx.load(path)  # protobuf's own parser
    expected = ir.to_proto(model)
    assert {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in loaded.graph.initializer} == {
        name: tensor.tobytes() for name, tensor in tensors.items()
    }
    for proto in (loaded, expected):
        # The IR notes the types of initializers down a second time.
        del proto.graph.initializer[:], proto.graph.value_info[:]
    assert loaded == expected
    again = read_model(path)
    assert {n: v.const_value.numpy().tobytes() for n, v in again.graph.initializers.items() if v.const_value} == {
        name: tensor.tobytes() for name, tensor in tensors.items()
    }


def test_large_tensors_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_model(model_with({"small": np.ones(4, np.float32), "large": np.ones(LARGE, np.float32)}), path)

    skeleton = onnx.ModelProto.FromString(skeleton_bytes(path))

    small, large = skeleton.graph.initializer
    assert (small.name, small.data_location, len(small.raw_data)) == ("small", onnx.TensorProto.DEFAULT, 16)
    assert (large.name, large.data_location, len(large.raw_data)) == ("large", onnx.TensorProto.EXTERNAL, 0)
    entries = {entry.key: entry.value for entry in large.external_data}
    start = int(entries["offset"])
    assert path.read_bytes()[start : start + int(entries["length"])] == np.ones(LARGE, np.float32).tobytes()
    assert len(skeleton.SerializeToString()) < 1000


def test_reads_files_written_by_protobuf_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    tensor = np.arange(2 * LARGE, dtype=np.float32)
    path.write_bytes(ir.to_proto(model_with({"w": tensor})).SerializeToString())

    value = read_model(path).graph.initializers["w"].const_value

    assert isinstance(value, ir.ExternalTensor)
    assert np.array_equal(value.numpy(), tensor)


def test_tensors_stored_as_floats_rather_than_bytes_are_read_as_they_are(tmp_path: Path) -> None:
    proto = ir.to_proto(model_with({"w": np.zeros(LARGE, np.float32)}))
    values = np.arange(LARGE, dtype=np.float32)
    proto.graph.initializer[0].CopyFrom(onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [LARGE], values))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())

    value = read_model(tmp_path / "model.onnx").graph.initializers["w"].const_value

    assert value is not None
    assert np.array_equal(value.numpy(), values)


def test_writing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = model_with({"a": np.ones(LARGE, np.float32), "b": np.ones(3, np.float32)})
    before = ir.to_proto(model).SerializeToString(deterministic=True)

    write_model(model, tmp_path / "model.onnx")

    assert sorted(model.graph.initializers) == ["a", "b"]
    assert ir.to_proto(model).ByteSize() == len(before)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path, cut = tmp_path / "model.onnx", tmp_path / "cut.onnx"
    write_model(model_with({"w": np.ones(LARGE, np.float32), "v": np.ones(5, np.float32)}), path)
    whole = path.read_bytes()

    # Byte 0 alone, every byte of the skeleton, and a sample of the weights.
    for length in [*range(400), *range(400, len(whole), 997), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(BundleError, check=states(f"cut.onnx {length} bytes truncated")):
            read_model(cut)


@pytest.mark.parametrize("content", [b"not an onnx file at all", b"\x08\x0a", bytes(100), b"\xff" * 50])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)

    with pytest.raises(BundleError, check=states(f"x.onnx {len(content)} bytes truncated ONNX")):
        read_model(tmp_path / "x.onnx")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, check=states("none.onnx file")):
        read_model(tmp_path / "none.onnx")


def test_protobufs_limit_is_checked_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "PROTOBUF_LIMIT_BYTES", LARGE)

    with pytest.raises(OutputError, match=rf"model\.onnx .*\d+ .*{LARGE}"):
        write_model(model_with({"w": np.ones(LARGE, np.float32)}), tmp_path / "model.onnx")

    assert not (tmp_path / "model.onnx").exists()


def with_proto(folder: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    proto = ir.to_proto(model_with({"w": np.ones(4, np.float32)}))
    change(proto)
    (folder / "odd.onnx").write_bytes(proto.SerializeToString())
    return folder / "odd.onnx"


def rename_all(proto: onnx.ModelProto) -> None:
    proto.graph.node.add().CopyFrom(proto.graph.node[0])


@pytest.mark.parametrize("change", [lambda p: setattr(p.graph.initializer[0], "data_type", 999), rename_all])
def test_files_that_parse_and_mean_nothing(tmp_path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    with pytest.raises(BundleError, check=states("odd.onnx bytes truncated ONNX")):
        inspect(with_proto(tmp_path, change))


def test_a_convolution_without_a_weight_is_no_crash(tmp_path: Path) -> None:
    def strip(proto: onnx.ModelProto) -> None:
        proto.graph.node[0].op_type = "Conv"
        proto.graph.node[0].input.pop()

    (layer,) = inspect(with_proto(tmp_path, strip)).layers

    assert (layer.operator, layer.multiply_adds) == ("Conv", 0)


def test_a_number_without_an_end_is_given_up_at_once(tmp_path: Path) -> None:
    (tmp_path / "ff.onnx").write_bytes(b"\xff" * 3_000_000)

    with pytest.raises(BundleError, match=r"ff\.onnx .*3000000"):
        read_model(tmp_path / "ff.onnx")
