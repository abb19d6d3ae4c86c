"""A complete set of report data with made-up numbers, for tests of how results are shown."""

from __future__ import annotations

import math
import random

from results.records import (
    Accuracy,
    Checks,
    Latencies,
    Latency,
    Reduction,
    Result,
    SpeedUpRecord,
)
from results.report_data import Epoch, LayerTime, PrunedLayer, PurifyTrial, ReportData, Residual
from results.statistics import paired_speed_up, spread


def synthetic_data(name: str = "a <network> & its name") -> ReportData:
    generator = random.Random(0)
    baseline = [6.2 * generator.lognormvariate(0, 0.06) for _ in range(100)]
    pruned = [1.9 * generator.lognormvariate(0, 0.05) for _ in range(100)]
    result = Result(
        name=name,
        accuracy=Accuracy(dense=98.33, pruned=97.78, test_samples=360),
        conv_params=Reduction.of(697_000, 52_113),
        params=Reduction.of(701_000, 53_001),
        macs=Reduction.of(35_000_000, 3_900_000),
        latency_ms=Latencies(
            device="Some OpenCL device, driver 1.2 | 3",
            kind="host",
            baseline=Latency.of(spread(baseline, "baseline")),
            pruned=Latency.of(spread(pruned, "pruned")),
            speedup=SpeedUpRecord.of(paired_speed_up(baseline, pruned, resamples=1000)),
        ),
        checks=Checks(masked_vs_shrunk=1.1e-6, shrunk_vs_onnx=2.2e-6, onnx_vs_device=3.3e-5),
        tolerances=Checks(masked_vs_shrunk=1e-5, shrunk_vs_onnx=1e-4, onnx_vs_device=1e-3),
        environment={"python": "3.11", "packages": {"torch": "2.13.0"}, "cpu": {"cores": 2}},
    )
    names = ["conv1", *(f"layer{s}.{b}.conv{c}" for s in range(1, 5) for b in range(2) for c in (1, 2)), "fc"]
    phases = [("dense", 12), ("round 1 admm", 6), ("round 1 retrain", 5), ("round 2 admm", 6), ("round 2 retrain", 6)]
    epochs = [
        Epoch(phase, 2.0 * math.exp(-0.2 * i) + 0.01, min(99.0, 60.0 + 4.0 * i))
        for phase, count in phases
        for i in range(count)
    ]
    return ReportData(
        result=result,
        baseline_ms=baseline,
        pruned_ms=pruned,
        layer_times=[LayerTime(n, 0.3, None if n == "fc" else 0.1) for n in names],
        epochs=epochs,
        residuals=[
            Residual(r, 0.3 * math.exp(-0.5 * i), 0.5 * math.exp(-0.4 * i), 0.1 * math.exp(-0.3 * i))
            for r in (1, 2)
            for i in range(6)
        ],
        layers=[PrunedLayer(n, (64, 32, 3, 3), 64, 30, 288, 90) for n in names],
        purification=[
            PurifyTrial(91.0, 100_000, False, True),
            PurifyTrial(90.9, 80_000, True, True),
            PurifyTrial(70.0, 40_000, False, False),
        ],
        method={"Order": "baseline and pruned in turn, one inference each", "Warm-up": "10 inferences"},
    )
