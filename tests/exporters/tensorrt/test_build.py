"""Engines that TensorRT-RTX really builds, on a machine that may have no GPU."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

import fcn_deploy as fd
from exporters.tensorrt.build import Phase
from fcn_deploy.artifact.bundle import MODEL_FILE
from fcn_deploy.artifact.engine import open_engine, sidecar_path
from fcn_deploy.choices import FlavourName, Optimize, Precision
from fcn_deploy.model_info import TRANSFORM_KEY
from fcn_deploy.onnx_file import read_model, write_model
from fcn_deploy.runtime.tensorrt_flavour import worst
from fcn_deploy.storage import file_sha256
from tests.conftest import narrow_options
from tests.engines import WITHOUT_GPU, built, rtx
from tests.messages import missing, states


def options(source: Path, output: Path, **others: object) -> fd.EngineOptions:
    given = {"flavour": rtx().name, "capabilities": ("8.9",)} | others
    return fd.EngineOptions(source, output, **given)  # type: ignore[arg-type]


def exported(folder: Path, variant: fd.Variant, optimize: Optimize, **others: object) -> Path:
    made = replace(narrow_options(folder / "bundle", variant), optimize=optimize, verify=False, **others)  # type: ignore[arg-type]
    return fd.export(made).path


@pytest.mark.parametrize("optimize", [Optimize.NONE, Optimize.EXACT])
@pytest.mark.parametrize("variant", list(fd.Variant))
def test_every_variant_builds_plain_and_rewritten(tmp_path: Path, variant: fd.Variant, optimize: Optimize) -> None:
    flavour = rtx()
    source = exported(tmp_path, variant, optimize)

    single = built(source, tmp_path / "single.plan").engine
    half = built(source, tmp_path / "half.plan", Precision.FP16).engine

    assert [str(spec) for spec in single.inputs] == ["image float32 1x3x96x96"] == [str(s) for s in half.inputs]
    assert [str(spec) for spec in single.outputs] == ["logits float32 1x21x96x96"] == [str(s) for s in half.outputs]
    assert single.layers.seen_in == half.layers.seen_in == "builder"
    assert set(single.layers.counts) == {"fp32"}
    assert set(half.layers.counts) == {"fp16"}
    # Five blocks of convolutions, their pools, and a head: nothing is left out of the list.
    assert min(single.layers.counts["fp32"], half.layers.counts["fp16"]) > 20
    assert 0.45 < half.plan_bytes / single.plan_bytes < 0.85
    malformed = int(flavour.trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    judge = flavour.trt.Runtime(flavour.log.logger)
    assert int(judge.get_engine_validity(single.path.read_bytes())[1]) & malformed == 0
    assert int(judge.get_engine_validity(b"no plan at all" * 10)[1]) & malformed == malformed


@WITHOUT_GPU
def test_without_a_gpu_only_the_driver_is_missing_to_deserialise(shared_bundle: Path, tmp_path: Path) -> None:
    """TensorRT reads the plan's header and its length before it asks for a GPU."""
    flavour = rtx()
    plan = built(shared_bundle, tmp_path / "engine.plan").engine.path
    whole = plan.read_bytes()

    def refusal(data: bytes) -> str:
        with flavour.log.listening() as said:
            assert flavour.trt.Runtime(flavour.log.logger).deserialize_cuda_engine(data) is None
        return worst(said)

    assert "Serialization" not in refusal(whole)
    assert "CUDA driver version is insufficient" in refusal(whole)
    assert "plan.header.size == blobSize" in refusal(whole[:-1])


def test_the_sidecar_says_what_was_built_of_what(shared_bundle: Path, tmp_path: Path) -> None:
    result = built(shared_bundle, tmp_path / "engine.plan", Precision.FP16)
    engine = open_engine(tmp_path / "engine.plan")

    assert engine == result.engine
    assert not result.up_to_date
    assert engine.source_sha256 == file_sha256(shared_bundle / MODEL_FILE)
    assert engine.plan_sha256 == file_sha256(engine.path)
    assert engine.plan_bytes == engine.path.stat().st_size
    assert (engine.flavour, engine.version) == (FlavourName.RTX, rtx().version)
    assert (engine.capabilities, engine.device) == (("8.9", "12.0"), None)
    assert engine.info == replace(fd.open_bundle(shared_bundle).info, precision=Precision.FP16)
    assert engine.input_shape == (1, 3, 96, 96)
    assert engine.layers.seen_in == "builder"
    assert str(tmp_path) not in sidecar_path(engine.path).read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine.plan", "engine.plan.json"]


def test_pixels_in_and_labels_out(tmp_path: Path) -> None:
    source = exported(tmp_path, fd.Variant.FCN16S, Optimize.EXACT, head=fd.Head.LABELS, image_input=fd.ImageInput.UINT8)

    engine = built(source, tmp_path / "engine.plan", Precision.FP16).engine

    assert [str(spec) for spec in engine.inputs] == ["pixels uint8 1x96x96x3"]
    assert [str(spec) for spec in engine.outputs] == ["labels uint8 1x96x96"]
    assert set(engine.layers.counts) == {"fp16"}


