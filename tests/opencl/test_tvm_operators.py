"""Operators without a kernel of ours: TVM's, as launches of a plan, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from device.runner_client import Runner
from device.target import open_target
from tests.compile.onnx_models import Array, conv, save, weights
from tvm_build.compile import compile_onnx


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    target = open_target("local")
    yield Runner(target)
    target.close()


def assert_agrees(runner: Runner, path: Path, inputs: list[Array]) -> None:
    bundle = path.with_suffix(".clbundle")
    compile_onnx(path, bundle, target="opencl-cpu")
    runner.check(bundle)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    expected = session.run(None, dict(zip(names, inputs, strict=True)))
    for name, got, wanted in zip(outputs, runner.run(bundle, inputs).outputs, expected, strict=True):
        # One or two operators deep: float32 rounding, and exp, erf and pow that are off by a few last-place units.
        scale = max(float(np.abs(wanted).max()), 1e-3)
        assert np.abs(got.reshape(wanted.shape) - wanted).max() <= 1e-5 * scale, name


def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes)


def test_data_movement_reductions_and_arithmetic(runner: Runner, tmp_path: Path) -> None:
    constants: dict[str, Array] = {
        "last": np.array([-1], np.int64),
        "rows": np.array([2], np.int64),
        "starts": np.array([3, 1], np.int64),
        "ends": np.array([0, 100], np.int64),
        "axes": np.array([1, 2], np.int64),
        "steps": np.array([-1, 2], np.int64),
        "repeats": np.array([1, 2, 1, 1], np.int64),
        "sizes": np.array([1, 6, 9, 5], np.int64),
        "double": np.array([1, 1, 2, 2], np.float32),
        "picks": np.array([4, 0, 0], np.int64),
        "slope": weights(6, 1, 1),
        "two": np.array(2.0, np.float32),
        "half": np.array(0.5, np.float32),
        "edges": np.array([0, 1, 2, 0, 0, 0, 1, 3], np.int64),
        "matrix": weights(7, 3),
        "norm_scale": weights(7, seed=2),
        "channel_scale": weights(6, seed=3),
    }
    nodes = [
        node("Softmax", ["x"], "softmax_channels", axis=1),
        node("Softmax", ["x"], "softmax_last", axis=-1),
        node("Transpose", ["x"], "transposed", perm=[0, 2, 3, 1]),
        node("Slice", ["x", "starts", "ends", "axes", "steps"], "sliced_backwards"),
        node("Tile", ["x", "repeats"], "tiled"),
        node("Resize", ["x", "", "", "sizes"], "nearest", mode="nearest"),
        node("Resize", ["x", "", "double"], "bilinear", mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Gather", ["x", "picks"], "gathered", axis=1),
        node("PRelu", ["x", "slope"], "prelu"),
        node("Pad", ["x", "edges"], "reflected", mode="reflect"),
        node("Pad", ["x", "edges", "half"], "padded_with_a_half"),
        node("ReduceMax", ["x", "rows"], "largest", keepdims=0),
        node("ReduceSum", ["x", "last"], "summed", keepdims=1),
        node("ReduceMean", ["x"], "mean_of_everything", keepdims=1),
        node("Abs", ["x"], "magnitude"),
        node("Pow", ["magnitude", "half"], "root"),
        node("Erf", ["x"], "erf"),
        node("Elu", ["x"], "elu"),
        node("MatMul", ["x", "matrix"], "batched_matmul"),
        node("LayerNormalization", ["x", "norm_scale"], "layer_norm", axis=-1),
        node("InstanceNormalization", ["x", "channel_scale", "channel_scale"], "instance_norm"),
        node("ArgMax", ["x"], "argmax", axis=1),
        node("Cast", ["argmax"], "largest_channel", to=TensorProto.FLOAT),
        node("Greater", ["x", "half"], "above"),
        node("Where", ["above", "x", "two"], "where"),
        node("DepthToSpace", ["tiled"], "depth_to_space", blocksize=2),
        node("LRN", ["x"], "lrn", size=3),
        node("ReduceL2", ["x", "last"], "norm", keepdims=1),
        node("Div", ["x", "norm"], "normalised"),
    ]
    hidden = {"argmax", "above", "magnitude"}
    outputs = [item.output[0] for item in nodes if item.output[0] not in hidden]
    path = save(tmp_path / "many.onnx", nodes, {"x": [1, 6, 5, 7]}, outputs, constants)
    assert_agrees(runner, path, [np.random.default_rng(3).standard_normal((1, 6, 5, 7), dtype=np.float32)])


def test_convolutions_in_other_dimensions_and_forms(runner: Runner, tmp_path: Path) -> None:
    constants = {
        "line.weight": weights(4, 3, 3),
        "up.weight": weights(3, 4, 3, 3, seed=1),
        "up.bias": weights(4, seed=2),
        "grouped_up.weight": weights(4, 2, 2, 2, seed=3),
        "first.weight": weights(4, 3, 3, 3, seed=4),
    }
    shape = np.array([1, 3, 48], np.int64)
    nodes = [
        node("Reshape", ["x", "line_shape"], "line"),
        node("Conv", ["line", "line.weight"], "conv1d", pads=[1, 1]),
        node("ConvTranspose", ["x", "up.weight", "up.bias"], "transposed", strides=[2, 2], output_padding=[1, 1]),
        conv("first", "x", "blocks", pads=[1, 1, 1, 1]),
        node("ConvTranspose", ["blocks", "grouped_up.weight"], "grouped_transposed", strides=[2, 2], group=2),
        node("AveragePool", ["blocks"], "ceiling_average", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        node("GlobalMaxPool", ["blocks"], "global_max"),
    ]
    outputs = ["conv1d", "transposed", "grouped_transposed", "ceiling_average", "global_max"]
    path = save(tmp_path / "forms.onnx", nodes, {"x": [1, 3, 6, 8]}, outputs, {**constants, "line_shape": shape})
    assert_agrees(runner, path, [np.random.default_rng(4).standard_normal((1, 3, 6, 8), dtype=np.float32)])


def test_several_inputs_an_input_that_is_an_output_and_a_view_of_one(runner: Runner, tmp_path: Path) -> None:
    nodes = [
        node("Mul", ["a", "b"], "product"),
        node("Identity", ["a"], "same"),
        node("Flatten", ["b"], "flat"),
        node("Softmax", ["product"], "soft", axis=1),
        node("Reshape", ["soft", "shape"], "reshaped"),
    ]
    constants = {"shape": np.array([3, 2, 20], np.int64)}
    inputs = {"a": [1, 6, 4, 5], "b": [1, 6, 4, 5]}
    path = save(tmp_path / "ports.onnx", nodes, inputs, ["product", "same", "flat", "reshaped", "soft"], constants)
    generator = np.random.default_rng(5)
    assert_agrees(runner, path, [generator.standard_normal((1, 6, 4, 5), dtype=np.float32) for _ in range(2)])


def test_what_follows_a_reduction_over_one_element_is_computed_once(runner: Runner, tmp_path: Path) -> None:
    """TVM drops such a loop; fused into it, a bias was added twice."""
    constants = {
        "line.weight": weights(5, 1, 1),
        "line.bias": weights(5, seed=1),
        "up.weight": weights(1, 4, 1, 1, seed=2),
        "up.bias": weights(4, seed=3),
        "outer": weights(1, 6, seed=4),
        "offset": weights(6, seed=5),
        "channel": np.array([1], np.int64),
        "shape": np.array([1, 1, 30], np.int64),
        "column": np.array([30, 1], np.int64),
        "two": np.array(2.0, np.float32),
    }
    nodes = [
        node("Reshape", ["x", "shape"], "flat"),
        node("Conv", ["flat", "line.weight", "line.bias"], "line"),
        node("Tanh", ["line"], "squashed"),
        node("ConvTranspose", ["x", "up.weight", "up.bias"], "up"),
        node("Reshape", ["x", "column"], "rows"),
        node("MatMul", ["rows", "outer"], "product"),
        node("Add", ["product", "offset"], "shifted"),
        node("ReduceMean", ["x", "channel"], "mean"),
        node("Add", ["mean", "two"], "raised"),
    ]
    path = save(tmp_path / "ones.onnx", nodes, {"x": [1, 1, 5, 6]}, ["squashed", "up", "shifted", "raised"], constants)
    assert_agrees(runner, path, [np.random.default_rng(6).standard_normal((1, 1, 5, 6), dtype=np.float32)])


def test_an_operator_may_read_one_tensor_twice(runner: Runner, tmp_path: Path) -> None:
    nodes = [
        node("Gemm", ["x", "fc.weight"], "features", transB=1),
        node("Mul", ["features", "features"], "squares"),
        node("Exp", ["features"], "powers"),
        node("Div", ["powers", "powers"], "ones"),
    ]
    path = save(tmp_path / "twice.onnx", nodes, {"x": [2, 6]}, ["squares", "ones"], {"fc.weight": weights(5, 6)})
    assert_agrees(runner, path, [np.random.default_rng(7).standard_normal((2, 6), dtype=np.float32)])


def test_bounds_and_slopes_that_are_not_the_usual_ones(runner: Runner, tmp_path: Path) -> None:
    constants = {"one": np.array(1.0, np.float32), "minus": np.array(-1.0, np.float32), "c.weight": weights(4, 4, 1, 1)}
    nodes = [
        conv("c", "x", "y"),
        node("Clip", ["y", "one", "minus"], "upper_bound"),
        node("HardSigmoid", ["y"], "swapped", alpha=0.5, beta=1 / 6),
        node("HardSigmoid", ["y"], "default"),
        node("HardSigmoid", ["y"], "pytorch", alpha=1 / 6, beta=0.5),
    ]
    path = save(tmp_path / "c.onnx", nodes, {"x": [1, 4, 5, 6]}, [n.output[0] for n in nodes[1:]], constants)
    assert_agrees(runner, path, [3 * np.random.default_rng(8).standard_normal((1, 4, 5, 6), dtype=np.float32)])


@pytest.mark.parametrize("scale", [2.0, 0.5, 1.5])
def test_a_resize_by_scales_with_whole_results(runner: Runner, tmp_path: Path, scale: float) -> None:
    constants = {"scales": np.array([1, 1, scale, scale], np.float32)}
    nodes = [
        node("Resize", ["x", "", "scales"], "linear", mode="linear"),
        node("Resize", ["x", "", "scales"], "nearest", mode="nearest", coordinate_transformation_mode="asymmetric"),
    ]
    path = save(tmp_path / "r.onnx", nodes, {"x": [1, 3, 4, 6]}, ["linear", "nearest"], constants)
    assert_agrees(runner, path, [np.random.default_rng(9).standard_normal((1, 3, 4, 6), dtype=np.float32)])


def test_sizes_beside_scales_without_elements(runner: Runner, tmp_path: Path) -> None:
    constants = {"none": np.zeros(0, np.float32), "sizes": np.array([1, 3, 9, 5], np.int64)}
    nodes = [node("Resize", ["x", "none", "none", "sizes"], "y", mode="linear")]
    path = save(tmp_path / "r.onnx", nodes, {"x": [1, 3, 4, 6]}, ["y"], constants, opset=11)
    assert_agrees(runner, path, [np.random.default_rng(10).standard_normal((1, 3, 4, 6), dtype=np.float32)])
