"""A tuning database as the compiler reads it: the best schedule that was measured for each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from structadmm.errors import UserError
from tvm_build.gpu import Gpu, gpu_by_name, with_memory
from tvm_build.kernels import Schedule, default_schedule
from tvm_build.launch_names import layer_of
from tvm_build.ops import Operator
from tvm_build.precision import Precision, precision_by_name
from tvm_build.tuning.database import UNTUNED, TrialRecord, class_of_weights, read_database, usable_records
from tvm_build.tuning.schedules import describe_schedule, read_schedule, schedule_line
from tvm_build.tuning.space import space
from tvm_build.tuning.task_key import describe_operator, operator_key, task_line

if TYPE_CHECKING:
    from tvm_build.lowered import KernelLaunch

AnyOperator = TypeVar("AnyOperator", bound=Operator)


MIN_GAIN = 0.03
"""Of many candidates that are equally fast, one looks fastest: times scatter by a few per cent."""

# Fields of an operator that say where its tensors lie.
_PLACES = frozenset({"images", "views"})


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


class _Trials:
    """Schedules and their times, by what was computed; added in the order of their times."""

    def __init__(self) -> None:
        self._schedules: dict[str, list[tuple[dict[str, Any], float]]] = {}
        self._times_ms: dict[tuple[str, str], float] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._schedules

    def add(self, key: str, record: TrialRecord) -> None:
        trial = (key, schedule_line(record.schedule))
        if trial not in self._times_ms:
            self._times_ms[trial] = _cost_ms(record)
            self._schedules.setdefault(key, []).append((record.schedule, _cost_ms(record)))

    def ranking(self, key: str, fits: Callable[[Schedule], bool]) -> Iterator[tuple[Schedule, float]]:
        """The schedules that `fits`, the fastest first, each with its milliseconds."""
        for described, cost_ms in self._schedules.get(key, ()):
            schedule = read_schedule(described)
            if fits(schedule):
                yield schedule, cost_ms

    def fastest_ms(self, key: str) -> float | None:
        """Milliseconds of the fastest schedule."""
        return self._schedules[key][0][1] if key in self._schedules else None

    def time_ms(self, key: str, schedule: Schedule) -> float | None:
        return self._times_ms.get((key, schedule_line(describe_schedule(schedule))))


def _cost_ms(record: TrialRecord) -> float:
    return record.cost_ms or 0.0


def _line_without_places(described: Mapping[str, Any]) -> str:
    return task_line(_without_places(described))


def _without_places(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description of an operator, and of the one inside it, without where tensors lie."""
    return {
        name: _without_places(value) if isinstance(value, Mapping) else value
        for name, value in described.items()
        if name not in _PLACES
    }


def _key_without_places(op: Operator) -> str:
    return _line_without_places(describe_operator(op))


class _Measured:
    """Trials that can be held against each other, by operator with its tensors' places and without.

    Args:
        records: of one contest, or of candidates that were measured alone.
        contest: its name, empty for those.
    """

    def __init__(self, records: Iterable[TrialRecord], contest: str = "") -> None:
        # The untuned network won: nothing is held against what it consists of.
        self.final = contest.endswith(UNTUNED)
        self.network = contest.removesuffix(UNTUNED).rpartition(" ")[2]
        self.placed = _Trials()
        self.anywhere = _Trials()
        for record in sorted((each for each in records if each.cost_ms is not None), key=_cost_ms):
            self.placed.add(record.task_key, record)
            self.anywhere.add(_line_without_places(record.task), record)

    def times_us(self, ops: Iterable[Operator]) -> list[float] | None:
        """Microseconds of each operator, wherever its tensors lay; None unless all were measured."""
        times = [self.anywhere.fastest_ms(_key_without_places(op)) for op in ops]
        known = [ms * 1e3 for ms in times if ms is not None]
        return known if len(known) == len(times) else None


