"""Which output channels of a convolution or linear read which input channels, at the size it runs at.

A weight that only ever meets the padding is not read: of a 3x3 kernel with dilation 2 on a 2x2 image, all but the
middle. And a constant input channel adds one constant everywhere, which fits into a bias, exactly if the weights that
meet the image sum up to the same number at every place: always without padding, and with it where the others are zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from structadmm.graph.atoms import argument_of, convolution_groups
from structadmm.graph.ir import Argument, Node
from structadmm.graph.operators import ROLES


class WeightUse:
    """How one node uses its weight.

    Args:
        node: a convolution, transposed convolution or linear.
        weight: its weight, float64.
        size: height and width (or as many sizes as there are) of its input; empty for a linear.

    Attributes:
        reads: bool [outputs, inputs], whether a weight that meets the image is not zero.
        sums: float64 [outputs, inputs], the sum of the weights that meet the image together, at one place.
    """

    def __init__(self, node: Node, weight: Tensor, size: Sequence[int]) -> None:
        flat = weight.reshape(*weight.shape[:2], -1)
        groups = 1 if ROLES[node.op] == "linear" else convolution_groups(node)
        if ROLES[node.op] == "conv_transpose":
            grouped = flat.reshape(groups, -1, *flat.shape[1:]).transpose(1, 2)
        else:
            grouped = flat.reshape(groups, -1, *flat.shape[1:])
        self.weights = grouped  # [groups, outputs of one, inputs of one, taps]
        self.places = _places(node, weight.shape[2:], size) if weight.ndim > 2 else None
        if self.places is None or bool(self.places.all()):
            one = grouped.shape[3] == 1  # large linears need not be copied
            reads = grouped[..., 0] != 0 if one else (grouped != 0).any(dim=3)
            sums = grouped[..., 0] if one else grouped.sum(dim=3)
        else:
            met = self.places.any(dim=0)
            reads = ((grouped != 0) & met).any(dim=3)
            sums = grouped @ self.places[0].to(grouped.dtype)
        self.reads, self.sums = _all_groups(reads), _all_groups(sums)

    def uneven(self, channels: Tensor) -> Tensor:
        """Where a constant in these input channels adds different numbers at different places.

        Args:
            channels: int64 [n], input channels counted over all groups.

        Returns:
            bool [outputs, n].
        """
        groups, outputs, inputs, _ = self.weights.shape
        found = torch.zeros(len(channels), groups, outputs, dtype=torch.bool)
        if self.places is not None and len(self.places) > 1 and len(channels):
            group, places = channels // inputs, self.places.to(self.weights.dtype)
            sums = self.weights[group, :, channels % inputs] @ places.T  # [n, outputs, places]
            found[torch.arange(len(channels)), group] = (sums != sums[..., :1]).any(dim=2)
        return found.flatten(1).T


def _all_groups(blocks: Tensor) -> Tensor:
    """[groups, outputs, inputs] of each group as one matrix, nothing between different groups."""
    if len(blocks) == 1:
        return blocks[0]
    groups, outputs, inputs = blocks.shape
    full = torch.zeros(groups, outputs, groups, inputs, dtype=blocks.dtype)
    full[torch.arange(groups), :, torch.arange(groups)] = blocks
    return full.reshape(groups * outputs, groups * inputs)


def _places(node: Node, kernel: Sequence[int], size: Sequence[int]) -> Tensor:
    """Every set of kernel positions that meet the image together. bool [places, taps], no two the same."""
    places = torch.ones(1, 1, dtype=torch.bool)
    for dim, taps in enumerate(kernel):
        along = _places_along(node, dim, taps, size[dim])
        places = (places[:, None, :, None] & along[None, :, None, :]).flatten(2).flatten(0, 1)
    return places


def _places_along(node: Node, dim: int, taps: int, size: int) -> Tensor:
    """The same along one dimension."""
    transposed = ROLES[node.op] == "conv_transpose"
    stride = _along(argument_of(node, 3, "stride", 1), dim, 1)
    dilation = _along(argument_of(node, 7 if transposed else 5, "dilation", 1), dim, 1)
    padding = argument_of(node, 4, "padding", 0)
    if isinstance(padding, str):
        # torch pads `same` with half of the kernel's reach in front, rounded down.
        before = dilation * (taps - 1) // 2 if padding == "same" else 0
    else:
        before = _along(padding, dim, 0)
    outputs, reach = torch.arange(node.shape[2 + dim])[:, None], torch.arange(taps) * dilation
    if transposed:
        # Input i adds its tap k to output i * stride - before + k * dilation.
        shifted = outputs + before - reach
        met = (shifted % stride == 0) & (shifted >= 0) & (shifted < size * stride)
    else:
        position = outputs * stride - before + reach
        met = (position >= 0) & (position < size)
    found: Tensor = torch.unique(met, dim=0)
    return found


def _along(value: Argument, dim: int, default: int) -> int:
    """One of the sizes that are written as a number for all dimensions, or as a list of one or of all."""
    if isinstance(value, tuple):
        return int(value[dim] if len(value) > 1 else value[0]) if value else default
    return int(value)
