import json
import re
from itertools import chain
from statistics import median

from benchmarks.readme import README, RESULTS, block, with_tables
from benchmarks.results import read_report

NAME = next(path.parent.name for path in sorted(RESULTS.glob("*/latency.json")))


def test_the_readmes_tables_are_those_of_the_results() -> None:
    text = README.read_text(encoding="utf-8")

    assert with_tables(text) == text
    assert text.count("<!-- latency of ") >= 1
    assert text.count("<!-- gains of ") >= 1


def test_every_committed_result_can_be_read_and_was_checked_for_parity() -> None:
    found = sorted(RESULTS.glob("*/latency.json"))

    assert found
    for path in found:
        for row in read_report(path).rows:
            assert row.measurement is None or row.parity
        assert path.with_suffix(".md").exists()
        assert path.with_suffix(".html").exists()


def test_the_latencies_name_the_machine_and_have_every_row_of_a_network() -> None:
    report = read_report(RESULTS / NAME / "latency.json")

    lines = block("latency", NAME).splitlines()

    first = report.rows[0].key.network
    assert any(report.machine in line and first in line for line in lines)
    expected = {row.key.case for row in report.rows if row.key.network == first}
    assert {line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")} == expected | {
        "row",
        "---",
    }


def test_the_gains_are_medians_over_medians() -> None:
    """Worked out from the raw samples of the JSON."""
    rows = json.loads((RESULTS / NAME / "latency.json").read_text())["rows"]
    found = {(r["network"], r["case"]): r["measurement"] for r in rows}
    medians = {key: median(chain.from_iterable(m["rounds_ns"])) for key, m in found.items()}

    lines = [line for line in block("gains", NAME).splitlines() if line.startswith("| FCN")]

    assert len(lines) == len({network for network, _ in found})
    for line in lines:
        network = line.split(" | ")[0].removeprefix("| ")
        pairs = [("ort-simplified", "ort"), ("openvino-plain", "openvino"), ("pytorch", "ort")]
        expected = [f"{medians[network, slow] / medians[network, fast]:.2f}" for slow, fast in pairs]
        assert re.findall(r"([\d.]+) \(", line) == expected
