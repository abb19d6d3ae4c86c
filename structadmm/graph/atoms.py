"""Which unit every element of every tensor belongs to, for one traced graph.

An *atom* is one index of one parameter axis (or one channel of a network input). An activation is an int64 tensor of
atom numbers of the activation's own shape, with stride 0 wherever its elements do not differ, so that ImageNet networks
stay small. Atoms that must be removed together are united; an atom that cannot be removed carries the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from structadmm.graph.ir import Argument, Batch, Graph, Node, Ref, StateRef, TorchConstant, Training, leaves
from structadmm.graph.module import resolve, shapes_at_one, torch_constant
from structadmm.graph.operators import ROLES


class UnionFind:
    """Disjoint sets of atoms, each with at most one reason why it cannot be removed."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.reason: dict[int, str] = {}

    def new(self, count: int) -> Tensor:
        """`count` fresh atoms, int64 [count]."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, atom: int) -> int:
        """The representative of `atom`'s set."""
        root = atom
        while self.parent[root] != root:
            root = self.parent[root]
        while self.parent[atom] != root:
            self.parent[atom], atom = root, self.parent[atom]
        return root

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Unite element by element; `a` and `b` broadcast."""
        a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
        for x, y in set(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)):
            p, q = self.find(x), self.find(y)
            if p == q:
                continue
            low, high = min(p, q), max(p, q)
            self.parent[high] = low
            reason = self.reason.pop(high, None)
            if reason is not None:
                self.reason.setdefault(low, reason)

    def freeze(self, atoms: Tensor, reason: str) -> None:
        """Forbid removal of `atoms`; the first reason given stays."""
        for atom in set(collapse(atoms).flatten().tolist()):
            self.reason.setdefault(self.find(atom), reason)

    def roots(self, atoms: Tensor) -> Tensor:
        """The representative of every element."""
        table = torch.tensor([self.find(atom) for atom in range(len(self.parent))], dtype=torch.int64)
        return table[atoms]


def collapse(atoms: Tensor) -> Tensor:
    """`atoms` with every dimension along which nothing changes cut to size 1."""
    for dim in range(atoms.ndim):
        if atoms.shape[dim] > 1 and (atoms.stride(dim) == 0 or bool((atoms == atoms.narrow(dim, 0, 1)).all())):
            atoms = atoms.narrow(dim, 0, 1)
    return atoms


def spread(atoms: Tensor, shape: Iterable[int]) -> Tensor:
    """The inverse of `collapse`: the full shape, repeated dimensions with stride 0."""
    shape = tuple(shape)
    return collapse(atoms).expand(shape) if 0 not in shape else atoms.expand(shape)


def literals(node: Node, batch: int | None) -> Callable[[Argument], Any]:
    """How to turn an argument without references into a Python value, at `batch`."""

    def value(argument: Argument) -> Any:
        match argument:
            case tuple():
                return [value(item) for item in argument]
            case Batch(factor):
                return factor * (batch or 1)
            case Training():
                return False
            case TorchConstant():
                return torch_constant(argument)
            case Ref() | StateRef():
                raise TypeError(f"{node.label} has a tensor where a literal is expected")
        return argument

    return value


def argument_of(node: Node, position: int, name: str, default: Argument = None) -> Argument:
    """The argument at `position`, wherever it was given."""
    if position < len(node.args):
        return node.args[position]
    return (node.kwargs or {}).get(name, default)


def convolution_groups(node: Node) -> int:
    """The `groups` of a convolution node."""
    # The seventh argument of both conv(x, w, b, stride, padding, dilation, groups) and conv_transpose(...).
    found = argument_of(node, 6, "groups", 1)
    assert isinstance(found, int)
    return found


def drops_whole_groups(inputs: int, outputs: int, groups: int) -> bool:
    """Whether a grouped convolution loses whole groups (depthwise: channels) or the same positions in every group.

    Both keep all groups of one size, which is what the operator needs. The choice that leaves more units is taken.
    """
    return groups > 1 and groups >= min(inputs // groups, outputs // groups)


class AtomFlow:
    """Follows atoms through a graph.

    Attributes:
        axes: atoms of each parameter axis that units own a part of, with the role: `producer`, `affine` or `consumer`.
        values: atoms of every node's outputs, at batch 1 where the graph allows it.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.batch = 1 if graph.batch is not None else None
        self.sets = UnionFind()
        self.axes: dict[tuple[str, int], Tensor] = {}
        self.roles: dict[tuple[str, int], str] = {}
        self.values: dict[str, list[Tensor]] = {}
        self.constants: dict[str, Tensor] = {}
        self._shapes = shapes_at_one(graph)
        for node in graph.nodes:
            self.values[node.name] = self._node(node)
        for ref in graph.outputs:
            for atoms in self.values[ref.node]:
                self.sets.freeze(atoms, f"network output {ref.node!r}")
        self._keep_rectangular()

    # -- state ---------------------------------------------------------------------------------------------------------

    def axis(self, parameter: str, axis: int, role: str) -> Tensor:
        """The atoms of one parameter axis, int64 [size]."""
        key = (parameter, axis)
        if key not in self.axes:
            self.axes[key] = self.sets.new(self.graph.state[parameter].shape[axis])
            self.roles[key] = role
        elif self.roles[key] != role:
            self.sets.freeze(self.axes[key], f"{parameter} is used in two different ways along axis {axis}")
        return self.axes[key]

    def operand(self, argument: Argument) -> Tensor:
        """The atoms of a tensor operand: a node's value, or a parameter used directly."""
        if isinstance(argument, Ref):
            return self.values[argument.node][0]
        assert isinstance(argument, StateRef)
        shape = self.graph.state[argument.name].shape
        varying = [axis for axis, size in enumerate(shape) if size > 1]
        if len(varying) == 1:
            atoms = self.axis(argument.name, varying[0], "affine")
            return spread(atoms.reshape([-1 if axis == varying[0] else 1 for axis in range(len(shape))]), shape)
        if argument.name not in self.constants:
            atoms = self.sets.new(1)
            if varying:
                reason = f"{argument.name} is used as a tensor that varies along several axes"
                self.sets.freeze(atoms, reason)
                for axis in range(len(shape)):
                    # It may be a layer's weight, too.
                    self.sets.freeze(self.axis(argument.name, axis, "affine"), reason)
            self.constants[argument.name] = atoms.reshape([1] * len(shape)).expand(shape)
        return self.constants[argument.name]

    def shapes(self, node: Node) -> list[tuple[int, ...]]:
        """The node's output shapes at the batch of the analysis."""
        return list(self._shapes[node.name])

    # -- operators -----------------------------------------------------------------------------------------------------

    def _node(self, node: Node) -> list[Tensor]:
        role = ROLES.get(node.op, "opaque")
        tensors = [*leaves(node, Ref), *leaves(node, StateRef)]
        match role:
            case "input":
                return [self._input(node)]
            case "conv":
                return [self._conv(node)]
            case "conv_transpose":
                return [self._conv_transpose(node)]
            case "linear":
                return [self._linear(node)]
            case "batch_norm" | "instance_norm":
                return [self._per_channel(node, (1, 2, 3, 4))]
            case "group_norm":
                return [self._group_norm(node)]
            case "prelu":
                return [self._per_channel(node, (1,))]
            case "pointwise" if len(tensors) == 1 or node.op == "aten.type_as.default":
                return [self.operand(node.args[0])]
            case "binary":
                return [self._binary(node)]
            case "move":
                return self._move(node)
            case "pad":
                return [self._pad(node)]
            case "spatial":
                return [self._spatial(node)]
            case "reduce":
                return [self._reduce(node)]
        return self._opaque(node, f"operator {node.op} at {node.label} is not understood")

    def _opaque(self, node: Node, reason: str) -> list[Tensor]:
        for argument in (*leaves(node, Ref), *leaves(node, StateRef)):
            if isinstance(argument, StateRef):
                for key, atoms in self.axes.items():
                    if key[0] == argument.name:
                        self.sets.freeze(atoms, reason)
                for axis in range(len(self.graph.state[argument.name].shape)):
                    # Registered so that a later use as a weight finds it frozen.
                    self.sets.freeze(self.axis(argument.name, axis, "affine"), reason)
            else:
                for atoms in self.values[argument.node]:
                    self.sets.freeze(atoms, reason)
        fresh = self.sets.new(1)
        self.sets.freeze(fresh, reason)
        return [fresh.reshape([1] * len(shape)).expand(shape) for shape in self.shapes(node)]

    def _input(self, node: Node) -> Tensor:
        (shape,) = self.shapes(node)
        axis = 1 if len(shape) > 1 else 0
        atoms = self.sets.new(shape[axis] if shape else 1)
        self.sets.freeze(atoms, f"network input {node.name!r}")
        return spread(atoms.reshape([-1 if dim == axis else 1 for dim in range(len(shape))]), shape)

    def channels(self, atoms: Tensor, axis: int) -> Tensor:
        """One atom per index of `axis`; everything else along it is united with that one. int64 [size]."""
        rows = collapse(atoms.movedim(axis, 0)).expand(atoms.shape[axis], *([-1] * (atoms.ndim - 1)))
        rows = rows.reshape(atoms.shape[axis], -1)
        if rows.shape[1] > 1:
            self.sets.unite(rows[:, :1], rows[:, 1:])
        return rows[:, 0].contiguous()

    def _conv(self, node: Node) -> Tensor:
        weight = self._weight(node)
        if weight is None:
            return self._opaque(node, f"{node.label} convolves with a computed weight")[0]
        (shape,) = self.shapes(node)
        if len(shape) != len(self.graph.state[weight].shape):
            return self._opaque(node, f"{node.label} convolves an input without a batch dimension")[0]
        groups = convolution_groups(node)
        given = self.channels(self.operand(node.args[0]), 1)
        out = self.axis(weight, 0, "producer")
        outputs, inputs = len(out), len(given)
        if groups == 1:
            self.sets.unite(self.axis(weight, 1, "consumer"), given)
        elif drops_whole_groups(inputs, outputs, groups):
            first = out.view(groups, -1)[:, :1]
            self.sets.unite(first, out.view(groups, -1))
            self.sets.unite(first, given.view(groups, -1))
        else:
            self.sets.unite(self.axis(weight, 1, "consumer"), given.view(groups, -1))
            self.sets.unite(out.view(groups, -1)[:1], out.view(groups, -1))
        self._affine(argument_of(node, 2, "bias"), out)
        return spread(out.reshape(1, -1, *([1] * (len(shape) - 2))), shape)

    def _conv_transpose(self, node: Node) -> Tensor:
        weight = self._weight(node)
        if weight is None:
            return self._opaque(node, f"{node.label} convolves with a computed weight")[0]
        (shape,) = self.shapes(node)
        if len(shape) != len(self.graph.state[weight].shape):
            return self._opaque(node, f"{node.label} convolves an input without a batch dimension")[0]
        groups = convolution_groups(node)
        given = self.channels(self.operand(node.args[0]), 1)
        inputs, outputs = len(given), shape[1]
        if groups == 1:
            out = self.axis(weight, 1, "producer")
            self.sets.unite(self.axis(weight, 0, "consumer"), given)
        elif drops_whole_groups(inputs, outputs, groups):
            rows = self.axis(weight, 0, "producer")
            first = rows.view(groups, -1)[:, :1]
            self.sets.unite(first, rows.view(groups, -1))
            self.sets.unite(rows, given)
            out = first.expand(groups, outputs // groups).reshape(-1)
        else:
            out = self.axis(weight, 1, "producer").repeat(groups)
            rows = self.axis(weight, 0, "consumer")
            self.sets.unite(rows, given)
            self.sets.unite(rows.view(groups, -1)[:1], rows.view(groups, -1))
        self._affine(argument_of(node, 2, "bias"), out)
        return spread(out.reshape(1, -1, *([1] * (len(shape) - 2))), shape)

    def _linear(self, node: Node) -> Tensor:
        weight = self._weight(node)
        if weight is None:
            return self._opaque(node, f"{node.label} multiplies with a computed weight")[0]
        operand = self.operand(node.args[0])
        self.sets.unite(self.axis(weight, 1, "consumer"), self.channels(operand, operand.ndim - 1))
        out = self.axis(weight, 0, "producer")
        self._affine(argument_of(node, 2, "bias"), out)
        return spread(out.reshape(*([1] * (operand.ndim - 1)), -1), (*operand.shape[:-1], len(out)))

    def _weight(self, node: Node) -> str | None:
        weight = argument_of(node, 1, "weight")
        bias = argument_of(node, 2, "bias")
        if not isinstance(weight, StateRef) or not (bias is None or isinstance(bias, StateRef)):
            return None
        return weight.name

    def _affine(self, argument: Argument, channels: Tensor) -> None:
        if isinstance(argument, StateRef):
            self.sets.unite(self.axis(argument.name, 0, "affine"), channels)

    def _per_channel(self, node: Node, positions: tuple[int, ...]) -> Tensor:
        """Normalisation or activation with one value per channel (axis 1)."""
        arguments = [node.args[p] for p in positions if p < len(node.args)]
        if any(isinstance(argument, Ref) for argument in arguments):
            return self._opaque(node, f"{node.label} has computed per-channel values")[0]
        operand = self.operand(node.args[0])
        if operand.ndim < 2:
            return self._opaque(node, f"{node.label} has no channel dimension")[0]
        named = [a for a in arguments if isinstance(a, StateRef) and self.graph.state[a.name].shape[0] > 1]
        if not named and ROLES[node.op] == "prelu":
            return operand
        channels = self.channels(operand, 1)
        for argument in named if ROLES[node.op] == "prelu" else arguments:
            self._affine(argument, channels)
        return operand

    def _group_norm(self, node: Node) -> Tensor:
        """Statistics run over a group of channels, so a group is removed as a whole or not at all."""
        operand = self.operand(node.args[0])
        channels = self.channels(operand, 1)
        groups = node.args[1]
        assert isinstance(groups, int)
        self.sets.unite(channels.view(groups, -1)[:, :1], channels.view(groups, -1))
        for argument in node.args[2:4]:
            self._affine(argument, channels)
        return operand

    def _binary(self, node: Node) -> Tensor:
        operands = [self.operand(a) for a in node.args[:2] if isinstance(a, (Ref, StateRef))]
        if len(operands) == 1:
            return operands[0]
        shape = torch.broadcast_shapes(*(operand.shape for operand in operands))  # type: ignore[no-untyped-call]
        full = [operand.reshape([1] * (len(shape) - operand.ndim) + list(operand.shape)) for operand in operands]
        narrow = [collapse(operand) for operand in full]
        broadcast = [False, False]
        for me, you in ((0, 1), (1, 0)):
            broadcast[me] = any(
                full[me].shape[dim] == 1 and shape[dim] > 1 and narrow[you].shape[dim] > 1 for dim in range(len(shape))
            )
        reason = f"{node.label} repeats it over channels that are removed one by one"
        if all(broadcast):
            return self._opaque(node, f"{node.op} at {node.label} broadcasts both operands")[0]
        for me, you in ((0, 1), (1, 0)):
            if broadcast[me]:
                # One value for many channels (spatial attention): it stays while they go.
                self.sets.freeze(full[me], reason)
                return spread(narrow[you], shape)
        self.sets.unite(*narrow)
        larger = narrow[0] if narrow[0].numel() >= narrow[1].numel() else narrow[1]
        return spread(larger, shape)

    def _move(self, node: Node) -> list[Tensor]:
        if node.op == "getitem":
            source, index = node.args
            assert isinstance(source, Ref) and isinstance(index, int)
            return [self.values[source.node][index]]
        found = run_move(node, self.operand, self.batch)
        if node.op in ("aten.cat.default", "aten.concat.default", "aten.stack.default"):
            return found
        source = collapse(self.operand(node.args[0]))
        if node.op == "aten.select.int":
            if source.shape[int(node.args[1]) % source.ndim] > 1:
                self.sets.freeze(found[0], f"{node.label} selects it by number")
        elif node.op == "aten.slice.Tensor" and int(argument_of(node, 4, "step", 1)) != 1:
            if source.shape[int(argument_of(node, 1, "dim", 0))] > 1:
                self.sets.freeze(source, f"{node.label} slices it with a step")
        elif node.op in ("aten.channel_shuffle.default", "aten.native_channel_shuffle.default"):
            channels = self.channels(self.operand(node.args[0]), 1).view(int(node.args[1]), -1)
            self.sets.unite(channels[:1], channels)
        elif node.op in ("aten.flip.default", "aten.repeat.default"):
            # Right where it does not touch the channels, which is what these are used for.
            after = collapse(found[0])
            if source.shape != after.shape or not torch.equal(source, after):
                return self._opaque(node, f"{node.op} at {node.label} rearranges channels")
        return found

    def _pad(self, node: Node) -> Tensor:
        """Padding of space passes through; padding of channels creates channels that nobody produces."""
        operand = self.operand(node.args[0])
        amounts = literals(node, self.batch)(node.args[1])
        small = collapse(operand)
        for pair in range(len(amounts) // 2):
            dim = operand.ndim - 1 - pair
            before, after = amounts[2 * pair : 2 * pair + 2]
            if (before, after) == (0, 0):
                continue
            if small.shape[dim] == 1 and not (dim == 1 and operand.ndim > 2):
                size = list(operand.shape)
                size[dim] += before + after
                operand = small.expand(size)
                continue
            if min(before, after) < 0 or node.op != "aten.constant_pad_nd.default":
                return self._opaque(node, f"{node.op} at {node.label} cuts or mirrors channels")[0]
            sides = []
            for amount in (before, after):
                size = [1] * operand.ndim
                size[dim] = amount
                target = list(operand.shape)
                target[dim] = amount
                sides.append(self.sets.new(amount).reshape(size).expand(target))
            operand = concatenate([sides[0], operand, sides[1]], dim)
            small = collapse(operand)
        return operand

    def _spatial(self, node: Node) -> Tensor:
        operand = self.operand(node.args[0])
        (shape,) = self.shapes(node)
        found = self._uniform(operand, range(operand.ndim - spatial_dims(node), operand.ndim))
        return spread(found, shape)

    def _uniform(self, atoms: Tensor, dims: Iterable[int]) -> Tensor:
        """`atoms` with everything along `dims` united and cut to size 1."""
        for dim in dims:
            small = collapse(atoms)
            first = small.narrow(dim, 0, 1)
            if small.shape[dim] > 1:
                self.sets.unite(first, small)
            atoms = first
        return atoms

    def _reduce(self, node: Node) -> Tensor:
        operand = self.operand(node.args[0])
        dims = argument_of(node, 1, "dim")
        chosen = [dim % operand.ndim for dim in (dims if isinstance(dims, tuple) and dims else range(operand.ndim))]
        keepdim = bool(argument_of(node, 2, "keepdim", False))
        if any(collapse(operand).shape[dim] > 1 and dim < 2 for dim in chosen):
            return self._opaque(node, f"{node.op} at {node.label} reduces over channels")[0]
        found = spread(self._uniform(operand, chosen), [1 if d in chosen else s for d, s in enumerate(operand.shape)])
        return found if keepdim else found.reshape([s for d, s in enumerate(operand.shape) if d not in chosen])

    # -- after everything is united ------------------------------------------------------------------------------------

    def _keep_rectangular(self) -> None:
        """Unite until removing any units leaves every tensor a dense box.

        A tensor whose units differ along two dimensions (a channel shuffle's `[N, groups, C, H, W]`) would become
        ragged; the dimension with the most units stays free, the others lose the same positions everywhere.
        """
        changed = True
        while changed:
            changed = False
            for values in self.values.values():
                for atoms in values:
                    changed |= self._make_box(collapse(atoms))

    def _make_box(self, atoms: Tensor) -> bool:
        if sum(size > 1 for size in atoms.shape) < 2:
            return False
        roots = torch.tensor([self.sets.find(a) for a in atoms.flatten().tolist()]).reshape(atoms.shape)
        roots = collapse(roots)
        if sum(size > 1 for size in roots.shape) < 2:
            return False
        if all(root in self.sets.reason for root in set(roots.flatten().tolist())):
            return False
        free = max(range(roots.ndim), key=lambda dim: (roots.shape[dim], dim == 1))
        for dim in range(roots.ndim):
            if dim != free and roots.shape[dim] > 1:
                self.sets.unite(roots.narrow(dim, 0, 1), roots)
        return True


def spatial_dims(node: Node) -> int:
    """How many trailing dimensions a pooling or upsampling operator mixes."""
    name = node.op.split(".")[1]
    for space in (1, 2, 3):
        if f"{space}d" in name:
            return space
    return 2


def concatenate(parts: list[Tensor], dim: int) -> Tensor:
    """`torch.cat` that leaves dimensions along which no part changes at stride 0."""
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    narrow = [collapse(part) for part in parts]
    common = [max(part.shape[d] for part in narrow) for d in range(len(shape))]
    sized = []
    for part, small in zip(parts, narrow, strict=True):
        size = [part.shape[d] if d == dim or common[d] > 1 else 1 for d in range(len(shape))]
        sized.append(small.expand(size))
    return spread(torch.cat(sized, dim), shape)


def run_move(node: Node, operand: Callable[[Argument], Tensor], batch: int | None) -> list[Tensor]:
    """Execute a data-movement operator on int64 tensors that stand for its operands.

    Args:
        node: any node whose role is `move`, except `getitem`.
        operand: the int64 tensor that stands for a `Ref` or `StateRef`.
        batch: what `Batch` arguments count.
    """
    value = literals(node, batch)
    if node.op in ("aten.cat.default", "aten.concat.default"):
        parts = [operand(item) for item in node.args[0]]
        return [concatenate(parts, int(argument_of(node, 1, "dim", 0)) % parts[0].ndim)]

    def rebuild(argument: Argument) -> Any:
        if isinstance(argument, (Ref, StateRef)):
            return operand(argument)
        if isinstance(argument, tuple):
            return [rebuild(item) for item in argument]
        return value(argument)

    kwargs = {key: rebuild(item) for key, item in (node.kwargs or {}).items()}
    if "upsample" in node.op or "_pad" in node.op:
        # These have no integer kernels; doubles hold atom numbers exactly.
        doubles = operand(node.args[0]).to(torch.float64)
        result = resolve(node.op)(doubles, *(rebuild(item) for item in node.args[1:]), **kwargs).to(torch.int64)
    else:
        result = resolve(_copying(node.op))(*(rebuild(item) for item in node.args), **kwargs)
    return [spread(item, item.shape) for item in ([result] if isinstance(result, Tensor) else result)]


def _copying(op: str) -> str:
    """`view` refuses tensors with stride 0 that it would have to copy; `reshape` does the same and copies."""
    return "aten.reshape.default" if op in ("aten.view.default", "aten._unsafe_view.default") else op
