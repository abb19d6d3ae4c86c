"""Times single kernels side by side on this machine's OpenCL devices, by the devices' own clocks."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from device.local_target import LocalTarget, find_local_devices
from device.runner_client import Runner
from tvm_build.gpu import Gpu
from tvm_build.kernel_bundle import KernelCase, write_kernel_bundle
from tvm_build.ops import Conv2d, blocks


def conv_case(name: str, op: Conv2d, schedule: object | None = None) -> KernelCase:
    """A convolution on random data."""
    generator = np.random.default_rng(0)
    constants = {
        "weight": generator.standard_normal((op.out_channels, op.in_channels // op.groups, *op.kernel), np.float32),
        "bias": generator.standard_normal(op.out_channels, np.float32),
    }
    shape = (op.batch, blocks(op.in_channels), op.in_height, op.in_width, 4)
    return KernelCase(name, op, {"input0": generator.standard_normal(shape, np.float32)}, constants, schedule)


@contextmanager
def devices(part: str = "") -> Iterator[list[tuple[str, Runner]]]:
    """A runner for each OpenCL device of this machine whose driver contains `part`, with a name to print.

    Raises:
        SystemExit: there is none.
    """
    known = find_local_devices().devices
    found = [device for device in known if part in device.driver.name]
    if not found:
        drivers = ", ".join(device.driver.name for device in known) or "no OpenCL device"
        sys.exit(f"no driver's name contains {part!r}: this machine has {drivers}")
    targets = [LocalTarget(device.driver.name) for device in found]
    names = [f"{device.info.platform} on {device.info.name} ({device.info.type}, host figures)" for device in found]
    try:
        yield [(name, Runner(target)) for name, target in zip(names, targets, strict=True)]
    finally:
        for target in targets:
            target.close()


def time_cases(runner: Runner, cases: Sequence[KernelCase], gpu: Gpu, *, runs: int) -> list[float]:
    """Median microseconds of each case. Every run launches all of them once, so drift meets all alike."""
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory) / "kernels.clbundle"
        write_kernel_bundle(bundle, cases, gpu)
        result = runner.profile(bundle, runs=runs, warmup_runs=3)
    return [launch.median_ms * 1e3 for launch in result.launches]
