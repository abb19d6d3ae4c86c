"""ONNX file to bundle: the compiler from end to end."""

from __future__ import annotations

import math
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from structadmm.errors import UserError
from structadmm.files import sha256_file
from structadmm.progress import Reporter, SilentReporter
from tvm_build.assemble import Assembly, assemble, memory_ratio, with_samples
from tvm_build.bundle import check_destination, write_bundle
from tvm_build.explain import Explanation, explain
from tvm_build.gpu import Gpu, gpu_by_name, with_memory
from tvm_build.import_onnx import ImportedNetwork, import_onnx, load_onnx
from tvm_build.lowered import KernelLaunch, LoweredNetwork
from tvm_build.network import Generic, Network
from tvm_build.precision import FLOAT32, Precision, precision_by_name
from tvm_build.reference import expected_outputs, sample_inputs, tolerance
from tvm_build.tuning.database import network_digest
from tvm_build.tuning.tuned import TunedSchedules, TunedUse, load_tuned

Schedules = Literal["structadmm", "upstream"]


@dataclass(frozen=True)
class CompileSummary:
    """What came out of one compilation.

    Attributes:
        path: the bundle.
        launches: kernel launches of one inference.
        tvm_launches: those of them that are of TVM's kernels, which `predicted_ms` takes for perfect.
        kernels: distinct kernels.
        macs: multiply-adds of convolutions and dense layers that are really done (kept columns only), those of TVM's
            kernels included; products of two activations count as none.
        parameters: of the ONNX file.
        activation_bytes: of all buffers.
        live_bytes: the most that is alive at one launch; no plan needs less.
        weight_bytes: of all constants.
        predicted_ms: by the cost model for the target; a prediction.
        compile_s: seconds from file to bundle.
        explanation: the prediction launch by launch.
        lowered: those launches, in their order.
        tuned: which layers have schedules from a tuning database; None if none was given.
    """

    path: Path
    launches: int
    tvm_launches: int
    kernels: int
    macs: int
    parameters: int
    activation_bytes: int
    live_bytes: int
    weight_bytes: int
    predicted_ms: float
    compile_s: float
    explanation: Explanation
    lowered: tuple[KernelLaunch, ...]
    tuned: TunedUse | None = None


def compile_onnx(
    path: Path,
    out: Path,
    *,
    target: str = "adreno-640",
    dtype: str = "float32",
    schedules: Schedules = "structadmm",
    memory: str = "auto",
    sample: Mapping[str, NDArray[Any]] | None = None,
    tuned: Path | TunedSchedules | None = None,
    tuned_device: str | None = None,
    reporter: Reporter | None = None,
) -> CompileSummary:
    """Compile an ONNX network to an OpenCL bundle. The same file gives the same bytes.

    Args:
        path: the ONNX file; batch and all other sizes fixed, float32.
        out: the bundle's directory, `NAME.clbundle`; replaced if it is there.
        target: a GPU of `tvm_build.gpu.GPUS`.
        dtype: what kernels store and compute in, one of `tvm_build.precision.PRECISIONS`; inputs and outputs stay
            float32.
        schedules: our kernels, or TVM's own Adreno pipeline for comparison, on textures with memory "image".
        memory: where C4 tensors and weights of our kernels may lie, one of `tvm_build.gpu.Memory`.
        sample: an input by name to ship with the bundle; seeded noise if None.
        tuned: a tuning database, or what was read of one; layers that it does not have get the cost model's choice.
        tuned_device: part of the name of the device whose trials count, if the database has several.
        reporter: where progress is shown.

    Raises:
        UserError: the file is not a network that can be compiled, an option is unknown, or the database is not for
            this target.
    """
    started = time.perf_counter()
    reporter = reporter or SilentReporter()
    gpu = with_memory(gpu_by_name(target), memory)
    precision = precision_by_name(dtype)
    check_destination(out)
    chosen = None
    if tuned_device is not None and tuned is None:
        raise UserError(f"--tuned-device {tuned_device} without --tuned: name the database, too")
    if tuned is not None:
        if schedules != "structadmm":
            raise UserError(f"a tuning database has schedules of our kernels, got schedules {schedules}: leave one out")
        if isinstance(tuned, Path):
            tuned = load_tuned(tuned, target=target, dtype=dtype, device=tuned_device, memory=memory)
        chosen = tuned
    imported = import_onnx(path)
    if chosen is not None:
        chosen = chosen.for_network(network_digest(path))
    shapes = {name: tuple(int(d) for d in variable.ty.shape.values) for name, variable in imported.inputs}
    inputs = sample_inputs(shapes, sample)
    lowered, macs = _lower(imported, gpu, precision, schedules, reporter, chosen)
    use = None if chosen is None else chosen.use_by(lowered.launches)
    if not lowered.launches:
        raise UserError(f"{path}: nothing is computed, its outputs are its inputs: give a network with a layer")
    for external in lowered.outputs:
        if external.dtype != "float32":
            raise UserError(
                f"{path}: output {external.name!r} is {external.dtype}, expected float32: cut the network before it"
            )
    assembly = assemble(lowered, gpu.name, dtype)
    outputs = expected_outputs(path, inputs)
    for value, end in zip(outputs, assembly.plan.outputs, strict=True):
        if (tuple(value.shape) or (1,)) != (tuple(end.shape) or (1,)):  # a plan has no tensor without dimensions
            raise UserError(
                f"{path}: output {end.name!r} has the shape {list(value.shape)} and was compiled as {list(end.shape)}: "
                "simplify the part of the network that computes it"
            )
    outputs = [value.reshape(end.shape) for value, end in zip(outputs, assembly.plan.outputs, strict=True)]
    plan = with_samples(assembly.plan, tuple(tolerance(value, dtype) for value in outputs))
    manifest = _manifest(path, out, lowered, assembly, imported, gpu, dtype, schedules, macs, use)
    write_bundle(
        out,
        plan=plan,
        kernels=assembly.kernels,
        weights=assembly.weights,
        manifest=manifest,
        inputs=[inputs[name] for name, _ in imported.inputs],
        outputs=outputs,
    )
    explanation = explain(lowered.launches, gpu)
    return CompileSummary(
        path=out,
        launches=len(plan.launches),
        tvm_launches=explanation.tvm_launches,
        kernels=len({launch.kernel for launch in plan.launches}),
        macs=macs,
        parameters=imported.parameters,
        activation_bytes=assembly.activation_bytes,
        live_bytes=assembly.live_bytes,
        weight_bytes=len(assembly.weights),
        predicted_ms=_predicted_ms(lowered),
        compile_s=time.perf_counter() - started,
        explanation=explanation,
        lowered=lowered.launches,
        tuned=use,
    )


