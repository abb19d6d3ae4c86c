"""Euclidean projections onto the structured-sparse sets of StructADMM (arXiv 1807.11091, section III).

Each returns the nearest tensor with at most `keep` non-zero units *and* its support, so that a mask is never derived a
second time from a threshold. Units are ranked by their L2 norm, summed in float64, ties going to the lower index. An
existing support, `mask`, restricts the result: what it excludes stays zero, and units that it empties are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Projection(NamedTuple):
    """A projected tensor and its support, a boolean tensor of the same shape."""

    tensor: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Member:
    """One tensor's share in a group of coupled units.

    Attributes:
        tensor: any shape.
        axis: the axis along which units own slices.
        indices: int64 [units, per_unit], on the tensor's device; unit `u` owns the slices `indices[u]`.
        mask: existing support, or None.
    """

    tensor: Tensor
    axis: int
    indices: Tensor
    mask: Tensor | None = None


def kept_units(scores: Tensor, alive: Tensor, keep: int) -> Tensor:
    """Which `keep` units have the greatest score: exactly `keep`, or all that are alive if those are fewer.

    Args:
        scores: [units], non-negative.
        alive: bool [units]; a unit that is not alive is never kept.
        keep: 1 <= keep <= units.

    Returns:
        bool [units].

    Raises:
        ValueError: `keep` is out of range.
    """
    units = scores.numel()
    if not 1 <= keep <= units:
        raise ValueError(f"keep={keep} is outside [1, {units}]")
    kept = torch.zeros_like(alive)
    kept[ranking(scores, alive)[:keep]] = True
    return kept


def ranking(scores: Tensor, alive: Tensor) -> Tensor:
    """The living units from the greatest score to the least, ties by index: int64 [number alive]."""
    order = scores.masked_fill(~alive, -1.0).argsort(descending=True, stable=True)
    return order[: int(alive.sum())]


def project_filters(weight: Tensor, keep: int, mask: Tensor | None = None) -> Projection:
    """Nearest tensor to `weight` with at most `keep` non-zero filters.

    Args:
        weight: [O, I, kh, kw] (or [O, I]); not modified.
        keep: filters to keep, 1 <= keep <= O. Ties go to the lower index.
        mask: existing support, bool, shape of `weight`.

    Raises:
        ValueError: `keep` is out of range.
    """
    return _project_slices(weight, keep, mask, axis=0)


def project_channels(weight: Tensor, keep: int, mask: Tensor | None = None) -> Projection:
    """Nearest tensor to `weight` [O, I, kh, kw] with at most `keep` non-zero input channels, 1 <= keep <= I."""
    return _project_slices(weight, keep, mask, axis=1)


def project_columns(weight: Tensor, keep: int, mask: Tensor | None = None, block: int = 1) -> Projection:
    """Nearest tensor to `weight` with at most `keep` non-zero columns, or blocks of columns.

    Args:
        weight: [O, I, kh, kw]; not modified.
        keep: units to keep, 1 <= keep <= ceil(I / block) * kh * kw. A unit is one position (y, x) of the `block` input
            channels i .. i + block - 1, i a multiple of `block`; the last block may be ragged. Ties go to the lower
            (i, y, x).
        mask: existing support, bool, shape of `weight`.
        block: input channels per unit; 4 is the width of an RGBA texel.

    Raises:
        ValueError: `keep` or `block` is out of range.
    """
    if block < 1:
        raise ValueError(f"block={block} is not positive")
    _check_keep(keep, column_units(weight.shape, block), weight)
    scores, alive = column_scores(weight, mask, block)
    kept = kept_units(scores.flatten(), alive.flatten(), keep).view(scores.shape)
    block_of = torch.arange(weight.shape[1], device=weight.device) // block
    support = kept[block_of].expand_as(weight)
    return _restrict(_within(weight, mask), support, mask)


def column_scores(weight: Tensor, mask: Tensor | None = None, block: int = 1) -> tuple[Tensor, Tensor]:
    """Squared norm (float64) and life (bool) of every column unit, both [ceil(I / block), kh, kw]."""
    squares = _within(weight, mask).double().square().sum(dim=0)  # [I, kh, kw]
    alive = torch.ones_like(squares, dtype=torch.bool) if mask is None else mask.any(dim=0)
    block_of = torch.arange(len(squares), device=weight.device) // block
    empty = squares.new_zeros(-(-len(squares) // block), *squares.shape[1:])
    return empty.index_add(0, block_of, squares), empty.index_add(0, block_of, alive.double()) > 0


def column_units(shape: Sequence[int], block: int = 1) -> int:
    """Columns (or blocks of columns) in a convolution weight of shape [O, I, kh, kw]."""
    return -(-shape[1] // block) * shape[2] * shape[3]


def project_nonstructured(weight: Tensor, keep: int, mask: Tensor | None = None) -> Projection:
    """Nearest tensor to `weight` (any shape) with at most `keep` non-zero elements, 1 <= keep <= weight.numel()."""
    _check_keep(keep, weight.numel(), weight)
    alive_weight = _within(weight, mask)
    alive = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    kept = kept_units(alive_weight.double().abs().flatten(), alive.flatten(), keep).view_as(weight)
    return _restrict(alive_weight, kept, mask)


def project_group(members: Sequence[Member], keep: int) -> tuple[tuple[Projection, ...], Tensor]:
    """Nearest tensors to all members together such that at most `keep` of their common units are non-zero.

    A unit's norm is taken over its slices in every member: convolutions joined by an Add lose the same filters. Parts
    of a tensor that belong to no unit stay as they are.

    Args:
        members: tensors with the same number of units.
        keep: units to keep, 1 <= keep <= units. Ties go to the lower index.

    Returns:
        One projection per member, in order, and which units are kept (bool [units]).

    Raises:
        ValueError: `keep` is out of range, or the members disagree in their number of units.
    """
    units = members[0].indices.shape[0]
    if any(member.indices.shape[0] != units for member in members):
        raise ValueError(f"members have {[member.indices.shape[0] for member in members]} units, expected as many each")
    _check_keep(keep, units, *(member.tensor for member in members))
    scores, alive = group_scores(members)
    kept = kept_units(scores, alive, keep)
    projections = tuple(
        _restrict(member.tensor, units_mask(member.tensor.shape, member.axis, member.indices, kept), member.mask)
        for member in members
    )
    return projections, kept


def group_scores(members: Sequence[Member]) -> tuple[Tensor, Tensor]:
    """Squared joint norm (float64) and life (bool) of every unit of a group, both [units]."""
    units, device = len(members[0].indices), members[0].tensor.device
    scores = torch.zeros(units, dtype=torch.float64, device=device)
    alive = torch.zeros(units, dtype=torch.bool, device=device)
    for member in members:
        slices = slices_along(_within(member.tensor, member.mask), member.axis)  # [axis, rest]
        scores += slices.double().square().sum(dim=1)[member.indices].sum(dim=1)
        if member.mask is None:
            alive[:] = True
        else:
            alive |= slices_along(member.mask, member.axis).any(dim=1)[member.indices].any(dim=1)
    return scores, alive


def units_mask(shape: Sequence[int], axis: int, indices: Tensor, kept: Tensor) -> Tensor:
    """Support of a tensor whose units outside `kept` are removed.

    Args:
        shape: of the tensor.
        axis: along which units own slices.
        indices: int64 [units, per_unit].
        kept: bool [units].

    Returns:
        bool of shape `shape`; true wherever no removed unit owns the slice.
    """
    along = torch.ones(shape[axis], dtype=torch.bool, device=kept.device)
    along[indices[~kept].flatten()] = False
    view = [1] * len(shape)
    view[axis] = shape[axis]
    return along.view(view).expand(*shape).clone()


def slices_along(tensor: Tensor, axis: int) -> Tensor:
    """View `tensor` as a matrix with one row per index of `axis`."""
    rows = tensor.movedim(axis, 0)
    return rows.reshape(len(rows), -1)


def _project_slices(weight: Tensor, keep: int, mask: Tensor | None, axis: int) -> Projection:
    indices = torch.arange(weight.shape[axis], device=weight.device).unsqueeze(1)
    (projection,), _ = project_group([Member(weight, axis, indices, mask)], keep)
    return projection


def _check_keep(keep: int, units: int, *weights: Tensor) -> None:
    if not 1 <= keep <= units:
        shapes = ", ".join(str(tuple(weight.shape)) for weight in weights)
        raise ValueError(f"keep={keep} is outside [1, {units}] for weight {shapes}")


def _within(weight: Tensor, mask: Tensor | None) -> Tensor:
    # where() instead of a product: a product would turn an infinite masked weight into NaN.
    return weight if mask is None else torch.where(mask, weight, torch.zeros_like(weight))


def _restrict(weight: Tensor, support: Tensor, mask: Tensor | None) -> Projection:
    combined = support.clone() if mask is None else support & mask
    return Projection(_within(weight, combined), combined)
