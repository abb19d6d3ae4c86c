"""The smallest bundle there is, to find out whether an OpenCL device builds a kernel, runs it, and gets it right."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from structadmm.files import write_bytes

_SIZE = 256
_KERNEL = b"""__kernel void probe(__global const float *x, __global float *y) {
  int i = get_global_id(0);
  y[i] = fmax(x[i] * 2.0f - 1.0f, 0.0f);
}
"""
_PLAN = f"""structadmm-plan 1
target any
dtype float32
buffer 0 {4 * _SIZE}
buffer 1 {4 * _SIZE}
input 0 float32 1 {_SIZE} x
output 1 float32 1 {_SIZE} y
sample input 0 input_0.npy
sample output 0 output_0.npy 0
program 0 0 {len(_KERNEL)}
launch 0 probe 1 {_SIZE} 0 {2 * _SIZE} {8 * _SIZE} probe 2 m0 m1
end
"""


def write_probe_bundle(directory: Path) -> Path:
    """Write the bundle into `directory` and return its path.

    Its samples are multiples of 1/8, so that its result is exact in float32 on any device and its tolerance is zero.
    """
    bundle = directory / "probe.clbundle"
    x = np.arange(-_SIZE // 2, _SIZE // 2).astype(np.float32) / np.float32(8)
    files = {
        "plan.txt": _PLAN.encode(),
        "kernels.cl": _KERNEL,
        "weights.bin": b"",
        "manifest.json": b'{"schema": 1, "name": "probe"}\n',
        "input_0.npy": _npy(x),
        "output_0.npy": _npy(np.maximum(x * 2 - 1, 0).astype(np.float32)),
    }
    files["SHA256SUMS"] = "".join(
        f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)
    ).encode()
    for name, content in files.items():
        write_bytes(bundle / name, content)
    return bundle


def _npy(array: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
