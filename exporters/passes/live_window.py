"""Computes only the part of every map that depends on the image, and adds the rest as constants, exactly.

docs/live-window.md explains the idea and proves it; `window_plan` chooses the windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from exporters.passes.constants import constants_of
from exporters.passes.cost import Machine
from exporters.passes.edit import Rewrite, Window, add_constant, cut, replace_value, widen, window_shape
from exporters.passes.trace import Step, Trace, trace
from exporters.passes.window_plan import WindowPlan, cheapest_plan, plan_windows
from fcn_deploy.model_info import WINDOW_KEY

# A plan that saves less than this share is not worth another graph; it also makes the pass idempotent.
_LEAST_GAIN = 0.01

Constants = npt.NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """A frame of constants around the image."""

    trace: Trace  # how far it reaches
    plan: WindowPlan  # the cheapest windows
    gain: float  # share of the time of all maps of the trace that the plan saves

    @property
    def node(self) -> ir.Node:
        """Return where the frame begins."""
        return self.trace.steps[0].node


class LiveWindow(Rewrite):
    """Computes windows of maps, chosen for `machine`."""

    name = "live-window"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def find(self, model: ir.Model) -> Sequence[Frame]:
        """Return the frame of the first padded map, if there is one."""
        found = trace(model)
        if not found.steps:
            return ()
        plan = cheapest_plan(found, self._machine)
        gain = 1 - plan.seconds(self._machine) / plan_windows(found, frozenset()).seconds(self._machine)
        return (Frame(found, plan, gain),)

    def check(self, found: Frame) -> str | None:
        """Refuse a plan that saves too little, as for thin frames."""
        if found.gain < _LEAST_GAIN:
            stops = "; ".join(found.trace.stops) or "the frame reaches the end of the graph"
            return f"the cheapest windows save {found.gain:.1%} of the time, less than {_LEAST_GAIN:.0%} ({stops})"
        return None

    def rewrite(self, model: ir.Model, found: Frame) -> str:
        """Replace maps by their windows, and widen the windows where more is read."""
        plan, steps = found.plan, found.trace.steps
        # Everything that depends on whole maps is computed before the first map shrinks.
        slices = [(node, kept, value) for value in plan.windows for node, kept in found.trace.slices[value]]
        constants = _constants(model, plan)
        pads = [_overflow(step, reads, plan) for step, reads in zip(steps, plan.reads, strict=True)]
        for step in steps:
            rows, columns = plan.windows[step.output]
            step.output.shape = ir.Shape(window_shape(step.output, (rows, columns)))
            step.node.metadata_props[WINDOW_KEY] = f"{rows.first} {columns.first}"
        for index, step in enumerate(steps):
            if index > 0:
                have, name = plan.windows[step.source], str(step.node.name)
                taken = _moved(model, step.source, have, plan.reads[index], constants=constants, name=name)
                step.node.replace_input_with(0, taken)
            _pad_with(model, step, pads[index])
        for node, kept, value in slices:
            made = _moved(model, value, plan.windows[value], kept, constants=constants, name=str(node.name))
            maker = made.producer()
            if made is not value and maker is not None:
                maker.name = node.name
            replace_value(node.outputs[0], made)
            model.graph.remove(node, safe=True)
        for value in plan.completed:
            _complete(model, value, plan, constants)
        return f"windows of {len(plan.windows)} maps, widened {plan.widened + len(plan.completed)} times"


def _constants(model: ir.Model, plan: WindowPlan) -> dict[ir.Value, Constants]:
    """Compute the constants of every map that is read beyond its window."""
    reads = [(step.source, reads) for step, reads in zip(plan.trace.steps[1:], plan.reads[1:], strict=True)]
    reads += [(value, kept) for value in plan.windows for _, kept in plan.trace.slices[value]]
    short = [v for v, read in reads if not all(h.contains(r) for h, r in zip(plan.windows[v], read, strict=True))]
    return constants_of(model, plan.trace, tuple(dict.fromkeys([*short, *plan.completed])))


def _overflow(step: Step, reads: Window, plan: WindowPlan) -> list[int]:
    """Return how far a step's window reaches beyond the whole map: top, left, bottom, right."""
    wanted = step.read_by(plan.windows[step.output])
    begin = [read.first - want.first for want, read in zip(wanted, reads, strict=True)]
    end = [max(want.last - read.last, 0) for want, read in zip(wanted, reads, strict=True)]
    return [*begin, *end]


def _pad_with(model: ir.Model, step: Step, pads: list[int]) -> None:
    """Set a step's padding to what it reads beyond the whole map."""
    node = step.node
    if node.op_type == "Pad":
        top, left, bottom, right = pads
        amounts = np.array([0, 0, top, left, 0, 0, bottom, right], dtype=np.int64)
        node.replace_input_with(1, add_constant(model, f"{node.name}/pads", amounts))
    elif step.slidings is not None:
        node.attributes.add(ir.AttrInt64s("pads", pads))
    if node.op_type == "MaxPool":
        # The padding includes what ceil would add.
        node.attributes.add(ir.AttrInt64("ceil_mode", 0))


def _moved(
    model: ir.Model, value: ir.Value, have: Window, want: Window, *, constants: dict[ir.Value, Constants], name: str
) -> ir.Value:
    """Turn `value`, the window `have` of a map, into the window `want`: widened by constants, cut, or both."""
    taken = value
    if value in constants:
        high = have[0].hull(want[0]), have[1].hull(want[1])
        taken, have = widen(model, value, have, high, constants=constants[value], name=name), high
    inside = want[0].since(have[0].first), want[1].since(have[1].first)
    return taken if have == want else cut(model, taken, inside, f"{name}/cut")


def _complete(model: ir.Model, value: ir.Value, plan: WindowPlan, constants: dict[ir.Value, Constants]) -> None:
    """Widen the computed window of a map to the whole map, under the map's name."""
    name = str(value.name)
    value.name = f"{name}/window"
    full = _moved(model, value, plan.windows[value], plan.trace.whole(value), constants=constants, name=name)
    full.name = name
    for reader in plan.trace.whole_readers[value]:
        for index, given in enumerate(reader.inputs):
            if given is value:
                reader.replace_input_with(index, full)
    outputs = model.graph.outputs
    for index, output in enumerate(outputs):
        if output is value:
            outputs[index] = full
