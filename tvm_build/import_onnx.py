"""ONNX file to Relax, one ONNX node after the other, so that every Relax binding knows the layer it comes from."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from structadmm.errors import UserError
from tvm_build.misread import attributes_of, inferred_shapes, mend_misread, refuse_converted, refuse_misread

_CONTROL_FLOW = {"If", "Loop", "Scan"}
_SEQUENCES = {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SplitToSequence", "Optional"}
_LARGEST = 1 << 30  # elements when written out: more than any CNN's weight has
_MARK = re.compile(r"onnx([0-9]+)_[0-9]*")


@dataclass(frozen=True)
class Step:
    """What one ONNX node became.

    Attributes:
        layer: the module that owns the node's weight (`layer1.0.conv1`), else the ONNX node's name.
        onnx_op: the ONNX operator, such as "HardSwish".
        pads: for Pad with constant zeros, the ONNX `pads`; else None.
        attributes: of the ONNX node.
        bindings: its Relax bindings, in order.
    """

    layer: str
    onnx_op: str
    pads: tuple[int, ...] | None
    bindings: tuple[Any, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class ImportedNetwork:
    """A network in Relax.

    Attributes:
        module: IRModule with `main`, its weights as constants.
        steps: the bindings of `main`, by ONNX node.
        inputs: (name, variable) of each network input.
        outputs: (name, Relax expression) of each network output.
        parameters: elements of all floating-point initializers.
        path: the file.
    """

    module: Any
    steps: tuple[Step, ...]
    inputs: tuple[tuple[str, Any], ...]
    outputs: tuple[tuple[str, Any], ...]
    parameters: int
    path: Path


def import_onnx(path: Path) -> ImportedNetwork:
    """Read, check and convert an ONNX file.

    Raises:
        UserError: there is no such file, it is not valid ONNX, an input has no fixed shape or is not float32, or an
            operator is not supported; the message names the node.
    """
    model = load_onnx(path)
    return _convert(model, path)


def load_onnx(path: Path) -> Any:
    """The checked `onnx.ModelProto` in `path`, external data included.

    Raises:
        UserError: as for `import_onnx`, as far as it can be seen without converting anything.
    """
    import onnx

    if not path.is_file():
        raise UserError(f"{path}: expected an ONNX file, there is none: check the path")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(str(path))
    except Exception as error:
        # onnx raises protobuf, checker, OS and plain errors alike; each means that this file cannot be used.
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{path}: expected a valid ONNX model, got: {reason}: export it again") from error
    _refuse_unusable_inputs(model, path)
    _refuse_unknown_operators(model, path)
    _make_initializers_dense(model, path)
    _write_columns_out(model, path)
    mend_misread(model)
    refuse_misread(model, path)
    return model


def _make_initializers_dense(model: Any, path: Path) -> None:
    """Write sparse initializers and sparse constants out: TVM reads dense ones only."""
    from onnx import numpy_helper

    def dense(sparse: Any, name: str) -> Any:
        elements = math.prod(sparse.dims)
        if elements > _LARGEST:
            raise UserError(
                f"{path}: {name!r} claims {elements:.1e} elements, at most {_LARGEST:.1e} are read: export it again"
            )
        values = numpy_helper.to_array(sparse.values)
        indices = numpy_helper.to_array(sparse.indices)
        array = np.zeros(tuple(sparse.dims), dtype=values.dtype)
        if indices.ndim == 1:
            array.reshape(-1)[indices] = values
        else:
            array[tuple(indices.T)] = values
        return numpy_helper.from_array(array, name)

    for sparse in model.graph.sparse_initializer:
        model.graph.initializer.append(dense(sparse, sparse.values.name))
    del model.graph.sparse_initializer[:]
    nodes = []
    for node in model.graph.node:
        held = [attribute for attribute in node.attribute if attribute.name == "sparse_value"]
        if node.op_type == "Constant" and held:
            model.graph.initializer.append(dense(held[0].sparse_tensor, node.output[0]))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _write_columns_out(model: Any, path: Path) -> None:
    """Compute weights that are stored as `Reshape(Gather(columns, places))`, which is all that is done to constants."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    spent: set[str] = set()
    nodes = []
    for node in model.graph.node:
        stored = [constants[name] for name in node.input if name in constants]
        if len(stored) == len(node.input) and _writes_columns_out(node, stored):
            constants[node.output[0]] = _computed(node, stored, model.opset_import, path)
            spent.update(node.input)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    spent.difference_update(name for node in nodes for name in node.input)
    spent.difference_update(value.name for value in model.graph.output)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for name, tensor in constants.items() if name not in spent)


def _writes_columns_out(node: Any, stored: list[Any]) -> bool:
    import onnx

    if node.op_type not in ("Gather", "Reshape") or stored[0].data_type != onnx.TensorProto.FLOAT:
        return False
    return node.op_type == "Reshape" or (len(stored[0].dims), len(stored[1].dims)) == (2, 1)


