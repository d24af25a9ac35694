"""Rendering of results: every table and every summary line that commands print.

Modules of other packages are imported where they are used, so that `inspect` does not load PyTorch.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from rich.tree import Tree

import fcn_deploy as fd
from fcn_deploy.choices import ImageInput
from fcn_deploy.cli.console import err, folding, out, print_error, print_line, print_table, print_untrained

if TYPE_CHECKING:
    from benchmarks.engine.run import BenchProgress
    from exporters.rewrite import PassReport
    from exporters.simplify import Simplification
    from fcn_deploy.parity.bisect import LayerReport
    from fcn_deploy.serving.server import Endpoint

_SHOWN_CLASSES = 3
_SHOWN_BYTES = 50_000
_STATUS_COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}
_VERDICT_COLOURS = {"faster": "green", "slower": "bold red", "no difference": "dim"}
_LAYERS_PARSED = "from TensorRT's parser, before fusion; the engine's own layers can be read on a GPU only"
_LAYERS_SEEN_IN = {
    "engine": "from TensorRT's engine inspector",
    "builder": "from the log of TensorRT's builder",
}

_BILLION = 10**9


def print_export(result: "fd.ExportResult") -> None:
    """Print what was done to the graph, how it compares with PyTorch, and what was written."""
    if result.simplification is not None:
        _print_simplification(result.simplification)
    if result.rewriting is not None:
        _print_rewriting(result.rewriting)
    if isinstance(result.reduction, fd.Quantization):
        _print_quantization(result.reduction)
    elif result.reduction is not None:
        _print_half(result.reduction)
    if result.parity is None:
        print_line("[yellow]not compared with PyTorch[/] (--no-verify)")
    else:
        _print_parity(result.parity)
    if result.reduction is not None:
        _print_price(result)
    _print_network(result.info)
    if isinstance(result.info.network, fd.ModuleSpec) or result.info.preprocessing != fd.Preprocessing():
        print_line(f"pre-processing: {result.info.preprocessing}")
    batch, channels, height, width = result.input_shape
    on_pixels = result.info.image_input is ImageInput.UINT8
    shape = f"{batch}x{height}x{width}x{channels}" if on_pixels else f"{batch}x{channels}x{height}x{width}"
    kinds = f"{result.info.precision}, {result.info.image_input} input {shape}, {result.info.head}"
    print_line(f"wrote {escape(str(result.path))}: {kinds}, {_megabytes(result.file_bytes)}")


def print_optimized(result: "fd.Optimized") -> None:
    """Print what was done to the graph, and what was written."""
    _print_simplification(result.simplification)
    _print_rewriting(result.rewriting)
    size = f"{_megabytes(result.file_bytes)}, {result.grown_bytes / 1e6:+.1f} MB"
    print_line(f"wrote {escape(str(result.path))}: {size}")


def _print_simplification(s: "Simplification") -> None:
    if s.refused is not None:
        print_line(f"[yellow]kept the graph as exported[/], {s.nodes_before} nodes: {escape(s.refused)}")
        return
    counts = [(op, s.before.get(op, 0), s.after.get(op, 0)) for op in sorted({*s.before, *s.after})]
    changed = ", ".join(f"{op} {before} -> {after}" for op, before, after in counts if before != after)
    checked = _checked(s.compared_nodes, s.difference or 0.0)
    print_line(f"simplified {s.nodes_before} -> {s.nodes_after} nodes ({changed or 'no change'}); {checked}")


def _print_rewriting(rewriting: "fd.Rewriting") -> None:
    """Print a line per rewrite and place, with the reason, then the cost of one run before and after."""
    for report in rewriting.passes:
        _print_pass(report)
    before, after = rewriting.before, rewriting.after
    macs = f"multiply-adds {_billions(before.multiply_adds)} -> {_billions(after.multiply_adds)} G"
    share = f" ({after.multiply_adds / before.multiply_adds - 1:+.0%})" if before.multiply_adds else ""
    moved = f"bytes moved {before.moved_bytes / 1e9:.2f} -> {after.moved_bytes / 1e9:.2f} GB"
    print_line(f"rewritten for {rewriting.target}: {macs}{share}, {moved}, nodes {before.nodes} -> {after.nodes}")


def _print_network(info: "fd.ModelInfo") -> None:
    print_line(f"[bold]{escape(str(info.network))}[/], {escape(str(info.provenance))}")


def _billions(count: int) -> str:
    return f"{count / 1e9:.1f}" if count >= _BILLION or not count else f"{count / 1e9:.2g}"


def _print_pass(report: "PassReport") -> None:
    if report.undone is not None:
        print_line(f"[yellow]{report.name} undone:[/] {escape(report.undone)}")
        return
    if not report.sites:
        print_line(f"{report.name}: nothing to do")
    for (applied, reason), sites in groupby(report.sites, key=lambda site: (site.applied, site.reason)):
        at, nodes = "at" if applied else "skipped at", ", ".join(site.node for site in sites)
        print_line(f"{report.name} {at} {escape(f'{nodes}: {reason}')}")
    if report.applied:
        print_line(f"{report.name}: {_checked(report.compared_nodes, report.difference)}")


def _checked(compared_nodes: int, difference: float) -> str:
    if not compared_nodes:
        return "verified: same structure"
    nodes = "1 node" if compared_nodes == 1 else f"{compared_nodes} nodes"
    return f"verified: {nodes} re-run, largest difference {difference:.1e} of the range"


def _print_quantization(found: "fd.Quantization") -> None:
    title = f"signal to quantization noise of every layer, {found.method} over {found.images} images"
    rows = [(layer.name, f"{layer.sqnr_db:.1f}", "float" if layer.in_float else "int8") for layer in found.layers]
    print_table(title, ("layer", "dB", "precision"), rows)
    kept = [layer.name for layer in found.layers if layer.in_float]
    stays = f"; {', '.join(kept)} stayed in float to reach it" if kept else ""
    required = f"required {found.min_agreement:g}" if found.min_agreement else "not judged, the weights are random"
    print_line(
        f"int8 in {len(found.layers) - len(kept)} of {len(found.layers)} layers, scores and up-sampling in float: "
        f"mean IU with the float graph {found.mean_iu:.4f}, {required}{escape(stays)}"
    )


def _print_half(found: "fd.HalfReport") -> None:
    print_line(
        f"{found.precision} in {found.nodes} nodes, float32 in {found.float_nodes}; largest magnitude observed "
        f"{found.largest:.4g}, limit of the type {found.limit:.4g}"
    )
    for name, factor in found.rescaled.items():
        print_line(f"rescaled {escape(name)} by {factor:g}; the layers that read it scale back exactly")


def _print_price(result: "fd.ExportResult") -> None:
    """Print what the reduced precision costs in accuracy, and what it saves in size."""
    figures = (f"{result.parity.label_agreement:.3%}", f"{result.parity.mean_iu:.4f}") if result.parity else ("", "")
    row = str(result.info.precision), _megabytes(result.file_bytes), *figures
    columns = "precision", "size", "labels =", "mean IU"
    print_table("", columns, [("fp32", _megabytes(result.float_bytes), "", ""), row])


def print_verification(result: "fd.Verification") -> None:
    """Print the comparison with PyTorch, where the nodes ran, and the worst input's file."""
    _print_parity(result.parity)
    if result.layers is not None:
        _print_layers(result.layers)
    print_line(_placed(result.placement))
    _print_network(result.info)
    if result.worst_input is not None:
        print_line(f"saved the worst input: {escape(str(result.worst_input))} (replay it with --image)")