def plan_onnx(path: Path, *, target: str = "adreno-640", dtype: str = "float32", memory: str = "auto") -> Assembly:
    """What `compile_onnx` puts into a bundle, without samples: enough to know launches and memory.

    Raises:
        UserError: as for `compile_onnx`.
    """
    gpu = with_memory(gpu_by_name(target), memory)
    lowered, _ = _lower(import_onnx(path), gpu, precision_by_name(dtype), "structadmm", SilentReporter(), None)
    return assemble(lowered, gpu.name, dtype)


def _lower(
    imported: ImportedNetwork,
    gpu: Gpu,
    precision: Precision,
    schedules: str,
    reporter: Reporter,
    tuned: TunedSchedules | None,
) -> tuple[LoweredNetwork, int]:
    from tvm_build.fuse import fuse
    from tvm_build.layout import assign_layouts
    from tvm_build.lower import lower
    from tvm_build.recognize import recognize
    from tvm_build.storage import MEMORY_BOUND, assign_memory
    from tvm_build.tuning.tasks import weight_bytes
    from tvm_build.upstream import lower_upstream
    from tvm_build.winograd import use_winograd

    # 1. Names for what the network does, nothing joined yet: the multiply-adds are those of the file.
    network = recognize(imported)
    if schedules == "upstream":
        if precision != FLOAT32:
            raise UserError(f"expected dtype float32 for upstream schedules, got {precision.name}: leave out --dtype")
        return lower_upstream(imported, gpu, reporter), _macs(network)
    if schedules != "structadmm":
        raise UserError(f"expected schedules structadmm or upstream, got {schedules!r}")
    if tuned is not None:
        tuned = tuned.among_weights(weight_bytes(network, precision))
    # 2. One operator per launch.
    network = fuse(network, gpu, precision, tuned)
    macs = _macs(network)
    # 3. Winograd's form of 3x3 convolutions where it pays; not against what was measured, which are direct forms.
    network = use_winograd(network, gpu, precision, tuned)
    # 4. Channel blocks of four, and conversions where somebody needs plain data.
    network = assign_layouts(network, precision)
    bound = MEMORY_BOUND
    while True:
        # 5. Images where they pay.
        placed = assign_memory(network, gpu, precision, bound)
        # 6. Kernels. Only now is it known what lives how long between TVM's: with less room for images if need be.
        lowered = lower(placed, gpu, reporter, precision, tuned)
        if not any(getattr(node.op, "images", ()) for node in placed.nodes):
            return lowered, macs
        excess = memory_ratio(lowered) - MEMORY_BOUND
        if excess <= 0:
            return lowered, macs
        bound -= max(excess, _LEAST_STEP)


