"""Where tensors lie: images and buffers of whole networks, and the forms of convolution that go with them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from structadmm.errors import UserError
from tests.compile.onnx_models import conv, save, weights
from tvm_build import gpu as gpus
from tvm_build.bundle import read_bundle
from tvm_build.compile import compile_onnx
from tvm_build.gpu import gpu_by_name
from tvm_build.launch_plan import Buffer, ConstantImage2d, Image2d, Part
from tvm_build.network import Node
from tvm_build.ops import Conv2d
from tvm_build.precision import PRECISIONS
from tvm_build.storage import assign_memory
from tvm_build.winograd import best_tile, is_able, split_node

ADRENO = gpu_by_name("adreno-640")


def network(path: Path, channels: int = 16, size: int = 20) -> Path:
    nodes = [
        conv("a", "x", "t", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["t"], ["u"], name="relu"),
        conv("b", "u", "v", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["u", "v"], ["w"], name="add"),
        conv("c", "w", "y", strides=[2, 2]),
    ]
    constants = {
        "a.weight": weights(channels, 3, 3, 3),
        "b.weight": weights(channels, channels, 3, 3),
        "c.weight": weights(10, channels, 1, 1),
    }
    return save(path, nodes, {"x": (1, 3, size, size)}, ["y"], constants)


def test_an_adreno_gets_images_and_a_cpu_buffers_unless_asked(tmp_path: Path) -> None:
    model = network(tmp_path / "net.onnx")
    for target, memory, expected in (
        ("adreno-640", "auto", True),
        ("adreno-640", "buffer", False),
        ("opencl-cpu", "auto", False),
        ("opencl-cpu", "image", True),
    ):
        plan = read_bundle(compile_onnx(model, tmp_path / "n.clbundle", target=target, memory=memory).path).plan
        assert any(isinstance(m, Image2d) for m in plan.memory) == expected
        # Weights need not follow where both caches have something to do.
        assert memory == "auto" or expected == any(isinstance(m, ConstantImage2d) for m in plan.memory)
        # Inputs and outputs are buffers in any case.
        assert all(isinstance(plan.memory[end.memory], Buffer | Part) for end in (*plan.inputs, *plan.outputs))


def test_images_take_the_format_of_what_is_stored(tmp_path: Path) -> None:
    model = network(tmp_path / "net.onnx")
    for dtype, image_format in (("float32", "rgba_float"), ("float16", "rgba_half"), ("float16_float32", "rgba_half")):
        bundle = compile_onnx(model, tmp_path / "n.clbundle", dtype=dtype, memory="image").path
        images = [m for m in read_bundle(bundle).plan.memory if isinstance(m, Image2d | ConstantImage2d)]
        assert {image.format for image in images} == {image_format}


def test_what_is_too_large_for_an_image_lies_in_a_buffer_and_the_explanation_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 16 channels of 20 rows are 80 lines; a weight line of the second convolution has 144 texels and more.
    monkeypatch.setitem(gpus.GPUS, "adreno-640", replace(ADRENO, image_max=79))
    summary = compile_onnx(network(tmp_path / "net.onnx"), tmp_path / "n.clbundle", memory="image")
    first, second = (
        launch for launch in summary.explanation.launches if "conv2d" in launch.kernel and launch.flops > 1e5
    )
    assert "output in a buffer: 20 x 80 texels, adreno-640 takes 79" in first.fallbacks
    assert any(re.match("weights in a buffer: .* adreno-640 takes 79", line) for line in second.fallbacks)
    # What fits still is an image: the packed input has 20 lines.
    assert "input0" in first.memory
    assert second.memory == ""


def test_an_unknown_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected memory auto, buffer, image, got 'texture'"):
        compile_onnx(network(tmp_path / "net.onnx"), tmp_path / "n.clbundle", memory="texture")


def test_winograd_is_for_large_dense_layers_and_its_large_tile_for_float32() -> None:
    large = Conv2d(1, 64, 56, 56, 64, (3, 3), padding=(1, 1, 1, 1))
    assert is_able(large)
    assert best_tile(large, ADRENO, PRECISIONS["float32"]) == 4
    assert best_tile(replace(large, in_channels=128, out_channels=128), ADRENO, PRECISIONS["float16"]) in (2, None)
    few = replace(large, in_height=8, in_width=8)
    assert best_tile(few, ADRENO, PRECISIONS["float32"]) is None
    assert not any(
        is_able(op)
        for op in (
            replace(large, stride=(2, 2)),
            replace(large, dilation=(2, 2)),
            replace(large, groups=64),
            replace(large, columns=(0, 1, 2)),
            replace(large, kernel=(1, 1)),
        )
    )


@pytest.mark.parametrize("tile", [2, 4])
def test_a_split_convolution_keeps_its_inputs_outputs_and_bias(tile: int) -> None:
    op = Conv2d(2, 6, 9, 10, 5, (3, 3), padding=(1, 0, 1, 1), activation="relu", has_residual=True)
    constants = {"weight": weights(5, 6, 3, 3), "bias": np.arange(5, dtype=np.float32)}
    (forward, product, back), (tiles, sums) = split_node(Node("c", op, ("x", "r"), ("y",), constants), tile)
    assert (forward.inputs, product.inputs, back.inputs) == (("x",), (tiles.name,), (sums.name, "r"))
    assert back.outputs == ("y",)
    assert back.constants["bias"] is constants["bias"]
    elements = (tile + 2) ** 2
    assert tiles.shape == (2 * elements, 6, -(-9 // tile), -(-9 // tile))
    assert product.constants["weight"].shape == (elements * 5, 6, 1, 1)


def test_every_operator_agrees_on_where_a_tensor_lies(tmp_path: Path) -> None:
    from tvm_build.fuse import fuse
    from tvm_build.import_onnx import import_onnx
    from tvm_build.layout import assign_layouts
    from tvm_build.recognize import recognize
    from tvm_build.storage import roles

    laid_out = assign_layouts(fuse(recognize(import_onnx(network(tmp_path / "net.onnx"))), ADRENO))
    placed: dict[str, set[bool]] = {}
    for node in assign_memory(laid_out, ADRENO).nodes:
        for role, name in roles(node).items():
            placed.setdefault(name, set()).add(role in getattr(node.op, "images", ()))
    assert all(len(places) == 1 for places in placed.values())
    assert {True} in placed.values()
    assert {False} in placed.values()
