"""The files that the rows of one bundle share, in a temporary directory: graphs, inputs and the reference's outputs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.engine.cases import Graph
from fcn_deploy.artifact.bundle import Bundle, RebuildOptions
from fcn_deploy.artifact.engine import Engine, open_engine, plan_beside
from fcn_deploy.errors import BundleError
from fcn_deploy.images import SAMPLE_PHOTO, Pixels, read_image, resize
from fcn_deploy.model_info import OUTPUT_NAME, ModelInfo
from fcn_deploy.onnx_file import write_model
from fcn_deploy.parity.inputs import ParityInput, Shape, parity_inputs, photo_inputs, rolled_batch
from fcn_deploy.storage import file_sha256


@dataclass(frozen=True)
class Workspace:
    """Files that the rows of one bundle share."""

    folder: Path  # their folder
    model_path: Path  # the bundle's own model
    info: ModelInfo  # facts about the bundle's network
    shape: Shape  # N x 3 x H x W
    opset: int  # of the bundle's model, and of the graphs that are exported again
    rebuild: RebuildOptions  # what the network is rebuilt from
    photos: tuple[Path, ...] = (SAMPLE_PHOTO,)  # the bundle's calibration images, if it has any
    plan: Path = Path()  # path of the bundle's engine, if it has one

    def engine(self) -> Engine | None:
        """Return the engine beside the bundle; None without one.

        Raises:
            BundleError: it is damaged, or was built from another model.
        """
        if not self.plan.is_file():
            return None
        engine = open_engine(self.plan)
        if engine.source_sha256 != file_sha256(self.model_path):
            raise BundleError(
                f"{self.plan} was built from another model than {self.model_path}", remedy="Build it again."
            )
        return engine

    def graph_path(self, graph: Graph) -> Path:
        """Return the file of a graph."""
        if graph is Graph.ENGINE:
            return self.plan
        return self.model_path if graph is Graph.BUNDLE else self.folder / f"{graph}.onnx"

    def pixels(self) -> Pixels:
        """Return the first input as a batch: N x H x W x 3 uint8 RGB."""
        return rolled_batch(resize(read_image(self.photos[0]), *self.shape[2:]), self.shape[0])

    def inputs(self) -> tuple[ParityInput, ...]:
        """Return the inputs of every row: photos, and also noise unless the bundle is in int8."""
        return parity_inputs(self.info, self.shape, photo_inputs(self.photos, self.shape, self.info.preprocessing))

    def references(self) -> tuple[npt.NDArray[np.float32], ...]:
        """Return the reference's logits for `inputs`, mapped from their files."""
        return tuple(np.load(path, mmap_mode="r") for path in sorted(self.folder.glob("reference-*.npy")))


def workspace_of(bundle: Bundle, folder: Path, rebuild: RebuildOptions) -> Workspace:
    """Return the workspace of a bundle; `prepare` writes its files."""
    opset = bundle.model.opset_imports[""]
    model_path, photos = bundle.model_path.resolve(), tuple(path.resolve() for path in bundle.photos) or (SAMPLE_PHOTO,)
    plan = plan_beside(bundle.path).resolve()
    return Workspace(folder, model_path, bundle.info, bundle.input_shape, opset, rebuild, photos, plan)


def prepare(workspace: Workspace, graphs: frozenset[Graph]) -> None:
    """Write the files of a workspace: `graphs`, and the reference's outputs.

    Raises:
        CheckpointError: the bundle was made from another checkpoint than the workspace's.
    """
    # Rows, which read this module too, run without PyTorch, and most of them without the exporter.
    from fcn_deploy.models.rebuild import rebuild
    from fcn_deploy.parity.verify import run_all
    from fcn_deploy.progress import quietly
    from fcn_deploy.runtime.eager import EagerRunner

    network = rebuild(workspace.info, workspace.rebuild).network
    for i, outputs in enumerate(run_all(EagerRunner(network, workspace.shape), workspace.inputs(), quietly)):
        np.save(workspace.folder / f"reference-{i}.npy", outputs[OUTPUT_NAME])
    if not graphs - {Graph.NETWORK, Graph.BUNDLE, Graph.ENGINE}:
        return
    from exporters.onnx import OnnxOptions, export_graph
    from exporters.precision.options import PrecisionOptions
    from exporters.precision.reduce import calibration_inputs, reduce_precision
    from exporters.rewrite import exact_passes, rewrite
    from exporters.simplify import simplify
    from fcn_deploy.choices import Target

    batch, _, height, width = workspace.shape
    model = export_graph(network, OnnxOptions(height, width, batch, workspace.opset))
    write_model(model, workspace.graph_path(Graph.PLAIN))
    if Graph.PLAIN_HALF in graphs:
        options = PrecisionOptions(workspace.info.precision)
        inputs = calibration_inputs(options, workspace.shape, workspace.info.preprocessing)
        half, _ = reduce_precision(model, options, inputs, Target.CUDA)
        write_model(half, workspace.graph_path(Graph.PLAIN_HALF))
    if graphs & {Graph.SIMPLIFIED, Graph.DIRECT}:
        model, _ = simplify(model)
        write_model(model, workspace.graph_path(Graph.SIMPLIFIED))
    if Graph.DIRECT in graphs:
        same_sums = [one for one in exact_passes(Target.CPU) if one.same_sums]
        write_model(rewrite(model, Target.CPU, same_sums)[0], workspace.graph_path(Graph.DIRECT))
