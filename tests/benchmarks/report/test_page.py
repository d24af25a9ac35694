import html.parser
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import table
from benchmarks.report.page import markdown, markdown_table, page, require_page, share_of_slowest, write_page
from benchmarks.report.results import Ceilings, NodeTime, Row, RowStatus, WorkEstimate
from benchmarks.report.table import doubts, remarks, summary, without_figures
from benchmarks.stats.timing import Measurement
from fcn_deploy import UsageError
from tests.benchmarks.reports import ENVIRONMENT, half, report, row

ROWS = (
    row("pytorch", 3000, 3010, 2990, 3005, 2995),
    row("ort-plain", 2000, 2010, 1990, 2005, 1995),
    row("ort", 1500, 1505, 1495, 1502, 1498),
)
REPORT = report(*ROWS)


class Page(html.parser.HTMLParser):
    """What a browser would find: elements that are opened and closed in order, and everything it would fetch."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.seen: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]

    def handle_startendtag(self, tag: str, _attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_well_formed_and_fetches_nothing() -> None:
    found = Page(page([REPORT]))

    assert found.open == []
    assert found.fetched == []
    assert "script" not in found.seen
    assert found.seen.count("svg") == 2
    assert "http" not in " ".join(found.words)


def test_plots_take_the_pages_colour_and_width() -> None:
    text = page([REPORT])

    assert "currentColor" in text
    assert "#010203" not in text
    assert not re.search(r"<svg [^>]*width=", text)


def test_ids_of_several_plots_do_not_clash() -> None:
    ids = re.findall(r'<(?:clipPath|path|g|use) id="([^"]+)"', page([REPORT]))
    clips = [i for i in ids if not re.fullmatch(r"[a-z]+\d*_\d+|(figure|axes|patch|line2d|text|matplotlib)[.\w]*", i)]

    assert len(clips) == len(set(clips))


def test_names_in_a_page_are_escaped() -> None:
    strange = replace(ROWS[0], problem="<b>&", status=RowStatus.FAILED, measurement=None)

    text = page([report(strange, *ROWS[1:])])

    assert "&lt;b&gt;&amp;" in text
    assert "<b>&" not in text


def test_the_table_in_markdown() -> None:
    lines = markdown(REPORT).splitlines()
    body = [line for line in lines if line.startswith("| ort ")]

    assert [cell.strip() for cell in body[0].split("|")][1:-1] == [
        "ort", "ONNX Runtime 1.31, plain, fp32; 2 threads", "1.50 s", "1.49 .. 1.51 s", "0.75 ± 0.00", "0.667", "259%",
        "130%", "-", "-", "10.0 s", "-", "5.0e-07", "",
    ]  # fmt: skip
    plain = "| ort-plain | ONNX Runtime 1.31, plain, fp32; 2 threads | 2.00 s | "
    assert plain in "".join(lines)


def test_the_tail_is_the_highest_percentile_that_can_be_told() -> None:
    many = Measurement(1, tuple((i * 1_000_000,) for i in range(1, 201)))

    assert table.tail(many) == "p95 190 ms"
    assert table.tail(Measurement(1, ((1,), (2,)))) == "-"


def test_parts_of_a_run_are_listed_where_they_were_timed() -> None:
    measured = ROWS[2].measurement
    assert measured is not None
    timed = replace(measured, phases_ns={"upload": (2_000_000, 1_000_000, 3_000_000), "device": (5_000_000,)})

    assert table.phases([ROWS[1], replace(ROWS[2], measurement=timed)]) == ["ort: upload 2.00 ms, device 5.00 ms"]
    assert "Parts of a run" in markdown(report(replace(ROWS[2], measurement=timed)))
    assert "Parts of a run" not in markdown(REPORT)


def test_every_line_of_a_table_has_its_columns() -> None:
    failed = replace(ROWS[0], status=RowStatus.OUT_OF_MEMORY, problem="too large", measurement=None)

    for one in (*ROWS, failed):
        assert len(table.cells(REPORT, one, ROWS[1])) == len(table.COLUMNS)
        assert len(table.narrow_cells(REPORT, one, ROWS[1])) == len(table.NARROW)
    assert table.cells(REPORT, failed, ROWS[1])[-1] == "out of memory"


@pytest.mark.parametrize(("nanoseconds", "text"), [
    (1_234_567_890, "1.23 s"), (999_000_000, "999 ms"), (12_345_678, "12.3 ms"), (1_000, "1.00 µs"), (999, "999 ns"),
    (123_456_789_000, "123 s"),
])  # fmt: skip
def test_durations_have_three_digits(nanoseconds: float, text: str) -> None:
    assert table.duration(nanoseconds) == text


def test_without_the_usual_rows_our_fastest_is_the_subject_and_the_plain_graph_the_measure() -> None:
    """As for large batches on a GPU, where few rows are measured."""
    plain, ours = half("ort-plain-half-nhwc-graph", 6.0, 6.0, 6.0), half("ort-nhwc-graph", 0.5, 0.5, 0.5)
    found = report(half("pytorch-fp16", 9.0, 9.0, 9.0), plain, replace(ours, graph="bundle"))

    (sentence,) = summary(found)
    lines = markdown_table(found, found.rows)

    assert sentence == (
        "FCN-8s fp16, 1x3x500x500, cuda: fastest in fp16 is ort-nhwc-graph (ONNX Runtime 1.31, bundle, fp16), 500 µs "
        "at an error of 5.0e-07 of the range, 12.00 (12.00 .. 12.00) times as fast as ort-plain-half-nhwc-graph."
    )
    assert [line.split(" | ")[4] for line in lines[2:]] == ["1.50 ± 0.00", "1", "0.08 ± 0.00"]


def test_a_sentence_says_who_is_fastest_at_what_error() -> None:
    """A faster row in another precision, and one beyond the bounds, are named beside the fastest exact one."""
    inexact = replace(
        row("mnn", *(900, 901, 899)), parity=({"relative_error": 9e-5, "flips": 0},), problem="beyond fp32"
    )
    half_precision = replace(
        row("openvino-bf16", *(800, 801, 799)), precision="bf16", parity=({"relative_error": 6e-3, "flips": 0},)
    )

    assert summary(report(*ROWS, inexact, half_precision)) == [
        "FCN-8s, 1x3x500x500, cpu: fastest in fp32 is ort (ONNX Runtime 1.31, plain, fp32), 1.50 s at an error of "
        "5.0e-07 of the range, 1.33 (1.33 .. 1.34) times as fast as ort-plain. Faster, but less exact: "
        "mnn (ONNX Runtime 1.31, fp32), 900 ms at an error of 9.0e-05 of the range; "
        "openvino-bf16 (ONNX Runtime 1.31, bf16), 800 ms at an error of 6.0e-03 of the range."
    ]


def test_a_faster_row_in_another_precision_is_not_called_less_exact_when_it_is_not() -> None:
    as_exact = replace(row("openvino-bf16", *(800, 801, 799)), precision="bf16")

    assert summary(report(*ROWS, as_exact))[0].endswith(
        "as fast as ort-plain. Faster: openvino-bf16 (ONNX Runtime 1.31, bf16), 800 ms at an error of 5.0e-07 of the "
        "range."
    )


def test_rows_in_groups_are_named_with_those_that_were_in_all() -> None:
    common = row("ort-plain", *(2000.0,) * 6), row("ort", *(1500.0,) * 6)
    found = report(*common, row("pytorch", *(3000.0,) * 3), replace(row("mnn", *(900.0,) * 3), first_turn=3))
    alone = report(row("ort-plain", *(2000.0,) * 3), replace(row("ort", *(900.0,) * 3), first_turn=3))

    assert remarks(found)[0] == (
        "FCN-8s, 1x3x500x500, cpu: memory was too short for all rows at once; ort-plain and ort took turns with each "
        "group of the others."
    )
    assert remarks(alone)[0] == "FCN-8s, 1x3x500x500, cpu: memory was too short for all rows at once."


def test_a_row_beyond_its_own_limit_makes_the_limit_doubtful() -> None:
    """10 G multiply-adds at 1e10 a second cannot take less than a second; a runtime with its own tricks can."""
    ceilings = Ceilings(1e12, {"fp32": 1e10})
    work = WorkEstimate(10**10, 1, 0)
    beyond, at_limit, peer = (
        replace(row(case, *(ms, ms, ms)), work=work, runtime=runtime)
        for case, ms, runtime in (
            ("ort", 950.0, "ONNX Runtime"), ("pytorch", 980.0, "PyTorch"), ("ncnn", 400.0, "ncnn"),
        )
    )  # fmt: skip

    assert doubts(replace(report(beyond, at_limit, peer), ceilings=ceilings)) == (
        "Doubts: rows beyond their own limit (ort): the device was slower while its rates were measured. Stop other "
        "programs, or measure longer with --duration."
    )


def test_no_difference_is_called_no_difference() -> None:
    same = report(row("ort-plain", 2000, 2010, 1990), row("ort", 2001, 2008, 1992))

    assert "fastest in fp32 is ort " in summary(same)[0]
    assert summary(same)[0].endswith("; no measurable difference from ort-plain.")


def test_a_network_without_figures_has_no_fastest_row() -> None:
    assert summary(report(row("ort"), interrupted=True)) == [
        "FCN-8s, 1x3x500x500, cpu: nothing was measured in fp32.",
        "The run was interrupted: this is what was measured until then.",
    ]


def test_doubts_are_one_line() -> None:
    environment = ENVIRONMENT | {
        "busy_cores_before": 1.5,
        "gpus": [
            {
                "name": "NVIDIA T4", "driver": "580", "other_processes": 2, "other_processes_bytes": 3e9,
            }
        ],
        "gpus_during": [{"name": "NVIDIA T4", "throttled_by": ["power cap"]}],
    }  # fmt: skip
    unstable = row("ort", 100, 100, 150), row("pytorch", 100, 100, 150), row("ort-plain", *(2000, 2001, 2000))

    assert doubts(report(*unstable, environment=environment)) == (
        "Doubts: Before the run other processes kept 1.5 cores busy; NVIDIA T4: 2 other processes hold 3.0 GB on it; "
        "NVIDIA T4 was throttled: power cap; 2 of 3 rows are unstable (ort, pytorch). Stop other programs, or measure "
        "longer with --duration."
    )
    assert doubts(REPORT) == ""


def test_reasons_are_given_once_for_all_the_rows_they_concern() -> None:
    missing = [
        replace(row(case), status=RowStatus.SKIPPED, problem="MNN is not installed") for case in ("mnn", "mnn-plain")
    ]
    wrong = replace(row("compile"), status=RowStatus.WRONG, problem="worse")

    assert without_figures(report(*ROWS, *missing, wrong, row("ort-e2e"))) == [
        "mnn, mnn-plain: skipped: MNN is not installed",
        "compile: wrong: worse",
        "ort-e2e: pending: interrupted before its first sample",
    ]


def test_bars_are_as_long_as_medians() -> None:
    assert [share_of_slowest(one, ROWS) for one in ROWS] == pytest.approx([100, 2000 / 30, 50])
    assert share_of_slowest(row("ort"), ROWS) == 0
    assert re.findall(r'style="width: ([\d.]+)%"', page([REPORT])) == ["100.0", "66.7", "50.0"]


def test_remarks_name_every_row_without_a_trustworthy_figure() -> None:
    failed = replace(row("pytorch"), status=RowStatus.FAILED, problem="its process ended by SIGSEGV")

    assert table.remarks(report(failed, row("compile"), row("ort", 100, 100, 150), row("ort-plain", 1, 1, 1))) == [
        "FCN-8s 500x500 batch 1 pytorch on cpu: failed: its process ended by SIGSEGV",
        "FCN-8s 500x500 batch 1 compile on cpu: interrupted before its first sample",
        "FCN-8s 500x500 batch 1 ort on cpu: unstable: the last 3 windows' medians differ by 50%; "
        "the median is known to 113% only",
    ]


def test_batches_are_plotted_only_when_there_are_several() -> None:
    several = report(*ROWS, row("ort", 2800, 2810, 2790, batch=2))

    assert "images per second</" in page([several])
    assert "images per second</" not in page([REPORT])


def test_several_machines_stand_side_by_side() -> None:
    other = report(*ROWS[1:], environment={**ENVIRONMENT, "cpu": "Other CPU"})

    text = page([REPORT, other])

    assert "Side by side" in text
    assert text.count("Other CPU, 2 cores") >= 2
    assert Page(text).open == []


def test_slowest_nodes_with_their_share_and_limit() -> None:
    nodes = (NodeTime("conv1", "Conv", 5e8, 36 * 10**9, 10**8), NodeTime("slice", "Slice", 1e6, 0, 10**7))

    text = page([report(ROWS[1], replace(ROWS[2], nodes=nodes))])

    cells = re.findall(r"<td>([^<]*)</td>", text)
    assert cells[-12:] == [
        "conv1", "Conv", "500 ms", "33.3%", "36.00 G", "80%", "slice", "Slice", "1.00 ms", "0.1%", "-", "50%",
    ]  # fmt: skip


def test_a_page_needs_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else object())

    with pytest.raises(UsageError, match="matplotlib") as caught:
        require_page()
    assert "fcn-deploy[report]" in caught.value.remedy


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    write_page([REPORT], tmp_path / "page.html")

    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_a_report_without_any_figure_still_makes_a_page() -> None:
    empty: tuple[Row, ...] = (replace(row("ort"), status=RowStatus.FAILED, problem="odd"),)

    assert Page(page([report(*empty, ceilings=None)])).open == []
    assert "odd" in markdown(report(*empty))
