"""The `upstream` schedule set: TVM's own Adreno pipeline, as shipped, for comparison.

Weights stay arguments of the kernels instead of literals. Everything from Relax operators to scheduled TIR functions is
TVM's Adreno backend; only the last step, a static launch plan in place of TVM's virtual machine, is ours, and the
buffers come from the same memory planner as for our kernels (TVM's `StaticPlanBlockMemory` would decide where tensors
lie, not how long kernels take). With memory "image" they are TVM's texture schedules, made to run by
`tvm_build.upstream_textures`.
"""

from __future__ import annotations

from structadmm.errors import UserError
from structadmm.progress import Reporter
from tvm_build.gpu import Gpu
from tvm_build.import_onnx import ImportedNetwork
from tvm_build.lower import tvm_target, with_roofline
from tvm_build.lowered import External, LoweredNetwork, deduplicate
from tvm_build.relax_lowering import lower_relax
from tvm_build.upstream_textures import texture_target


def lower_upstream(imported: ImportedNetwork, gpu: Gpu, reporter: Reporter) -> LoweredNetwork:
    """Lower a whole network with TVM's Adreno pipeline.

    Raises:
        UserError: upstream cannot build the network; the message says where it fails.
    """
    from tvm.relax.backend import adreno

    textures = gpu.memory == "image"
    target = texture_target(gpu.image_max) if textures else tvm_target()
    tensors = [f"in{k}" for k in range(len(imported.inputs))]
    layer_of = {str(binding.var.name): step.layer for step in imported.steps for binding in step.bindings}
    with target:
        passes = adreno.pipeline.legalize_passes(target)
    with reporter.task("Compile with TVM's Adreno pipeline"):
        try:
            lowered = lower_relax(
                imported.module,
                passes,
                target,
                inputs=tensors,
                prefix="u",
                layer_of=layer_of,
                layer="network",
            )
        except UserError as error:
            raise UserError(f"TVM's own schedules (upstream) fail: {error}") from error
    sizes = dict(lowered.sizes)
    inputs = []
    for (name, variable), tensor in zip(imported.inputs, tensors, strict=True):
        external = _external(name, variable, tensor)
        sizes[tensor] = _size(external)
        inputs.append(external)
    outputs = [
        _external(name, value, tensor) for (name, value), tensor in zip(imported.outputs, lowered.outputs, strict=True)
    ]
    network = LoweredNetwork(
        sizes=sizes,
        constants=lowered.constants,
        images=lowered.images,
        launches=deduplicate(with_roofline(launch, gpu) for launch in lowered.launches),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )
    network.check()
    return network


def _external(name: str, variable: object, tensor: str) -> External:
    ty = variable.ty  # type: ignore[attr-defined]
    return External(name, tuple(int(dim) for dim in ty.shape.values), str(ty.dtype), tensor)


def _size(external: External) -> int:
    size = 4
    for dim in external.shape:
        size *= dim
    return size
