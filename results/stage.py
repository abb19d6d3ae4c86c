"""The report stage: what the other stages wrote in, `result.json`, `report.html` and `report.md` out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results.budgets import budgets, computed_macs
from results.config import ReportConfig
from results.device_figures import device_check, latencies, network_samples
from results.environment import describe_environment, tuned_networks
from results.layer_times import match_layer_times
from results.markdown import report_markdown
from results.records import (
    Accuracy,
    Checks,
    Reduction,
    Result,
    write_result,
)
from results.report_data import PurifyTrial, ReportData
from results.report_html import report_html
from results.train_files import pruned_layers, read_history
from structadmm.errors import InvariantError, UserError
from structadmm.files import read_json, write_text
from structadmm.progress import Reporter

STAGE_FILES = {
    "train": "pruning.json",
    "export": "export.json",
    "build": "build.json",
    "measure": "measurement.json",
}
STAGE_SCHEMA = 1


def run_report(config: ReportConfig, run_dir: Path, out: Path, reporter: Reporter, *, name: str) -> None:
    """Compute the result from the stages' files and write it in all its forms.

    Args:
        config: the `[report]` section.
        run_dir: holds `train/`, `export/`, `build/` and `measure/`.
        out: receives `result.json`, `report.html` and `report.md`.
        reporter: where progress is told.
        name: of the run.

    Raises:
        UserError: a stage's file is absent, or lacks a number.
        InvariantError: two stages disagree about the same number, or a check is beyond its tolerance.
    """
    with reporter.task("report", 2) as task:
        data = report_data(config, run_dir, name)
        task.advance(note="computed")
        write_result(out / "result.json", data.result)
        write_text(out / "report.md", report_markdown(data))
        write_text(out / "report.html", report_html(data))
        task.advance(note="written")


def report_data(config: ReportConfig, run_dir: Path, name: str) -> ReportData:
    """Everything that the report shows, from the stages' files.

    Raises:
        UserError: a stage's file is absent, or lacks a number.
        InvariantError: two stages disagree about the same number, or a check is beyond its tolerance.
    """
    records = {stage: read_json(run_dir / stage / file, schema=STAGE_SCHEMA) for stage, file in STAGE_FILES.items()}
    epochs, residuals = read_history(run_dir / "train" / "history.jsonl")
    try:
        baseline_ms, pruned_ms = network_samples(records["measure"])
        return ReportData(
            result=_result(config, records, run_dir, name),
            baseline_ms=baseline_ms,
            pruned_ms=pruned_ms,
            layer_times=match_layer_times(
                *(records["measure"]["profiles"][network]["launches"] for network in ("baseline", "pruned"))
            ),
            epochs=epochs,
            residuals=residuals,
            layers=pruned_layers(records["train"]),
            purification=_purification(records["export"]),
            method=_method(records),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{run_dir}: a stage's record lacks {error}: run the stages again with --from train") from None


def _result(
    config: ReportConfig,
    records: Mapping[str, dict[str, Any]],
    run_dir: Path,
    name: str,
) -> Result:
    train, export, measure = records["train"], records["export"], records["measure"]
    trained = train["accuracy"]
    checks, tolerances = _checks(export, measure)
    return Result(
        name=name,
        accuracy=Accuracy(
            dense=100.0 * trained["dense_correct"] / trained["test_images"],
            pruned=100.0 * _pruned_correct(trained, export) / trained["test_images"],
            test_samples=trained["test_images"],
        ),
        conv_params=_reduction(export, "conv_params"),
        params=_reduction(export, "params"),
        macs=_reduction(export, "macs"),
        latency_ms=latencies(config, measure),
        checks=checks,
        tolerances=tolerances,
        environment=describe_environment(records, run_dir),
    )


def _pruned_correct(trained: Mapping[str, Any], export: Mapping[str, Any]) -> int:
    """Test images that the exported network classifies rightly: purification changes the trained one."""
    purified = export.get("purified")
    if not purified or not purified["emptied"]:
        return int(trained["pruned_correct"])
    test = purified["test"]
    if test["images"] != trained["test_images"]:
        raise InvariantError(
            f"the purified network was tested on {test['images']} images, the dense one on {trained['test_images']}: "
            "run the stages again with --from train"
        )
    return int(test["correct"])


def _reduction(export: dict[str, Any], field: str) -> Reduction:
    reduction = Reduction.of(export[field]["dense"], export[field]["pruned"])
    if not math.isclose(reduction.ratio, export[field]["ratio"], rel_tol=1e-9):  # one division on either side
        raise InvariantError(f"export.json says {field} fell {export[field]['ratio']}x, its counts {reduction.ratio}x")
    return reduction


def _checks(export: dict[str, Any], measure: dict[str, Any]) -> tuple[Checks, Checks]:
    """Differences found, and what they may be. Of several outputs or networks the one nearest its tolerance is told."""
    on_device, on_device_allowed = device_check(measure)
    differences, tolerances = export["checks"], export["tolerances"]
    on_onnx = max(("shrunk_vs_onnx", "baseline_vs_onnx"), key=lambda name: differences[name] / tolerances[name])
    found = Checks(
        masked_vs_shrunk=differences["masked_vs_shrunk"],
        shrunk_vs_onnx=differences[on_onnx],
        onnx_vs_device=on_device,
    )
    allowed = Checks(
        masked_vs_shrunk=tolerances["masked_vs_shrunk"],
        shrunk_vs_onnx=tolerances[on_onnx],
        onnx_vs_device=on_device_allowed,
    )
    for check in Checks.model_fields:
        if not getattr(found, check) <= getattr(allowed, check):
            raise InvariantError(f"{check} is {getattr(found, check)}, more than {getattr(allowed, check)}: no result")
    return found, allowed


def _device_state(measure: Mapping[str, Any]) -> str:
    """What the device was asked to do, and what its sensors said meanwhile."""
    during, steadiness = measure["environment"]["during"], measure["steadiness"]
    told = ["clocks held by the fixed performance mode" if measure["environment"]["fixed_performance_mode"] else ""]
    if clock := steadiness["clock_mhz"]:
        told.append(f"clock {clock['lowest']:.0f} to {clock['highest']:.0f} MHz between rounds")
    temperatures = [value for value in during.get("gpu_temperature_c", []) if value is not None]
    if temperatures:
        told.append(f"{min(temperatures):.0f} to {max(temperatures):.0f} °C")
    if during.get("rests"):
        told.append(f"{during['rests']} rests of {during['cooling_ms'] / 1000:.0f} s in all because it was hot")
    if (share := steadiness.get("others_share")) is not None:
        told.append(f"other programs took {100 * share:.0f} % of the processors' time")
    if steadiness["drift"] is not None:
        told.append(f"slowest eighth of the rounds {steadiness['drift']:.2f} times the fastest")
    return "; ".join(filter(None, told)) or "tells neither clock nor temperature, and too few rounds to see a drift"


def _purification(export: dict[str, Any]) -> list[PurifyTrial]:
    purified = export.get("purified")
    if not purified:
        return []
    return [
        PurifyTrial(trial["accuracy"], trial["conv_params"], trial == purified["chosen"], trial["within_budget"])
        for trial in purified["trials"]
    ]


def _method(records: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """How the latency was measured, for people."""
    build, measure = records["build"], records["measure"]
    settings, counts, times = build["settings"], measure["config"], measure["bench"]["times"]
    pause = f", {counts['rest_ms']} ms pause between rounds" if counts["rest_ms"] else ""
    first_runs = ", ".join(f"{name} {times[name]['first_run_ms']:.1f} ms" for name in ("baseline", "pruned"))
    launches = ", ".join(f"{name} {build['networks'][name]['launches']}" for name in ("baseline", "pruned"))
    predicted = ", ".join(f"{name} {build['networks'][name]['predicted_ms']:.3g} ms" for name in ("baseline", "pruned"))
    method = {
        "One sample": "one inference at batch 1: inputs written, all launches, outputs read back; CPU clock",
        "Order": f"{counts['runs']} rounds, each times baseline and pruned once in shuffled order (seed "
        f"{counts['seed']}){pause}",
        "Warm-up": f"at least {counts['warmup_runs']} inferences and {counts['warmup_ms']} ms of each, not counted",
        "First run": f"{first_runs}, not counted",
        "Compiled": f"both alike: target {settings['target']}, {settings['dtype']}, {settings['schedules']} schedules",
        "Launches": launches,
        "Computed": computed_macs(build, records["export"]),
        **budgets(records["train"], measure),
        "Speed-up": "median over the rounds of baseline / pruned of the same round, so that a drift common to both "
        "cancels; 95 % percentile bootstrap over rounds",
        "Device": _device_state(measure),
        "Profile": f"median of {counts['profile_runs']} inferences per launch, by the device's own clock",
    }
    if tuned := tuned_networks(build):
        chosen = {name: len(found["tuned"]) for name, found in tuned.items()}
        told = ", ".join(
            f"{name} {chosen.get(name, 'none')} of {build['networks'][name]['launches']} launches"
            for name in ("baseline", "pruned")
        )
        databases = sorted({str(found["database"]) for found in tuned.values()})
        method["Tuned"] = f"{told}, from {' and '.join(databases)}"
    if all(build["networks"][name]["predicted_ms"] > 0 for name in ("baseline", "pruned")):
        # Absent from builds that are older than the count.
        tvm = {name: build["networks"][name].get("tvm_launches", 0) for name in ("baseline", "pruned")}
        told = ", ".join(f"{name} {count}" for name, count in tvm.items())
        caveat = f"; launches of TVM's kernels ({told}) count as if perfect and may be far slower"
        method["Predicted"] = (
            f"{predicted}: the cost model's figures for {settings['target']}, not measurements"
            f"{caveat if any(tvm.values()) else ''}"
        )
    return method
