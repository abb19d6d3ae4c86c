"""Filters that nothing reads: when every layer has lost the columns of a channel, whatever computes it is of no use.

Columns are removed layer by layer, and often all positions of an input channel go. Once its last reader is gone, the
filters that compute the channel, their normalisation and their biases change nothing that the network returns; export
removes them as unused paths. Training masks them with the columns, so that every count, budget and later round is about
the network that will be exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from structadmm.graph import AxisSlice, CoupledGroup
from train.constraint import GroupConstraint
from train.project import slices_along


def unread_supports(
    groups: Sequence[CoupledGroup], shapes: Mapping[str, Sequence[int]], masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What is left of each tensor that loses units because nothing reads them, bool by name; `masks` is not modified.

    To a fixed point: filters that go may have been the last to read a channel of a layer before.

    Args:
        groups: all of the network's.
        shapes: of parameters and buffers by name.
        masks: supports of parameters that lost something.
    """
    found: dict[str, Tensor] = {}
    current = dict(masks)
    waiting = list(groups)
    while waiting:
        touched: set[str] = set()
        for group in waiting:
            read = _read(group, current)
            if read is None:
                continue
            living = living_units(group, current)
            if living is None:
                living = torch.ones_like(read)
            if not bool((living & read).any()):
                read[int(living.int().argmax())] = True  # a layer keeps a filter, whoever reads it
            if not bool((living & ~read).any()):
                continue
            gone = GroupConstraint(group.name, group, members=(), keep=int(read.sum()))
            for name, mask in gone.removal_masks(shapes, read).items():
                found[name] = found[name] & mask if name in found else mask
                current[name] = current[name] & mask if name in current else mask
            touched.update(part.parameter for part in group.producers)
        waiting = [group for group in groups if any(part.parameter in touched for part in group.consumers)]
    return found


def _read(group: CoupledGroup, masks: Mapping[str, Tensor]) -> Tensor | None:
    """Which units some layer reads, bool [units]; None where none can go."""
    if group.frozen is not None or not group.producers or not group.consumers:
        return None
    if any(part.parameter not in masks for part in group.consumers):
        return None
    return _alive(group.consumers, masks)


def living_units(group: CoupledGroup, masks: Mapping[str, Tensor]) -> Tensor | None:
    """Which units some layer computes, bool [units]; None where it is all of them.

    Kernels that are not trained, of a blur, say, compute what is left of what they read.
    """
    producers = [part for part in group.producers if not part.buffer]
    if not producers or any(part.parameter not in masks for part in producers):
        return None
    return _alive(producers, masks)


def _alive(parts: Sequence[AxisSlice], masks: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(
        [
            slices_along(masks[part.parameter], part.axis)
            .any(dim=1)[torch.as_tensor(part.indices, device=masks[part.parameter].device)]
            .any(dim=1)
            for part in parts
        ]
    ).any(dim=0)
