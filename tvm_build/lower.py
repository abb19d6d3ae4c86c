"""Nodes to launches: our kernels where there are some, TVM's for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from structadmm.errors import InvariantError
from structadmm.progress import Reporter
from tvm_build.assemble import image_row, texel_format
from tvm_build.cost import estimate
from tvm_build.emit import OpenClKernel, emit_opencl
from tvm_build.gpu import Gpu
from tvm_build.kernels import build_kernel
from tvm_build.kernels.space import why_no_weight_image
from tvm_build.launch_plan import ImageFormat
from tvm_build.lowered import External, KernelLaunch, LoweredNetwork, deduplicate
from tvm_build.memory_plan import ImageRow
from tvm_build.network import Array, Generic, Network, Node, Port, View
from tvm_build.ops import Operator
from tvm_build.precision import FLOAT32, Precision
from tvm_build.relax_lowering import generic_passes, lower_relax
from tvm_build.storage import roles, where_it_lies, why_no_image
from tvm_build.winograd import form_of_launch

if TYPE_CHECKING:
    from tvm_build.tuning.tuned import TunedSchedules

# dlight's rules choose work-groups of up to 256 work-items for this target, a size that every Adreno accepts.
TVM_TARGET = "qcom/adreno-opencl"


@lru_cache(maxsize=1)
def tvm_target() -> Any:
    """TVM's Adreno target, with its attributes (work-group size, local memory)."""
    import tvm

    return tvm.target.Target(TVM_TARGET, host="llvm")


def lower(
    network: Network,
    gpu: Gpu,
    reporter: Reporter,
    precision: Precision = FLOAT32,
    tuned: TunedSchedules | None = None,
) -> LoweredNetwork:
    """Build every node's kernel; TVM's are float32 whatever `precision` says.

    A layer that `tuned` knows gets the schedule that was fastest there, any other the cost model's choice.

    Raises:
        UserError: a weight is too large for half, or TVM cannot lower an operator for which there is no kernel of ours.
    """
    return _Lowering(network, gpu, precision, tuned).run(reporter)


