from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from pydantic import ValidationError

from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from tests.compile.onnx_models import conv, save, weights
from tvm_build.bundle import read_bundle
from tvm_build.compile import compile_onnx, sample_from_npz
from tvm_build.config import BuildConfig
from tvm_build.stage import run_build


@pytest.fixture
def network(tmp_path: Path) -> Path:
    nodes = [conv("stem", "x", "a", bias=True), helper.make_node("Relu", ["a"], ["y"], name="act")]
    constants = {"stem.weight": weights(5, 3, 3, 3), "stem.bias": weights(5)}
    return save(tmp_path / "net.onnx", nodes, {"x": [1, 3, 6, 6]}, ["y"], constants)


def test_the_manifest_says_what_was_compiled_and_from_what(network: Path, tmp_path: Path) -> None:
    summary = compile_onnx(network, tmp_path / "net.clbundle", target="adreno-640")
    manifest = read_bundle(tmp_path / "net.clbundle").manifest
    assert manifest["target"] == "adreno-640"
    assert manifest["source"]["file"] == "net.onnx"
    assert manifest["inputs"] == [{"name": "x", "shape": [1, 3, 6, 6], "dtype": "float32"}]
    assert manifest["macs"] == 4 * 4 * 5 * 27
    assert manifest["parameters"] == 5 * 27 + 5
    assert manifest["launches"] == summary.launches == len(manifest["layers"])
    assert manifest["predicted_ms"]["kind"] == "predicted"
    assert {layer["layer"] for layer in manifest["layers"]} <= {"stem", "act", "output:y"}


@pytest.mark.parametrize("schedules", ["structadmm", "upstream"])
def test_multiply_adds_of_tvms_kernels_count_where_the_weight_is_constant(tmp_path: Path, schedules: str) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "first.weight"], ["a"]),  # a linear layer for each of 7 tokens
        helper.make_node("MatMul", ["a", "heads.weight"], ["b"]),  # for each token and head
        helper.make_node("Transpose", ["b"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["b", "turned"], ["scores"]),  # of two activations
        helper.make_node("MatMul", ["left", "scores"], ["y"]),
    ]
    constants = {"first.weight": weights(6, 10), "heads.weight": weights(2, 10, 4), "left": weights(3, 7)}
    path = save(tmp_path / "net.onnx", nodes, {"x": [2, 2, 7, 6]}, ["y"], constants)
    summary = compile_onnx(path, tmp_path / "net.clbundle", schedules=schedules)  # type: ignore[arg-type]
    assert summary.macs == 4 * 7 * (6 * 10 + 10 * 4) + 4 * 3 * 7 * 7


def test_multiply_adds_of_tvms_convolutions_count(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "grouped"], ["a"], strides=[2, 2], group=2),
        helper.make_node("Unsqueeze", ["a", "axis"], ["b"]),
        helper.make_node("Conv", ["b", "cube"], ["y"]),
    ]
    constants = {"grouped": weights(4, 3, 2, 2), "cube": weights(5, 6, 1, 3, 3), "axis": np.array([2], np.int64)}
    path = save(tmp_path / "net.onnx", nodes, {"x": [1, 4, 3, 5]}, ["y"], constants)
    summary = compile_onnx(path, tmp_path / "net.clbundle")
    assert summary.macs == (4 * 3 * 5) * (3 * 2 * 2) + (5 * 4 * 8) * (6 * 9)


def test_the_sample_is_what_the_user_gives(network: Path, tmp_path: Path) -> None:
    sample = np.linspace(-1, 1, 108, dtype=np.float32).reshape(1, 3, 6, 6)
    compile_onnx(network, tmp_path / "net.clbundle", sample={"x": sample})
    assert np.array_equal(np.load(tmp_path / "net.clbundle" / "input_0.npy"), sample)


def test_an_output_that_is_constant_is_refused_in_one_line(tmp_path: Path) -> None:
    nodes = [conv("a", "x", "y"), helper.make_node("Identity", ["anchors"], ["z"])]
    constants = {"a.weight": weights(4, 3, 3, 3), "anchors": weights(1, 8)}
    path = save(tmp_path / "net.onnx", nodes, {"x": [1, 3, 6, 6]}, ["y", "z"], constants)
    with pytest.raises(UserError, match="output 'z' does not depend on the inputs: cut the network before it"):
        compile_onnx(path, tmp_path / "net.clbundle")


