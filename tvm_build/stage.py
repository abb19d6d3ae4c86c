"""The build stage: both exported networks, compiled alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from structadmm.files import write_json
from structadmm.progress import Reporter
from tvm_build.compile import CompileSummary, compile_onnx, network_inputs, sample_from_npz
from tvm_build.config import BuildConfig
from tvm_build.explain import caveat_of_tvm

NETWORKS = ("baseline", "pruned")
BUILD_SCHEMA = 1


def run_build(
    config: BuildConfig, export_dir: Path, out: Path, reporter: Reporter, shipped: Path | None = None
) -> None:
    """Compile `baseline.onnx` and `pruned.onnx` to bundles with the same settings, and write `build.json`.

    Args:
        config: what to compile for.
        export_dir: holds both networks and `samples.npz`, whose first images become the bundles' sample.
        out: receives `baseline.clbundle/`, `pruned.clbundle/` and `build.json`.
        reporter: where progress is shown.
        shipped: the tuning database that `tuned = "auto"` means here, if there is one.

    Raises:
        UserError: a file is missing, or a network cannot be compiled.
    """
    networks: dict[str, Any] = {}
    tuned = shipped if config.tuned == "auto" else config.tuned
    for name in NETWORKS:
        path = export_dir / f"{name}.onnx"
        inputs = network_inputs(path)
        samples = export_dir / "samples.npz"
        sample = None
        if len(inputs) == 1 and samples.is_file():
            (only,) = inputs
            sample = {only: sample_from_npz(samples, inputs[only])}
        summary = compile_onnx(
            path,
            out / f"{name}.clbundle",
            target=config.resolved_target,
            dtype=config.dtype,
            schedules=config.schedules,
            memory=config.memory,
            sample=sample,
            tuned=tuned,
            reporter=reporter,
        )
        networks[name] = _record(summary)
        caveat = f" ({caveat_of_tvm(summary.tvm_launches)})" if summary.tvm_launches else ""
        reporter.say(
            f"{name}: {summary.launches} launches of {summary.kernels} kernels, {summary.macs / 1e6:.1f} M MACs, "
            f"{summary.weight_bytes / 1e6:.2f} MB weights, predicted {summary.predicted_ms:.2f} ms on "
            f"{config.resolved_target}{caveat}, compiled in {summary.compile_s:.1f} s"
        )
        if summary.tuned is not None:
            reporter.say(f"{name}: {summary.tuned}")
    settings = {
        "target": config.resolved_target,
        "dtype": config.dtype,
        "memory": config.memory,
        "schedules": config.schedules,
    }
    write_json(out / "build.json", {"schema": BUILD_SCHEMA, "settings": settings, "networks": networks})


def _record(summary: CompileSummary) -> dict[str, Any]:
    return {
        "bundle": summary.path.name,
        "launches": summary.launches,
        "tvm_launches": summary.tvm_launches,
        "kernels": summary.kernels,
        "macs": summary.macs,
        "parameters": summary.parameters,
        "activation_bytes": summary.activation_bytes,
        "live_bytes": summary.live_bytes,
        "weight_bytes": summary.weight_bytes,
        "predicted_ms": summary.predicted_ms,
        "compile_s": round(summary.compile_s, 3),
        "tuned": None if summary.tuned is None else summary.tuned.record(),
    }