def test_bfloat16_keeps_the_head_in_float(tmp_path: Path) -> None:
    source = exported(tmp_path, fd.Variant.FCN8S, Optimize.EXACT, onnx=fd.OnnxOptions(96, 96, opset=22))

    layers = built(source, tmp_path / "engine.plan", Precision.BF16).engine.layers

    assert set(layers.counts) == {"bf16", "fp32"}
    assert 0.4 < layers.share("bf16") < 0.8


def test_the_same_again_is_not_built_again(shared_bundle: Path, tmp_path: Path) -> None:
    first = fd.build_engine(options(shared_bundle, tmp_path / "engine.plan"))
    before = (tmp_path / "engine.plan").stat().st_mtime_ns

    again = fd.build_engine(options(shared_bundle, tmp_path / "engine.plan", force=True))

    assert again.up_to_date
    assert again.engine == first.engine
    assert (tmp_path / "engine.plan").stat().st_mtime_ns == before


@pytest.mark.parametrize("others", [
    {"precision": Precision.FP16}, {"capabilities": ("12.0",)}, {"workspace_mb": 256},
])  # fmt: skip
def test_another_engine_is_replaced_with_force_only(
    shared_bundle: Path, tmp_path: Path, others: dict[str, object]
) -> None:
    output = tmp_path / "engine.plan"
    first = fd.build_engine(options(shared_bundle, output)).engine

    with pytest.raises(fd.OutputError) as caught:
        fd.build_engine(options(shared_bundle, output, **others))
    assert missing(f"{output} exists fp32 8.9", caught.value.problem) == []
    assert open_engine(output) == first

    forced = fd.build_engine(options(shared_bundle, output, force=True, **others))
    assert not forced.up_to_date
    assert forced.engine.key != first.key


