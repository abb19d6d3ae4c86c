"""Weights that are mostly zeros, stored as their other values.

ONNX has two places for a sparse tensor. Its full check (onnx 1.23) refuses a convolution whose weight is a sparse
initializer, because shape inference does not look there; a `Constant` with a `sparse_value` passes, and ONNX Runtime
turns it into an ordinary initializer when it loads the file.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# More elements than any CNN's weight has (4 GiB of float32): a file that claims more only wants the memory.
LARGEST_ELEMENTS = 1 << 30
_INDEX_BYTES = 8


def store_sparse(model: onnx.ModelProto) -> list[str]:
    """Replace each weight that is smaller that way by a sparse constant of the same name, in place.

    Returns:
        The weights that were replaced.
    """
    replaced = []
    constants = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        array = numpy_helper.to_array(tensor)
        places = np.flatnonzero(array)
        if sparse_bytes(array) >= array.nbytes or not len(places):
            continue
        values = numpy_helper.from_array(array.reshape(-1)[places])
        indices = numpy_helper.from_array(places.astype(np.int64))
        sparse = helper.make_sparse_tensor(values, indices, list(array.shape))
        constants.append(helper.make_node("Constant", [], [tensor.name], f"{tensor.name}/sparse", sparse_value=sparse))
        model.graph.initializer.remove(tensor)
        replaced.append(tensor.name)
    nodes = [*constants, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return replaced


def sparse_bytes(array: NDArray[np.float32]) -> int:
    """What the elements that are not zero take, with their places."""
    return int(np.count_nonzero(array)) * (array.itemsize + _INDEX_BYTES)


def claimed_elements(sparse: onnx.SparseTensorProto) -> int:
    """How many elements it would have when written out."""
    return math.prod(max(0, size) for size in sparse.dims)
