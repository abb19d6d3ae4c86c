"""The report's figures against the files of the stages that they come from."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from results.config import ReportConfig
from results.report_data import LayerTime, ReportData, Residual
from results.stage import report_data
from results.statistics import paired_speed_up
from structadmm.errors import InvariantError

BASELINE_MS, PRUNED_MS = [4.0, 2.0, 8.0, 6.0, 5.0], [1.0, 1.0, 2.0, 2.0, 2.0]
CONFIG = ReportConfig(bootstrap_resamples=1000, bootstrap_seed=7)

Records = dict[str, dict[str, Any]]


def output(error: float, tolerance: float) -> dict[str, Any]:
    return {"name": "y", "max_abs_error": error, "tolerance": tolerance, "not_finite": 0, "passed": True}


def launches(**times_ms: float) -> dict[str, Any]:
    return {"launches": [{"layer": name.partition("_")[0], "median_ms": ms} for name, ms in times_ms.items()]}


def stage_records() -> Records:
    session = {"name": "GPU", "vendor": "V", "platform": "P", "driver": "1.2", "version": "3", "type": "gpu"}
    train = {
        "accuracy": {"dense_correct": 354, "pruned_correct": 336, "test_images": 360},
        "layers": [],
        "versions": {},
        "model": {"entry": "net"},
        "data": {"name": "digits", "train_images": 1437, "test_images": 360},
        "seed": 0,
    }
    export = {
        "conv_params": {"dense": 1000, "pruned": 125, "ratio": 8.0},
        "params": {"dense": 1200, "pruned": 300, "ratio": 4.0},
        "macs": {"dense": 9000, "pruned": 1800, "ratio": 5.0},
        "checks": {"masked_vs_shrunk": 1e-6, "shrunk_vs_onnx": 3e-5, "baseline_vs_onnx": 5e-5},
        "tolerances": {"masked_vs_shrunk": 1e-5, "shrunk_vs_onnx": 1e-4, "baseline_vs_onnx": 1e-3},
        "versions": {},
    }
    networks = {"launches": 3, "predicted_ms": 1.0, "macs": 9000}
    build = {
        "settings": {"target": "adreno-640", "dtype": "float32", "schedules": "structadmm"},
        "networks": {"baseline": networks, "pruned": {**networks, "macs": 2250}},
    }
    counts = {"runs": 5, "rest_ms": 0, "seed": 0, "warmup_runs": 1, "warmup_ms": 0, "profile_runs": 3}
    times = {"baseline": BASELINE_MS, "pruned": PRUNED_MS}
    measure = {
        "device": "adb:1",
        "kind": "phone",
        "opencl": {**session, "compute_units": 2, "clock_mhz": 585, "fp16": True},
        "config": counts,
        "checks": {"baseline": {"outputs": [output(5e-4, 1e-2)]}, "pruned": {"outputs": [output(4e-4, 5e-4)]}},
        "bench": {"times": {name: {"total_samples_ms": ms, "first_run_ms": 9.0} for name, ms in times.items()}},
        "profiles": {"baseline": launches(a=1.0, b_1=0.25, b_2=0.5), "pruned": launches(c=0.125, a=0.5)},
        "environment": {"before": {}, "during": {}, "after": {}, "fixed_performance_mode": True},
        "steadiness": {"clock_mhz": None, "drift": None, "warnings": ["throttled: its clock fell"]},
    }
    return {"train": train, "export": export, "build": build, "measure": measure}


def report(run: Path, records: Records) -> ReportData:
    files = {"train": "pruning.json", "export": "export.json", "build": "build.json", "measure": "measurement.json"}
    (run / "build/pruned.clbundle").mkdir(parents=True)
    (run / "build/pruned.clbundle/manifest.json").write_text('{"schema": 1, "versions": {}}')
    for stage, file in files.items():
        (run / stage).mkdir(exist_ok=True)
        (run / stage / file).write_text(json.dumps({"schema": 1, **records[stage]}))
    layers = {f"conv{k}": {"primal": primal, "dual": dual} for k, (primal, dual) in enumerate([(3, 3), (1, 4), (8, 0)])}
    (run / "train/history.jsonl").write_text(json.dumps({"type": "residuals", "round": 1, "layers": layers}))
    return report_data(CONFIG, run, "small")


def test_every_figure_is_that_of_the_stage_that_found_it(tmp_path: Path) -> None:
    data = report(tmp_path, stage_records())
    accuracy, latency = data.result.accuracy, data.result.latency_ms
    assert (accuracy.dense, accuracy.pruned) == (pytest.approx(100 * 354 / 360), pytest.approx(100 * 336 / 360))
    assert [getattr(data.result, name).ratio for name in ("conv_params", "params", "macs")] == [8.0, 4.0, 5.0]
    assert (latency.baseline.median, latency.pruned.median, latency.kind) == (5.0, 2.0, "phone")
    assert latency.device == "GPU, P, driver 1.2"
    assert latency.warnings == ("throttled: its clock fell",)
    expected = paired_speed_up(BASELINE_MS, PRUNED_MS, resamples=1000, seed=7)
    assert (latency.speedup.median, latency.speedup.ci95) == (3.0, expected.ci95)


def test_the_seed_of_the_resamples_is_that_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def watched(*samples: list[float], **options: int) -> Any:
        asked.append(options)
        return paired_speed_up(*samples, **options)

    monkeypatch.setattr("results.device_figures.paired_speed_up", watched)
    report(tmp_path, stage_records())
    assert asked == [{"resamples": 1000, "seed": 7}]


def test_of_several_outputs_and_networks_the_difference_nearest_its_tolerance_is_told(tmp_path: Path) -> None:
    result = report(tmp_path, stage_records()).result
    assert (result.checks.onnx_vs_device, result.tolerances.onnx_vs_device) == (4e-4, 5e-4)
    assert (result.checks.shrunk_vs_onnx, result.tolerances.shrunk_vs_onnx) == (3e-5, 1e-4)


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("export.conv_params.ratio", 8.01, "conv_params fell 8.01x"),
        ("export.checks.masked_vs_shrunk", 1.1e-5, "masked_vs_shrunk is 1.1e-05, more than 1e-05"),
        ("export.checks.baseline_vs_onnx", 2e-3, "shrunk_vs_onnx is 0.002, more than 0.001"),
        ("measure.checks", {}, "not checked, or failed"),
        ("measure.checks.pruned.outputs", [{**output(0.0, 1.0), "passed": False}], "not checked, or failed"),
        ("measure.checks.pruned.outputs", [{**output(0.0, 1.0), "not_finite": 1}], "not checked, or failed"),
    ],
)
def test_stages_that_contradict_each_other_or_failed_a_check_give_no_result(
    tmp_path: Path, place: str, value: Any, complaint: str
) -> None:
    records = copy.deepcopy(stage_records())
    *path, last = place.split(".")
    within: dict[str, Any] = records
    for key in path:
        within = within[key]
    within[last] = value
    with pytest.raises(InvariantError, match=complaint):
        report(tmp_path, records)


def test_launches_of_one_layer_are_summed_and_layers_of_the_pruned_network_alone_come_last(tmp_path: Path) -> None:
    times = report(tmp_path, stage_records()).layer_times
    assert times == [LayerTime("a", 1.0, 0.5), LayerTime("b", 0.75, None), LayerTime("c", None, 0.125)]


def test_the_launches_of_winograds_form_are_those_of_their_layer(tmp_path: Path) -> None:
    records = stage_records()
    parts = {"a:tiles": 0.25, "a": 0.5, "a:shortcut": 0.0625, "a:sums": 0.125}
    records["measure"]["profiles"]["baseline"] = {
        "launches": [{"layer": name, "median_ms": ms} for name, ms in parts.items()]
    }
    assert report(tmp_path, records).layer_times[0] == LayerTime("a", 0.9375, 0.5)


def test_that_schedules_were_tuned_is_said_with_the_database_and_the_number_of_launches(tmp_path: Path) -> None:
    records = stage_records()
    assert "Tuned" not in report(tmp_path / "untuned", records).method
    tuned = {"database": "db.jsonl", "tuned": ["a", "b"], "untuned": ["c"]}
    records["build"]["networks"] = {
        "baseline": {**records["build"]["networks"]["baseline"], "tuned": tuned},
        "pruned": {**records["build"]["networks"]["pruned"], "tuned": None},
    }
    found = report(tmp_path / "tuned", records)
    assert found.method["Tuned"] == "baseline 2 of 3 launches, pruned none of 3 launches, from db.jsonl"
    assert found.result.environment["tuned"] == {"baseline": tuned}


def test_a_prediction_that_takes_tvms_kernels_for_perfect_says_so(tmp_path: Path) -> None:
    records = stage_records()
    plain = "baseline 1 ms, pruned 1 ms: the cost model's figures for adreno-640, not measurements"
    assert report(tmp_path / "older", records).method["Predicted"] == plain
    network = records["build"]["networks"]["baseline"]
    records["build"]["networks"] = {name: network | {"tvm_launches": 0} for name in ("baseline", "pruned")}
    assert report(tmp_path / "none", records).method["Predicted"] == plain
    records["build"]["networks"]["pruned"]["tvm_launches"] = 2
    assert report(tmp_path / "some", records).method["Predicted"] == (
        f"{plain}; launches of TVM's kernels (baseline 0, pruned 2) count as if perfect and may be far slower"
    )


@pytest.mark.parametrize(
    ("name", "verify", "expected"),
    [("cifar10", True, True), ("mnist", False, False), ("fashion_mnist", False, False), ("digits", False, None)],
)
def test_whether_images_were_checked_is_told_of_those_that_have_published_checksums(
    tmp_path: Path, name: str, verify: bool, expected: bool | None
) -> None:
    records = stage_records()
    records["train"]["data"] |= {"name": "my own", "config": {"name": name, "verify": verify}}
    assert report(tmp_path, records).result.environment["data"]["verified"] is expected


def test_what_kernels_compute_and_what_was_budgeted_is_told(tmp_path: Path) -> None:
    records = stage_records()
    target = {"measure": "latency", "unit": "ms", "limit": 1.6, "reached": 1.5}
    counts = {"measure": "macs", "unit": "MACs", "limit": 3000.0, "reached": 2990.0}
    records["train"]["rounds"] = [
        {"target": None},
        {"target": counts},
        {"target": target | {"limit": 9.0}},
        {"target": target},
    ]
    method = report(tmp_path, records).method
    assert method["Computed"] == (
        "9,000 multiply-accumulates by the baseline's kernels, 2,250 by the pruned (4.00× fewer); "
        "1.25× what is left of the pruned network"
    )
    assert method["Budget of macs"] == "at most 3,000; reached 2,990"
    # The median of the pruned network's samples is 2 ms.
    assert (
        method["Budget of latency"]
        == "at most 1.6 ms; 1.5 ms by the table of costs, 2.000 ms measured on this device: missed by 25 %"
    )


def test_an_update_is_told_by_its_median_and_worst_primal_and_the_root_of_its_duals_squares(tmp_path: Path) -> None:
    assert report(tmp_path, stage_records()).residuals == [Residual(2, 3, 8, math.hypot(3, 4, 0))]
