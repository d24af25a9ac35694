"""How ONNX Runtime runs a model: one class of options, and what they are called there.

Names and defaults of the CUDA and TensorRT options are those of ONNX Runtime's documentation of the two execution
providers (onnxruntime.ai/docs/execution-providers). This module does not load ONNX Runtime.
"""

from dataclasses import dataclass
from enum import StrEnum

from fcn_deploy.choices import Provider
from fcn_deploy.errors import UsageError

_INTRA_OP_AFFINITIES = "session.intra_op_thread_affinities"
_NO_CPU_FALLBACK = "session.disable_cpu_ep_fallback"
# Without VNNI, AVX2's products of uint8 and int8 saturate; this takes slower ones that do not.
_EXACT_PRODUCTS = "session.x64quantprecision"
# Threads wait for the next operator without sleep; after the last one of a run they would do so in others' way.
_STOP_WAITING = "session.force_spinning_stop"
_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
MAX_THREADS = 1024

PROVIDER_NAMES = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.TENSORRT: "TensorrtExecutionProvider",
}


class AlgorithmSearch(StrEnum):
    """How cuDNN's convolution algorithms are chosen: tried out at the first run, guessed, or always the default."""

    EXHAUSTIVE = "exhaustive"
    HEURISTIC = "heuristic"
    DEFAULT = "default"


@dataclass(frozen=True)
class OrtOptions:
    """How ONNX Runtime runs a model.

    Attributes:
        provider: where; the one asked for runs, or nothing does.
        optimizations: let ONNX Runtime rewrite the graph before it runs it: fuse nodes, change their layout.
        threads: of one operator on a CPU; None leaves it to ONNX Runtime.
        cores: the cores these threads are pinned to, as the operating system numbers them from 0; empty pins nothing.
        tf32: let CUDA round float32 products to TF32. Off by default, because graph equality is the usual question.
        cuda_graph: capture the run and replay it, which needs inputs and outputs at fixed places (`OrtRunner.bind`).
        nhwc: let CUDA lay maps out channels last.
        algorithm_search: how cuDNN's algorithms are chosen.
        memory_limit_bytes: of the GPU arena, which then also grows only as far as it is asked to; None is no limit.
        stream: handle of the CUDA stream to run on; None lets ONNX Runtime make one.

    Raises:
        UsageError: an option of another provider, or out of its bounds.
    """

    provider: Provider = Provider.CPU
    optimizations: bool = True
    threads: int | None = None
    cores: tuple[int, ...] = ()
    tf32: bool = False
    cuda_graph: bool = False
    nhwc: bool = False
    algorithm_search: AlgorithmSearch = AlgorithmSearch.EXHAUSTIVE
    memory_limit_bytes: int | None = None
    stream: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"{self.threads} threads: 1 to {MAX_THREADS} are possible", remedy="Pass another number.")
        if self.cores and len(self.cores) != self.threads:
            raise UsageError(
                f"{self.threads} threads on cores {self.cores}: pinning takes one core a thread",
                remedy="Name as many cores as threads.",
            )
        if self.memory_limit_bytes is not None and self.memory_limit_bytes < 1:
            raise UsageError(f"memory limit {self.memory_limit_bytes} bytes is below 1", remedy="Pass more, or None.")
        foreign = [name for name in self._only_elsewhere() if getattr(self, name) != getattr(OrtOptions, name)]
        if foreign:
            raise UsageError(
                f"provider {self.provider} has no {', '.join(foreign)}", remedy="Leave it out, or use --provider cuda."
            )

    def _only_elsewhere(self) -> tuple[str, ...]:
        """Options that this provider does not have."""
        return {
            Provider.CPU: ("tf32", "cuda_graph", "nhwc", "algorithm_search", "memory_limit_bytes", "stream"),
            Provider.CUDA: ("cores",),
            Provider.TENSORRT: ("cores", "tf32", "nhwc", "algorithm_search", "memory_limit_bytes"),
        }[self.provider]

    def provider_options(self) -> dict[str, str]:
        """What ONNX Runtime's provider is given."""
        stream = {}
        if self.stream is not None:
            stream = {"has_user_compute_stream": "1", "user_compute_stream": str(self.stream)}
        if self.provider is Provider.CPU:
            return {}
        if self.provider is Provider.TENSORRT:
            return {"trt_cuda_graph_enable": _flag(on=self.cuda_graph), **stream}
        arena = {}
        if self.memory_limit_bytes is not None:
            arena = {"gpu_mem_limit": str(self.memory_limit_bytes), "arena_extend_strategy": "kSameAsRequested"}
        return {
            "use_tf32": _flag(on=self.tf32),
            "enable_cuda_graph": _flag(on=self.cuda_graph),
            "prefer_nhwc": _flag(on=self.nhwc),
            "cudnn_conv_algo_search": self.algorithm_search.upper(),
            **arena,
            **stream,
        }

    def session_config(self) -> dict[str, str]:
        """What ONNX Runtime's session is given besides: where nodes may run, and where threads do."""
        config = {_RECORD_PLACEMENT: "1"}
        if self.provider is Provider.CPU:
            config |= {_EXACT_PRODUCTS: "1", _STOP_WAITING: "1"}
        if self.provider is not Provider.CPU:
            config[_NO_CPU_FALLBACK] = "1"
        if len(self.cores) > 1:
            # The calling thread takes part and pins itself; ONNX Runtime counts cores from 1.
            config[_INTRA_OP_AFFINITIES] = ";".join(str(core + 1) for core in self.cores[1:])
        return config

    def __str__(self) -> str:
        if self.provider is Provider.CPU:
            pinned = f" on cores {', '.join(map(str, self.cores))}" if self.cores else ""
            return f"{self.threads} threads{pinned}" if self.threads else "as many threads as cores"
        parts = [
            "TF32 on" if self.tf32 else "TF32 off",
            "CUDA graph" if self.cuda_graph else "",
            "NHWC" if self.nhwc else "",
            f"{self.algorithm_search} search" if self.provider is Provider.CUDA else "",
            f"arena up to {self.memory_limit_bytes / 1e9:.1f} GB" if self.memory_limit_bytes else "",
        ]
        return ", ".join(part for part in parts if part)


def _flag(*, on: bool) -> str:
    return "1" if on else "0"
