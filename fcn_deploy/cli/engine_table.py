"""A TensorRT engine's facts, as lines."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcn_deploy.runtime.engine_file import Engine


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