@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_samples_that_are_damaged_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    np.savez(tmp_path / "samples.npz", images=np.zeros((2, 3, 6, 6), np.float32))
    data = (tmp_path / "samples.npz").read_bytes()
    (tmp_path / "samples.npz").write_bytes(b"" if damage == "empty" else data[:-30])
    with pytest.raises(UserError, match="expected an archive with `images`"):
        sample_from_npz(tmp_path / "samples.npz", (1, 3, 6, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "mali-g78"}, "expected a target among adreno-540"),
        ({"dtype": "float64"}, "expected a dtype among float32, float16, float16_float32"),
        ({"schedules": "upstream", "dtype": "float16"}, "expected dtype float32 for upstream schedules"),
        ({"schedules": "fastest"}, "expected schedules structadmm or upstream"),
        ({"sample": {"z": np.zeros((1, 3, 6, 6), np.float32)}}, "expected samples for the inputs ['x']"),
        ({"sample": {"x": np.zeros((1, 3, 6, 7), np.float32)}}, "expected shape [1, 3, 6, 6]"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    network: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        compile_onnx(network, tmp_path / "net.clbundle", **options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.clbundle").exists()


def test_an_integer_output_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["x"], ["y"], axis=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, 1])],
    )
    path = tmp_path / "a.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="output 'y' is int64, expected float32"):
        compile_onnx(path, tmp_path / "a.clbundle")


def test_a_sample_that_overflows_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [helper.make_node("Log", ["x"], ["y"])], {"x": [1, 4]}, ["y"])
    with pytest.raises(UserError, match="not finite for the sample input"):
        compile_onnx(path, tmp_path / "a.clbundle", sample={"x": np.full((1, 4), -1, np.float32)})


def test_what_tvm_cannot_lower_is_named(tmp_path: Path) -> None:
    # CumSum is a host-side runtime call in TVM, not a kernel.
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], name="running_total")
    path = save(tmp_path / "a.onnx", [node], {"x": [1, 4]}, ["y"], {"axis": np.array(1, np.int64)})
    with pytest.raises(UserError, match="running_total") as caught:
        compile_onnx(path, tmp_path / "a.clbundle")
    assert "\n" not in str(caught.value)


def test_the_stage_compiles_both_networks_alike(network: Path, tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    for name in ("baseline", "pruned"):
        (export / f"{name}.onnx").write_bytes(network.read_bytes())
    images = np.random.default_rng(0).standard_normal((4, 3, 6, 6), dtype=np.float32)
    np.savez(export / "samples.npz", images=images, labels=np.arange(4))
    out = tmp_path / "build"
    out.mkdir()
    run_build(BuildConfig(), export, out, SilentReporter())
    record = json.loads((out / "build.json").read_text())
    assert record["settings"] == {
        "target": "opencl-cpu",
        "dtype": "float32",
        "memory": "auto",
        "schedules": "structadmm",
    }
    assert set(record["networks"]) == {"baseline", "pruned"}
    for name, summary in record["networks"].items():
        bundle = read_bundle(out / summary["bundle"])
        assert bundle.manifest["name"] == name
        assert np.array_equal(np.load(bundle.path / "input_0.npy"), images[:1])


def test_the_stage_says_and_records_how_many_kernels_are_tvms(network: Path, tmp_path: Path) -> None:
    class Told(SilentReporter):
        def say(self, line: str) -> None:
            lines.append(line)

    lines: list[str] = []
    foreign = save(tmp_path / "net2.onnx", [helper.make_node("Tanh", ["x"], ["y"])], {"x": [1, 3, 6, 6]}, ["y"])
    for name, source in (("baseline", foreign), ("pruned", network)):
        (tmp_path / f"{name}.onnx").write_bytes(source.read_bytes())
    run_build(BuildConfig(), tmp_path, tmp_path, Told())
    caveat = r"\(1 launch of TVM's kernels counts as if perfect and may be far slower\), compiled in"
    assert re.search(rf"^baseline: 1 launches .* predicted \S+ ms on opencl-cpu {caveat}", lines[0])
    assert re.search(r"^pruned: .* predicted \S+ ms on opencl-cpu, compiled in", lines[1])
    record = json.loads((tmp_path / "build.json").read_text())
    assert {name: found["tvm_launches"] for name, found in record["networks"].items()} == {"baseline": 1, "pruned": 0}


def test_the_stage_names_a_missing_network(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"baseline\.onnx: expected an ONNX file"):
        run_build(BuildConfig(), tmp_path, tmp_path, SilentReporter())


def test_an_unknown_target_is_refused_where_the_configuration_is_read() -> None:
    with pytest.raises(ValidationError, match="expected auto or one of adreno-540"):
        BuildConfig(target="powervr")


def test_a_network_that_computes_nothing_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.onnx", [helper.make_node("Flatten", ["x"], ["y"])], {"x": [1, 3, 4, 4]}, ["y"])
    with pytest.raises(UserError, match="nothing is computed"):
        compile_onnx(path, tmp_path / "a.clbundle", target="opencl-cpu")
    assert not (tmp_path / "a.clbundle").exists()
