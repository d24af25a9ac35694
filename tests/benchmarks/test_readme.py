from benchmarks.readme import README, RESULTS, block, with_tables
from benchmarks.results import read_report


def test_the_readmes_tables_are_those_of_the_results() -> None:
    text = README.read_text(encoding="utf-8")

    assert with_tables(text) == text
    assert text.count("<!-- latency of ") >= 1


def test_every_committed_result_can_be_read_and_was_checked_for_parity() -> None:
    found = sorted(RESULTS.glob("*/latency.json"))

    assert found
    for path in found:
        for row in read_report(path).rows:
            assert row.measurement is None or row.parity
        assert path.with_suffix(".md").exists()
        assert path.with_suffix(".html").exists()


def test_a_block_names_the_machine_and_has_every_row() -> None:
    name = next(path.parent.name for path in sorted(RESULTS.glob("*/latency.json")))
    report = read_report(RESULTS / name / "latency.json")

    lines = block(name).splitlines()

    assert any(report.machine in line for line in lines)
    assert sum(line.startswith("| ") for line in lines) >= len(report.rows)
