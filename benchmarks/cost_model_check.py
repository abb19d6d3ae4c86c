"""How far the cost model is from what others have measured on an Adreno 640: predictions, no measurement of ours.

    python benchmarks/cost_model_check.py      # writes results/reference/compiler/cost_model and docs/cost-model.md
    python benchmarks/cost_model_check.py --networks resnet18 --out FOLDER      # writes into FOLDER alone

Two checks. Networks whose latency other engines publish are compiled for that GPU and predicted: the engines' kernels
are not ours, so agreement within a small factor is all that can be expected. And the model is fed with what the OpenCL
of CIFAR ResNet-18 really asks for, counted in the source alike for our kernels and for TVM's own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from adreno_quality import KERNEL, count
from cost_model_page import page, summary_table
from host_record import quiet, record_options, write_record
from random_masks import save_onnx
from torch import nn

from structadmm.files import write_text
from structadmm.graph import capture
from train.models import build_model
from tvm_build.bundle import read_bundle
from tvm_build.compile import compile_onnx
from tvm_build.cost import estimate_counted
from tvm_build.gpu import gpu_by_name

TARGET = "adreno-640"
DTYPES = ("float32", "float16")
# Milliseconds on an Adreno 640, batch 1, 224x224, as their authors publish them.
NCNN, PADDLE = "ncnn, Vulkan", "Paddle-Lite, OpenCL"
PUBLISHED = {
    "mobilenet_v1": {PADDLE: 6.41},
    "mobilenet_v2": {NCNN: 10.85, PADDLE: 8.07},
    "resnet18": {NCNN: 24.82},
    "alexnet": {NCNN: 28.01},
    "resnet50": {NCNN: 55.68, PADDLE: 29.70},
    "vgg16": {NCNN: 106.3},
}
SIZE = 224
PAGE = Path("docs/cost-model.md")


def mobilenet_v1() -> nn.Module:
    """Howard et al. (1704.04861), width 1."""

    def step(i: int, o: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(o), nn.ReLU()]

    layers, channels = step(3, 32, 3, 2), 32
    for outputs, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2),
                            (1024, 1)):  # fmt: skip
        layers += step(channels, channels, 3, stride, channels) + step(channels, outputs, 1, 1)
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000))


def vgg16() -> nn.Module:
    """Simonyan and Zisserman (1409.1556), configuration D."""
    layers: list[nn.Module] = []
    channels = 3
    for outputs, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU()]
            channels = outputs
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


OURS_ALONE = {"mobilenet_v1": mobilenet_v1, "vgg16": vgg16}


def predicted(name: str, folder: Path) -> dict[str, Any]:
    """Our network, compiled for the phone's GPU."""
    torch.manual_seed(0)
    model = OURS_ALONE[name]() if name in OURS_ALONE else build_model(name, {})
    path = save_onnx(capture(model.eval(), (torch.zeros(1, 3, SIZE, SIZE),)), folder / f"{name}.onnx")
    found: dict[str, Any] = {"network": name, "published_ms": PUBLISHED[name], "predicted_ms": {}}
    for dtype in DTYPES:
        summary = compile_onnx(path, folder / f"{name}.clbundle", target=TARGET, dtype=dtype)
        found["predicted_ms"][dtype] = round(summary.predicted_ms, 3)
        found |= {"launches": summary.launches, "million_macs": round(summary.macs / 1e6, 1)}
    path.unlink()
    return found


def counted(folder: Path) -> list[dict[str, Any]]:
    """CIFAR ResNet-18 with each set of schedules, from its OpenCL source."""
    gpu = gpu_by_name(TARGET)
    torch.manual_seed(0)
    shape = (1, 3, 32, 32)
    path = save_onnx(capture(build_model("cifar_resnet18", {}).eval(), (torch.zeros(shape),)), folder / "cifar.onnx")
    found = []
    for schedules in ("structadmm", "upstream"):
        summary = compile_onnx(path, folder / f"{schedules}.clbundle", target=TARGET, schedules=schedules)  # type: ignore[arg-type]
        kernels = {name: count(*rest) for name, *rest in KERNEL.findall((summary.path / "kernels.cl").read_text())}
        total_us = launch_us = 0.0
        bound: dict[str, int] = {}
        for launch in read_bundle(summary.path).plan.launches:
            cost = estimate_counted(
                gpu,
                global_size=launch.global_size,
                local_size=launch.local_size,
                flops=launch.flops,
                buffer_loads=kernels[launch.kernel].loads - kernels[launch.kernel].texels,
                image_loads=kernels[launch.kernel].texels,
                memory_bytes=launch.bytes,
            )
            total_us += cost.predicted_us
            launch_us += gpu.launch_us
            bound[cost.bound_by] = bound.get(cost.bound_by, 0) + 1
        found.append(
            {
                "schedules": schedules,
                "launches": summary.launches,
                "counted_ms": round(total_us / 1e3, 3),
                "launch_ms": round(launch_us / 1e3, 3),
                # For TVM's kernels the compiler's own prediction is a bare roofline, which is no model of them.
                "from_schedules_ms": round(summary.predicted_ms, 3) if schedules == "structadmm" else None,
                "bound_by": bound,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    options = record_options(parser, Path("results/reference/compiler/cost_model"))
    with tempfile.TemporaryDirectory() as scratch, quiet():
        kernels = counted(Path(scratch))
        print(kernels, flush=True)
        rows = []
        for name in options.networks:
            rows.append(predicted(name, Path(scratch)))
            print(rows[-1], flush=True)
    gpu = gpu_by_name(TARGET)
    record = {
        "target": TARGET,
        "uncertainty": gpu.uncertainty,
        "counted": kernels,
        "rows": rows,
    }
    write_record(
        options.out,
        made_by=options.made_by,
        kind="predicted",
        table=summary_table(record),
        **record,
    )
    whole = options.networks == list(PUBLISHED)
    write_text(PAGE if whole else options.out / PAGE.name, page(record))


if __name__ == "__main__":
    main()
