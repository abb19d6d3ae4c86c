"""The network that masks leave, for training: exact in training mode, too."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from export.shrink import Shrunk, shrink
from export.unused_paths import remove_unused_paths
from structadmm.errors import UserError
from structadmm.graph import Graph, GraphModule

# Slicing the weights costs something: smaller savings are not worth it.
_WORTH_IT = 0.8
# Of the largest output: sums of fewer terms are rounded otherwise.
_ALIKE = 1e-3


def living_network(graph: Graph, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Shrunk | None:
    """`graph` without what masks remove for good; None if that saves less than a fifth of the parameters.

    What weights happen to be zero now does not count, for they are trained. A masked filter whose normalisation is not
    masked gives a constant; export folds it, but training changes it: then, too, the answer is None.

    Args:
        graph: the network.
        state: its tensors, constants of the forward pass among them.
        masks: bool, by parameter name; what is not listed is whole.
    """
    if graph.eval_only is not None:
        return None
    support = {
        name: state[name] if entry.kind != "parameter" else _generic(state[name], masks.get(name), number)
        for number, (name, entry) in enumerate(graph.state.items())
        if entry.alias_of is None
    }
    try:
        removal = remove_unused_paths(graph, support)
        if removal.folded or not removal.count:
            return None
        smaller = shrink(removal)
    except UserError:
        return None  # a network that cannot be shrunk: export says so, with the reason
    if not _are_alike(graph, smaller, state, masks):
        return None  # training the whole network is slower, and right
    before, after = (sum(tensor.numel() for tensor in tensors.values()) for tensors in (support, smaller.state))
    return smaller if after <= _WORTH_IT * before else None


def _generic(parameter: Tensor, mask: Tensor | None, seed: int) -> Tensor:
    """Values that no expression of parameters happens to be zero at, as `1 - g` is at one; zero where masked."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5).to(parameter.dtype)
    return values if mask is None else values * mask


@torch.no_grad()
def _are_alike(graph: Graph, smaller: Shrunk, state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> bool:
    """Whether both networks compute the same of noise, in evaluation mode and with the weights as they are."""
    whole = {name: tensor * masks[name] if name in masks else tensor for name, tensor in state.items()}
    parts = {name: whole.get(name, tensor) for name, tensor in smaller.state.items()}
    for (name, axis), indices in smaller.kept.items():
        if graph.state[name].kind != "constant":
            parts[name] = parts[name].index_select(axis, indices)
    for name, entry in smaller.graph.state.items():
        if entry.kind == "constant" and name in smaller.state:
            parts[name] = smaller.state[name]
    dtype = next(tensor.dtype for tensor in whole.values() if tensor.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(node.shape, generator=generator, dtype=torch.float64).to(dtype) for node in graph.inputs]
    expected = GraphModule(graph, whole).eval().run(*inputs)
    found = GraphModule(smaller.graph, parts).eval().run(*inputs)
    return all(
        float((found[other.node] - expected[ref.node]).abs().max())
        <= _ALIKE * max(1.0, float(expected[ref.node].abs().max()))
        for ref, other in zip(graph.outputs, smaller.graph.outputs, strict=True)
    )
