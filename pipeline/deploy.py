"""A reference network against its dense self on a device: compiled alike, checked, measured; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.reference_networks import ONNX, Folder
from structadmm.errors import InvariantError, UserError
from structadmm.files import write_json
from structadmm.progress import Reporter

if TYPE_CHECKING:
    from device.config import MeasureConfig
    from results.records import Result

_SEED = 0
_CALIBRATION_IMAGES = 16


@dataclass(frozen=True)
class Settings:
    """How both networks are compiled and measured.

    Attributes:
        device: as `--device` names it.
        target: the GPU to compile for, or `auto`.
        dtype: of the kernels.
        measure: counts and times.
        tuned: a tuning database, for both.
    """

    device: str
    target: str
    dtype: str
    measure: MeasureConfig
    tuned: Path | None = None


def deploy(folder: Folder, settings: Settings, out: Path, reporter: Reporter) -> Result:
    """Compile, check and time both networks.

    Args:
        folder: the reference network.
        settings: how.
        out: receives `baseline.onnx`, both bundles, `measurement.json` and `result.json`.
        reporter: where progress is shown.

    Raises:
        UserError: the dense network cannot be built or the device is not there.
        CheckError: a bundle computes something else on the device than ONNX Runtime.
        InvariantError: the dense network is not the one that was pruned.
    """
    from device.runner_client import Runner
    from device.stage import measure, refuse_kernels_for
    from device.target import open_target
    from pipeline.gpu_choice import choose_gpu
    from results.records import write_result
    from tvm_build.compile import compile_onnx

    target = open_target(settings.device, reporter)
    try:
        # Before minutes of compilation: is it there, and has it OpenCL?
        Runner(target).info()
        gpu = choose_gpu(settings.target, target)
        refuse_kernels_for([gpu], target)
        dense_onnx = out / "baseline.onnx"
        macs = export_dense(folder, dense_onnx)
        if macs != folder.network.macs.dense:
            raise InvariantError(
                f"the dense network of {folder.name} has {macs:,} MACs, {folder.network.macs.dense:,} were pruned: its "
                "model is another one now"
            )
        bundles: dict[str, Path] = {}
        tuned: dict[str, Any] = {}
        for name, path in (("baseline", dense_onnx), ("pruned", folder.onnx)):
            bundles[name] = out / f"{name}.clbundle"
            with reporter.task(f"compiling {name} for {gpu}"):
                summary = compile_onnx(path, bundles[name], target=gpu, dtype=settings.dtype, tuned=settings.tuned)
            reporter.say(f"{name}: {summary.launches} launches, compiled in {summary.compile_s:.1f} s for {gpu}")
            if summary.tuned is not None:
                reporter.say(f"{name}: {summary.tuned}")
                tuned[name] = summary.tuned.record()
        measurement = measure(settings.measure, bundles, target, reporter)
    finally:
        target.close()
    write_json(out / "measurement.json", measurement)
    result = _result(folder, measurement, settings, tuned)
    write_result(out / "result.json", result)
    return result


def export_dense(folder: Folder, path: Path) -> int:
    """Write the dense network with random weights: how long it takes depends on its shape alone.

    Returns:
        Its multiply-accumulates, counted as those of pruned networks are.

    Raises:
        UserError: it cannot be built.
    """
    import torch

    from export.onnx_export import export_onnx
    from structadmm.graph.count import count
    from structadmm.graph.trace import capture
    from train.batch_norm import calibrate
    from train.models import build_model

    model, shape = folder.network.model, folder.network.input_shape
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            network = build_model(model.entry, dict(model.kwargs))
            # Else the check on the device would compare outputs in which nothing of the input is left.
            calibrate(network, torch.randn(_CALIBRATION_IMAGES, *shape[1:]))
        graph, state = capture(network, (torch.zeros(shape),))
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"{model.entry} does not take {list(shape)} ({line}): restore {folder.path}") from None
    export_onnx(graph, state, path, batch=shape[0], metadata={"structadmm.network": "baseline, random weights"})
    return count(graph).macs


def _result(folder: Folder, measurement: dict[str, Any], settings: Settings, tuned: dict[str, Any]) -> Result:
    import structadmm
    from results.config import ReportConfig
    from results.device_figures import device_check, latencies
    from results.records import Result
    from structadmm.source import describe_machine, source_commit

    network = folder.network
    found, allowed = device_check(measurement)
    return Result(
        name=folder.name,
        accuracy=network.accuracy,
        conv_params=network.conv_params,
        params=network.params,
        macs=network.macs,
        latency_ms=latencies(ReportConfig(), measurement),
        checks=network.checks.model_copy(update={"onnx_vs_device": found}),
        tolerances=network.tolerances.model_copy(update={"onnx_vs_device": allowed}),
        environment={
            "structadmm": structadmm.__version__,
            "commit": source_commit(),
            "machine": describe_machine(),
            "device": {
                "option": settings.device,
                "kernels_for": measurement["built_for"],
                "dtype": settings.dtype,
                **measurement["opencl"],
            },
            "data": network.data.model_dump(),
            "state": {name: measurement["environment"][name] for name in ("before", "after", "fixed_performance_mode")},
            "network": {ONNX: network.onnx_sha256, "made_by": network.commit},
            "baseline": "random weights",
            **({"tuned": tuned} if tuned else {}),
        },
    )