def _macs(network: Network) -> int:
    from tvm_build.ops import Conv2d, Dense

    total = 0
    for node in network.nodes:
        if isinstance(node.op, Conv2d):
            total += node.op.macs
        elif isinstance(node.op, Dense):
            total += node.op.batch * node.op.in_features * node.op.out_features
        elif isinstance(node.op, Generic):
            total += sum(_binding_macs(binding) for binding in node.source)
    return total


def _binding_macs(binding: Any) -> int:
    """Of a Relax binding that TVM lowers: a product with a constant weight, or none."""
    import tvm

    operator = str(getattr(getattr(binding.value, "op", None), "name", ""))
    is_product, is_convolution = operator == "relax.matmul", operator.startswith("relax.nn.conv")
    if not is_product and not is_convolution:
        return 0
    operands = binding.value.args[:2]
    if not any(isinstance(operand, tvm.ir.GenericConst) for operand in operands[int(is_convolution) :]):
        return 0
    out, (data, weight) = _shape_of(binding.var), (_shape_of(operand) for operand in operands)
    if is_product:
        return math.prod(out) * data[-1]
    # Weights are [O, I / groups, ...], transposed [I, O / groups, ...]: each pixel of the former's result, or of what
    # the latter reads, takes part in as many products as the others of its channel.
    return math.prod(data if operator.endswith("_transpose") else out) * math.prod(weight[1:])


def _shape_of(expression: Any) -> tuple[int, ...]:
    return tuple(int(dim) for dim in expression.ty.shape.values)


def _predicted_ms(lowered: LoweredNetwork) -> float:
    return round(sum(launch.predicted_us for launch in lowered.launches) / 1e3, 6)


def _manifest(
    path: Path,
    out: Path,
    lowered: LoweredNetwork,
    assembly: Assembly,
    imported: ImportedNetwork,
    gpu: Gpu,
    dtype: str,
    schedules: str,
    macs: int,
    use: TunedUse | None,
) -> dict[str, Any]:
    plan = assembly.plan
    ends = {
        side: [{"name": end.name, "shape": list(end.shape), "dtype": end.dtype} for end in endpoints]
        for side, endpoints in (("inputs", plan.inputs), ("outputs", plan.outputs))
    }
    return {
        "schema": 1,
        "name": out.stem,
        "target": gpu.name,
        "dtype": dtype,
        "schedules": schedules,
        "source": {"file": path.name, "sha256": sha256_file(path)},
        **ends,
        "macs": macs,
        "parameters": imported.parameters,
        "launches": len(plan.launches),
        "activation_bytes": assembly.activation_bytes,
        "weight_bytes": len(assembly.weights),
        "predicted_ms": {"device": gpu.name, "median": _predicted_ms(lowered), "kind": "predicted"},
        "tuned": None if use is None else use.record(),
        "layers": [
            {"layer": launch.layer, "kernel": launch.kernel, "flops": launch.flops, "bytes": launch.bytes}
            for launch in plan.launches
        ],
        "versions": {name: version(package) for name, package in _VERSIONS.items()},
    }


# By how much less memory images may take the next time, at the least: a new plan is a matter of seconds.
_LEAST_STEP = 0.05
_VERSIONS = {"structadmm": "structadmm", "tvm": "apache-tvm", "onnx": "onnx"}


def network_inputs(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape by name of an ONNX file's inputs.

    Raises:
        UserError: as for `compile_onnx`.
    """
    model = load_onnx(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name not in constants
    }


def sample_from_npz(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The first images of a `samples.npz`, as many as the batch has.

    Args:
        path: an archive with `images` `[count, C, H, W]`.
        shape: the network's input, `[N, C, H, W]`.

    Raises:
        UserError: the file is no such archive, or its images do not fit the network.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            images = archive["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: expected an archive with `images` ({error}): run the train stage again") from None
    if images.shape[1:] != shape[1:] or len(images) < shape[0]:
        raise UserError(f"{path}: expected images {list(shape)}, got {list(images.shape)}: run the export stage again")
    return np.ascontiguousarray(images[: shape[0]], dtype=np.float32)
