"""Relax to launches through TVM's own operator library and schedules.

Two things use it: operators without a kernel of ours (`tvm_build.lower`), and the `upstream` schedule set, which is
TVM's Adreno pipeline for the whole network (`tvm_build.upstream`). After fusion and scheduling, `CallTIRRewrite`
leaves `main` as a straight line of allocations and calls of scheduled TIR functions. Lowering one such function
splits it into device kernels and a host function whose `call_ffi_kernel` statements hold kernel name, argument order
and constant launch extents. With fixed shapes that is all there is to launch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from structadmm.errors import InvariantError, UserError
from tvm_build.emit import OpenClKernel
from tvm_build.lowered import KernelLaunch
from tvm_build.memory_plan import ImageRow
from tvm_build.network import ITEM_BYTES, Array
from tvm_build.upstream_textures import repaired, texture_of, written_images

_WORK_ITEM_AXES = ("x", "y", "z")
# TVM's OpPatternKind::kOpaque and IterVar::kCommReduce.
_OPAQUE, _REDUCTION = 8, 2


@dataclass(frozen=True)
class LoweredFunction:
    """What one Relax function became.

    Attributes:
        launches: kernels in order, on tensors named as below.
        sizes: bytes of each tensor that the function itself allocates.
        constants: arrays that its kernels read.
        outputs: the tensors that hold its results, in order.
        images: what a row is of those tensors and constants that lie in images.
    """

    launches: tuple[KernelLaunch, ...]
    sizes: Mapping[str, int]
    constants: Mapping[str, Array]
    outputs: tuple[str, ...]
    images: Mapping[str, ImageRow]


def generic_passes(target: Any) -> list[Any]:
    """TVM's passes from Relax operators to TIR functions scheduled for any GPU."""
    import tvm
    from tvm import relax
    from tvm.s_tir import dlight

    return [
        tvm.tirx.transform.BindTarget(target),
        relax.transform.DecomposeOpsForInference(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        _leave_alone_reductions_of_one(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        relax.transform.Normalize(),
        dlight.ApplyDefaultSchedule(dlight.gpu.Reduction(), dlight.gpu.GeneralReduction(), dlight.gpu.Fallback()),
    ]


def _leave_alone_reductions_of_one() -> Any:
    """A pass: nothing is fused into a reduction over a single element.

    TVM drops such a loop and then computes what was fused twice, in the initial value and in the update.
    """
    import tvm

    def mark(module: Any, context: Any) -> Any:
        del context
        for variable, function in list(module.functions.items()):
            if isinstance(function, tvm.tirx.PrimFunc) and _reduces_over_one(function):
                module[variable] = function.with_attr("op_pattern", _OPAQUE)
        return module

    return tvm.transform.module_pass(mark, opt_level=0, name="LeaveAloneReductionsOfOne")


def _reduces_over_one(function: Any) -> bool:
    import tvm_ffi

    found = []

    def visit(node: Any) -> None:
        if type(node).__name__ == "SBlock":
            extents = [axis.dom.extent for axis in node.iter_vars if int(axis.iter_type) == _REDUCTION]
            found.append(bool(extents) and all(getattr(extent, "value", 0) == 1 for extent in extents))

    tvm_ffi.structural_walk(function.body, [(object, visit)], order="pre")
    return any(found)


def straight_line_passes() -> list[Any]:
    """TVM's passes from scheduled call_tir bindings to allocations and calls."""
    from tvm import relax

    return [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
    ]


def lower_relax(
    module: Any,
    passes: Sequence[Any],
    target: Any,
    *,
    inputs: Sequence[str],
    prefix: str,
    layer_of: Mapping[str, str],
    layer: str,
) -> LoweredFunction:
    """Run `passes` over `module` and take its `main` apart into launches.

    Args:
        module: IRModule whose `main` takes tensors alone.
        passes: from Relax operators to scheduled TIR functions; `straight_line_passes` follow.
        target: the TVM target.
        inputs: tensor names of `main`'s parameters.
        prefix: begins the name of every tensor and constant that is created here.
        layer_of: layer by the name of the Relax variable that an operator computes. What TVM writes for an operator
            before that variable belongs to it, too; a launch of several operators has the layer of the heaviest.
        layer: the layer of launches that nothing of this leads to.

    Raises:
        UserError: TVM has no GPU kernel for an operator, or fails in a pass.
        InvariantError: `main` holds something other than allocations, calls, views and tuples.
    """
    import tvm

    trace = _FusionTrace(layer_of, layer)
    with target:
        try:
            module = tvm.transform.Sequential([*trace.around_fusion(passes), *straight_line_passes()])(module)
        except Exception as error:
            raise UserError(f"{layer}: TVM cannot lower this operator ({first_line(error)}): replace it") from error
    return _StraightLine(module, target, prefix, trace.layers, layer).run(inputs)


def first_line(error: BaseException) -> str:
    """What a TVM error says, without its stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if re.search(r"(Error|failed|error)", line)]
    # Addresses differ from run to run.
    return re.sub(r" ?\(?\b0x[0-9a-f]{6,}\b\)?", "", (said or lines or [type(error).__name__])[-1])


class _FusionTrace:
    """Finds the layers that a fused function computes.

    Fusion renames the variable of a function's result and shares one function among equal groups, so that names do not
    tell. But operators before and after it are the same functions of the same tensors: a tensor goes by the operator
    that computes it and what that reads, and an operator of a fused function is that which computed the same before.
    """

    def __init__(self, layer_of: Mapping[str, str], layer: str) -> None:
        self.layer_of = layer_of
        self.layer = layer
        self.layers: dict[str, str] = {}  # by variable of `main` after fusion
        self.numbers: dict[Any, int] = {}  # by operator and the numbers of what it reads
        self.weights: dict[str, int] = {}  # floating-point operations by TIR function
        self.unfused: dict[int, list[str]] = {}  # layers by what they compute, in order

    def around_fusion(self, passes: Sequence[Any]) -> list[Any]:
        """`passes` with a look at the module before and after fusion."""
        import tvm

        def look(at: Callable[[Any], None]) -> Any:
            def watch(module: Any, context: Any) -> Any:
                del context
                at(module)
                return module

            return tvm.transform.module_pass(watch, opt_level=0, name="FollowLayers")

        watched = []
        for each in passes:
            is_fusion = str(each.info.name) == "FuseOps"
            watched.extend([look(self._before), each, look(self._after)] if is_fusion else [each])
        return watched

    def _before(self, module: Any) -> None:
        main = module["main"]
        values = self._parameters(main)
        unnamed: list[int] = []
        for binding in _bindings(main):
            values[binding.var] = self._number(binding.value, values)
            if _operator(binding.value):
                unnamed.append(values[binding.var])
            layer = self.layer_of.get(str(binding.var.name))
            if layer is not None:
                self._name(unnamed, layer)
                unnamed = []
        self._name(unnamed, self.layer)

    def _name(self, numbers: Sequence[int], layer: str) -> None:
        for number in numbers:
            self.unfused.setdefault(number, []).append(layer)

    def _after(self, module: Any) -> None:
        from tvm import relax

        main = module["main"]
        values = self._parameters(main)
        functions = {str(variable.name_hint): function for variable, function in module.functions.items()}
        for binding in _bindings(main):
            name, value = str(binding.var.name), binding.value
            called = functions.get(_operator(value))
            if isinstance(called, relax.Function):
                arguments = [self._number(argument, values) for argument in value.args]
                values[binding.var], self.layers[name] = self._fused(called, arguments, functions)
                continue
            values[binding.var] = self._number(value, values)
            if _operator(value):
                self.layers[name] = self._layer(values[binding.var])
            elif str(getattr(value, "name", "")) in self.layers:
                self.layers[name] = self.layers[str(value.name)]

    def _fused(self, function: Any, arguments: Sequence[int], functions: Mapping[str, Any]) -> tuple[int, str]:
        """What a call of a fused function computes, and the layer of its heaviest operator."""
        values = dict(zip(function.params, arguments, strict=True))
        parts: list[tuple[int, str]] = []
        for binding in _bindings(function):
            values[binding.var] = self._number(binding.value, values)
            operator = _operator(binding.value)
            if operator:
                parts.append((self._weight(operator, functions), self._layer(values[binding.var])))
        # Of equally heavy ones the last: the result is its.
        _, layer = max(reversed(parts), key=lambda part: part[0], default=(0, self.layer))
        return self._number(function.body.body, values), layer

    def _weight(self, operator: str, functions: Mapping[str, Any]) -> int:
        if operator not in self.weights:
            self.weights[operator] = _flops(functions[operator]) if operator in functions else 0
        return self.weights[operator]

    def _layer(self, number: int) -> str:
        """The next of the layers that compute this, the last one for all that are left."""
        layers = self.unfused.get(number, [self.layer])
        return layers.pop(0) if len(layers) > 1 else layers[0]

    def _parameters(self, main: Any) -> dict[Any, int]:
        return {parameter: self._known(("parameter", k)) for k, parameter in enumerate(main.params)}

    def _number(self, expression: Any, values: Mapping[Any, int]) -> int:
        """Of what an expression computes: equal for the same operator on the same tensors."""
        import tvm
        from tvm import relax

        if isinstance(expression, relax.Call):
            operands = tuple(self._number(argument, values) for argument in _operands(expression))
            return self._known((_operator(expression), operands))
        if isinstance(expression, relax.Tuple):
            return self._known(("tuple", tuple(self._number(field, values) for field in expression.fields)))
        if isinstance(expression, relax.TupleGetItem):
            return self._known(("item", self._number(expression.tuple_value, values), int(expression.index)))
        if isinstance(expression, tvm.ir.Var):
            return values.get(expression, -1)
        return self._known(expression)

    def _known(self, key: Any) -> int:
        return self.numbers.setdefault(key, len(self.numbers))


def _bindings(function: Any) -> list[Any]:
    return [binding for block in function.body.blocks for binding in block.bindings]


def _operator(value: Any) -> str:
    """The function or operator that a binding's value calls; empty if it calls none."""
    from tvm import relax

    if not isinstance(value, relax.Call):
        return ""
    called = value.args[0] if getattr(value.op, "name", "") == "relax.call_tir" else value.op
    return str(getattr(called, "name_hint", getattr(called, "name", called)))


def _operands(call: Any) -> list[Any]:
    """What a call reads, without the function that a `call_tir` names."""
    return list(call.args[1:] if getattr(call.op, "name", "") == "relax.call_tir" else call.args)


class _StraightLine:
    """Follows `main` after `CallTIRRewrite`, statement by statement."""

    def __init__(self, module: Any, target: Any, prefix: str, layer_of: Mapping[str, str], layer: str) -> None:
        self.module = module
        self.target = target
        self.prefix = prefix
        self.layer_of = layer_of
        self.layer = layer
        self.value: dict[Any, Any] = {}
        self.sizes: dict[str, int] = {}
        self.constants: dict[str, Array] = {}
        self.images: dict[str, ImageRow] = {}
        self.launches: list[KernelLaunch] = []
        self.writers: dict[str, range] = {}  # by tensor, the launches of the last call that wrote it
        self.compiled: dict[str, CompiledFunction] = {}

    def run(self, inputs: Sequence[str]) -> LoweredFunction:
        main = self.module["main"]
        for variable, name in zip(main.params, inputs, strict=True):
            self.value[variable] = name
        for block in main.body.blocks:
            for binding in block.bindings:
                self._binding(binding)
        result = self._resolve(main.body.body)
        outputs = tuple(result) if isinstance(result, tuple) else (result,)
        return LoweredFunction(tuple(self.launches), self.sizes, self.constants, outputs, self.images)

    def _resolve(self, expression: Any) -> Any:
        """A tensor name, a constant's name, or a tuple of them."""
        import tvm
        from tvm import relax

        if isinstance(expression, tvm.ir.GenericConst):
            return self._constant(expression.value.numpy())
        if isinstance(expression, relax.Tuple):
            return tuple(self._resolve(field) for field in expression.fields)
        if isinstance(expression, relax.TupleGetItem):
            return self._resolve(expression.tuple_value)[int(expression.index)]
        if expression not in self.value:
            raise InvariantError(f"{self.layer}: TVM left the expression {expression}, which launches nothing")
        return self.value[expression]

    def _constant(self, array: Array) -> str:
        name = f"{self.prefix}.c{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def _binding(self, binding: Any) -> None:
        import tvm
        from tvm import relax

        value = binding.value
        if not isinstance(value, relax.Call):
            self.value[binding.var] = self._resolve(value)
            for tensor in _names(self.value[binding.var]):
                self._name_launches_of(tensor, str(binding.var.name))
            return
        if isinstance(value.op, tvm.ir.GlobalVar):
            self._call(str(value.op.name_hint), value.args)
            return
        operator = str(getattr(value.op, "name", value.op))
        if operator == "relax.builtin.alloc_tensor":
            name = f"{self.prefix}.a{len(self.sizes)}"
            self.sizes[name] = _tensor_bytes(binding.var.ty)
            self.value[binding.var] = name
        elif operator in ("relax.reshape", "relax.memory.view", "relax.memory.ensure_zero_offset"):
            self.value[binding.var] = self._resolve(value.args[0])
        else:
            raise UserError(f"{self.layer}: TVM has no GPU kernel for {operator}: replace this operator in the model")

    def _name_launches_of(self, tensor: str, variable: str) -> None:
        """Once a result is bound to a variable of which the layer is known, the launches of its function get that."""
        layer = self.layer_of.get(variable)
        if layer is None:
            return
        for position in self.writers.get(tensor, ()):
            self.launches[position] = replace(self.launches[position], layer=layer)

    def _call(self, function: str, arguments: Sequence[Any]) -> None:
        if function not in self.compiled:
            self.compiled[function] = compile_function(self.module[function], function, self.target)
        compiled = self.compiled[function]
        names = [self._resolve(argument) for argument in arguments]
        for name, row in zip(names, compiled.parameter_rows, strict=True):
            if row is not None:
                self.images[name] = row
        workspaces = []
        for size in compiled.workspaces:
            workspaces.append(f"{self.prefix}.a{len(self.sizes)}")
            self.sizes[workspaces[-1]] = size
        share = compiled.flops // max(1, len(compiled.kernels))
        own = range(len(self.launches), len(self.launches) + len(compiled.kernels))
        for kernel, operands, written in compiled.kernels:
            used = tuple(names[i] if i < len(names) else workspaces[i - len(names)] for i in operands)
            traffic = sum(self._bytes_of(name, compiled, i) for name, i in zip(used, operands, strict=True))
            writes = frozenset(used[k] for k in written)
            self.launches.append(KernelLaunch(kernel, used, writes, share, traffic, self.layer))
            self.writers.update(dict.fromkeys(writes, own))

    def _bytes_of(self, name: str, compiled: CompiledFunction, operand: int) -> int:
        if operand < len(compiled.parameter_bytes):
            return compiled.parameter_bytes[operand]
        return self.sizes[name]


@dataclass(frozen=True)
class CompiledFunction:
    """A TIR function as OpenCL kernels.

    Attributes:
        kernels: (kernel, operands, written) in launch order. Operand i is the function's i-th parameter, or, from
            `len(parameter_bytes)` on, a workspace; `written` holds positions within `operands`.
        parameter_bytes: size of each parameter.
        parameter_rows: what a row of each parameter is, if that is a texture.
        workspaces: bytes of each intermediate array between the kernels.
        flops: TVM's estimate for the whole function.
    """

    kernels: tuple[tuple[OpenClKernel, tuple[int, ...], tuple[int, ...]], ...]
    parameter_bytes: tuple[int, ...]
    parameter_rows: tuple[ImageRow | None, ...]
    workspaces: tuple[int, ...]
    flops: int


def compile_function(function: Any, name: str, target: Any) -> CompiledFunction:
    """Lower one scheduled TIR function and generate the OpenCL C of its kernels.

    Raises:
        InvariantError: its launches are not constant, or pass anything but arrays.
    """
    import tvm
    import tvm_ffi
    from tvm import tirx
    from tvm.tirx.build import split_host_device_mods

    flops = _flops(function)
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    pipeline, _, finalize_device = tirx.get_tir_pipeline("s_tir")
    # A tensor that is read twice is two parameters of one name.
    textures = [(str(parameter.name), texture_of(parameter)) for parameter in function.params]
    if any(texture for _, texture in textures):
        # `tirx.build` expects three passes of a pipeline, and this one is alone: the defaults finish what it begins.
        pipeline = tirx.compilation_pipeline.PIPELINE_MAP["adreno"]()
    module = pipeline(tirx.transform.BindTarget(target)(module))
    host, devices = split_host_device_mods(module)
    rows = {f"{name}_ptr": texture[1] for name, texture in textures if texture is not None}
    sources = _device_sources(devices, finalize_device, rows)
    operands = _HostOperands(name)
    tvm_ffi.structural_walk(host[name].body, [(object, operands.visit)], order="pre")
    kernels = []
    for call in operands.calls:
        kernel = str(call.args[0].value)
        tags = [str(tag) for tag in call.attrs.launch_params]
        count = len(call.args) - 1 - len(tags)
        if not all(hasattr(extent, "value") for extent in call.args[1 + count :]):
            raise InvariantError(f"{kernel} has launch extents that are not constant")
        extents = {tag: int(extent.value) for tag, extent in zip(tags, call.args[1 + count :], strict=True)}
        used = tuple(operands.operand(argument) for argument in call.args[1 : 1 + count])
        source, parameters, written = sources[kernel]
        global_size, local_size = _sizes(extents)
        kernels.append((OpenClKernel(kernel, source, parameters, global_size, local_size), used, written))
    parameter_bytes = tuple(_buffer_bytes(parameter) for parameter in function.params)
    workspaces = tuple(_buffer_bytes(buffer) for buffer in operands.workspaces)
    shifted = tuple(
        (kernel, tuple(i if i >= 0 else len(parameter_bytes) - 1 - i for i in used), written)
        for kernel, used, written in kernels
    )
    parameter_rows = tuple(None if texture is None else texture[0] for _, texture in textures)
    return CompiledFunction(shifted, parameter_bytes, parameter_rows, workspaces, flops)


class _HostOperands:
    """Reads a lowered host function: which parameter or workspace each kernel argument is."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.handles: dict[Any, int] = {}
        self.data: dict[Any, Any] = {}
        self.workspaces: list[Any] = []
        self.calls: list[Any] = []

    def visit(self, node: Any) -> None:
        kind = type(node).__name__
        if kind == "Bind":
            index = self._argument_index(node.value)
            if index is not None:
                self.handles[node.var] = index
        elif kind == "DeclBuffer":
            self.data[node.buffer] = node.data
        elif kind == "AllocBuffer":
            self.workspaces.append(node.buffer)
        elif kind == "Call" and getattr(node.op, "name", "") == "tirx.call_ffi_kernel":
            self.calls.append(node)

    @staticmethod
    def _argument_index(expression: Any) -> int | None:
        """k, if the expression picks the k-th packed argument's handle (field 15 of the argument array)."""
        import tvm_ffi

        found: list[int] = []

        def visit(node: Any) -> None:
            if type(node).__name__ == "Call" and getattr(node.op, "name", "") == "tirx.tvm_struct_get":
                source, index, kind = node.args[0], node.args[1], node.args[2]
                if str(getattr(source, "name", "")) == "args" and int(kind.value) == 15:
                    found.append(int(index.value))

        tvm_ffi.structural_walk(expression, [(object, visit)], order="pre")
        return found[0] if found else None

    def operand(self, argument: Any) -> int:
        """Parameter index, or -1 - k for the k-th workspace."""
        import tvm_ffi

        current = argument
        for _ in range(8):
            buffer = current.args[0] if getattr(current.op, "name", "") == "tirx.buffer_data" else None
            if buffer is not None:
                for k, workspace in enumerate(self.workspaces):
                    if buffer.same_as(workspace):
                        return -1 - k
                if buffer not in self.data:
                    break
                current = self.data[buffer]
                continue
            handles: list[int] = []

            def visit(node: Any, handles: list[int] = handles) -> None:
                if type(node).__name__ == "Var" and node in self.handles:
                    handles.append(self.handles[node])

            tvm_ffi.structural_walk(current, [(object, visit)], order="pre")
            if handles:
                return handles[0]
            break
        raise InvariantError(f"{self.function}: cannot tell which array the kernel argument {argument} is")


def _device_sources(
    devices: Mapping[Any, Any], finalize_device: Any, rows: dict[str, int]
) -> dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """By kernel name: OpenCL C, parameter names, positions of the parameters that it writes."""
    import tvm
    from tvm.tirx.build import codegen_build

    found: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {}
    for target, device in devices.items():
        for variable, function in device.functions.items():
            name = str(variable.name_hint)
            # One kernel per module: the forward declarations of many grow quadratically.
            alone = finalize_device()(tvm.IRModule({variable: function}))
            (lowered,) = alone.functions.values()
            source = str(codegen_build(alone, target).inspect_source())
            lines = [line for line in source.splitlines() if not (line.startswith("__kernel") and line.endswith(";"))]
            parameters = tuple(str(parameter.name) for parameter in lowered.params)
            text = "\n".join(lines).strip() + "\n"
            images = {parameters.index(image) for image in written_images(text)}
            found[name] = (repaired(text, rows), parameters, tuple(sorted({*_written(function), *images})))
    return found


def _written(function: Any) -> tuple[int, ...]:
    """Positions of the parameters that a device function stores to."""
    import tvm_ffi

    base: dict[Any, Any] = {}
    stored: list[Any] = []

    def visit(node: Any) -> None:
        kind = type(node).__name__
        if kind == "DeclBuffer":
            base[node.buffer] = node.data
        elif kind == "BufferStore":
            stored.append(node.buffer)

    tvm_ffi.structural_walk(function.body, [(object, visit)], order="pre")
    positions = set()
    for buffer in stored:
        data = base.get(buffer)
        while data is not None and type(data).__name__ == "Call":
            data = base.get(data.args[0], data.args[0])
        for position, parameter in enumerate(function.params):
            if data is not None and parameter.same_as(data):
                positions.add(position)
    return tuple(sorted(positions))


def _sizes(extents: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    axes = max(_WORK_ITEM_AXES.index(tag[-1]) + 1 for tag in extents)
    local = tuple(extents.get(f"threadIdx.{axis}", 1) for axis in _WORK_ITEM_AXES[:axes])
    groups = tuple(extents.get(f"blockIdx.{axis}", 1) for axis in _WORK_ITEM_AXES[:axes])
    return tuple(g * n for g, n in zip(groups, local, strict=True)), local


def _flops(function: Any) -> int:
    """TVM's estimate; 0 for functions with operations that it cannot count."""
    import tvm
    from tvm.s_tir import analysis

    try:
        return int(analysis.estimate_tir_flops(tvm.IRModule({"main": function})))
    except tvm.error.TVMError:
        return 0


def _buffer_bytes(buffer: Any) -> int:
    scalar, _, lanes = str(buffer.dtype).partition("x")
    size = ITEM_BYTES[scalar] * int(lanes or 1)
    for dim in buffer.shape:
        size *= int(dim)
    return size


def _tensor_bytes(ty: Any) -> int:
    size = ITEM_BYTES[str(ty.dtype)]
    for dim in ty.shape.values:
        size *= int(dim)
    return size


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