def _computed(node: Any, stored: list[Any], opsets: Any, path: Path) -> Any:
    """The value of a node of constants, by ONNX's own reference."""
    import onnx
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    name = node.output[0]
    claimed = math.prod(max(1, size) for tensor in stored for size in tensor.dims)
    if node.op_type == "Gather" and claimed // max(1, min(stored[0].dims)) > _LARGEST:
        raise UserError(
            f"{path}: {name!r} claims {claimed:.1e} elements, at most {_LARGEST:.1e} are read: export it again"
        )
    inputs = [helper.make_tensor_value_info(tensor.name, tensor.data_type, None) for tensor in stored]
    output = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "constant", inputs, [output])
    try:
        evaluate = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets))
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in stored}
        found: Any = evaluate.run(None, arrays)
        return numpy_helper.from_array(np.asarray(found[0]), name)
    except Exception as error:  # numpy's and the evaluator's have no common base
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:150]
        raise UserError(f"{path}: weight {name!r} cannot be computed ({reason}): export it again") from None


def _refuse_unusable_inputs(model: Any, path: Path) -> None:
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if not inputs or not model.graph.output:
        raise UserError(
            f"{path}: expected a network with inputs and outputs, got {len(inputs)} inputs: export it again"
        )
    for value in inputs:
        tensor = value.type.tensor_type
        if tensor.elem_type != onnx.TensorProto.FLOAT:
            got = onnx.TensorProto.DataType.Name(tensor.elem_type)
            raise UserError(f"{path}: input {value.name!r} must be float32, got {got}: export the network in float32")
        dims = [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in tensor.shape.dim]
        if not dims or not all(isinstance(dim, int) and dim > 0 for dim in dims):
            raise UserError(
                f"{path}: input {value.name!r} must have a fixed shape, got [{', '.join(map(str, dims))}]: "
                "export without dynamic_shapes, or fix the sizes with onnxruntime.tools.make_dynamic_shape_fixed"
            )


def _refuse_unknown_operators(model: Any, path: Path) -> None:
    from tvm.relax.frontend.onnx import onnx_frontend

    known = set(onnx_frontend._get_convert_map()) - _CONTROL_FLOW
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in known:
            operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise UserError(
                f"{path}: node {_node_name(node)!r} is a {operator}, which is not supported: "
                "replace it in the model by standard operators without control flow"
            )


def _node_name(node: Any) -> str:
    return str(node.name or (node.output[0] if node.output else node.op_type))


def _layer_name(node: Any, constants: set[str]) -> str:
    if len(node.input) > 1 and node.input[1] in constants:
        owner, _, field = str(node.input[1]).rpartition(".")
        if owner and field.startswith("weight"):
            return owner
    return _node_name(node)


