"""The schedules that a search may try for an operator: what `candidates` offers, widened.

`candidates` lists what is likely to be good and keeps a compiler's choice short. A search has measurements to lead it,
so it may leave that list: every field takes the values it has there and others around them, in all combinations that
the device can hold.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from tvm_build.gpu import Gpu
from tvm_build.kernels import Schedule, candidates
from tvm_build.kernels.body import ceil_div
from tvm_build.kernels.column_sparse import list_entries
from tvm_build.kernels.conv2d import flatten_pixels
from tvm_build.kernels.conv_tiling import ConvSchedule, Tiling
from tvm_build.kernels.dense import DenseSchedule, local_bytes
from tvm_build.kernels.depthwise import is_depthwise
from tvm_build.kernels.pool import MeanSchedule
from tvm_build.kernels.space import weight_steps, why_no_weight_image
from tvm_build.kernels.winograd import TransformSchedule
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator, WinogradInput, WinogradOutput, blocks, memory_of
from tvm_build.precision import FLOAT32, Precision

# Multiply-adds of vectors that a kernel may write out: above, drivers take seconds to compile and instruction caches
# overflow.
_WRITTEN_OUT = 400
_CPU_ACCUMULATORS = 32  # registers of the width of `lanes`
_ADRENO_ACCUMULATORS = 32  # of 128 bits

Knobs = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Space:
    """All schedules of one operator on one GPU.

    Attributes:
        op: what is scheduled.
        gpu: on what.
        listed: `candidates`, the likeliest first.
        knobs: for each kind of schedule, the values of each field; a kind that is not here has only what is listed.
    """

    op: Operator
    gpu: Gpu
    listed: tuple[Schedule, ...]
    knobs: Mapping[type, Knobs]

    def size(self) -> int:
        """An upper bound on how many there are: combinations that the device cannot hold are counted too."""
        widened = sum(math.prod(len(values) for values in knobs.values()) for knobs in self.knobs.values())
        return widened + sum(type(schedule) not in self.knobs for schedule in self.listed)

    def sample(self, generator: random.Random) -> Schedule | None:
        """A schedule drawn at random, or None if the draw was not valid."""
        schedule = generator.choice(self.listed)
        knobs = self.knobs.get(type(schedule), {})
        return self._valid(
            replace(schedule, **{name: generator.choice(list(values)) for name, values in knobs.items()})
        )

    def neighbours(self, schedule: Schedule, generator: random.Random) -> Iterator[Schedule]:
        """Every valid schedule that differs in one field, in random order."""
        knobs = self.knobs.get(type(schedule), {})
        changes = [(name, value) for name, values in knobs.items() for value in values]
        generator.shuffle(changes)
        for name, value in changes:
            if value != getattr(schedule, name):
                found = self._valid(replace(schedule, **{name: value}))
                if found is not None:
                    yield found

    def everything(self) -> Iterator[Schedule]:
        """All of them; for spaces whose `size` is small."""
        for kind, knobs in self.knobs.items():
            seeds: list[Schedule] = [next(schedule for schedule in self.listed if type(schedule) is kind)]
            for name, values in knobs.items():
                seeds = [replace(schedule, **{name: value}) for schedule in seeds for value in values]
            yield from (found for found in map(self._valid, seeds) if found is not None)
        yield from (schedule for schedule in self.listed if type(schedule) not in self.knobs)

    def holds(self, schedule: Schedule) -> bool:
        """Whether `schedule` is one of them."""
        knobs = self.knobs.get(type(schedule))
        if knobs is None or any(getattr(schedule, name) not in values for name, values in knobs.items()):
            return schedule in self.listed
        return self._valid(schedule) is not None

    def _valid(self, schedule: Schedule) -> Schedule | None:
        if schedule in self.listed:
            return schedule
        match self.op, schedule:
            case Conv2d(), ConvSchedule():
                return schedule if _conv_fits(self.op, schedule, self.gpu) else None
            case ((WinogradInput() | WinogradOutput()), TransformSchedule()):
                return schedule if _transform_fits(self.op, schedule, self.gpu) else None
            case Dense(), DenseSchedule():
                return schedule if _dense_fits(self.op, schedule, self.gpu) else None
            case _:
                return schedule


def space(op: Operator, gpu: Gpu, precision: Precision = FLOAT32) -> Space:
    """The space of `op` on `gpu`."""
    listed = tuple(candidates(op, gpu, precision))
    knobs: dict[type, Knobs] = {}
    for kind in dict.fromkeys(map(type, listed)):
        wider = _wider(op, gpu, kind)
        if wider:
            # A field that is not widened keeps the values that are listed for it.
            values = {field.name: [getattr(s, field.name) for s in listed if type(s) is kind] for field in fields(kind)}
            for name, more in wider.items():
                values[name] += more
            knobs[kind] = {name: list(dict.fromkeys(found)) for name, found in values.items()}
    return Space(op, gpu, listed, knobs)


def _wider(op: Operator, gpu: Gpu, kind: type) -> dict[str, list[Any]]:
    cpu = gpu.kind == "cpu"
    match op:
        case Conv2d() if kind is ConvSchedule:
            flat = flatten_pixels(op)
            widths = [p for p in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16) if p <= flat.out_width]
            wider: dict[str, list[Any]] = {
                "pixels": widths if cpu else [p for p in widths if p <= 8],
                "rows": [rows for rows in (1, 2, 3, 4) if rows <= flat.out_height],
                "local": [1, 2, 4, 8] if cpu else [8, 16, 32, 64, 128],
                "form": ["chain", "sum"],
                "unroll_rows": [True, False],
            }
            if not is_depthwise(op):
                wider["vectors"] = [1, 2, 3, 4]
                wider["split"] = [1, 2, 4] if cpu else [1, 2, 4, 8, 16]
                wider["local_channels"] = [1, 2, 4, 8, 16] if cpu else [1, 2, 4, 8]
            return wider
        case Dense() if kind is DenseSchedule:
            lanes = [4, 8, 16] if cpu else [4]
            return {"lanes": lanes, "tiles": [1, 2, 4, 8, 16], "split": [1, 2, 4, 8, 16, 32, 64]}
        case WinogradInput() | WinogradOutput() if kind is TransformSchedule:
            wide = (
                [tiles for tiles in (1, 2, 4) if op.tiles_x % tiles == 0]
                if cpu and not (op.images or op.views)
                else [1]
            )
            return {"local": [1, 2, 4, 8, 16] if cpu else [32, 64, 128, 256], "tiles": wide, "whole": [True, False]}
        case GlobalAverage() if kind is MeanSchedule:
            return {"split": [1, 2, 4, 8, 16, 32, 64]}
        case _:
            return {}


def _conv_fits(op: Conv2d, schedule: ConvSchedule, gpu: Gpu) -> bool:
    flat = flatten_pixels(op)
    sources = [flat] if flat.shortcut is None else [flat, flat.shortcut]
    cells = schedule.pixels * schedule.rows * schedule.vectors
    if cells * (1 if gpu.kind == "cpu" else schedule.lanes // 4) > (
        _CPU_ACCUMULATORS if gpu.kind == "cpu" else _ADRENO_ACCUMULATORS
    ):
        return False
    # No tile is wider than the output, rounded up: the rest of it would be waste.
    if schedule.tile_channels >= op.out_channels + schedule.lanes:
        return False
    taps = max(s.kernel[0] * s.kernel[1] if schedule.unroll_rows else s.kernel[1] for s in sources)
    if taps * cells > _WRITTEN_OUT:
        return False
    tiling = Tiling(flat, schedule)
    if schedule.local > tiling.count or schedule.local_channels > tiling.channel_tiles:
        return False
    items = schedule.local * schedule.local_channels * schedule.split
    if items > gpu.max_work_group:
        return False
    # Groups of a few work-items leave most of a wave idle, unless the layer has no more.
    if gpu.kind != "cpu" and items < min(gpu.wave // 4, tiling.count * tiling.channel_tiles // 4):
        return False
    if not _memory_fits(flat, sources, schedule, gpu):
        return False
    if schedule.split > 1:
        if schedule.split > max(_steps(source, schedule.gather) for source in sources):
            return False
        if items * cells * schedule.lanes * 4 > gpu.local_bytes // 2:
            return False
    return True


def _memory_fits(op: Conv2d, sources: Sequence[Conv2d], schedule: ConvSchedule, gpu: Gpu) -> bool:
    """Whether weights and tables may lie where the schedule says."""
    sparse = [source for source in sources if source.columns is not None]
    if op.columns is not None and schedule.gather == "lanes" and memory_of(op, "input0") != "buffer":
        return False
    constant_bytes = 0
    if schedule.tables == "constant":
        constant_bytes += sum(4 * len(list_entries(source, schedule.gather).offsets) for source in sparse)
    if schedule.weights == "constant":
        if schedule.split > 1 or schedule.local_channels > 1:
            return False
        constant_bytes += 16 * sum(weight_steps(op, schedule)) * blocks(op.out_channels)
    if constant_bytes > gpu.constant_bytes:
        return False
    return schedule.weights != "image" or (schedule.lanes == 4 and why_no_weight_image(op, schedule, gpu) is None)


def _steps(op: Conv2d, gather: Any) -> int:
    """Into how many parts the reduction can be split at most."""
    return len(list_entries(op, gather).offsets) if op.columns is not None else blocks(op.in_channels // op.groups)


def _transform_fits(op: WinogradInput | WinogradOutput, schedule: TransformSchedule, gpu: Gpu) -> bool:
    # All of a tile's elements in registers are too many for a GPU where there are 36.
    if schedule.whole and gpu.kind != "cpu" and (op.tile + 2) ** 2 > _ADRENO_ACCUMULATORS:
        return False
    items = op.batch * blocks(op.channels) * op.tiles_y * (op.tiles_x // schedule.tiles)
    return schedule.local <= min(items, gpu.max_work_group)


def _dense_fits(op: Dense, schedule: DenseSchedule, gpu: Gpu) -> bool:
    if schedule.tiles * schedule.split > gpu.max_work_group or schedule.split > blocks(op.in_features):
        return False
    if local_bytes(op, schedule) > gpu.local_bytes:
        return False
    return schedule.tiles <= ceil_div(op.out_features, schedule.lanes)
