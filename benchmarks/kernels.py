"""Speed of our convolutions on CIFAR ResNet-18, layer by layer: `python benchmarks/kernels.py [--runs N] [--best]`."""

from __future__ import annotations

import argparse

from kernel_timing import conv_case, devices, time_cases
from resnet18_layers import LAYERS

from tvm_build.cost import predict_us
from tvm_build.gpu import gpu_by_name
from tvm_build.kernels import candidates, default_schedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--device", default="", help="part of a driver's name: intel, pocl")
    parser.add_argument("--best", action="store_true", help="also time every candidate: how good is the choice?")
    arguments = parser.parse_args()
    gpu = gpu_by_name("opencl-cpu")
    with devices(arguments.device) as found:
        for name, runner in found:
            print(f"\n{name}; medians of {arguments.runs} interleaved runs, by the device's clock")
            print(f"{'layer':<18}{'us':>9}{'GFLOP/s':>10}{'predicted us':>14}" + ("   best" if arguments.best else ""))
            total_us = 0.0
            for layer, (op, count) in LAYERS.items():
                schedule = default_schedule(op, gpu)
                cases = [conv_case(layer, op, schedule)]
                if arguments.best:
                    cases += [conv_case(layer, op, s) for s in candidates(op, gpu) if s != schedule]
                times = time_cases(runner, cases, gpu, runs=arguments.runs)
                total_us += times[0] * count
                line = f"{layer:<18}{times[0]:>9.1f}{2 * op.macs / times[0] / 1e3:>10.1f}"
                line += f"{predict_us(op, schedule, gpu):>14.1f}"
                if arguments.best:
                    fastest = min(range(len(cases)), key=lambda k: times[k])
                    line += f"   {times[0] / times[fastest]:.2f}x of {cases[fastest].schedule}"
                print(line, flush=True)
            print(f"{'all convolutions':<18}{total_us:>9.0f}")


if __name__ == "__main__":
    main()
