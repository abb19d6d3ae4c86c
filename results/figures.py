"""The figures of a result as every output shows them: what they are called, and how they are rounded."""

from __future__ import annotations

from dataclasses import dataclass

from results.records import Reduction, Result, SpeedUpRecord

KIND_LABEL = {"host": "host timing, not a phone", "phone": "phone timing"}


@dataclass(frozen=True)
class Figure:
    """One number and its text."""

    value: float
    text: str


@dataclass(frozen=True)
class Row:
    """One property of both networks, and how it changed."""

    label: str
    dense: Figure
    pruned: Figure
    change: Figure


def summary_rows(result: Result) -> list[Row]:
    """Accuracy, sizes and latency of both networks, side by side."""
    accuracy, latency = result.accuracy, result.latency_ms
    points = accuracy.pruned - accuracy.dense
    return [
        Row(
            "Test accuracy",
            Figure(accuracy.dense, f"{accuracy.dense:.2f} %"),
            Figure(accuracy.pruned, f"{accuracy.pruned:.2f} %"),
            Figure(points, f"{points:+.2f} points"),
        ),
        _reduction_row("CONV parameters", result.conv_params),
        _reduction_row("All parameters", result.params),
        _reduction_row("MACs", result.macs),
        Row(
            f"Median latency ({latency.kind})",
            Figure(latency.baseline.median, milliseconds(latency.baseline.median)),
            Figure(latency.pruned.median, milliseconds(latency.pruned.median)),
            Figure(latency.speedup.median, _faster(latency.speedup)),
        ),
    ]


def _faster(speed_up: SpeedUpRecord) -> str:
    low, high = speed_up.ci95
    if low <= 1 <= high:
        return f"{times(speed_up.median)}, no difference shown"
    return f"{times(speed_up.median)} faster" if low > 1 else f"{times(1 / speed_up.median)} slower"


def speed_up_interval(result: Result) -> str:
    """The speed-up with its interval, such as `2.91× (95 % interval 2.80 to 3.02)`."""
    speed_up = result.latency_ms.speedup
    low, high = speed_up.ci95
    return f"{times(speed_up.median)} (95 % interval {low:.2f} to {high:.2f})"


def warnings_of(result: Result) -> list[str]:
    """What a reader of the accuracies and of the times must know, one line each."""
    data = result.environment.get("data", {})
    images = []
    if data.get("verified") is False:
        images.append(
            f"the images of {data.get('name')} were not checked against the published ones: accuracies may be compared "
            "with each other, not with published ones"
        )
    if data.get("note"):
        images.append(f"the test images are {data['note']}")
    return [*images, *result.latency_ms.warnings]


def times(ratio: float) -> str:
    """A factor, to three digits at the least."""
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.1f}×"


def milliseconds(value_ms: float) -> str:
    """A time, to three digits at the least."""
    return f"{value_ms:.3f} ms" if value_ms < 10 else f"{value_ms:.1f} ms"


def _reduction_row(label: str, reduction: Reduction) -> Row:
    return Row(
        label,
        Figure(reduction.dense, f"{reduction.dense:,}"),
        Figure(reduction.pruned, f"{reduction.pruned:,}"),
        Figure(reduction.ratio, f"{times(reduction.ratio)} fewer"),
    )
