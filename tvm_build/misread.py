"""What TVM's front end would take for something else: put right where that is simple, refused where it is not.

Each of these was compared with ONNX Runtime: the front end converts them without a word, and the network computes
other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from structadmm.errors import UserError


def mend_misread(model: Any) -> None:
    """Write down again, in place, what is valid and would not be understood."""
    empty = {tensor.name for tensor in model.graph.initializer if 0 in tensor.dims}
    for node in model.graph.node:
        # Before opset 13, a Resize with sizes has scales of no elements.
        if node.op_type == "Resize" and len(node.input) > 3 and node.input[2] in empty:
            node.input[2] = ""


def refuse_misread(model: Any, path: Path) -> None:
    """Raise UserError where a node asks for what the front end leaves out."""
    resizes = any(node.op_type == "Resize" for node in model.graph.node)
    shapes = inferred_shapes(model) if resizes else {}
    for node in model.graph.node:
        attributes = attributes_of(node)
        reason = None
        if node.op_type == "BatchNormalization" and attributes.get("training_mode", 0):
            reason = "normalises by the batch, as in training: export the network in evaluation mode"
        elif node.op_type == "ConvTranspose" and "output_shape" in attributes:
            reason = "has an output_shape, which is not read: export it with pads and output_padding"
        elif node.op_type == "Resize":
            reason = _why_not_resized(node, attributes, model, shapes)
        if reason is not None:
            raise UserError(f"{path}: node {node.name or node.output[0]!r} ({node.op_type}) {reason}")


def _why_not_resized(
    node: Any, attributes: Mapping[str, Any], model: Any, shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    if attributes.get("antialias", 0):
        return "smooths before it resizes, which is not supported: export it without antialias"
    if "axes" in attributes or attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return "names axes or keeps the aspect ratio, which is not supported: export it with the sizes of all axes"
    scales = _constant(node.input[2], model) if len(node.input) > 2 and node.input[2] else None
    shape = shapes.get(node.input[0])
    if scales is None or shape is None or attributes.get("coordinate_transformation_mode") == b"align_corners":
        return None
    exact = [size * float(scale) for size, scale in zip(shape, scales, strict=False)]
    if all(math.isclose(size, round(size), rel_tol=1e-6) for size in exact):
        return None
    sizes = " x ".join(f"{size:g}" for size in exact)
    return f"scales {list(shape)} to {sizes}, which are no whole sizes: export it with sizes, not with scales"


def refuse_converted(node: Any, found: tuple[int, ...], expected: tuple[int, ...] | None, path: Path) -> None:
    """Raise UserError where a node's result has another shape than ONNX gives it.

    Args:
        node: of ONNX.
        found: the shape it was converted to.
        expected: of ONNX's own inference; None where it does not know.
        path: the file.
    """
    # ONNX's inference gives pools with ceil_mode windows that lie beyond the image; neither runtime computes those.
    if expected is None or found == expected or attributes_of(node).get("ceil_mode", 0):
        return
    raise UserError(
        f"{path}: node {node.name or node.output[0]!r} ({node.op_type}) has the shape {list(expected)} and was "
        f"converted to {list(found)}: write its padding out as numbers"
    )


def inferred_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors by name, of those that ONNX's own inference knows completely.

    What the file itself says of shapes between inputs and outputs may be older than them, and is not read.
    """
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except Exception:  # it is a help, not a judge: what it cannot do is left to the conversion
        return {}
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.HasField("shape"):
            dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
            if None not in dims:
                found[value.name] = tuple(dim for dim in dims if dim is not None)
    return found


def attributes_of(node: Any) -> dict[str, Any]:
    """Attributes by name, as numbers, bytes and lists of these."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _constant(name: str, model: Any) -> list[float] | None:
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name == name:
            return [float(value) for value in numpy_helper.to_array(tensor).reshape(-1)]
    for node in model.graph.node:
        if node.op_type == "Constant" and name in node.output and "value" in attributes_of(node):
            return [float(value) for value in numpy_helper.to_array(attributes_of(node)["value"]).reshape(-1)]
    return None
