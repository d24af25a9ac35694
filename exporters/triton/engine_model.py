"""Models of Triton's TensorRT backend: an engine, and an ensemble around one that takes or gives floats."""

import shutil
from collections.abc import Mapping

import onnx_ir as ir

from exporters.triton.graphs import postprocessing, preprocessing
from exporters.triton.options import TritonBackend
from exporters.triton.served import Ensemble, Placement, ServedModel, ServedTensor
from exporters.triton.work import Work
from fcn_deploy.bundle import MODEL_FILE
from fcn_deploy.model_info import LABELS_NAME, PIXELS_NAME
from fcn_deploy.onnx_file import write_model
from fcn_deploy.runtime.base import TensorSpec
from fcn_deploy.runtime.engine_file import Engine, sidecar_path

PLAN_FILE = "model.plan"


def write_engine_models(work: Work, engine: Engine) -> tuple[ServedModel | Ensemble, ...]:
    """Write the engine and what it needs around it; what clients ask for comes last."""
    (taken,), (given,) = engine.inputs, engine.outputs
    before, after = taken.name != PIXELS_NAME, given.name != LABELS_NAME
    facts = work.facts()
    with work.on_step(f"copy {engine.path}"):
        if not before and not after:
            return (_engine(work, engine, work.name, facts),)
        steps = [_engine(work, engine, f"{work.name}_engine", {})]
    batch, _, height, width = engine.input_shape
    if before:
        pixels = TensorSpec(PIXELS_NAME, (batch, height, width, 3), "uint8")
        steps.insert(0, _step(work, "pixels", (pixels, taken), preprocessing(batch, height, width)))
    if after:
        labels = TensorSpec(LABELS_NAME, (batch, height, width), "uint8")
        steps.append(_step(work, "labels", (given, labels), postprocessing(batch, given.shape[1], height, width)))
    # Triton wants a version folder of an ensemble too, and object stores lose folders that are empty.
    shutil.copyfile(sidecar_path(engine.path), sidecar_path(work.version(work.name) / PLAN_FILE))
    return (*steps, Ensemble(work.name, tuple(steps), facts))


def _engine(work: Work, engine: Engine, name: str, facts: Mapping[str, str]) -> ServedModel:
    plan = work.version(name) / PLAN_FILE
    shutil.copyfile(engine.path, plan)
    shutil.copyfile(sidecar_path(engine.path), sidecar_path(plan))
    return _on_gpu(work, name, TritonBackend.TENSORRT, (engine.inputs[0], engine.outputs[0]), facts)


def _step(work: Work, what: str, ends: tuple[TensorSpec, TensorSpec], graph: ir.Model) -> ServedModel:
    name = f"{work.name}_{what}"
    write_model(graph, work.version(name) / MODEL_FILE)
    return _on_gpu(work, name, TritonBackend.ONNXRUNTIME, ends, {})


def _on_gpu(
    work: Work, name: str, backend: TritonBackend, ends: tuple[TensorSpec, TensorSpec], facts: Mapping[str, str]
) -> ServedModel:
    taken, given = (ServedTensor.of(end) for end in ends)
    placement = Placement(work.options.instances, gpu=True)
    return ServedModel(name, backend, (taken,), (given,), (taken.spec.shape,), placement, parameters=facts)
