"""Which filters and channels of which parameters are one and the same dimension."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from structadmm.graph.atoms import AtomFlow
from structadmm.graph.ir import Graph


@dataclass(frozen=True)
class AxisSlice:
    """What each unit of a group owns of one parameter.

    Attributes:
        parameter: dotted name.
        axis: the axis that units are removed from.
        indices: int64 [units, per_unit]; unit `u` owns `indices[u]` along `axis`.
        buffer: whether it is one, such as a fixed blur's kernel: then it is neither trained nor masked.
    """

    parameter: str
    axis: int
    indices: npt.NDArray[np.int64]
    buffer: bool = False


@dataclass(frozen=True)
class CoupledGroup:
    """Units that are kept or removed one by one, each as a whole.

    Attributes:
        name: the layer that computes the units; unique in its coupling.
        units: how many there are.
        producers: weight axes that compute them (convolution, depthwise convolution and linear axis 0, transposed
            convolution axis 1).
        affine: biases, normalisation parameters and statistics, and other per-channel values.
        consumers: weight axes that read them (convolution and linear axis 1, transposed convolution axis 0).
        frozen: why its units cannot be removed; None when they can.
    """

    name: str
    units: int
    producers: tuple[AxisSlice, ...]
    affine: tuple[AxisSlice, ...]
    consumers: tuple[AxisSlice, ...]
    frozen: str | None

    @property
    def slices(self) -> tuple[AxisSlice, ...]:
        """Producers, affine and consumers."""
        return self.producers + self.affine + self.consumers


@dataclass(frozen=True)
class Coupling:
    """All groups of a graph, in order of their first parameter."""

    groups: tuple[CoupledGroup, ...]

    def producer_groups(self, parameter: str) -> tuple[CoupledGroup, ...]:
        """The groups that own filters of `parameter`; several when a split sends parts of them different ways."""
        return tuple(g for g in self.groups if any(s.parameter == parameter for s in g.producers))

    def producer_group(self, parameter: str) -> CoupledGroup | None:
        """The group that owns all filters of `parameter`; None when no group, or more than one, owns some."""
        found = self.producer_groups(parameter)
        return found[0] if len(found) == 1 else None

    def consumer_groups(self, parameter: str) -> tuple[CoupledGroup, ...]:
        """The groups whose units `parameter` reads; several after a concat."""
        return tuple(g for g in self.groups if any(s.parameter == parameter for s in g.consumers))


def find_coupling(graph: Graph) -> Coupling:
    """Group all parameter indices of `graph` into units that live and die together.

    Every index of every weight axis is an atom. Operators that combine tensors element by element unite atoms,
    operators that move data are executed on arrays of atom numbers, and an operator that is not understood freezes what
    touches it. Units with the same parts form one group.
    """
    return coupling_of(AtomFlow(graph))


def coupling_of(flow: AtomFlow) -> Coupling:
    """`find_coupling` for an analysis that was already run."""
    owned: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, atoms in flow.axes.items():
        for index, atom in enumerate(atoms.tolist()):
            owned[flow.sets.find(atom)][key].append(index)
    # Units with the same parts and the same fate form a group; dictionaries keep the order of the first parameter.
    members: dict[tuple[tuple[tuple[str, int, int], ...], str | None], list[int]] = defaultdict(list)
    for root, parts in owned.items():
        signature = tuple((parameter, axis, len(found)) for (parameter, axis), found in parts.items())
        members[tuple(sorted(signature)), flow.sets.reason.get(root)].append(root)
    groups = []
    taken: dict[str, int] = defaultdict(int)
    for (_, reason), roots in members.items():
        by_role: dict[str, list[AxisSlice]] = {"producer": [], "affine": [], "consumer": []}
        for parameter, axis in owned[roots[0]]:
            indices = np.array([owned[root][parameter, axis] for root in roots], dtype=np.int64)
            buffer = flow.graph.state[parameter].kind != "parameter"
            by_role[flow.roles[parameter, axis]].append(AxisSlice(parameter, axis, indices, buffer))
        named = (by_role["producer"] or by_role["affine"] or by_role["consumer"])[0]
        layer = named.parameter.rpartition(".")[0] or named.parameter
        name = layer if by_role["producer"] else f"{layer}.{'input' if by_role['consumer'] else 'scale'}"
        taken[name] += 1
        groups.append(
            CoupledGroup(
                name if taken[name] == 1 else f"{name}#{taken[name]}",
                len(roots),
                tuple(by_role["producer"]),
                tuple(by_role["affine"]),
                tuple(by_role["consumer"]),
                reason,
            )
        )
    return Coupling(tuple(groups))
