"""Brute force against shrinking: perturb what computes a unit and what reads it, and see whether anything changes.

The probe knows the weights, the values that flow, and the output; not why the shrinker did what it did. Its only
question to the shrinker is for the reason why a unit or filter that looks removable stays, and it checks that reason.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from export.shrink import Shrunk
from export.unused_paths import remove_unused_paths
from structadmm.graph import AxisSlice, CoupledGroup, Graph, GraphModule
from structadmm.graph.ir import Argument, Batch, Node, Ref, StateRef, leaves, map_argument
from structadmm.graph.module import flat_outputs, resolve
from structadmm.graph.operators import ROLES

SATURATING = ("aten.relu.default", "aten.hardtanh.default", "aten.hardsigmoid.default", "aten.hardswish.default")
# A ReLU that happens to be off hides one perturbation, but hardly those of both signs at several strengths.
SCALES = (1.0, -1.0, 10.0, -10.0, 1000.0, -1000.0)


@dataclass
class Probed:
    """What was perturbed.

    Attributes:
        units: how many units, each by what computes it and by what reads it.
        dead_filters: filters without weights among them that stay.
        reasons: why units or filters stay that look removable, each reason checked, and how often.
    """

    units: int = 0
    dead_filters: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def probe(shrunk: Shrunk, units: int | None = None, seed: int = 0) -> Probed:
    """Probe `units` units of a shrunk network in float64; None: all of them.

    Raises:
        AssertionError: something could have been removed, or the reason why it was not is wrong.
    """
    again = remove_unused_paths(shrunk.graph, shrunk.state)
    assert not again.count, f"shrinking again removes {again.count} more units"
    every = [(group, unit) for group in again.coupling.groups if group.producers for unit in range(group.units)]
    chosen = every if units is None else random.Random(seed).sample(every, min(units, len(every)))
    shape = shrunk.graph.inputs[0].shape
    inputs = torch.randn(
        24 if units is None else 2, *shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    inputs[len(inputs) // 2 :] *= 10
    worker = _Probe(shrunk, inputs)
    for group, unit in chosen:
        worker.unit(group, unit, again.kept.get(group.name, {}).get(unit))
    return worker.found


class _Probe:
    def __init__(self, shrunk: Shrunk, inputs: Tensor) -> None:
        self.found = Probed()
        self.shrunk = shrunk
        self.real = _Watched(shrunk.graph, shrunk.state, inputs)
        self.linear = _Watched(_without_saturation(shrunk.graph), shrunk.state, inputs)

    def unit(self, group: CoupledGroup, unit: int, why: str | None) -> None:
        """Perturb one unit, then its filters one by one."""
        self.found.units += 1
        dead = [key for key in _filters(group, unit) if not bool(self._filter(key).any())]
        computed = [part for part in group.producers + group.affine if _trains(part)]
        unread = not self._matters(computed, unit)
        valueless = bool(group.consumers) and not self._matters(group.consumers, unit)
        if len(dead) == len(_filters(group, unit)) and group.consumers:
            # Without saturation a ReLU's zero would look alive: what is read of it tells.
            valueless = valueless or not any(bool(value.any()) for _, _, value in self._read(group, unit, self.real))
        if group.frozen is None and (unread or valueless or not group.consumers):
            assert why is not None, f"unit {unit} of {group.name} could have been removed"
            self._last(group, unit, why)
        elif unread or valueless:
            self._note(f"fixed: {_kind(group.frozen)}")
        for key in dead:
            self.found.dead_filters += 1
            self._dead(group, unit, key, why)
        for name, axis, index in _filters(group, unit):
            alone = AxisSlice(name, axis, torch.tensor([[index]]).numpy())
            if (name, axis, index) not in dead and not self._matters([alone], 0):
                # Its result is not used, but the channel of the tensor that it is added to or multiplied with is.
                tied = len(_filters(group, unit)) > 1 or unread
                assert tied, f"filter {index} of {name} has no effect on the output"
                self._note("one of several that are one channel, and another matters" if not unread else "see its unit")

    def _dead(self, group: CoupledGroup, unit: int, key: tuple[str, int, int], why: str | None) -> None:
        """A filter without weights stays: check why."""
        name, _, index = key
        if group.frozen is not None:
            self._note(f"fixed: {_kind(group.frozen)}")
            return
        assert why is not None, f"filter {index} of {name} is zero and nothing says why it stays"
        read = self._read(group, unit, self.real)
        if "meets the padding" in why or "meets other weights" in why:
            constant = [
                (node, channel) for node, channel, value in read if float(value.min()) == float(value.max()) != 0.0
            ]
            assert any(self._makes_a_picture(node, channel) for node, channel in constant), (
                f"filter {index} of {name}: {why}, but every convolution turns the constant into another"
            )
            self._note("a constant that meets padding, or phases of a stride")
        elif "reads it" in why:
            # A ReLU may happen to be off; without it the value varies. So does what padding makes of a constant.
            read += self._read(group, unit, self.linear)
            varying = [node for node, _, value in read if float(value.min()) != float(value.max())]
            assert varying, f"filter {index} of {name}: {why}, but that is a constant"
            self._note("one of several that are one channel, and another matters")
        elif "last channel" in why:
            self._last(group, unit, why)
        else:
            assert "is shared" in why, f"filter {index} of {name}: {why}"
            self._note("a constant, and the reader's bias is shared")

    def _last(self, group: CoupledGroup, unit: int, why: str) -> None:
        """The unit stays because a tensor would be empty without it: it must be all of that tensor's channels."""
        assert "last channel" in why, f"unit {unit} of {group.name} stays: {why}"
        (named,) = (node for node in self.shrunk.graph.nodes if why.endswith(f"[{node.name}]"))
        channels = min(shape[1] for shape in named.shapes)  # a split has several
        assert channels <= max(part.indices.shape[1] for part in group.producers), why
        self._note("the last channel of a tensor")

    def _read(self, group: CoupledGroup, unit: int, network: _Watched) -> list[tuple[str, int, Tensor]]:
        """What flows where the unit is read: (node, channel, its values)."""
        found = []
        for part in group.consumers:
            for node in self.shrunk.graph.nodes:
                weight = node.args[1] if len(node.args) > 1 else None
                if ROLES.get(node.op) not in ("conv", "conv_transpose", "linear") or weight != StateRef(part.parameter):
                    continue
                given = network.values[node.args[0].node]
                axis = given.ndim - 1 if ROLES[node.op] == "linear" else 1
                groups = given.shape[axis] // self.shrunk.state[part.parameter].shape[part.axis]
                size = given.shape[axis] // groups
                for index in part.indices[unit].tolist():
                    read = [g * size + index for g in range(groups)]
                    found += [(node.name, channel, given.select(axis, channel)) for channel in read]
        return found

    def op(self, name: str) -> str:
        """The operator of a node."""
        return self.shrunk.graph.node(name).op

    def _makes_a_picture(self, name: str, channel: int) -> bool:
        """Whether a convolution of ones in one channel, of zeros in the others, differs from place to place."""
        node = self.shrunk.graph.node(name)
        if "conv" not in node.op:
            return False
        weight, given = self.shrunk.state[node.args[1].name], torch.zeros_like(self.real.values[node.args[0].node][:1])
        given[:, channel] = 1.0
        options = (list(item) if isinstance(item, tuple) else item for item in node.args[3:])
        result = resolve(node.op)(given, weight, None, *options, **(node.kwargs or {})).flatten(2)
        return bool((result != result[..., :1]).any())

    def _filter(self, key: tuple[str, int, int]) -> Tensor:
        name, axis, index = key
        return self.shrunk.state[name].select(axis, index)

    def _matters(self, parts: Sequence[AxisSlice], unit: int) -> bool:
        slices = [(part.parameter, part.axis, torch.from_numpy(part.indices[unit])) for part in parts]
        return any(network.matters(slices) for network in (self.real, self.linear))

    def _note(self, reason: str) -> None:
        self.found.reasons[reason] += 1