def _print_parity(report: "fd.ParityReport") -> None:
    """Print every comparison, the bounds, and the verdict."""
    by_maps = report.tier.mean_iu is not None
    rows = []
    for c in report.comparisons:
        figures = "", "", ""
        if isinstance(c, fd.Comparison):
            figures = f"{c.relative_error:.1e}", f"{c.relative_l2:.1e}", f"{c.snr_db:.1f}"
        last = f"{c.mean_iu:.4f}" if by_maps else str(c.clear_flips)
        rows.append((c.input_name, *figures, f"{c.label_agreement:.3%}", str(c.flips), last))
    columns = ("error/range", "rel. L2", "SNR dB", "labels =", "flips", "mean IU" if by_maps else "clear")
    print_table(f"{report.candidate} against {report.reference}", ("input", *columns), rows)
    if report.exact:
        errors = [(e.input_name, f"{e.reference:.2e}", f"{e.candidate:.2e}") for e in report.exact]
        sides = "input", "PyTorch float32", "artifact"
        print_table("Each side against float64: max error / range", sides, errors)
    if report.undecided:
        names = escape(", ".join(report.undecided))
        print_line(f"not judged: {names} (rounding the image to float32 changes the logits by more than the bound)")
    _print_verdict(report)


def _print_verdict(report: "fd.ParityReport") -> None:
    from fcn_deploy.parity.compare import joint_mean_iu

    tier, worst = report.tier, report.worst
    bounds, smallest = [], ""
    if isinstance(worst, fd.Comparison) and tier.max_error is not None:
        bounds = [f"max error / range <= {tier.max_error:g}"]
        smallest = f" (smallest passing bound {worst.passing_tolerance:.1e})" if report.passed else ""
    bounds += [f"labels equal >= {tier.label_agreement:.3%}"] if tier.label_agreement is not None else []
    bounds += [f"clear flips <= {tier.clear_flips}"] if tier.clear_flips is not None else []
    bounds += [f"mean IU {joint_mean_iu(report.comparisons):.4f} >= {tier.mean_iu:g}"] if tier.mean_iu else []
    verdict = "[bold green]passed[/]" if report.passed else "[bold red]FAILED[/]"
    print_line(f"{verdict}  tier {tier.name}: {', '.join(bounds)}; worst input {escape(worst.input_name)}{smallest}")