def _convert(model: Any, path: Path) -> ImportedNetwork:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import onnx_frontend

    graph = model.graph
    nodes = list(graph.node)
    constants = {tensor.name for tensor in graph.initializer}
    pads: dict[int, tuple[int, ...]] = {}
    shapes = inferred_shapes(model)

    class NamingImporter(onnx_frontend.ONNXGraphImporter):  # type: ignore[misc]
        """Binds the result of ONNX node k to a variable called `onnx<k>_`; the node's other bindings come before it."""

        position = -1

        def _convert_operator(self, op_name: str, inputs: Any, attrs: Any, opset: int) -> Any:
            self.position += 1
            node = nodes[self.position]
            try:
                result = self._fixed_clip(op_name, inputs)
                if result is None:
                    result = super()._convert_operator(op_name, inputs, attrs, opset)
            except Exception as error:
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise UserError(
                    f"{path}: node {_node_name(node)!r} ({op_name}) cannot be compiled: {reason}: "
                    "simplify that part of the model"
                ) from error
            if op_name == "Pad" and _pads_with_zeros(inputs, attrs):
                pads[self.position] = tuple(int(pad) for pad in inputs[1].value.numpy())
            if op_name not in _SEQUENCES:
                result = self._marked(result)
                self._compare_shape(node, result)
            return result

        def _compare_shape(self, node: Any, result: Any) -> None:
            """Hold a node's result against what ONNX says of it, where both are known."""
            dims = getattr(getattr(getattr(result, "ty", None), "shape", None), "values", None)
            if dims is not None and all(hasattr(dim, "value") for dim in dims):
                refuse_converted(node, tuple(int(dim.value) for dim in dims), shapes.get(node.output[0]), path)

        def _marked(self, result: Any) -> Any:
            """Bind every tensor of a node's result to a variable that carries the node's number."""
            mark = f"onnx{self.position}_"
            if isinstance(result, relax.Tuple):
                return relax.Tuple([self._marked(item) for item in result.fields])
            if isinstance(result.ty, relax.TupleType):
                whole = self.bb.emit(result, name_hint=mark)
                items = (relax.TupleGetItem(whole, k) for k in range(len(result.ty.fields)))
                return relax.Tuple([self.bb.emit(item, name_hint=mark) for item in items])
            is_bindable = isinstance(result, relax.Call | relax.TupleGetItem | tvm.ir.Var)
            if is_bindable and isinstance(result.ty, relax.TensorType):
                return self.bb.emit(result, name_hint=mark)
            return result

        def _fixed_clip(self, op_name: str, inputs: Any) -> Any:
            # TVM's converter writes maximum and minimum kernels even when the bounds are numbers (ReLU6).
            if (
                op_name != "Clip"
                or len(inputs) != 3
                or not all(isinstance(i, tvm.ir.GenericConst) for i in inputs[1:3])
            ):
                return None
            low, high = (float(bound.value.numpy()) for bound in inputs[1:3])
            return self.bb.normalize(relax.op.clip(inputs[0], min(low, high), high))  # ONNX: the upper bound comes last

    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    importer = NamingImporter(None, "float32", sanitize=False)
    # The front end prints what it fails on and warns about what the checker has already passed.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importer.from_onnx(graph, opset)
    passes = [relax.transform.FoldConstant(), relax.transform.DeadCodeElimination()]
    module = tvm.transform.Sequential(passes)(module)
    main = module["main"]
    layers = [_layer_name(node, constants) for node in nodes]
    steps = _group_by_node(main, nodes, layers, pads)
    _refuse_unknown_shapes(steps, path)
    inputs = [value.name for value in graph.input if value.name not in constants]
    return ImportedNetwork(
        module=module,
        steps=steps,
        inputs=tuple(zip(inputs, main.params, strict=True)),
        outputs=tuple(zip((str(value.name) for value in graph.output), _outputs(main), strict=True)),
        parameters=_count_parameters(graph),
        path=path,
    )


def _outputs(main: Any) -> list[Any]:
    """What `main` returns: its body is one tensor, or a variable bound to a tuple of them."""
    from tvm import relax

    bound = {binding.var: binding.value for block in main.body.blocks for binding in block.bindings}
    body = main.body.body
    while body in bound and isinstance(body.ty, relax.TupleType):
        body = bound[body]
    return list(body.fields) if isinstance(body, relax.Tuple) else [body]


def _pads_with_zeros(inputs: Any, attrs: Mapping[str, Any]) -> bool:
    import tvm

    mode = attrs.get("mode", b"constant")
    if mode not in (b"constant", "constant") or len(inputs) < 2 or not isinstance(inputs[1], tvm.ir.GenericConst):
        return False
    if len(inputs) > 3 and inputs[3] is not None:
        return False
    value = inputs[2] if len(inputs) > 2 else None
    return value is None or (isinstance(value, tvm.ir.GenericConst) and float(value.value.numpy()) == 0.0)


def _group_by_node(
    main: Any, nodes: list[Any], layers: list[str], pads: Mapping[int, tuple[int, ...]]
) -> tuple[Step, ...]:
    """Split the bindings into steps: one belongs to the next that is marked, or at the end to the last node."""
    steps: list[Step] = []
    pending: list[Any] = []
    for block in main.body.blocks:
        for binding in block.bindings:
            pending.append(binding)
            mark = _MARK.fullmatch(str(binding.var.name))
            if mark is not None:
                k = int(mark[1])
                attributes = attributes_of(nodes[k])
                steps.append(Step(layers[k], str(nodes[k].op_type), pads.get(k), tuple(pending), attributes))
                pending = []
    if pending:
        steps.append(Step(layers[-1] if layers else "output", "", None, tuple(pending), {}))
    return tuple(steps)


def _refuse_unknown_shapes(steps: tuple[Step, ...], path: Path) -> None:
    from tvm import relax

    def fixed(ty: Any) -> bool:
        if isinstance(ty, relax.TupleType):
            return all(fixed(field) for field in ty.fields)
        if not isinstance(ty, relax.TensorType):
            return True
        return ty.shape is not None and all(hasattr(dim, "value") for dim in getattr(ty.shape, "values", ()))

    for step in steps:
        if not all(fixed(binding.var.ty) for binding in step.bindings):
            raise UserError(
                f"{path}: node {step.layer!r} ({step.onnx_op}) has a shape that depends on its data: "
                "only networks whose shapes are all fixed can be compiled"
            )


def _count_parameters(graph: Any) -> int:
    import onnx

    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    total = 0
    for tensor in graph.initializer:
        if tensor.data_type in floats:
            size = 1
            for dim in tensor.dims:
                size *= dim
            total += size
    return total
