"""The table of benchmark rows: each case is one row of a report.

A case names the runtime, the graph and the compute precision. Bundle, batch, provider and threads belong to the run.
To measure something else, add a line to `CASES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from fcn_deploy.choices import Provider
from fcn_deploy.errors import UsageError
from fcn_deploy.installation import missing_packages
from fcn_deploy.model_info import ModelInfo
from fcn_deploy.parity.tolerance import TIERS, Tier, tier_of


class Runtime(StrEnum):
    """The runtime of a row."""

    PYTORCH = "PyTorch"
    COMPILE = "torch.compile"
    ONNXRUNTIME = "ONNX Runtime"
    OPENVINO = "OpenVINO"
    NCNN = "ncnn"
    MNN = "MNN"
    TENSORRT = "TensorRT"


class Graph(StrEnum):
    """The graph that a row runs."""

    NETWORK = "network"  # the PyTorch module itself
    PLAIN = "plain"  # as exported
    PLAIN_HALF = "plain in half"  # as exported, then converted to the bundle's half precision
    SIMPLIFIED = "simplified"
    # rewritten as the bundle, but with direct convolutions, for runtimes with fast ones of their own
    DIRECT = "direct"
    BUNDLE = "bundle"  # with every optimisation of the bundle
    ENGINE = "engine"  # the plan that `fcn-deploy tensorrt` built from the bundle


class ComputePrecision(StrEnum):
    """The precision in which convolutions are computed; also the name of the parity tier."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


CPU, CUDA, TENSORRT = Provider.CPU, Provider.CUDA, Provider.TENSORRT


@dataclass(frozen=True)
class Case:
    """One row."""

    name: str  # the name on the command line and in reports
    runtime: Runtime  # runs the graph
    graph: Graph  # the graph that is run
    providers: tuple[Provider, ...]  # the providers that this case applies to
    # the compute precision; PyTorch runs half precision channels last
    precision: ComputePrecision = ComputePrecision.FP32
    # times N x H x W x 3 uint8 RGB to N x H x W uint8 labels, both on the host, instead of float32 input to logits,
    # both on the device
    end_to_end: bool = False
    cuda_graph: bool = False  # the run is captured once and replayed
    nhwc: bool = False  # ONNX Runtime uses the channels-last layout
    session_run: bool = False  # times `session.run`, with input and output as arrays on the host
    autotune: bool = False  # torch.compile tries several kernels (`max-autotune`)
    prepared: bool = False  # ONNX Runtime opens a prepared session, as `predict` does from the second time on

    def for_bundle(self, info: ModelInfo, engine: ModelInfo | None) -> "Case":
        """Return the case in the precision of the bundle, or of its engine, where the case runs one of them."""
        model = {Graph.BUNDLE: info, Graph.PLAIN_HALF: info, Graph.ENGINE: engine}.get(self.graph)
        if model is None or self.precision is not ComputePrecision.FP32:
            return self
        return replace(self, precision=ComputePrecision(model.precision))

    @property
    def is_peer(self) -> bool:
        """Return whether another project's runtime computes it: an error beyond the tier is then marked, not hidden."""
        return self.runtime in (Runtime.OPENVINO, Runtime.NCNN, Runtime.MNN)

    def tier(self, info: ModelInfo) -> Tier:
        """Return the parity tier that its outputs have to meet."""
        return tier_of(info) if self.precision is ComputePrecision(info.precision) else TIERS[self.precision]


