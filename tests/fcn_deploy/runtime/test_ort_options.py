import pytest

from fcn_deploy import OrtOptions, Provider, UsageError
from fcn_deploy.runtime.ort_options import AlgorithmSearch
from tests.messages import states


def test_a_cpu_has_no_provider_options() -> None:
    assert OrtOptions().provider_options() == {}
    assert OrtOptions().session_config() == {
        "session.record_ep_graph_assignment_info": "1", "session.x64quantprecision": "1",
        "session.force_spinning_stop": "1",
    }  # fmt: skip


def test_cuda_by_onnxruntimes_names() -> None:
    options = OrtOptions(Provider.CUDA, memory_limit_bytes=4_000_000_000, stream=77, tf32=True)

    assert options.provider_options() == {
        "use_tf32": "1",
        "enable_cuda_graph": "0",
        "prefer_nhwc": "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "gpu_mem_limit": "4000000000",
        "arena_extend_strategy": "kSameAsRequested",
        "has_user_compute_stream": "1",
        "user_compute_stream": "77",
    }


def test_tf32_is_off_unless_asked_for() -> None:
    assert OrtOptions(Provider.CUDA).provider_options()["use_tf32"] == "0"


@pytest.mark.parametrize("provider", [Provider.CUDA, Provider.TENSORRT])
def test_no_provider_may_leave_nodes_to_the_cpu(provider: Provider) -> None:
    assert OrtOptions(provider).session_config()["session.disable_cpu_ep_fallback"] == "1"


def test_threads_are_pinned_one_a_core_and_the_caller_pins_itself() -> None:
    """ONNX Runtime counts processors from 1 and leaves the calling thread alone."""
    config = OrtOptions(threads=3, cores=(0, 2, 5)).session_config()

    assert config["session.intra_op_thread_affinities"] == "3;6"
    assert "session.intra_op_thread_affinities" not in OrtOptions(threads=1, cores=(4,)).session_config()


@pytest.mark.parametrize(("given", "facts"), [
    ({"threads": 0}, "0 threads 1 1024"),
    ({"threads": 2, "cores": (0,)}, "2 threads 0"),
    ({"cores": (0,)}, "threads cores"),
    ({"provider": Provider.CUDA, "memory_limit_bytes": 0}, "memory 0 1"),
    ({"tf32": True, "nhwc": True}, "cpu tf32 nhwc"),
    ({"algorithm_search": AlgorithmSearch.DEFAULT}, "cpu algorithm_search"),
    ({"provider": Provider.CUDA, "threads": 1, "cores": (0,)}, "cuda cores"),
    ({"provider": Provider.TENSORRT, "nhwc": True}, "tensorrt nhwc"),
])  # fmt: skip
def test_options_out_of_their_bounds(given: dict[str, object], facts: str) -> None:
    with pytest.raises(UsageError, check=states(facts)):
        OrtOptions(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "text"), [
    (OrtOptions(), "as many threads as cores"),
    (OrtOptions(threads=2, cores=(0, 1)), "2 threads on cores 0, 1"),
    (OrtOptions(Provider.CUDA, cuda_graph=True, nhwc=True), "TF32 off, CUDA graph, NHWC, exhaustive search"),
    (OrtOptions(Provider.CUDA, tf32=True, memory_limit_bytes=2**32), "TF32 on, exhaustive search, arena up to 4.3 GB"),
])  # fmt: skip
def test_options_in_words(options: OrtOptions, text: str) -> None:
    assert str(options) == text
