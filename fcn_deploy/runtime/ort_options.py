"""How ONNX Runtime runs a model: one class of options, and their names in ONNX Runtime.

Names and defaults of the CUDA and TensorRT options are those of ONNX Runtime's documentation of the two execution
providers (onnxruntime.ai/docs/execution-providers). This module does not load ONNX Runtime.
"""

from dataclasses import dataclass

from fcn_deploy.choices import Provider
from fcn_deploy.errors import UsageError, check_range

_NO_CPU_FALLBACK = "session.disable_cpu_ep_fallback"
# Without VNNI, AVX2's products of uint8 and int8 saturate; this option selects slower products that do not.
_EXACT_PRODUCTS = "session.x64quantprecision"
# Threads spin while they wait for the next operator; this stops them after the last one of a run.
_STOP_WAITING = "session.force_spinning_stop"
_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
MAX_THREADS = 1024

PROVIDER_NAMES = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.TENSORRT: "TensorrtExecutionProvider",
}
# Options that a provider does not have.
_UNAVAILABLE = {
    Provider.CPU: ("tf32", "cuda_graph", "nhwc", "stream"),
    Provider.CUDA: (),
    Provider.TENSORRT: ("tf32", "nhwc"),
}


@dataclass(frozen=True)
class OrtOptions:
    """How ONNX Runtime runs a model.

    Attributes:
        provider: the execution provider; there is no fall-back to another.
        optimizations: let ONNX Runtime rewrite the graph before it runs it: fuse nodes, change their layout.
        arena: keep the memory of maps for the next ones; without it, a graph that runs once or twice needs less.
        threads: threads per operator on a CPU; None leaves it to ONNX Runtime.
        tf32: let CUDA round float32 products to TF32. Off by default, so that models can be compared in float32.
        cuda_graph: capture the run and replay it, which needs inputs and outputs at fixed places (`OrtRunner.bind`).
        nhwc: let CUDA use the channels-last layout.
        stream: handle of the CUDA stream to run on; None lets ONNX Runtime make one.

    Raises:
        UsageError: an option of another provider, or out of its bounds.
    """

    provider: Provider = Provider.CPU
    optimizations: bool = True
    arena: bool = True
    threads: int | None = None
    tf32: bool = False
    cuda_graph: bool = False
    nhwc: bool = False
    stream: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_range("threads", self.threads, 1, MAX_THREADS, option="--threads")
        unavailable = [n for n in _UNAVAILABLE[self.provider] if getattr(self, n) != getattr(OrtOptions, n)]
        if unavailable:
            raise UsageError(
                f"provider {self.provider} does not support {', '.join(unavailable)}",
                remedy="Omit it, or use --provider cuda.",
            )

    def provider_options(self) -> dict[str, str]:
        """Return the options of ONNX Runtime's provider."""
        if self.provider is Provider.CPU:
            return {}
        stream = {}
        if self.stream is not None:
            stream = {"has_user_compute_stream": "1", "user_compute_stream": str(self.stream)}
        if self.provider is Provider.TENSORRT:
            return {"trt_cuda_graph_enable": str(int(self.cuda_graph)), **stream}
        return {
            "use_tf32": str(int(self.tf32)),
            "enable_cuda_graph": str(int(self.cuda_graph)),
            "prefer_nhwc": str(int(self.nhwc)),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            **stream,
        }

    def session_config(self) -> dict[str, str]:
        """Return the configuration of ONNX Runtime's session: where nodes may run, and how threads compute."""
        by_provider = {_NO_CPU_FALLBACK: "1"}
        if self.provider is Provider.CPU:
            by_provider = {_EXACT_PRODUCTS: "1", _STOP_WAITING: "1"}
        return {_RECORD_PLACEMENT: "1", **by_provider}

    def __str__(self) -> str:
        if self.provider is Provider.CPU:
            return f"{self.threads} threads" if self.threads else "as many threads as cores"
        parts = [
            "TF32 on" if self.tf32 else "TF32 off",
            "CUDA graph" if self.cuda_graph else "",
            "NHWC" if self.nhwc else "",
            "exhaustive search" if self.provider is Provider.CUDA else "",
        ]
        return ", ".join(part for part in parts if part)


# For graphs that are run once or twice: preparing them would take longer than it saves, and most of the memory.
RUN_ONCE = OrtOptions(optimizations=False, arena=False)
