"""A `Graph` as an ordinary `nn.Module`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from structadmm.errors import UserError
from structadmm.graph.ir import (
    Argument,
    Batch,
    Graph,
    Node,
    Ref,
    Shape,
    StateEntry,
    StateRef,
    TorchConstant,
    Training,
    map_argument,
)
from structadmm.graph.operators import ROLES


def resolve(op: str, where: str = "") -> Callable[..., Any]:
    """The ATen overload called `op`; `where` says in an error which node needs it.

    Raises:
        UserError: `op` is not on the reviewed list.
    """
    if op == "getitem":
        return operator.getitem
    if op not in ROLES or op == "input":
        place = f" at {where}" if where else ""
        advice = "rewrite that part of the model with other operators"
        if ".parametrizations." in where or op.startswith("aten._weight_norm"):
            advice = (
                "make the weight permanent with torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') "
                "or torch.nn.utils.remove_weight_norm(layer)"
            )
        raise UserError(f"operator {op!r}{place} is not one this project runs: {advice}")
    _, packet, overload = op.split(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), overload)
    return found


def torch_constant(value: TorchConstant) -> Any:
    """The dtype or memory format that `value` names.

    Raises:
        UserError: torch has none of that name.
    """
    found = getattr(torch, value.name, None)
    expected = torch.dtype if value.kind == "dtype" else torch.memory_format
    if not isinstance(found, expected):
        raise UserError(f"{value.name!r} is not a {value.kind} of torch: save the network again")
    return found


def flat_outputs(value: Any) -> tuple[Tensor, ...]:
    """A network's result, whatever its form, as a tuple of tensors."""
    if isinstance(value, Tensor):
        return (value,)
    return tuple(value.values()) if isinstance(value, dict) else tuple(value)


def first_output(network: nn.Module, inputs: Tensor) -> Tensor:
    """What a network gives for `inputs` in evaluation, the first of several; it is left in evaluation."""
    with torch.no_grad():
        return flat_outputs(network.eval()(inputs))[0]


MOST_APART = 1e-2
"""Of the largest output: rounding on another processor is far below, another network far above."""


def apart_by(outputs: Tensor, others: Tensor) -> float:
    """The largest difference of two outputs over the largest number; 0 where one is not finite, which others tell."""
    if outputs.shape != others.shape:
        return float("inf")
    if not (bool(torch.isfinite(outputs).all()) and bool(torch.isfinite(others).all())):
        return 0.0
    return float((outputs - others).abs().max()) / max(float(others.abs().max()), 1e-6)


