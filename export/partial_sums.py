"""Sums of which one operand has dead channels: compute the living ones only, and put them where they belong.

A filter that is dead in one branch of a residual sum cannot be removed with its channel, which the other branch fills.
Its convolution can do without it all the same: the living channels are followed by one channel of zeros, and an
`index_select` spreads them over the sum's channels. That costs a pass or two over the tensor, so it is done only where
the multiplications saved are worth more.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from export.constants import ConstantFlow
from export.shrink import Shrunk, with_shapes
from structadmm.graph.atoms import argument_of, convolution_groups
from structadmm.graph.ir import Graph, Node, Ref, StateEntry, StateRef, leaves
from structadmm.graph.operators import ROLES

# What padding, selecting, a sum of its own and the change of layout around them cost on an Adreno 640, in
# multiplications of a 3x3 convolution there. In a ResNet-18 with half of each block's last filters dead the compiler's
# cost model finds five more launches a block, 0.36 ms on average at 50 million multiplications a millisecond, and 38.5
# ms become 32.1.
_MACS_PER_ELEMENT = 130
_MACS_OF_LAUNCHES = 5_500_000


def compact_partial_sums(shrunk: Shrunk) -> Shrunk:
    """Drop the filters that are dead in one operand of a sum, wherever that pays.

    The operand must be the private result of a convolution, possibly normalised; a dead filter's result must be exactly
    zero, after normalisation.

    Ensures: the same function; `keeps` tells which channels of the convolution are left.
    """
    worker = _Compacter(shrunk)
    for node in shrunk.graph.nodes:
        if node.op == "aten.add.Tensor" and len(node.shape) == 4 and (node.kwargs or {}).get("alpha", 1) == 1:
            for position in (0, 1):
                worker.operand(node, position)
    return worker.result()


class _Compacter:
    def __init__(self, shrunk: Shrunk) -> None:
        self.shrunk = shrunk
        self.graph: Graph = shrunk.graph
        self.by_name = shrunk.graph.by_name()
        self.users = shrunk.graph.users()
        self.returned = {ref.node for ref in shrunk.graph.outputs}
        self.used = Counter(ref.name for node in shrunk.graph.nodes for ref in leaves(node, StateRef))
        self.values = ConstantFlow(shrunk.graph, shrunk.state)
        self.state = dict(shrunk.state)
        self.entries = dict(shrunk.graph.state)
        self.kept = dict(shrunk.kept)
        self.keeps = dict(shrunk.keeps)
        self.after: dict[str, list[Node]] = {}  # by node name: what follows it now
        self.replaced: dict[str, Node] = {}

    def operand(self, node: Node, position: int) -> None:
        """Compact one operand of the sum `node`, if it can be done and pays."""
        current = self.replaced.get(node.name, node)
        reference = current.args[position]
        if not isinstance(reference, Ref) or self.by_name[reference.node].shape != node.shape:
            return
        chain = self._chain(reference.node)
        if not chain:
            return
        last, convolution = chain[0], chain[-1]
        dead = self.values.channels(Ref(last.name)) == 0  # bool [C]
        living = torch.nonzero(~dead).flatten()
        elements = math.prod(node.shape[1:])
        weight = convolution.args[1]
        assert isinstance(weight, StateRef)
        columns = math.prod(self.entries[weight.name].shape[1:])
        saved = int(dead.sum()) * elements // len(dead) * columns
        if not len(living) or saved <= _MACS_OF_LAUNCHES + _MACS_PER_ELEMENT * elements:
            return
        for each in chain:
            self._cut(each, living)
        index = torch.full((len(dead),), len(living), dtype=torch.int64)
        index[living] = torch.arange(len(living))
        name = f"{last.name}_channels"
        self.state[name] = index
        self.entries[name] = StateEntry("constant", tuple(index.shape), "int64")
        padded = Node(f"{last.name}_padded", "aten.constant_pad_nd.default",
                      (Ref(last.name), (0, 0, 0, 0, 0, 1), 0.0), {}, last.shapes, last.layer)  # fmt: skip
        spread = Node(f"{last.name}_spread", "aten.index_select.default",
                      (Ref(padded.name), 1, StateRef(name)), {}, last.shapes, last.layer)  # fmt: skip
        self.after[last.name] = [padded, spread]
        args = (*current.args[:position], Ref(spread.name), *current.args[position + 1 :])
        self.replaced[node.name] = replace(current, args=args)

    def _chain(self, name: str) -> list[Node]:
        """The nodes from `name` back to its convolution; empty if others need any of them."""
        chain: list[Node] = []
        while True:
            node = self.by_name[name]
            owned = [ref.name for ref in leaves(node, StateRef)]
            private = len(self.users[name]) == 1 and name not in self.returned
            if not private or any(self.used[key] > 1 or self._is_aliased(key) for key in owned):
                return []
            chain.append(node)
            if ROLES.get(node.op) == "conv":
                plain = convolution_groups(node) == 1 and isinstance(node.args[1], StateRef) and len(node.shape) == 4
                return chain if plain else []
            if ROLES.get(node.op) != "batch_norm" or not isinstance(node.args[0], Ref):
                return []
            name = node.args[0].node

    def _is_aliased(self, key: str) -> bool:
        return any(entry.alias_of == key for entry in self.entries.values())

    def _cut(self, node: Node, living: Tensor) -> None:
        """Keep `living` of what belongs to the node's output channels."""
        owned = [node.args[1], argument_of(node, 2, "bias")] if ROLES[node.op] == "conv" else list(node.args[1:5])
        for reference in owned:
            if isinstance(reference, StateRef):
                key = (reference.name, 0)
                self.state[reference.name] = self.state[reference.name].index_select(0, living)
                self.entries[reference.name] = replace(
                    self.entries[reference.name], shape=tuple(self.state[reference.name].shape)
                )
                self.kept[key] = self.kept[key][living] if key in self.kept else living
        dims = dict(self.keeps.get(node.name, ()))
        dims[1] = dims[1][living] if 1 in dims else living
        self.keeps[node.name] = list(dims.items())

    def result(self) -> Shrunk:
        """The network with everything that was compacted."""
        if not self.replaced:
            return self.shrunk
        nodes = [
            item
            for node in self.graph.nodes
            for item in (self.replaced.get(node.name, node), *self.after.get(node.name, ()))
        ]
        graph = replace(self.graph, nodes=tuple(nodes), state=self.entries)
        return Shrunk(with_shapes(graph, self.state), self.state, self.kept, self.keeps)
