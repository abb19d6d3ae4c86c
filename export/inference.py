"""A graph as it is deployed: evaluation mode, normalisation folded into the layer before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from structadmm.graph.atoms import argument_of, convolution_groups
from structadmm.graph.ir import Argument, Graph, Node, Ref, StateEntry, StateRef, Training, leaves, map_argument
from structadmm.graph.operators import ROLES

# Operators that return their operand in evaluation mode.
_IDENTITIES = frozenset(
    f"aten.{name}.default"
    for name in (
        "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "contiguous", "clone", "alias",
        "detach", "lift_fresh_copy",
    )
)  # fmt: skip


def fold_for_inference(graph: Graph, state: Mapping[str, Tensor]) -> tuple[Graph, dict[str, Tensor]]:
    """Fold every normalisation that follows a convolution or linear, and drop what does nothing in evaluation mode.

    The arithmetic is in float64 and rounded once. Zeros stay zeros. A normalisation whose operand is not the private
    output of a convolution or linear (pre-activation networks) stays.

    Returns:
        The graph and its tensors; the given ones are not modified.
    """
    tensors = {name: tensor.detach() for name, tensor in state.items()}
    entries = dict(graph.state)
    renamed: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    users = graph.users()
    returned = {ref.node for ref in graph.outputs}
    used = Counter(ref.name for node in graph.nodes for ref in leaves(node, StateRef))

    def current(argument: Argument) -> Argument:
        return Ref(renamed.get(argument.node, argument.node)) if isinstance(argument, Ref) else argument

    for original in graph.nodes:
        node = replace(
            original,
            args=tuple(map_argument(item, current) for item in original.args),
            kwargs={key: map_argument(item, current) for key, item in (original.kwargs or {}).items()},
        )
        if node.op in _IDENTITIES and isinstance(node.args[0], Ref) and True not in node.args:
            renamed[node.name] = node.args[0].node
            continue
        if node.op in ("aten.view.default", "aten._unsafe_view.default"):
            # `view` may have relied on a `contiguous` that was dropped.
            node = replace(node, op="aten.reshape.default")
        source = _source(node, original, nodes, users, returned, used)
        if source is None:
            nodes[node.name] = node
            continue
        folded, weight, bias = _fold(node, source, tensors)
        reference, bias_reference = folded.args[1], folded.args[2]
        assert isinstance(reference, StateRef) and isinstance(bias_reference, StateRef)
        tensors[reference.name], tensors[bias_reference.name] = weight, bias
        dtype = str(bias.dtype).removeprefix("torch.")
        entries[bias_reference.name] = StateEntry("parameter", tuple(bias.shape), dtype)
        nodes[source.name] = folded
        renamed[node.name] = source.name
    outputs = tuple(Ref(renamed.get(ref.node, ref.node)) for ref in graph.outputs)
    kept = {ref.name for node in nodes.values() for ref in leaves(node, StateRef)}
    slim = replace(
        graph,
        nodes=tuple(nodes.values()),
        outputs=outputs,
        state={name: entry for name, entry in entries.items() if name in kept},
        eval_only="its normalisation is folded",
    )
    return slim, {name: tensors[name] for name in slim.state}


def _filters_lie_along_axis_1(source: Node) -> bool:
    """Whether a normalisation over axis 1 is one over the layer's filters: of a linear layer on rows, not on tokens."""
    role = ROLES.get(source.op)
    return role in ("conv", "conv_transpose") or (role == "linear" and len(source.shape) == 2)


def _source(
    node: Node,
    original: Node,
    nodes: Mapping[str, Node],
    users: Mapping[str, list[Node]],
    returned: set[str],
    used: Mapping[str, int],
) -> Node | None:
    """The layer that the normalisation `node` can be folded into."""
    if ROLES.get(node.op) != "batch_norm" or not isinstance(node.args[0], Ref) or node.args[3] is None:
        return None
    if node.args[5] not in (False, Training()):
        return None
    source = nodes.get(node.args[0].node)
    if source is None or not _filters_lie_along_axis_1(source):
        return None
    feeds = original.args[0]
    assert isinstance(feeds, Ref)
    if feeds.node != source.name or len(users[source.name]) > 1 or source.name in returned:
        return None
    references = list(leaves(source, StateRef))
    if any(used[ref.name] > 1 for ref in references) or not isinstance(source.args[1], StateRef):
        return None
    return source


def _fold(node: Node, source: Node, tensors: Mapping[str, Tensor]) -> tuple[Node, Tensor, Tensor]:
    def tensor(argument: Argument) -> Tensor | None:
        return tensors[argument.name].double() if isinstance(argument, StateRef) else None

    mean, variance = tensor(node.args[3]), tensor(node.args[4])
    assert mean is not None and variance is not None
    gamma, beta = tensor(node.args[1]), tensor(node.args[2])
    scale = (variance + float(node.args[7])).rsqrt()
    scale = scale if gamma is None else scale * gamma
    reference = source.args[1]
    assert isinstance(reference, StateRef)
    weight = tensors[reference.name]
    old = tensor(argument_of(source, 2, "bias"))
    bias = ((torch.zeros_like(mean) if old is None else old) - mean) * scale + (0.0 if beta is None else beta)
    shape = [1] * weight.ndim
    if ROLES[source.op] == "conv_transpose":
        groups = convolution_groups(source)
        # [I, O/g, ...]: the rows of group g scale by that group's channels.
        grouped = weight.double().reshape(groups, -1, *weight.shape[1:])
        factor = scale.reshape(groups, 1, -1, *shape[2:])
        scaled = (grouped * factor).reshape(weight.shape)
    else:
        scaled = weight.double() * scale.reshape(-1, *shape[1:])
    existing = argument_of(source, 2, "bias")
    name = existing.name if isinstance(existing, StateRef) else reference.name.removesuffix("weight") + "bias"
    while name in tensors and not isinstance(existing, StateRef):
        name += "_"
    kwargs = {key: value for key, value in (source.kwargs or {}).items() if key != "bias"}
    folded = replace(source, args=(*source.args[:2], StateRef(name), *source.args[3:]), kwargs=kwargs)
    return folded, scaled.to(weight.dtype), bias.to(weight.dtype)
