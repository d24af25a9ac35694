"""Which execution provider runs which node: what a session says, and whether that is what was asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

from fcn_deploy.errors import ProviderError
from fcn_deploy.runtime.ort_options import PROVIDER_NAMES
from fcn_deploy.runtime.provider import Provider

# Node names by the execution provider that runs them.
Placement = Mapping[str, tuple[str, ...]]


def placement_of(session: Any) -> Placement:
    """Where ONNX Runtime's `session` put every node, before it joins any."""
    found: dict[str, tuple[str, ...]] = {}
    for part in session.get_provider_graph_assignment_info():
        names = tuple(node.name or node.op_type for node in part.get_nodes())
        found[part.ep_name] = (*found.get(part.ep_name, ()), *names)
    return found


def require_placement(provider: Provider, running: Sequence[str], placement: Placement) -> None:
    """Check that `provider` runs every node.

    Args:
        provider: the one asked for.
        running: ONNX Runtime's names of the session's providers.
        placement: the nodes by provider.

    Raises:
        ProviderError: the provider is not there, or some nodes run elsewhere; names the first five.
    """
    wanted = PROVIDER_NAMES[provider]
    if wanted not in running:
        raise ProviderError(
            f"provider {provider}: ONNX Runtime fell back to {', '.join(running)}",
            remedy="Run `fcn-deploy doctor`, or pass --provider cpu.",
        )
    elsewhere = [f"{name} on {where}" for where, names in placement.items() if where != wanted for name in names]
    if elsewhere:
        raise ProviderError(
            f"provider {provider} does not run {len(elsewhere)} nodes: {', '.join(elsewhere[:5])}",
            remedy="Export with an older --opset, or pass --provider cpu.",
        )
