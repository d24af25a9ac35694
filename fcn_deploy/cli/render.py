"""What `bench`, `compare` and `report` share: tables of a report, the files they write, the exit code."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.engine.run import BenchProgress
from benchmarks.report import table
from benchmarks.report.page import side_by_side, write_markdown, write_page
from benchmarks.report.results import BenchReport, Row, RowStatus, write_report
from benchmarks.report.table import computes, duration, sentences
from fcn_deploy.cli.console import err, out, plain_table, print_line
from fcn_deploy.errors import MeasurementError, OutputError, ParityError
from fcn_deploy.evaluation.page import score, share
from fcn_deploy.evaluation.scores import Evaluation
from fcn_deploy.parity.bisect import LayerReport
from fcn_deploy.parity.compare import Comparison, joint_mean_iu
from fcn_deploy.parity.report import ParityReport

if TYPE_CHECKING:
    from exporters.export import ExportResult
    from exporters.precision.half import HalfReport
    from exporters.precision.int8 import Quantization
    from exporters.precision.reduce import Reduction
    from exporters.rewrite import PassReport, Rewriting
    from exporters.simplify import Simplification
    from fcn_deploy.artifact.engine import Engine


def print_parity(report: ParityReport) -> None:
    """Print every comparison, the bounds they were held to, and the verdict."""
    by_maps = report.tier.mean_iu is not None
    columns = ("error/range", "rel. L2", "SNR dB", "labels =", "flips", "mean IU" if by_maps else "clear")
    table = plain_table(f"{report.candidate} against {report.reference}", "input", *columns)
    for c in report.comparisons:
        figures = "", "", ""
        if isinstance(c, Comparison):
            figures = f"{c.relative_error:.1e}", f"{c.relative_l2:.1e}", f"{c.snr_db:.1f}"
        last = f"{c.mean_iu:.4f}" if by_maps else str(c.clear_flips)
        table.add_row(escape(c.input_name), *figures, f"{c.label_agreement:.3%}", str(c.flips), last)
    out.print(table)
    if report.exact:
        _print_exact(report)
    _print_verdict(report)


def placed(placement: Mapping[str, int]) -> str:
    """Where a session says its nodes run, e.g. `46 of 46 nodes on CPUExecutionProvider`."""
    total = sum(placement.values())
    return ", ".join(f"{count} of {total} nodes on {name}" for name, count in placement.items())


def print_layers(report: LayerReport) -> None:
    """Print how far every layer is from PyTorch's, and where it begins."""
    print_line(f"every layer against PyTorch on {escape(report.input_name)}:")
    table = plain_table("", "layer", "error/range", "SNR dB")
    for layer in report.layers:
        table.add_row(escape(layer.name), f"{layer.relative_error:.1e}", f"{layer.snr_db:.1f}")
    out.print(table)
    print_line(escape(report.verdict))


def _print_exact(report: ParityReport) -> None:
    table = plain_table("Each side against float64: max error / range", "input", "PyTorch float32", "artifact")
    for errors in report.exact:
        table.add_row(escape(errors.input_name), f"{errors.reference:.2e}", f"{errors.candidate:.2e}")
    out.print(table)


def _print_verdict(report: ParityReport) -> None:
    tier, worst = report.tier, report.worst
    measured = isinstance(worst, Comparison) and tier.max_error is not None
    bounds = [f"max error / range <= {tier.max_error:g}" if measured else ""]
    bounds += [f"labels equal >= {tier.label_agreement:.3%}" if tier.label_agreement is not None else ""]
    bounds += [f"clear flips <= {tier.clear_flips}" if tier.clear_flips is not None else ""]
    bounds += [f"mean IU {joint_mean_iu(report.comparisons):.4f} >= {tier.mean_iu:g}" if tier.mean_iu else ""]
    just = ""
    if isinstance(worst, Comparison) and tier.max_error is not None:
        just = f", which a bound of {worst.passing_tolerance:.1e} would just pass"
    verdict = "[bold green]passed[/]" if report.passed else "[bold red]FAILED[/]"
    print_line(
        f"{verdict}  tier {tier.name}: {', '.join(b for b in bounds if b)}; worst input {escape(worst.input_name)}"
        f"{just if report.passed else ''}"
    )


