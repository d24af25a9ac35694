"""Files of other tools, and damaged ones: they are optimised, passed through with a reason, or refused by name."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import fcn_deploy as fd
from exporters import simplifier
from exporters.optimize_file import MAX_ELEMENTS
from exporters.simplify import simplify
from fcn_deploy.onnx_check import MAX_CALLED_NODES
from fcn_deploy.onnx_file import LARGE_TENSOR_BYTES
from tests.conftest import Call
from tests.messages import missing, states

IMAGE = "float[1,3,8,8]"
BRANCHES = f"""
    y = If (c) <
        then_branch = t () => ({IMAGE} p) {{ p = Neg(a) }},
        else_branch = e () => ({IMAGE} q) {{ q = Add(a, x) }}
    >"""
BODY = f"""
    y = Loop (n, c, x) <body = b (int64 i, bool ci, {IMAGE} s) => (bool co, {IMAGE} so) {{
        co = Identity(ci) so = Add(s, a)
    }}>"""


def saved(
    folder: Path, body: str, inputs: str = f"{IMAGE} x", outputs: str = f"{IMAGE} y", functions: str = ""
) -> Path:
    header = '<ir_version: 10, opset_import: ["": 18, "my": 1]>'
    onnx.save(onnx.parser.parse_model(f"{header} g ({inputs}) => ({outputs}) {{ {body} }} {functions}"),
              folder / "m.onnx")  # fmt: skip
    return folder / "m.onnx"


def function(name: str, calls: str) -> str:
    return f'<domain: "my", opset_import: ["": 18, "my": 1]> {name} (a) => (b) {{ b = {calls}(a) }}'


def results(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    made = {"tensor(bool)": np.True_, "tensor(int64)": np.int64(3)}
    feeds = {
        value.name: np.asarray(made[value.type]) if value.type in made
        else rng.standard_normal(value.shape, dtype=np.float32)
        for value in session.get_inputs()
    }  # fmt: skip
    return [np.asarray(one) for one in session.run(None, feeds)]


def optimized(path: Path) -> fd.Optimized:
    return fd.optimize(path, path.with_name("out.onnx"), fd.Target.CPU)


def assert_same(source: Path, found: fd.Optimized) -> None:
    onnx.checker.check_model(found.path, full_check=True)
    for expected, actual in zip(results(source), results(found.path), strict=True):
        assert np.array_equal(expected, actual)


@pytest.mark.parametrize(("body", "inputs"), [
    (f"a = Relu(x) {BRANCHES}", f"bool c, {IMAGE} x"),
    (f"c = Constant<value = bool[1] {{1}}>() a = Relu(x) {BRANCHES}", f"{IMAGE} x"),
    (f"a = Relu(x) {BODY}", f"int64 n, bool c, {IMAGE} x"),
    (f"d = Relu(x) a = Relu(d) {BODY}", f"int64 n, bool c, {IMAGE} x"),
    ("m = Constant<value = float {1.0}>() y = Clip(x, , m)", f"{IMAGE} x"),
    ("y = Relu(b) b = Neg(a) a = Abs(x)", f"{IMAGE} x"),
    ("[y] a = Relu(x) [x] b = Neg(a) [a] y = Abs(b)", f"{IMAGE} x"),
])  # fmt: skip
def test_legitimate_graphs_compute_the_same(tmp_path: Path, body: str, inputs: str) -> None:
    source = saved(tmp_path, body, inputs)

    found = optimized(source)

    assert found.simplification.refused is None
    assert_same(source, found)


def test_equal_names_of_nodes_are_told_apart(tmp_path: Path) -> None:
    """ONNX's checker accepts them; ONNX Runtime does not."""
    found = optimized(saved(tmp_path, "[n] a = Relu(x) [n] b = Neg(a) [n] y = Abs(b)"))

    assert [node.name for node in onnx.load(found.path).graph.node] == ["n", "n_2", "n_3"]
    assert (results(found.path)[0] >= 0).all()


def test_several_outputs_of_a_node_keep_their_own_names(tmp_path: Path) -> None:
    body = "a, b = Split<axis = 1, num_outputs = 2>(x) c = Relu(a) d = Neg(b) y = Concat<axis = 1>(d, c)"
    source = saved(tmp_path, body, "float[1,4,8,8] x", "float[1,4,8,8] y")

    assert_same(source, optimized(source))


def test_a_local_function_is_kept(tmp_path: Path) -> None:
    source = saved(tmp_path, "z = my.f(x) y = Relu(z)", functions=function("f", "Neg"))

    assert_same(source, optimized(source))


