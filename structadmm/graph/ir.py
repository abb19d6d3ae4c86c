"""The traced network as plain data: what every later step reads, rewrites and saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from structadmm.errors import UserError

SCHEMA = 1


@dataclass(frozen=True)
class Ref:
    """The value of another node."""

    node: str


@dataclass(frozen=True)
class StateRef:
    """A parameter, buffer or constant, by its dotted name."""

    name: str


@dataclass(frozen=True)
class Batch:
    """A size that follows the batch: `factor` times the batch the module is called with."""

    factor: int


@dataclass(frozen=True)
class Training:
    """True while the module is in training mode."""


@dataclass(frozen=True)
class TorchConstant:
    """A value of torch that JSON has no word for: `kind` is `dtype` or `memory_format`."""

    kind: str
    name: str


Argument = (
    Any  # None | bool | int | float | str | tuple[Argument, ...] | Ref | StateRef | Batch | Training | TorchConstant
)
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One operator call.

    Attributes:
        name: unique in its graph.
        op: `input`, `getitem`, or an ATen overload such as `aten.conv2d.default`.
        args: positional arguments.
        kwargs: keyword arguments.
        shapes: output shapes at the traced batch; more than one for operators that return a list.
        layer: dotted name of the module that called the operator; empty for the root.
    """

    name: str
    op: str
    args: tuple[Argument, ...] = ()
    kwargs: Mapping[str, Argument] | None = None
    shapes: tuple[Shape, ...] = ()
    layer: str = ""

    @property
    def shape(self) -> Shape:
        """The shape of the only output."""
        return self.shapes[0]

    @property
    def label(self) -> str:
        """What a person calls this node: its layer and name."""
        return f"{self.layer or '(root)'} [{self.name}]"


@dataclass(frozen=True)
class StateEntry:
    """What the graph knows about one tensor of the state.

    Attributes:
        kind: `parameter`, `buffer` (in `state_dict()`), or `constant` (saved, but not in `state_dict()`).
        shape: its shape.
        dtype: its torch dtype's name, such as `float32`.
        alias_of: the entry whose tensor it shares; None for its own.
    """

    kind: str
    shape: Shape
    dtype: str
    alias_of: str | None = None