_TF32, _FP16 = ComputePrecision.TF32, ComputePrecision.FP16
_EVERYWHERE = (CPU, CUDA, TENSORRT)
CASES = (
    Case("pytorch", Runtime.PYTORCH, Graph.NETWORK, _EVERYWHERE),
    Case("pytorch-tf32", Runtime.PYTORCH, Graph.NETWORK, (CUDA, TENSORRT), _TF32),
    Case("pytorch-fp16", Runtime.PYTORCH, Graph.NETWORK, (CUDA, TENSORRT), _FP16),
    Case("compile", Runtime.COMPILE, Graph.NETWORK, _EVERYWHERE),
    Case("compile-fp16", Runtime.COMPILE, Graph.NETWORK, (CUDA, TENSORRT), _FP16, autotune=True),
    Case("openvino-plain", Runtime.OPENVINO, Graph.PLAIN, (CPU,)),
    Case("openvino", Runtime.OPENVINO, Graph.BUNDLE, (CPU,)),
    Case("openvino-bf16", Runtime.OPENVINO, Graph.DIRECT, (CPU,), ComputePrecision.BF16),
    Case("ncnn-plain", Runtime.NCNN, Graph.PLAIN, (CPU,)),
    Case("ncnn", Runtime.NCNN, Graph.DIRECT, (CPU,)),
    Case("mnn-plain", Runtime.MNN, Graph.PLAIN, (CPU,)),
    Case("mnn", Runtime.MNN, Graph.DIRECT, (CPU,)),
    Case("ort-plain", Runtime.ONNXRUNTIME, Graph.PLAIN, _EVERYWHERE),
    Case("ort-plain-half", Runtime.ONNXRUNTIME, Graph.PLAIN_HALF, (CUDA,)),
    Case("ort-plain-half-nhwc", Runtime.ONNXRUNTIME, Graph.PLAIN_HALF, (CUDA,), nhwc=True),
    Case("ort-plain-half-graph", Runtime.ONNXRUNTIME, Graph.PLAIN_HALF, (CUDA,), cuda_graph=True),
    Case("ort-plain-half-nhwc-graph", Runtime.ONNXRUNTIME, Graph.PLAIN_HALF, (CUDA,), nhwc=True, cuda_graph=True),
    Case("ort-simplified", Runtime.ONNXRUNTIME, Graph.SIMPLIFIED, _EVERYWHERE),
    Case("ort", Runtime.ONNXRUNTIME, Graph.BUNDLE, _EVERYWHERE),
    Case("ort-prepared", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CPU,), prepared=True),
    Case("ort-tf32", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA,), _TF32),
    Case("ort-nhwc", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA,), nhwc=True),
    Case("ort-graph", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA, TENSORRT), cuda_graph=True),
    Case("ort-nhwc-graph", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA,), nhwc=True, cuda_graph=True),
    Case("engine", Runtime.TENSORRT, Graph.ENGINE, (CUDA, TENSORRT)),
    Case("engine-graph", Runtime.TENSORRT, Graph.ENGINE, (CUDA, TENSORRT), cuda_graph=True),
    # ONNX Runtime rounds float32 products to TF32 on GPUs by default.
    Case("session-run", Runtime.ONNXRUNTIME, Graph.PLAIN, (CUDA,), _TF32, session_run=True),
    Case("session-run-e2e", Runtime.ONNXRUNTIME, Graph.PLAIN, (CUDA,), _TF32, end_to_end=True, session_run=True),
    Case("pytorch-e2e", Runtime.PYTORCH, Graph.NETWORK, (CUDA, TENSORRT), end_to_end=True),
    Case("pytorch-fp16-e2e", Runtime.PYTORCH, Graph.NETWORK, (CUDA, TENSORRT), _FP16, end_to_end=True),
    Case("ort-e2e", Runtime.ONNXRUNTIME, Graph.BUNDLE, _EVERYWHERE, end_to_end=True),
    Case("ort-graph-e2e", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA, TENSORRT), end_to_end=True, cuda_graph=True),
    Case("ort-nhwc-graph-e2e", Runtime.ONNXRUNTIME, Graph.BUNDLE, (CUDA,), end_to_end=True, nhwc=True, cuda_graph=True),
    Case("engine-e2e", Runtime.TENSORRT, Graph.ENGINE, (CUDA, TENSORRT), end_to_end=True),
)

# The row of the artifact itself, and the rows that may be its baseline: the first one that was measured.
OURS, BASELINES = "ort", ("ort-plain", "ort-plain-half", "ort-plain-half-nhwc-graph")

# The extra of fcn-deploy that installs a runtime, and modules of which at least one has to be importable. The extra
# `ncnn` installs pnnx, too, which converts graphs for it.
_EXTRAS = {
    Runtime.OPENVINO: ("openvino", ("openvino",)),
    Runtime.NCNN: ("ncnn", ("pnnx",)),
    Runtime.MNN: ("mnn", ("MNN",)),
    Runtime.TENSORRT: ("tensorrt", ("tensorrt", "tensorrt_rtx")),
}


def missing_runtime(runtime: Runtime) -> str | None:
    """Return how to install a runtime that is missing, found without loading it; None when it is installed."""
    extra, modules = _EXTRAS.get(runtime, ("", ()))
    if not modules or len(missing_packages(modules)) < len(modules):
        return None
    return f"{runtime} is not installed: pip install 'fcn-deploy[{extra}]'"


def problem_with(case: Case, info: ModelInfo, batch: int = 1) -> str | None:
    """Return the reason why a case does not apply to a bundle, or None."""
    if case.runtime is Runtime.NCNN and batch > 1:
        return f"ncnn has no batches, and the bundle's is {batch}"
    precision = ComputePrecision(info.precision)
    if (
        case.graph is Graph.BUNDLE
        and case.precision is ComputePrecision.TF32
        and precision is not ComputePrecision.FP32
    ):
        return f"the bundle computes in {precision}, and TF32 only affects float32"
    if case.graph is Graph.PLAIN_HALF and precision not in (ComputePrecision.FP16, ComputePrecision.BF16):
        return f"the bundle computes in {precision}, which is not a half precision"
    if case.nhwc and precision is ComputePrecision.BF16:
        return "ONNX Runtime has no bfloat16 convolutions channels last"
    return None


def choose(names: Sequence[str], provider: Provider) -> tuple[Case, ...]:
    """Return the cases called `names`, in the order of `CASES`; without names, all cases of `provider`.

    Raises:
        UsageError: a name is unknown, its case does not apply to `provider`, or its runtime is not installed.
    """
    possible = tuple(case for case in CASES if provider in case.providers)
    unknown = sorted(set(names) - {case.name for case in possible})
    if unknown:
        raise UsageError(
            f"no row {', '.join(unknown)} on {provider}; available: {', '.join(case.name for case in possible)}",
            remedy="Pass some of these to --rows, separated by commas.",
        )
    for case in possible:
        problem = missing_runtime(case.runtime) if case.name in names else None
        if problem is not None:
            raise UsageError(f"row {case.name}: {problem}", remedy="Install it, or omit the row.")
    return tuple(case for case in possible if not names or case.name in names)
