"""Approximate removal of channels that are nearly empty and unimportant (P-RM, arXiv 1905.00136)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from structadmm.graph.coupling import CoupledGroup, find_coupling
from structadmm.graph.ir import Graph


@dataclass(frozen=True)
class Emptiness:
    """How empty and how important each unit of a group is, as its readers see it.

    Attributes:
        eta: fraction of the unit's columns that are zero in every filter, over its readers. float64 [units].
        sigma: norm of the weights that read it, relative to the mean over the group's living units. float64 [units].
    """

    eta: Tensor
    sigma: Tensor


@dataclass(frozen=True)
class Purified:
    """A state in which some units are empty that were not.

    Attributes:
        state: the new tensors; shares those that did not change.
        emptied: unit numbers by group name.
    """

    state: dict[str, Tensor]
    emptied: dict[str, list[int]]


def emptiness(group: CoupledGroup, state: Mapping[str, Tensor]) -> Emptiness:
    """Measure the units of `group` on the weights that read them."""
    empty = torch.zeros(group.units, dtype=torch.float64)
    columns = torch.zeros(group.units, dtype=torch.float64)
    squares = torch.zeros(group.units, dtype=torch.float64)
    for part in group.consumers:
        # [units, per_unit, filters, kernel positions]
        weight = state[part.parameter].detach().to("cpu", torch.float64).movedim(part.axis, 0)
        read = weight[torch.from_numpy(part.indices)].flatten(3) if weight.ndim > 2 else None
        if read is None:
            read = weight[torch.from_numpy(part.indices)].unsqueeze(3)
        zero = (read == 0).all(dim=2)  # [units, per_unit, positions]
        empty += zero.sum(dim=(1, 2))
        columns += zero[0].numel()
        squares += read.square().sum(dim=(1, 2, 3))
    norms = squares.sqrt()
    living = norms[norms > 0]
    mean = living.mean() if living.numel() else torch.ones([], dtype=torch.float64)
    return Emptiness(empty / columns.clamp(min=1), norms / mean)


def purify(
    graph: Graph,
    state: Mapping[str, Tensor],
    *,
    eta: float,
    sigma: float,
) -> Purified:
    """Empty the units whose emptiness ratio exceeds `eta` and whose importance is under `sigma`, to a fixed point.

    Only what reads a unit is zeroed; removing unused paths afterwards deletes its producers. One unit of every group
    stays. The network's outputs change: measure the accuracy afterwards, as `search_purification` does.

    Args:
        graph: the network.
        state: its tensors; not modified.
        eta: 0 to 1.
        sigma: relative to the group's mean importance.
    """
    groups = [group for group in find_coupling(graph).groups if group.frozen is None and group.consumers]
    tensors = {name: tensor.detach() for name, tensor in state.items()}
    emptied: dict[str, list[int]] = {}
    changed = True
    while changed:
        changed = False
        for group in groups:
            measured = emptiness(group, tensors)
            chosen = (measured.eta > eta) & (measured.sigma < sigma) & (measured.sigma > 0)
            if not bool(chosen.any()):
                continue
            if bool((chosen | (measured.sigma == 0)).all()):
                chosen[int(measured.sigma.argmax())] = False
            units = torch.nonzero(chosen).flatten().tolist()
            for part in group.consumers:
                indices = torch.from_numpy(part.indices[units].reshape(-1))
                tensors[part.parameter] = tensors[part.parameter].index_fill(part.axis, indices, 0)
            if units:
                emptied.setdefault(group.name, []).extend(units)
                changed = True
    return Purified(tensors, emptied)