class _Watched:
    """A network whose output is compared with what it was before a perturbation."""

    def __init__(self, graph: Graph, state: dict[str, Tensor], inputs: Tensor) -> None:
        self.graph = graph
        self.batch = len(inputs)
        self.tensors = {key: tensor.clone() for key, tensor in state.items()}
        with torch.no_grad():
            self.values = GraphModule(graph, self.tensors).eval().run(inputs, keep_all=True)
        self.rests: dict[int, tuple[GraphModule, list[Tensor]]] = {}
        self.readers: dict[str, int] = {}
        for position, node in enumerate(graph.nodes):
            for ref in leaves(node, StateRef):
                self.readers.setdefault(ref.name, position)

    def matters(self, parts: Sequence[tuple[str, int, Tensor]]) -> bool:
        """Whether any of a few perturbations of these slices changes the output."""
        slices = [(self.tensors[name], axis, rows) for name, axis, rows in parts]
        before = [tensor.index_select(axis, rows) for tensor, axis, rows in slices]
        rest, inputs = self._rest(min((self.readers[name] for name, _, _ in parts), default=0))
        with torch.no_grad():
            for scale in SCALES:
                for (tensor, axis, rows), old in zip(slices, before, strict=True):
                    noise = torch.randn(old.shape, dtype=old.dtype, generator=torch.Generator().manual_seed(7))
                    tensor.index_copy_(axis, rows, old + scale * noise)
                arrived = flat_outputs(rest(*inputs))
                for (tensor, axis, rows), old in zip(slices, before, strict=True):
                    tensor.index_copy_(axis, rows, old)
                if any(
                    bool((value != self.values[ref.node]).any())
                    for value, ref in zip(arrived, self.graph.outputs, strict=True)
                ):
                    return True
        return False

    def _rest(self, start: int) -> tuple[GraphModule, list[Tensor]]:
        """The network from one node on, and what it takes: nothing before it can change."""
        if start not in self.rests:
            nodes = self.graph.nodes[start:]
            own = {node.name for node in nodes}
            given = dict.fromkeys(ref.node for node in nodes for ref in leaves(node, Ref) if ref.node not in own)
            given |= dict.fromkeys(ref.node for ref in self.graph.outputs if ref.node not in own)
            given |= dict.fromkeys(node.name for node in nodes if node.op == "input")
            # A list of tensors is taken apart by the nodes that follow it.
            if any(not isinstance(self.values[name], Tensor) for name in given):
                return self._rest(start - 1)
            inputs = [self.values[name] for name in given]
            heads = [Node(name, "input", shapes=(tuple(self.values[name].shape),)) for name in given]
            body = [self._at_this_batch(node) for node in nodes if node.op != "input"]
            graph = replace(self.graph, nodes=(*heads, *body), batch=None)
            self.rests[start] = GraphModule(graph, self.tensors).eval(), inputs
        return self.rests[start]

    def _at_this_batch(self, node: Node) -> Node:
        """`node` with sizes that follow the batch written out; what stands first in a rest may be no batch."""

        def size(value: Argument) -> Argument:
            return value.factor * self.batch if isinstance(value, Batch) else value

        return replace(node, args=tuple(map_argument(value, size) for value in node.args))


def _filters(group: CoupledGroup, unit: int) -> list[tuple[str, int, int]]:
    return [(part.parameter, part.axis, int(index)) for part in group.producers for index in part.indices[unit]]


def _trains(part: AxisSlice) -> bool:
    """Statistics are computed, and a negative variance would be none."""
    return not part.parameter.endswith(("running_mean", "running_var"))


def _kind(reason: str | None) -> str:
    """A reason without the names in it."""
    return " ".join(word for word in str(reason).split() if not any(c in word for c in "'[]0123456789"))[:60]


def _without_saturation(graph: Graph) -> Graph:
    """`graph` with its ReLUs and clamps let everything through: one that happens to be off hides what is before it."""
    nodes = [
        replace(node, op="aten.alias.default", args=node.args[:1], kwargs={}) if node.op in SATURATING else node
        for node in graph.nodes
    ]
    return replace(graph, nodes=tuple(nodes))
