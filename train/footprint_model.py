"""How much smaller each unit makes a network: its footprint as a function of the units that every constraint keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from structadmm.graph import AxisSlice, CoupledGroup
from structadmm.graph.count import filter_matrices
from structadmm.graph.operators import ROLES
from train.constraint import Constraint, GroupConstraint, LayerConstraint
from train.costs import Extent, Floats, Ints
from train.footprint import Footprint, Site, extent_of, used_matrices
from train.project import slices_along

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Removal:
    """What a constraint takes from one site, int64 [alive + 1, groups]; `[k]` is gone when `k` units are kept."""

    rows: Ints
    columns: Ints
    inputs: Ints


@dataclass(frozen=True)
class Readers:
    """Channels of one group that a round of columns may leave without a reader, and what goes with them.

    Attributes:
        last: by constraint, int64 [units]: at this count, or a lower one, its layer does not read the unit any more.
        rows: by site, int64 [units, groups], filters that compute the unit.
        others: what biases and normalisation of the unit count, [units].
        all_units: these are all that live; one stays then, whoever reads it.
    """

    last: dict[int, Ints]
    rows: dict[int, Ints]
    others: Floats
    all_units: bool

    def unread(self, keeps: Sequence[int]) -> Ints:
        """1 for a unit that goes because no layer reads it, int64 [units]."""
        return self._going([keeps[index] <= last for index, last in self.last.items()])

    def unread_by_count(self, keeps: Sequence[int], constraint: int, candidates: Ints) -> Ints:
        """The same for each count of one constraint, int64 [candidates, units]."""
        by_others = [keeps[index] <= last for index, last in self.last.items() if index != constraint]
        own = candidates[:, None] <= self.last[constraint]
        return self._going([own, *(np.broadcast_to(part, own.shape) for part in by_others)])

    def _going(self, unread_by: Sequence[BoolArray]) -> Ints:
        unread: Ints = np.logical_and.reduce(unread_by).astype(np.int64)
        if self.all_units:
            unread[..., 0] &= ~unread.all(axis=-1)
        return unread


class FootprintModel:
    """The footprint as a function of the units that each constraint keeps: sums of what their units own.

    Units go in the order of their norms, so that the same counts give the same network that a projection would. It is
    exact as long as a filter or column that nothing removed keeps a weight; `Footprint.total` has the last word.

    Args:
        footprint: what counts.
        constraints: of a round.
        tensors: the constrained weights by name; their norms order the units.
        masks: supports from earlier rounds.
        groups: of the network; columns take along the filters that nothing else reads.
    """

    def __init__(
        self,
        footprint: Footprint,
        constraints: Sequence[Constraint],
        tensors: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        groups: Sequence[CoupledGroup],
    ) -> None:
        self._footprint = footprint
        used = [used_matrices(site, masks.get(site.layer.parameter)) for site in footprint.sites]
        self._base = [extent_of(site, masks.get(site.layer.parameter)) for site in footprint.sites]
        self.alive: list[int] = []
        self._removals: list[dict[int, Removal]] = []
        self._others: list[Floats] = []
        #: By constraint of columns, int64 [I]: at this count, or a lower one, the layer does not read the input.
        self._last_inputs: dict[int, Ints] = {}
        for index, constraint in enumerate(constraints):
            order = constraint.ranking(tensors, masks).cpu().numpy()
            self.alive.append(len(order))
            if isinstance(constraint, GroupConstraint):
                removals = self._group_removals(constraint, order, used)
                others = self._other_removals(constraint, order, masks)
            else:
                assert isinstance(constraint, LayerConstraint)
                removals, self._last_inputs[index] = self._column_removals(constraint, order, used)
                others = np.zeros(len(order) + 1)
            self._removals.append(removals)
            self._others.append(others)
        self._fixed = footprint.total(masks) - sum(
            float(footprint.of_site(site, extent)) for site, extent in zip(footprint.sites, self._base, strict=True)
        )
        self._readers = self._readers_of(constraints, groups, used, masks)
        touched = [
            set(removals).union(*(readers.rows for readers in self._readers if index in readers.last))
            for index, removals in enumerate(self._removals)
        ]
        self._touched = [tuple(sorted(sites)) for sites in touched]
        #: For each constraint, those whose savings change with it: they share a site.
        self.neighbours = tuple(tuple(j for j, other in enumerate(touched) if own & other) for own in touched)

    def total(self, keeps: Sequence[int]) -> float:
        """The network with `keeps[c]` units of each constraint."""
        found = self._fixed - sum(float(lost[keep]) for lost, keep in zip(self._others, keeps, strict=True))
        found -= sum(float(readers.unread(keeps) @ readers.others) for readers in self._readers)
        for index, site in enumerate(self._footprint.sites):
            found += float(self._footprint.of_site(site, self._extent(index, keeps)))
        return found

    def savings(self, keeps: Sequence[int], constraint: int, candidates: Ints) -> Floats:
        """By how much the network shrinks when `constraint` keeps each of `candidates` units; negative if it grows."""
        now = keeps[constraint]
        found: Floats = self._others[constraint][candidates] - self._others[constraint][now]
        # How the units without a reader change, [candidates, units].
        changes = [
            (readers, readers.unread_by_count(keeps, constraint, candidates) - readers.unread(keeps))
            for readers in self._readers
            if constraint in readers.last
        ]
        for readers, change in changes:
            found = found + change @ readers.others
        for index in self._touched[constraint]:
            extent = self._extent(index, keeps)
            rows, columns, inputs = extent
            removal = self._removals[constraint].get(index)
            if removal is not None:
                rows, columns, inputs = (
                    part + lost[now] - lost[candidates]
                    for part, lost in zip(extent, (removal.rows, removal.columns, removal.inputs), strict=True)
                )
            for readers, change in changes:
                if index in readers.rows:
                    rows = rows - change @ readers.rows[index]
            site = self._footprint.sites[index]
            changed = Extent(*np.broadcast_arrays(rows, columns, inputs))
            found = found + self._footprint.of_site(site, extent) - self._footprint.of_site(site, changed)
        return found

    def _extent(self, index: int, keeps: Sequence[int]) -> Extent:
        rows, columns, inputs = self._base[index]
        for removals, keep in zip(self._removals, keeps, strict=True):
            removal = removals.get(index)
            if removal is not None:
                rows, columns, inputs = (
                    rows - removal.rows[keep],
                    columns - removal.columns[keep],
                    inputs - removal.inputs[keep],
                )
        for readers in self._readers:
            if index in readers.rows:
                rows = rows - readers.unread(keeps) @ readers.rows[index]
        return Extent(rows, columns, inputs)

    def _readers_of(
        self,
        constraints: Sequence[Constraint],
        groups: Sequence[CoupledGroup],
        used: list[Tensor],
        masks: Mapping[str, Tensor],
    ) -> list[Readers]:
        """The groups all of whose readers lose columns in this round."""
        columns = {
            constraint.parameter: index
            for index, constraint in enumerate(constraints)
            if isinstance(constraint, LayerConstraint)
        }
        found = []
        for group in groups:
            if group.frozen is not None or not group.producers or not group.consumers:
                continue
            last: dict[int, Ints] = {}
            always = np.zeros(group.units, dtype=bool)
            for part in group.consumers:
                index = columns.get(part.parameter)
                if index is not None:
                    own = self._last_inputs[index][part.indices].min(axis=1)
                    last[index] = np.minimum(last[index], own) if index in last else own
                elif part.parameter not in masks:
                    always[:] = True
                else:
                    along = slices_along(masks[part.parameter], part.axis).any(dim=1).cpu().numpy()
                    always |= along[part.indices].any(axis=1)
            rows = self._producing_rows(group.producers, used)
            alive = np.logical_or.reduce([counts.any(axis=1) for counts in rows.values()])
            some = ~always & alive
            if not last or not some.any():
                continue
            others = np.zeros(group.units)
            for part in group.affine:
                if part.parameter not in masks or bool(masks[part.parameter].any()):
                    others += self._footprint.of_other(part.parameter, part.indices.shape[1])
            found.append(
                Readers(
                    {index: own[some] for index, own in last.items()},
                    {index: counts[some] for index, counts in rows.items()},
                    others[some],
                    bool((some == alive).all()),
                )
            )
        return found

    def _producing_rows(self, producers: Sequence[AxisSlice], used: list[Tensor]) -> dict[int, Ints]:
        """By site, how many living filters compute each unit, int64 [units, groups]."""
        found: dict[int, Ints] = {}
        for index, site in enumerate(self._footprint.sites):
            for part in producers:
                if part.parameter != site.layer.parameter:
                    continue
                unit_of = np.full(site.layer.shape[part.axis], -1, dtype=np.int64)
                unit_of[part.indices] = np.arange(len(part.indices))[:, None]
                owner = np.where(
                    used[index].any(dim=2).numpy(), unit_of[_matrix_indices(site)[0]], -1
                )  # [groups, rows]
                counts = np.stack([np.bincount(own[own >= 0], minlength=len(part.indices)) for own in owner], axis=1)
                found[index] = found[index] + counts if index in found else counts
        return found

    def _group_removals(self, constraint: GroupConstraint, order: Ints, used: list[Tensor]) -> dict[int, Removal]:
        group = constraint.group
        place = np.full(group.units, -1, dtype=np.int64)
        place[order] = np.arange(len(order))
        found: dict[int, Removal] = {}
        for index, site in enumerate(self._footprint.sites):
            parts: dict[str, Ints] = {}
            for kind, slices in (("rows", group.producers), ("inputs", group.consumers)):
                for part in slices:
                    if part.parameter == site.layer.parameter:
                        along = np.full(site.layer.shape[part.axis], -1, dtype=np.int64)
                        along[part.indices] = place[:, None]
                        parts[kind] = np.maximum(parts[kind], along) if kind in parts else along
            if not parts:
                continue
            alive, axes = used[index], _matrix_indices(site)
            none = np.zeros((len(order) + 1, len(alive)), dtype=np.int64)
            rows = columns = inputs = none
            if "rows" in parts:
                rows = _lost(np.where(alive.any(dim=2).numpy(), parts["rows"][axes[0]], -1), len(order))
            if "inputs" in parts:
                living = alive.any(dim=1).numpy()
                owner = np.where(living, parts["inputs"][axes[1]], -1)  # [groups, columns]
                columns = _lost(owner, len(order))
                by_input = owner.reshape(len(owner), -1, site.kernel_positions).max(axis=2)
                inputs = _lost(by_input, len(order))
            found[index] = Removal(rows, columns, inputs)
        return found

    def _other_removals(self, constraint: GroupConstraint, order: Ints, masks: Mapping[str, Tensor]) -> Floats:
        lost = np.zeros(len(order) + 1)
        for part in constraint.group.affine:
            living = masks[part.parameter].sum() if part.parameter in masks else None
            if living == 0:
                continue
            each = self._footprint.of_other(part.parameter, part.indices.shape[1])
            lost += each * np.arange(len(order), -1, -1)
        return lost

    def _column_removals(
        self, constraint: LayerConstraint, order: Ints, used: list[Tensor]
    ) -> tuple[dict[int, Removal], Ints]:
        found: dict[int, Removal] = {}
        last: Ints = np.zeros(0, dtype=np.int64)
        for index, site in enumerate(self._footprint.sites):
            if site.layer.parameter != constraint.parameter:
                continue
            positions = site.kernel_positions
            living = used[index].any(dim=1).numpy()[0].reshape(-1, positions)  # [I, kh * kw]
            block = np.arange(len(living)) // constraint.block
            place = np.full((int(block[-1]) + 1) * positions, -1, dtype=np.int64)
            place[order] = np.arange(len(order))
            owner = np.where(living, place.reshape(-1, positions)[block], -1)
            # An input is there until the last of its living columns goes: the one that ranks first.
            last = np.where(living, owner, len(order)).min(axis=1)
            rows = np.zeros((len(order) + 1, 1), dtype=np.int64)
            columns = _lost(owner.reshape(1, -1), len(order))
            inputs = _lost(np.where(living.any(axis=1), last, -1)[None], len(order))
            found[index] = Removal(rows, columns, inputs)
        return found, last


def _lost(owner: Ints, alive: int) -> Ints:
    """How many elements are gone when `k` units are kept, [alive + 1, groups].

    Args:
        owner: [groups, elements], the rank of the unit that owns each element, -1 for none.
        alive: units.
    """
    lost = np.zeros((alive + 1, len(owner)), dtype=np.int64)
    for group, ranks in enumerate(owner):
        counts = np.bincount(ranks[ranks >= 0], minlength=alive)
        lost[:alive, group] = counts[::-1].cumsum()[::-1]
    return lost


def _matrix_indices(site: Site) -> tuple[Ints, Ints]:
    """Which index of the weight's producer axis each row is, and of its consumer axis each column: [groups, n] each."""
    shape = site.layer.shape
    found = []
    transposed = ROLES[site.node.op] == "conv_transpose"
    for axis in (1, 0) if transposed else (0, 1):
        view = [1] * len(shape)
        view[axis] = shape[axis]
        found.append(filter_matrices(site.node, torch.arange(shape[axis]).view(view).expand(shape)))
    return found[0][:, :, 0].numpy(), found[1][:, 0, :].numpy()
