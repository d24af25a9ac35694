from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_deploy import BundleError, OutputError, inspect, onnx_file
from fcn_deploy.onnx_check import tensors
from fcn_deploy.onnx_file import LARGE_TENSOR_BYTES, read_model, read_skeleton, write_model
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

    skeleton = onnx.ModelProto.FromString(read_skeleton(path).data)

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


def test_a_file_that_parses_and_means_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, check=states("odd.onnx graph cannot be read 'y0' add0")):
        inspect(with_proto(tmp_path, rename_all))


def test_an_attribute_without_a_type_is_refused(tmp_path: Path) -> None:
    def add(proto: onnx.ModelProto) -> None:
        proto.graph.node[0].attribute.add(name="axis", i=1)

    with pytest.raises(BundleError, check=states("odd.onnx 'axis' add0 type")):
        read_model(with_proto(tmp_path, add))


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


def with_data_beside(folder: Path, size: int = 4) -> Path:
    """A model whose only initializer lies in a file of its own."""
    folder.mkdir(exist_ok=True)
    proto = ir.to_proto(model_with({"w": np.arange(size, dtype=np.float32)}))
    onnx.save(
        proto, folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    return folder / "model.onnx"


@pytest.mark.parametrize("size", [4, LARGE])
def test_data_files_are_read_and_written_into_the_model(tmp_path: Path, size: int) -> None:
    write_model(read_model(with_data_beside(tmp_path / "source", size)), tmp_path / "whole.onnx")

    (tensor,) = onnx.load(tmp_path / "whole.onnx").graph.initializer
    assert tensor.data_location == onnx.TensorProto.DEFAULT
    assert np.array_equal(onnx.numpy_helper.to_array(tensor), np.arange(size))


def test_data_files_of_constants_and_subgraphs_are_read(tmp_path: Path) -> None:
    values = {name: np.full(LARGE, i, np.float32) for i, name in enumerate(("a", "b"))}
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["b"], ["i"])], "then", [],
        [onnx.helper.make_tensor_value_info("i", onnx.TensorProto.FLOAT, [LARGE])],
        [onnx.numpy_helper.from_array(values["b"], "b")],
    )  # fmt: skip
    nodes = [
        onnx.helper.make_node("Constant", [], ["a"], value=onnx.numpy_helper.from_array(values["a"], "a")),
        onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner),
        onnx.helper.make_node("Add", ["a", "y"], ["z"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info("x", onnx.TensorProto.BOOL, []),
        onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [LARGE]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    for index, tensor in enumerate(tensors(model)):
        (tmp_path / f"{index}.bin").write_bytes(tensor.raw_data)
        onnx.external_data_helper.set_external_data(tensor, f"{index}.bin")
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    write_model(read_model(tmp_path / "model.onnx"), tmp_path / "whole.onnx")
    for file in tmp_path.glob("*.bin"):
        file.unlink()

    found = onnx.load(tmp_path / "whole.onnx")
    assert sorted(float(onnx.numpy_helper.to_array(tensor)[-1]) for tensor in tensors(found)) == [0, 1, 1]


@pytest.mark.parametrize("location", [
    "/etc/passwd", "../secret", "sub/../../secret", "C:\\secret", "..\\secret", "\\\\host\\secret", "", "a\0b",
    "none.bin", ".", "loop", "out",
])  # fmt: skip
def test_data_files_lie_in_the_model_s_folder(tmp_path: Path, location: str) -> None:
    path = with_data_beside(tmp_path / "m")
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "m" / "loop").symlink_to("loop")
    (tmp_path / "m" / "out").symlink_to(tmp_path / "secret")
    model = onnx.load(path, load_external_data=False)
    next(e for e in model.graph.initializer[0].external_data if e.key == "location").value = location
    path.write_bytes(model.SerializeToString())

    for read in (read_model, read_skeleton):
        with pytest.raises(BundleError, check=states("model.onnx 'w' refers m")) as caught:
            read(path)
        assert repr(location) in caught.value.problem


def external(key: str, value: str) -> Callable[[onnx.TensorProto], object]:
    def change(tensor: onnx.TensorProto) -> None:
        entries = [entry for entry in tensor.external_data if entry.key == key]
        (entries[0] if entries else tensor.external_data.add(key=key)).value = value

    return change


@pytest.mark.parametrize(("change", "facts"), [
    (external("offset", "1"), "bytes 1 17 w.bin 16"),
    (external("offset", "-1"), "bytes -1 15"),
    (external("offset", str(2**70)), f"{2**70} w.bin 16"),
    (external("length", "many"), "'many' integers"),
    (external("length", "15"), "15 bytes 4 16"),
    (lambda t: t.dims.__setitem__(0, 2**40), f"16 bytes {2**40} {2**42}"),
])  # fmt: skip
def test_a_data_file_has_what_a_tensor_refers_to(
    tmp_path: Path, change: Callable[[onnx.TensorProto], object], facts: str
) -> None:
    path = with_data_beside(tmp_path / "m")
    model = onnx.load(path, load_external_data=False)
    change(model.graph.initializer[0])
    path.write_bytes(model.SerializeToString())

    with pytest.raises(BundleError, check=states(f"model.onnx 'w' {facts}")):
        read_model(path)


@pytest.mark.parametrize("size", [4, LARGE])
@pytest.mark.parametrize(("change", "facts"), [
    (lambda t: t.dims.__setitem__(0, 2**40), f"{2**40} {2**42}"),
    (lambda t: t.dims.__setitem__(0, 3), "3 12"),
    (lambda t: t.dims.__setitem__(0, -4), "-4 0"),
    (lambda t: setattr(t, "data_type", 999), "type 999"),
    (lambda t: setattr(t, "data_type", 0), "type 0"),
    (lambda t: setattr(t, "data_type", onnx.TensorProto.STRING), "0 strings"),
    (lambda t: (t.dims.__setitem__(0, 2**40), t.ClearField("raw_data")), f"0 numbers {2**40}"),
])  # fmt: skip
def test_a_tensor_has_the_bytes_that_its_shape_needs(
    tmp_path: Path, change: Callable[[onnx.TensorProto], object], facts: str, size: int
) -> None:
    proto = ir.to_proto(model_with({"w": np.ones(size, np.float32)}))
    change(proto.graph.initializer[0])
    (tmp_path / "odd.onnx").write_bytes(proto.SerializeToString())

    with pytest.raises(BundleError, check=states(f"odd.onnx 'w' {facts}")):
        read_model(tmp_path / "odd.onnx")


TYPES = [t for t in onnx.TensorProto.DataType.values() if t not in (onnx.TensorProto.UNDEFINED,)]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("size", [0, 1, 3, 8])
@pytest.mark.parametrize("dtype", TYPES)
def test_tensors_of_every_type_are_as_long_as_onnx_writes_them(
    tmp_path: Path, dtype: int, size: int, raw: bool
) -> None:
    if dtype == onnx.TensorProto.STRING:
        tensor = onnx.TensorProto(name="w", data_type=dtype, dims=[size], string_data=[b"\xff"] * size)
    else:
        array = np.ones(size, onnx.helper.tensor_dtype_to_np_dtype(dtype))
        tensor = onnx.numpy_helper.from_array(array, "w")
        if not raw:
            tensor = onnx.helper.make_tensor("w", dtype, [size], array)
    assert tensor.data_type == dtype

    def put(proto: onnx.ModelProto) -> None:
        proto.graph.initializer[0].CopyFrom(tensor)

    value = read_model(with_proto(tmp_path, put)).graph.initializers["w"].const_value
    assert value is not None
    assert value.shape == (size,)