def test_a_damaged_engine_is_never_up_to_date(shared_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "engine.plan"
    fd.build_engine(options(shared_bundle, output))
    output.write_bytes(output.read_bytes()[:-1])

    with pytest.raises(fd.OutputError, check=states("engine.plan exists recognised", remedy="--force")):
        fd.build_engine(options(shared_bundle, output))

    assert not fd.build_engine(options(shared_bundle, output, force=True)).up_to_date
    assert open_engine(output)


def test_refused_nodes_are_named_all_of_them(shared_bundle: Path, tmp_path: Path) -> None:
    model = read_model(shared_bundle / MODEL_FILE)
    relus = [node for node in model.graph if node.op_type == "Relu"]
    relus[0].op_type, relus[0].domain = "Unheard", "com.example"
    model.opset_imports["com.example"] = 1
    relus[3].op_type = "Det"
    write_model(model, tmp_path / "odd.onnx")

    with pytest.raises(fd.UsageError) as caught:
        fd.build_engine(options(tmp_path / "odd.onnx", tmp_path / "engine.plan"))

    lines = caught.value.problem.splitlines()
    assert missing(f"{rtx()} 2", lines[0]) == []
    assert missing("1 relu1_1 Unheard Plugin", lines[1]) == []
    assert missing("relu2_2 Det", lines[2]) == []
    assert not (tmp_path / "engine.plan").exists()


def test_fast_convolutions_are_not_computed_in_half(shared_bundle: Path, tmp_path: Path) -> None:
    model = read_model(shared_bundle / MODEL_FILE)
    model.graph[0].metadata_props[TRANSFORM_KEY] = "1"
    write_model(model, tmp_path / "cpu.onnx")

    with pytest.raises(fd.UsageError) as caught:
        fd.build_engine(options(tmp_path / "cpu.onnx", tmp_path / "engine.plan", precision=Precision.FP16))

    assert missing(f"{tmp_path / 'cpu.onnx'} fp16", caught.value.problem) == []
    assert missing("--target tensorrt", caught.value.remedy) == []
    assert list(tmp_path.glob("*.plan*")) == []


def test_a_graph_that_only_says_it_is_half_is_refused(shared_bundle: Path, tmp_path: Path) -> None:
    model = read_model(shared_bundle / MODEL_FILE)
    model.metadata_props.update(replace(fd.open_bundle(shared_bundle).info, precision=Precision.FP16).to_metadata())
    write_model(model, tmp_path / "says.onnx")

    with pytest.raises(fd.ParityError) as caught:
        fd.build_engine(options(tmp_path / "says.onnx", tmp_path / "engine.plan"))

    assert missing("fp16 64 fp32", caught.value.problem) == []
    assert list(tmp_path.glob("*.plan*")) == []


def test_a_reduced_bundle_stays_what_it_is(shared_bundle: Path, tmp_path: Path) -> None:
    model = read_model(shared_bundle / MODEL_FILE)
    model.metadata_props.update(replace(fd.open_bundle(shared_bundle).info, precision=Precision.BF16).to_metadata())
    write_model(model, tmp_path / "b.onnx")

    with pytest.raises(fd.UsageError) as caught:
        fd.build_engine(options(tmp_path / "b.onnx", tmp_path / "engine.plan", precision=Precision.FP16))

    assert missing(f"{tmp_path / 'b.onnx'} bf16 fp16", caught.value.problem) == []
    assert missing("--precision fp16 fp32", caught.value.remedy) == []


@pytest.mark.parametrize(("others", "facts"), [
    ({"workspace_mb": 0}, "workspace 0 1 1048576"),
    ({"precision": Precision.INT8}, "engine quantize"),
    ({"precision": Precision.BF16}, "opset 18 22"),
    ({"calibration": (Path("photos"),)}, "calibration images float32 fp32"),
    ({"timing_cache": Path("cache")}, "TensorRT-RTX no timing cache"),
    ({"output": Path("engine.trt")}, "engine.trt end .plan"),
    ({"capabilities": ("9.0",)}, "compute capability 9.0 TensorRT-RTX 12.1"),
])  # fmt: skip
def test_options_out_of_bounds(
    shared_bundle: Path, tmp_path: Path, others: dict[str, object], facts: str, photo: Path
) -> None:
    given = {"calibration": (photo,)} if "calibration" in others else others

    with pytest.raises(fd.UsageError) as caught:
        fd.build_engine(options(shared_bundle, **({"output": tmp_path / "engine.plan"} | given)))

    assert missing(facts, caught.value.problem) == []
    assert list(tmp_path.glob("*.plan*")) == []


def test_a_failed_build_says_why_in_tensorrts_words(tmp_path: Path) -> None:
    """Turing GPUs have no bfloat16."""
    source = exported(tmp_path, fd.Variant.FCN32S, Optimize.NONE, onnx=fd.OnnxOptions(96, 96, opset=22))
    wanted = {"precision": Precision.BF16, "capabilities": ("7.5",)}

    with pytest.raises(fd.ProviderError, match="sm75") as caught:
        fd.build_engine(options(source, tmp_path / "engine.plan", **wanted))

    assert "--compute-capability" in caught.value.remedy


@WITHOUT_GPU
def test_without_a_gpu_one_has_to_be_named(shared_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(fd.ProviderError) as caught:
        fd.build_engine(options(shared_bundle, tmp_path / "engine.plan", capabilities=()))

    assert str(rtx()) in caught.value.problem
    assert missing("--compute-capability 7.5,8.0,8.6,8.9,12.0,12.1", caught.value.remedy) == []


def test_phases_are_told_and_a_failing_listener_ends_the_build(shared_bundle: Path, tmp_path: Path) -> None:
    seen: list[tuple[Phase, ...]] = []
    fd.build_engine(options(shared_bundle, tmp_path / "engine.plan"), on_phases=seen.append)

    assert str(seen[0][0]).startswith("Building engine 0/")
    assert max(len(phases) for phases in seen) >= 3
    assert seen[-1] == ()

    def fail(_phases: tuple[Phase, ...]) -> None:
        raise RuntimeError("the listener failed")

    with pytest.raises(RuntimeError, match="the listener failed"):
        fd.build_engine(options(shared_bundle, tmp_path / "other.plan"), on_phases=fail)
    assert not (tmp_path / "other.plan").exists()


def test_an_interrupt_stops_the_builder_and_leaves_nothing(shared_bundle: Path, tmp_path: Path) -> None:
    seen = []

    def interrupt(phases: tuple[Phase, ...]) -> None:
        seen.append(phases)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            fd.build_engine(options(shared_bundle, tmp_path / "engine.plan"), on_phases=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)

    assert len(seen) < 30
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("source", "plan"), [
    ("fcn8s", "fcn8s.plan"), ("a/fcn8s/", "a/fcn8s.plan"), ("a/v1.2", "a/v1.2.plan"), ("a/model.onnx", "a/model.plan"),
])  # fmt: skip
def test_a_plan_lies_beside_its_source(source: str, plan: str) -> None:
    assert fd.EngineOptions(Path(source)).plan_path == Path(plan)


def test_a_plan_lies_beside_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert fd.EngineOptions(Path()).plan_path == tmp_path.with_name(tmp_path.name + ".plan")


def test_results_are_json(shared_bundle: Path, tmp_path: Path) -> None:
    found = json.loads(json.dumps(built(shared_bundle, tmp_path / "engine.plan").to_dict()))

    assert found["up_to_date"] is False
    assert found["layers"] == {"seen_in": "builder", "counts": {"fp32": 36}}
    assert found["metadata"]["fcn_deploy.variant"] == "8s"
