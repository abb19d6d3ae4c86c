"""Our kernels against TVM's own Adreno schedules, on this machine's OpenCL devices: dense networks, same file.

    python benchmarks/compile_vs_upstream.py [--device intel] [--networks cifar_resnet18]

TVM's schedules run on buffers and, where it can build them, on textures. The bundles of a network are run in turn in
every round, in an order shuffled anew; the speed-up is the median of the ratios within rounds, inputs and outputs
included. Each is first compared with ONNX Runtime on an input that the compiler has not seen: a line says where
upstream is wrong, or why it cannot build.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from host_record import command_line, quiet, write_record
from kernel_timing import devices
from random_masks import calibrated, save_onnx

from device.runner_client import Runner
from results.markdown import markdown_table
from structadmm.errors import StructadmmError
from structadmm.graph import capture
from structadmm.source import source_commit
from train.models import build_model
from tvm_build.compile import compile_onnx

# Input size and the speed-up that is aimed at.
NETWORKS = {"cifar_resnet18": (32, 25.0), "resnet18": (224, 10.0), "mobilenet_v2": (224, 10.0)}
TOLERANCE = 1e-3
# Schedules, and where their tensors lie.
OURS = "structadmm"
BUILDS = {OURS: (OURS, "auto"), "upstream": ("upstream", "auto"), "textures": ("upstream", "image")}


def export(name: str, size: int, path: Path) -> Path:
    torch.manual_seed(0)
    model = calibrated(build_model(name, {}), (1, 3, size, size))
    return save_onnx(capture(model, (torch.zeros(1, 3, size, size),)), path)


def error_of(runner: Runner, bundle: Path, model: Path, size: int) -> float:
    """Largest difference from ONNX Runtime over the largest output, on a fresh input."""
    x = np.random.default_rng(7).standard_normal((1, 3, size, size), dtype=np.float32)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: x})
    return float(np.abs(runner.run(bundle, [x]).outputs[0] - expected).max() / np.abs(expected).max())


def row(name: str, device: str, runner: Runner, models: dict[str, Path], runs: int) -> dict[str, Any]:
    """Compare one network on one device."""
    size, aim = NETWORKS[name]
    bundles: dict[str, Path] = {}
    found: dict[str, Any] = {"network": name, "device": device, "aim": aim}
    says = []
    for build, (schedules, memory) in BUILDS.items():
        bundle = models[name].with_name(f"{name}-{build}.clbundle")
        try:
            if not bundle.exists():
                compile_onnx(models[name], bundle, target="opencl-cpu", schedules=schedules, memory=memory)  # type: ignore[arg-type]
            error = error_of(runner, bundle, models[name], size)
        except StructadmmError as failure:
            says.append(f"{build} cannot be built or run: {failure}")
            continue
        found[f"{build}_error"] = float(f"{error:.2g}")
        if error <= TOLERANCE:
            bundles[build] = bundle
        else:
            says.append(f"{build} is wrong: off by {error:.2g} of the largest output")
    found["says"] = "; ".join(says)
    if OURS in bundles and len(bundles) > 1:
        done = runner.bench(list(bundles.values()), runs=runs, warmup_runs=1, warmup_ms=0, launch_runs=1).bundles
        timed = dict(zip(bundles, done, strict=True))
        found |= {f"{build}_ms": result.total_ms.median for build, result in timed.items()}
        for build in bundles.keys() - {OURS}:
            pairs = zip(timed[build].total_samples_ms, timed[OURS].total_samples_ms, strict=True)
            found[f"{build}_speedup"] = median(slow / fast for slow, fast in pairs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", default="", help="part of a driver's name: intel, pocl")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--out", type=Path, default=Path("results/reference/compiler/upstream"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, quiet(), devices(options.device) as found:
        models = {name: export(name, NETWORKS[name][0], Path(scratch) / f"{name}.onnx") for name in options.networks}
        rows = rows_of_others(options.out, [(name, device) for device, _ in found for name in options.networks])
        for device, runner in found:
            for name in options.networks:
                measured = row(name, device, runner, models, options.runs)
                rows.append(measured | {"runs": options.runs, "commit": source_commit(), "made_by": command_line()})
                print(rows[-1], flush=True)
                write(options.out, rows)  # TVM's schedules take minutes: what was measured is kept


def rows_of_others(out: Path, measured: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows of the record in `out` but those of the networks and devices in `measured`: each can be measured alone."""
    path = out / "results.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [item for item in rows if (item["network"], item["device"]) not in measured]


def write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The record, with rows in the order of the networks."""
    rows = sorted(rows, key=lambda item: (item["device"], list(NETWORKS).index(item["network"])))
    table = markdown_table(
        [
            "network", "device", "ours ms", "upstream ms", "textures ms", "speed-up", "over textures", "aim",
            "error ours", "upstream", "textures", "",
        ],
        (
            [
                item["network"], item["device"],
                *(f"{item[key]:.2f}" if key in item else "" for key in (f"{build}_ms" for build in BUILDS)),
                *(f"{item[key]:.1f}x" if key in item else "" for key in ("upstream_speedup", "textures_speedup")),
                f"{item['aim']:g}x",
                *(f"{item[key]:.1e}" if key in item else "" for key in (f"{build}_error" for build in BUILDS)),
                item["says"],
            ]
            for item in rows
        ),
    )  # fmt: skip
    print(table)
    commands = dict.fromkeys(item["made_by"] for item in rows)
    write_record(out, made_by="; ".join(commands), kind="host", rows=rows, table=table)


if __name__ == "__main__":
    main()