class _Lowering:
    """Collects launches, tensor sizes and constants; views are resolved to the tensor whose memory they share."""

    def __init__(self, network: Network, gpu: Gpu, precision: Precision, tuned: TunedSchedules | None) -> None:
        self.network = network
        self.gpu = gpu
        self.precision = precision
        self.tuned = tuned
        self.alias: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.constants: dict[str, Array] = {}
        self.images: dict[str, ImageRow] = {}
        self.placed: set[str] = set()
        self.launches: list[KernelLaunch] = []
        self.emitted: dict[tuple[Operator, Any], OpenClKernel] = {}

    def run(self, reporter: Reporter) -> LoweredNetwork:
        for port in self.network.inputs:
            self.sizes[port.tensor] = self.network.tensors[port.tensor].size_bytes
        runs = self.network.runs()
        with reporter.task("Compile kernels", total=len(runs)) as task:
            for run in runs:
                if isinstance(run[0].op, Generic | View):
                    self._generic(run)
                else:
                    self._kernel(run[0])
                task.advance(note=run[-1].layer)
        lowered = LoweredNetwork(
            sizes=self.sizes,
            constants=self.constants,
            launches=deduplicate(self.launches),
            inputs=tuple(self._external(port) for port in self.network.inputs),
            outputs=tuple(self._external(port) for port in self.network.outputs),
            images=self.images,
        )
        lowered.check()
        return lowered

    def _external(self, port: Port) -> External:
        tensor = self.network.tensors[port.tensor]
        return External(port.name, tensor.shape, tensor.dtype, self._home(port.tensor))

    def _home(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name

    def _kernel(self, node: Node) -> None:
        assert not isinstance(node.op, Generic | View)
        op: Any = node.op
        found = self.tuned.find(op) if self.tuned is not None else None
        schedule = None if found is None else found.schedule
        built = build_kernel(op, node.constants, self.gpu, schedule, self.precision)
        key = (op, built.schedule)
        if key not in self.emitted:
            self.emitted[key] = emit_opencl(built.func)
        kernel = self.emitted[key]
        output = node.output
        self.sizes[output] = self.network.tensors[output].size_bytes
        tensors = {role: self._home(name) for role, name in roles(node).items()}
        cost = estimate(op, built.schedule, self.gpu, self.precision)
        arguments = []
        views: dict[str, ImageFormat] = {}
        for parameter in kernel.arguments:
            role = built.roles[parameter]
            kind, _, constant = role.partition(":")
            name = self._constant(built.constants[constant]) if kind == "constant" else tensors[role]
            self._place(name, image_row(built.parameters[parameter]), node)
            if built.parameters[parameter].memory == "view":
                views[name] = texel_format(built.parameters[parameter])
            arguments.append(name)
        self.launches.append(
            KernelLaunch(
                kernel=kernel,
                arguments=tuple(arguments),
                writes=frozenset({output}),
                flops=built.flops,
                bytes=built.bytes,
                layer=node.layer,
                predicted_us=cost.predicted_us,
                schedule=built.schedule,
                cost=cost,
                measured_us=None if found is None else found.measured_us,
                memory=where_it_lies(op, built.schedule),
                form=form_of_launch(op),
                fallbacks=self._fallbacks(node, built.schedule),
                views=views,
                op=op,
            )
        )

    def _fallbacks(self, node: Node, schedule: Any) -> tuple[str, ...]:
        """What of a node would lie in images if it were smaller."""
        if self.gpu.memory == "buffer" or (self.gpu.memory == "auto" and self.gpu.kind == "cpu"):
            return ()
        found = []
        for role, name in roles(node).items():
            tensor = self.network.tensors[name]
            reason = why_no_image(tensor, self.gpu) if tensor.layout == "c4" else None
            if reason is not None:
                found.append(f"{role} in a buffer: {reason}")
        reason = why_no_weight_image(node.op, schedule, self.gpu)
        return (*found, *(() if reason is None else (f"weights in a buffer: {reason}",)))

    def _place(self, name: str, row: ImageRow | None, node: Node) -> None:
        """Note that an argument lies in an image, or does not: all that touch a tensor must agree."""
        if name in self.placed and self.images.get(name) != row:
            raise InvariantError(f"{node.layer}: {name} lies in rows of {self.images.get(name)}, expected {row}")
        self.placed.add(name)
        if row is not None:
            self.images[name] = row

    def _constant(self, array: Array) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def _generic(self, run: list[Node]) -> None:
        """A run of neighbours without kernels of ours is one Relax function, so that TVM can join them."""
        for node in run:
            if isinstance(node.op, View):
                self.alias[node.output] = node.inputs[0]
        nodes = [node for node in run if isinstance(node.op, Generic)]
        if not nodes:
            return
        inside = {name for node in run for name in node.outputs}
        module, inputs, outputs, layer_of = _relax_function(self.network, run, inside)
        prefix = f"g{len(self.launches)}"
        lowered = lower_relax(
            module,
            generic_passes(tvm_target()),
            tvm_target(),
            inputs=[self._home(name) for name in inputs],
            prefix=prefix,
            layer_of=layer_of,
            layer=nodes[-1].layer,
        )
        self.sizes.update(lowered.sizes)
        self.constants.update(lowered.constants)
        self.launches.extend(with_roofline(launch, self.gpu) for launch in lowered.launches)
        for name, result in zip(outputs, lowered.outputs, strict=True):
            if result not in self.sizes:
                raise InvariantError(f"{nodes[-1].layer}: {name} is a constant")
            self.alias.pop(name, None)
            if result != name:
                self.alias[name] = result


def with_roofline(launch: KernelLaunch, gpu: Gpu) -> KernelLaunch:
    """A launch of one of TVM's kernels with what the GPU's bare limits predict for it: no less than that."""
    arithmetic_us = launch.flops / (gpu.gflops_fp32 * gpu.efficiency * 1e3)
    traffic_us = launch.bytes / (gpu.dram_gb_s * 1e3)
    return replace(launch, predicted_us=max(arithmetic_us, traffic_us) + gpu.launch_us)


def _relax_function(
    network: Network, run: list[Node], inside: set[str]
) -> tuple[Any, list[str], list[str], Mapping[str, str]]:
    """A Relax module for the nodes of a run: (module, its inputs, its outputs, layer by variable name)."""
    from tvm import relax

    needed_later = network.uses()
    for node in run:
        for name in node.inputs:
            needed_later[name] -= 1
    inputs = list(dict.fromkeys(name for node in run for name in node.inputs if name not in inside))
    outputs = [name for node in run if isinstance(node.op, Generic) for name in node.outputs if needed_later[name] > 0]
    views = {node.output: node.inputs[0] for node in run if isinstance(node.op, View)}
    # A View of a result that is read later needs that result to exist.
    for name in (name for name in views if needed_later[name] > 0):
        behind = name
        while behind in views:
            behind = views[behind]
        if behind in inside and behind not in outputs:
            outputs.append(behind)
    builder = relax.BlockBuilder()
    variables = {
        name: relax.Var(f"p{i}", relax.TensorType(network.tensors[name].shape, network.tensors[name].dtype))
        for i, name in enumerate(inputs)
    }
    layer_of: dict[str, str] = {}
    with builder.function("main", [variables[name] for name in inputs]):
        with builder.dataflow():
            for node in run:
                if isinstance(node.op, View):
                    shape = network.tensors[node.output].shape
                    result = relax.op.reshape(variables[node.inputs[0]], relax.ShapeExpr(shape))
                    variables[node.output] = builder.emit(result)
                    continue
                _emit_source(builder, network, node, variables, layer_of)
            results = [variables[name] for name in outputs]
            returned = builder.emit_output(results[0] if len(results) == 1 else relax.Tuple(results))
        builder.emit_func_output(returned)
    return builder.get(), inputs, outputs, layer_of


def _emit_source(
    builder: Any, network: Network, node: Node, variables: dict[str, Any], layer_of: dict[str, str]
) -> None:
    """Emit a node's Relax bindings on the variables of the function under construction."""
    import tvm
    from tvm import relax

    local: dict[Any, Any] = {}

    def rebuilt(expression: Any) -> Any:
        if isinstance(expression, tvm.ir.GlobalVar):
            return builder.add_func(network.functions[str(expression.name_hint)], str(expression.name_hint))
        if isinstance(expression, tvm.ir.Var):
            if expression in local:
                return local[expression]
            name = network.variables[expression]
            # A tensor that was converted for this node goes by the name of its plain version.
            return variables[name] if name in variables else variables[f"{name}.plain"]
        if isinstance(expression, relax.Tuple):
            return relax.Tuple([rebuilt(field) for field in expression.fields])
        if isinstance(expression, relax.TupleGetItem):
            return relax.TupleGetItem(rebuilt(expression.tuple_value), int(expression.index))
        if isinstance(expression, relax.Call):
            arguments = [rebuilt(argument) for argument in expression.args]
            return relax.Call(expression.op, arguments, expression.attrs, expression.ty_args)
        return expression

    for binding in node.source:
        mark = f"layer{len(layer_of)}"
        local[binding.var] = builder.emit(rebuilt(binding.value), name_hint=mark)
        layer_of[str(local[binding.var].name)] = node.layer
    variables[node.output] = local[node.source[-1].var]