class TunedSchedules:
    """The schedules of one device and number type.

    What was compared within a network (`tvm_build.tuning.contest`) goes before what was measured alone, and the newest
    comparison before older ones, unless `for_network` says whose count first. Times are held against each other within
    one of these only.

    Args:
        records: of one device, target and dtype, each trial once (`usable_records`).
        source: the database's name, for messages.
        gpu: what is compiled for.
        precision: of the kernels.
    """

    def __init__(self, records: Iterable[TrialRecord], source: str, gpu: Gpu, precision: Precision) -> None:
        self._gpu = gpu
        self._precision = precision
        self._source = source
        known = list(records)
        self._device = known[-1].device.key if known else "no device"
        contests: dict[str, list[TrialRecord]] = {}
        for record in known:
            contests.setdefault(record.contest, []).append(record)
        self._trials = contests.pop("", [])
        self._alone = _Measured(self._trials)
        self._contests = [_Measured(contests[name], name) for name in sorted(contests, reverse=True)]

    def for_network(self, digest: str) -> TunedSchedules:
        """The same for one network: its own comparisons go before those of others, whose verdicts say nothing of it.

        Args:
            digest: of `network_digest`.
        """
        found = copy(self)
        own = [measured for measured in self._contests if measured.network == digest]
        found._contests = own + [each for each in self._contests if each.network != digest and not each.final]
        return found

    def among_weights(self, network_bytes: int) -> TunedSchedules:
        """The same for a network of so many bytes of weights.

        Of what was measured alone, those trials of each task count that were made for a network of the same
        `class_of_weights`, or where there is none, of the nearest; those that do not say are of every class.
        """
        own = class_of_weights(network_bytes)
        distances: dict[str, dict[int, list[TrialRecord]]] = {}
        for record in self._trials:
            if record.cost_ms is not None:
                distance = abs(own - (own if record.weight_class is None else record.weight_class))
                distances.setdefault(record.task_key, {}).setdefault(distance, []).append(record)
        found = copy(self)
        found._alone = _Measured(record for each in distances.values() for record in each[min(each)])
        return found

    def find(self, op: Operator) -> TunedSchedule | None:
        """The best schedule of `op`, None if it was not tuned.

        The schedule of an untuned compilation stays unless it was beaten by `MIN_GAIN`. Where the operator's tensors
        lie depends on the whole network: what was measured with its tensors elsewhere is taken where nothing else is
        known and the schedule is one for here, too.
        """
        for trials, key, ranking in self._rankings(op, 1):
            schedule, best_ms = ranking[0]
            default = default_schedule(op, self._gpu, self._precision)
            default_ms = trials.time_ms(key, default)
            if default_ms is not None and best_ms > (1 - MIN_GAIN) * default_ms:
                return TunedSchedule(default, default_ms * 1e3)
            return TunedSchedule(schedule, best_ms * 1e3)
        return None

    def _rankings(self, op: Operator, places: int) -> Iterator[tuple[_Trials, str, list[tuple[Schedule, float]]]]:
        """What may be taken for `op`, the fastest first, from wherever something is known, what counts most first.

        That are schedules of the operator's space: of the GPU's choice of memory, and for tensors that lie like its.
        """
        here = [(measured.placed, operator_key(op)) for measured in (*self._contests, self._alone)]
        elsewhere = (self._alone.anywhere, _key_without_places(op))
        if known := [(trials, key) for trials, key in (*here, elsewhere) if key in trials]:
            fits = space(op, self._gpu, self._precision).holds
            for trials, key in known:
                if ranking := list(islice(trials.ranking(key, fits), places)):
                    yield trials, key, ranking

    def measured_us(self, options: Sequence[AnyOperator]) -> dict[AnyOperator, float] | None:
        """Measured microseconds of each option, None unless all of them were measured.

        Where their tensors lie is chosen later: the fastest of what was measured counts.
        """
        for measured in (*self._contests, self._alone):
            if (times := measured.times_us(options)) is not None:
                return dict(zip(options, times, strict=True))
            if measured.final and any(measured.times_us([option]) is not None for option in options):
                return None
        return None

    def forms_us(self, forms: Mapping[int | None, Sequence[Operator]]) -> dict[int | None, float]:
        """Measured microseconds of each form of one layer all of whose launches were measured, the gaps included.

        They are from the newest comparison within a network that had two forms of the layer at least, or else from
        launches that were measured alone.

        Args:
            forms: the launches of each form, m of an F(m, 3) or None for the direct one.
        """

        def complete(measured: _Measured) -> dict[int | None, float]:
            times = {form: measured.times_us(ops) for form, ops in forms.items()}
            return {form: sum(us) + self._gpu.between_us(len(us)) for form, us in times.items() if us is not None}

        for measured in self._contests:
            found = complete(measured)
            if len(found) > 1 or (found and measured.final):
                return found
        return complete(self._alone)

    def use_by(self, launches: Iterable[KernelLaunch]) -> TunedUse:
        """What a lowered network took from here."""
        ours = [launch for launch in launches if launch.schedule is not None]
        return TunedUse(
            database=self._source,
            device=self._device,
            tuned=tuple(launch.layer for launch in ours if launch.measured_us is not None),
            untuned=tuple(launch.layer for launch in ours if launch.measured_us is None),
            layers_us=sum(launch.measured_us or 0.0 for launch in ours),
            forms={layer_of(launch.layer): launch.form for launch in ours if launch.form},
        )


def load_tuned(
    path: Path, *, target: str, dtype: str, device: str | None = None, memory: str = "auto"
) -> TunedSchedules:
    """The schedules of `path` for a target.

    Args:
        path: a tuning database.
        target: the GPU that is compiled for.
        dtype: what kernels store and compute in.
        device: part of a device's name or driver family; by default, of devices that `target` stands for, the one with
            the most tuned layers.
        memory: where tensors and constants may lie (`Gpu.memory`); schedules of other memories are left out.

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
    successes = [record for record in usable_records(typed) if record.cost_ms is not None]
    if not successes:
        raise UserError(f"{path} holds no candidate for {target} that works: tune again")
    layers = Counter(key for key, _ in {(record.device.key, record.task_key) for record in successes})
    chosen = max(layers, key=lambda key: (layers[key], key))
    of_device = [record for record in successes if record.device.key == chosen]
    gpu = with_memory(gpu_by_name(target), memory)
    return TunedSchedules(of_device, path.name, gpu, precision_by_name(dtype))
