"""Tiny ONNX files for the compiler's tests, built node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    *,
    input_type: int = TensorProto.FLOAT,
    opset: int = 20,
) -> Path:
    """Write a model whose outputs are float32 of a shape that ONNX infers."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, input_type, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, str(path))
    return path


def weights(*shape: int, seed: int = 0) -> Array:
    """Normal noise, of a size that keeps sums near one."""
    fan = max(1, int(np.prod(shape[1:])))
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan)).astype(np.float32)


def conv(name: str, source: str, target: str, *, bias: bool = False, **attributes: Any) -> onnx.NodeProto:
    """A 2-D convolution on the constants `NAME.weight` and `NAME.bias`."""
    inputs = [source, f"{name}.weight", *([f"{name}.bias"] if bias else [])]
    return helper.make_node("Conv", inputs, [target], name=f"node_{name}", **attributes)
