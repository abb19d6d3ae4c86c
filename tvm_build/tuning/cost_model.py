"""A cost model that learns from the measurements of a session: gradient-boosted trees over counted features.

It is scikit-learn's `HistGradientBoostingRegressor`, which the project depends on anyway; MetaSchedule's is XGBoost's
version of the same method over features of TVM's loop nests. Ours has the features that the analytic model of
`tvm_build.cost` counts, so it starts from what that knows and learns where it is wrong. One model serves all tasks of a
session: what wide tiles do to one layer is told to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_build.cost import estimate
from tvm_build.gpu import Gpu
from tvm_build.kernels import Schedule
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator, WinogradInput, WinogradOutput
from tvm_build.precision import Precision

Floats = NDArray[np.float64]

# Fewer measurements than this say less than the analytic model does.
MIN_RECORDS = 16
_FAILED_FACTOR = 4.0
_COST_FIELDS = (
    "flops",
    "load_bytes",
    "local_bytes",
    "memory_bytes",
    "registers",
    "work_items",
    "waves",
    "predicted_us",
)


def features(op: Operator, schedule: Schedule, gpu: Gpu, precision: Precision) -> Floats:
    """One candidate as numbers: what it computes, how it is scheduled, what the analytic model counts."""
    cost = estimate(op, schedule, gpu, precision)
    counted = [math.log2(1 + float(getattr(cost, name))) for name in _COST_FIELDS]
    return np.array([*_operator(op), *_schedule(schedule), *counted, cost.macs_per_load, cost.fill, cost.wide_share])


def _operator(op: Operator) -> list[float]:
    match op:
        case Conv2d():
            shortcut = op.shortcut.reduction if op.shortcut is not None else 0
            sizes = (op.macs, op.out_channels, op.reduction, op.out_height, op.out_width, shortcut)
            taps = op.kernel[0] * op.kernel[1]
            plain = [
                taps,
                op.stride[1],
                op.groups == 1,
                op.columns is not None,
                op.has_residual,
                op.shortcut is not None,
                op.filter_sets > 1,
            ]
        case Dense():
            sizes = (op.in_features * op.out_features, op.out_features, op.in_features, 1, op.pooled_pixels, 0)
            plain = [0, 0, True, False, False, False, False]
        case GlobalAverage():
            sizes = (op.channels * op.height * op.width, op.channels, 1, op.height, op.width, 0)
            plain = [-1, 0, True, False, False, False, False]
        case WinogradInput() | WinogradOutput():
            count = op.batch * op.channels * op.tiles_y * op.tiles_x
            sizes = (count * (op.tile + 2) ** 2, op.channels, 1, op.tiles_y, op.tiles_x, 0)
            residual = isinstance(op, WinogradOutput) and op.has_residual
            plain = [-2, op.tile, True, isinstance(op, WinogradOutput), residual, False, False]
        case _:
            sizes, plain = (0,) * 6, [-3, 0, True, False, False, False, False]
    return [math.log2(1 + size) for size in sizes] + [float(value) for value in plain]


# Places for the fields of the widest schedule, and some for fields it may gain: vectors must be of one length.
_SCHEDULE_PLACES = 20


def _schedule(schedule: Schedule) -> list[float]:
    assert is_dataclass(schedule)
    values = [float(sum(type(schedule).__name__.encode()) % 97)]
    for field in fields(schedule):
        value = getattr(schedule, field.name)
        # Words have no order; trees split on any number, so their characters' sum will do to tell them apart.
        values.append(math.log2(1 + value) if isinstance(value, int) else float(sum(str(value).encode()) % 97))
    return values[:_SCHEDULE_PLACES] + [-1.0] * (_SCHEDULE_PLACES - len(values))


class CostModel:
    """Predicts the time of candidates.

    Args:
        gpu: what they are compiled for.
        precision: of the kernels.
        seed: of the trees.
    """

    def __init__(self, gpu: Gpu, precision: Precision, seed: int = 0) -> None:
        self._gpu = gpu
        self._precision = precision
        self._seed = seed
        self._rows: list[Floats] = []
        # Work per millisecond, so that layers of all sizes are comparable; None for candidates that failed.
        self._speeds: list[float | None] = []
        self._model: Any = None
        self._fitted_on = 0

    def learn(self, op: Operator, schedule: Schedule, cost_ms: float | None) -> None:
        """Take up one measurement; None for a candidate that failed."""
        self._rows.append(features(op, schedule, self._gpu, self._precision))
        self._speeds.append(None if cost_ms is None else math.log(_work(op) / max(cost_ms, 1e-6)))

    def costs(self, op: Operator, schedules: Sequence[Schedule]) -> Floats:
        """Predicted milliseconds; by the analytic model until there are enough measurements."""
        rows = np.stack([features(op, schedule, self._gpu, self._precision) for schedule in schedules])
        self._fit()
        if self._model is None:
            analytic = [estimate(op, schedule, self._gpu, self._precision).predicted_us for schedule in schedules]
            return np.array(analytic) / 1e3
        predicted: Floats = _work(op) / np.exp(self._model.predict(rows))
        return predicted

    def _fit(self) -> None:
        count = _fit_on(len(self._rows))
        speeds = self._speeds[:count]
        known = [speed for speed in speeds if speed is not None]
        if count == self._fitted_on or len(known) < MIN_RECORDS // 2:
            return
        from sklearn.ensemble import HistGradientBoostingRegressor

        # What fails is avoided like what is slow: it takes a trial and gives nothing.
        failed = min(known) - math.log(_FAILED_FACTOR)
        targets = np.array([failed if speed is None else speed for speed in speeds])
        self._model = HistGradientBoostingRegressor(
            max_iter=150, learning_rate=0.1, min_samples_leaf=4, l2_regularization=0.1, random_state=self._seed
        ).fit(np.stack(self._rows[:count]), targets)
        self._fitted_on = count


def _fit_on(records: int) -> int:
    """How many of the records a model is fitted on: a few more change little, and the steps grow.

    A function of their number alone, so that a resumed session has the model of an uninterrupted one.
    """
    if records < MIN_RECORDS:
        return 0
    step = max(8, 1 << max(0, records.bit_length() - 4))
    return records // step * step


def _work(op: Operator) -> float:
    match op:
        case Conv2d():
            return float(op.macs)
        case Dense():
            return float(op.batch * op.in_features * op.out_features)
        case WinogradInput() | WinogradOutput():
            return float(op.batch * op.channels * op.tiles_y * op.tiles_x * (op.tile + 2) ** 2)
        case _:
            return 1.0
