"""Relax bindings to nodes: whatever has a kernel of ours is named, everything else stays `Generic`.

Nothing is fused here: a convolution is a convolution without bias, a bias is a `ChannelAffine`, an activation an
`Activate`. `tvm_build.fuse` joins them.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from structadmm.errors import InvariantError, UserError
from tvm_build.import_onnx import ImportedNetwork, Step
from tvm_build.network import (
    Activate,
    Array,
    ChannelAffine,
    Generic,
    Network,
    Node,
    NodeOperator,
    Port,
    Tensor,
    View,
    ZeroPad,
    zeros,
)
from tvm_build.ops import Activation, ConcatChannels, Conv2d, Dense, Elementwise, GlobalAverage, Pool2d
from tvm_build.transposed import as_phases

_ELEMENTWISE = {"relax.add": "add", "relax.subtract": "sub", "relax.multiply": "mul"}
_VIEWS = {"relax.reshape", "relax.nn.batch_flatten", "relax.squeeze", "relax.expand_dims", "relax.flatten"}


def recognize(imported: ImportedNetwork) -> Network:
    """Name every operator of an imported network.

    Raises:
        UserError: an output does not depend on the inputs.
        InvariantError: a binding has a form that the importer never writes.
    """
    return _Recognizer(imported).run()


class _Recognizer:
    """Walks the steps once; `self.value` maps each Relax variable to a tensor name, a constant or a tuple."""

    def __init__(self, imported: ImportedNetwork) -> None:
        self.imported = imported
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.value: dict[Any, Any] = {}
        self.tuples: dict[Any, Any] = {}
        self.rows: dict[str, str] = {}  # a 3-D tensor, and the image of one row that it is another shape of
        # A tensor that one operator alone reads, and the result of a dense layer that it is another shape of. What that
        # operator does per feature, the dense layer takes along.
        self.matrices: dict[str, str] = {}
        self.readers = _readers(imported)

    def run(self) -> Network:
        inputs = tuple(Port(name, self._new_tensor(variable)) for name, variable in self.imported.inputs)
        for step in self.imported.steps:
            if not self._activation(step):
                for binding in step.bindings:
                    self._binding(step, binding)
        outputs = tuple(Port(name, self._output(name, value)) for name, value in self.imported.outputs)
        variables = {variable: name for variable, name in self.value.items() if isinstance(name, str)}
        functions = {str(name.name_hint): function for name, function in self.imported.module.functions.items()}
        network = Network(self.tensors, tuple(self.nodes), inputs, outputs, variables, functions)
        network.check()
        return network.without_dead_nodes()

    def _new_tensor(self, variable: Any) -> str:
        self.value[variable] = name = self._fresh(_shape(variable), str(variable.ty.dtype))
        return name

    def _fresh(self, shape: tuple[int, ...], dtype: str = "float32") -> str:
        name = f"t{len(self.tensors)}"
        self.tensors[name] = Tensor(name, shape, dtype)
        return name

    def _output(self, name: str, value: Any) -> str:
        tensor = self._resolve(value)
        if not isinstance(tensor, str):
            raise UserError(
                f"{self.imported.path}: output {name!r} does not depend on the inputs: cut the network before it"
            )
        return tensor

    def _resolve(self, expression: Any) -> Any:
        """A tensor's name, a numpy array, or None for anything else (tuples, shapes, numbers)."""
        import tvm

        if isinstance(expression, tvm.ir.GenericConst):
            return expression.value.numpy()
        try:
            return self.value.get(expression)
        except TypeError:  # an expression that cannot be a variable
            return None

    # --- one ONNX node at a time -------------------------------------------------------------------------------------

    def _activation(self, step: Step) -> bool:
        """Take a step whose ONNX operator is an activation as a whole, however many bindings TVM wrote for it."""
        activation = _activation_of(step)
        if activation is None:
            return False
        own = {binding.var for binding in step.bindings}
        read = {argument for binding in step.bindings for argument in _variables(binding.value)} - own
        sources = [variable for variable in read if isinstance(self._resolve(variable), str)]
        last = step.bindings[-1].var
        if len(read) != 1 or len(sources) != 1 or _shape(sources[0]) != _shape(last):
            return False
        source = self.value[sources[0]]
        if source in self.rows:
            self._add_row(step, Activate(activation), (self.rows[source],), last)
        elif source in self.matrices:
            # Of several activations a dense layer takes one: what follows is left to TVM.
            self._add_matrix(step, Activate(activation), self.matrices[source], last)
        else:
            self._add(step, Activate(activation), (source,), last, source_bindings=step.bindings)
        return True

    def _binding(self, step: Step, binding: Any) -> None:
        from tvm import relax

        value, variable = binding.value, binding.var
        if isinstance(value, relax.Tuple):
            self.tuples[variable] = list(value.fields)
            return
        if isinstance(value, relax.TupleGetItem):
            self._tuple_item(step, binding)
            return
        if not isinstance(value, relax.Call):
            known = self._resolve(value)
            if known is None and not isinstance(variable.ty, relax.ShapeType):
                raise InvariantError(f"{step.layer}: cannot follow the binding {binding}")
            self.value[variable] = known
            return
        if isinstance(variable.ty, relax.TupleType):
            self.tuples[variable] = binding
            return
        if not isinstance(variable.ty, relax.TensorType):
            return
        if not self._named_operator(step, binding, value):
            self._generic(step, binding)

    def _tuple_item(self, step: Step, binding: Any) -> None:
        held = self.tuples[binding.value.tuple_value]
        index = int(binding.value.index)
        if isinstance(held, list):
            self.value[binding.var] = self._resolve(held[index])
            return
        call = held.value
        if call.op.name == "relax.nn.batch_norm" and index == 0 and isinstance(self._resolve(call.args[0]), str):
            gamma, beta, mean, variance = (self._resolve(argument) for argument in call.args[1:5])
            if (
                all(isinstance(array, np.ndarray) for array in (gamma, beta, mean, variance))
                and int(call.attrs.axis) == 1
            ):
                scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + float(call.attrs.epsilon))
                shift = beta.astype(np.float64) - mean.astype(np.float64) * scale
                self._affine(step, self._resolve(call.args[0]), binding.var, scale, shift, (held, binding))
                return
        self._generic(step, held, binding)

    def _generic(self, step: Step, *bindings: Any) -> None:
        read = [variable for binding in bindings for variable in _variables(binding.value)]
        own = {binding.var for binding in bindings}
        inputs: list[str] = []
        for variable in read:
            name = self._resolve(variable)
            if variable in own or (isinstance(name, str) and name in inputs):
                continue
            if not isinstance(name, str):
                raise InvariantError(f"{step.layer}: reads {variable}, which is no tensor")
            inputs.append(name)
        self._add(step, Generic(), tuple(inputs), bindings[-1].var, source_bindings=bindings)

    def _add(
        self,
        step: Step,
        op: NodeOperator,
        inputs: tuple[str, ...],
        variable: Any,
        constants: dict[str, Array] | None = None,
        source_bindings: tuple[Any, ...] = (),
    ) -> None:
        output = self._new_tensor(variable)
        self.nodes.append(Node(step.layer, op, inputs, (output,), constants or {}, tuple(source_bindings)))

    def _add_row(
        self,
        step: Step,
        op: NodeOperator,
        inputs: tuple[str, ...],
        variable: Any,
        constants: dict[str, Array] | None = None,
    ) -> None:
        """A node on images of one row; `variable`, without that side, is a view of its result."""
        batch, channels, length = _shape(variable)
        row = self._fresh((batch, channels, 1, length))
        self.nodes.append(Node(step.layer, op, inputs, (row,), constants or {}))
        self._add(step, View(), (row,), variable)
        self.rows[self.value[variable]] = row

    def _add_matrix(
        self, step: Step, op: NodeOperator, data: str, variable: Any, constants: dict[str, Array] | None = None
    ) -> str:
        """A node on the matrix `data`, and its result, of which `variable` is a view."""
        *outer, features = _shape(variable)
        matrix = self._fresh((math.prod(outer), features))
        self.nodes.append(Node(step.layer, op, (data,), (matrix,), constants or {}))
        self._add(step, View(), (matrix,), variable)
        return matrix

    def _remember(self, variable: Any, matrix: str) -> None:
        """Only if whatever comes next can be joined: as a node of its own it has no bindings for TVM."""
        if self.readers[variable] == 1:
            self.matrices[self.value[variable]] = matrix

    def _as_row(self, step: Step, name: str) -> str:
        """A 3-D tensor as an image of one row: what it is a view of, if it is one."""
        if name not in self.rows:
            batch, channels, length = self.tensors[name].shape
            row = self._fresh((batch, channels, 1, length))
            self.nodes.append(Node(step.layer, View(), (name,), (row,)))
            return row
        return self.rows[name]

    # --- operators -------------------------------------------------------------------------------------------------

    def _named_operator(self, step: Step, binding: Any, call: Any) -> bool:
        """Add a node for `call` if it is one of ours; else leave everything as it is and return False."""
        if step.pads is not None and _is_call_tir(call):
            return self._zero_pad(step, binding, call)
        name = getattr(call.op, "name", "")
        values = [self._resolve(argument) for argument in call.args]
        if not values or (str(binding.var.ty.dtype) != "float32"):
            return False
        if name == "relax.concat":
            return self._concat(step, binding, call)
        if name in _ELEMENTWISE or name == "relax.divide":
            return self._binary(step, binding, name, values)
        data = values[0]
        if not isinstance(data, str):
            return False
        shape, out = self.tensors[data].shape, _shape(binding.var)
        if name in ("relax.nn.conv1d", "relax.nn.conv2d") and isinstance(values[1], np.ndarray):
            return self._convolution(step, binding, call.attrs, data, values[1])
        if name == "relax.nn.conv2d_transpose" and isinstance(values[1], np.ndarray):
            return self._transposed(step, binding, call.attrs, data, values[1])
        if name.removesuffix("1d").removesuffix("2d") in ("relax.nn.max_pool", "relax.nn.avg_pool"):
            return self._pool(step, binding, name, call.attrs, data)
        if _averages_pixels(name, call, len(shape), out) and (len(shape) == 4 or data in self.rows):
            return self._global_average(step, binding, self.rows.get(data, data))
        if name == "relax.matmul" and len(shape) >= 2 and isinstance(values[1], np.ndarray) and values[1].ndim == 2:
            return self._dense(step, binding, data, np.ascontiguousarray(values[1].T))
        if name in _VIEWS:
            self._add(step, View(), (self.rows.get(data, data),), binding.var, source_bindings=(binding,))
            return True
        return False

    def _convolution(self, step: Step, binding: Any, attrs: Any, data: str, weight: Array) -> bool:
        """Along one or two axes; one axis is that of an image's only row."""
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
        is_row = layouts == ("NCW", "OIW", "NCW")
        if layouts != ("NCHW", "OIHW", "NCHW") and not is_row:
            return False
        if is_row:
            data, weight = self._as_row(step, data), weight[:, :, None]
        batch, channels, height, width = self.tensors[data].shape
        conv = Conv2d(
            batch=batch,
            in_channels=channels,
            in_height=height,
            in_width=width,
            out_channels=weight.shape[0],
            kernel=(weight.shape[2], weight.shape[3]),
            stride=_pair(attrs.strides),
            padding=_four(attrs.padding),
            dilation=_pair(attrs.dilation),
            groups=int(attrs.groups),
        )
        shape = (batch, conv.out_channels, conv.out_height, conv.out_width)
        if _shape(binding.var) != (shape[:2] + shape[3:] if is_row else shape):
            raise InvariantError(f"{step.layer}: TVM gives {_shape(binding.var)} for {conv}")
        constants = {"weight": weight, "bias": zeros(weight.shape[0])}
        if is_row:
            self._add_row(step, conv, (data,), binding.var, constants)
        else:
            self._add(step, conv, (data,), binding.var, constants, (binding,))
        return True

    def _dense(self, step: Step, binding: Any, data: str, weight: Array) -> bool:
        """A dense layer on the last axis, on rows of a matrix: of more axes, all but the last count as one."""
        *outer, features = self.tensors[data].shape
        dense = Dense(math.prod(outer), features, len(weight))
        constants = {"weight": weight, "bias": zeros(len(weight))}
        if len(outer) == 1:
            self._add(step, dense, (data,), binding.var, constants, (binding,))
            return True
        rows = self._fresh((dense.batch, features))
        self.nodes.append(Node(step.layer, View(), (data,), (rows,)))
        self._remember(binding.var, self._add_matrix(step, dense, rows, binding.var, constants))
        return True

    def _transposed(self, step: Step, binding: Any, attrs: Any, data: str, weight: Array) -> bool:
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
        if layouts != ("NCHW", "IOHW", "NCHW") or int(attrs.groups) != 1:
            return False
        _, _, height, width = _shape(binding.var)
        stride, padding, dilation = _pair(attrs.strides), _four(attrs.padding), _pair(attrs.dilation)
        phases = as_phases(self.tensors[data].shape, weight, stride, padding, dilation, (height, width))  # type: ignore[arg-type]
        if phases is None:
            return False
        conv, constants = phases.conv, {"weight": phases.weight, "bias": zeros(phases.conv.out_channels)}
        if phases.interleave is None:
            self._add(step, conv, (data,), binding.var, constants, (binding,))
            return True
        computed = self._fresh((conv.batch, conv.out_channels, conv.out_height, conv.out_width))
        self.nodes.append(Node(step.layer, conv, (data,), (computed,), constants))
        self._add(step, phases.interleave, (computed,), binding.var)
        return True

    def _pool(self, step: Step, binding: Any, name: str, attrs: Any, data: str) -> bool:
        is_row = (str(attrs.layout), str(attrs.out_layout)) == ("NCW", "NCW")
        if not is_row and (str(attrs.layout), str(attrs.out_layout)) != ("NCHW", "NCHW"):
            return False
        out = _shape(binding.var)
        if is_row:
            data, out = self._as_row(step, data), (*out[:2], 1, out[2])
        batch, channels, height, width = self.tensors[data].shape
        kernel, stride, dilation = _pair(attrs.pool_size), _pair(attrs.strides), _pair(attrs.dilation)
        padding = _four(attrs.padding)
        average = name.startswith("relax.nn.avg_pool")
        if average:
            # With ceil_mode the last window may reach beyond the padding, where what counts is a matter of convention.
            reach = [stride[i] * (out[i + 2] - 1) + dilation[i] * (kernel[i] - 1) + 1 for i in range(2)]
            if reach[0] > height + padding[0] + padding[2] or reach[1] > width + padding[1] + padding[3]:
                return False
        pool = Pool2d(
            kind="avg" if average else "max",
            batch=batch,
            channels=channels,
            in_height=height,
            in_width=width,
            out_height=out[2],
            out_width=out[3],
            kernel=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            count_include_pad=average and bool(attrs.count_include_pad),
        )
        if is_row:
            self._add_row(step, pool, (data,), binding.var)
        else:
            self._add(step, pool, (data,), binding.var, source_bindings=(binding,))
        return True

    def _global_average(self, step: Step, binding: Any, data: str) -> bool:
        (batch, channels, height, width), out = self.tensors[data].shape, _shape(binding.var)
        average = GlobalAverage(batch, channels, height, width)
        if len(out) == 4:
            self._add(step, average, (data,), binding.var, source_bindings=(binding,))
        elif len(out) == 3:
            self._add_row(step, average, (data,), binding.var)
        else:
            pooled = self._fresh((batch, channels, 1, 1))
            self.nodes.append(Node(step.layer, average, (data,), (pooled,)))
            self._add(step, View(), (pooled,), binding.var)
        return True

    def _concat(self, step: Step, binding: Any, call: Any) -> bool:
        from tvm import relax

        fields = call.args[0]
        items = list(fields.fields) if isinstance(fields, relax.Tuple) else self.tuples.get(fields)
        if not isinstance(items, list) or call.attrs.axis is None:
            return False
        names = [self._resolve(item) for item in items]
        out = _shape(binding.var)
        if int(call.attrs.axis) not in (1, 1 - len(out)) or not all(isinstance(name, str) for name in names):
            return False
        channels = tuple(self.tensors[name].shape[1] for name in names)
        if len(out) == 3 and all(name in self.rows for name in names):
            concat = ConcatChannels(out[0], channels, 1, out[2])
            self._add_row(step, concat, tuple(self.rows[name] for name in names), binding.var)
            return True
        if len(out) != 4:
            return False
        concat = ConcatChannels(out[0], channels, out[2], out[3])
        self._add(step, concat, tuple(names), binding.var, source_bindings=(binding,))
        return True

    def _affine(
        self, step: Step, data: str, variable: Any, scale: Array, shift: Array, bindings: tuple[Any, ...]
    ) -> None:
        constants = {"scale": scale, "shift": shift}
        if data in self.rows:
            self._add_row(step, ChannelAffine(), (self.rows[data],), variable, constants)
        else:
            self._add(step, ChannelAffine(), (data,), variable, constants, bindings)

    def _per_feature(self, step: Step, matrix: str, variable: Any, scale: Array, shift: Array) -> None:
        constants = {"scale": scale, "shift": shift}
        self._remember(variable, self._add_matrix(step, ChannelAffine(), matrix, variable, constants))

    def _binary(self, step: Step, binding: Any, name: str, values: list[Any]) -> bool:
        left, right = values
        out = _shape(binding.var)
        if isinstance(left, str) and isinstance(right, str):
            return self._elementwise(step, binding, name, left, right)
        data = left if isinstance(left, str) else right
        if (
            not isinstance(data, str)
            or self.tensors[data].shape != out
            or not (len(out) in (2, 4) or data in self.rows or data in self.matrices)
        ):
            return False
        constant = right if isinstance(left, str) else left
        axis = len(out) - 1 if data in self.matrices else 1
        channel = _per_channel(constant, out, axis)
        if channel is None or (name == "relax.divide" and not isinstance(left, str)):
            return False
        one, zero = np.ones(out[axis]), np.zeros(out[axis])
        if name == "relax.add":
            scale, shift = one, channel
        elif name == "relax.multiply":
            scale, shift = channel, zero
        elif name == "relax.divide":
            scale, shift = 1.0 / channel, zero
        elif isinstance(left, str):
            scale, shift = one, -channel
        else:
            scale, shift = -one, channel
        if data in self.matrices:
            self._per_feature(step, self.matrices[data], binding.var, scale, shift)
        else:
            self._affine(step, data, binding.var, scale, shift, (binding,))
        return True

    def _elementwise(self, step: Step, binding: Any, name: str, left: str, right: str) -> bool:
        out = _shape(binding.var)
        if name not in _ELEMENTWISE:
            return False
        operator: Any = _ELEMENTWISE[name]
        if left in self.rows and right in self.rows and self.tensors[left].shape == self.tensors[right].shape == out:
            op = Elementwise(operator, out[0], out[1], 1, out[2])
            self._add_row(step, op, (self.rows[left], self.rows[right]), binding.var)
            return True
        if len(out) != 4:
            return False
        shapes = self.tensors[left].shape, self.tensors[right].shape
        pooled = (out[0], out[1], 1, 1)
        if shapes == (out, out):
            op = Elementwise(operator, out[0], out[1], out[2], out[3])
        elif shapes == (out, pooled):
            op = Elementwise(operator, out[0], out[1], out[2], out[3], broadcast_pixels=True)
        elif shapes == (pooled, out) and operator in ("add", "mul"):
            op = Elementwise(operator, out[0], out[1], out[2], out[3], broadcast_pixels=True)
            left, right = right, left
        else:
            return False
        self._add(step, op, (left, right), binding.var, source_bindings=(binding,))
        return True

    def _zero_pad(self, step: Step, binding: Any, call: Any) -> bool:
        assert step.pads is not None
        arguments = [self._resolve(field) for field in call.args[1].fields]
        pads, out = step.pads, _shape(binding.var)
        if len(arguments) != 1 or not isinstance(arguments[0], str) or len(pads) != 8 or any(pad < 0 for pad in pads):
            return False
        shape = self.tensors[arguments[0]].shape
        grown = tuple(size + before + after for size, before, after in zip(shape, pads[:4], pads[4:], strict=True))
        if grown != out or any((pads[0], pads[1], pads[4], pads[5])):
            return False
        self._add(step, ZeroPad((pads[2], pads[3], pads[6], pads[7])), (arguments[0],), binding.var, {}, (binding,))
        return True


