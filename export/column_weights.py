"""Weights without their zero columns: a file holds what is kept, and how to write the rest out.

A convolution's weight, as the matrix [O, I * kh * kw], is gathered from the columns that hold something and one of
zeros. Gather and Reshape are standard ONNX; runtimes fold them into an ordinary weight when they load the file.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.sparse_weights import sparse_bytes

COLUMNS, PLACES, SHAPE, MATRIX = "columns", "places", "shape", "matrix"
_SPARE_BYTES = 512  # of names and nodes: below that nothing is gained


def store_columns(model: onnx.ModelProto) -> list[str]:
    """Replace each weight that is smaller that way by the columns that are not zero, in place.

    The value keeps the weight's name: `NAME = Reshape(Gather(NAME/columns, NAME/places, axis=1), NAME/shape)`, where
    the last of `NAME/columns`, [O, kept + 1], is zero, and `NAME/places`, int32 [I * kh * kw], says which one stands
    where.

    Returns:
        The weights that were replaced.
    """
    replaced, nodes = [], []
    for tensor in list(model.graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2 or 0 in tensor.dims:
            continue
        weight = numpy_helper.to_array(tensor)
        matrix = weight.reshape(len(weight), -1)
        kept = np.flatnonzero(matrix.any(axis=0))
        columns = np.concatenate([matrix[:, kept], np.zeros_like(matrix[:, :1])], axis=1)
        places = np.full(matrix.shape[1], len(kept), np.int32)
        places[kept] = np.arange(len(kept), dtype=np.int32)
        if columns.nbytes + places.nbytes + _SPARE_BYTES >= min(weight.nbytes, sparse_bytes(weight)):
            continue
        name = tensor.name
        parts = {COLUMNS: columns, PLACES: places, SHAPE: np.array(weight.shape, np.int64)}
        model.graph.initializer.remove(tensor)
        model.graph.initializer.extend(numpy_helper.from_array(part, f"{name}/{key}") for key, part in parts.items())
        gathered = f"{name}/{MATRIX}"
        nodes += [
            helper.make_node("Gather", [f"{name}/{COLUMNS}", f"{name}/{PLACES}"], [gathered], gathered, axis=1),
            helper.make_node("Reshape", [gathered, f"{name}/{SHAPE}"], [name], f"{name}/reshape"),
        ]
        replaced.append(name)
    nodes.extend(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return replaced
