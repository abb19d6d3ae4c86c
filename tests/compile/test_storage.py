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
from tvm_build import storage
from tvm_build.bundle import read_bundle
from tvm_build.compile import compile_onnx, plan_onnx
from tvm_build.fuse import fuse
from tvm_build.gpu import gpu_by_name, with_memory
from tvm_build.import_onnx import import_onnx
from tvm_build.launch_plan import Buffer, ConstantImage2d, Image1dBuffer, Image2d, MemoryArgument, Part
from tvm_build.layout import assign_layouts
from tvm_build.memory_plan import largest_live_bytes, lives
from tvm_build.network import Generic, Node
from tvm_build.ops import Conv2d
from tvm_build.precision import PRECISIONS
from tvm_build.recognize import recognize
from tvm_build.storage import MEMORY_BOUND, assign_memory, roles
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
    # What does not can be read as an image of a buffer still.
    assert second.memory == "images of buffers: input0, residual"
    monkeypatch.setitem(gpus.GPUS, "adreno-640", replace(ADRENO, image_max=79, image_buffer_max=1599))
    summary = compile_onnx(network(tmp_path / "net.onnx"), tmp_path / "n.clbundle", memory="image")
    second = [launch for launch in summary.explanation.launches if "conv2d" in launch.kernel and launch.flops > 1e5][1]
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
    laid_out = assign_layouts(fuse(recognize(import_onnx(network(tmp_path / "net.onnx"))), ADRENO))
    for gpu in (ADRENO, with_memory(ADRENO, "image")):
        placed: dict[str, set[bool]] = {}
        viewed = set()
        for node in assign_memory(laid_out, gpu).nodes:
            for role, name in roles(node).items():
                placed.setdefault(name, set()).add(role in getattr(node.op, "images", ()))
                if role in getattr(node.op, "views", ()):
                    assert role != "output"
                    viewed.add(name)
        assert all(len(places) == 1 for places in placed.values())
        assert {True} in placed.values()
        assert {False} in placed.values()
        assert all(placed[name] == {False} and laid_out.tensors[name].layout == "c4" for name in viewed)


def shrinking(path: Path) -> Path:
    """Images that become half as wide four times: no two stages' tensors can share one."""
    nodes, constants, last, channels = [], {}, "x", 3
    for stage in range(5):
        wide = 8 << stage
        for part, stride in (("a", 1 + (stage > 0)), ("b", 1), ("c", 1)):
            name = f"{part}{stage}"
            nodes.append(conv(name, last, name, pads=[1, 1, 1, 1], strides=[stride, stride]))
            constants[f"{name}.weight"] = weights(wide, channels, 3, 3)
            last, channels = name, wide
    return save(path, nodes, {"x": (1, 3, 32, 32)}, [last], constants)


@pytest.mark.parametrize("memory", ["auto", "image"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_images_stay_within_the_memory_bound_and_what_is_left_out_is_read_as_an_image(
    memory: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shrinking(tmp_path / "net.onnx")
    assembly = plan_onnx(path, dtype=dtype, memory=memory)
    assert assembly.activation_bytes <= MEMORY_BOUND * assembly.live_bytes
    plan = assembly.plan
    kinds = {type(item) for item in plan.memory}
    assert {Image2d, Image1dBuffer} <= kinds
    for launch in plan.launches:
        for argument in launch.arguments:
            item = plan.memory[argument.memory] if isinstance(argument, MemoryArgument) else None
            if isinstance(item, Image1dBuffer):
                # An image of the very part that a launch before wrote, to its last byte.
                source = plan.memory[item.buffer]
                assert isinstance(source, Part | Buffer)
                assert item.size == source.size
    monkeypatch.setattr(storage, "MEMORY_BOUND", float("inf"))
    unbound = plan_onnx(path, dtype=dtype, memory=memory)
    assert unbound.activation_bytes > MEMORY_BOUND * unbound.live_bytes


def test_what_storage_could_not_foresee_is_planned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shrinking(tmp_path / "net.onnx")
    monkeypatch.setattr(storage, "largest_live_bytes", lambda alive: 1.6 * largest_live_bytes(alive))
    misled = assign_memory(assign_layouts(fuse(recognize(import_onnx(path)), ADRENO)), ADRENO)
    assembly = plan_onnx(path)
    assert assembly.activation_bytes <= MEMORY_BOUND * assembly.live_bytes
    images = sum(isinstance(item, Image2d) for item in assembly.plan.memory)
    assert 0 < images < sum("output" in getattr(node.op, "images", ()) for node in misled.nodes)


def test_the_memory_bound_costs_little_time_and_views_less_than_pointers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shrinking(tmp_path / "net.onnx")
    predicted = {}
    for bound in (1.0, 1.3, float("inf")):
        monkeypatch.setattr(storage, "MEMORY_BOUND", bound)
        predicted[bound] = compile_onnx(path, tmp_path / "n.clbundle").predicted_ms
    buffers = compile_onnx(path, tmp_path / "n.clbundle", memory="buffer").predicted_ms
    assert predicted[float("inf")] <= predicted[1.3] <= predicted[1.0] < buffers
    # Few of a launch's microseconds are reads of its input.
    assert predicted[1.3] <= 1.02 * predicted[float("inf")]


def test_storage_counts_what_will_be_alive_where_tvm_joins_operators(tmp_path: Path) -> None:
    # TVM joins a grouped transposed convolution with its bias, a node of its own: one tensor is never stored.
    nodes = [
        conv("a", "x", "t", pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["t", "up.weight", "up.bias"], ["u"], name="up", strides=[2, 2], group=2),
        conv("b", "u", "y", pads=[1, 1, 1, 1]),
    ]
    constants = {
        "a.weight": weights(12, 3, 3, 3),
        "up.weight": weights(12, 4, 2, 2),
        "up.bias": weights(8),
        "b.weight": weights(4, 8, 3, 3),
    }
    path = save(tmp_path / "net.onnx", nodes, {"x": (1, 3, 16, 16)}, ["y"], constants)
    laid_out = assign_layouts(fuse(recognize(import_onnx(path)), ADRENO))
    generic = [node for node in laid_out.nodes if isinstance(node.op, Generic)]
    assert len(generic) > 1
    need = storage._MemoryNeed(laid_out, MEMORY_BOUND)
    alive = lives(need.sizes, need.accesses, need.inputs, need.outputs)
    assert largest_live_bytes(alive) == plan_onnx(path, memory="buffer").live_bytes
