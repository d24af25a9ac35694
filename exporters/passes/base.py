"""What every rewrite is: a pattern, a check that gives the reason for each refusal, and the rewrite itself."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir


@dataclass(frozen=True)
class Site:
    """What became of one place where a pattern was found.

    Attributes:
        node: name of the node at the place.
        applied: whether it was rewritten.
        reason: what the rewrite does there, or why it is refused.
    """

    node: str
    applied: bool
    reason: str


@dataclass
class RewriteResult(ir.passes.PassResult):
    """The result of a rewrite.

    Attributes:
        sites: every place where the pattern was found, in graph order; empty when it was found nowhere.
    """

    sites: tuple[Site, ...] = field(default=())


class Rewrite(ir.passes.InPlacePass):
    """A pass of onnx_ir that finds places, checks each, and rewrites those that pass.

    Attributes:
        name: what users call it.
        pattern: what it looks for, in words.
    """

    name: str
    pattern: str

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place wherever the pattern is found and the check passes."""
        sites = []
        for found in self.find(model):
            name, refusal = self.node_name(found), self.check(found)
            done = self.rewrite(model, found) if refusal is None else None
            sites.append(Site(name, refusal is None, str(done if refusal is None else refusal)))
        return RewriteResult(model, any(site.applied for site in sites), tuple(sites))

    @abstractmethod
    def find(self, model: ir.Model) -> Sequence[Any]:
        """Every place where the pattern occurs."""

    @abstractmethod
    def check(self, found: Any) -> str | None:
        """Why the place is not to be rewritten, or None when it is."""

    @abstractmethod
    def rewrite(self, model: ir.Model, found: Any) -> str:
        """Rewrite the place; says what was done, in a few words."""

    @abstractmethod
    def node_name(self, found: Any) -> str:
        """The node that stands for the place in reports."""
