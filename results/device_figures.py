"""What a measurement says about both networks, as the records of a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from results.config import ReportConfig
from results.records import Latencies, Latency, SpeedUpRecord
from results.statistics import paired_speed_up, spread
from structadmm.errors import InvariantError


def network_samples(measurement: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Latencies of baseline and pruned network in round order, ms."""
    times = measurement["bench"]["times"]
    baseline, pruned = ([float(ms) for ms in times[name]["total_samples_ms"]] for name in ("baseline", "pruned"))
    return baseline, pruned


def latencies(config: ReportConfig, measurement: Mapping[str, Any]) -> Latencies:
    """Both networks' latencies and the speed-up.

    Args:
        config: of the bootstrap.
        measurement: what `measurement.json` holds.
    """
    baseline_ms, pruned_ms = network_samples(measurement)
    session = measurement["opencl"]
    speed_up = paired_speed_up(baseline_ms, pruned_ms, resamples=config.bootstrap_resamples, seed=config.bootstrap_seed)
    return Latencies(
        device=f"{session['name']}, {session['platform']}, driver {session['driver']}",
        kind=measurement["kind"],
        baseline=Latency.of(spread(baseline_ms, "baseline")),
        pruned=Latency.of(spread(pruned_ms, "pruned")),
        speedup=SpeedUpRecord.of(speed_up),
        warnings=tuple(measurement["steadiness"]["warnings"]),
    )


def device_check(measurement: Mapping[str, Any]) -> tuple[float, float]:
    """Largest difference from the ONNX file and what it may be, of the output that is nearest its tolerance.

    Raises:
        InvariantError: an output was not checked, or failed.
    """
    outputs = [output for check in measurement["checks"].values() for output in check["outputs"]]
    if not outputs or not all(output["passed"] and output["not_finite"] == 0 for output in outputs):
        raise InvariantError("measurement.json holds a bundle that was not checked, or failed: measure again")
    worst = max(outputs, key=lambda output: float(output["max_abs_error"]) / float(output["tolerance"]))
    return float(worst["max_abs_error"]), float(worst["tolerance"])
