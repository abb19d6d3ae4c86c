"""A reference network against its dense self on a real OpenCL device, and its accuracy there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from device.local_target import choose_local_device, find_local_devices
from export.onnx_export import OnnxNetwork
from pipeline.cli import run_command_line
from pipeline.deploy import Settings, deploy
from pipeline.reference_networks import NETWORK, find_network, list_networks
from pipeline.shipped_tuning import DIRECTORY
from structadmm.errors import InvariantError
from structadmm.progress import SilentReporter

FOLDER = next(folder for folder in list_networks() if folder.network.data.name == "digits")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deployed")
    assert run_command_line(["deploy", FOLDER.name, "--runs", "20", "--out", str(out)]) == 0
    return out


def test_a_network_is_measured_against_its_dense_self_without_training(deployed: Path) -> None:
    result = json.loads((deployed / "result.json").read_text())
    device = choose_local_device("", find_local_devices())
    assert result["environment"]["device"]["option"] == "local"
    assert device.info.name in result["latency_ms"]["device"]
    assert result["latency_ms"]["kind"] == "host"
    assert result["latency_ms"]["baseline"]["samples"] == 20
    assert result["conv_params"]["ratio"] == FOLDER.network.conv_params.ratio
    assert result["accuracy"]["pruned"] == FOLDER.network.accuracy.pruned
    # Found on this device, for both networks; the rest is what the export found.
    assert 0 < result["checks"]["onnx_vs_device"] <= result["tolerances"]["onnx_vs_device"]
    assert result["checks"]["shrunk_vs_onnx"] == FOLDER.network.checks.shrunk_vs_onnx
    # The check of the dense network has something to compare: its logits depend on the input, random weights or not.
    dense = deployed / "baseline.clbundle"
    shown, expected = (np.load(dense / name) for name in ("input_0.npy", "output_0.npy"))
    other = OnnxNetwork(deployed / "baseline.onnx")(torch.from_numpy(-shown))[0].numpy()
    assert np.abs(other - expected).max() > 0.1
    # Fifteen times less work, on whatever busy machine.
    assert result["latency_ms"]["speedup"]["median"] > 1.0


def test_it_says_what_its_kernels_were_chosen_for_and_which_images_its_accuracies_are_of(deployed: Path) -> None:
    environment = json.loads((deployed / "result.json").read_text())["environment"]
    assert environment["device"]["kernels_for"] == ["opencl-cpu"]
    assert environment["data"]["sha256"] == FOLDER.network.data.sha256


def test_a_phones_kernels_on_a_processor_are_said_to_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["deploy", FOLDER.name, "--runs", "20", "--target", "adreno-640", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["environment"]["device"]["kernels_for"] == ["adreno-640"]
    [warning] = [line for line in result["latency_ms"]["warnings"] if "adreno-640" in line]
    assert "ran on this computer's processor" in warning


def test_both_networks_are_measured_with_tuned_schedules(capsys: pytest.CaptureFixture[str]) -> None:
    (database,) = DIRECTORY.glob("*.jsonl")
    command = ["deploy", FOLDER.name, "--runs", "20", "--target", "opencl-cpu", "--tuned", str(database), "--json"]
    assert run_command_line(command) == 0
    result = json.loads(capsys.readouterr().out)
    used = result["environment"]["tuned"]
    assert {use["database"] for use in used.values()} == {database.name}
    assert all(len(used[network]["tuned"]) > 0 for network in ("baseline", "pruned"))


def test_the_compiled_network_classifies_as_many_images_rightly_as_it_states(
    deployed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["evaluate", str(deployed / "pruned.clbundle"), "--data", "digits", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    [on_device] = value["results"]
    assert (on_device["correct"], on_device["images"]) == (FOLDER.network.correct, FOLDER.network.data.images)
    assert value["data"]["sha256"] == FOLDER.network.data.sha256


def test_a_bundle_is_not_asked_to_be_compiled_otherwise(deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(deployed / "pruned.clbundle")
    assert run_command_line(["evaluate", bundle, "--data", "digits", "--target", "adreno-640"]) == 2
    assert f"--target adreno-640: {bundle} is compiled already" in capsys.readouterr().err


def test_an_onnx_file_is_compiled_and_both_ways_answer_alike(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["evaluate", str(FOLDER.onnx), "--data", "digits", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [result["correct"] for result in value["results"]] == [FOLDER.network.correct] * 2
    assert value["differing"] == 0
    assert value["target"] == "opencl-cpu"


def test_a_dense_network_that_is_not_the_one_that_was_pruned_is_not_compared(tmp_path: Path) -> None:
    from device.config import MeasureConfig

    shutil.copytree(FOLDER.path, tmp_path / "other")
    values = json.loads((tmp_path / "other" / NETWORK).read_text())
    values["model"] = {"entry": "cifar_resnet20", "kwargs": {"width": 4, "num_classes": 10, "in_channels": 1}}
    (tmp_path / "other" / NETWORK).write_text(json.dumps(values))
    settings = Settings("local", "auto", "float32", MeasureConfig())
    with pytest.raises(InvariantError, match="its model is another one now"):
        deploy(find_network(str(tmp_path / "other")), settings, tmp_path / "out", SilentReporter())
