"""From any `nn.Module` to a `Graph`, through `torch.export`."""

from __future__ import annotations

import io
import logging
import operator
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind

from structadmm.errors import InvariantError, UserError
from structadmm.graph.ir import (
    Argument,
    Batch,
    Graph,
    Node,
    Ref,
    StateEntry,
    StateRef,
    TorchConstant,
    Training,
    check_references,
    leaves,
    map_argument,
)
from structadmm.graph.operators import ROLES

# A pool or a reduction of few elements differs in the last bits between two orders of the same operations; the graph
# repeats the model's own operators, so anything above a few float32 ulps of the output's scale is a wrong graph.
_SAME = 1e-5
# Results of these share memory with their first operand, so an in-place operator on one is seen through the other.
_ALIASING = frozenset((
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "swapaxes",
    "squeeze", "unsqueeze", "expand", "slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind",
    "getitem", "contiguous", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "alias",
    "detach", "to", "type_as",
))  # fmt: skip
_TORCH = Path(torch.__file__).parent
_STANDARD_LIBRARY = Path(traceback.__file__).parent
# Placement is the caller's business: a saved network runs wherever its parameters are.
_PLACEMENT = frozenset({"device", "layout", "pin_memory", "non_blocking"})


class Captured(NamedTuple):
    """A graph with the tensors it was traced with."""

    graph: Graph
    state: dict[str, Tensor]


def trace(model: nn.Module, example_inputs: Sequence[Tensor]) -> Graph:
    """Trace `model` into a `Graph` that reproduces it in evaluation and in training mode.

    Layers whose results reach no output are left out; the state has their tensors all the same.

    The model is exported in evaluation mode at the given batch, and in training mode at another batch; a flag that
    differs follows the mode, a size that differs follows the batch. The model's own mode is restored.

    Args:
        model: any module that `torch.export` accepts.
        example_inputs: the positional arguments, batch first.

    Raises:
        UserError: the model cannot be exported, mutates a tensor that is also read through a view, or returns
            something other than tensors, or numbers that are not finite; names the node.
    """
    return capture(model, example_inputs).graph


def capture(model: nn.Module, example_inputs: Sequence[Tensor]) -> Captured:
    """`trace`, with the state: parameters, buffers and lifted constants by name (shared with the model, not copied)."""
    inputs = tuple(example_inputs)
    for position, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            raise UserError(f"example input {position} is a {type(value).__name__}, expected a tensor")
    for name, _ in model.named_buffers():
        layer, _, mask = name.rpartition(".")
        if mask.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in dict(model.named_parameters()):
            raise UserError(
                f"{layer or 'the model'} multiplies its weight by a mask of torch.nn.utils.prune while it runs: "
                f"make that permanent with torch.nn.utils.prune.remove(layer, {mask.removesuffix('_mask')!r})"
            )
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        model.eval()
        graph, constants = _export(model, inputs)
        # Buffers that the model only reads are state_dict entries or non-persistent constants.
        state = {**_named_state(model), **constants}
        graph = _without_dead_nodes(_generalise(model, inputs, graph))
        check_references(graph)
        _check_same(model, inputs, graph, state)
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
    return Captured(graph, state)


def _without_dead_nodes(graph: Graph) -> Graph:
    """`graph` without what reaches no output, such as a head whose result is not returned; its inputs stay."""
    wanted = {ref.node for ref in graph.outputs}
    nodes = []
    for node in reversed(graph.nodes):
        if node.name in wanted or node.op == "input":
            nodes.append(node)
            wanted.update(ref.node for ref in leaves(node, Ref))
    return replace(graph, nodes=tuple(reversed(nodes)))