def _activation_of(step: Step) -> Activation | None:
    """The activation that the whole step is, if it is one."""
    call = step.bindings[-1].value
    name = getattr(getattr(call, "op", None), "name", "")
    if step.onnx_op == "Relu" and name == "relax.nn.relu":
        return "relu"
    if step.onnx_op == "Clip" and name == "relax.clip":
        low, high = (float(bound.value) for bound in call.args[1:3])
        return "relu6" if (low, high) == (0.0, 6.0) else None
    if step.onnx_op == "Sigmoid" and name == "relax.sigmoid":
        return "sigmoid"
    if step.onnx_op == "HardSwish":
        return "hard_swish"
    if step.onnx_op == "HardSigmoid" and _is_standard_hard_sigmoid(step):
        return "hard_sigmoid"
    return None


def _is_standard_hard_sigmoid(step: Step) -> bool:
    """Whether alpha is 1/6 and beta 0.5, as PyTorch writes it (ONNX's own default alpha is 0.2)."""
    numbers = [step.attributes.get("alpha", 0.2), step.attributes.get("beta", 0.5)]
    return np.allclose(numbers, [1 / 6, 0.5], rtol=1e-6)


def _averages_pixels(name: str, call: Any, rank: int, out: tuple[int, ...]) -> bool:
    """Whether a call averages all pixels of each channel."""
    if name == "relax.nn.adaptive_avg_pool2d":
        return out[2:] == (1, 1) and str(call.attrs.layout) == "NCHW"
    if name == "relax.nn.adaptive_avg_pool1d":
        return out[2:] == (1,) and str(call.attrs.layout) == "NCW"
    if name != "relax.mean" or call.attrs.axis is None or rank not in (3, 4):
        return False
    return sorted(int(axis) % rank for axis in call.attrs.axis) == list(range(2, rank))


