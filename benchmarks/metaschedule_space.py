"""MetaSchedule's own design space for a convolution on C4, tried like our candidates: same proof, device and clock.

The convolution is written as TE computes it, in the layouts of our kernels; TVM's `PostOrderApply` derives the space of
its GPU rules for the Adreno target, its search strategy samples it, and builder and runner are ours.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import te
from tvm.s_tir import meta_schedule

from device.candidates import LocalMeasurer, Trial
from device.target import open_target
from tvm_build.emit import emit_opencl
from tvm_build.gpu import gpu_by_name
from tvm_build.kernels import build_kernel
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.stored import run
from tvm_build.lower import tvm_target
from tvm_build.ops import Conv2d
from tvm_build.precision import FLOAT32
from tvm_build.tuning.candidate_bundle import write_candidate_bundle
from tvm_build.tuning.expected import task_data

ROLES = {"input": "input0", "weight": "constant:weight", "bias": "constant:bias", "output": "output"}


def compute(op: Conv2d) -> Any:
    """The operator as a TIR function of loops over scalars, unscheduled."""
    ins, outs, pad = op.in_channels // 4, op.out_channels // 4, op.padding[0]
    height, width = op.in_height, op.in_width
    data = te.placeholder((1, ins, height, width, 4), "float32", name="input")
    weight = te.placeholder((outs, ins, *op.kernel, 4, 4), "float32", name="weight")
    bias = te.placeholder((outs, 4), "float32", name="bias")

    def padded_at(n: Any, block: Any, y: Any, x: Any, lane: Any) -> Any:
        inside = te.all(y >= pad, y < height + pad, x >= pad, x < width + pad)
        return te.if_then_else(inside, data[n, block, y - pad, x - pad, lane], 0.0)

    padded = te.compute((1, ins, height + 2 * pad, width + 2 * pad, 4), padded_at, name="padded")
    block = te.reduce_axis((0, ins), "in_block")
    lane = te.reduce_axis((0, 4), "in_lane")
    ky, kx = (te.reduce_axis((0, size), name) for size, name in zip(op.kernel, ("ky", "kx"), strict=True))
    product = te.compute(
        (1, outs, op.out_height, op.out_width, 4),
        lambda n, b, y, x, k: te.sum(
            padded[n, block, y + ky, x + kx, lane] * weight[b, block, ky, kx, lane, k], axis=[block, ky, kx, lane]
        ),
        name="product",
    )
    result = te.compute(
        product.shape, lambda n, b, y, x, k: te.max(product[n, b, y, x, k] + bias[b, k], 0.0), name="output"
    )
    function = te.create_prim_func([data, weight, bias, result])
    return function.with_attr("global_symbol", "metaschedule").with_attr("tirx.noalias", True)


def samples(function: Any, count: int) -> list[Any]:
    """Scheduled functions, drawn by MetaSchedule and through its post-processors."""
    context = meta_schedule.TuneContext(
        mod=tvm.IRModule({"main": function}),
        target=tvm_target(),
        space_generator=meta_schedule.space_generator.PostOrderApply(),
        search_strategy="replay-trace",
        task_name="conv",
        rand_state=1,
        num_threads=1,
    )
    context.pre_tuning(
        max_trials=count,
        num_trials_per_iter=count,
        design_spaces=context.generate_design_space(),
        database=meta_schedule.database.MemoryDatabase(),
        cost_model=meta_schedule.cost_model.RandomModel(),
    )
    found = context.generate_measure_candidates() or []
    return [candidate.sch.mod["main"].with_attr("global_symbol", "metaschedule") for candidate in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--device", default="local")
    options = parser.parse_args()
    channels, size = options.channels, options.size
    op = Conv2d(1, channels, size, size, channels, (3, 3), padding=(1, 1, 1, 1), activation="relu")
    data, gpu = task_data(op), gpu_by_name("opencl-cpu")
    blocks = channels // 4
    weight = data.constants["weight"].reshape(blocks, 4, blocks, 4, 3, 3).transpose(0, 2, 4, 5, 3, 1)
    constants = {"weight": np.ascontiguousarray(weight), "bias": data.constants["bias"].reshape(-1, 4)}
    ours = build_kernel(op, data.constants, gpu)
    candidates = [(ours, emit_opencl(ours.func))]
    for function in samples(compute(op), options.samples):
        kernel = emit_opencl(function)
        built = BuiltKernel(
            func=function,
            parameters={name: run(1, "float32") for name in kernel.arguments},
            roles={name: ROLES[name] for name in kernel.arguments},
            constants=constants,
            flops=2 * op.macs,
            bytes=0,
            schedule=None,
        )
        candidates.append((built, kernel))
    measurer = LocalMeasurer(open_target(options.device), Trial(runs=10))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            paths = [Path(scratch) / f"{number}.clbundle" for number in range(len(candidates))]
            for path, (built, kernel) in zip(paths, candidates, strict=True):
                write_candidate_bundle(path, built, kernel, data, gpu.name, FLOAT32)
            outcomes = [outcome for _, outcome in measurer.measure(paths)]
    finally:
        measurer.close()
    print(Counter(outcome.status for outcome in outcomes[1:]))
    times = [outcome.times.min_ms for outcome in outcomes if outcome.times is not None]
    print(f"ours, untuned: {times[0]:.3f} ms; MetaSchedule's: " + ", ".join(f"{ms:.3f}" for ms in sorted(times[1:])))


if __name__ == "__main__":
    main()
