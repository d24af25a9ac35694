import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcn_deploy as fd
from benchmarks.report.results import NodeTime
from benchmarks.stats.nodes import read_profile
from fcn_deploy.runtime.ort import OrtRunner
from tests.conftest import narrow_options


def event(name: str, operator: str, microseconds: int, shapes: list[list[int]], output: list[int]) -> dict[str, Any]:
    sizes = {"activation_size": "100", "parameter_size": "20", "output_size": "3"}
    types = {"input_type_shape": [{"float": s} for s in shapes], "output_type_shape": [{"float": output}]}
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "dur": microseconds,
        "args": {"op_name": operator, **sizes, **types},
    }


def test_a_written_profile(tmp_path: Path) -> None:
    conv = [[1, 3, 5, 5], [8, 3, 3, 3], [8]]
    events = [
        {"cat": "Session", "name": "model_run", "dur": 9},
        event("conv", "Conv", 500, conv, [2, 8, 4, 6]),
        event("up", "ConvTranspose", 40, [[1, 8, 4, 4]], [1, 2, 8, 8]),
        event("conv", "Conv", 30, conv, [2, 8, 4, 6]),
        event("up", "ConvTranspose", 50, [[1, 8, 4, 4]], [1, 2, 8, 8]),
        event("conv", "Conv", 20, conv, [2, 8, 4, 6]),
        {"cat": "Node", "name": "conv_fence_before", "dur": 1, "args": {"op_name": "Conv"}},
    ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))

    # 8 * 3 * 3 * 3 weights, each used at 2 * 4 * 6 positions; the first run of each node does not count.
    assert read_profile(path, {"up": 4096}, skip_runs=1) == (
        NodeTime("up", "ConvTranspose", 50_000, 4096, 123),
        NodeTime("conv", "Conv", 25_000, 216 * 48, 123),
    )


def test_a_real_profile_counts_the_graphs_multiply_adds(tmp_path: Path) -> None:
    """ONNX Runtime's own shapes against the graph's; the fast kernels may pad the 21 classes, and so count more.

    They pad channels to multiples of up to 16: a quarter of VGG16's widths are such.
    """
    options = narrow_options(tmp_path / "plain")
    options = replace(options, optimize=fd.Optimize.SIMPLIFY, channel_divisor=4, verify=False)
    plain = fd.export(options).path
    layers = {layer.name: layer for layer in fd.inspect(plain).layers}
    with OrtRunner(plain / "model.onnx", profile=tmp_path / "profile") as runner:
        for _ in range(3):
            runner.run({"image": np.zeros((1, 3, 96, 96), np.float32)})
        path = runner.end_profiling()

    nodes = read_profile(path, {name: layer.multiply_adds for name, layer in layers.items()}, skip_runs=1)

    total = sum(layer.multiply_adds for layer in layers.values())
    assert total <= sum(node.multiply_adds for node in nodes) <= 1.2 * total
    assert [node.time_ns for node in nodes] == sorted((node.time_ns for node in nodes), reverse=True)
    assert sum(node.operator == "ConvTranspose" for node in nodes) == 3
    assert all(node.moved_bytes > 0 for node in nodes)


@pytest.mark.parametrize("text", ["[]", '[{"cat": "Session", "name": "x"}]'])
def test_a_profile_without_nodes(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.json").write_text(text)

    assert read_profile(tmp_path / "empty.json", {}, skip_runs=0) == ()