@dataclass(frozen=True)
class Graph:
    """A network with static shapes, in execution order.

    Attributes:
        nodes: operators after their operands; inputs first.
        outputs: what the network returns.
        output_form: `tensor`, `tuple`, `list`, or a tuple of dictionary keys.
        state: every parameter, buffer and constant by dotted name.
        batch: the batch of the traced shapes; None when the network only runs at exactly these shapes.
        eval_only: why training mode cannot be reproduced; None when it can.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[Ref, ...]
    output_form: str | tuple[str, ...]
    state: Mapping[str, StateEntry]
    batch: int | None
    eval_only: str | None = None

    def node(self, name: str) -> Node:
        """The node called `name`."""
        return self.by_name()[name]

    def by_name(self) -> dict[str, Node]:
        """All nodes by name."""
        return {node.name: node for node in self.nodes}

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The network's inputs in calling order."""
        return tuple(node for node in self.nodes if node.op == "input")

    def users(self) -> dict[str, list[Node]]:
        """The nodes that read each node's value."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in sorted({ref.node for ref in leaves(node, Ref)}):
                found[name].append(node)
        return found


def leaves(node: Node, kind: type[Any]) -> Iterator[Any]:
    """All arguments of `node` that are a `kind`, depth first."""

    def walk(value: Argument) -> Iterator[Any]:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, tuple):
            for item in value:
                yield from walk(item)

    for value in (*node.args, *(node.kwargs or {}).values()):
        yield from walk(value)


def map_argument(value: Argument, change: Callable[[Argument], Argument]) -> Argument:
    """Rebuild `value` with `change` applied to everything in it that is not a tuple."""
    if isinstance(value, tuple):
        return tuple(map_argument(item, change) for item in value)
    return change(value)


def _encode(value: Argument) -> Any:
    match value:
        case tuple():
            return [_encode(item) for item in value]
        case Ref(name):
            return {"node": name}
        case StateRef(name):
            return {"state": name}
        case Batch(factor):
            return {"batch": factor}
        case Training():
            return {"training": True}
        case TorchConstant(kind, name):
            return {kind: name}
        case float() if not math.isfinite(value):
            return {"float": str(value)}
    return value


def _decode(value: Any) -> Argument:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, name),) = value.items()
        if kind == "node" and isinstance(name, str):
            return Ref(name)
        if kind == "state" and isinstance(name, str):
            return StateRef(name)
        if kind == "batch" and type(name) is int and name > 0:
            return Batch(name)
        if kind == "training" and name is True:
            return Training()
        if kind in ("dtype", "memory_format") and isinstance(name, str):
            return TorchConstant(kind, name)
        if kind == "float" and name in ("inf", "-inf", "nan"):
            return float(name)
    raise UserError(f"the network description holds an unknown argument {str(value)[:60]!r}: save the network again")


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """The graph as JSON values."""
    return {
        "schema": SCHEMA,
        "batch": graph.batch,
        "eval_only": graph.eval_only,
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "args": _encode(node.args),
                "kwargs": {key: _encode(value) for key, value in (node.kwargs or {}).items()},
                "shapes": [list(shape) for shape in node.shapes],
                "layer": node.layer,
            }
            for node in graph.nodes
        ],
        "outputs": [ref.node for ref in graph.outputs],
        "output_form": graph.output_form if isinstance(graph.output_form, str) else list(graph.output_form),
        "state": {
            name: {"kind": entry.kind, "shape": list(entry.shape), "dtype": entry.dtype, "alias_of": entry.alias_of}
            for name, entry in graph.state.items()
        },
    }


def _shape(value: Any) -> Shape:
    if not isinstance(value, list) or not all(type(size) is int and 0 <= size < 2**40 for size in value):
        raise UserError(f"the network description holds an invalid shape {str(value)[:60]}: save the network again")
    return tuple(value)


def graph_from_json(value: Mapping[str, Any]) -> Graph:
    """The graph that `graph_to_json` wrote.

    Raises:
        UserError: a field is missing, has another type, or refers to something that does not exist.
    """
    if value.get("schema") != SCHEMA:
        raise UserError(f"network description has schema {value.get('schema')!r}, this version reads {SCHEMA}")
    try:
        state = {
            str(name): StateEntry(str(e["kind"]), _shape(e["shape"]), str(e["dtype"]), e["alias_of"])
            for name, e in value["state"].items()
        }
        nodes = tuple(
            Node(
                str(n["name"]),
                str(n["op"]),
                tuple(_decode(item) for item in n["args"]),
                {str(key): _decode(item) for key, item in n["kwargs"].items()},
                tuple(_shape(shape) for shape in n["shapes"]),
                str(n["layer"]),
            )
            for n in value["nodes"]
        )
        form = value["output_form"]
        graph = Graph(
            nodes,
            tuple(Ref(str(name)) for name in value["outputs"]),
            form if isinstance(form, str) else tuple(str(key) for key in form),
            state,
            value["batch"],
            value["eval_only"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"the network description is malformed ({error!r}): save the network again") from None
    check_references(graph)
    return graph


def check_references(graph: Graph) -> None:
    """Every name used is defined before its use, and once.

    Raises:
        UserError: names the offender.
    """
    if graph.batch is not None and (type(graph.batch) is not int or graph.batch < 1):
        raise UserError(f"the network description has batch {graph.batch!r}, expected a positive integer or null")
    known: set[str] = set()
    for node in graph.nodes:
        if not node.name or node.name in known:
            raise UserError(f"node {node.name!r} is defined twice in the network description: save the network again")
        for ref in leaves(node, Ref):
            if ref.node not in known:
                raise UserError(f"node {node.name!r} reads {ref.node!r}, which no earlier node defines")
        for ref in leaves(node, StateRef):
            if ref.name not in graph.state or graph.state[ref.name].alias_of is not None:
                raise UserError(f"node {node.name!r} reads the parameter {ref.name!r}, which the state does not list")
        known.add(node.name)
    for name, entry in graph.state.items():
        if not name or any(not part for part in name.split(".")):
            raise UserError(f"{name!r} is not a dotted parameter name: save the network again")
        if entry.kind not in ("parameter", "buffer", "constant"):
            raise UserError(f"{name!r} is a {entry.kind!r}, expected parameter, buffer or constant")
        if entry.alias_of is not None:
            target = graph.state.get(entry.alias_of)
            if target is None or target.alias_of is not None or target.shape != entry.shape:
                raise UserError(f"{name!r} shares the tensor of {entry.alias_of!r}, which the state does not list")
    for ref in graph.outputs:
        if ref.node not in known:
            raise UserError(f"the network returns {ref.node!r}, which no node defines")
    form = graph.output_form
    if (isinstance(form, str) and form not in ("tensor", "tuple", "list")) or (
        form == "tensor" and len(graph.outputs) != 1
    ):
        raise UserError(f"the network description has output form {form!r} for {len(graph.outputs)} outputs")
    if isinstance(form, tuple) and len(form) != len(graph.outputs):
        raise UserError(f"the network description names {len(form)} outputs and returns {len(graph.outputs)}")
