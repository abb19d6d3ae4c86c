"""Column-sparse against dense convolution, for each layer of CIFAR ResNet-18: `python benchmarks/column_sparse.py`.

The dense kernel is our own with its default schedule; `--best` times all of its candidates and takes the fastest. Dense
and sparse kernels of a layer are launched in turn in every run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import median

import numpy as np
from kernel_timing import conv_case, devices, time_cases
from resnet18_layers import LAYERS

from tvm_build.gpu import gpu_by_name
from tvm_build.kernels import candidates, default_schedule
from tvm_build.ops import Conv2d

SPARSITIES = (0.5, 0.75, 0.875, 0.9375)


def prune_columns(op: Conv2d, sparsity: float, block: int) -> Conv2d:
    """Keep a random share of the columns, in groups of `block` input channels at one tap."""
    taps = op.kernel[0] * op.kernel[1]
    groups = op.in_channels // block * taps
    kept = np.random.default_rng(0).choice(groups, max(1, round(groups * (1 - sparsity))), replace=False)
    columns = [(int(g) // taps * block + i) * taps + int(g) % taps for g in kept for i in range(block)]
    return replace(op, columns=tuple(sorted(columns)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--device", default="", help="part of a driver's name: intel, pocl")
    parser.add_argument("--best", action="store_true", help="compare with the fastest dense candidate")
    arguments = parser.parse_args()
    gpu = gpu_by_name("opencl-cpu")
    # The stem reads three channels: its columns are not pruned.
    layers = {name: op for name, (op, _) in LAYERS.items() if name != "stem"}
    with devices(arguments.device) as found:
        for name, runner in found:
            print(f"\n{name}; medians of {arguments.runs} interleaved runs, by the device's clock")
            heads = [f"{100 * s:g}%{' b4' if block == 4 else ''}" for block in (1, 4) for s in SPARSITIES]
            print(f"{'layer':<18}{'dense us':>9}" + "".join(f"{head:>10}" for head in heads))
            ratios: list[list[float]] = []
            for layer, op in layers.items():
                schedule = default_schedule(op, gpu)
                if arguments.best:
                    # Chosen in a pass of its own: dozens of kernels in one run would cool the caches for all.
                    dense = candidates(op, gpu)
                    tried = [conv_case("dense", op, candidate) for candidate in dense]
                    times = time_cases(runner, tried, gpu, runs=arguments.runs)
                    schedule = dense[times.index(min(times))]
                cases = [conv_case("dense", op, schedule)]
                cases += [conv_case("sparse", prune_columns(op, s, block)) for block in (1, 4) for s in SPARSITIES]
                base, *sparse = time_cases(runner, cases, gpu, runs=arguments.runs)
                ratios.append([base / time for time in sparse])
                print(f"{layer:<18}{base:>9.1f}" + "".join(f"{ratio:>9.2f}x" for ratio in ratios[-1]), flush=True)
            medians = [median(column) for column in zip(*ratios, strict=True)]
            print(f"{'median':<18}{'':>9}" + "".join(f"{ratio:>9.2f}x" for ratio in medians))


if __name__ == "__main__":
    main()
