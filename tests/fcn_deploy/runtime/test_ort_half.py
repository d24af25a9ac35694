"""Half precision on a CPU: which results are rounded, and that what a file takes and gives stays as it is."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto

from fcn_deploy import BundleError
from fcn_deploy.runtime.ort import OrtRunner, computes_in_half, widened

DTYPES: dict[int, np.dtype] = {
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
NAMES: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
VALUES = st.floats(-(2.0**15), 2.0**15, width=32, allow_subnormal=False)
HALVES = pytest.mark.parametrize("dtype", list(DTYPES), ids=NAMES.get)


def file(body: str, ends: str, path: Path, *, typed: bool = True, **constants: np.ndarray) -> Path:
    text = f'<ir_version: 10, opset_import: ["": 22]> g {ends} {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    for node in proto.graph.node:
        node.name = node.output[0]
    onnx.save(onnx.shape_inference.infer_shapes(proto) if typed else proto, path)
    return path


def squared(dtype: int, path: Path) -> Path:
    """(x * k) * (x * k), each product rounded to `dtype`."""
    body = f"h = Cast<to={dtype}>(x) p = Mul(h, k) q = Mul(p, p) y = Cast<to=1>(q)"
    return file(body, "(float[4] x) => (float[4] y)", path, k=np.array(1 / 3).astype(DTYPES[dtype]))


def ran(path: Path, x: np.ndarray) -> np.ndarray:
    with OrtRunner(path) as runner:
        return np.asarray(runner.run({"x": x})["y"])


@HALVES
def test_every_result_is_rounded(dtype: int, tmp_path: Path) -> None:
    half, x = DTYPES[dtype], np.array([1, 3.14159, -77.77, 1e-3], np.float32)
    product = (x.astype(half).astype(np.float32) * np.float32(np.array(1 / 3).astype(half))).astype(half)
    expected = (product.astype(np.float32) ** 2).astype(half).astype(np.float32)

    found = ran(squared(dtype, tmp_path / "m.onnx"), x)

    np.testing.assert_array_equal(found, expected)
    assert (found != (x / 3) ** 2).any()


@HALVES
def test_what_is_beyond_float16_is_infinite(dtype: int, tmp_path: Path) -> None:
    found = ran(squared(dtype, tmp_path / "m.onnx"), np.array([3000, 300, 0, -3000], np.float32))

    finite = dtype == TensorProto.BFLOAT16
    assert np.isfinite(found).tolist() == [finite, True, True, finite]


@given(arrays(np.float32, 6, elements=VALUES))
def test_a_sum_is_numpy_s(tmp_path_factory: pytest.TempPathFactory, x: np.ndarray) -> None:
    path = tmp_path_factory.getbasetemp() / "sum.onnx"
    if not path.exists():
        body = "h = Cast<to=10>(x) s = Add(h, k) y = Cast<to=1>(s)"
        file(body, "(float[6] x) => (float[6] y)", path, k=np.array(0.3, np.float16))

    expected = (x.astype(np.float16) + np.float16(0.3)).astype(np.float32)

    np.testing.assert_array_equal(ran(path, x), expected)


@pytest.mark.parametrize("typed", [True, False], ids=["typed", "untyped"])
def test_ends_in_half_precision_stay_so(typed: bool, tmp_path: Path) -> None:
    """As in files of others, which need not state the types of what is between the ends either."""
    body = "p = Mul(x, k) y = Add(p, k)"
    k, x = np.array(1 / 3, np.float16), np.array([1, 2, 3, 4], np.float16)
    path = file(body, "(float16[4] x) => (float16[4] y)", tmp_path / "m.onnx", typed=typed, k=k)

    found = ran(path, x)

    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, x * k + k)


def test_an_output_that_others_read_is_the_rounded_one(tmp_path: Path) -> None:
    body = "h = Cast<to=10>(x) y = Mul(h, k) z = Add(y, y)"
    ends = "(float[2] x) => (float16[2] y, float16[2] z)"
    path = file(body, ends, tmp_path / "m.onnx", k=np.array(1 / 3, np.float16))

    with OrtRunner(path) as runner:
        found = runner.run({"x": np.array([1, 7], np.float32)})

    np.testing.assert_array_equal(found["y"], np.array([1, 7], np.float16) * np.float16(1 / 3))
    np.testing.assert_array_equal(found["z"], 2 * found["y"])


def test_a_widened_graph_is_valid_and_computes_in_float32(tmp_path: Path) -> None:
    skeleton = squared(TensorProto.BFLOAT16, tmp_path / "m.onnx").read_bytes()

    model = onnx.ModelProto.FromString(widened(skeleton))

    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    products = [name for node in model.graph.node if node.op_type == "Mul" for name in (*node.input, *node.output)]
    assert {types[name] for name in products} == {TensorProto.FLOAT}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


@HALVES
def test_weights_tell_what_a_file_computes_in(dtype: int, tmp_path: Path) -> None:
    assert computes_in_half(squared(dtype, tmp_path / "m.onnx").read_bytes())
    plain = file("y = Mul(x, k)", "(float[4] x) => (float[4] y)", tmp_path / "p.onnx", k=np.array(2, np.float32))
    assert not computes_in_half(plain.read_bytes())


def test_a_runner_says_so_once(tmp_path: Path) -> None:
    runner = OrtRunner(squared(TensorProto.FLOAT16, tmp_path / "m.onnx"))
    for _ in range(2):
        with runner:
            pass

    assert runner.name.count("half precision by rounding") == 1


def test_large_weights_stay_in_the_file(tmp_path: Path) -> None:
    """They are mapped from it, so the widened graph refers to them as the file's skeleton does."""
    k = np.random.default_rng(0).normal(size=(128, 128)).astype(np.float16)
    body = "h = Cast<to=10>(x) p = MatMul(h, k) y = Cast<to=1>(p)"
    path = file(body, "(float[2,128] x) => (float[2,128] y)", tmp_path / "m.onnx", k=k)
    x = np.random.default_rng(1).normal(size=(2, 128)).astype(np.float32)

    expected = x.astype(np.float16).astype(np.float64) @ k.astype(np.float64)

    np.testing.assert_allclose(ran(path, x), expected, rtol=2**-10, atol=1e-4)


def test_a_half_graph_that_contradicts_itself_is_a_damage(tmp_path: Path) -> None:
    path = squared(TensorProto.FLOAT16, tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[1].op_type = "Relu"
    del model.graph.node[1].input[:]
    onnx.save(model, path)

    with pytest.raises(BundleError, match=r"m\.onnx"), OrtRunner(path):
        pass
