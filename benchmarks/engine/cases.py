"""What is measured against what: one row of this table is one row of a report.

A case says which runtime runs which graph in which arithmetic; everything else (bundle, batch, provider, threads) is
the run's. To measure something else, add a line.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from fcn_deploy.choices import Provider
from fcn_deploy.errors import UsageError
from fcn_deploy.model_info import ModelInfo
from fcn_deploy.parity.tolerance import TIERS, Tier, tier_of


class Runtime(StrEnum):
    """What computes."""

    PYTORCH = "PyTorch"
    COMPILE = "torch.compile"
    ONNXRUNTIME = "ONNX Runtime"
    OPENVINO = "OpenVINO"
    TENSORRT = "TensorRT"


class Graph(StrEnum):
    """What is computed."""

    NETWORK = "network"  # the PyTorch module itself
    PLAIN = "plain"  # as exported
    PLAIN_HALF = "plain in half"  # as exported, its weights and maps in the bundle's half precision
    SIMPLIFIED = "simplified"
    BUNDLE = "bundle"  # with every optimisation that the bundle has
    ENGINE = "engine"  # the plan that `fcn-deploy tensorrt` built of the bundle


class Precision(StrEnum):
    """The arithmetic of convolutions; also the name of the parity tier."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


CPU, CUDA, TENSORRT = Provider.CPU, Provider.CUDA, Provider.TENSORRT


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: what users call it.
        runtime: what computes.
        graph: what is computed.
        providers: where this case makes sense.
        precision: in which arithmetic; half precision runs channels last in PyTorch.
        end_to_end: from N x H x W x 3 uint8 RGB to N x H x W uint8 labels, both on the host, instead of from float32
            input to logits, both on the device.
        cuda_graph: captured once and replayed.
        nhwc: channels last inside ONNX Runtime.
        session_run: input and output are arrays on the host, and ONNX Runtime moves them, as its users mostly call it.
        autotune: torch.compile tries kernels out (`max-autotune`).
    """

    name: str
    runtime: Runtime
    graph: Graph
    providers: tuple[Provider, ...]
    precision: Precision = Precision.FP32
    end_to_end: bool = False
    cuda_graph: bool = False
    nhwc: bool = False
    session_run: bool = False
    autotune: bool = False

    def on(self, info: ModelInfo, engine: ModelInfo | None) -> "Case":
        """The case for one bundle and its engine: what runs them computes in their arithmetic."""
        facts = {Graph.BUNDLE: info, Graph.PLAIN_HALF: info, Graph.ENGINE: engine}.get(self.graph)
        own = facts is not None and self.precision is Precision.FP32
        return replace(self, precision=Precision(facts.precision)) if own and facts is not None else self

    def tier(self, info: ModelInfo) -> Tier:
        """What its results are held to."""
        return tier_of(info) if self.precision is Precision(info.precision) else TIERS[self.precision]


_EVERYWHERE = (CPU, CUDA, TENSORRT)
CASES = (
    Case("pytorch", Runtime.PYTORCH, Graph.NETWORK, _EVERYWHERE),
    Case("pytorch-tf32", Runtime.PYTORCH, Graph.NETWORK, (CUDA, TENSORRT), Precision.TF32),
    Case("pytorch-fp16", Runtime.PYTORCH, Graph.NETWORK, (CUDA, TENSORRT), Precision.FP16),
    Case("compile", Runtime.COMPILE, Graph.NETWORK, _EVERYWHERE),
    Case("compile-fp16", Runtime.COMPILE, Graph.NETWORK, (CUDA, TENSORRT), Precision.FP16, autotune=True),
    Case("openvino-plain", Runtime.OPENVINO, Graph.PLAIN, (CPU,)),
    Case("openvino", Runtime.OPENVINO, Graph.BUNDLE, (CPU,)),
    Case("ort-plain", Runtime.ONNXRUNTIME, Graph.PLAIN, _EVERYWHERE),
    Case("ort-plain-half", Runtime.ONNXRUNTIME, Graph.PLAIN_HALF, (CUDA,)),
    Case("ort-plain-half-nhwc", Runtime.ONNXRUNTIME, Graph.PLAIN_HALF, (CUDA,), nhwc=True),
    Case("ort-plain-half-graph", Runtime.ONNXRUNTIME, Graph.PLAIN_HALF, (CUDA,), cuda_graph=True),
    Case("ort-plain-half-nhwc-graph", Runtime.ONNXRUNTIME, Graph.PLAIN_HALF, (CUDA,), nhwc=True, cuda_graph=True),
    Case("ort-simplified", Runtime.ONNXRUNTIME, Graph.SIMPLIFIED, _EVERYWHERE),
    Case("ort", Runtime.ONNXRUNTIME, Graph.BUNDLE, _EVERYWHERE),
    Case("ort-tf32", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA,), Precision.TF32),
    Case("ort-nhwc", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA,), nhwc=True),
    Case("ort-graph", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA, TENSORRT), cuda_graph=True),
    Case("ort-nhwc-graph", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA,), nhwc=True, cuda_graph=True),
    Case("engine", Runtime.TENSORRT, Graph.ENGINE, (CUDA, TENSORRT)),
    Case("engine-graph", Runtime.TENSORRT, Graph.ENGINE, (CUDA, TENSORRT), cuda_graph=True),
    # ONNX Runtime rounds float32 products to TF32 on GPUs unless it is told not to.
    Case("session-run", Runtime.ONNXRUNTIME, Graph.PLAIN, (CUDA,), Precision.TF32, session_run=True),
    Case(
        "session-run-e2e",
        Runtime.ONNXRUNTIME,
        Graph.PLAIN,
        (CUDA,),
        Precision.TF32,
        end_to_end=True,
        session_run=True,
    ),
    Case("pytorch-e2e", Runtime.PYTORCH, Graph.NETWORK, (CUDA, TENSORRT), end_to_end=True),
    Case("pytorch-fp16-e2e", Runtime.PYTORCH, Graph.NETWORK, (CUDA, TENSORRT), Precision.FP16, end_to_end=True),
    Case("ort-e2e", Runtime.ONNXRUNTIME, Graph.BUNDLE, _EVERYWHERE, end_to_end=True),
    Case("ort-graph-e2e", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA, TENSORRT), end_to_end=True, cuda_graph=True),
    Case("ort-nhwc-graph-e2e", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA,), end_to_end=True, nhwc=True, cuda_graph=True),
    Case("engine-e2e", Runtime.TENSORRT, Graph.ENGINE, (CUDA, TENSORRT), end_to_end=True),
)


def missing_runtime(runtime: Runtime) -> str | None:
    """What to install for a runtime that is not there, found out without loading it; None when it is."""
    if runtime is Runtime.OPENVINO and importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install 'fcn-deploy[openvino]'"
    packages = ("tensorrt", "tensorrt_rtx")
    if runtime is Runtime.TENSORRT and not any(importlib.util.find_spec(package) for package in packages):
        return "TensorRT is not installed: pip install 'fcn-deploy[tensorrt]'"
    return None


def problem_with(case: Case, info: ModelInfo) -> str | None:
    """Why a case makes no sense with a bundle, or None when it does."""
    precision = Precision(info.precision)
    if case.graph is Graph.BUNDLE and case.precision is Precision.TF32 and precision is not Precision.FP32:
        return f"the bundle computes in {precision}, of which TF32 rounds nothing"
    if case.graph is Graph.PLAIN_HALF and precision not in (Precision.FP16, Precision.BF16):
        return f"the bundle computes in {precision}, which is no half precision"
    if case.nhwc and precision is Precision.BF16:
        return "ONNX Runtime has no bfloat16 convolutions channels last"
    return None


def choose(names: Sequence[str], provider: Provider) -> tuple[Case, ...]:
    """The cases called `names`, in the table's order; all that `provider` has when no name is given.

    Raises:
        UsageError: a name is unknown, its case makes no sense on `provider`, or its runtime is not installed.
    """
    possible = tuple(case for case in CASES if provider in case.providers)
    strange = sorted(set(names) - {case.name for case in possible})
    if strange:
        raise UsageError(
            f"no row {', '.join(strange)} on {provider}; there are {', '.join(case.name for case in possible)}",
            remedy="Pass some of these to --rows, separated by commas.",
        )
    for case in possible:
        problem = missing_runtime(case.runtime) if case.name in names else None
        if problem is not None:
            raise UsageError(f"row {case.name}: {problem}", remedy="Install it, or leave the row out.")
    return tuple(case for case in possible if not names or case.name in names)
