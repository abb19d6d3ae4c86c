"""The ways in which a tuned network might be compiled that are worth comparing as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tvm_build.gpu import Gpu
from tvm_build.ops import Operator
from tvm_build.precision import Precision
from tvm_build.tuning.database import TrialRecord
from tvm_build.tuning.tuned import AnyOperator, TunedSchedule, TunedSchedules
from tvm_build.winograd import fastest_form

RANKS = 3
"""Places of a layer's ranking that are compared: alone and in the network, ranks differ by some per cent."""


class Contender(TunedSchedules):
    """Takes the schedule of one rank for each layer, as measured alone, in the form of one rank.

    Args:
        records: trials of one device, target and dtype, each once.
        source: the database's name.
        gpu: what is compiled for.
        precision: of the kernels.
        rank: of the schedules, 0 for the fastest; a layer with fewer keeps its last.
        form: rank of a layer's form, 0 for the fastest; None for what is compiled without a database.
    """

    def __init__(
        self,
        records: Iterable[TrialRecord],
        source: str,
        gpu: Gpu,
        precision: Precision,
        *,
        rank: int = 0,
        form: int | None = 0,
    ) -> None:
        super().__init__((record for record in records if not record.contest), source, gpu, precision)
        self._rank = rank
        self._form = form

    def find(self, op: Operator) -> TunedSchedule | None:
        """The schedule of this rank, whether or not the untuned one is as good."""
        for _, _, ranking in self._rankings(op, self._rank + 1):
            schedule, cost_ms = ranking[-1]
            return TunedSchedule(schedule, cost_ms * 1e3)
        return None

    def measured_us(self, options: Sequence[AnyOperator]) -> dict[AnyOperator, float] | None:
        """Nothing, where forms are those of an untuned compilation."""
        return None if self._form is None else super().measured_us(options)

    def forms_us(self, forms: Mapping[int | None, Sequence[Operator]]) -> dict[int | None, float]:
        """The forms from this rank on, in the order in which compilation would take them; of fewer the last."""
        found = super().forms_us(forms)
        for _ in range(min(self._form or 0, len(found) - 1)):
            del found[fastest_form(found)]
        return found


def contenders(records: Sequence[TrialRecord], source: str, gpu: Gpu, precision: Precision) -> list[Contender]:
    """What to compare beside the untuned network: the first ranks, the second form, and untuned forms tuned.

    Args:
        records: as for `Contender`.
        source: the database's name.
        gpu: what is compiled for.
        precision: of the kernels.
    """
    choices: list[tuple[int, int | None]] = [(rank, 0) for rank in range(RANKS)] + [(0, 1), (0, None)]
    return [Contender(records, source, gpu, precision, rank=rank, form=form) for rank, form in choices]
