"""The measure stage: both bundles checked, timed against each other, profiled. Its record: `docs/measurement.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from device.config import MeasureConfig
from device.contention import others_share
from device.runner_client import EXTRAS, BenchResult, HeatLimit, ProfileResult, Runner
from device.runner_events import BundleTimes, Check
from device.target import StateFile, Target, open_target
from device.throttling import Steadiness, judge
from structadmm.errors import UserError
from structadmm.files import write_json
from structadmm.progress import Reporter

SCHEMA = 1
BUNDLES = ("baseline", "pruned")
HOST_GPU = "opencl-cpu"
COOLER_BY_C = 5


def run_measure(config: MeasureConfig, build_dir: Path, out: Path, device: str, reporter: Reporter) -> None:
    """Check, time and profile the two bundles of `build_dir` and write `out/measurement.json`.

    Args:
        config: counts and times.
        build_dir: holds `baseline.clbundle/` and `pruned.clbundle/`.
        out: where the record goes.
        device: as `--device` names it.
        reporter: hears about each step.

    Raises:
        UserError: a bundle or the device is not there, or does not work.
        CheckError: a bundle computes something else on this device than where it was built.
    """
    bundles = {name: build_dir / f"{name}.clbundle" for name in BUNDLES}
    for path in bundles.values():
        if not path.is_dir():
            raise UserError(f"{path} does not exist: run the build stage first")
    target = open_target(device, reporter)
    try:
        record = measure(config, bundles, target, reporter)
    finally:
        target.close()
    write_json(out / "measurement.json", record)


def built_for(bundles: Iterable[Path]) -> list[str]:
    """The GPUs that the kernels were chosen for, as the bundles' manifests name them."""
    manifests = [path / "manifest.json" for path in bundles]
    return sorted({str(json.loads(file.read_bytes()).get("target")) for file in manifests if file.is_file()})


def refuse_kernels_for(gpus: Sequence[str], target: Target) -> None:
    """Whether kernels that were chosen for `gpus` show what a target can do.

    Raises:
        UserError: they were chosen for a processor, and the target is a phone, whose GPU would run them all the same.
    """
    if HOST_GPU in gpus and target.kind == "phone":
        gpu = target.facts().get("gpu", "an unknown GPU")
        raise UserError(
            f"the kernels were chosen for {HOST_GPU}, and {target.name} is a phone with {gpu}: name its GPU, such as "
            "--set build.target=adreno-640, deploy's --target adreno-640, and run it again (nothing is trained anew)"
        )


def other_kernels_warnings(gpus: Sequence[str], target: Target, opencl_type: str) -> tuple[str, ...]:
    """A warning where a phone's kernels ran on a computer's processor."""
    strangers = [gpu for gpu in gpus if gpu != HOST_GPU]
    if target.kind != "host" or opencl_type != "cpu" or not strangers:
        return ()
    return (
        f"the kernels were chosen for {', '.join(strangers)} and ran on this computer's processor: their times say "
        "nothing of either",
    )


