"""No cliffs: widths that are no multiple of four against the next one that is.

    python benchmarks/width_cliffs.py [--device intel --out FOLDER]

Convolutions of 33, 66, 130 and 258 channels at the image sizes of a ResNet's stages, next to 36, 68, 132 and 260, each
with the schedule that the compiler chooses for it; both are launched in turn in every run. The wider one does as much
work as the narrower one with its padding, or more: the aim is a ratio of at most 1.25. The same for a whole CIFAR
ResNet-18 of width 33 and 36.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from host_record import quiet, record_options, write_record
from kernel_timing import conv_case, devices, time_cases
from random_masks import calibrated, save_onnx

from results.markdown import markdown_table
from structadmm.graph import capture
from train.models import build_model
from tvm_build.compile import compile_onnx
from tvm_build.cost import predict_us
from tvm_build.gpu import gpu_by_name
from tvm_build.kernels import default_schedule
from tvm_build.ops import Conv2d

# (odd width, even width, image size)
WIDTHS = ((33, 36, 32), (66, 68, 16), (130, 132, 8), (258, 260, 4))
AIM = 1.25


def convolution(width: int, size: int, kernel: int) -> Conv2d:
    pad = kernel // 2
    return Conv2d(1, width, size, size, width, (kernel, kernel), padding=(pad, pad, pad, pad), activation="relu")


def network(width: int, folder: Path) -> Path:
    """A CIFAR ResNet-18 as a bundle."""
    shape = (1, 3, 32, 32)
    model = calibrated(build_model("cifar_resnet18", {"width": width}), shape)
    path = save_onnx(capture(model, (torch.zeros(shape),)), folder / f"{width}.onnx")
    return compile_onnx(path, path.with_suffix(".clbundle"), target="opencl-cpu").path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--device", default="", help="part of a driver's name: intel, pocl")
    options = record_options(parser, Path("results/reference/compiler/width_cliffs"))
    cpu, phone = gpu_by_name("opencl-cpu"), gpu_by_name("adreno-640")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, quiet(), devices(options.device) as found:
        bundles = [network(width, Path(scratch)) for width in WIDTHS[0][:2]]
        for device, runner in found:
            for kernel in (3, 1):
                for odd, even, size in WIDTHS:
                    ops = [convolution(width, size, kernel) for width in (odd, even)]
                    cases = [conv_case(f"{op.in_channels}", op, default_schedule(op, cpu)) for op in ops]
                    us = time_cases(runner, cases, cpu, runs=options.runs)
                    predicted = [predict_us(op, default_schedule(op, phone), phone) for op in ops]
                    rows.append(
                        {
                            "what": f"{kernel}x{kernel}, {odd} and {even} channels, {size}x{size}",
                            "device": device, "odd_us": us[0], "even_us": us[1], "ratio": us[0] / us[1],
                            "predicted_adreno_640": predicted[0] / predicted[1],
                        }
                    )  # fmt: skip
            odd_times, even_times = runner.bench(bundles, runs=options.runs, launch_runs=1).bundles
            pairs = zip(odd_times.total_samples_ms, even_times.total_samples_ms, strict=True)
            rows.append(
                {
                    "what": "CIFAR ResNet-18, width 33 and 36", "device": device,
                    "odd_us": odd_times.total_ms.median * 1e3, "even_us": even_times.total_ms.median * 1e3,
                    "ratio": median(a / b for a, b in pairs),
                }
            )  # fmt: skip
    table = markdown_table(
        ["what", "device", "odd width µs", "multiple of four µs", "ratio", "ratio predicted for Adreno 640"],
        (
            [
                row["what"], row["device"], f"{row['odd_us']:.1f}", f"{row['even_us']:.1f}", f"{row['ratio']:.2f}",
                f"{row['predicted_adreno_640']:.2f}" if "predicted_adreno_640" in row else "",
            ]
            for row in rows
        ),
    )  # fmt: skip
    table += f"\n\nLargest ratio {max(row['ratio'] for row in rows):.2f}; aim: at most {AIM:g}."
    print(table)
    write_record(options.out, made_by=options.made_by, kind="host", rows=rows, table=table)


if __name__ == "__main__":
    main()