class GraphModule(nn.Module):
    """Executes a graph; trainable, `torch.export`-able, with the `state_dict()` keys of the network it was traced from.

    Args:
        graph: the network; every operator must be on the reviewed list.
        state: a tensor for every entry of `graph.state`; not copied. Aliases may be left out.

    Raises:
        UserError: an unknown operator, or a tensor that is absent or has another shape.
    """

    def __init__(self, graph: Graph, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self._steps = [(node, resolve(node.op, node.label)) for node in graph.nodes if node.op != "input"]
        tensors: dict[str, Tensor] = {}
        for name, entry in graph.state.items():
            tensors[name] = self._tensor(name, entry, state, tensors)
            self._register(name, entry.kind, tensors[name])
        last_use: dict[str, int] = {}
        for index, (node, _) in enumerate(self._steps):
            for ref in _refs(node):
                last_use[ref] = index
        kept = {ref.node for ref in graph.outputs}
        self._dead_after: list[list[str]] = [[] for _ in self._steps]
        for name, index in last_use.items():
            if name not in kept:
                self._dead_after[index].append(name)

    @staticmethod
    def _tensor(name: str, entry: StateEntry, state: Mapping[str, Tensor], done: Mapping[str, Tensor]) -> Tensor:
        if entry.alias_of is not None:
            if entry.alias_of in done:
                return done[entry.alias_of]
            raise UserError(f"{name!r} shares the tensor of {entry.alias_of!r}, which must come before it")
        if name not in state:
            raise UserError(f"the state has no tensor {name!r}: give the state that belongs to this graph")
        tensor = state[name]
        if tuple(tensor.shape) != entry.shape:
            raise UserError(f"{name!r} has shape {list(tensor.shape)}, the graph expects {list(entry.shape)}")
        if entry.kind == "parameter" and not isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        return tensor.detach() if entry.kind != "parameter" and isinstance(tensor, nn.Parameter) else tensor

    def _register(self, name: str, kind: str, tensor: Tensor) -> None:
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            if part not in owner._modules:
                if hasattr(owner, part):
                    raise UserError(f"{name!r} cannot be a parameter name: {part!r} is an attribute of every module")
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if hasattr(owner, leaf):
            raise UserError(f"{name!r} cannot be a parameter name: {leaf!r} is taken in that module")
        if kind == "parameter":
            assert isinstance(tensor, nn.Parameter)
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor, persistent=kind == "buffer")

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by name, constants included, aliases left out."""
        return {name: self._state(name) for name, entry in self.graph.state.items() if entry.alias_of is None}

    def _state(self, name: str) -> Tensor:
        path, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(path), leaf)
        return tensor

    def train(self, mode: bool = True) -> GraphModule:
        """Set the mode, unless the network has only one.

        Raises:
            UserError: training was asked of a network whose training behaviour could not be traced.
        """
        if mode and self.graph.eval_only is not None:
            raise UserError(f"this network was traced for evaluation only: {self.graph.eval_only}")
        return super().train(mode)

    def forward(self, *inputs: Tensor) -> Any:
        """Run the network on positional inputs of the traced shapes (any batch, if the graph allows it)."""
        values = self.run(*inputs)
        results = [values[ref.node] for ref in self.graph.outputs]
        form = self.graph.output_form
        if form == "tensor":
            return results[0]
        if isinstance(form, tuple):
            return dict(zip(form, results, strict=True))
        return tuple(results) if form == "tuple" else results

    def run(self, *inputs: Tensor, keep_all: bool = False) -> dict[str, Any]:
        """Run and return values by node name: the outputs, or with `keep_all` every one."""
        values = self._bind(inputs)
        batch = inputs[0].shape[0] if inputs and inputs[0].ndim else 0

        def value(argument: Argument) -> Any:
            match argument:
                case Ref(node):
                    return values[node]
                case StateRef(name):
                    return self._state(name)
                case Batch(factor):
                    return batch * factor
                case Training():
                    return self.training
                case TorchConstant():
                    return torch_constant(argument)
            return argument

        def rebuild(argument: Argument) -> Any:
            # Lists, because ATen takes lists of tensors and of sizes.
            return [rebuild(item) for item in argument] if isinstance(argument, tuple) else value(argument)

        for (node, function), dead in zip(self._steps, self._dead_after, strict=True):
            kwargs = {key: rebuild(item) for key, item in (node.kwargs or {}).items()}
            if self.training and ROLES[node.op] == "batch_norm":
                self._count_batch(node)
            values[node.name] = function(*(rebuild(item) for item in node.args), **kwargs)
            if not keep_all:
                for name in dead:
                    del values[name]
        return values

    def _bind(self, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
        expected = self.graph.inputs
        if len(inputs) != len(expected):
            raise UserError(f"the network takes {len(expected)} inputs, {len(inputs)} arrived")
        batches = set()
        for node, tensor in zip(expected, inputs, strict=True):
            skip = 0 if self.graph.batch is None else 1
            if tuple(tensor.shape[skip:]) != node.shape[skip:] or tensor.ndim != len(node.shape):
                raise UserError(f"input {node.name!r} has shape {list(tensor.shape)}, expected {list(node.shape)}")
            batches.add(tensor.shape[0] if tensor.ndim else 0)
        if self.graph.batch is not None and len(batches) > 1:
            raise UserError(f"the inputs have different batch sizes {sorted(batches)}: give them one")
        return {node.name: tensor for node, tensor in zip(expected, inputs, strict=True)}

    def _count_batch(self, node: Node) -> None:
        mean = node.args[3]
        if isinstance(mean, StateRef) and Training() in node.args:
            counter = mean.name.rpartition(".")[0] + ".num_batches_tracked"
            if counter in self.graph.state:
                self._state(counter).add_(1)


def _refs(node: Node) -> set[str]:
    found: set[str] = set()

    def visit(argument: Argument) -> Argument:
        if isinstance(argument, Ref):
            found.add(argument.node)
        return argument

    for value in (*node.args, *(node.kwargs or {}).values()):
        map_argument(value, visit)
    return found


def infer_shapes(
    graph: Graph, state: Mapping[str, Tensor], *, batch: int | None = None
) -> dict[str, tuple[Shape, ...]]:
    """Output shapes of every node, on the meta device: nothing is computed or allocated.

    Args:
        graph: the network.
        state: its tensors, of which shapes and types count.
        batch: of the inputs; None for the traced one, and for a graph that only runs at that.

    Raises:
        UserError: an operator does not accept what it is given.
    """
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    module = GraphModule(graph, meta).eval()
    # Inputs are not typed in the graph: a network computes in its parameters' type.
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    try:
        shapes = [node.shape if batch is None else (batch, *node.shape[1:]) for node in graph.inputs]
        inputs = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
        with torch.no_grad():
            values = module.run(*inputs, keep_all=True)
    except (RuntimeError, TypeError, IndexError, ValueError, KeyError, AssertionError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise UserError(f"the network does not fit together ({line}): save or trace it again") from None
    return {
        name: tuple(tuple(item.shape) for item in ([value] if isinstance(value, Tensor) else value))
        for name, value in values.items()
    }


def shapes_at_one(graph: Graph) -> dict[str, tuple[Shape, ...]]:
    """Output shapes of every node at batch 1, or as traced where the graph only runs so."""
    if graph.batch is None:
        return {node.name: node.shapes for node in graph.nodes}
    types = {name: getattr(torch, entry.dtype) for name, entry in graph.state.items()}
    # One type for all numbers: what shrinking has computed may be of another than what it found.
    number = next((dtype for dtype in types.values() if dtype.is_floating_point), torch.float32)
    state = {
        name: torch.empty(entry.shape, dtype=number if types[name].is_floating_point else types[name], device="meta")
        for name, entry in graph.state.items()
    }
    return infer_shapes(graph, state, batch=1)