def test_a_zero_size_is_no_photo(tmp_path: Path) -> None:
    source = saved(tmp_path, "a = Relu(x) y = Relu(a)", "float[1,3,0,8] x", "float[1,3,0,8] y")

    assert_same(source, optimized(source))


def test_a_node_without_outputs(tmp_path: Path) -> None:
    source = saved(tmp_path, "y = Relu(x)")
    model = onnx.load(source)
    model.graph.node.insert(0, onnx.helper.make_node("Print", ["x"], [], domain="my"))
    onnx.save(model, source)

    found = optimized(source)

    assert "Relu" in {node.op_type for node in onnx.load(found.path).graph.node}
    assert fd.inspect(source).operators == {"Print": 1, "Relu": 1}


@pytest.mark.parametrize("size", [2, LARGE_TENSOR_BYTES])
def test_strings(tmp_path: Path, size: int) -> None:
    source = saved(tmp_path, "y = Relu(x) s = Identity(t) u = Identity(s)", outputs=f"{IMAGE} y, string[{size}] u")
    model = onnx.load(source)
    model.graph.initializer.add(name="t", data_type=onnx.TensorProto.STRING, dims=[size], string_data=[b"a"] * size)
    onnx.save(model, source)

    assert_same(source, optimized(source))


def test_weights_that_are_inputs_too_stay_so(tmp_path: Path) -> None:
    """Before IR version 4 every initializer was an input as well."""
    source = saved(tmp_path, "a = Conv(x, w) y = Relu(a)", "float[1,64,8,8] x, float[64,64,3,3] w", "float[1,64,6,6] y")
    model = onnx.load(source)
    model.ir_version = 3
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 64, 3, 3), np.float32), "w"))
    onnx.save(model, source)

    found = optimized(source)

    assert found.simplification.refused is None
    assert [value.name for value in onnx.load(found.path).graph.input] == ["x", "w"]
    assert_same(source, found)


def test_data_files_end_up_in_the_file(tmp_path: Path, shared_bundle: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "elsewhere").mkdir()
    model = onnx.load(shared_bundle / "model.onnx")
    source = tmp_path / "source" / "m.onnx"
    onnx.save(model, source, save_as_external_data=True, location="weights.bin", size_threshold=0)

    found = fd.optimize(source, tmp_path / "elsewhere" / "out.onnx")
    (tmp_path / "source" / "weights.bin").unlink()

    assert not any(t.external_data for t in onnx.load(found.path, load_external_data=False).graph.initializer)
    assert np.array_equal(results(found.path)[0], results(shared_bundle / "model.onnx")[0])


HUGE = 2**40
# Each of 30 functions calls the next one twice; the last one has a node.
DOUBLING = " ".join(
    f'<domain: "my", opset_import: ["": 18, "my": 1]> f{i} (a) => (b) {{ c = my.f{i + 1}(a) b = my.f{i + 1}(c) }}'
    for i in range(30)
) + function("f30", "Neg")


@pytest.mark.parametrize(("graph", "facts"), [
    (("[add] y = Add(x, nowhere)",), "add 'nowhere'"),
    (("y = Add(x, nowhere)",), "Add 'y' 'nowhere'"),
    (("[n] a = Add(x, b) [m] b = Neg(a) y = Relu(b)",), "cycle n m"),
    (("[n] y = Add(x, y)",), "cycle n"),
    ((f"c = Cast<to = 9>(a) {BRANCHES} a = Relu(y)",), "cycle If Relu"),
    ((BRANCHES, f"bool c, {IMAGE} x"), "'a'"),
    (("y = Relu(x)", f"{IMAGE} x", ""), "no outputs"),
    (("y = Relu(x)", f"{IMAGE} x", f"{IMAGE} z"), "output 'z'"),
    (("y = Constant<value = float[1] {1.0}>()", "", "float[1] y"), "no inputs"),
    (("y = my.f(x)", f"{IMAGE} x", f"{IMAGE} y", function("f", "my.f")), "function f"),
    (("y = my.f(x)", f"{IMAGE} x", f"{IMAGE} y", function("f", "my.h") + function("h", "my.f")), "function f h"),
    (("y = my.f0(x)", f"{IMAGE} x", f"{IMAGE} y", DOUBLING), f"{3 * 2**30 - 2} {MAX_CALLED_NODES}"),
    (("[n] y = Unheard(x)",), "Unheard n"),
    (("[n] y = Slice(x, x, x)",), "Slice"),
    (("y = Relu(x)", f"float[1,3,8,{HUGE}] x", f"float[1,3,8,{HUGE}] y"), f"x {24 * HUGE} {MAX_ELEMENTS}"),
    ((f"s = Constant<value = int64[1] {{{HUGE}}}>() [big] z = ConstantOfShape(s) y = Add(x, z)", "float[1] x",
      "float[N] y"), f"big {HUGE} {MAX_ELEMENTS}"),
])  # fmt: skip
def test_what_means_nothing_is_refused_by_name(
    tmp_path: Path, call_cli: Call, graph: tuple[str, ...], facts: str
) -> None:
    saved(tmp_path, *graph)

    code, _, errors = call_cli("optimize", "m.onnx", "out.onnx")

    assert code == 3
    assert missing(f"m.onnx {facts}", errors) == []
    assert not (tmp_path / "out.onnx").exists()


