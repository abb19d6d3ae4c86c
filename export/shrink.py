"""Delete removed units for good: a physically smaller graph that computes the same function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from export.unused_paths import Removal, unit_roots
from structadmm.errors import InvariantError, UserError
from structadmm.graph.atoms import (
    AtomFlow,
    argument_of,
    collapse,
    convolution_groups,
    drops_whole_groups,
    run_move,
)
from structadmm.graph.ir import Argument, Batch, Graph, Node, StateRef
from structadmm.graph.module import infer_shapes
from structadmm.graph.operators import ROLES


@dataclass(frozen=True)
class Shrunk:
    """A smaller network.

    Attributes:
        graph: every size already reduced.
        state: its tensors; none is shared with the network it came from.
        kept: per parameter axis that lost something, the indices that stay, int64.
        keeps: per node whose output shrinks, (dimension, indices that stay).
    """

    graph: Graph
    state: dict[str, Tensor]
    kept: dict[tuple[str, int], Tensor]
    keeps: dict[str, list[tuple[int, Tensor]]]


def shrink(removal: Removal) -> Shrunk:
    """Build the network without the units that `removal` zeroed.

    Raises:
        UserError: a reshape with sizes written as numbers cannot hold the smaller tensor; names the node.
    """
    worker = _Shrinker(removal)
    graph, state = worker.state()
    nodes = tuple(worker.node(node) for node in graph.nodes)
    return Shrunk(with_shapes(replace(graph, nodes=nodes), state), state, worker.kept, worker.keeps())


def rounded(shrunk: Shrunk, dtype: torch.dtype) -> Shrunk:
    """`shrunk` with its floating-point tensors rounded to `dtype`."""
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in shrunk.state.items()}
    name = str(dtype).removeprefix("torch.")
    entries = {
        key: replace(entry, dtype=name) if state[entry.alias_of or key].is_floating_point() else entry
        for key, entry in shrunk.graph.state.items()
    }
    return replace(shrunk, graph=replace(shrunk.graph, state=entries), state=state)


class _Shrinker:
    def __init__(self, removal: Removal) -> None:
        self.removal = removal
        self.flow: AtomFlow = removal.flow
        gone = set()
        for group in removal.coupling.groups:
            roots = unit_roots(self.flow, group)
            gone |= {roots[unit] for unit in removal.removed.get(group.name, ())}
        self.alive = torch.tensor([self.flow.sets.find(atom) not in gone for atom in range(len(self.flow.sets.parent))])
        self.kept = {
            key: torch.nonzero(self.alive[atoms]).flatten()
            for key, atoms in self.flow.axes.items()
            if not bool(self.alive[atoms].all())
        }

    def state(self) -> tuple[Graph, dict[str, Tensor]]:
        graph = self.removal.graph
        tensors, entries = {}, dict(graph.state)
        for name, entry in graph.state.items():
            if entry.alias_of is not None:
                continue
            tensor = self.removal.state[name].detach()
            for axis in range(tensor.ndim):
                indices = self.kept.get((name, axis))
                if indices is not None:
                    tensor = tensor.index_select(axis, indices.to(tensor.device))
            tensors[name] = tensor.clone()
            entries[name] = replace(entry, shape=tuple(tensor.shape))
        for name, entry in graph.state.items():
            if entry.alias_of is not None:
                entries[name] = replace(entry, shape=entries[entry.alias_of].shape)
        return replace(graph, state=entries), tensors

    def keeps(self) -> dict[str, list[tuple[int, Tensor]]]:
        """What stays of every node's first output."""
        found = {}
        for node in self.removal.graph.nodes:
            box = self._box(self.flow.values[node.name][0], node)
            found[node.name] = [
                (d, torch.nonzero(keep).flatten()) for d, keep in enumerate(box) if not bool(keep.all())
            ]
        return found

    def node(self, node: Node) -> Node:
        """`node` with every literal that counts channels recomputed."""
        role = ROLES.get(node.op, "opaque")
        if role in ("conv", "conv_transpose"):
            return self._convolution(node)
        if role == "group_norm":
            atoms = self.flow.channels(self.flow.operand(node.args[0]), 1)
            first = atoms.view(int(node.args[1]), -1)[:, 0]
            return _with_argument(node, 1, "num_groups", int(self.alive[first].sum()))
        if role == "pad":
            return self._pad(node)
        if role == "move" and node.op != "getitem":
            return self._move(node)
        return node

    def _convolution(self, node: Node) -> Node:
        groups = convolution_groups(node)
        weight = node.args[1]
        if groups == 1 or not isinstance(weight, StateRef):
            return node
        shape = self.removal.graph.state[weight.name].shape
        if ROLES[node.op] == "conv":
            inputs, outputs = shape[1] * groups, shape[0]
        else:
            inputs, outputs = shape[0], shape[1] * groups
        if not drops_whole_groups(inputs, outputs, groups):
            return node
        atoms = self.flow.axes[weight.name, 0].view(groups, -1)
        return _with_argument(node, 6, "groups", int(self.alive[atoms[:, 0]].sum()))

    def _box(self, atoms: Tensor, node: Node) -> list[Tensor]:
        """Per dimension, which indices stay. bool [size] each."""
        small = collapse(atoms)
        alive = self.alive[small]
        keep = []
        for dim, size in enumerate(small.shape):
            rest = [d for d in range(small.ndim) if d != dim]
            stays = alive.any(dim=rest) if rest else alive
            keep.append(stays if size == atoms.shape[dim] else stays.expand(atoms.shape[dim]))
        box = torch.ones([], dtype=torch.bool)
        for dim, size in enumerate(small.shape):
            part = keep[dim][:size]
            box = box & part.reshape([-1 if d == dim else 1 for d in range(small.ndim)])
        if not torch.equal(box.expand(small.shape), alive):
            raise UserError(
                f"{node.op} at {node.label} reshapes channels so that removing some leaves holes: "
                "prune it by whole groups, or leave its layers out"
            )
        return keep

    def compact(self, atoms: Tensor, node: Node) -> Tensor:
        """`atoms` without what is removed."""
        for dim, keep in enumerate(self._box(atoms, node)):
            if not bool(keep.all()):
                atoms = atoms.index_select(dim, torch.nonzero(keep).flatten())
        return atoms

    def _pad(self, node: Node) -> Node:
        amounts = list(node.args[1])
        before, after = self.flow.operand(node.args[0]), self.flow.values[node.name][0]
        keep = self._box(after, node)
        for pair in range(len(amounts) // 2):
            dim = before.ndim - 1 - pair
            front, back = amounts[2 * pair : 2 * pair + 2]
            if front > 0 and not bool(keep[dim].all()):
                amounts[2 * pair] = int(keep[dim][:front].sum())
            if back > 0 and not bool(keep[dim].all()):
                amounts[2 * pair + 1] = int(keep[dim][-back:].sum())
        return _with_argument(node, 1, "pad", tuple(amounts))

    def _move(self, node: Node) -> Node:
        before = [self.flow.operand(item) for item in _operands(node)]
        after = self.flow.values[node.name]
        if all(bool(self.alive[collapse(atoms)].all()) for atoms in (*before, *after)):
            return node
        changed = self._with_sizes(node, before, after)
        expected = [self.compact(atoms, node) for atoms in after]
        try:
            arrived = run_move(changed, lambda item: self.compact(self.flow.operand(item), node), self.flow.batch)
        except (RuntimeError, IndexError) as error:
            raise UserError(
                f"{node.op} at {node.label} cannot hold the smaller tensor ({_line(error)}): "
                "compute its sizes from the tensor's shape"
            ) from None
        same = len(arrived) == len(expected) and all(
            torch.equal(self._roots(a), self._roots(b)) for a, b in zip(arrived, expected, strict=True)
        )
        if not same:
            raise UserError(
                f"{node.op} at {node.label} mixes channels across what is removed: "
                "compute its sizes from the tensor's shape, or leave its layers unpruned"
            )
        return changed

    def _roots(self, atoms: Tensor) -> Tensor:
        small = collapse(atoms)
        found = torch.tensor([self.flow.sets.find(a) for a in small.flatten().tolist()], dtype=torch.int64)
        return found.reshape(small.shape).expand(atoms.shape)

    def _with_sizes(self, node: Node, before: list[Tensor], after: list[Tensor]) -> Node:
        name = node.op.split(".")[1]
        rank = before[0].ndim

        def count(position: int, dim: int) -> int:
            return int(self._box(after[position], node)[dim].sum())

        if name in ("view", "reshape", "_unsafe_view", "expand"):
            sizes = tuple(
                size
                if isinstance(size, Batch) or size == -1
                else count(0, dim + len(after[0].shape) - len(node.args[1]))
                for dim, size in enumerate(node.args[1])
            )
            return _with_argument(node, 1, "size", sizes)
        if name == "unflatten":
            dim = int(node.args[1]) % rank
            sizes = tuple(
                size if size == -1 or isinstance(size, Batch) else count(0, dim + i)
                for i, size in enumerate(node.args[2])
            )
            return _with_argument(node, 2, "sizes", sizes)
        if name in ("split", "chunk", "split_with_sizes"):
            dim = int(argument_of(node, 2, "dim", 0)) % rank
            sizes = tuple(count(part, dim) for part in range(len(after)))
            return replace(node, op="aten.split_with_sizes.default", args=(node.args[0], sizes, dim), kwargs={})
        if name in ("slice", "narrow", "select"):
            return self._cut(node, name, before[0])
        return node

    def _cut(self, node: Node, name: str, source: Tensor) -> Node:
        dim = int(argument_of(node, 1, "dim", 0)) % source.ndim
        keep = self._box(source, node)[dim]
        if bool(keep.all()):
            return node
        size = source.shape[dim]

        def moved(position: int) -> int:
            clipped = max(0, position + size if position < 0 else min(position, size))
            return int(keep[:clipped].sum())

        if name == "select":
            return _with_argument(node, 2, "index", moved(int(node.args[2])))
        if name == "narrow":
            start, length = int(node.args[2]), int(node.args[3])
            start += size if start < 0 else 0
            cut = _with_argument(node, 2, "start", moved(start))
            return _with_argument(cut, 3, "length", moved(start + length) - moved(start))
        start, end = argument_of(node, 2, "start"), argument_of(node, 3, "end")
        cut = _with_argument(node, 2, "start", None if start is None else moved(int(start)))
        return _with_argument(cut, 3, "end", None if end is None else moved(int(end)))


def _operands(node: Node) -> list[Argument]:
    first = node.args[0]
    return list(first) if isinstance(first, tuple) else [first]


def _with_argument(node: Node, position: int, name: str, value: Argument) -> Node:
    if position < len(node.args):
        return replace(node, args=(*node.args[:position], value, *node.args[position + 1 :]))
    if name in (node.kwargs or {}) or value is not None:
        return replace(node, kwargs={**(node.kwargs or {}), name: value})
    return node


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:120]


def with_shapes(graph: Graph, state: Mapping[str, Tensor]) -> Graph:
    """`graph` with every node's shapes found by running it without data.

    Raises:
        InvariantError: an operator does not accept the shapes it gets.
    """
    try:
        shapes = infer_shapes(graph, state)
    except UserError as error:
        raise InvariantError(f"the shrunk network does not fit together: {error}") from None
    return replace(graph, nodes=tuple(replace(node, shapes=shapes[node.name]) for node in graph.nodes))