def _named_state(model: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    return tensors


def _generalise(model: nn.Module, inputs: tuple[Tensor, ...], graph: Graph) -> Graph:
    """Find what follows the batch and the mode by tracing at another batch and in training mode."""
    batches = {value.shape[0] if value.ndim else 0 for value in inputs}
    batch = batches.pop() if len(batches) == 1 else 0
    other = 2 * batch + 1
    larger = tuple(value.new_zeros(other, *value.shape[1:]) for value in inputs) if batch else None
    found = graph
    if larger is not None:
        try:
            model.eval()
            found = _merge(graph, _export(model, larger)[0], batch, other, mode=False)
        except (UserError, _DifferentError):
            larger = None  # it runs at exactly this batch: `graph.batch` stays None and says so
    try:
        model.train()
        trained, _ = _export(model, larger or inputs)
        return _merge(found, trained, batch if larger else 0, other if larger else 0, mode=True)
    except (UserError, _DifferentError) as error:
        return replace(found, eval_only=str(error))
    finally:
        model.eval()


class _DifferentError(Exception):
    """Two traces of one model are not the same network."""


def _merge(graph: Graph, second: Graph, batch: int, other: int, *, mode: bool) -> Graph:
    """`graph` with every literal that differs in `second` made to follow the batch or the mode."""
    if len(graph.nodes) != len(second.nodes) or len(graph.outputs) != len(second.outputs):
        raise _DifferentError(
            f"the model has {len(graph.nodes)} operators in one trace and {len(second.nodes)} in another"
        )

    def merge(node: Node, a: Argument, b: Argument) -> Argument:
        if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            return tuple(merge(node, x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, Batch) and type(b) is int and b == a.factor * other:
            return a
        if type(a) is type(b) and (a == b or isinstance(a, Ref)):
            return a
        if mode and a is False and b is True:
            return Training()
        if type(a) is int and type(b) is int and batch and a * other == b * batch and a % batch == 0:
            return Batch(a // batch)
        raise _DifferentError(f"argument {a!r} of {node.op} at {node.label} is {b!r} in the other trace")

    nodes = []
    for a, b in zip(graph.nodes, second.nodes, strict=True):
        if a.op != b.op or len(a.args) != len(b.args) or set(a.kwargs or {}) != set(b.kwargs or {}):
            raise _DifferentError(f"{a.op} at {a.label} is {b.op} in the other trace")
        kwargs = {key: merge(a, value, (b.kwargs or {})[key]) for key, value in (a.kwargs or {}).items()}
        nodes.append(replace(a, args=tuple(merge(a, x, y) for x, y in zip(a.args, b.args, strict=True)), kwargs=kwargs))
    position = {node.name: index for index, node in enumerate(graph.nodes)}
    other_position = {node.name: index for index, node in enumerate(second.nodes)}
    for x, y in zip(graph.outputs, second.outputs, strict=True):
        if position[x.node] != other_position[y.node]:
            raise _DifferentError("the model returns different values in the two traces")
    for a, b in zip(graph.nodes, second.nodes, strict=True):
        for p, q in zip(_ref_positions(a, position), _ref_positions(b, other_position), strict=True):
            if p != q:
                raise _DifferentError(f"{a.op} at {a.label} reads another operand in the other trace")
    return replace(graph, nodes=tuple(nodes), batch=batch or graph.batch)


def _ref_positions(node: Node, position: Mapping[str, int]) -> list[int]:
    found: list[int] = []

    def visit(value: Argument) -> Argument:
        if isinstance(value, Ref):
            found.append(position[value.node])
        return value

    for value in (*node.args, *(node.kwargs or {}).values()):
        map_argument(value, visit)
    return found


def _export(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Graph, dict[str, Tensor]]:
    try:
        with _quiet_about_failures():
            program = torch.export.export(model, inputs)
    except Exception as error:  # torch.export raises whatever the model or the tracer raised
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        shapes = ", ".join(str(list(value.shape)) for value in inputs)
        advice = (
            "a value decides there what is computed next: replace the branch or loop by torch.where or a fixed count"
            if "data-dependent" in str(error)
            else "give an example, on the command line a --shape, for every input"
            if "missing a required argument" in str(error)
            else f"give inputs of the shape the model expects, not {shapes}, or rewrite that line"
        )
        raise UserError(
            f"torch.export cannot trace {type(model).__name__}{_where(error)}: {line.strip()[:200]}; {advice}"
        ) from None
    return _Reader(model, program).read()


def _where(error: BaseException) -> str:
    """The last line of the model's own code that the error passed through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not Path(frame.filename).is_relative_to(_TORCH)
        and Path(frame.filename).parent != _STANDARD_LIBRARY
        and frame.filename != __file__
    ]
    if not frames or not frames[-1].line:
        return ""
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}, `{frames[-1].line[:120]}`"


@contextmanager
def _quiet_about_failures() -> Iterator[None]:
    """Keep torch (2.13) from printing the graph traced so far: our error says what is needed of it."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    disabled, printed = logger.disabled, io.StringIO()
    logger.disabled = True
    try:
        with redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        logger.disabled = disabled


class _Reader:
    """Reads one exported program node by node, making in-place operators functional on the way."""

    def __init__(self, model: nn.Module, program: Any) -> None:
        self.program = program
        self.model = model
        self.nodes: list[Node] = []
        self.current: dict[str, str] = {}  # fx name -> the node that holds its present value
        self.base: dict[str, str] = {}  # fx name -> the first tensor whose memory it shares
        self.values: dict[str, Argument] = {}  # fx placeholder -> StateRef
        self.constants: dict[str, Tensor] = {}
        self.moved: list[str] = []  # fx names whose value the operator being read replaces

    def read(self) -> tuple[Graph, dict[str, Tensor]]:
        entries = self._state()
        outputs: tuple[Ref, ...] = ()
        for fx_node in self.program.graph.nodes:
            if fx_node.op == "placeholder":
                if fx_node.name not in self.values:
                    self._add(fx_node, "input", (), {})
            elif fx_node.op == "output":
                outputs = self._outputs(fx_node)
            elif fx_node.op == "call_function":
                self._call(fx_node)
            else:
                raise UserError(
                    f"{fx_node.op} {fx_node.target} at node {fx_node.name} is not supported in a network: "
                    "leave torch.no_grad, autocast and checkpointing out of forward"
                )
        return Graph(tuple(self.nodes), outputs, self._form(), entries, None), self.constants

    def _state(self) -> dict[str, StateEntry]:
        tensors = _named_state(self.model)
        persistent = set(self.model.state_dict())
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        first: dict[int, str] = {}
        entries: dict[str, StateEntry] = {}
        for name, tensor in tensors.items():
            kind = "parameter" if name in parameters else "buffer" if name in persistent else "constant"
            shared = first.setdefault(id(tensor), name)
            entries[name] = StateEntry(
                kind, tuple(tensor.shape), _dtype(tensor.dtype), None if shared == name else shared
            )
        for spec in self.program.graph_signature.input_specs:
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                self.values[spec.arg.name] = StateRef(entries[spec.target].alias_of or spec.target)
            elif spec.kind == InputKind.CONSTANT_TENSOR:
                name = spec.target.replace(".", "_")
                if spec.target in entries:  # a plain tensor attribute may carry the name of a registered one
                    raise UserError(f"the constant {spec.target!r} has the name of a parameter: rename it")
                tensor = self.program.constants[spec.target]
                self.constants[name] = tensor
                entries[name] = StateEntry("constant", tuple(tensor.shape), _dtype(tensor.dtype))
                self.values[spec.arg.name] = StateRef(name)
            elif spec.kind != InputKind.USER_INPUT:
                raise UserError(f"the model needs {spec.kind.name} {spec.target!r}, which a saved network cannot hold")
        return entries

    def _form(self) -> str | tuple[str, ...]:
        spec = self.program.call_spec.out_spec
        if spec.is_leaf():
            return "tensor"
        if any(not child.is_leaf() for child in spec.children()):
            raise UserError(
                "the model returns nested containers: return a tensor, or a flat tuple, list or dict of tensors"
            )
        if spec.type in (tuple, list):
            return str(spec.type.__name__)
        kind = spec.type if isinstance(spec.type, type) else type(None)
        if issubclass(kind, dict) and all(isinstance(key, str) for key in spec.context):
            return tuple(spec.context)
        raise UserError(
            f"the model returns a {getattr(spec.type, '__name__', spec.type)}: "
            "return a tensor, or a flat tuple, list or dict of tensors"
        )

    def _outputs(self, fx_node: Any) -> tuple[Ref, ...]:
        signature = self.program.graph_signature
        returned = []
        for spec, value in zip(signature.output_specs, fx_node.args[0], strict=True):
            if spec.kind.name != "USER_OUTPUT":
                raise UserError(
                    f"the model changes {spec.target!r} while it runs ({spec.kind.name}): make it a pure function"
                )
            if not isinstance(value, torch.fx.Node) or value.name in self.values:
                raise UserError(f"the model returns {value!r}, expected a computed tensor: return tensors only")
            returned.append(Ref(self.current[value.name]))
        return tuple(returned)

    def _call(self, fx_node: Any) -> None:
        if fx_node.target is operator.getitem:
            source, index = fx_node.args
            self._add(fx_node, "getitem", (self._argument(source, fx_node), index), {}, alias_of=source.name)
            return
        op = str(fx_node.target)
        if op == "aten._assert_tensor_metadata.default":
            return  # the tracer's note to itself beside a conversion
        packet = op.split(".")[1] if op.startswith("aten.") else op
        first = fx_node.args[0] if fx_node.args else None
        inplace = packet.endswith("_") and not packet.startswith("_")
        if inplace and isinstance(first, torch.fx.Node):
            if first.name in self.values:
                target = self.values[first.name]
                if packet == "add_" and target.name.endswith("num_batches_tracked"):
                    # GraphModule counts batches itself; a normalisation that is called again counts on from here.
                    self.values[fx_node.name] = target
                    return
                lifted = packet == "detach_"
                if not lifted:
                    raise UserError(f"{op} at node {fx_node.name} changes {target.name!r} in place: return it instead")
            elif packet != "detach_":
                self._replace_in_place(fx_node, first, op)
            op = f"aten.{packet[:-1]}." + op.split(".")[2]
        args = tuple(self._argument(value, fx_node) for value in fx_node.args)
        kwargs = {key: self._argument(value, fx_node) for key, value in fx_node.kwargs.items() if key not in _PLACEMENT}
        if op in ("aten.to.dtype", "aten._to_copy.default") and isinstance(first, torch.fx.Node):
            before, after = first.meta["val"].dtype, fx_node.meta["val"].dtype
            if before == after:
                op, args, kwargs = "aten.alias.default", args[:1], {}
            elif before.is_floating_point and after.is_floating_point:
                raise UserError(
                    f"{op} at node {fx_node.name} turns {_dtype(before)} into {_dtype(after)}: "
                    "a network is exported in one type, leave .half(), .double() and autocast out of forward"
                )
        if op == "aten.pad.default" and (len(args) < 3 or args[2] == "constant"):
            op, args = (
                "aten.constant_pad_nd.default",
                (*args[:2], args[3] if len(args) > 3 and args[3] is not None else 0),
            )
        aliasing = inplace or packet in _ALIASING
        self._add(
            fx_node, op, args, kwargs, alias_of=first.name if aliasing and isinstance(first, torch.fx.Node) else None
        )
        for name in self.moved:
            self.current[name] = fx_node.name
        self.moved.clear()

    def _replace_in_place(self, fx_node: Any, first: Any, op: str) -> None:
        """Later readers of the operand get the result, which is right only if no view shows the same memory."""
        seen = False
        for node in self.program.graph.nodes:
            seen = seen or node is fx_node
            if seen or self.base.get(node.name) != self.base[first.name]:
                continue
            if self.current[node.name] == self.current[first.name]:
                self.moved.append(node.name)
            elif any(user in self.later(fx_node) for user in node.users):
                raise UserError(
                    f"{op} at node {fx_node.name} changes a tensor in place that {node.name} also reads: "
                    "use the out-of-place form there"
                )

    def later(self, fx_node: Any) -> set[Any]:
        """The nodes after `fx_node`."""
        nodes = list(self.program.graph.nodes)
        return set(nodes[nodes.index(fx_node) + 1 :])

    def _argument(self, value: Any, fx_node: Any) -> Argument:
        if isinstance(value, torch.fx.Node):
            return self.values.get(value.name) or Ref(self.current[value.name])
        if isinstance(value, (list, tuple)):
            return tuple(self._argument(item, fx_node) for item in value)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.dtype):
            return TorchConstant("dtype", _dtype(value))
        if isinstance(value, torch.memory_format):
            return TorchConstant("memory_format", str(value).removeprefix("torch."))
        raise UserError(f"node {fx_node.name} has an argument of type {type(value).__name__}, which cannot be saved")

    def _add(
        self,
        fx_node: Any,
        op: str,
        args: tuple[Argument, ...],
        kwargs: dict[str, Argument],
        alias_of: str | None = None,
    ) -> None:
        self.current[fx_node.name] = fx_node.name
        self.base[fx_node.name] = self.base.get(alias_of, alias_of) if alias_of else fx_node.name
        value = fx_node.meta.get("val")
        values = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(item, Tensor) for item in values):
            raise UserError(f"{op} at node {fx_node.name} yields {type(value).__name__}, expected tensors")
        self.nodes.append(
            Node(fx_node.name, op, args, kwargs, tuple(tuple(v.shape) for v in values), _layer(fx_node, args))
        )


def _dtype(value: torch.dtype) -> str:
    return str(value).removeprefix("torch.")


def _layer(fx_node: Any, args: tuple[Argument, ...]) -> str:
    stack = [path for path, _ in fx_node.meta.get("nn_module_stack", {}).values()]
    # torch.export writes `L['self'].a.b` or `a.b`, depending on how the module was called.
    path = str(stack[-1]).removeprefix("L['self']").removeprefix(".") if stack else ""
    if not path:
        owner = next((value.name for value in args if isinstance(value, StateRef)), "")
        path = owner.rpartition(".")[0]
    return path


def _check_same(model: nn.Module, inputs: tuple[Tensor, ...], graph: Graph, state: Mapping[str, Tensor]) -> None:
    from structadmm.graph.module import GraphModule, flat_outputs

    if any(node.op not in ROLES for node in graph.nodes):
        return  # it can be analysed (and named as not understood), not executed
    with torch.no_grad():
        expected = flat_outputs(model(*inputs))
        arrived = flat_outputs(GraphModule(graph, state).eval()(*inputs))
    for node in graph.nodes:
        if "dropout" in node.op and node.args[2] is True:
            raise UserError(f"{node.op} at {node.label} is random in evaluation mode, too: pass training=self.training")
    for position, (reference, value) in enumerate(zip(expected, arrived, strict=True)):
        if not bool(reference.isfinite().all()):
            raise UserError(
                f"{type(model).__name__} returns NaN or infinity (output {position}) for the example input: check its "
                "weights, and logarithms, roots and divisions in its forward"
            )
        error = (reference - value).abs().max().item() if reference.numel() else 0.0
        if not error <= _SAME * max(1.0, reference.abs().max().item()):
            raise InvariantError(f"the traced network differs from {type(model).__name__} by {error:.3g}")
