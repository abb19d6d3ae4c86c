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


REVERSE_ADD = """
__kernel void reverse_add(__read_only image1d_buffer_t x, __read_only image1d_buffer_t w, __global float4 *y,
                          int texels) {
  int i = get_global_id(0);
  y[i] = read_imagef(x, texels - 1 - i).wzyx + read_imagef(w, i);
}
"""


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
    version: int = 1,
) -> dict[str, bytes]:
    """All files of a bundle except SHA256SUMS. `plan_body` holds the memory, input and output lines."""
    lines = [f"structadmm-plan {version}", "target test-device", "dtype float32", *plan_body]
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


def part_files() -> dict[str, bytes]:
    """All activations in parts of one buffer: one shows what was written through another, and is overwritten last."""
    x = np.random.default_rng(0).standard_normal(512, dtype=np.float32)
    w = np.full(512, 0.5, np.float32)
    # Exact: sums of a float32 and a few halves would round, halves alone do not.
    x = np.round(x * 8) / np.float32(8)
    first = x + 0.5
    last = np.maximum(first[128:384] + 0.5 + 1, 0)
    return bundle_files(
        [
            "buffer 0 8192",
            "part 1 0 0 2048",
            "part 2 0 2048 2048",
            "part 3 0 2560 1024",
            "part 4 0 4096 1024",
            "part 5 0 2048 1024",
            "constant 6 2048 0",
            "input 1 float32 1 512 x",
            "output 5 float32 1 256 y",
        ],
        [Program(SCALE_ADD), Program(RELU)],
        [x],
        [last.astype(np.float32)],
        weights=w.tobytes(),
        tolerance=0,
        launches=[
            "launch 0 scale_add 1 512 0 0 0 whole 5 m1 m6 m2 f1.0 i0",
            "launch 0 scale_add 1 256 0 0 0 middle 5 m3 m6 m4 f1.0 i1",
            "launch 1 relu 1 256 0 0 0 over 2 m4 m5",
        ],
        version=2,
    )


def image_of_buffer_files() -> dict[str, bytes]:
    """Images of a part, of a whole buffer and of a constant, and a part that is overwritten after it was read."""
    x = np.round(np.random.default_rng(0).standard_normal(512, dtype=np.float32) * 8) / np.float32(8)
    w = np.arange(512, dtype=np.float32)
    first = x + w  # part 2, read through image 6
    second = first[:256][::-1] + w[:256]  # buffer 4, read through image 7
    last = second[:240][::-1] + w[:240]
    return bundle_files(
        [
            "buffer 0 8192",
            "part 1 0 0 2048",
            "part 2 0 2048 2048",
            "part 3 0 2560 1024",
            "buffer 4 1024",
            "constant 5 2048 0",
            "image1d_buffer 6 2 128 rgba_float",
            "image1d_buffer 7 4 60 rgba_float",
            "image1d_buffer 8 5 128 rgba_float",
            "input 1 float32 1 512 x",
            "output 3 float32 1 240 y",
        ],
        [Program(SCALE_ADD), Program(REVERSE_ADD)],
        [x],
        [last.astype(np.float32)],
        weights=w.tobytes(),
        tolerance=0,
        launches=[
            "launch 0 scale_add 1 512 0 0 0 write 5 m1 m5 m2 f1.0 i0",
            "launch 1 reverse_add 1 64 0 0 0 part 4 m6 m8 m4 i64",
            "launch 1 reverse_add 1 60 0 0 0 whole 4 m7 m8 m3 i60",
        ],
        version=3,
    )
