"""Which layer a launch of TVM's kernels is said to belong to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from structadmm.progress import SilentReporter
from tests.compile.onnx_models import save, weights
from tvm_build.gpu import gpu_by_name
from tvm_build.import_onnx import ImportedNetwork, import_onnx
from tvm_build.lower import lower
from tvm_build.lowered import LoweredNetwork
from tvm_build.recognize import recognize
from tvm_build.upstream import lower_upstream

GPU = gpu_by_name("adreno-640")


def generic(imported: ImportedNetwork) -> LoweredNetwork:
    return lower(recognize(imported), GPU, SilentReporter())


def upstream(imported: ImportedNetwork) -> LoweredNetwork:
    return lower_upstream(imported, GPU, SilentReporter())


both_pipelines = pytest.mark.parametrize("lowered", [generic, upstream])
Lower = Callable[[ImportedNetwork], LoweredNetwork]


def node(operator: str, inputs: list[str], name: str, **attributes: Any) -> Any:
    """Its result goes by its name."""
    return helper.make_node(operator, inputs, [name], name=name, **attributes)


@both_pipelines
def test_a_fused_launch_belongs_to_its_heaviest_operator(lowered: Lower, tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "y"], "scores"),
        node("Tanh", ["scores"], "tanh"),
        node("Transpose", ["tanh"], "turned", perm=[0, 2, 1]),
    ]
    path = save(tmp_path / "a.onnx", nodes, {"x": (1, 8, 16), "y": (1, 16, 12)}, ["turned"])
    launches = lowered(import_onnx(path)).launches
    assert [(launch.layer, "matmul" in launch.kernel.name) for launch in launches] == [
        ("scores", True),
        ("turned", False),
    ]


@both_pipelines
def test_a_last_operator_that_is_the_heaviest_names_its_launch(lowered: Lower, tmp_path: Path) -> None:
    nodes = [node("Transpose", ["x"], "turned", perm=[0, 2, 1]), node("Tanh", ["turned"], "tanh")]
    path = save(tmp_path / "a.onnx", nodes, {"x": (1, 8, 16)}, ["tanh"])
    assert [launch.layer for launch in lowered(import_onnx(path)).launches] == ["tanh"]


@both_pipelines
def test_equal_launches_belong_to_their_own_layers(lowered: Lower, tmp_path: Path) -> None:
    # One function for all three: its names are those of the first.
    nodes = []
    for k, source in enumerate(["x", "tanh0", "tanh1"]):
        nodes += [node("MatMul", [source, "y"], f"product{k}"), node("Tanh", [f"product{k}"], f"tanh{k}")]
    path = save(tmp_path / "a.onnx", nodes, {"x": (1, 8, 8), "y": (1, 8, 8)}, ["tanh2"])
    launches = lowered(import_onnx(path)).launches
    assert [launch.layer for launch in launches] == ["product0", "product1", "product2"]
    assert len({launch.kernel.name for launch in launches}) == 1


@both_pipelines
def test_layers_that_read_the_same_are_told_by_their_weights(lowered: Lower, tmp_path: Path) -> None:
    names = ["q", "k", "v"]
    nodes = []
    for name in names:
        nodes += [node("MatMul", ["x", f"{name}.weight"], name), node("Tanh", [name], f"{name}.tanh")]
    nodes.append(node("Sum", [f"{name}.tanh" for name in reversed(names)], "y"))
    constants = {f"{name}.weight": weights(2, 8, 8, seed=seed) for seed, name in enumerate(names)}
    path = save(tmp_path / "a.onnx", nodes, {"x": (2, 4, 8)}, ["y"], constants)
    network = lowered(import_onnx(path))
    products = [launch for launch in network.launches if "matmul" in launch.kernel.name]
    assert sorted(launch.layer for launch in products) == sorted(names)
    for launch in products:
        (weight,) = [network.constants[name] for name in launch.arguments if name in network.constants]
        assert np.array_equal(weight, constants[f"{launch.layer}.weight"])


@both_pipelines
def test_each_of_several_outputs_names_its_own_launch(lowered: Lower, tmp_path: Path) -> None:
    nodes = [node("Softmax", ["x"], "a", axis=2), node("MatMul", ["x", "y"], "b"), node("Exp", ["b"], "c")]
    path = save(tmp_path / "a.onnx", nodes, {"x": (1, 8, 8), "y": (1, 8, 8)}, ["c", "a"])
    network = lowered(import_onnx(path))
    written = {tensor: launch.layer for launch in network.launches for tensor in launch.writes}
    assert [written[output.tensor] for output in network.outputs] == ["b", "a"]
