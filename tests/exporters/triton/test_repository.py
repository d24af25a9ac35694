"""Packages as they lie on disk: what is in them, what they are refused for, and what --force may replace."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import triton_to_np_dtype

import fcn_deploy as fd
from exporters.triton.repository import validate_repository
from fcn_deploy.onnx_file import read_model, write_model
from fcn_deploy.storage import file_sha256
from tests.conftest import Once
from tests.expected import expected_labels
from tests.exporters.triton.conftest import SIZE, Bundles, pictures
from tests.exporters.triton.engines import engine_for_triton, restated
from tests.messages import states

FLOAT, UINT8 = fd.ImageInput.FLOAT, fd.ImageInput.UINT8
LOGITS, LABELS = fd.Head.LOGITS, fd.Head.LABELS
PYTHON, ONNXRUNTIME, TENSORRT = fd.TritonBackend.PYTHON, fd.TritonBackend.ONNXRUNTIME, fd.TritonBackend.TENSORRT


@pytest.fixture(scope="module")
def plan(once: Once, bundles: Bundles) -> Path:
    """An engine from float images to logits; not to be changed by a test."""
    source = bundles(FLOAT, LOGITS, 1)
    return once("triton-engine", lambda folder: engine_for_triton(source, folder / "fcn8s.plan")) / "fcn8s.plan"


@pytest.fixture
def own_plan(plan: Path, tmp_path: Path) -> Path:
    """A copy of it whose sidecar a test may change."""
    for file in plan.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / plan.name


def packaged(source: Path, output: Path, **options: Any) -> fd.Package:
    return fd.package(fd.PackageOptions(source, output, **options))


def config_of(folder: Path) -> ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


BESIDE = ["client.py", "inference-service.yaml", "triton-package.json"]


def test_what_a_package_holds(bundles: Bundles, tmp_path: Path, plan: Path) -> None:
    bundle = bundles(FLOAT, LOGITS, 1)
    packaged(bundle, tmp_path / "p", backend=PYTHON, name="fcn8s")
    packaged(bundle, tmp_path / "o", name="fcn8s")
    packaged(plan, tmp_path / "t", backend=TENSORRT)
    packaged(plan, tmp_path / "e", backend=PYTHON)

    root = "repository/fcn8s"
    assert files(tmp_path / "p") == sorted([
        *BESIDE, f"{root}/config.pbtxt",
        f"{root}/1/model.py", f"{root}/1/artifact/model.onnx", f"{root}/1/artifact/manifest.json",
    ])  # fmt: skip
    assert files(tmp_path / "o") == sorted([
        *BESIDE, f"{root}/config.pbtxt", f"{root}/1/model.onnx", f"{root}/1/manifest.json",
    ])  # fmt: skip
    assert files(tmp_path / "t") == sorted([
        *BESIDE, f"{root}/config.pbtxt", f"{root}/1/model.plan.json",
        f"{root}_pixels/config.pbtxt", f"{root}_pixels/1/model.onnx",
        f"{root}_engine/config.pbtxt", f"{root}_engine/1/model.plan", f"{root}_engine/1/model.plan.json",
        f"{root}_labels/config.pbtxt", f"{root}_labels/1/model.onnx",
    ])  # fmt: skip
    assert files(tmp_path / "e") == sorted([
        *BESIDE, f"{root}/config.pbtxt",
        f"{root}/1/model.py", f"{root}/1/artifact.plan", f"{root}/1/artifact.plan.json",
    ])  # fmt: skip
    assert fd.open_bundle(tmp_path / "p" / root / "1" / "artifact").manifest == fd.open_bundle(bundle).manifest
    assert fd.open_engine(tmp_path / "e" / root / "1" / "artifact.plan").info.provenance.untrained


def test_an_artifact_with_the_right_ends_is_copied_as_it_is(bundles: Bundles, tmp_path: Path) -> None:
    source = bundles(UINT8, LABELS, 1)

    packaged(source, tmp_path / "p")

    copy = tmp_path / "p" / "repository" / "fcn8s" / "1" / "model.onnx"
    assert copy.read_bytes() == source.read_bytes()
    facts = config_of(copy.parents[1]).parameters
    assert facts["fcn_deploy.model_sha256"].string_value == file_sha256(source)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("ends", [(FLOAT, LOGITS), (FLOAT, LABELS), (UINT8, LOGITS), (UINT8, LABELS)])
def test_a_packaged_graph_run_as_its_configuration_says(
    bundles: Bundles, tmp_path: Path, ends: tuple[fd.ImageInput, fd.Head], batch: int
) -> None:
    """Names, shapes and types are the configuration's alone; labels are PyTorch's."""
    packaged(bundles(*ends, batch), tmp_path / "p", name="fcn")
    folder = tmp_path / "p" / "repository" / "fcn"
    config = config_of(folder)
    (given,), (made,) = config.input, config.output
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for count in sorted({1, config.max_batch_size or 1}):
        photos = pictures(count).astype(triton_to_np_dtype(DataType.Name(given.data_type).removeprefix("TYPE_")))
        request = photos if config.max_batch_size else photos[0]
        assert request.shape[-3:] == tuple(given.dims)
        shape = (count, *given.dims) if config.max_batch_size else tuple(given.reshape.shape)

        (labels,) = session.run([made.name], {given.name: request.reshape(shape)})

        assert labels.shape == ((count, *made.dims) if config.max_batch_size else tuple(made.reshape.shape))
        assert labels.dtype == triton_to_np_dtype(DataType.Name(made.data_type).removeprefix("TYPE_"))
        assert np.array_equal(labels, [expected_labels(photo, SIZE) for photo in photos])


PIXELS = {"name": "pixels", "shape": [1, SIZE, SIZE, 3], "dtype": "uint8"}
LABEL_MAP = {"name": "labels", "shape": [1, SIZE, SIZE], "dtype": "uint8"}


@pytest.mark.parametrize(("facts", "steps"), [
    ({}, ["pixels", "engine", "labels"]),
    ({"inputs": [PIXELS]}, ["engine", "labels"]),
    ({"outputs": [LABEL_MAP]}, ["pixels", "engine"]),
    ({"inputs": [PIXELS], "outputs": [LABEL_MAP]}, []),
])  # fmt: skip
def test_an_engine_is_surrounded_by_what_it_lacks(own_plan: Path, facts: dict[str, Any], steps: list[str]) -> None:
    restated(own_plan, **facts)

    result = packaged(own_plan, own_plan.parent / "p", backend=TENSORRT, instances=2)

    repository = own_plan.parent / "p" / "repository"
    config = config_of(repository / "fcn8s")
    assert [step.model_name for step in config.ensemble_scheduling.step] == [f"fcn8s_{step}" for step in steps]
    assert sorted(path.name for path in repository.iterdir()) == sorted(["fcn8s", *(f"fcn8s_{step}" for step in steps)])
    assert (config.input[0].name, list(config.input[0].dims)) == ("pixels", [SIZE, SIZE, 3])
    assert (config.output[0].name, list(config.output[0].dims)) == ("labels", [SIZE, SIZE])
    engine = config_of(repository / ("fcn8s_engine" if steps else "fcn8s"))
    assert (engine.backend, engine.platform, engine.max_batch_size) == ("tensorrt", "tensorrt_plan", 0)
    assert (engine.instance_group[0].count, engine.instance_group[0].kind) == (2, engine.instance_group[0].KIND_GPU)
    assert str(result.input) == f"pixels uint8 {SIZE}x{SIZE}x3"
    assert result.gpu


def test_an_engine_of_a_batch_takes_that_batch_and_no_other(own_plan: Path) -> None:
    """Its sizes are built in, so Triton cannot put requests together."""
    restated(
        own_plan, input_shape=[4, 3, SIZE, SIZE],
        inputs=[PIXELS | {"shape": [4, SIZE, SIZE, 3]}], outputs=[LABEL_MAP | {"shape": [4, SIZE, SIZE]}],
    )  # fmt: skip

    result = packaged(own_plan, own_plan.parent / "p", backend=TENSORRT)

    config = config_of(own_plan.parent / "p" / "repository" / "fcn8s")
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [4, SIZE, SIZE, 3])
    assert not config.input[0].HasField("reshape")
    assert (result.max_batch, str(result.output)) == (0, f"labels uint8 4x{SIZE}x{SIZE}")


def test_what_a_package_says_of_itself(bundles: Bundles, tmp_path: Path) -> None:
    source = bundles(FLOAT, LOGITS, 4)
    result = packaged(source, tmp_path / "p q", backend=PYTHON, name="fcn", storage_uri="pvc://models/fcn")

    record = json.loads((tmp_path / "p q" / "triton-package.json").read_text())
    assert record["schema_version"] == 1
    assert record["source"] == str(source)
    assert record["model"]["fcn_deploy.weights"] == "untrained"
    assert record["max_batch"] == 4
    assert record["files"]["repository/fcn/1/artifact/model.onnx"] == (source / "model.onnx").stat().st_size
    assert result.commands["server"] == f"tritonserver --model-repository '{tmp_path}/p q/repository'"
    assert f"-v '{tmp_path}/p q/repository:/models:ro'" in result.commands["container"]
    assert "--gpus" not in result.commands["container"]
    assert "storageUri: pvc://models/fcn" in (tmp_path / "p q" / "inference-service.yaml").read_text()
    assert 'MODEL = "fcn"\n' in (tmp_path / "p q" / "client.py").read_text()


@pytest.mark.parametrize(("options", "facts"), [
    ({"instances": 0}, "instances 0 1 64"),
    ({"instances": 65}, "instances 65 1 64"),
    ({"queue_delay_us": -1}, "delay -1 0 10000000"),
    ({"name": "a/b"}, "'a/b' not valid name model"),
    ({"name": ""}, "'' not valid name model"),
    ({"storage_uri": "models"}, "'models' not URI"),
    ({"workspace_mb": 0}, "workspace 0 1 1048576"),
    ({"workspace_mb": 64}, "--workspace --engine-cache TensorRT"),
    ({"engine_cache": "/c", "provider": fd.Provider.CUDA}, "--engine-cache TensorRT"),
    ({"engine_cache": "/c", "provider": fd.Provider.TENSORRT, "backend": PYTHON}, "--engine-cache TensorRT"),
])  # fmt: skip
def test_options_out_of_their_bounds(options: dict[str, Any], facts: str) -> None:
    with pytest.raises(fd.UsageError, check=states(facts)):
        fd.PackageOptions(Path("fcn8s"), **options)


@pytest.mark.parametrize(("source", "name"), [
    ("fcn8s", "fcn8s"), ("models/fcn8s.onnx", "fcn8s"), ("v1.5", "v1.5"), ("e.plan", "e"), ("tests/..", None),
])  # fmt: skip
def test_names_come_from_the_source(source: str, name: str | None) -> None:
    assert fd.PackageOptions(Path(source)).model_name == (name or Path.cwd().name)


def refusal(source: Path, output: Path, **options: Any) -> str:
    with pytest.raises(fd.UsageError) as caught:
        packaged(source, output, **options)
    assert not output.exists()
    return str(caught.value)


def test_artifacts_that_a_backend_cannot_serve(bundles: Bundles, own_plan: Path, tmp_path: Path) -> None:
    bundle, out = bundles(FLOAT, LOGITS, 1), tmp_path / "out"

    assert f"Build one with `fcn-deploy tensorrt {bundle}`" in refusal(bundle, out, backend=TENSORRT)
    assert "Pass --backend tensorrt, or the bundle" in refusal(own_plan, out)
    assert "Leave --provider out" in refusal(own_plan, out, backend=PYTHON, provider=fd.Provider.CUDA)
    assert "has no batch to put requests together in" in refusal(bundle, out, queue_delay_us=5)
    restated(own_plan, flavour="tensorrt-rtx")
    assert "was built by TensorRT-RTX, whose engines Triton" in refusal(own_plan, out, backend=TENSORRT)


def reduced(bundle: Path, folder: Path, precision: str) -> Path:
    """A bundle's model that says it is of another precision: what is refused is refused by that."""
    model = read_model(bundle / "model.onnx")
    model.metadata_props["fcn_deploy.precision"] = precision
    write_model(model, folder / f"{precision}.onnx")
    return folder / f"{precision}.onnx"


