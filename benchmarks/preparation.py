"""Makes the files of a workspace: graphs, and the reference's outputs.

In a process of its own, so that neither the network nor the exporter lies in memory while anything is timed.
"""

import numpy as np

from benchmarks.cases import Graph
from benchmarks.workspace import Workspace
from fcn_deploy.model_info import OUTPUT_NAME
from fcn_deploy.onnx_file import write_model
from fcn_deploy.parity.run import run_all
from fcn_deploy.runtime.eager import EagerRunner
from fcn_deploy.steps import quietly
from fcn_deploy.verification import rebuild


def prepare(workspace: Workspace, graphs: frozenset[Graph]) -> None:
    """Make the files: the graphs asked for, and the reference's outputs.

    Raises:
        CheckpointError: the bundle was made from another checkpoint than the workspace's.
    """
    network = rebuild(workspace.info, workspace.checkpoint)
    for i, outputs in enumerate(run_all(EagerRunner(network, workspace.shape), workspace.inputs(), quietly)):
        np.save(workspace.folder / f"reference-{i}.npy", outputs[OUTPUT_NAME])
    if not graphs & {Graph.PLAIN, Graph.PLAIN_HALF, Graph.SIMPLIFIED}:
        return
    # Here, because bundles that are measured alone do without the exporter.
    from exporters.onnx import OnnxOptions, export_graph
    from exporters.optimize import Target
    from exporters.reduce import PrecisionOptions, calibration_inputs, reduced
    from exporters.simplify import simplify

    batch, _, height, width = workspace.shape
    model = export_graph(network, OnnxOptions(height, width, batch, workspace.opset))
    write_model(model, workspace.graph_path(Graph.PLAIN))
    if Graph.PLAIN_HALF in graphs:
        options = PrecisionOptions(workspace.info.precision)
        half, _ = reduced(model, options, calibration_inputs(options, workspace.shape), Target.CUDA)
        write_model(half, workspace.graph_path(Graph.PLAIN_HALF))
    if Graph.SIMPLIFIED in graphs:
        write_model(simplify(model)[0], workspace.graph_path(Graph.SIMPLIFIED))
