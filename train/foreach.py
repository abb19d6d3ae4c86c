"""Elementwise arithmetic on lists of tensors, one fused call each.

PyTorch offers these with type stubs that only know scalars on the right-hand side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def subtract(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """`left - right`, tensor by tensor."""
    return list(torch._foreach_sub(list(left), list(right)))


def multiply(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """`left * right`, tensor by tensor."""
    return list(torch._foreach_mul(list(left), list(right)))


def subtract_(target: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """`target -= other`, tensor by tensor."""
    torch._foreach_sub_(list(target), list(other))


def add_(target: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """`target += other`, tensor by tensor."""
    torch._foreach_add_(list(target), list(other))


def multiply_(target: Sequence[Tensor], factors: Sequence[Tensor] | Sequence[float]) -> None:
    """`target *= factors`, tensor by tensor."""
    torch._foreach_mul_(list(target), list(factors))  # type: ignore[arg-type]


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each tensor, float64 [len(tensors)]."""
    return torch.stack(torch._foreach_norm(list(tensors))).double()
