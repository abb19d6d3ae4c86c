"""Decoders, whose transposed convolutions are ordinary ones and a rearrangement, on every OpenCL device at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from device.runner_client import Runner
from tests.compile.onnx_models import conv, save, weights
from tvm_build.compile import compile_onnx


def decoder(path: Path) -> Path:
    """Three ways to twice the size, with a bias, a BatchNorm, an activation, and a skip connection behind them."""
    nodes = [
        conv("stem", "x", "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("ConvTranspose", ["b", "up1.weight", "up1.bias"], ["c"], name="up1", strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "s", "t", "m", "v"], ["d"], name="norm"),
        helper.make_node("Relu", ["d"], ["e"], name="relu1"),
        helper.make_node("Concat", ["e", "x"], ["f"], name="skip", axis=1),
        helper.make_node(
            "ConvTranspose", ["f", "up2.weight"], ["g"], name="up2",
            strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1],
        ),
        helper.make_node("HardSwish", ["g"], ["h"], name="swish"),
        helper.make_node(
            "ConvTranspose", ["h", "up3.weight", "up3.bias"], ["i"], name="up3", strides=[2, 1], pads=[1, 0, 1, 1]
        ),
        helper.make_node("ConvTranspose", ["i", "same.weight"], ["j"], name="same", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["j"], ["y"], name="sigmoid"),
    ]  # fmt: skip
    constants = {
        "stem.weight": weights(10, 3, 3, 3),
        "up1.weight": weights(10, 7, 2, 2, seed=1),
        "up1.bias": weights(7, seed=2),
        "s": 1 + weights(7, seed=3) / 4,
        "t": weights(7, seed=4),
        "m": weights(7, seed=5),
        "v": np.abs(weights(7, seed=6)) + 0.5,
        "up2.weight": weights(10, 6, 3, 3, seed=7),
        "up3.weight": weights(6, 5, 4, 2, seed=8),
        "up3.bias": weights(5, seed=9),
        "same.weight": weights(5, 2, 3, 3, seed=10),
    }
    return save(path, nodes, {"x": (1, 3, 12, 10)}, ["y"], constants)


@pytest.mark.parametrize(
    ("target", "dtype", "memory"),
    [
        ("opencl-cpu", "float32", "auto"),
        ("adreno-640", "float32", "auto"),
        ("adreno-640", "float32", "image"),
        ("adreno-640", "float16", "auto"),
    ],
)
def test_a_decoder_computes_what_onnx_runtime_computes_in_kernels_of_ours(
    runner: Runner, target: str, dtype: str, memory: str, tmp_path: Path
) -> None:
    path = decoder(tmp_path / "n.onnx")
    summary = compile_onnx(path, tmp_path / "n.clbundle", target=target, dtype=dtype, memory=memory)
    kernels = [launch.kernel for launch in summary.explanation.launches]
    assert sum("interleave" in kernel for kernel in kernels) == 3
    # Biases, normalisation and activations run in the convolutions: two launches for each, one with stride 1.
    assert sum("conv2d" in kernel for kernel in kernels) == 5
    others = [kernel for kernel in kernels if not any(word in kernel for word in ("interleave", "conv2d"))]
    assert all(any(word in kernel for word in ("pack", "concat")) for kernel in others), others
    if dtype == "float32" or runner.info()[0].fp16:
        assert runner.check(summary.path).passed


def test_groups_and_results_that_leave_pixels_out_are_left_to_tvm(runner: Runner, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "a.weight"], ["a"], name="a", strides=[2, 2], group=2),
        helper.make_node("ConvTranspose", ["a", "b.weight"], ["y"], name="b", strides=[2, 2], pads=[2, 2, 2, 2]),
    ]
    constants = {"a.weight": weights(4, 3, 2, 2), "b.weight": weights(6, 2, 1, 1, seed=1)}
    path = save(tmp_path / "n.onnx", nodes, {"x": (1, 4, 5, 6)}, ["y"], constants)
    summary = compile_onnx(path, tmp_path / "n.clbundle", target="opencl-cpu")
    assert not any("interleave" in launch.kernel for launch in summary.explanation.launches)
    assert runner.check(summary.path).passed