def test_precisions_that_triton_would_compute_otherwise(bundles: Bundles, tmp_path: Path) -> None:
    bundle, out = bundles(FLOAT, LOGITS, 1), tmp_path / "out"
    sources = {precision: reduced(bundle, tmp_path, precision) for precision in ("fp16", "bf16", "int8")}

    assert "on CPUs without VNNI its 8-bit products would saturate" in refusal(sources["int8"], out)
    for precision in ("fp16", "bf16"):
        assert "Pass --provider cuda, or --backend python" in refusal(sources[precision], out)
    assert "is bf16, a precision that Triton" in refusal(sources["bf16"], out, provider=fd.Provider.TENSORRT)
    for precision, source in sources.items():
        packaged(source, tmp_path / precision, backend=PYTHON)


def test_a_damaged_bundle(bundle: Path, tmp_path: Path) -> None:
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[-1] ^= 1
    (bundle / "model.onnx").write_bytes(data)

    with pytest.raises(fd.BundleError, match="SHA-256"):
        packaged(bundle, tmp_path / "out")


def test_only_packages_are_replaced(bundles: Bundles, tmp_path: Path) -> None:
    source, out = bundles(FLOAT, LOGITS, 1), tmp_path / "out"
    packaged(source, out, name="first", backend=PYTHON)
    with pytest.raises(fd.OutputError, check=states("out exists", remedy="--force --output")):
        packaged(source, out)

    packaged(source, out, name="second", backend=PYTHON, force=True)

    assert [path.name for path in (out / "repository").iterdir()] == ["second"]
    shutil.copytree(source, tmp_path / "copy")
    with pytest.raises(fd.OutputError, check=states("--force copy no triton-package.json")):
        packaged(tmp_path / "copy", tmp_path / "copy", force=True)
    assert fd.open_bundle(tmp_path / "copy").manifest


