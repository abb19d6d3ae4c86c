"""Exact removal of what has no effect: dead filters, channels nobody reads, and what follows from them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from export.constants import ConstantFlow
from export.merge_constants import ConstantRead, Transfer, transfers
from export.weight_use import WeightUse
from structadmm.graph.atoms import AtomFlow, argument_of, collapse, convolution_groups
from structadmm.graph.coupling import CoupledGroup, Coupling, coupling_of
from structadmm.graph.ir import Graph, Node, Ref, StateEntry, StateRef, leaves
from structadmm.graph.operators import ROLES


@dataclass(frozen=True)
class Removal:
    """A network whose removable units are all zero, and which ones they are.

    Attributes:
        graph: the given graph without operators that reach no output; some convolutions may have gained a bias.
        state: the given state with every removed unit zeroed; shares the tensors that did not change.
        flow: the atoms of `graph`.
        coupling: the groups of `graph`.
        removed: by group name, the unit numbers to remove, ascending.
        folded: constants that were moved into a bias or merged into another channel, one line each.
        kept: units that are dead or constant and stay, by group name: unit number -> why.
    """

    graph: Graph
    state: dict[str, Tensor]
    flow: AtomFlow
    coupling: Coupling
    removed: dict[str, list[int]]
    folded: tuple[str, ...]
    kept: dict[str, dict[int, str]]

    @property
    def count(self) -> int:
        """How many units are removed."""
        return sum(len(units) for units in self.removed.values())


def remove_unused_paths(graph: Graph, state: Mapping[str, Tensor]) -> Removal:
    """Zero every unit that does not influence the output, to a fixed point.

    A unit goes when, at each convolution and linear that reads it, its weights are zero except in filters that go, too,
    or its value is zero, or its value is a constant that can be folded into that layer's bias exactly (no zero padding
    mixes with it). Of several constants that meet the same padding one stays, and takes over the others' weights.

    Ensures: the network computes the same function in evaluation mode; every unit that could go is zero in all its
        parts.

    Args:
        graph: the network.
        state: its tensors; not modified.
    """
    graph = _reaching_outputs(graph)
    tensors = {name: state[name].detach() for name, entry in graph.state.items() if entry.alias_of is None}
    folded: list[str] = []
    while True:
        work = _Work(graph, tensors)
        while work.step() or work.merge():
            pass
        tensors = work.state
        folded += work.folded
        if not work.without_bias:
            return work.result(tuple(folded))
        graph, tensors = _with_biases(graph, tensors, work.without_bias)


def _reaching_outputs(graph: Graph) -> Graph:
    """`graph` without operators whose result nobody uses, and without the state that only they read."""
    needed = {ref.node for ref in graph.outputs}
    nodes = []
    for node in reversed(graph.nodes):
        if node.name in needed or node.op == "input":
            nodes.append(node)
            needed |= {ref.node for ref in leaves(node, Ref)}
    everything = {ref.name for node in graph.nodes for ref in leaves(node, StateRef)}
    read = {ref.name for node in nodes for ref in leaves(node, StateRef)}
    # Batch counters are read by no operator; they follow the statistics beside them.
    lost = {f"{name.rpartition('.')[0]}.num_batches_tracked" for name in everything - read} | (everything - read)
    state = {name: entry for name, entry in graph.state.items() if name not in lost and entry.alias_of not in lost}
    return replace(graph, nodes=tuple(reversed(nodes)), state=state)


@dataclass(frozen=True)
class _Reading:
    """A convolution or linear that reads units.

    Attributes:
        node: the operator.
        inputs: the root of each input channel.
        outputs: the root of each output channel.
        values: float64 [inputs]; NaN where a channel is no constant.
        uneven: bool [inputs], constants that add different numbers at different places, because of padding, or of the
            phases of a transposed convolution.
        use: which output reads which input.
    """

    node: Node
    inputs: list[int]
    outputs: list[int]
    values: Tensor
    uneven: Tensor
    use: WeightUse


class _Work:
    """The sweeps over one graph; stops early when a constant needs a bias that its layer does not have."""

    def __init__(self, graph: Graph, state: dict[str, Tensor]) -> None:
        self.graph = graph
        self.state = dict(state)
        self.flow = AtomFlow(graph)
        self.coupling = coupling_of(self.flow)
        self.without_bias: set[str] = set()
        self.nodes = graph.by_name()
        self.times_used = Counter(ref.name for node in graph.nodes for ref in leaves(node, StateRef))
        self.removed: set[int] = set()  # roots
        self.silent: set[int] = set()  # roots that are zero in all their parts; the removed ones and a few that stay
        self.folded: list[str] = []
        # The atom that stands for each unit.
        self.roots = {group.name: unit_roots(self.flow, group) for group in self.coupling.groups}
        self.group_of = {
            root: (group, unit) for group in self.coupling.groups for unit, root in enumerate(self.roots[group.name])
        }
        self.blockers: dict[int, str] = {}
        # Per root, the convolutions whose padding keeps its constant from being folded; and what else blocks a root.
        self.padded: dict[int, list[ConstantRead]] = {}
        self.firm: set[int] = set()

    def step(self) -> bool:
        """One sweep; whether anything changed."""
        blocked = self._silence_blocked_filters()
        constants = ConstantFlow(self.graph, self.state)
        self.blockers, self.padded, self.firm = {}, defaultdict(list), set()
        folds: dict[int, list[tuple[str, Tensor]]] = defaultdict(list)
        self._find_needed([*filter(None, (self._reading(node, constants) for node in self.graph.nodes))], folds)
        without_effect = [
            root
            for group in self.coupling.groups
            if group.frozen is None
            for root in self.roots[group.name]
            if root not in self.removed and root not in self.blockers
        ]
        chosen = self._keep_tensors_non_empty(without_effect)
        # A unit that only stays so that no tensor is empty is zeroed too: it must not keep its inputs alive.
        fresh = [root for root in without_effect if root not in self.silent]
        self.without_bias = {name for root in fresh for name, _ in folds.get(root, ()) if self._bias(name) is None}
        if self.without_bias:
            return False
        for root in fresh:
            for name, values in folds.get(root, ()):
                self._add_bias(name, values)
        self._zero(fresh)
        self.silent |= set(fresh)
        self.removed |= set(chosen)
        return bool(chosen) or bool(fresh) or blocked

    def _reading(self, node: Node, constants: ConstantFlow) -> _Reading | None:
        """What `node` reads; None if it reads no units."""
        role = ROLES.get(node.op)
        if role not in ("conv", "conv_transpose", "linear") or not isinstance(node.args[1], StateRef):
            return None
        key = (node.args[1].name, 0 if role == "conv_transpose" else 1)
        if self.flow.roles.get(key) != "consumer":
            return None  # depthwise and the like: inputs and outputs are one unit
        given = self.flow.operand(node.args[0])
        axis = given.ndim - 1 if role == "linear" else 1
        inputs, outputs = (
            [self.flow.sets.find(atom) for atom in self.flow.channels(atoms, axis).tolist()]
            for atoms in (given, self.flow.values[node.name][0])
        )
        values, use = constants.channels(node.args[0], axis), constants.weight_use(node)
        uneven = torch.zeros(len(inputs), dtype=torch.bool)
        fixed = torch.nonzero(~values.isnan() & (values != 0)).flatten()
        uneven[fixed] = use.uneven(fixed).any(dim=0)
        return _Reading(node, inputs, outputs, values, uneven, use)

    def _find_needed(self, readings: list[_Reading], folds: dict[int, list[tuple[str, Tensor]]]) -> None:
        """Follow what is read back from the outputs. What only units without effect read, themselves even, is free."""
        needed = {root for group in self.coupling.groups if group.frozen is not None for root in self.roots[group.name]}
        seen = {reading.node.name: torch.zeros(len(reading.inputs), dtype=torch.bool) for reading in readings}
        changed = True
        while changed:
            changed = False
            for reading in reversed(readings):  # readers mostly come after what they read: a round or two
                rows = torch.tensor([root in needed or root not in self.group_of for root in reading.outputs])
                read = reading.use.reads[rows].any(dim=0) & (reading.values != 0) & ~seen[reading.node.name]
                seen[reading.node.name] |= read
                for channel in torch.nonzero(read).flatten().tolist():
                    self._read(reading, channel, folds)
                    root = reading.inputs[channel]
                    if root in self.blockers and root not in needed:
                        needed.add(root)
                        changed = True

    def _read(self, reading: _Reading, channel: int, folds: dict[int, list[tuple[str, Tensor]]]) -> None:
        """A channel that is not zero is read for the output's sake: it is needed, or folded."""
        node, root, value = reading.node, reading.inputs[channel], float(reading.values[channel])
        layer = node.layer or node.name
        if np.isnan(value):
            self.blockers[root] = f"{layer} reads it"
            self.firm.add(root)
        elif bool(reading.uneven[channel]):
            group = channel * convolution_groups(node) // len(reading.inputs)
            self.padded[root].append(ConstantRead(node.name, group, channel, value))
            # A transposed convolution has other weights for each phase of its stride, padded or not.
            what = "other weights from place to place" if ROLES[node.op] == "conv_transpose" else "the padding"
            self.blockers.setdefault(root, f"its constant {value:.4g} meets {what} of {layer}, so folding is inexact")
        elif self.times_used[self._bias(node.name) or ""] > 1:
            self.blockers.setdefault(root, f"the bias of {layer} is shared, so nothing is folded")
            self.firm.add(root)
        else:
            folds[root].append((node.name, reading.use.sums[:, channel] * value))

    def merge(self) -> bool:
        """Give one constant channel the weights of others like it, after a sweep; whether anything changed."""
        if self.without_bias:
            return False
        once = {
            root: reads
            for root, reads in self.padded.items()
            if all(self.times_used[self._weight(read.node)] == 1 for read in reads)
        }
        staying = self.firm | {root for root in once if self.group_of[root][0].frozen is not None}
        found = transfers(once, staying)
        by_node: dict[str, list[Transfer]] = defaultdict(list)
        for moves in found.values():
            for move in moves:
                by_node[move.node].append(move)
        for name, moves in by_node.items():
            self._transfer(self.nodes[name], moves)
        for root in found:
            group, unit = self.group_of[root]
            self.folded.append(f"unit {unit} of {group.name}, a constant, was merged into another constant channel")
        return bool(found)

    def _transfer(self, node: Node, moves: list[Transfer]) -> None:
        name = self._weight(node.name)
        before = self.state[name]
        weight = before.to(torch.float64, copy=True)
        groups = convolution_groups(node)
        for move in moves:
            if ROLES[node.op] == "conv_transpose":
                read = weight  # [I, O / groups, ...]: a channel has a row of its own
                source, target = move.source, move.target
            else:
                # [O, I / groups, ...]: the rows of the channel's group
                rows, inputs = weight.shape[0] // groups, weight.shape[1]
                group = move.source // inputs
                read = weight[group * rows : (group + 1) * rows].transpose(0, 1)
                source, target = move.source % inputs, move.target % inputs
            read[target] += move.factor * read[source]
            read[source] = 0
        self.state[name] = weight.to(before.dtype)

    def _weight(self, name: str) -> str:
        reference = self.nodes[name].args[1]
        assert isinstance(reference, StateRef)
        return reference.name

    def _keep_tensors_non_empty(self, chosen: list[int]) -> list[int]:
        """Take back units without which some tensor would have no elements: that is no network."""
        going = self.removed | set(chosen)
        emptied: list[tuple[list[int], Node]] = []
        for node in self.graph.nodes:
            for atoms in self.flow.values[node.name]:
                roots = list(dict.fromkeys(self.flow.sets.find(atom) for atom in collapse(atoms).flatten().tolist()))
                if roots and going.issuperset(roots):
                    emptied.append((roots, node))
        # Small tensors first: what they need also serves the tensors that they are a part of.
        for roots, node in sorted(emptied, key=lambda item: len(item[0])):
            if going.issuperset(roots):
                back = next(root for root in roots if root not in self.removed)
                going.discard(back)
                self.blockers[back] = f"it is the last channel of {node.label}"
        return [root for root in chosen if root in going]

    def _zero(self, roots: list[int]) -> None:
        indices: dict[tuple[str, int], list[int]] = defaultdict(list)
        for root in roots:
            group, unit = self.group_of[root]
            for part in group.slices:
                if self.graph.state[part.parameter].kind == "parameter":
                    indices[part.parameter, part.axis] += part.indices[unit].tolist()
        for (name, axis), found in indices.items():
            self._zero_slice(name, axis, found)

    def _zero_slice(self, name: str, axis: int, indices: list[int]) -> None:
        tensor = self.state[name].clone()
        tensor.index_fill_(axis, torch.tensor(indices, device=tensor.device), 0)
        self.state[name] = tensor

    def _silence_blocked_filters(self) -> bool:
        """Zero a filter whose only reader is a normalisation that multiplies it by zero."""
        changed = False
        users = self.graph.users()
        returned = {ref.node for ref in self.graph.outputs}
        # Of a linear layer on tokens, axis 1 counts tokens.
        produced = {
            node.name: node
            for node in self.graph.nodes
            if ROLES.get(node.op) == "conv" or (ROLES.get(node.op) == "linear" and len(node.shape) == 2)
        }
        for node in self.graph.nodes:
            if ROLES.get(node.op) != "batch_norm" or not isinstance(node.args[1], StateRef):
                continue
            source = produced.get(getattr(node.args[0], "node", ""))
            if source is None or len(users[source.name]) > 1 or source.name in returned:
                continue
            names = [item.name for item in source.args[1:3] if isinstance(item, StateRef)]
            if any(self.times_used[name] > 1 for name in names) or node.args[1].name in names:
                continue
            dead = torch.nonzero(self.state[node.args[1].name] == 0).flatten().tolist()
            for name in names:
                alive = [o for o in dead if bool((self.state[name][o] != 0).any())]
                if alive:
                    self._zero_slice(name, 0, alive)
                    changed = True
        return changed

    def _bias(self, name: str) -> str | None:
        bias = argument_of(self.nodes[name], 2, "bias")
        return bias.name if isinstance(bias, StateRef) else None

    def _add_bias(self, name: str, values: Tensor) -> None:
        bias = self._bias(name)
        assert bias is not None
        before = self.state[bias]
        self.state[bias] = (before.double() + values.to(before.device)).to(before.dtype)
        self.folded.append(f"a constant channel was folded into {bias}")

    def result(self, folded: tuple[str, ...]) -> Removal:
        """What the sweeps found."""
        removed: dict[str, list[int]] = {}
        kept: dict[str, dict[int, str]] = {}
        for group in self.coupling.groups:
            for unit, root in enumerate(self.roots[group.name]):
                if root in self.removed:
                    removed.setdefault(group.name, []).append(unit)
                elif self._has_dead_filter(group, unit):
                    kept.setdefault(group.name, {})[unit] = group.frozen or self.blockers[root]
        return Removal(self.graph, self.state, self.flow, self.coupling, removed, folded, kept)

    def _has_dead_filter(self, group: CoupledGroup, unit: int) -> bool:
        """Whether any filter of the unit is zero; a grouped convolution's unit has several."""
        for part in group.producers:
            filters = self.state[part.parameter].index_select(part.axis, torch.from_numpy(part.indices[unit]))
            if not bool(filters.movedim(part.axis, 0).flatten(1).any(dim=1).all()):
                return True
        return False


