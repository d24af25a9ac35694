import json
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median

import pytest

from benchmarks import readme
from benchmarks.readme import DOCUMENTS, RESULTS, block, with_tables
from benchmarks.report.results import read_report, write_report
from tests.benchmarks.reports import ENVIRONMENT, half, report, row

PEERS = ("ort-plain", "ncnn-plain", "mnn-plain", "openvino-plain", "pytorch")
NAME = next(path.parent.name for path in sorted(RESULTS.glob("*/latency.json")))


def test_the_documents_tables_are_those_of_the_results() -> None:
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]

    assert [with_tables(text) for text in texts] == texts
    for kind in ("latency", "gains", "gpu"):
        assert sum(text.count(f"<!-- {kind} of ") for text in texts) == 1


def test_without_results_of_a_gpu_none_are_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_report(report(row("ort", 1.0)), tmp_path / "cpu" / "latency.json")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)

    assert block("gpu", "newest").splitlines()[2].startswith("No results of a GPU are committed yet")


def test_the_newest_results_of_a_gpu_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of rows from pixels to labels, those on the device alone do not count."""
    ends = [replace(half("session-run-e2e", 9.0, to_labels=True), end_to_end=True),
            replace(half("ort-graph-e2e", 1.6, to_labels=True), end_to_end=True, graph="bundle"),
            replace(half("ort-graph", 0.1, to_labels=True), graph="bundle")]  # fmt: skip
    compute = [half("pytorch-fp16", 3.0), replace(half("ort-graph", 1.2), graph="bundle"), half("ort-plain-half", 2.0)]
    newer = {**ENVIRONMENT, "date": "2027-01-01T00:00:00+00:00", "gpus": [{"name": "GPU 9", "driver": "1"}]}
    write_report(report(*compute, *ends, environment=newer), tmp_path / "b" / "latency.json")
    write_report(report(half("ort", 5.0)), tmp_path / "a" / "latency.json")
    write_report(report(row("ort", 1.0)), tmp_path / "c" / "latency.json")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)

    lines = block("gpu", "newest").splitlines()

    assert lines[2].startswith(
        "GPU 9, [benchmarks/results/b](benchmarks/results/b/figures.md): `fcn-deploy bench fcn8s`"
    )
    compared = [line.split(" | ")[1:] for line in lines if line.startswith("| FCN-8s")]
    assert compared == [
        ["1.20 ms (ort-graph)", "2.00 ms (ort-plain-half)", "-", "3.00 ms (pytorch-fp16)", "- |"],
        ["1.60 ms (ort-graph-e2e)", "-", "9.00 ms (session-run-e2e)", "-", "- |"],
    ]


def test_every_committed_result_can_be_read_and_was_checked_for_parity() -> None:
    found = sorted(RESULTS.glob("*/latency.json"))

    assert found
    for path in found:
        for measured in read_report(path).rows:
            assert measured.measurement is None or measured.parity
        assert path.with_suffix(".md").exists()
        assert path.with_suffix(".html").exists()


def test_the_latencies_name_the_machine_and_have_every_row_of_a_network() -> None:
    measured = read_report(RESULTS / NAME / "latency.json")

    lines = block("latency", NAME).splitlines()

    first = measured.rows[0].key.network
    assert any(measured.machine in line and first in line for line in lines)
    expected = {row.key.case for row in measured.rows if row.key.network == first}
    assert {line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")} == expected | {
        "row",
        "---",
    }


def test_the_gains_are_medians_over_pairs_of_rounds() -> None:
    """Worked out from the raw samples of the JSON."""
    rows = json.loads((RESULTS / NAME / "latency.json").read_text())["rows"]
    found = {(r["network"], r["case"]): r for r in rows}
    turns = {
        key: dict(enumerate(map(median, r["measurement"]["rounds_ns"]), r["first_turn"])) for key, r in found.items()
    }

    lines = [line for line in block("gains", NAME).splitlines() if line.startswith("| FCN")]

    assert len(lines) == len({network for network, _ in found})
    for line in lines:
        network = line.split(" | ")[0].removeprefix("| ")
        expected = []
        pooled = {
            case: median(chain.from_iterable(r["measurement"]["rounds_ns"]))
            for (name, case), r in found.items()
            if name == network
        }
        for slow, fast in (*((peer, "ort") for peer in PEERS), ("openvino-plain", "openvino")):
            slower, faster = turns[network, slow], turns[network, fast]
            shared = slower.keys() & faster.keys()
            # All rows took turns with ours; those of other runtimes not always with one another.
            assert shared or fast == "openvino"
            value = median(slower[turn] / faster[turn] for turn in shared) if shared else pooled[slow] / pooled[fast]
            expected.append(f"{value:.2f}")
        assert re.findall(r"([\d.]+) \(", line) == expected