def measure(config: MeasureConfig, bundles: dict[str, Path], target: Target, reporter: Reporter) -> dict[str, Any]:
    """The content of `measurement.json` for bundles on an open target.

    Raises:
        UserError: the bundles are for another kind of device.
        CheckError: a bundle computes something else on this device than where it was built.
    """
    gpus = built_for(bundles.values())
    refuse_kernels_for(gpus, target)
    without = [name for name in EXTRAS if not getattr(config, name)]
    runner = Runner(target, use_program_cache=config.program_cache, without=without)
    with reporter.task(f"measuring on {target.name}", total=2 * len(bundles) + 1) as task:
        checks = {}
        for name, path in bundles.items():
            checks[name] = runner.check(path)
            task.advance(note=f"{name} checked, off by at most {checks[name].max_abs_error:.2g}")
        bench, environment = _timed(config, list(bundles.values()), target, runner)
        task.advance(note=f"{config.runs} rounds timed")
        profiles = {}
        for name, path in bundles.items():
            profiles[name] = runner.profile(path, runs=config.profile_runs, timeout_s=config.timeout_s)
            task.advance(note=f"{name} profiled")
    medians = {name: times.total_ms.median for name, times in zip(bundles, bench.bundles, strict=True)}
    reporter.say(", ".join(f"{name} {median_ms:.3f} ms" for name, median_ms in medians.items()) + f" on {target.name}")
    steadiness = _judge(bench, environment)
    warnings = (*other_kernels_warnings(gpus, target, bench.session.type), *steadiness.warnings)
    for warning in warnings:
        reporter.say(f"{target.name}: {warning}; measure again before you publish these figures")
    return {
        "schema": SCHEMA,
        "device": target.name,
        "kind": target.kind,
        "built_for": gpus,
        "opencl": bench.session.model_dump(),
        "config": config.model_dump(),
        "checks": {name: _check_record(check) for name, check in checks.items()},
        "bench": _bench_record(bench, tuple(bundles)),
        "profiles": {name: _profile_record(profile) for name, profile in profiles.items()},
        "environment": environment,
        "steadiness": {**asdict(steadiness), "warnings": list(warnings)},
    }


def _timed(
    config: MeasureConfig, bundles: list[Path], target: Target, runner: Runner
) -> tuple[BenchResult, dict[str, Any]]:
    """The timed rounds, and the state of the device before, during and after them."""
    files = target.state_files()
    limit = None
    if config.rest_above_c and files and files[0].name == "gpu_temperature_c":
        above = config.rest_above_c
        limit = HeatLimit(above, above - COOLER_BY_C, round(config.cooling_s * 1000))
    with target.fixed_performance_mode() if config.fixed_performance else nullcontext(False) as fixed:
        before = target.facts()
        bench = runner.bench(
            bundles,
            runs=config.runs,
            warmup_runs=config.warmup_runs,
            warmup_ms=config.warmup_ms,
            rest_ms=config.rest_ms,
            launch_runs=config.launch_runs,
            seed=config.seed,
            watch=files,
            heat_limit=limit,
            timeout_s=config.timeout_s,
        )
        after = target.facts()
    environment = {"before": before, "during": _during(bench, files), "after": after, "fixed_performance_mode": fixed}
    return bench, environment


def _during(bench: BenchResult, files: Sequence[StateFile]) -> dict[str, Any]:
    """What was read between rounds; empty where the target has nothing to read."""
    if bench.watched is None:
        return {}
    series = {file.name: list(values) for file, values in zip(files, bench.watched.values, strict=True)}
    watched = bench.watched
    return {"rests": watched.rests, "cooling_ms": watched.cooling_ms, "at_ms": list(watched.at_ms), **series}


def _judge(bench: BenchResult, environment: dict[str, Any]) -> Steadiness:
    return judge(
        [times.total_samples_ms for times in bench.bundles],
        environment["during"].get("gpu_clock_mhz", []),
        environment["before"].get("gpu_max_clock_mhz"),
        others_share(environment["before"].get("processor_s"), environment["after"].get("processor_s")),
    )


def _check_record(check: Check) -> dict[str, Any]:
    return {
        "max_abs_error": check.max_abs_error,
        "outputs": [output.model_dump() for output in check.outputs],
    }


def _bench_record(bench: BenchResult, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "seed": bench.rounds.seed,
        "start_ns": bench.rounds.start_ns,
        "bundles": list(names),
        "order": [list(order) for order in bench.rounds.order],
        "times": {name: _times_record(times) for name, times in zip(names, bench.bundles, strict=True)},
    }


def _times_record(times: BundleTimes) -> dict[str, Any]:
    # Where the bundle lay says nothing about the measurement, and is another path on every machine.
    return times.model_dump(exclude={"bundle", "index"})


def _profile_record(profile: ProfileResult) -> dict[str, Any]:
    return {
        "runs": profile.summary.runs,
        "launch_sum_ms": profile.summary.launch_sum_ms.model_dump(),
        "launches": [launch.model_dump(exclude={"index"}) for launch in profile.launches],
    }
