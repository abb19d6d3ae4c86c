from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.compile.interpreter import evaluate
from tests.compile.onnx_models import Array, conv, save, weights
from tvm_build.cost import estimate, predict_us
from tvm_build.fuse import flatten_into_dense, fuse
from tvm_build.gpu import gpu_by_name
from tvm_build.import_onnx import import_onnx
from tvm_build.kernels import candidates
from tvm_build.kernels.dense import DenseSchedule, local_bytes
from tvm_build.layout import assign_layouts
from tvm_build.network import Generic, Network, Node, Port, Tensor, View, zeros
from tvm_build.ops import Conv2d, Dense, Elementwise, GlobalAverage, Pack, Unpack
from tvm_build.recognize import recognize

GPU = gpu_by_name("opencl-cpu")


def fused(path: Path) -> Network:
    return fuse(recognize(import_onnx(path)), GPU)


def operators(network: Network) -> list[str]:
    return [type(node.op).__name__ for node in network.nodes]


def expected(path: Path, inputs: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def assert_means_the_same(network: Network, path: Path, shape: tuple[int, ...]) -> None:
    inputs = {"x": np.random.default_rng(5).standard_normal(shape, dtype=np.float32)}
    wanted = expected(path, inputs)
    for name, got in evaluate(network, inputs).items():
        # ONNX Runtime computes in float32, the interpreter in float64: a few dozen additions of numbers near one.
        np.testing.assert_allclose(got, wanted[name], rtol=1e-4, atol=1e-4)


@st.composite
def random_graphs(draw: st.DrawFn) -> tuple[list[object], dict[str, Array], list[str]]:
    """A few operators on tensors of one shape, each reading any tensor before it, so that many have several readers."""
    nodes: list[object] = []
    constants: dict[str, Array] = {}
    tensors = ["x"]
    for index in range(draw(st.integers(2, 10))):
        kinds = ["conv", "conv", "bias", "norm", "relu", "clip", "sigmoid", "add", "mul", "sub", "swish"]
        kind = draw(st.sampled_from(kinds))
        out, source = f"t{index}", draw(st.sampled_from(tensors[-3:]))
        other = draw(st.sampled_from(tensors))
        if kind == "conv":
            groups = draw(st.sampled_from([1, 1, 6]))
            constants[f"c{index}.weight"] = weights(6, 6 // groups, 3, 3, seed=index)
            if draw(st.booleans()):
                columns = constants[f"c{index}.weight"].reshape(6, -1)
                columns[:, np.random.default_rng(index).permutation(columns.shape[1])[columns.shape[1] // 3 :]] = 0
            nodes.append(conv(f"c{index}", source, out, pads=[1, 1, 1, 1], group=groups))
        elif kind == "bias":
            constants[f"b{index}"] = weights(1, 6, 1, 1, seed=index)
            nodes.append(helper.make_node("Add", [source, f"b{index}"], [out]))
        elif kind == "norm":
            names = [f"n{index}{part}" for part in "sbmv"]
            constants.update({name: weights(6, seed=index + k) for k, name in enumerate(names)})
            constants[names[3]] = np.abs(constants[names[3]]) + 0.5
            nodes.append(helper.make_node("BatchNormalization", [source, *names], [out]))
        elif kind == "clip":
            constants.update({"zero": np.array(0, np.float32), "six": np.array(6, np.float32)})
            nodes.append(helper.make_node("Clip", [source, "zero", "six"], [out]))
        elif kind == "swish":
            nodes.append(helper.make_node("Sigmoid", [source], [f"{out}_gate"]))
            nodes.append(helper.make_node("Mul", [source, f"{out}_gate"], [out]))
        elif kind in ("add", "mul", "sub"):
            nodes.append(helper.make_node(kind.capitalize(), [source, other], [out]))
        else:
            nodes.append(helper.make_node(kind.capitalize(), [source], [out]))
        tensors.append(out)
    outputs = [tensors[-1]]
    if draw(st.booleans()) and len(tensors) > 3:
        outputs.append(tensors[-3])
    return nodes, constants, outputs


@settings(deadline=None, max_examples=40, derandomize=True)
@given(random_graphs())
def test_fusing_never_changes_what_a_network_computes(graph: tuple[list[object], dict[str, Array], list[str]]) -> None:
    nodes, constants, outputs = graph
    shape = (1, 6, 5, 4)
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder) / "a.onnx", nodes, {"x": shape}, outputs, constants)  # type: ignore[arg-type]
        recognized = recognize(import_onnx(path))
        if any(isinstance(node.op, Generic) for node in recognized.nodes):
            return
        network = fuse(recognized, GPU)
        network.check()
        assert_means_the_same(recognized, path, shape)
        if not any(isinstance(node.op, Generic) for node in network.nodes):
            assert_means_the_same(network, path, shape)


def test_convolution_bias_normalisation_sum_and_activation_are_one_launch(tmp_path: Path) -> None:
    nodes = [
        conv("c", "x", "a", bias=True, pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Add", ["n", "x"], ["t"]),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    constants = {"c.weight": weights(6, 6, 3, 3), "c.bias": weights(6, seed=1), "v": np.full(6, 0.7, np.float32)}
    constants.update({name: weights(6, seed=k) for k, name in enumerate("sbm", start=2)})
    path = save(tmp_path / "a.onnx", nodes, {"x": [1, 6, 5, 4]}, ["y"], constants)
    network = fused(path)
    assert operators(network) == ["Conv2d"]
    op = network.nodes[0].op
    assert isinstance(op, Conv2d)
    assert op.has_residual
    assert op.activation == "relu"
    assert_means_the_same(network, path, (1, 6, 5, 4))


def test_a_sum_of_two_convolutions_is_one_launch(tmp_path: Path) -> None:
    nodes = [
        conv("short", "x", "s", strides=[2, 2]),
        conv("main", "x", "m", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["m", "s"], ["t"]),
        helper.make_node("Relu", ["t"], ["y"]),
    ]
    constants = {"main.weight": weights(6, 6, 3, 3), "short.weight": weights(6, 6, 1, 1, seed=1)}
    path = save(tmp_path / "a.onnx", nodes, {"x": [1, 6, 8, 8]}, ["y"], constants)
    network = fused(path)
    assert operators(network) == ["Conv2d"]
    assert network.nodes[0].layer == "main"
    assert_means_the_same(network, path, (1, 6, 8, 8))


@pytest.mark.parametrize(
    ("groups", "tap", "launches"), [((8, 8), 1, 1), ((8, 8), 3, 1), ((1, 8), 1, 1), ((1, 8), 3, 2), ((8, 1), 1, 2)]
)
def test_a_depthwise_window_is_summed_with_another_depthwise_convolution_alone(
    groups: tuple[int, int], tap: int, launches: int, tmp_path: Path
) -> None:
    nodes = [
        conv("main", "x", "m", pads=[2] * 4, group=groups[0]),
        conv("side", "x", "s", pads=[tap // 2] * 4, group=groups[1]),
        helper.make_node("Add", ["m", "s"], ["y"]),
    ]
    constants = {
        "main.weight": weights(8, 8 // groups[0], 5, 5),
        "side.weight": weights(8, 8 // groups[1], tap, tap, seed=1),
    }
    path = save(tmp_path / "a.onnx", nodes, {"x": [1, 8, 7, 6]}, ["y"], constants)
    network = fused(path)
    assert operators(network) == ["Conv2d"] * launches
    assert_means_the_same(network, path, (1, 8, 7, 6))


def test_a_convolution_that_two_operators_read_is_not_fused_away(tmp_path: Path) -> None:
    nodes = [
        conv("c", "x", "a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Add", ["r", "a"], ["y"]),
    ]
    path = save(tmp_path / "a.onnx", nodes, {"x": [1, 6, 5, 4]}, ["y"], {"c.weight": weights(6, 6, 3, 3)})
    network = fused(path)
    assert operators(network)[0] == "Conv2d"
    first = network.nodes[0].op
    assert isinstance(first, Conv2d)
    assert first.activation == "none"
    assert not first.has_residual
    assert_means_the_same(network, path, (1, 6, 5, 4))


def test_a_convolution_that_is_an_output_keeps_its_own_tensor(tmp_path: Path) -> None:
    nodes = [conv("c", "x", "a", pads=[1, 1, 1, 1]), helper.make_node("Relu", ["a"], ["y"])]
    path = save(tmp_path / "a.onnx", nodes, {"x": [1, 6, 5, 4]}, ["a", "y"], {"c.weight": weights(6, 6, 3, 3)})
    assert_means_the_same(fused(path), path, (1, 6, 5, 4))


def test_padding_becomes_padding_of_the_convolution(tmp_path: Path) -> None:
    nodes = [helper.make_node("Pad", ["x", "pads"], ["p"]), conv("c", "p", "y", pads=[0, 0, 1, 1])]
    constants = {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1], np.int64), "c.weight": weights(4, 6, 3, 3)}
    path = save(tmp_path / "a.onnx", nodes, {"x": [1, 6, 5, 4]}, ["y"], constants)
    network = fused(path)
    assert operators(network) == ["Conv2d"]
    op = network.nodes[0].op
    assert isinstance(op, Conv2d)
    assert op.padding == (1, 2, 1, 2)
    assert_means_the_same(network, path, (1, 6, 5, 4))


def test_zero_columns_are_found_only_where_every_filter_has_them(tmp_path: Path) -> None:
    weight = weights(64, 64, 3, 3)
    columns = weight.reshape(64, 576)
    columns[:, 50:] = 0
    columns[2, 3] = 0
    path = save(tmp_path / "a.onnx", [conv("c", "x", "y")], {"x": [1, 64, 16, 16]}, ["y"], {"c.weight": weight})
    op = fused(path).nodes[0].op
    assert isinstance(op, Conv2d)
    assert op.columns == tuple(range(50))


def test_a_single_zero_column_is_not_worth_a_gather(tmp_path: Path) -> None:
    weight = weights(64, 64, 3, 3)
    weight.reshape(64, 576)[:, 7] = 0
    path = save(tmp_path / "a.onnx", [conv("c", "x", "y")], {"x": [1, 64, 16, 16]}, ["y"], {"c.weight": weight})
    op = fused(path).nodes[0].op
    assert isinstance(op, Conv2d)
    assert op.columns is None


def test_global_average_flatten_and_dense_are_one_launch(tmp_path: Path) -> None:
    nodes = [
        conv("c", "x", "a"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    constants = {"c.weight": weights(7, 6, 3, 3), "fc.weight": weights(3, 7), "fc.bias": weights(3)}
    path = save(tmp_path / "a.onnx", nodes, {"x": [2, 6, 5, 4]}, ["y"], constants)
    network = fused(path)
    assert operators(network) == ["Conv2d", "Dense"]
    assert_means_the_same(network, path, (2, 6, 5, 4))


def head(channels: int, side: int, outputs: int) -> Network:
    """Global average, flatten and dense layer."""
    shapes = {"x": (1, channels, side, side), "p": (1, channels, 1, 1), "v": (1, channels), "y": (1, outputs)}
    nodes = (
        Node("pool", GlobalAverage(1, channels, side, side), ("x",), ("p",)),
        Node("flat", View(), ("p",), ("v",)),
        Node(
            "fc",
            Dense(1, channels, outputs),
            ("v",),
            ("y",),
            {"weight": weights(outputs, channels), "bias": zeros(outputs)},
        ),
    )
    tensors = {name: Tensor(name, shape) for name, shape in shapes.items()}
    return Network(tensors, nodes, (Port("x", "x"),), (Port("y", "y"),))


@pytest.mark.parametrize("target", ["opencl-cpu", "adreno-640"])
@pytest.mark.parametrize(
    ("channels", "side", "outputs", "launches"),
    # Of the last two, each of many groups would average a large image again, in the last with eight of its work-items.
    [(512, 4, 10, 1), (64, 8, 10, 1), (512, 14, 1000, 2), (32, 112, 1000, 2)],
)
def test_a_dense_layer_averages_its_input_itself_where_its_groups_are_few_or_the_image_small(
    channels: int, side: int, outputs: int, launches: int, target: str
) -> None:
    network = fuse(head(channels, side, outputs), gpu_by_name(target))
    assert operators(network) == (["Dense"] if launches == 1 else ["GlobalAverage", "View", "Dense"])


def test_a_pooled_dense_layer_is_predicted_to_take_as_long_as_one_channel_block_s_average() -> None:
    op = Dense(1, 32, 1000, pooled_pixels=112 * 112, input_is_c4=True, input_width=112)
    gpu = gpu_by_name("adreno-640")
    cost = estimate(op, DenseSchedule(tiles=8, split=32), gpu)
    assert cost.load_bytes >= 16 * op.pooled_pixels * cost.work_items
    # Each of 63 groups on two cores adds up 8 blocks of 12544 vectors, an addition of 4 cycles after the other.
    assert predict_us(op, DenseSchedule(lanes=16, tiles=1, split=1), GPU) > 32 * 8 * 112 * 112 * 4 / 3.4e3


@pytest.mark.parametrize(("channels", "launches"), [(7168, 1), (8192, 2)])
def test_a_pooled_dense_layer_stays_within_a_groups_local_memory(channels: int, launches: int) -> None:
    gpu = gpu_by_name("adreno-640")
    network = fuse(head(channels, 7, 10), gpu)
    ops = [node.op for node in network.nodes if not isinstance(node.op, View)]
    assert len(ops) == launches
    assert isinstance(ops[-1], Dense)
    schedules = candidates(ops[-1], gpu)
    assert len(schedules) > 0
    for schedule in schedules:
        assert isinstance(schedule, DenseSchedule)
        assert local_bytes(ops[-1], schedule) <= gpu.local_bytes


def test_a_linear_layer_per_token_is_one_launch_with_bias_scale_and_activation(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "linear.weight"], ["a"], name="linear"),
        helper.make_node("Add", ["linear.bias", "a"], ["b"]),
        helper.make_node("Mul", ["b", "scale"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    constants = {"linear.weight": weights(6, 5), "linear.bias": weights(5), "scale": weights(1, 1, 5)}
    path = save(tmp_path / "net.onnx", nodes, {"x": [2, 7, 6]}, ["y"], constants)
    network = fused(path)
    assert operators(network) == ["View", "Dense", "View"]
    assert network.nodes[1].op == Dense(14, 6, 5, activation="relu")
    assert network.nodes[1].layer == "linear"
    assert_means_the_same(network, path, (2, 7, 6))


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        # The product without its bias is read again: by another operator, as an output, by the same operator.
        ([("Add", ["a", "bias"], "b"), ("Abs", ["a"], "c")], ["b", "c"]),
        ([("Add", ["a", "bias"], "b")], ["a", "b"]),
        ([("Mul", ["a", "a"], "b")], ["b"]),
        # What lies along another axis, or makes the result larger, is none of its features.
        ([("Add", ["a", "column"], "b")], ["b"]),
        ([("Add", ["a", "wider"], "b")], ["b"]),
        ([("BatchNormalization", ["a", "tokens", "tokens", "tokens", "tokens"], "b")], ["b"]),
        # A dense layer takes one activation along, and nothing after it.
        ([("Relu", ["a"], "b"), ("Sigmoid", ["b"], "c")], ["c"]),
        ([("Relu", ["a"], "b"), ("Add", ["b", "bias"], "c")], ["c"]),
    ],
)
def test_what_a_linear_layer_per_token_cannot_take_along_is_left_to_tvm(
    tmp_path: Path, nodes: list[tuple[str, list[str], str]], outputs: list[str]
) -> None:
    made = [helper.make_node("MatMul", ["x", "w"], ["a"])]
    made += [helper.make_node(operator, inputs, [output]) for operator, inputs, output in nodes]
    constants = {
        "w": weights(6, 6),
        "bias": weights(6),
        "tokens": np.ones(6, np.float32),
        "column": weights(6, 1),
        "wider": weights(2, 1, 6),
    }
    path = save(tmp_path / "net.onnx", made, {"x": [1, 6, 6]}, outputs, constants)
    network = fused(path)
    generic = [node for node in network.nodes if isinstance(node.op, Generic)]
    assert generic
    assert all(node.source for node in generic)  # TVM has something to lower


def test_the_affine_before_an_activation_network_s_convolution_is_depthwise(tmp_path: Path) -> None:
    nodes = [
        conv("first", "x", "a"),
        helper.make_node("Relu", ["a"], ["k"]),
        helper.make_node("BatchNormalization", ["k", "s", "b", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Add", ["r", "k"], ["y"]),
    ]
    constants = {"first.weight": weights(6, 6, 1, 1), "v": np.full(6, 0.7, np.float32)}
    constants.update({name: weights(6, seed=k) for k, name in enumerate("sbm", start=2)})
    path = save(tmp_path / "a.onnx", nodes, {"x": [1, 6, 5, 4]}, ["y"], constants)
    network = fused(path)
    assert operators(network) == ["Conv2d", "Conv2d", "Elementwise"]
    assert_means_the_same(network, path, (1, 6, 5, 4))


def test_a_dense_layer_reads_channel_blocks_as_they_lie() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 5, 3, 2)).astype(np.float32)
    weight = generator.standard_normal((4, 30)).astype(np.float32)
    node = Node("fc", Dense(2, 30, 4), ("f",), ("y",), {"weight": weight, "bias": np.zeros(4, np.float32)})
    moved = flatten_into_dense(node, Tensor("t", x.shape, layout="c4"))
    # Channel blocks of four; lanes 1 to 3 of the second block hold anything finite.
    blocks = np.full((2, 2, 3, 2, 4), 99.0, np.float32)
    for channel in range(5):
        blocks[:, channel // 4, :, :, channel % 4] = x[:, channel]
    got = blocks.reshape(2, -1) @ moved.constants["weight"].T
    # float32 sums of 30 products in two orders.
    np.testing.assert_allclose(got, x.reshape(2, -1) @ weight.T, rtol=1e-4, atol=1e-4)


def test_a_tensor_is_converted_once_however_many_read_it(tmp_path: Path) -> None:
    nodes = [
        conv("a", "x", "p", pads=[1, 1, 1, 1]),
        conv("b", "x", "q", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("Mul", ["r", "q"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"], axis=1),
        helper.make_node("Erf", ["m"], ["z"]),
    ]
    constants = {"a.weight": weights(6, 6, 3, 3), "b.weight": weights(6, 6, 3, 3, seed=1)}
    path = save(tmp_path / "a.onnx", nodes, {"x": [1, 6, 5, 4]}, ["y", "z"], constants)
    network = assign_layouts(fused(path))
    assert sum(isinstance(node.op, Pack) for node in network.nodes) == 1
    assert sum(isinstance(node.op, Unpack) for node in network.nodes) == 1


def test_elementwise_operators_between_plain_tensors_stay_plain(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sub", ["x", "x2"], ["d"]), helper.make_node("Softmax", ["d"], ["y"], axis=1)]
    path = save(tmp_path / "a.onnx", nodes, {"x": [1, 6, 5, 4], "x2": [1, 6, 5, 4]}, ["y"])
    network = assign_layouts(fused(path))
    assert not any(isinstance(node.op, Pack | Unpack | Elementwise) for node in network.nodes)
