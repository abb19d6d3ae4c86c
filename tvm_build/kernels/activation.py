"""Activation functions on whole vectors."""

from __future__ import annotations

from tvm import tirx

from tvm_build.kernels.body import Body, Expr, const
from tvm_build.ops import Activation


def activate(body: Body, value: Expr, activation: Activation, dtype: str) -> Expr:
    """`activation(value)` on a scalar or vector of `dtype`.

    hard_sigmoid is `clip(x / 6 + 1 / 2, 0, 1)`, as in PyTorch, and hard_swish is x times that.
    """

    def clip(expression: Expr, low: float, high: float) -> Expr:
        return tirx.Min(tirx.Max(expression, const(low, dtype)), const(high, dtype))

    match activation:
        case "none":
            return value
        case "relu":
            return tirx.Max(value, const(0, dtype))
        case "relu6":
            return clip(value, 0, 6)
        case "hard_sigmoid":
            return clip(value * const(1 / 6, dtype) + const(0.5, dtype), 0, 1)
        case "hard_swish":
            bound = body.let(value)
            return bound * clip(bound * const(1 / 6, dtype) + const(0.5, dtype), 0, 1)
        case "sigmoid":
            return const(1, dtype) / (const(1, dtype) + tirx.exp(const(0, dtype) - value))
        case "silu":
            bound = body.let(value)
            return bound / (const(1, dtype) + tirx.exp(const(0, dtype) - bound))
