"""A model of Triton's ONNX Runtime backend: one graph from pixels to labels."""

import shutil

import onnx_ir as ir

from exporters.triton.accelerators import onnx_placement
from exporters.triton.batch import with_free_batch
from exporters.triton.graphs import pixels_to_labels
from exporters.triton.options import TritonBackend
from exporters.triton.proof import require_same_labels
from exporters.triton.served import ServedModel, ServedTensor
from exporters.triton.work import Work
from fcn_deploy.bundle import MANIFEST_FILE, MODEL_FILE, Bundle
from fcn_deploy.model_info import LABELS_NAME, PIXELS_NAME
from fcn_deploy.onnx_file import write_model
from fcn_deploy.runtime.base import TensorSpec


def write_onnx_model(work: Work, bundle: Bundle) -> ServedModel:
    """Write the graph: the artifact's own where it has these ends and a batch of one, else one made from it.

    Raises:
        UsageError: the graph cannot be given the ends or the batch that Triton needs.
        ParityError: it labels pictures otherwise once it has been.
    """
    batch, _, height, width = shape = bundle.input_shape
    _write_graph(work, bundle)
    pixels, labels = (height, width, 3), (height, width)
    inputs, outputs = _tensor(PIXELS_NAME, pixels, batch), _tensor(LABELS_NAME, labels, batch)
    return ServedModel(
        work.name,
        TritonBackend.ONNXRUNTIME,
        inputs=(inputs,),
        outputs=(outputs,),
        warm_up=((1, *pixels), (batch, *pixels)) if batch > 1 else (pixels,),
        placement=onnx_placement(work.options, bundle.info.precision, shape),
        batching=work.batching,
        parameters=work.facts(),
    )


def _tensor(name: str, sizes: tuple[int, ...], batch: int) -> ServedTensor:
    """Triton adds the dimension of a batch that it forms itself; a fixed one of 1 it is told of."""
    return ServedTensor(TensorSpec(name, sizes, "uint8"), None if batch > 1 else (1, *sizes))


def _write_graph(work: Work, bundle: Bundle) -> None:
    version = work.version(work.name)
    served = _served_graph(bundle)
    if served is bundle.model:
        with work.on_step(f"copy {bundle.model_path}"):
            shutil.copyfile(bundle.model_path, version / MODEL_FILE)
    else:
        with work.on_step("compare the labels of the graph for Triton with the artifact's"):
            require_same_labels(bundle.model_path, served, bundle.input_shape)
        with work.on_step(f"write {MODEL_FILE}"):
            write_model(served, version / MODEL_FILE)
    if bundle.manifest is not None:
        shutil.copyfile(bundle.path / MANIFEST_FILE, version / MANIFEST_FILE)


def _served_graph(bundle: Bundle) -> ir.Model:
    """The graph as Triton needs it, which may be the artifact's own."""
    graph = bundle.model.graph
    ends = graph.inputs[0].name, graph.outputs[0].name
    model = bundle.model if ends == (PIXELS_NAME, LABELS_NAME) else pixels_to_labels(bundle.model)
    return with_free_batch(model) if bundle.input_shape[0] > 1 else model
