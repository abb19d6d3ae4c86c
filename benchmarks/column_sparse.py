"""Column-sparse against dense convolution, for each layer of CIFAR ResNet-18, on this machine's OpenCL devices.

    python benchmarks/column_sparse.py [--device intel --layers layer1 layer4 --runs 10 --no-best --out FOLDER]

The dense kernel is our own direct one: all of its candidates are timed and the fastest is taken, or, with `--no-best`,
that of its default schedule. Winograd's form of a dense layer, several launches, is not among them. The
sparse kernels have the schedules that the cost model chooses. Dense and sparse kernels of a layer are launched in turn
in every run, after one that is not counted, and timed by the device's clock. Of several passes over a layer the one
counts whose launches took least together: a host that is busy for seconds slows short kernels more than long ones.
Each shape is timed once; the median over the convolutions counts it as often as the network has it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from host_record import record_options, write_record
from kernel_timing import conv_case, devices, time_cases
from resnet18_layers import LAYERS

from device.runner_client import Runner
from results.markdown import markdown_table
from tvm_build.gpu import Gpu, gpu_by_name
from tvm_build.kernels import candidates, default_schedule
from tvm_build.ops import Conv2d

SPARSITIES = (0.5, 0.75, 0.875, 0.9375)
BLOCKS = (1, 4)
# Median speed-up over the convolutions that is aimed at, by sparsity and block.
AIMS = {(0.75, 1): 3.0, (0.875, 1): 5.5, (0.75, 4): 3.5, (0.875, 4): 6.5}
KINDS = [(sparsity, block) for block in BLOCKS for sparsity in SPARSITIES]
PASSES = 5
# The stem reads three channels: its columns are not pruned.
PRUNABLE = [name for name in LAYERS if name != "stem"]


def prune_columns(op: Conv2d, sparsity: float, block: int) -> Conv2d:
    """Keep a random share of the columns, in groups of `block` input channels at one tap."""
    taps = op.kernel[0] * op.kernel[1]
    groups = op.in_channels // block * taps
    kept = np.random.default_rng(0).choice(groups, max(1, round(groups * (1 - sparsity))), replace=False)
    columns = [(int(g) // taps * block + i) * taps + int(g) % taps for g in kept for i in range(block)]
    return replace(op, columns=tuple(sorted(columns)))


def row(device: str, layer: str, runner: Runner, gpu: Gpu, runs: int, *, best: bool) -> dict[str, Any]:
    """Time one layer, dense and sparse."""
    op, _ = LAYERS[layer]
    schedule = default_schedule(op, gpu)
    if best:
        # Chosen in a pass of its own: dozens of kernels in one run would cool the caches for all.
        dense = candidates(op, gpu)
        times = time_cases(runner, [conv_case("dense", op, candidate) for candidate in dense], gpu, runs=runs)
        schedule = dense[times.index(min(times))]
    # A device that was idle wakes up during the first launch of a run.
    cases = [conv_case("first", op, schedule), conv_case("dense", op, schedule)]
    cases += [conv_case("sparse", prune_columns(op, *kind)) for kind in KINDS]
    passes = [time_cases(runner, cases, gpu, runs=runs) for _ in range(PASSES)]
    _, base, *sparse = min(passes, key=sum)
    return {
        "device": device,
        "layer": layer,
        "dense_us": round(base, 1),
        "speedups": [
            {"sparsity": sparsity, "block": block, "us": round(time, 1), "speedup": round(base / time, 2)}
            for (sparsity, block), time in zip(KINDS, sparse, strict=True)
        ],
    }


def medians(rows: Sequence[dict[str, Any]], *, shapes: bool = False) -> list[float]:
    """Median speed-up over the network's convolutions, or over their different shapes, by kind."""
    found = []
    for number in range(len(KINDS)):
        values = [
            item["speedups"][number]["speedup"]
            for item in rows
            for _ in range(1 if shapes else LAYERS[item["layer"]][1])
        ]
        found.append(round(median(values), 2))
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line for each layer of each device, then medians and aims."""
    heads = ["device", "layer", "dense us", *(f"{100 * s:g} %{', blocks' if b == 4 else ''}" for s, b in KINDS)]
    lines = []
    for device, rows in found.items():
        for item in rows:
            speedups = (f"{entry['speedup']:.2f}x" for entry in item["speedups"])
            lines.append([device, item["layer"], f"{item['dense_us']:.0f}", *speedups])
        lines.append([device, "**median of the convolutions**", "", *(f"**{value:.2f}x**" for value in medians(rows))])
        lines.append([device, "median of the shapes", "", *(f"{value:.2f}x" for value in medians(rows, shapes=True))])
    lines.append(["", "aim", "", *(f"{AIMS[kind]:g}x" if kind in AIMS else "" for kind in KINDS)])
    return markdown_table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--device", default="", help="part of a driver's name: intel, pocl")
    parser.add_argument("--layers", nargs="+", choices=PRUNABLE, default=PRUNABLE)
    parser.add_argument(
        "--best", action=argparse.BooleanOptionalAction, default=True, help="compare with the fastest dense candidate"
    )
    options = record_options(parser, Path("results/reference/compiler/column_sparse"))
    gpu = gpu_by_name("opencl-cpu")
    found: dict[str, list[dict[str, Any]]] = {}
    with devices(options.device) as runners:
        for name, runner in runners:
            found[name] = []
            for layer in options.layers:
                found[name].append(row(name, layer, runner, gpu, options.runs, best=options.best))
                print(found[name][-1], flush=True)
    print(table(found))
    write_record(
        options.out,
        made_by=options.made_by,
        kind="host",
        rows=[item for rows in found.values() for item in rows],
        table=table(found),
        medians=[
            {"device": device, "sparsity": s, "block": b, "speedup": value, "aim": AIMS.get((s, b))}
            for device, rows in found.items()
            for (s, b), value in zip(KINDS, medians(rows), strict=True)
        ],
    )


if __name__ == "__main__":
    main()
