"""A tuning database as the compiler reads it: the best schedule that was measured for each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from structadmm.errors import UserError
from tvm_build.gpu import Gpu, gpu_by_name
from tvm_build.kernels import Schedule, default_schedule
from tvm_build.ops import Operator, with_images
from tvm_build.precision import Precision, precision_by_name
from tvm_build.tuning.database import TrialRecord, distinct_trials, read_database
from tvm_build.tuning.schedules import describe_schedule, read_schedule, schedule_line
from tvm_build.tuning.task_key import operator_key, task_line

if TYPE_CHECKING:
    from tvm_build.lowered import KernelLaunch

AnyOperator = TypeVar("AnyOperator", bound=Operator)


MIN_GAIN = 0.03
"""Of many candidates that are equally fast, one looks fastest: times scatter by a few per cent."""

# Fields of an operator that say where its tensors lie.
_PLACES = frozenset({"images", "views"})

# What the names of a layer's launches end with where Winograd's form makes three of it.
TILES, SUMS, SHORTCUT = ":tiles", ":sums", ":shortcut"


@dataclass(frozen=True)
class TunedSchedule:
    """What was found for one layer.

    Attributes:
        schedule: the fastest.
        measured_us: of one launch, on the database's device.
    """

    schedule: Schedule
    measured_us: float


@dataclass(frozen=True)
class TunedUse:
    """What a compilation took from a database.

    Attributes:
        database: its name.
        device: where it was tuned.
        tuned: layers that were built with its schedules.
        untuned: layers of kernels of ours that it does not have; the cost model chose for them.
        layers_us: measured microseconds of the tuned ones together.
        forms: of layers that are not computed in one launch, the form.
    """

    database: str
    device: str
    tuned: tuple[str, ...]
    untuned: tuple[str, ...]
    layers_us: float
    forms: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        """As JSON, for a manifest."""
        return {
            "database": self.database,
            "device": self.device,
            "tuned": list(self.tuned),
            "untuned": list(self.untuned),
            "forms": dict(self.forms),
        }

    def __str__(self) -> str:
        """One line."""
        winograd = f", {len(self.forms)} layers in Winograd's form" if self.forms else ""
        rest = f"; the cost model chose for {len(self.untuned)} others" if self.untuned else ""
        return (
            f"{len(self.tuned)} launches scheduled by {self.database}, measured on {self.device} "
            f"({self.layers_us / 1e3:.3f} ms together){winograd}{rest}"
        )


class TunedSchedules:
    """The schedules of one device and number type.

    Args:
        records: of one device, target and dtype, each trial once (`distinct_trials`).
        source: the database's name, for messages.
        gpu: what is compiled for.
        precision: of the kernels.
    """

    def __init__(self, records: Iterable[TrialRecord], source: str, gpu: Gpu, precision: Precision) -> None:
        best: dict[str, TrialRecord] = {}
        self._gpu = gpu
        self._precision = precision
        self._times_ms: dict[tuple[str, str], float] = {}
        for record in records:
            if record.cost_ms is not None:
                self._times_ms[record.task_key, schedule_line(record.schedule)] = record.cost_ms
            known = best.get(record.task_key)
            if record.cost_ms is not None and (known is None or record.cost_ms < (known.cost_ms or 0.0)):
                best[record.task_key] = record
        self._best = {key: (read_schedule(record.schedule), record.cost_ms or 0.0) for key, record in best.items()}
        self._anywhere: dict[str, float] = {}
        for record in best.values():
            key = task_line({name: value for name, value in record.task.items() if name not in _PLACES})
            cost_ms = record.cost_ms or 0.0
            self._anywhere[key] = min(cost_ms, self._anywhere.get(key, cost_ms))
        self._source = source
        self._device = next((record.device.key for record in best.values()), "no device")

    def find(self, op: Operator) -> TunedSchedule | None:
        """The best schedule of `op`, None if it was not tuned.

        The schedule of an untuned compilation stays unless it was beaten by `MIN_GAIN`.
        """
        key = operator_key(op)
        found = self._best.get(key)
        if found is None:
            return None
        best, best_ms = found
        default = default_schedule(op, self._gpu, self._precision)
        default_ms = self._times_ms.get((key, schedule_line(describe_schedule(default))))
        if default_ms is not None and best_ms > (1 - MIN_GAIN) * default_ms:
            return TunedSchedule(default, default_ms * 1e3)
        return TunedSchedule(best, best_ms * 1e3)

    def measured_us(self, options: Sequence[AnyOperator]) -> dict[AnyOperator, float] | None:
        """Measured microseconds of each option, None unless all of them were measured.

        Where their tensors lie is chosen later: the fastest of what was measured counts.
        """
        found = {option: self._anywhere.get(operator_key(with_images(option, ()))) for option in options}
        times = {option: cost_ms * 1e3 for option, cost_ms in found.items() if cost_ms is not None}
        return times if len(times) == len(found) else None

    def use_by(self, launches: Iterable[KernelLaunch]) -> TunedUse:
        """What a lowered network took from here."""
        ours = [launch for launch in launches if launch.schedule is not None]
        return TunedUse(
            database=self._source,
            device=self._device,
            tuned=tuple(launch.layer for launch in ours if launch.measured_us is not None),
            untuned=tuple(launch.layer for launch in ours if launch.measured_us is None),
            layers_us=sum(launch.measured_us or 0.0 for launch in ours),
            forms={launch.layer.removesuffix(TILES).removesuffix(SUMS): launch.form for launch in ours if launch.form},
        )


def load_tuned(path: Path, *, target: str, dtype: str, device: str | None = None) -> TunedSchedules:
    """The schedules of `path` for a target.

    Args:
        path: a tuning database.
        target: the GPU that is compiled for.
        dtype: what kernels store and compute in.
        device: part of a device's name or driver family; by default, of devices that `target` stands for, the one with
            the most tuned layers.

    Raises:
        UserError: the database is absent or malformed, or holds nothing for this target, type and device.
    """
    records = read_database(path)
    if not records:
        raise UserError(f"{path} holds no trial yet: let `structadmm tune` run, or leave out the database")
    right = [record for record in records if record.target == target]
    if not right:
        others = ", ".join(sorted({record.target for record in records}))
        raise UserError(f"{path} was tuned for {others}, expected {target}: tune on that GPU, or change the target")
    typed = [record for record in right if record.dtype == dtype]
    if not typed:
        others = ", ".join(sorted({record.dtype for record in right}))
        raise UserError(f"{path} was tuned in {others}, expected {dtype}: tune with --dtype {dtype}")
    if device is not None:
        keys = sorted({record.device.key for record in typed})
        typed = [record for record in typed if device.lower() in record.device.key.lower()]
        if not typed:
            raise UserError(f"{path} was tuned on {', '.join(keys)}, none of them is {device!r}: name one of these")
    successes = [record for record in distinct_trials(typed) if record.cost_ms is not None]
    if not successes:
        raise UserError(f"{path} holds no candidate for {target} that works: tune again")
    layers = Counter(key for key, _ in {(record.device.key, record.task_key) for record in successes})
    chosen = max(layers, key=lambda key: (layers[key], key))
    of_device = [record for record in successes if record.device.key == chosen]
    return TunedSchedules(of_device, path.name, gpu_by_name(target), precision_by_name(dtype))