_INTERRUPTED = 130


def show_report(report: BenchReport) -> None:
    """A table per network and shape, remarks, and what it all means."""
    for title, rows in table.groups(report):
        shown = plain_table(f"{title} on {report.machine}", *table.NARROW)
        baseline = table.baseline_of(rows)
        for row in rows:
            shown.add_row(*(escape(cell) for cell in table.narrow_cells(report, row, baseline)))
        out.print(shown)
        print_line("\n".join(escape(line) for line in _placements(rows)))
    for remark in table.remarks(report):
        print_line(f"[yellow]{escape(remark)}[/]")
    for sentence in sentences(report):
        print_line(escape(sentence))


def show_side_by_side(reports: Sequence[BenchReport]) -> None:
    """Medians of the rows that the first report shares with others."""
    shown = plain_table("side by side", "row", *(report.machine for report in reports))
    for cells in side_by_side(reports):
        shown.add_row(*(escape(cell) for cell in cells))
    out.print(shown)


def write_outputs(reports: Sequence[BenchReport], page: Path | None, markdown: Path | None, json: Path | None) -> None:
    """Write what was asked for, the raw figures first; nothing where nothing was measured.

    Raises:
        OutputError: a file cannot be written; the others are all the same.
    """
    targets: tuple[tuple[Path | None, Callable[[Path], None]], ...] = (
        (json, lambda path: write_report(reports[0], path)),
        (markdown, lambda path: write_markdown(reports, path)),
        (page, lambda path: write_page(reports, path)),
    )
    if not any(row.measurement for report in reports for row in report.rows):
        return
    failure: OutputError | None = None
    for path, write in targets:
        if path is not None:
            try:
                write(path)
                print_line(f"wrote {escape(str(path))}")
            except OutputError as error:
                failure = failure or error
    if failure is not None:
        raise failure


def leave(report: BenchReport) -> None:
    """End with the code of the worst that happened.

    Raises:
        ParityError: a row computes something else than the network.
        MeasurementError: a row is unstable, or none was measured.
    """
    if report.interrupted:
        raise typer.Exit(_INTERRUPTED)
    wrong = [f"{row.key}: {row.problem}" for row in report.rows if row.status is RowStatus.WRONG]
    if wrong:
        raise ParityError("; ".join(wrong), remedy="Run `fcn-deploy verify --exact` to see which side is off.")
    measured = [row for row in report.rows if row.measurement is not None]
    if not measured:
        raise MeasurementError("no row could be measured", remedy="The remarks above say why.")
    unstable = [row.key.case for row in measured if row.measurement is not None and not row.measurement.stable]
    if unstable:
        raise MeasurementError(
            f"{len(unstable)} of {len(measured)} rows are unstable: {', '.join(unstable)}",
            remedy="Everything was written. Close what else runs, or pass a longer --duration.",
        )


def _placements(rows: Sequence[Row]) -> list[str]:
    """Where the session says its nodes run; rows that agree share a line."""
    cases: dict[str, list[str]] = {}
    for row in rows:
        if row.placement:
            cases.setdefault(placed(row.placement), []).append(row.key.case)
    return [f"{where} ({', '.join(names)})" for where, names in cases.items()]


class LiveTable:
    """Shows a benchmark's progress on stderr, for as long as the block lasts."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=err)
        self._task = self._bar.add_task("", total=1.0, left="")
        self._live = Live(self._bar, console=err, transient=True) if err.is_terminal else None
        self._start = time.monotonic()
        self._step = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: BenchProgress) -> None:
        """Show what is being done, every row's latest figure, and the time left as far as it is known."""
        if self._live is None:
            self._say(progress.step.partition(":")[0])
            return
        elapsed, left = time.monotonic() - self._start, progress.remaining_s
        done = 0.0 if left is None else elapsed / (elapsed + left)
        text = "" if left is None else f"about {left:.0f} s left"
        self._bar.update(self._task, description=escape(progress.step), completed=done, left=text)
        self._live.update(Group(_table(progress.rows), self._bar))

    def _say(self, step: str) -> None:
        """A round is one line, however many rows take part in it."""
        if step != self._step:
            self._step = step
            print_line(f"{time.monotonic() - self._start:6.1f} s  {escape(step)}", to_stderr=True)


