"""What reduced precision did to a graph: a table of layers in 8 bits, a few lines for half precision."""

from typing import TYPE_CHECKING

from rich.markup import escape

from fcn_deploy.cli.console import out, plain_table, print_line

if TYPE_CHECKING:
    from exporters.eight_bit import Quantization
    from exporters.pipeline import ExportResult
    from exporters.precision import HalfReport
    from exporters.reduce import Reduction


def print_reduction(reduction: "Reduction") -> None:
    """Print what became of the graph's layers."""
    from exporters.eight_bit import Quantization

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