def _print_layers(report: "LayerReport") -> None:
    rows = [(layer.name, f"{layer.relative_error:.1e}", f"{layer.snr_db:.1f}") for layer in report.layers]
    print_table(f"every layer against PyTorch on {report.input_name}:", ("layer", "error/range", "SNR dB"), rows)
    print_line(escape(report.verdict))


def _placed(placement: Mapping[str, int]) -> str:
    """Format the placement of a session's nodes, e.g. `46 of 46 nodes on CPUExecutionProvider`."""
    total = sum(placement.values())
    return ", ".join(f"{count} of {total} nodes on {name}" for name, count in placement.items())


def print_inspection(inspection: "fd.Inspection") -> None:
    """Print a row per layer, the totals, metadata and notes."""
    rows: list[tuple[str, ...]] = []
    for layer in inspection.layers:
        shape = "x".join(str(n) for n in layer.shape)
        macs = f"{layer.multiply_adds / 1e6:,.1f} M" if layer.multiply_adds else ""
        rows.append((layer.name, layer.operator, shape, f"{layer.parameters:,}" if layer.parameters else "", macs))
    total = ("total", "", "", f"{inspection.parameters:,}", f"{inspection.multiply_adds / 1e9:.1f} G")
    columns = ("layer", "operator", "output", "parameters", "multiply-\nadds")
    print_table(str(inspection.path), columns, [*rows, (), total], texts=2)
    depends = [
        (n.name, n.operator, "x".join(map(str, n.receptive_field or ())), f"{n.live:.0%}") for n in inspection.reach
    ]
    print_table("", ("layer", "operator", "receptive field", "of the map depends on the image"), depends, texts=2)
    operators = ", ".join(f"{name} {count}" for name, count in inspection.operators.items())
    specs = f"input: {', '.join(inspection.inputs)}; output: {', '.join(inspection.outputs)}; opset {inspection.opset}"
    print_line(escape(specs))
    print_line(escape(f"{_megabytes(inspection.file_bytes)}, {len(inspection.layers)} nodes: {operators}"))
    _print_metadata(inspection.metadata)
    for note in inspection.notes:
        print_line(f"[yellow]note:[/] {escape(note)}")