def test_names_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, "abc = Neg(x) y = Relu(abc)")
    source.write_bytes(source.read_bytes().replace(b"abc", b"a\xff\xfe"))

    for command in (optimized, fd.inspect):
        with pytest.raises(fd.BundleError, check=states("m.onnx UTF-8")) as caught:
            command(source)
        assert r"b'a\xff\xfe'" in caught.value.problem


def test_sparse_initializers_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, "y = Add(x, s)", "float[4] x, float[4] s", "float[4] y")
    model = onnx.load(source)
    del model.graph.input[1]
    values = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [2], [1, 2])
    indices = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [2], [0, 3])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [4]))
    onnx.save(model, source)

    with pytest.raises(fd.BundleError, check=states("m.onnx 's' sparse", remedy="dense")):
        fd.inspect(source)


# A product of two constants hides the size from shape inference; onnxsim computes it.
HIDDEN = "s = Constant<value = int64[1] {{{0}}}>() t = Mul(s, s) z = ConstantOfShape(t) y = Add(x, z)"


def test_a_simplifier_out_of_memory_leaves_the_graph_as_it_is(tmp_path: Path) -> None:
    source = saved(tmp_path, HIDDEN.format(2**20), "float[1] x", "float[N] y")

    found = optimized(source)

    assert str(found.simplification.refused).startswith("onnxsim: ")
    assert found.simplification.before == found.simplification.after
    assert [node.op_type for node in onnx.load(found.path).graph.node] == ["Constant", "Mul", "ConstantOfShape", "Add"]


def ir_graph(folder: Path, body: str = "a = Relu(x) y = Relu(a)") -> ir.Model:
    return ir.serde.deserialize_model(onnx.load(saved(folder, body)))


def test_the_memory_bound_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplifier, "BASE_BYTES", 60_000_000)
    monkeypatch.setattr(simplifier, "BYTES_PER_BYTE", 0)
    model = ir_graph(tmp_path)

    kept, report = simplify(model)

    assert kept is model
    assert missing("onnxsim 0.1 GB memory", str(report.refused)) == []


def test_the_time_limit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplifier, "LIMIT_S", 0.01)

    assert simplify(ir_graph(tmp_path))[1].refused == "onnxsim: it took more than 0.01 s"


@pytest.mark.parametrize(("script", "facts"), [
    ("kill -SEGV $$", "onnxsim signal 11 2.1 GB memory"),
    ("echo out of luck >&2; exit 127", "onnxsim code 127 out luck"),
    ("echo first >&2; echo second >&2; exit 3", "onnxsim second"),
    ("echo no model", "onnxsim read"),
])  # fmt: skip
def test_however_its_process_ends_there_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, facts: str
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\n{script}\n")
    stand_in.chmod(0o755)
    model = ir_graph(tmp_path)
    monkeypatch.setattr(sys, "executable", str(stand_in))

    kept, report = simplify(model)

    assert kept is model
    assert missing(facts, str(report.refused)) == []


def test_its_process_loads_neither_pytorch_nor_sympy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "packages" / "onnxsim"
    packages.mkdir(parents=True)
    (packages / "__init__.py").write_text(
        "import sys\n"
        "def simplify(model):\n"
        "    raise ValueError(sorted(m for m in ('torch', 'sympy', 'exporters.onnx') if sys.modules.get(m)))\n"
    )
    monkeypatch.syspath_prepend(packages.parent)

    assert simplify(ir_graph(tmp_path))[1].refused == "onnxsim: []"


def test_the_bound_grows_with_the_graph() -> None:
    assert simplifier.memory_bound(bytes(1000)) - simplifier.memory_bound(b"") == 256_000
