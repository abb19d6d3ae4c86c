"""The network that masks leave, for training: exact in training mode, too."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from export.shrink import Shrunk, shrink
from export.unused_paths import remove_unused_paths
from structadmm.errors import UserError
from structadmm.graph import Graph

# Slicing the weights costs something: smaller savings are not worth it.
_WORTH_IT = 0.8


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
        name: state[name]
        if entry.kind != "parameter"
        else masks[name].to(state[name].dtype)
        if name in masks
        else torch.ones_like(state[name])
        for name, entry in graph.state.items()
        if entry.alias_of is None
    }
    try:
        removal = remove_unused_paths(graph, support)
        if removal.folded or not removal.count:
            return None
        smaller = shrink(removal)
    except UserError:
        return None  # a network that cannot be shrunk: export says so, with the reason
    before, after = (sum(tensor.numel() for tensor in tensors.values()) for tensors in (support, smaller.state))
    return smaller if after <= _WORTH_IT * before else None
