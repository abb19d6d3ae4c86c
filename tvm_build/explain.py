"""Why a compiled network should take the time that the cost model predicts for it, launch by launch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tvm_build.gpu import Gpu
from tvm_build.kernels.conv_tiling import ConvSchedule
from tvm_build.kernels.dense import DenseSchedule
from tvm_build.kernels.pointwise import FlatSchedule
from tvm_build.kernels.pool import MeanSchedule
from tvm_build.kernels.winograd import TransformSchedule
from tvm_build.lowered import KernelLaunch


@dataclass(frozen=True)
class ExplainedLaunch:
    """One launch. What the model does not count for kernels of TVM's is None.

    Attributes:
        layer: the source network's name for it.
        kernel: the OpenCL kernel's name.
        schedule: how it is tiled, in words, after the form of a layer that takes several launches.
        memory: what of it lies in images and constant memory, in words.
        fallbacks: what does not for its size, with the reason.
        flops: that it must do at the least.
        bytes: that must move at the least.
        macs_per_load: multiply-adds per load of four numbers (128 bits, or 64 in half).
        registers: 128-bit registers of one work-item, estimated.
        waves: of the launch.
        bound_by: "launch", "arithmetic", "loads", "images" or "memory": the largest part.
        predicted_us: microseconds, launch overhead included.
        measured_us: microseconds of the kernel on the tuning database's device, if its schedule is from there.
    """

    layer: str
    kernel: str
    schedule: str
    memory: str
    fallbacks: tuple[str, ...]
    flops: int
    bytes: int
    macs_per_load: float | None
    registers: int | None
    waves: int | None
    bound_by: str | None
    predicted_us: float
    measured_us: float | None


@dataclass(frozen=True)
class Explanation:
    """All launches of a network, and what they add up to.

    Attributes:
        device: the GPU that the prediction is for.
        source: where its figures come from.
        uncertainty: factor within which the prediction is believed.
        predicted_ms: sum over the launches.
        low_ms: `predicted_ms / uncertainty`.
        high_ms: `predicted_ms * uncertainty`.
        launch_ms: the part of `predicted_ms` that launching costs.
        launches: in order.
    """

    device: str
    source: str
    uncertainty: float
    predicted_ms: float
    low_ms: float
    high_ms: float
    launch_ms: float
    launches: tuple[ExplainedLaunch, ...]

    @property
    def tvm_launches(self) -> int:
        """How many launches are of TVM's kernels: the model knows their traffic and arithmetic, not their schedules."""
        return sum(launch.bound_by is None for launch in self.launches)

    @property
    def total(self) -> str:
        """The sum in words."""
        caveat = f"; {caveat_of_tvm(self.tvm_launches)}" if self.tvm_launches else ""
        return (
            f"predicted, not measured: {self.predicted_ms:.3f} ms on {self.device}, believed within a factor of "
            f"{self.uncertainty:g} ({self.low_ms:.3f} to {self.high_ms:.3f} ms); {self.launch_ms:.3f} ms of it is the "
            f"overhead of {len(self.launches)} launches{caveat}; GPU figures: {self.source}"
        )


def explain(launches: Iterable[KernelLaunch], gpu: Gpu) -> Explanation:
    """Put a lowered network's predictions into a table."""
    rows = tuple(_explained(launch) for launch in launches)
    predicted_ms = sum(row.predicted_us for row in rows) / 1e3
    return Explanation(
        device=gpu.name,
        source=gpu.source,
        uncertainty=gpu.uncertainty,
        predicted_ms=predicted_ms,
        low_ms=predicted_ms / gpu.uncertainty,
        high_ms=predicted_ms * gpu.uncertainty,
        launch_ms=len(rows) * gpu.launch_us / 1e3,
        launches=rows,
    )


def caveat_of_tvm(launches: int) -> str:
    """What must be said beside every prediction that counts launches of TVM's kernels.

    Args:
        launches: how many it counts, at least one.
    """
    counts = "1 launch of TVM's kernels counts" if launches == 1 else f"{launches} launches of TVM's kernels count"
    return f"{counts} as if perfect and may be far slower"


def describe(schedule: Any) -> str:
    """A schedule in words; empty for kernels of TVM's."""
    match schedule:
        case ConvSchedule():
            tile = f"{schedule.rows}x{schedule.pixels} px x {schedule.tile_channels} ch"
            split = f", split {schedule.split}" if schedule.split > 1 else ""
            looped = "" if schedule.unroll_rows else ", rows looped"
            lanes = ", by lanes" if schedule.gather == "lanes" else ""
            return f"{tile}{split}, group {schedule.local}x{schedule.local_channels}{looped}{lanes}"
        case TransformSchedule():
            tiles = f"{schedule.tiles} tiles, " if schedule.tiles > 1 else ""
            return f"{tiles}{'all rows' if schedule.whole else 'a row'}, group {schedule.local}"
        case DenseSchedule():
            return f"{schedule.lanes} features, split {schedule.split}, group {schedule.tiles}x{schedule.split}"
        case MeanSchedule():
            return f"split {schedule.split}"
        case FlatSchedule():
            return f"group {schedule.local}"
        case _:
            return ""


def _explained(launch: KernelLaunch) -> ExplainedLaunch:
    cost = launch.cost
    return ExplainedLaunch(
        layer=launch.layer,
        kernel=launch.kernel.name,
        schedule=", ".join(filter(None, (launch.form, describe(launch.schedule)))),
        memory=launch.memory,
        fallbacks=launch.fallbacks,
        flops=launch.flops,
        bytes=launch.bytes,
        macs_per_load=None if cost is None else cost.macs_per_load,
        registers=None if cost is None else cost.registers,
        waves=None if cost is None else cost.waves,
        bound_by=None if cost is None else cost.bound_by,
        predicted_us=launch.predicted_us,
        measured_us=launch.measured_us,
    )
