"""What the OpenCL of CIFAR ResNet-18 asks of an Adreno, ours and upstream's: `python benchmarks/adreno_quality.py`.

Counted in the bundles' `kernels.cl`, not in the schedules: every access to a `__global` pointer or an image, times the
turns of the loops around it, times the launch's work-items. Constant memory is not counted. Branches count as taken
(edges of the image therefore count as loads). Multiply-adds are those of the layer. No time is measured.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from train.models.cifar_resnet import cifar_resnet18
from tvm_build.bundle import read_bundle
from tvm_build.compile import compile_onnx
from tvm_build.precision import PRECISIONS

KERNEL = re.compile(r"__kernel (?:__attribute__\(\(.*?\)\) )?void (\w+)\((.*?)\) \{\n(.*?)\n\}\n", re.DOTALL)
_PARAMETER = re.compile(r"__global (float|half|int|uint)(\d*)\s*\*\s*(?:restrict )?(\w+)")
_LOOP = re.compile(r"for \(int \w+ = (\d+); \w+ < (\d+);")
_PRIVATE = re.compile(r"^\s*(?:float|half|int)\d* (\w+)\[(\d+)\];")
_SCALAR_BYTES = {"float": 4, "half": 2, "int": 4, "uint": 4}
_TEXEL = re.compile(r"\b(set_)?texel(?:_half)?(?:_at)?\(")
_WIDE_BYTES = 16


@dataclass
class Counted:
    """Accesses of one work-item, and the kernel's private arrays that are indexed at run time.

    `loads` are those of up to 128 bits; `texels` of them read images.
    """

    loads: int = 0
    texels: int = 0
    bytes: int = 0
    wide_bytes: int = 0
    image_bytes: int = 0
    run_time_arrays: int = 0


def count(parameters: str, body: str, texel_bytes: int = 16) -> Counted:
    """Count one kernel's source.

    Raises:
        ValueError: a loop's bounds are no literals.
    """
    sizes = {name: _SCALAR_BYTES[kind] * int(lanes or 1) for kind, lanes, name in _PARAMETER.findall(parameters)}
    counted = Counted()
    private: set[str] = set()
    turns: list[int] = []
    for line in body.splitlines():
        if declared := _PRIVATE.match(line):
            private.add(declared[1])
            continue
        if "for (" in line:
            bounds = _LOOP.search(line)
            if bounds is None:
                raise ValueError(f"expected a loop of literal bounds, got {line.strip()!r}")
            turns.append(int(bounds[2]) - int(bounds[1]))
            continue
        opened, closed = line.count("{"), line.count("}")
        # A branch is a level of one turn; `} else {` closes one and opens another.
        del turns[len(turns) - min(closed, len(turns)) :]
        times = 1
        for level in turns:
            times *= level
        turns += [1] * opened
        stored = line.split("=")[0]
        for name, size in sizes.items():
            for access in re.finditer(rf"\b{name}\[|vload\d+\(.*?\b{name}\b|vstore\d+\(.*?\b{name}\b", line):
                width = size
                if vector := re.match(r"v(?:load|store)(\d+)", access[0]):
                    width = size * int(vector[1])
                counted.bytes += width * times
                counted.wide_bytes += width * times if width >= _WIDE_BYTES else 0
                is_store = access[0].startswith("vstore") or stored.strip().startswith(f"{name}[")
                counted.loads += 0 if is_store else -(-width // _WIDE_BYTES) * times
        for texel in _TEXEL.finditer(line):
            counted.bytes += texel_bytes * times
            counted.image_bytes += texel_bytes * times
            counted.loads += 0 if texel[1] else times
            counted.texels += 0 if texel[1] else times
        for name in private:
            indices = re.findall(rf"\b{name}\[([^\]]*)\]", line)
            counted.run_time_arrays += any(not index.strip().isdigit() for index in indices)
    return counted


def report(schedules: str, model: Path, folder: Path, dtype: str) -> None:
    """Compile with one set of schedules and print what was counted."""
    out = folder / f"{schedules}.clbundle"
    bundle = compile_onnx(model, out, target="adreno-640", dtype=dtype, schedules=schedules).path  # type: ignore[arg-type]
    plan = read_bundle(bundle).plan
    texel_bytes = 16 if dtype == "float32" else 8
    sources = KERNEL.findall((bundle / "kernels.cl").read_text())
    kernels = {name: count(*rest, texel_bytes) for name, *rest in sources}
    total = wide = images = 0
    ratios: list[tuple[float, str]] = []
    print(f"\n{schedules}: {len(plan.launches)} launches")
    for launch in plan.launches:
        items = 1
        for size in launch.global_size:
            items *= size
        found = kernels[launch.kernel]
        total += found.bytes * items
        wide += found.wide_bytes * items
        images += found.image_bytes * items
        # The stem's three input channels and the dense layer are not what the target is about.
        if launch.flops > 4e6 and found.loads:
            ratio = launch.flops / 2 / (found.loads * items)
            ratios.append((ratio, launch.layer))
            print(f"  {launch.layer:<34}{ratio:>8.2f} multiply-adds per load of up to 128 bits")
    arrays = sum(counted.run_time_arrays > 0 for counted in kernels.values())
    print(f"  lowest: {min(ratios)[0]:.2f} ({min(ratios)[1]}); target at least 8")
    print(
        f"  global bytes through images or 128-bit accesses: {100 * (images + wide) / total:.1f} % "
        f"({100 * images / total:.1f} % images); target at least 90 %"
    )
    print(f"  kernels with private arrays indexed at run time: {arrays}; target 0")
    print(f"  launches: {len(plan.launches)}; target at most 20")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=PRECISIONS)
    dtype = parser.parse_args().dtype
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # torch.onnx warns about the absence of torchvision and about its own use of deprecated functions.
        warnings.simplefilter("ignore")
        model = Path(scratch) / "resnet18.onnx"
        torch.onnx.export(
            cifar_resnet18(64).eval(), (torch.zeros(1, 3, 32, 32),), str(model), dynamo=True, verbose=False
        )
        report("structadmm", model, Path(scratch), dtype)
        if dtype == "float32":
            report("upstream", model, Path(scratch), dtype)


if __name__ == "__main__":
    main()
