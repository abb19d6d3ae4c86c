"""What a compiled network's nodes mean, written down a second time with PyTorch in float64 and no thought of speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tests.kernel_references import interleaved
from tvm_build.network import Activate, ChannelAffine, Network, Node, View, ZeroPad
from tvm_build.ops import (
    Activation,
    ConcatChannels,
    Conv2d,
    Dense,
    Elementwise,
    GlobalAverage,
    Interleave,
    Pack,
    Pool2d,
    Unpack,
)

Array = NDArray[Any]


def activate(kind: Activation, x: Tensor) -> Tensor:
    functions: dict[str, Any] = {
        "none": lambda value: value,
        "relu": F.relu,
        "relu6": F.relu6,
        "hard_swish": F.hardswish,
        "hard_sigmoid": F.hardsigmoid,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
    }
    result: Tensor = functions[kind](x)
    return result


def _padded(x: Tensor, padding: tuple[int, int, int, int], value: float = 0.0) -> Tensor:
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value)


def _conv(op: Conv2d, x: Tensor, weight: Array) -> Tensor:
    kernel = torch.from_numpy(weight.astype(np.float64))
    if op.columns is not None:
        mask = torch.zeros(kernel[0].numel(), dtype=torch.float64)
        mask[list(op.columns)] = 1
        kernel = kernel * mask.reshape(kernel.shape[1:])
    return F.conv2d(_padded(x, op.padding), kernel, None, op.stride, 0, op.dilation, op.groups)


def _node(node: Node, inputs: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    op, x = node.op, inputs[0]
    constants = {name: torch.from_numpy(array.astype(np.float64)) for name, array in node.constants.items()}
    match op:
        case Conv2d():
            y = _conv(op, x, node.constants["weight"]) + constants["bias"].reshape(1, -1, 1, 1)
            if op.shortcut is not None:
                y = y + _conv(op.shortcut, inputs[1], node.constants["shortcut_weight"])
            if op.has_residual:
                y = y + inputs[-1]
            return activate(op.activation, y)
        case Pool2d(kind="max"):
            padded = _padded(x, op.padding, -float("inf"))
            return F.max_pool2d(padded, op.kernel, op.stride, 0, op.dilation)[:, :, : op.out_height, : op.out_width]
        case Pool2d():
            area = torch.ones_like(x) if not op.count_include_pad else torch.ones_like(_padded(x, op.padding))
            counted = area if op.count_include_pad else _padded(area, op.padding)
            total = F.avg_pool2d(_padded(x, op.padding), op.kernel, op.stride, divisor_override=1)
            return total / F.avg_pool2d(counted, op.kernel, op.stride, divisor_override=1)
        case Dense():
            features = x.mean((2, 3)) if op.input_is_c4 else x.reshape(op.batch, op.in_features)
            return activate(op.activation, features @ constants["weight"].T + constants["bias"])
        case GlobalAverage():
            return x.mean((2, 3), keepdim=True)
        case Elementwise():
            if op.operator == "copy":
                return activate(op.activation, x)
            functions = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}
            return activate(op.activation, functions[op.operator](x, inputs[1]))
        case Interleave():
            return torch.from_numpy(interleaved(op, x.numpy()))
        case ConcatChannels():
            return torch.cat(inputs, 1)
        case Pack() | Unpack():
            return x
        case View():
            return x.reshape(shape)
        case Activate():
            return activate(op.activation, x)
        case ChannelAffine():
            columns = (1, -1, *(1,) * (x.ndim - 2))
            return x * constants["scale"].reshape(columns) + constants["shift"].reshape(columns)
        case ZeroPad():
            return _padded(x, op.padding)
    raise AssertionError(f"no meaning given for {op}")


def evaluate(network: Network, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The network's outputs in float64, by name."""
    values = {port.tensor: torch.from_numpy(inputs[port.name].astype(np.float64)) for port in network.inputs}
    for node in network.nodes:
        result = _node(node, [values[name] for name in node.inputs], network.tensors[node.output].shape)
        assert tuple(result.shape) == network.tensors[node.output].shape
        values[node.output] = result
    return {port.name: values[port.tensor].numpy() for port in network.outputs}
