import pytest

from fcn_deploy import OrtOptions, Provider, UsageError
from tests.messages import states


def test_a_cpu_has_no_provider_options() -> None:
    assert OrtOptions().provider_options() == {}
    assert OrtOptions().session_config() == {
        "session.record_ep_graph_assignment_info": "1", "session.x64quantprecision": "1",
        "session.force_spinning_stop": "1",
    }  # fmt: skip


def test_cuda_by_onnxruntimes_names() -> None:
    options = OrtOptions(Provider.CUDA, stream=77, tf32=True)

    assert options.provider_options() == {
        "use_tf32": "1",
        "enable_cuda_graph": "0",
        "prefer_nhwc": "0",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "has_user_compute_stream": "1",
        "user_compute_stream": "77",
    }


def test_tf32_is_off_unless_asked_for() -> None:
    assert OrtOptions(Provider.CUDA).provider_options()["use_tf32"] == "0"


@pytest.mark.parametrize("provider", [Provider.CUDA, Provider.TENSORRT])
def test_no_provider_may_leave_nodes_to_the_cpu(provider: Provider) -> None:
    assert OrtOptions(provider).session_config()["session.disable_cpu_ep_fallback"] == "1"


@pytest.mark.parametrize(("given", "facts"), [
    ({"threads": 0}, "0 threads 1 1024"),
    ({"tf32": True, "nhwc": True}, "cpu tf32 nhwc"),
    ({"provider": Provider.TENSORRT, "nhwc": True}, "tensorrt nhwc"),
])  # fmt: skip
def test_options_out_of_their_bounds(given: dict[str, object], facts: str) -> None:
    with pytest.raises(UsageError, check=states(facts)):
        OrtOptions(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "text"), [
    (OrtOptions(), "as many threads as cores"),
    (OrtOptions(threads=2), "2 threads"),
    (OrtOptions(Provider.CUDA, cuda_graph=True, nhwc=True), "TF32 off, CUDA graph, NHWC, exhaustive search"),
    (OrtOptions(Provider.CUDA, tf32=True), "TF32 on, exhaustive search"),
])  # fmt: skip
def test_options_in_words(options: OrtOptions, text: str) -> None:
    assert str(options) == text