@pytest.mark.parametrize(("old", "new", "message"), [
    ("dims: 96", "dims: 97", "input"),
    ("TYPE_UINT8", "TYPE_FP32", "input"),
    ('name: "labels"', 'name: "label"', "output"),
    ("max_batch_size: 4", "max_batch_size: 0", "input"),
    ("max_batch_size: 4", "max_batch: 4", "max_batch"),
    ('name: "fcn"', 'name: "fcn2"', "fcn2.*fcn"),
])  # fmt: skip
def test_a_configuration_that_is_not_the_models(
    bundles: Bundles, tmp_path: Path, old: str, new: str, message: str
) -> None:
    packaged(bundles(FLOAT, LOGITS, 4), tmp_path / "p", name="fcn")
    path = tmp_path / "p" / "repository" / "fcn" / "config.pbtxt"
    validate_repository(path.parents[1])
    path.write_text(path.read_text().replace(old, new))

    with pytest.raises(fd.BundleError, match=message):
        validate_repository(path.parents[1])


@pytest.mark.parametrize(("old", "new", "message"), [
    ('model_name: "fcn8s_labels"', 'model_name: "nobody"', "nobody"),
    ("dims: 3", "dims: 4", "fcn8s_pixels.* pixels"),
    ('value: "logits"', 'value: "other"', "fcn8s_labels.* logits"),
    ('value: "labels"', 'value: "other"', "labels"),
])  # fmt: skip
def test_an_ensemble_whose_steps_do_not_fit(plan: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    packaged(plan, tmp_path / "p", backend=TENSORRT)
    path = tmp_path / "p" / "repository" / "fcn8s" / "config.pbtxt"
    head, found, tail = path.read_text().rpartition(old)
    path.write_text(head + new + tail if found else "")

    with pytest.raises(fd.BundleError, match=message):
        validate_repository(path.parents[1])


def test_a_packaged_model_keeps_to_the_public_names(bundles: Bundles, tmp_path: Path) -> None:
    """Modules may move from version to version."""
    packaged(bundles(FLOAT, LOGITS, 1), tmp_path / "p", backend=PYTHON, name="net")
    tree = ast.parse((tmp_path / "p" / "repository" / "net" / "1" / "model.py").read_text())

    modules = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in modules if name.startswith(("fcn_deploy", "exporters", "benchmarks"))} == {"fcn_deploy"}
    used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "fd"}
    assert {"Provider", "Segmenter"} <= used <= set(fd.__all__)


def test_the_documentation_pins_this_version() -> None:
    text = (Path(__file__).parents[3] / "docs" / "triton.md").read_text(encoding="utf-8")

    assert f"pip install fcn-deploy=={fd.__version__}" in text