def unit_roots(flow: AtomFlow, group: CoupledGroup) -> list[int]:
    """The representative atom of each unit of `group`."""
    first = group.slices[0]
    return [flow.sets.find(int(flow.axes[first.parameter, first.axis][row[0]])) for row in first.indices]


def _with_biases(graph: Graph, state: Mapping[str, Tensor], names: set[str]) -> tuple[Graph, dict[str, Tensor]]:
    """`graph` with a zero bias for the convolutions and linears called `names`."""
    tensors, entries, nodes = dict(state), dict(graph.state), list(graph.nodes)
    for position, node in enumerate(graph.nodes):
        if node.name not in names:
            continue
        weight = node.args[1]
        assert isinstance(weight, StateRef)
        name = weight.name.removesuffix("weight") + "bias"
        while name in entries:
            name += "_"
        like = tensors[weight.name]
        outputs = node.shape[-1] if ROLES[node.op] == "linear" else node.shape[1]
        tensors[name] = torch.zeros(outputs, dtype=like.dtype, device=like.device)
        entries[name] = StateEntry("parameter", (outputs,), str(like.dtype).removeprefix("torch."))
        kwargs = {key: value for key, value in (node.kwargs or {}).items() if key != "bias"}
        nodes[position] = replace(node, args=(*node.args[:2], StateRef(name), *node.args[3:]), kwargs=kwargs)
    return replace(graph, nodes=tuple(nodes), state=entries), tensors
