"""Our kernels for Adreno, each a TIR function written with TVM's IRBuilder.

`build_kernel` turns an operator description and its constants into a `BuiltKernel`; `candidates` lists the schedules it
can be built with and `default_schedule` chooses one of them by the cost model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from structadmm.errors import InvariantError
from tvm_build.ops import (
    ConcatChannels,
    Conv2d,
    Dense,
    Elementwise,
    GlobalAverage,
    Interleave,
    Operator,
    Pack,
    Pool2d,
    Unpack,
    WinogradInput,
    WinogradOutput,
)
from tvm_build.precision import FLOAT32, Precision

if TYPE_CHECKING:
    import numpy as np

    from tvm_build.gpu import Gpu
    from tvm_build.kernels.built import BuiltKernel

Schedule = Any
"""A frozen dataclass of the kernel's own: `ConvSchedule`, `DenseSchedule`, `FlatSchedule`, `MeanSchedule`,
`TransformSchedule`."""


def supports(op: Operator) -> bool:
    """Whether there is a kernel of ours for `op`."""
    if isinstance(op, Conv2d):
        plain = op.groups == 1 if op.columns is not None or op.filter_sets > 1 else True
        plain = plain and (op.filter_sets == 1 or (op.kernel == (1, 1) and op.columns is None and op.shortcut is None))
        return plain and (op.shortcut is None or (op.shortcut.shortcut is None and supports(op.shortcut)))
    if isinstance(op, WinogradInput | WinogradOutput):
        return op.tile in (2, 4)
    return isinstance(op, Pool2d | Dense | GlobalAverage | Elementwise | Pack | Unpack | ConcatChannels | Interleave)


def build_kernel(
    op: Operator,
    constants: Mapping[str, np.ndarray[Any, Any]],
    gpu: Gpu,
    schedule: Schedule | None = None,
    precision: Precision = FLOAT32,
) -> BuiltKernel:
    """Build the kernel for `op`.

    Args:
        op: what to compute; `supports(op)` must hold.
        constants: "weight" [O, I / groups, kh, kw] and "bias" [O] for `Conv2d` (with `columns`, the weight is the full
            tensor and the other columns are ignored), "shortcut_weight" of the same layout if it has a shortcut, which
            then reads input1; "weight" [O, K] and "bias" [O] for `Dense`; "bias" [C] for `WinogradOutput`; nothing for
            the rest.
        gpu: what it is compiled for.
        schedule: one of `candidates(op, gpu)`, or None for the default one.
        precision: what numbers are stored as and computed in. Plain tensors are float32 in any case.

    Raises:
        UserError: a weight is too large for half.
        InvariantError: there is no kernel for `op`, or a constant is missing or has the wrong shape.
    """
    from tvm_build.kernels.conv2d import build_conv2d
    from tvm_build.kernels.dense import build_dense
    from tvm_build.kernels.pointwise import (
        build_concat,
        build_elementwise,
        build_interleave,
        build_pack,
        build_unpack,
    )
    from tvm_build.kernels.pool import build_global_average, build_pool2d
    from tvm_build.kernels.winograd import build_winograd_input, build_winograd_output

    if not supports(op):
        raise InvariantError(f"there is no kernel for {op}: ask `supports` first")
    if schedule is None:
        schedule = default_schedule(op, gpu, precision)
    match op:
        case Conv2d():
            shape = (op.filter_sets * op.out_channels, op.in_channels // op.groups, *op.kernel)
            weight, bias = _constant(constants, "weight", shape), _constant(constants, "bias", (op.out_channels,))
            shortcut = None
            if op.shortcut is not None:
                source = op.shortcut
                shape = (source.out_channels, source.in_channels // source.groups, *source.kernel)
                shortcut = _constant(constants, "shortcut_weight", shape)
            return build_conv2d(op, weight, bias, schedule, shortcut, precision)
        case Dense():
            weight = _constant(constants, "weight", (op.out_features, op.in_features))
            return build_dense(op, weight, _constant(constants, "bias", (op.out_features,)), schedule, precision)
        case Pool2d():
            return build_pool2d(op, schedule, precision)
        case GlobalAverage():
            return build_global_average(op, schedule, precision)
        case Elementwise():
            return build_elementwise(op, schedule, precision)
        case Pack():
            return build_pack(op, schedule, precision)
        case Unpack():
            return build_unpack(op, schedule, precision)
        case ConcatChannels():
            return build_concat(op, schedule, precision)
        case Interleave():
            return build_interleave(op, schedule, precision)
        case WinogradInput():
            return build_winograd_input(op, schedule, precision)
        case WinogradOutput():
            return build_winograd_output(op, _constant(constants, "bias", (op.channels,)), schedule, precision)


def candidates(op: Operator, gpu: Gpu, precision: Precision = FLOAT32) -> list[Schedule]:
    """Schedules worth trying for `op` on `gpu`, the likeliest first; never empty.

    All of them compute the same in any precision; twice as many halves fit into constant memory.
    """
    from tvm_build.kernels.space import schedules

    return schedules(op, gpu, precision)


def default_schedule(op: Operator, gpu: Gpu, precision: Precision = FLOAT32) -> Schedule:
    """The candidate that the cost model predicts to be fastest; ties go to the earlier one."""
    from tvm_build.cost import predict_us

    return min(candidates(op, gpu, precision), key=lambda schedule: predict_us(op, schedule, gpu, precision))


def _constant(constants: Mapping[str, np.ndarray[Any, Any]], name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    if name not in constants or constants[name].shape != shape:
        got = constants[name].shape if name in constants else "nothing"
        raise InvariantError(f"expected the constant {name!r} with shape {shape}, got {got}")
    return constants[name]
