"""Shrinking until nothing more goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from export.partial_sums import compact_partial_sums
from export.shrink import Shrunk, shrink
from export.unused_paths import Removal, remove_unused_paths
from structadmm.graph.atoms import convolution_groups
from structadmm.graph.ir import Graph
from structadmm.graph.module import resolve
from structadmm.graph.operators import ROLES

# Reshapes that give channels several dimensions; with grouped convolutions they decide what goes together.
_REARRANGING = frozenset((
    "view", "reshape", "_unsafe_view", "unflatten", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle",
))  # fmt: skip


def shrink_fully(graph: Graph, state: Mapping[str, Tensor]) -> tuple[Removal, Shrunk]:
    """Remove unused paths and shrink, again and again where the smaller network leaves more freedom.

    A grouped convolution of which one group is left is an ordinary one: its filters may go one by one, where they had
    to go together before. The same holds for channel shuffles.

    Returns:
        What was removed, in units of the given network, and the smallest network.

    Raises:
        UserError: a reshape cannot hold the smaller tensor, or an operator is unknown; names the node.
    """
    for node in graph.nodes:
        if node.op != "input":
            resolve(node.op, node.label)
    removal = remove_unused_paths(graph, state)
    smaller = shrink(removal)
    while smaller.kept and _may_lose_more(graph):
        again = remove_unused_paths(smaller.graph, smaller.state)
        if not again.count:
            break
        before, smaller = smaller, _composed(smaller, shrink(again))
        removal = _merged(removal, again, before, smaller)
    return removal, compact_partial_sums(smaller)


def _may_lose_more(graph: Graph) -> bool:
    """Whether sizes decide what is coupled."""
    for node in graph.nodes:
        grouped = ROLES.get(node.op) in ("conv", "conv_transpose") and convolution_groups(node) > 1
        if grouped or (node.op.startswith("aten.") and node.op.split(".")[1] in _REARRANGING):
            return True
    return False


def _composed(first: Shrunk, second: Shrunk) -> Shrunk:
    """`second`, with its indices counted in the network that `first` was made from."""

    def outer(before: Tensor | None, after: Tensor) -> Tensor:
        return after if before is None else before[after]

    kept = {**first.kept}
    for key, indices in second.kept.items():
        kept[key] = outer(first.kept.get(key), indices)
    keeps = {}
    for name, inner in second.keeps.items():
        dims = dict(first.keeps.get(name, ()))
        keeps[name] = [*({**dims, **{dim: outer(dims.get(dim), indices) for dim, indices in inner}}).items()]
    return Shrunk(second.graph, second.state, kept, keeps)


def _merged(removal: Removal, again: Removal, before: Shrunk, after: Shrunk) -> Removal:
    """`removal` with what `again` found in the network `before`, in units of the first network."""
    why: dict[tuple[str, int, int], str] = {}
    for group in again.coupling.groups:
        for unit, reason in again.kept.get(group.name, {}).items():
            for part in group.producers:
                indices = torch.from_numpy(part.indices[unit])
                old = before.kept.get((part.parameter, part.axis))
                for index in (indices if old is None else old[indices]).tolist():
                    why[part.parameter, part.axis, index] = reason
    stay = {key: set(indices.tolist()) for key, indices in after.kept.items()}
    removed: dict[str, list[int]] = {}
    kept: dict[str, dict[int, str]] = {}
    for group in removal.coupling.groups:
        for unit in range(group.units):
            filters = [(p.parameter, p.axis, int(i)) for p in group.producers for i in p.indices[unit]]
            left = [key for key in filters if key[:2] not in stay or key[2] in stay[key[:2]]]
            reasons = [why[key] for key in left if key in why]
            if unit in removal.removed.get(group.name, ()) or (filters and not left):
                removed.setdefault(group.name, []).append(unit)
            elif reasons:
                kept.setdefault(group.name, {})[unit] = reasons[0]
    return replace(removal, removed=removed, kept=kept, folded=removal.folded + again.folded)
