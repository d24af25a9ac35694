"""Choose which window of every map to compute, and where to widen it by constants: the cheapest plan for a target.

Every reader of a map may widen what is computed of it by constants. The map is then computed only where it is live;
otherwise as far as its reader reaches. Widening before every convolution computes least and copies most. The plan is
chosen by its cost alone, and the graph as it stands is one of the plans: the one that widens nowhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from exporters.passes.cost import Machine
from exporters.passes.edit import Window
from exporters.passes.trace import Regions, Step, Trace
from fcn_deploy.graph import static_shape

# Where a map may be widened: before the step of that index, or for the readers of that map outside the trace.
Place = int | ir.Value


@dataclass(frozen=True)
class WindowPlan:
    """Windows of the maps of a trace."""

    trace: Trace  # the maps
    reads: tuple[Window, ...]  # the window each step reads of its source, by the step's index; never beyond the source
    windows: Mapping[ir.Value, Window]  # the window of each map that is computed
    completed: tuple[ir.Value, ...]  # maps that are computed in part and read whole by nodes outside the trace

    @property
    def widened(self) -> int:
        """Return how many steps read more than is computed of their source."""
        pairs = zip(self.trace.steps[1:], self.reads[1:], strict=True)
        return sum(self.windows[step.source] != reads for step, reads in pairs)

    def seconds(self, machine: Machine) -> float:
        """Return the time of computing these windows and widening them."""
        total = 0.0
        for index, (step, reads) in enumerate(zip(self.trace.steps, self.reads, strict=True)):
            total += _step_seconds(step, reads, self.windows[step.output], machine)
            if index > 0 and self.windows[step.source] != reads:
                total += _widening_seconds(step.source, self.windows[step.source], reads, machine)
        for value in self.completed:
            total += _widening_seconds(value, self.windows[value], self.trace.whole(value), machine)
        for value, have in self.windows.items():
            total += sum(
                _widening_seconds(value, have, kept, machine) for _, kept in self.trace.slices[value] if kept != have
            )
        return total


def plan_windows(trace: Trace, places: frozenset[Place]) -> WindowPlan:
    """Return the plan that widens at `places` and nowhere else."""
    needs = {step.output: _outside_need(trace, step.output, places) for step in trace.steps}
    reads: list[Window] = []
    for index in range(len(trace.steps) - 1, -1, -1):
        step = trace.steps[index]
        needed = _need(trace, needs, step.output)
        reads.append(_common(step.read_by(needed), trace.whole(step.source)))
        if index > 0:
            want = _common(reads[-1], _live(trace.regions[step.source])) if index in places else reads[-1]
            needs[step.source] = _hull(needs[step.source], want)
    reads.reverse()
    windows: dict[ir.Value, Window] = {}
    for index, step in enumerate(trace.steps):
        if step.is_local and index > 0:
            # A window that is larger than needed is used unchanged.
            reads[index] = windows[step.source]
            windows[step.output] = reads[index]
        else:
            windows[step.output] = _need(trace, needs, step.output)
    completed = (value for value, have in windows.items() if have != trace.whole(value) and trace.is_read_whole(value))
    return WindowPlan(trace, tuple(reads), windows, tuple(completed))


def cheapest_plan(trace: Trace, machine: Machine) -> WindowPlan:
    """Find the cheapest plan by adding or removing one place at a time, from all places and from none."""
    steps = enumerate(trace.steps)
    places: list[Place] = [i for i, step in steps if i > 0 and step.node.op_type == "Conv" and not step.is_local]
    places += [value for value in trace.regions if trace.is_read_outside(value)]
    starts: tuple[frozenset[Place], ...] = (frozenset(places), frozenset())
    found = [_improved(trace, places, start, machine) for start in starts]
    return min(found, key=lambda plan: plan.seconds(machine))


def _improved(trace: Trace, places: Sequence[Place], chosen: frozenset[Place], machine: Machine) -> WindowPlan:
    best = plan_windows(trace, chosen)
    cost = best.seconds(machine)
    while True:
        plans = {place: plan_windows(trace, chosen ^ {place}) for place in places}
        costs = {place: plan.seconds(machine) for place, plan in plans.items()}
        cheapest = min(costs, key=lambda place: costs[place], default=None)
        if cheapest is None or costs[cheapest] >= cost:
            return best
        best, cost, chosen = plans[cheapest], costs[cheapest], chosen ^ {cheapest}


def _outside_need(trace: Trace, value: ir.Value, places: frozenset[Place]) -> Window | None:
    """Return the window of a map that readers outside the trace need; None when there are none."""
    need: Window | None = None
    live = _live(trace.regions[value])
    for _, kept in trace.slices[value]:
        need = _hull(need, _common(kept, live) if value in places else kept)
    if trace.is_read_whole(value):
        need = _hull(need, live if value in places else trace.whole(value))
    return need


def _need(trace: Trace, needs: Mapping[ir.Value, Window | None], value: ir.Value) -> Window:
    """Return the window of a map that has to be computed; its live part where it has no readers."""
    return needs[value] or _live(trace.regions[value])


def _live(regions: Regions) -> Window:
    return regions[0].live, regions[1].live


def _common(one: Window, other: Window) -> Window:
    return one[0].common(other[0]), one[1].common(other[1])


def _hull(one: Window | None, other: Window) -> Window:
    return other if one is None else (one[0].hull(other[0]), one[1].hull(other[1]))


def _step_seconds(step: Step, reads: Window, makes: Window, machine: Machine) -> float:
    """Return the time of one step; an activation runs within the convolution before it."""
    if step.slidings is None:
        return 0.0
    moved = _elements(step.source, reads) + _elements(step.output, makes)
    weight = step.node.inputs[1] if step.node.op_type == "Conv" else None
    shape = static_shape(weight)
    batch = (static_shape(step.output) or (1,))[0]
    multiply_adds = prod(shape) * makes[0].size * makes[1].size * batch if shape else 0
    return machine.seconds(multiply_adds, moved)


def _widening_seconds(value: ir.Value, before: Window, after: Window, machine: Machine) -> float:
    moved = _elements(value, before) + _elements(value, after)
    return machine.copies_per_widening * machine.copy_seconds(moved) + machine.node_s


def _elements(value: ir.Value, window: Window) -> int:
    shape = static_shape(value) or (1, 1)
    return shape[0] * shape[1] * window[0].size * window[1].size
