"""Whole networks on images, and with Winograd's convolutions, on every OpenCL device at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import helper

from device.runner_client import Runner
from tests.compile.onnx_models import conv, save, weights
from tvm_build import storage, winograd
from tvm_build.bundle import read_bundle
from tvm_build.compile import compile_onnx
from tvm_build.launch_plan import Image1dBuffer, Image2d


def network(path: Path) -> Path:
    """Every kind of operator between two image sizes."""
    nodes = [
        conv("stem", "x", "a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        conv("left", "b", "c", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["d"], name="add"),
        conv("wide", "d", "e"),
        conv("deep", "e", "f", pads=[1, 1, 1, 1], group=18),
        helper.make_node("MaxPool", ["f"], ["g"], name="pool", kernel_shape=[3, 3], strides=[2, 2]),
        conv("half", "g", "h", pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["g", "h"], ["i"], name="concat", axis=1),
        helper.make_node("GlobalAveragePool", ["i"], ["j"], name="mean"),
        helper.make_node("Flatten", ["j"], ["k"], name="flatten"),
        helper.make_node("Gemm", ["k", "fc.weight"], ["y"], name="fc", transB=1),
    ]
    constants = {
        "stem.weight": weights(14, 3, 3, 3),
        "left.weight": weights(14, 14, 3, 3, seed=1),
        "wide.weight": weights(18, 14, 1, 1, seed=2),
        "deep.weight": weights(18, 1, 3, 3, seed=3),
        "half.weight": weights(7, 18, 3, 3, seed=4),
        "fc.weight": weights(10, 25, seed=5),
    }
    return save(path, nodes, {"x": (2, 3, 17, 13)}, ["y"], constants)


@pytest.mark.parametrize("bound", [1.0, 1.15, float("inf")])
@pytest.mark.parametrize("target", ["opencl-cpu", "adreno-640"])
def test_a_network_on_images_computes_what_onnx_runtime_computes(
    runner: Runner, target: str, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How much memory images may take decides which of them are images of buffers.
    monkeypatch.setattr(storage, "MEMORY_BOUND", bound)
    bundle = compile_onnx(network(tmp_path / "n.onnx"), tmp_path / "n.clbundle", target=target, memory="image").path
    plan = read_bundle(bundle).plan
    kinds = {type(item) for item in plan.memory}
    assert (Image2d in kinds, Image1dBuffer in kinds) == (bound > 1, bound < float("inf"))
    # Fills images with NaN first: nothing is read that was not written, nor what lies beside a row.
    assert runner.check(bundle).passed


def joined(path: Path) -> Path:
    """A concatenation whose last input ends within a block and shares its image with a taller tensor."""
    nodes, constants = [conv("stem", "x", "skip", pads=[1, 1, 1, 1])], {"stem.weight": weights(31, 8, 3, 3)}
    for number in range(3):
        nodes.append(conv(f"branch{number}", "skip", f"part{number}", pads=[1, 1, 1, 1]))
        constants[f"branch{number}.weight"] = weights(9, 31, 3, 3, seed=number)
    nodes += [
        helper.make_node("Concat", ["part0", "part1", "part2", "skip"], ["all"], name="concat", axis=1),
        conv("tall", "all", "t", pads=[1, 1, 1, 1]),
        conv("tall2", "t", "u", pads=[1, 1, 1, 1]),
        conv("last", "u", "y"),
    ]
    constants |= {
        "tall.weight": weights(256, 58, 3, 3, seed=4),
        "tall2.weight": weights(256, 256, 3, 3, seed=5),
        "last.weight": weights(4, 256, 1, 1, seed=6),
    }
    return save(path, nodes, {"x": (1, 8, 14, 14)}, ["y"], constants)


@pytest.mark.parametrize("memory", ["auto", "image"])
def test_a_concatenation_reads_nothing_below_the_last_line_of_an_image(
    runner: Runner, memory: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "n.clbundle"
    summary = compile_onnx(joined(tmp_path / "n.onnx"), bundle, target="adreno-640", memory=memory)
    [place] = [item.memory for item in summary.lowered if item.layer == "concat"]
    assert "image" in place
    # What the image holds there is NaN, which would reach the output through a weight of zero.
    assert runner.check(bundle).passed


@pytest.mark.parametrize("target", ["opencl-cpu", "adreno-640"])
def test_a_convolution_whose_taps_all_lie_in_the_padding_compiles(runner: Runner, target: str, tmp_path: Path) -> None:
    nodes = [conv("c", "x", "y", bias=True, pads=[1, 0, 3, 0], dilations=[2, 1])]
    constants = {"c.weight": weights(8, 4, 3, 1), "c.bias": weights(8, seed=1)}
    path = save(tmp_path / "n.onnx", nodes, {"x": (1, 4, 1, 8)}, ["y"], constants)
    for memory in ("auto", "image"):
        bundle = tmp_path / f"{memory}.clbundle"
        compile_onnx(path, bundle, target=target, memory=memory)
        assert runner.check(bundle).passed


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_network_of_winograd_convolutions_computes_what_onnx_runtime_computes(
    runner: Runner, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rule picks layers that take a CPU too long; what it picks is tested elsewhere.
    monkeypatch.setattr(winograd, "best_tile", lambda op, _, precision: _forced(op, precision.storage))
    summary = compile_onnx(network(tmp_path / "n.onnx"), tmp_path / "n.clbundle", target="adreno-640", dtype=dtype)
    assert sum("winograd" in launch.kernel for launch in summary.explanation.launches) == 6
    if dtype == "float32" or runner.info()[0].fp16:
        assert runner.check(summary.path).passed


def _forced(op: winograd.Conv2d, storage: str) -> int | None:
    if not winograd.is_able(op):
        return None
    return 4 if storage == "float32" else 2
