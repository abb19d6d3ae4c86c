"""How much of the saved work becomes saved time: CIFAR ResNet-18 with random structured masks, shrunk as export does.

    python benchmarks/pruned_efficiency.py [--device intel --out FOLDER]

Efficiency is the measured speed-up over the reduction of multiply-accumulates; the aim is 0.6 at ten times fewer CONV
parameters. Dense and pruned networks are run in turn in every round, inputs and outputs included; the speed-up is the
median of the ratios within rounds. A launch that does nothing is timed too: launches times that cost is what no kernel
can save, and the table says what share of the pruned network's time it is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from host_record import quiet, record_options, write_record
from kernel_timing import devices
from random_masks import calibrated, prune, save_onnx, shrunk

from device.runner_client import Runner
from results.markdown import markdown_table
from structadmm.graph import capture
from structadmm.graph.count import count
from train.models import build_model
from tvm_build.compile import compile_onnx
from tvm_build.gpu import gpu_by_name
from tvm_build.kernel_bundle import KernelCase, write_kernel_bundle
from tvm_build.ops import Elementwise

SHAPE = (1, 3, 32, 32)
AIM, AIM_AT = 0.6, 10.0
EMPTY_LAUNCHES = 64
# Shares of filters and of columns that go. What export leaves is as many times smaller as the name says, within 2 %:
# filters that lose their last reader go, too, more of them the more columns do.
PRUNED: dict[str, tuple[dict[str, Any], ...]] = {
    "10x, filters": ({"structure": "filter", "sparsity": 0.691},),
    "10x, columns": ({"structure": "column", "sparsity": 0.884},),
    "10x, filters and columns": (
        {"structure": "filter", "sparsity": 0.5},
        {"structure": "column", "sparsity": 0.605},
    ),
    "10x, filters and column blocks": (
        {"structure": "filter", "sparsity": 0.5},
        {"structure": "column", "sparsity": 0.655, "block": 4},
    ),
    "30x, filters and columns": (
        {"structure": "filter", "sparsity": 0.6},
        {"structure": "column", "sparsity": 0.7875},
    ),
    "54x, filters and columns": (
        {"structure": "filter", "sparsity": 0.65},
        {"structure": "column", "sparsity": 0.843},
    ),
}


def empty_launch_us(runner: Runner, scratch: Path) -> float:
    """What one launch of a kernel with next to nothing to do costs, enqueued and executed."""
    op = Elementwise("copy", 1, 4, 1, 1)
    cases = [
        KernelCase(f"empty{k}", op, {"input0": np.zeros((1, 1, 1, 1, 4), np.float32)}, {})
        for k in range(EMPTY_LAUNCHES)
    ]
    bundle = scratch / "empty.clbundle"
    write_kernel_bundle(bundle, cases, gpu_by_name("opencl-cpu"))
    times = runner.bench([bundle], runs=5, launch_runs=50).bundles[0].launch_ms
    assert times is not None
    return times.median * 1e3 / EMPTY_LAUNCHES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--device", default="", help="part of a driver's name: intel, pocl")
    options = record_options(parser, Path("results/reference/compiler/pruned_efficiency"))
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory, quiet(), devices(options.device) as found:
        scratch = Path(directory)
        dense = build_model("cifar_resnet18", {"width": options.width})
        captured = capture(calibrated(dense, SHAPE), (torch.zeros(SHAPE),))
        before = count(captured.graph)
        bundles = [scratch / "dense.clbundle"]
        compile_onnx(save_onnx(captured, scratch / "dense.onnx"), bundles[0], target="opencl-cpu")
        networks: list[dict[str, Any]] = []
        for number, (name, rounds) in enumerate(PRUNED.items()):
            model = build_model("cifar_resnet18", {"width": options.width})
            smaller = shrunk(prune(model, SHAPE, rounds))
            after = count(smaller.graph, smaller.state)
            bundles.append(scratch / f"pruned{number}.clbundle")
            path = save_onnx(smaller, scratch / f"pruned{number}.onnx")
            summary = compile_onnx(path, bundles[-1], target="opencl-cpu")
            networks.append(
                {
                    "network": name,
                    "conv_reduction": before.conv_params / after.conv_params,
                    "mac_reduction": before.macs / after.macs,
                    "launches": summary.launches,
                }
            )
        for device, runner in found:
            for bundle in bundles:
                runner.check(bundle)
            launch_us = empty_launch_us(runner, scratch)
            base, *others = runner.bench(bundles, runs=options.runs, launch_runs=1).bundles
            for network, times in zip(networks, others, strict=True):
                ratios = [a / b for a, b in zip(base.total_samples_ms, times.total_samples_ms, strict=True)]
                speedup = median(ratios)
                rows.append(
                    {
                        **network,
                        "device": device,
                        "dense_ms": base.total_ms.median,
                        "pruned_ms": times.total_ms.median,
                        "speedup": speedup,
                        "efficiency": speedup / network["mac_reduction"],
                        "empty_launch_us": launch_us,
                        "launch_share": network["launches"] * launch_us / 1e3 / times.total_ms.median,
                    }
                )
    heads = ["pruned", "device", "CONV params", "MACs", "dense ms", "pruned ms", "speed-up", "speed-up / MAC reduction",
             "launches", "empty launch µs", "launches' share"]  # fmt: skip
    table = markdown_table(
        heads,
        (
            [
                row["network"], row["device"], f"{row['conv_reduction']:.1f}x", f"{row['mac_reduction']:.1f}x",
                f"{row['dense_ms']:.2f}", f"{row['pruned_ms']:.2f}", f"{row['speedup']:.2f}x",
                f"{row['efficiency']:.2f}", str(row["launches"]), f"{row['empty_launch_us']:.1f}",
                f"{row['launch_share']:.0%}",
            ]
            for row in rows
        ),
    )  # fmt: skip
    table += f"\n\nAim: {AIM:g} at {AIM_AT:g}x fewer CONV parameters. Width {options.width}, input 32x32."
    print(table)
    write_record(options.out, made_by=options.made_by, kind="host", rows=rows, table=table)


if __name__ == "__main__":
    main()
