from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from structadmm.errors import UserError
from tests.compile.onnx_models import conv, save, weights
from tvm_build.import_onnx import import_onnx


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        import_onnx(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "there is none" in refused(tmp_path / "no.onnx")


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x08\x0a\x12"])
def test_a_file_that_is_not_onnx_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert "expected a valid ONNX model" in refused(path)


def test_a_truncated_model_is_refused_in_one_line(tmp_path: Path) -> None:
    path = save(
        tmp_path / "a.onnx", [conv("c", "x", "y")], {"x": [1, 3, 8, 8]}, ["y"], {"c.weight": weights(4, 3, 3, 3)}
    )
    path.write_bytes(path.read_bytes()[:-40])
    assert "expected a valid ONNX model" in refused(path)


def test_a_dynamic_batch_is_refused_with_advice(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", 3, 8, 8]}, ["y"])
    message = refused(path)
    assert "[batch, 3, 8, 8]" in message
    assert "without dynamic_shapes" in message


def test_integer_inputs_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    path = save(tmp_path / "a.onnx", [node], {"x": [1, 3]}, ["y"], input_type=TensorProto.INT64)
    assert "must be float32, got INT64" in refused(path)


def test_an_unsupported_operator_is_named_with_its_node(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="fine"),
        helper.make_node("StringNormalizer", ["a"], ["y"], name="odd_one"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    message = refused(path)
    assert "'odd_one'" in message
    assert "StringNormalizer" in message


def test_a_custom_domain_is_named_with_its_node(tmp_path: Path) -> None:
    node = helper.make_node("Magic", ["x"], ["y"], name="wand", domain="com.example")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    assert "node 'wand' is a com.example::Magic" in refused(path)


def test_shapes_that_depend_on_data_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"], name="where"),
        helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT),
    ]
    path = save(tmp_path / "a.onnx", nodes, {"x": [2, 3]}, ["y"])
    assert "depends on its data" in refused(path)


def test_steps_carry_the_module_that_owns_the_weight(tmp_path: Path) -> None:
    nodes = [conv("layer1.0.conv1", "x", "a", bias=True), helper.make_node("Relu", ["a"], ["y"], name="node_relu")]
    constants = {"layer1.0.conv1.weight": weights(4, 3, 3, 3), "layer1.0.conv1.bias": weights(4)}
    steps = import_onnx(save(tmp_path / "a.onnx", nodes, {"x": [1, 3, 8, 8]}, ["y"], constants)).steps
    named = [(step.layer, step.onnx_op) for step in steps if step.onnx_op]
    assert named[:2] == [("layer1.0.conv1", "Conv"), ("node_relu", "Relu")]


def test_every_binding_belongs_to_the_node_that_made_it(tmp_path: Path) -> None:
    # BatchNormalization and Split end in tuples, which TVM unpacks into bindings of their own.
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node("Split", ["r"], ["p", "q"], name="split", axis=1, num_outputs=2),
        helper.make_node("Sigmoid", ["q"], ["t"], name="sigmoid"),
        helper.make_node("Mul", ["p", "t"], ["y"], name="mul"),
    ]
    constants = {"s": weights(4), "b": weights(4), "m": weights(4), "v": np.ones(4, np.float32)}
    steps = import_onnx(save(tmp_path / "a.onnx", nodes, {"x": [1, 4, 2, 2]}, ["y"], constants)).steps
    operators: dict[str, set[str]] = {}
    for step in steps:
        for binding in step.bindings:
            name = getattr(getattr(binding.value, "op", None), "name", None)
            if name is not None:
                operators.setdefault(step.layer, set()).add(name)
    assert operators["norm"] == {"relax.nn.batch_norm"}
    assert operators["relu"] == {"relax.nn.relu"}
    assert operators["split"] == {"relax.split"}
    assert operators["sigmoid"] == {"relax.sigmoid"}


def test_sparse_initializers_count_as_the_dense_arrays_that_they_stand_for(tmp_path: Path) -> None:
    dense = np.zeros((4, 3, 1, 1), np.float32)
    dense.reshape(-1)[[1, 7]] = [2.0, -3.0]
    values = numpy_helper.from_array(np.array([2.0, -3.0], np.float32), "c.weight")
    indices = numpy_helper.from_array(np.array([1, 7], np.int64), "")
    graph = helper.make_graph(
        [conv("c", "x", "y")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 4])],
        sparse_initializer=[helper.make_sparse_tensor(values, indices, dense.shape)],
    )
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    (call,) = [b.value for step in import_onnx(path).steps for b in step.bindings if "conv2d" in str(b.value)]
    assert np.array_equal(call.args[1].value.numpy(), dense)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "reason"),
    [
        ("Resize", ["x", "", "scales"], {"mode": "linear"}, r"scales \[1, 4, 5, 7\] to 1 x 4 x 7.5 x 10.5"),
        ("Resize", ["x", "", "", "sizes"], {"mode": "linear", "antialias": 1}, "without antialias"),
        (
            "Resize",
            ["x", "", "", "pair"],
            {"axes": [2, 3], "mode": "linear"},
            "with the sizes of all axes",
        ),
        ("ConvTranspose", ["x", "weight"], {"output_shape": [10, 14], "strides": [2, 2]}, "has an output_shape"),
        (
            "MaxPool",
            ["x"],
            {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
            r"has the shape \[1, 4, 3, 4\] and was converted to \[1, 4, 2, 3\]",
        ),
    ],
)
def test_what_would_be_taken_for_something_else_is_refused(
    tmp_path: Path, operator: str, inputs: list[str], attributes: dict[str, object], reason: str
) -> None:
    constants = {
        "scales": np.array([1, 1, 1.5, 1.5], np.float32),
        "sizes": np.array([1, 4, 3, 3], np.int64),
        "pair": np.array([3, 3], np.int64),
        "weight": weights(4, 2, 3, 3),
    }
    used = {name: array for name, array in constants.items() if name in inputs}
    nodes = [helper.make_node(operator, inputs, ["y"], name="odd_one", **attributes)]
    message = refused(save(tmp_path / "a.onnx", nodes, {"x": [1, 4, 5, 7]}, ["y"], used))
    assert "'odd_one'" in message
    assert re.search(reason, message), message


def test_a_batch_norm_of_training_is_refused(tmp_path: Path) -> None:
    names = ["scale", "shift", "mean", "variance"]
    nodes = [
        helper.make_node(
            "BatchNormalization", ["x", *names], ["y", "running_mean", "running_variance"], name="bn", training_mode=1
        )
    ]
    path = save(tmp_path / "a.onnx", nodes, {"x": [2, 4, 5, 7]}, ["y"], {name: weights(4) + 2 for name in names})
    assert "in evaluation mode" in refused(path)


def test_stale_shapes_in_a_file_are_not_believed(tmp_path: Path) -> None:
    """Tools that fix a batch leave what the file says about the tensors in between."""
    nodes = [conv("c", "x", "t", pads=[1] * 4), helper.make_node("Relu", ["t"], ["y"])]
    path = save(tmp_path / "a.onnx", nodes, {"x": [1, 3, 8, 8]}, ["y"], {"c.weight": weights(4, 3, 3, 3)})
    model = onnx.load(str(path))
    (between,) = model.graph.value_info
    between.type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(model, str(path))
    assert import_onnx(path).parameters == 4 * 3 * 3 * 3
