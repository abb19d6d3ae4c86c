"""What a round asks of the weights: at most `keep` units of one structure in a layer or in a coupled group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from structadmm.graph import AxisSlice, CoupledGroup
from train.project import (
    Member,
    Projection,
    column_scores,
    group_scores,
    project_columns,
    project_group,
    project_nonstructured,
    ranking,
    units_mask,
)


class ConstraintProjection(NamedTuple):
    """Projections by parameter name and, for a group, which of its units are kept (bool [units])."""

    projections: dict[str, Projection]
    kept: Tensor | None


class Constraint(Protocol):
    """A set S that weights are projected onto."""

    @property
    def name(self) -> str:
        """What reports call it: a layer's or a group's name."""

    @property
    def keep(self) -> int:
        """Units that stay."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The weights it constrains, by state-dict name."""

    def project(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ConstraintProjection:
        """Nearest point of S to `tensors`, within the existing `masks`."""

    def ranking(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Living units in the order in which projections keep them, int64 [number alive]."""


@dataclass(frozen=True)
class LayerConstraint:
    """Columns or single weights of one layer, independent of all others."""

    name: str
    parameter: str
    structure: Literal["column", "nonstructured"]
    keep: int
    block: int = 1

    @property
    def parameters(self) -> tuple[str, ...]:
        """The layer's weight."""
        return (self.parameter,)

    def project(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ConstraintProjection:
        """Nearest point of S to `tensors`, within the existing `masks`."""
        weight, mask = tensors[self.parameter], masks.get(self.parameter)
        if self.structure == "column":
            projection = project_columns(weight, self.keep, mask, self.block)
        else:
            projection = project_nonstructured(weight, self.keep, mask)
        return ConstraintProjection({self.parameter: projection}, None)

    def ranking(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Living units in the order in which projections keep them, int64 [number alive]."""
        weight, mask = tensors[self.parameter], masks.get(self.parameter)
        if self.structure == "column":
            scores, alive = column_scores(weight, mask, self.block)
            return ranking(scores.flatten(), alive.flatten())
        alive = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
        return ranking(weight.double().abs().flatten(), alive.flatten())


@dataclass(frozen=True)
class GroupConstraint:
    """Units that layers share: they stay or go in all members at once.

    Attributes:
        name: of the group.
        group: what is removed with a unit.
        members: the slices that are driven to zero and whose joint norm ranks the units.
        keep: units that stay.
    """

    name: str
    group: CoupledGroup
    members: tuple[AxisSlice, ...]
    keep: int

    @property
    def parameters(self) -> tuple[str, ...]:
        """The weights of all members, once each."""
        return tuple(dict.fromkeys(member.parameter for member in self.members))

    def project(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ConstraintProjection:
        """Nearest point of S to `tensors`, within the existing `masks`."""
        projected, kept = project_group(self._shares(tensors, masks), self.keep)
        combined: dict[str, Projection] = {}
        for member, projection in zip(self.members, projected, strict=True):
            # One tensor can be two members, such as a convolution whose output is added to a shuffled copy of itself.
            earlier = combined.get(member.parameter)
            if earlier is None:
                combined[member.parameter] = projection
            else:
                mask = earlier.mask & projection.mask
                combined[member.parameter] = Projection(earlier.tensor.where(mask, earlier.tensor.new_zeros(())), mask)
        return ConstraintProjection(combined, kept)

    def ranking(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
        """Living units in the order in which projections keep them, int64 [number alive]."""
        return ranking(*group_scores(self._shares(tensors, masks)))

    def _shares(self, tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> list[Member]:
        return [
            Member(
                tensors[member.parameter],
                member.axis,
                torch.as_tensor(member.indices, device=tensors[member.parameter].device),
                masks.get(member.parameter),
            )
            for member in self.members
        ]

    def removal_masks(self, shapes: Mapping[str, Sequence[int]], kept: Tensor) -> dict[str, Tensor]:
        """Support of every parameter that the group touches once the units outside `kept` are gone.

        Besides the producers' filters these are the affine parameters and biases on the way, because of which a dead
        filter would still emit `beta - gamma * mean / std`, and the consumers' channels, which then read zeros only.
        """
        masks: dict[str, Tensor] = {}
        for part in self.group.slices:
            if part.parameter not in shapes:
                continue  # a constant of the traced graph, which the model itself does not name
            indices = torch.as_tensor(part.indices, device=kept.device)
            mask = units_mask(shapes[part.parameter], part.axis, indices, kept)
            masks[part.parameter] = masks[part.parameter] & mask if part.parameter in masks else mask
        return masks


def with_keep(constraint: Constraint, keep: int) -> Constraint:
    """The constraint with another number of units."""
    assert isinstance(constraint, GroupConstraint | LayerConstraint)
    return replace(constraint, keep=keep)


class JointProjection(NamedTuple):
    """A projection for each constrained weight by name, and the kept units of each constraint in order."""

    projections: dict[str, Projection]
    kept: tuple[Tensor | None, ...]


def project_all(
    constraints: Sequence[Constraint], tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> JointProjection:
    """Nearest point of the intersection of all constraints, which own disjoint parts of the weights.

    Args:
        constraints: of one round.
        tensors: all constrained weights by name; not modified.
        masks: existing supports.
    """
    projections: dict[str, Projection] = {}
    kept = []
    current = dict(tensors)
    within = dict(masks)
    for constraint in constraints:
        # A weight can belong to two groups (a convolution whose output is split): what the first removed stays removed.
        found = constraint.project(current, within)
        kept.append(found.kept)
        for name, projection in found.projections.items():
            projections[name] = projection
            current[name], within[name] = projection
    return JointProjection(projections, tuple(kept))