def _table(rows: tuple[Row, ...]) -> Table:
    table = plain_table("", "row", "computes", "samples", "median")
    for row in rows:
        measured = row.measurement
        figures = (str(measured.samples_ns.size), duration(measured.median_ns)) if measured else ("", str(row.status))
        table.add_row(escape(row.key.case), escape(computes(row)), *figures)
    return table


def print_engine(engine: "Engine") -> None:
    """What an engine is, takes, gives, computes in, and where it runs."""
    from rich.markup import escape

    from fcn_deploy.cli.console import print_line

    inputs, outputs = (", ".join(map(str, specs)) for specs in (engine.inputs, engine.outputs))
    print_line(f"[bold]{engine.info.network}[/], {engine.info.provenance}")
    print_line(escape(f"in: {inputs}; out: {outputs}"))
    print_line(escape(layer_line(engine)))
    print_line(escape(f"runs with {engine.flavour} {engine.version} on {engine.built_for}"))


def layer_line(engine: "Engine") -> str:
    """What share of the layers computes in what was asked for, and how that is known."""
    layers, precision = engine.layers, engine.info.precision
    kinds = ", ".join(f"{count} in {kind}" for kind, count in layers.counts.items())
    known = {
        "engine": "as TensorRT's inspector reports the engine",
        "builder": "as TensorRT's builder lists the engine",
    }.get(layers.seen_in, "as the parser typed the network; the engine's own layers show on a GPU only")
    return f"{layers.share(precision):.0%} of {sum(layers.counts.values())} layers in {precision} ({kinds}), {known}"


def print_evaluation(result: Evaluation, output: Path) -> None:
    """Print the classes that occur, the overall scores, and what deployment cost."""
    count = len(result.images)
    images = f"images: {count}" if not result.failures else f"images: {count} of {count + len(result.failures)}"
    print_line(f"{escape(result.source.runtime)}, {escape(result.source.dataset)}, {images}")
    _print_classes(result)
    found = result.scores
    print_line(
        f"[bold]mean IU {score(found.mean_iu)}[/], pixel accuracy {share(found.pixel_accuracy)}, "
        f"mean accuracy {share(found.mean_accuracy)}, frequency-weighted IU {score(found.frequency_weighted_iu)}"
    )
    _print_loss(result)
    if result.resumed:
        print_line(f"finished by an earlier run: {result.resumed} of {count}")
    print_line(f"[bold]{result.info.network}[/], {result.info.provenance}")
    print_line(f"wrote {escape(str(output))}")
    if result.info.provenance.untrained:
        print_line("untrained weights: the scores mean nothing", to_stderr=True)


def _print_classes(result: Evaluation) -> None:
    theirs = ("PyTorch's",) if result.pytorch_scores is not None else ()
    table = plain_table("", "class", "IU", *theirs, "accuracy", "of the truth")
    shown = [of_class for of_class in result.classes if of_class.occurs]
    for of_class in shown:
        both = (score(of_class.iu), *([score(of_class.pytorch_iu)] if theirs else []))
        table.add_row(escape(of_class.name), *both, share(of_class.accuracy), share(of_class.truth_share))
    out.print(table)
    left_out = len(result.classes) - len(shown)
    if left_out:
        print_line(f"{left_out} classes are neither in the truth nor among the labels")


def _print_loss(result: Evaluation) -> None:
    both, pytorch = result.agreement, result.pytorch_scores
    if both is None or pytorch is None:
        return
    print_line(
        f"[bold]mean IU lost in deployment: {score(result.mean_iu_lost)}[/] ({escape(result.source.pytorch or '')} has "
        f"{score(pytorch.mean_iu)}); same label in {both.pixel_accuracy:.3%} of the pixels, mean IU between both "
        f"{score(both.mean_iu)}"
    )


def print_reduction(reduction: "Reduction") -> None:
    """Print what became of the graph's layers."""
    from exporters.precision.int8 import Quantization

    if isinstance(reduction, Quantization):
        _print_quantization(reduction)
    else:
        _print_half(reduction)