def print_cache(cache: "fd.SessionCache", freed: int | None) -> None:
    """Print how much was removed, or a row per prepared session, the one that was used last first; the total size."""
    if freed is not None:
        print_line(escape(f"removed {_megabytes(freed)} from {cache.folder}"))
    entries = cache.entries()
    dates = [f"{datetime.fromtimestamp(entry.used_s).astimezone():%Y-%m-%d %H:%M}" for entry in entries]
    rows = [(e.model, _megabytes(e.bytes), date, e.key) for e, date in zip(entries, dates, strict=True)]
    if rows:
        print_table("", ("model", "size", "last used", "entry"), rows)
    total = sum(entry.bytes for entry in entries)
    sizes = f"{_megabytes(total)} of {_megabytes(cache.max_bytes)}"
    print_line(escape(f"prepared sessions: {len(entries)}, {sizes}, in {cache.folder}"))


def print_inspected_engine(engine: "fd.Engine") -> None:
    """Print an engine's facts, size, source and metadata."""
    _print_engine(engine)
    print_line(f"{_megabytes(engine.plan_bytes)}, from an ONNX file of SHA-256 {engine.source_sha256}")
    _print_metadata(engine.metadata)


def print_engine_build(result: "fd.EngineBuild") -> None:
    """Print what was built, or that the existing engine is up to date."""
    engine = result.engine
    path = escape(str(engine.path))
    if result.up_to_date:
        print_line(f"[green]up to date[/], skipped: {path}")
        print_line(escape(_layer_line(engine)))
        return
    _print_engine(engine)
    print_line(f"wrote {path}: {_megabytes(engine.plan_bytes)}, built in {engine.build_seconds:.1f} s")


def _print_engine(engine: "fd.Engine") -> None:
    inputs, outputs = (", ".join(map(str, specs)) for specs in (engine.inputs, engine.outputs))
    _print_network(engine.info)
    print_line(escape(f"input: {inputs}; output: {outputs}"))
    print_line(escape(_layer_line(engine)))
    print_line(escape(f"runs with {engine.flavour} {engine.version} on {engine.built_for}"))


def _layer_line(engine: "fd.Engine") -> str:
    """Return the share of the layers that have the requested precision, and the source of the types."""
    layers, precision = engine.layers, engine.info.precision
    kinds = ", ".join(f"{count} in {kind}" for kind, count in layers.counts.items())
    source = _LAYERS_SEEN_IN.get(layers.seen_in, _LAYERS_PARSED)
    return f"{layers.share(precision):.0%} of {sum(layers.counts.values())} layers in {precision} ({kinds}), {source}"


