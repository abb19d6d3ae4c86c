"""What the network computes according to ONNX Runtime, on a sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from structadmm.errors import UserError

Float32Array = NDArray[np.float32]

# Relative to the largest |output|. Sums of a few thousand products taken in another order differ by 1e-7 to 1e-6 of
# their size in float32, and some tens of layers add such differences up; 1e-4 leaves a factor ten and is still far
# below anything that a wrong kernel produces. Half has 11 bits, so tensors and weights stored in it are off by up to
# 5e-4 each, which sums average out: a factor ten above what networks of twenty layers show is 5e-3. Sums in half may
# lose more the longer they are: 2e-2.
RELATIVE_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "float16_float32": 5e-3}


def sample_inputs(
    inputs: Mapping[str, tuple[int, ...]], given: Mapping[str, NDArray[np.generic]] | None
) -> dict[str, Float32Array]:
    """The sample to ship with a bundle: what the user gave, or seeded normal noise.

    Args:
        inputs: shape of each network input.
        given: arrays by input name, or None.

    Raises:
        UserError: a given array has the wrong name or shape.
    """
    if given is None:
        random = np.random.default_rng(0)
        return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in inputs.items()}
    if set(given) != set(inputs):
        raise UserError(f"expected samples for the inputs {sorted(inputs)}, got {sorted(given)}: name them alike")
    for name, shape in inputs.items():
        if given[name].shape != shape:
            raise UserError(f"sample for input {name!r}: expected shape {list(shape)}, got {list(given[name].shape)}")
    return {name: np.ascontiguousarray(given[name], dtype=np.float32) for name in inputs}


def expected_outputs(path: Path, inputs: Mapping[str, Float32Array]) -> list[Float32Array]:
    """Run an ONNX file in ONNX Runtime on the CPU.

    Raises:
        UserError: ONNX Runtime cannot load or run it, or its output is not finite.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # One thread: results then do not depend on the number of cores, and bundles are the same bytes everywhere.
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        outputs = session.run(None, dict(inputs))
    except Exception as error:
        # onnxruntime's exception classes share no base below Exception.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: ONNX Runtime cannot run it ({reason}): export the network again") from error
    for value in outputs:
        if not np.isfinite(value).all():
            raise UserError(f"{path}: its output is not finite for the sample input: give a sample that it can handle")
    return [np.asarray(value, dtype=np.float32) for value in outputs]


def tolerance(expected: Float32Array, dtype: str) -> float:
    """The largest |difference| that a correct bundle may show on `expected`."""
    scale = float(np.abs(expected).max(initial=0.0))
    return float(f"{RELATIVE_TOLERANCE[dtype] * max(scale, 1e-3):.3g}")
