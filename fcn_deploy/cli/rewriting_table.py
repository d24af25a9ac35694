"""What simplifying and rewriting did to a graph, line by line."""

from typing import TYPE_CHECKING

from rich.markup import escape

from fcn_deploy.cli.console import print_line

if TYPE_CHECKING:
    from exporters.rewrite import PassReport, Rewriting
    from exporters.simplify import Simplification


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