def _is_call_tir(call: Any) -> bool:
    return getattr(call.op, "name", "") == "relax.call_tir"


def _per_channel(constant: Any, out: tuple[int, ...], channels: int) -> Array | None:
    """`constant` as float64 `[C]`, if it broadcasts along the axis `channels` of `out` alone."""
    if not isinstance(constant, np.ndarray) or constant.ndim > len(out):
        return None
    shape = (1,) * (len(out) - constant.ndim) + constant.shape
    count = out[channels]
    if any(size != 1 for axis, size in enumerate(shape) if axis != channels) or shape[channels] not in (1, count):
        return None
    return np.broadcast_to(constant.reshape(-1).astype(np.float64), (count,)).copy()


def _readers(imported: ImportedNetwork) -> Counter[Any]:
    """How often each variable is read; what is renamed or put into a tuple counts as read twice."""
    from tvm import relax

    counts: Counter[Any] = Counter(variable for _, value in imported.outputs for variable in _variables(value))
    for binding in (binding for step in imported.steps for binding in step.bindings):
        times = 1 if isinstance(binding.value, relax.Call) else 2
        counts.update(_variables(binding.value) * times)
    return counts


def _variables(expression: Any) -> list[Any]:
    """The variables that a binding's value reads, in order."""
    import tvm
    from tvm import relax

    if isinstance(expression, tvm.ir.Var):
        return [expression]
    if isinstance(expression, relax.Tuple):
        return [variable for field in expression.fields for variable in _variables(field)]
    if isinstance(expression, relax.TupleGetItem):
        return _variables(expression.tuple_value)
    if isinstance(expression, relax.Call):
        return [variable for argument in expression.args for variable in _variables(argument)]
    return []


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in variable.ty.shape.values)


def _pair(values: Any) -> tuple[int, int]:
    """Along y and x; of an image of one row, only that along x is given."""
    *first, second = (int(value) for value in values)
    return (first[0] if first else 1), second


def _four(values: Any) -> tuple[int, int, int, int]:
    """Top, left, bottom, right; of an image of one row, only left and right are given."""
    numbers = [int(value) for value in values]
    top, left, bottom, right = numbers if len(numbers) == 4 else (0, numbers[0], 0, numbers[1])
    return top, left, bottom, right