def _print_metadata(metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        print_line(f"[dim]{escape(key)}[/] {escape(value)}")


def print_package(result: "fd.Package", *, placeholder: bool) -> None:
    """Print the files of a package, its interface, and the commands to use it."""
    out.print(_tree(result), highlight=False, soft_wrap=True)
    print_line(escape(f"{result.info.network}, {result.info.provenance}"))
    if result.info.provenance.untrained:
        print_untrained()
    parts = [f"input: {result.input}", f"output: {result.output}"]
    parts += ["-1 is any size"] if -1 in result.input.shape else []
    most = result.max_batch
    parts += [f"requests of 1 to {most} photos, batched up to {most}"] if most else []
    print_line(escape("; ".join(parts)))
    for what, command in result.commands.items():
        print_line(f"[dim]{what}:[/] {escape(command)}")
    if placeholder:
        print_line("for Kubernetes, set the repository's address in inference-service.yaml, or pass --storage-uri")


def _tree(result: "fd.Package") -> Tree:
    tree = Tree(escape(str(result.path)))
    folders = {"": tree}
    for name, size in result.files.items():
        *above, file = name.split("/")
        for here in accumulate(above, "{}/{}".format):
            if here not in folders:
                parent, _, part = here.rpartition("/")
                folders[here] = folders[parent].add(escape(part))
        folders["/".join(above)].add(escape(f"{file}  {_megabytes(size)}" if size >= _SHOWN_BYTES else file))
    return tree


def print_prediction(prediction: "fd.Prediction") -> None:
    """Print what was written for a photo and its largest classes, or why there is nothing."""
    if prediction.failure is not None:
        print_error(prediction.failure)
        return
    classes = ", ".join(f"{name} {share:.0%}" for name, share in prediction.shares[:_SHOWN_CLASSES])
    what = "already done" if prediction.done_before else classes
    print_line(escape(f"{prediction.image} -> {prediction.files[0]}  {what}"))


def print_evaluation(result: "fd.Evaluation", output: Path) -> None:
    """Print the classes that occur, the overall scores, and the loss in deployment."""
    from fcn_deploy.evaluation.page import score, share

    count = len(result.images)
    images = f"images: {count}" if not result.failures else f"images: {count} of {count + len(result.failures)}"
    print_line(f"{escape(result.source.runtime)}, {escape(result.source.dataset)}, {images}")
    _print_classes(result)
    found = result.scores
    print_line(
        f"[bold]mean IU {score(found.mean_iu)}[/], pixel accuracy {share(found.pixel_accuracy)}, "
        f"mean accuracy {share(found.mean_accuracy)}, frequency-weighted IU {score(found.frequency_weighted_iu)}"
    )
    if result.agreement is not None and result.pytorch_scores is not None:
        print_line(
            f"[bold]mean IU lost in deployment: {score(result.mean_iu_lost)}[/] "
            f"({escape(result.source.pytorch or '')} has {score(result.pytorch_scores.mean_iu)}); same label in "
            f"{result.agreement.pixel_accuracy:.3%} of the pixels, mean IU between the two "
            f"{score(result.agreement.mean_iu)}"
        )
    if result.resumed:
        print_line(f"finished by an earlier run: {result.resumed} of {count}")
    _print_network(result.info)
    print_line(f"wrote {escape(str(output))}")
    if result.info.provenance.untrained:
        print_untrained("scores")


def _print_classes(result: "fd.Evaluation") -> None:
    from fcn_deploy.evaluation.page import score, share

    with_pytorch = result.pytorch_scores is not None
    shown = [found for found in result.classes if found.occurs]
    rows = []
    for found in shown:
        scores = (score(found.iu), *([score(found.pytorch_iu)] if with_pytorch else []))
        rows.append((found.name, *scores, share(found.accuracy), share(found.truth_share)))
    columns = ("class", "IU", *(["PyTorch's"] if with_pytorch else []), "accuracy", "of the truth")
    print_table("", columns, rows)
    if left_out := len(result.classes) - len(shown):
        print_line(f"{left_out} classes occur neither in the truth nor in the labels")


def print_endpoint(endpoint: "Endpoint") -> None:
    """Print where a server listens, its input and output, and a command to try it."""
    inputs, outputs = (
        f"{tensor['name']} {tensor['datatype']} {tensor['shape']}" for tensor in (*endpoint.inputs, *endpoint.outputs)
    )
    batch = f", at most {endpoint.max_batch} per request" if endpoint.max_batch > 1 else ""
    for title, text in (
        ("model", f"{endpoint.name}: {endpoint.description}"),
        ("runtime", endpoint.runtime),
        ("page", f"{endpoint.http_url}/"),
        ("HTTP", f"{endpoint.http_url}/v2/models/{endpoint.name}/infer"),
        ("gRPC", endpoint.grpc_url),
        ("metrics", f"{endpoint.http_url}/metrics"),
        ("input", f"{inputs}, RGB{batch}"),
        ("output", outputs),
        ("try", f"curl --data-binary @photo.jpg {endpoint.http_url}/segment"),
    ):
        print_line(f"[dim]{title:8}[/]{escape(text)}")
    if endpoint.untrained:
        print_untrained()
    print_line("Ctrl-C stops it", to_stderr=True)


def print_findings(findings: "tuple[fd.Finding, ...]") -> None:
    """Print a line per finding, and its remedy below it."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        colour = _STATUS_COLOURS[finding.status]
        print_line(f"[{colour}]{finding.status:8}[/] {finding.name:{width}}  {escape(finding.value)}")
        if finding.remedy:
            print_line(f"{'':{width + 11}}-> {escape(finding.remedy)}")


@contextlib.contextmanager
def bench_progress() -> "Iterator[Callable[[BenchProgress], None]]":
    """Show a benchmark's progress on stderr: one live line on a terminal, else a line per kind of step."""
    start = time.monotonic()
    bar = Progress(
        folding("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=err,
        transient=True,
    )
    task = bar.add_task("", total=1.0, left="")
    last_step = ""

    def show(progress: "BenchProgress") -> None:
        elapsed, left = time.monotonic() - start, progress.remaining_s
        done, text = (0.0, "") if left is None else (elapsed / (elapsed + left), f"about {left:.0f} s left")
        bar.update(task, description=escape(progress.step), completed=done, left=text)

    def print_step(progress: "BenchProgress") -> None:
        """Print a line for every new kind of step, whatever the number of rows."""
        nonlocal last_step
        step = progress.step.partition(":")[0]
        if step != last_step:
            last_step = step
            print_line(f"{time.monotonic() - start:6.1f} s  {escape(step)}", to_stderr=True)

    if not err.is_terminal:
        yield print_step
        return
    with bar:
        yield show


def print_report(report: "fd.BenchReport") -> None:
    """Print a table and a sentence per network and shape, why rows have no figure, and one line of doubts."""
    from benchmarks.report import table

    for title, rows in table.groups(report):
        baseline = table.baseline_of(rows)
        cells = [table.narrow_cells(report, row, baseline) for row in rows]
        print_table(f"{title} on {report.machine}", table.NARROW, cells)
        print_line(escape(_placements(rows)))
    for sentence in (*table.without_figures(report), *table.summary(report)):
        print_line(escape(sentence))
    doubts = table.doubts(report)
    if doubts:
        print_line(f"[yellow]{escape(doubts)}[/]")


def _placements(rows: "Sequence[fd.Row]") -> str:
    """Format in one line where every session placed its nodes; rows with the same placement are named together."""
    cases: dict[str, list[str]] = {}
    for row in rows:
        if row.placement:
            cases.setdefault(_placed(row.placement), []).append(row.key.case)
    return "; ".join(f"{where} ({', '.join(names)})" for where, names in cases.items())


def print_side_by_side(reports: "Sequence[fd.BenchReport]") -> None:
    """Print the medians of the rows that the first report shares with others."""
    from benchmarks.report.page import side_by_side

    print_table("side by side", ("row", *(report.machine for report in reports)), side_by_side(reports))


def print_comparison(found: "fd.ReportComparison") -> None:
    """Print a table per network and shape with a verdict on every row."""
    from benchmarks.report import table

    for title, changes in groupby(found.changes, key=lambda change: table.title_of(change.key)):
        rows: list[tuple[str | Text, ...]] = []
        for change in changes:
            figures = f"{change.ratio.value:.3f} ± {(change.ratio.high - change.ratio.low) / 2:.3f}"
            medians = [table.duration(side.median_ns) for side in (change.before, change.after)]
            verdict = Text(change.verdict, _VERDICT_COLOURS[change.verdict])
            rows.append((change.key.case, *medians, figures, verdict, "" if change.stable else "unstable"))
        print_table(title, ("row", "before", "after", "time ratio", "verdict", "note"), rows)
    if found.machines[0] != found.machines[1]:
        print_line(f"[yellow]different machines:[/] {escape(' and '.join(found.machines))}")
    for key in found.gained:
        print_line(f"only in the second: {escape(str(key))}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
