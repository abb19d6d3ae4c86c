"""What the report shows besides the result itself: histories, samples and profiles, from the stages' files."""

from __future__ import annotations

from dataclasses import dataclass, field

from results.records import Result


@dataclass(frozen=True)
class Epoch:
    """One epoch of training.

    Attributes:
        phase: `dense`, or such as `round 1 admm`, `round 1 retrain`.
        loss: mean training loss.
        accuracy: percent of the test set.
    """

    phase: str
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Residual:
    """State of ADMM at one update of Z and U, over all layers.

    Attributes:
        round: number of the ADMM round, from 1.
        primal_median: ||W - Z|| / ||W||, the median of the pruned layers.
        primal_worst: likewise, the largest.
        dual: rho * ||Z - Z_previous||, the layers' root sum of squares.
    """

    round: int
    primal_median: float
    primal_worst: float
    dual: float


@dataclass(frozen=True)
class PrunedLayer:
    """What pruning left of one convolution or linear layer.

    Attributes:
        name: dotted PyTorch name.
        shape: of the dense weight, [O, I, kh, kw] or [O, I].
        filters: of the dense layer.
        filters_kept: of them, those that are not masked as a whole.
        columns: of the dense layer's GEMM matrix.
        columns_kept: likewise.
    """

    name: str
    shape: tuple[int, ...]
    filters: int
    filters_kept: int
    columns: int
    columns_kept: int


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer's launches in a profile, ms; None where the network has no such layer."""

    layer: str
    baseline_ms: float | None
    pruned_ms: float | None


@dataclass(frozen=True)
class PurifyTrial:
    """One pair of purification thresholds that was tried.

    Attributes:
        accuracy: percent of the images it was checked on, without retraining.
        conv_params: of the network shrunk after it.
        chosen: whether this one was exported.
        within_budget: whether it was allowed to be.
    """

    accuracy: float
    conv_params: int
    chosen: bool
    within_budget: bool


@dataclass(frozen=True)
class ReportData:
    """Everything that `report.html` and `report.md` show.

    Attributes:
        result: the record that is also `result.json`.
        baseline_ms: latency samples in the order they were taken.
        pruned_ms: likewise; `pruned_ms[i]` was taken beside `baseline_ms[i]`.
        layer_times: in network order.
        epochs: in training order.
        residuals: in training order.
        layers: in network order.
        purification: what was tried, the network as training left it first; empty if nothing was.
        method: how the latency was measured, as label and text.
    """

    result: Result
    baseline_ms: list[float]
    pruned_ms: list[float]
    layer_times: list[LayerTime]
    epochs: list[Epoch]
    residuals: list[Residual]
    layers: list[PrunedLayer]
    purification: list[PurifyTrial] = field(default_factory=list)
    method: dict[str, str] = field(default_factory=dict)
