"""The parity check as a table: one row per input, the verdict below."""

from collections.abc import Mapping

from rich.markup import escape

from fcn_deploy.cli.console import out, plain_table, print_line
from fcn_deploy.parity.bisect import LayerReport
from fcn_deploy.parity.compare import Comparison, joint_mean_iu
from fcn_deploy.parity.report import ParityReport


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