def _print_quantization(found: "Quantization") -> None:
    print_line(f"signal to quantisation noise of every layer, {found.method} over {found.images} images:")
    table = plain_table("", "layer", "dB", "in")
    for layer in found.layers:
        table.add_row(escape(layer.name), f"{layer.sqnr_db:.1f}", "float" if layer.in_float else "int8")
    out.print(table)
    kept = [layer.name for layer in found.layers if layer.in_float]
    stays = f"; {', '.join(kept)} stayed in float for it" if kept else ""
    wanted = f"at least {found.min_agreement:g} wanted" if found.min_agreement else "not judged: the weights are random"
    print_line(
        f"int8 in {len(found.layers) - len(kept)} of {len(found.layers)} layers, scores and up-sampling in float: "
        f"mean IU with the float graph {found.mean_iu:.4f}, {wanted}{escape(stays)}"
    )


def print_price(result: "ExportResult") -> None:
    """What the reduced precision costs in accuracy, and what it saves in size."""
    if result.reduction is None:
        return
    table = plain_table("", "", "size", "labels =", "mean IU")
    table.add_row("fp32", f"{result.float_bytes / 1e6:.1f} MB", "", "")
    figures = (f"{result.parity.label_agreement:.3%}", f"{result.parity.mean_iu:.4f}") if result.parity else ("", "")
    table.add_row(str(result.info.precision), f"{result.file_bytes / 1e6:.1f} MB", *figures)
    out.print(table)


def _print_half(found: "HalfReport") -> None:
    print_line(
        f"{found.precision} in {found.nodes} nodes, float32 in {found.float_nodes}; the largest magnitude seen is "
        f"{found.largest:.4g}, the largest that fits {found.limit:.4g}"
    )
    for name, factor in found.rescaled.items():
        print_line(f"rescaled {escape(name)} by {factor:g}, which its readers undo exactly")


def print_simplification(simplification: "Simplification") -> None:
    """One line: the nodes before and after, and what shows that nothing else changed."""
    s = simplification
    if s.refused is not None:
        print_line(f"[yellow]kept the graph as exported[/], {s.nodes_before} nodes: {escape(s.refused)}")
        return
    operators = {*s.before, *s.after}
    changes = [f"{op} {s.before.get(op, 0)} -> {s.after.get(op, 0)}" for op in sorted(operators)]
    changed = ", ".join(c for c in changes if c.split()[1] != c.split()[3]) or "nothing to do"
    proof = _proof(s.compared_nodes, s.difference or 0.0)
    print_line(f"simplified {s.nodes_before} -> {s.nodes_after} nodes ({changed}); {proof}")


def print_rewriting(rewriting: "Rewriting") -> None:
    """A line per rewrite with every place and its reason, then what one run takes before and after."""
    for report in rewriting.passes:
        _print_pass(report)
    before, after = rewriting.before, rewriting.after
    macs = f"multiply-adds {before.multiply_adds / 1e9:.1f} -> {after.multiply_adds / 1e9:.1f} G"
    share = f" ({after.multiply_adds / before.multiply_adds - 1:+.0%})" if before.multiply_adds else ""
    moved = f"bytes moved {before.moved_bytes / 1e9:.2f} -> {after.moved_bytes / 1e9:.2f} GB"
    nodes = f"nodes {before.nodes} -> {after.nodes}"
    print_line(f"rewritten for {rewriting.target}: {macs}{share}, {moved}, {nodes}")


def _print_pass(report: "PassReport") -> None:
    if report.undone is not None:
        print_line(f"[yellow]{report.name} undone:[/] {escape(report.undone)}")
        return
    if not report.sites:
        print_line(f"{report.name}: nothing to do")
    for site in report.sites:
        done = f"at {site.node}: {site.reason}" if site.applied else f"not at {site.node}: {site.reason}"
        print_line(f"{report.name} {escape(done)}")
    if report.applied:
        print_line(f"{report.name}: {_proof(report.compared_nodes, report.difference)}")


def _proof(compared_nodes: int, difference: float) -> str:
    if not compared_nodes:
        return "equal by structure"
    return f"nodes that differ in structure: {compared_nodes}, in value: by {difference:.1e} of the range"
