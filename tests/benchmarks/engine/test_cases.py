import importlib.util

import pytest

from benchmarks.engine.cases import CASES, Graph, Runtime, choose
from fcn_deploy import Provider, UsageError
from fcn_deploy.parity.tolerance import TIERS
from tests.messages import states


def names(provider: Provider, *wanted: str) -> list[str]:
    return [case.name for case in choose(wanted, provider)]


def test_every_name_is_used_once_and_every_precision_has_a_tier() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert {str(case.precision) for case in CASES} <= TIERS.keys()


def test_what_a_cpu_measures() -> None:
    assert names(Provider.CPU) == [
        "pytorch", "compile", "openvino-plain", "openvino", "openvino-bf16", "ncnn-plain", "ncnn", "mnn-plain", "mnn",
        "ort-plain", "ort-simplified", "ort", "ort-prepared", "ort-e2e",
    ]  # fmt: skip


def test_what_a_gpu_measures_besides() -> None:
    found = names(Provider.CUDA)

    assert {"pytorch-fp16", "pytorch-tf32", "compile-fp16", "ort-tf32", "ort-nhwc", "ort-graph"} <= set(found)
    assert not any(name.startswith("openvino") for name in found)


def test_every_provider_measures_the_peer_the_plain_graph_and_ours() -> None:
    for provider in Provider:
        found = choose((), provider)
        assert {Graph.NETWORK, Graph.PLAIN, Graph.BUNDLE} <= {case.graph for case in found}
        assert any(case.end_to_end for case in found)


def test_chosen_rows_keep_the_tables_order() -> None:
    assert names(Provider.CPU, "ort", "pytorch") == ["pytorch", "ort"]


def test_an_unknown_row_lists_those_that_there_are() -> None:
    with pytest.raises(UsageError, check=states("foo ort-tf32 cpu pytorch compile")) as caught:
        choose(("foo", "ort", "ort-tf32"), Provider.CPU)

    assert "--rows" in caught.value.remedy


def test_a_row_that_is_asked_for_needs_its_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(UsageError, check=states("openvino 'fcn-deploy[openvino]'")):
        choose(("openvino",), Provider.CPU)
    assert any(case.runtime is Runtime.OPENVINO for case in choose((), Provider.CPU))
