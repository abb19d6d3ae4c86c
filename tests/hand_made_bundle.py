"""Writes small bundles by hand, independently of `tvm_build`: the runner is tested against the format as documented."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

SCALE_ADD = """
__kernel void scale_add(__global const float *x, __global const float *w, __global float *y, float scale, int shift) {
  int i = get_global_id(0);
  y[i] = x[i] * scale + w[i] + (float)shift;
}
"""
RELU = """
__kernel void relu(__global const float *x, __global float *y) {
  int i = get_global_id(0);
  y[i] = fmax(x[i], 0.0f);
}
"""


def npy_bytes(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def sums_of(files: Mapping[str, bytes]) -> bytes:
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return "".join(lines).encode()


def write_files(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write `files` and the SHA256SUMS that belongs to them."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / "SHA256SUMS").write_bytes(sums_of(files))
    return path


@dataclass(frozen=True)
class Program:
    source: str
    options: str = ""


def bundle_files(
    plan_body: Sequence[str],
    programs: Sequence[Program],
    inputs: Sequence[Array],
    outputs: Sequence[Array],
    weights: bytes = b"",
    tolerance: float = 1e-6,
    launches: Sequence[str] = (),
) -> dict[str, bytes]:
    """All files of a bundle except SHA256SUMS. `plan_body` holds the memory, input and output lines."""
    lines = ["structadmm-plan 1", "target test-device", "dtype float32", *plan_body]
    files: dict[str, bytes] = {}
    for side, arrays in (("input", inputs), ("output", outputs)):
        for k, array in enumerate(arrays):
            lines.append(f"sample {side} {k} {side}_{k}.npy" + (f" {tolerance}" if side == "output" else ""))
            files[f"{side}_{k}.npy"] = npy_bytes(array)
    offset = 0
    for k, program in enumerate(programs):
        size = len(program.source.encode())
        lines.append(f"program {k} {offset} {size} {program.options}".rstrip())
        offset += size
    files["kernels.cl"] = "".join(program.source for program in programs).encode()
    files["weights.bin"] = weights
    files["manifest.json"] = b'{"schema": 1}\n'
    files["plan.txt"] = "\n".join([*lines, *launches, "end", ""]).encode()
    return files


def scale_add_files(size: int = 64, *, scale: float = 2.0, shift: int = -3) -> dict[str, bytes]:
    """Two launches in two programs: y = relu(x * scale + w + shift), with a constant, an int and a float argument."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((1, size), dtype=np.float32)
    w = generator.standard_normal(size, dtype=np.float32)
    y = np.maximum(x * np.float32(scale) + w + np.float32(shift), 0).astype(np.float32)
    return bundle_files(
        [
            f"buffer 0 {4 * size}",
            f"constant 1 {4 * size} 128",
            "# a comment and an empty line",
            "",
            f"buffer 2 {4 * size}",
            f"buffer 3 {4 * size}",
            f"input 0 float32 2 1 {size} x",
            f"output 3 float32 2 1 {size} y",
        ],
        [Program(SCALE_ADD, "-cl-mad-enable"), Program(RELU)],
        [x],
        [y],
        weights=bytes(128) + w.tobytes(),
        launches=[
            f"launch 0 scale_add 1 {size} 16 {3 * size} {12 * size} layer/one 5 m0 m1 m2 f{scale} i{shift}",
            f"launch 1 relu 1 {size} 0 {size} {8 * size} layer/two 2 m2 m3",
        ],
    )
