"""Networks along one axis: each layer is that of an image of one row, on every OpenCL device at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from device.runner_client import Runner
from tests.compile.onnx_models import conv, save, weights
from tvm_build.compile import compile_onnx


def classifier(path: Path) -> Path:
    """Strided, dilated, grouped and depthwise convolutions, normalisation, pools, a sum and a concatenation."""
    make = helper.make_node
    nodes = [
        conv("stem", "x", "a", bias=True, strides=[2], pads=[4, 3]),
        make("BatchNormalization", ["a", "s", "t", "m", "v"], ["b"], name="norm"),
        make("Relu", ["b"], ["c"], name="relu"),
        make("MaxPool", ["c"], ["d"], name="max", kernel_shape=[3], strides=[2], pads=[1, 1]),
        conv("left", "d", "e", dilations=[2], pads=[2, 2]),
        make("Add", ["d", "e"], ["f"], name="sum"),
        make("Relu", ["f"], ["g"], name="relu1"),
        conv("grouped", "g", "h", group=2, pads=[1, 1]),
        make("AveragePool", ["h"], ["i"], name="average", kernel_shape=[3], pads=[1, 1]),
        make("Concat", ["i", "g"], ["j"], name="concat", axis=1),
        conv("deep", "j", "k", group=16, pads=[1, 1]),
        make("HardSwish", ["k"], ["l"], name="swish"),
        make("GlobalAveragePool", ["l"], ["n"], name="mean"),
        make("Flatten", ["n"], ["o"], name="flatten"),
        make("Gemm", ["o", "fc.weight"], ["y"], name="fc", transB=1),
    ]
    constants = {
        "stem.weight": weights(10, 3, 8),
        "stem.bias": weights(10, seed=1),
        "s": 1 + weights(10, seed=2) / 4,
        "t": weights(10, seed=3),
        "m": weights(10, seed=4),
        "v": np.abs(weights(10, seed=5)) + 0.5,
        "left.weight": weights(10, 10, 3, seed=6),
        "grouped.weight": weights(6, 5, 3, seed=7),
        "deep.weight": weights(16, 1, 3, seed=8),
        "fc.weight": weights(5, 16, seed=9),
    }
    return save(path, nodes, {"x": (2, 3, 50)}, ["y"], constants)


@pytest.mark.parametrize(
    ("target", "memory"), [("opencl-cpu", "auto"), ("adreno-640", "auto"), ("adreno-640", "image")]
)
def test_a_network_along_one_axis_computes_what_onnx_runtime_computes_in_kernels_of_ours(
    runner: Runner, target: str, memory: str, tmp_path: Path
) -> None:
    summary = compile_onnx(classifier(tmp_path / "n.onnx"), tmp_path / "n.clbundle", target=target, memory=memory)
    kernels = [launch.kernel for launch in summary.explanation.launches]
    ours = ("pack", "conv2d", "depthwise", "pool", "concat", "dense", "elementwise", "average")
    assert not [kernel for kernel in kernels if not any(word in kernel for word in ours)], kernels
    # Bias, normalisation, sums and activations are joined, and nothing is unpacked in between.
    assert len(kernels) == 9, kernels
    assert runner.check(summary.path).passed


def test_outputs_of_three_dimensions_are_plain_again_and_what_is_not_convolved_stays_with_tvm(
    runner: Runner, tmp_path: Path
) -> None:
    nodes = [
        conv("c", "x", "a", pads=[1, 1]),
        helper.make_node("Transpose", ["a"], ["b"], name="swap", perm=[0, 2, 1]),
        helper.make_node("Add", ["b", "offset"], ["y"], name="add"),
        helper.make_node("Relu", ["x"], ["p"], name="relu"),
        helper.make_node("Sigmoid", ["a"], ["z"], name="sigmoid"),
    ]
    constants = {"c.weight": weights(6, 3, 3), "offset": weights(1, 7, 1)}
    path = save(tmp_path / "n.onnx", nodes, {"x": (1, 3, 7)}, ["y", "z", "p"], constants)
    summary = compile_onnx(path, tmp_path / "n.clbundle", target="opencl-cpu")
    assert runner.check(summary.path).passed
