"""The table behind a predicted time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from onnx import helper
from typer.testing import CliRunner

from pipeline.cli import app
from tests.compile.onnx_models import conv, save, weights
from tvm_build.compile import compile_onnx
from tvm_build.gpu import gpu_by_name

KERNEL = weights(8, 8, 3, 3)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    nodes = [
        conv("a", "x", "t", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["t"], ["u"], name="relu"),
        helper.make_node("Tanh", ["u"], ["y"], name="tanh"),
    ]
    return save(tmp_path / "net.onnx", nodes, {"x": (1, 8, 6, 6)}, ["y"], {"a.weight": KERNEL})


def test_the_launches_add_up_to_the_predicted_time_and_its_uncertainty(network: Path, tmp_path: Path) -> None:
    summary = compile_onnx(network, tmp_path / "net.clbundle", target="adreno-640")
    told, gpu = summary.explanation, gpu_by_name("adreno-640")
    assert len(told.launches) == summary.launches
    # The summary rounds to nanoseconds.
    assert told.predicted_ms == pytest.approx(summary.predicted_ms, abs=1e-6)
    assert told.predicted_ms == pytest.approx(sum(launch.predicted_us for launch in told.launches) / 1e3)
    assert told.low_ms * gpu.uncertainty == pytest.approx(told.predicted_ms)
    assert told.high_ms == pytest.approx(told.predicted_ms * gpu.uncertainty)
    assert 0 < told.launch_ms < told.predicted_ms
    assert "predicted, not measured" in told.total
    assert (told.tvm_launches, summary.tvm_launches) == (1, 1)  # tanh
    assert "; 1 launch of TVM's kernels counts as if perfect and may be far slower; " in told.total


def test_kernels_of_ours_say_why_and_those_of_tvm_only_how_long(network: Path, tmp_path: Path) -> None:
    launches = compile_onnx(network, tmp_path / "net.clbundle").explanation.launches
    (convolution,) = [launch for launch in launches if launch.kernel.startswith("conv2d")]
    assert " px x " in convolution.schedule
    assert convolution.flops == 2 * 8 * 8 * 9 * 36
    assert convolution.macs_per_load is not None
    assert convolution.macs_per_load > 1
    assert convolution.bound_by in ("launch", "arithmetic", "loads", "memory")
    foreign = [launch for launch in launches if launch.bound_by is None]
    assert [launch.layer for launch in foreign] == ["tanh"]
    assert foreign[0].predicted_us > 0


def test_every_summary_says_that_tvms_kernels_count_as_if_perfect(tmp_path: Path) -> None:
    nodes = [helper.make_node("Tanh", ["x"], ["t"]), helper.make_node("Softmax", ["t"], ["y"], axis=1)]
    foreign = save(tmp_path / "foreign.onnx", nodes, {"x": (1, 8)}, ["y"])
    shown = CliRunner().invoke(app, ["compile", str(foreign), "--out", str(tmp_path / "net.clbundle")])
    caveat = "2 launches of TVM's kernels count as if perfect and may be far slower"
    assert shown.output.endswith(f"ms on adreno-640 (a model's figure, not a measurement; {caveat})\n")
    ours = save(tmp_path / "ours.onnx", [conv("a", "x", "y")], {"x": (1, 8, 6, 6)}, ["y"], {"a.weight": KERNEL})
    shown = CliRunner().invoke(app, ["compile", str(ours), "--out", str(tmp_path / "net.clbundle")])
    assert shown.output.endswith("ms on adreno-640 (a model's figure, not a measurement)\n")


def test_the_command_prints_the_table_or_its_data(network: Path, tmp_path: Path) -> None:
    arguments = ["compile", str(network), "--out", str(tmp_path / "net.clbundle"), "--explain"]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "predicted us" in shown.output
    assert "predicted, not measured" in shown.output
    data = CliRunner().invoke(app, [*arguments, "--json"])
    explanation = json.loads(data.stdout)["explanation"]
    assert explanation["kind"] == "predicted"
    assert {launch["layer"] for launch in explanation["launches"]} >= {"tanh"}
