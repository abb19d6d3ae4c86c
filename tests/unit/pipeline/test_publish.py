"""A reference network made of a run: what it states is counted again on the file that is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.publish import publish
from pipeline.reference_networks import ONNX, Folder, list_networks
from results.records import read_result
from structadmm.errors import InvariantError
from structadmm.progress import SilentReporter

FOLDER = next(folder for folder in list_networks() if folder.network.data.name == "digits")


def run_of(folder: Folder, run: Path) -> Path:
    """The run directory that a folder could be of, as far as publishing reads it."""
    network = folder.network
    places = {"report": ("result.json", "report.html"), "train": ("history.jsonl",)}
    places["export"] = (ONNX, "shrunk.json", "shrunk.safetensors")
    for stage, names in places.items():
        (run / stage).mkdir(parents=True)
        for name in names:
            shutil.copyfile(folder.path / name, run / stage / name)
    shutil.copyfile(folder.path / "config.toml", run / "config.toml")
    pruning = {
        "schema": 1,
        "model": network.model.model_dump(),
        "input_shape": network.input_shape,
        "data": {"config": {"name": network.data.name}},
    }
    (run / "train" / "pruning.json").write_text(json.dumps(pruning))
    return run


def test_a_published_network_states_what_its_run_and_its_own_file_say(tmp_path: Path) -> None:
    run = run_of(FOLDER, tmp_path / "run")
    found = publish(run, tmp_path / "out", title="small", note="a note", reporter=SilentReporter())
    result = read_result(run / "report" / "result.json")
    assert (found.title, found.data.note, found.data.sha256) == ("small", "a note", FOLDER.network.data.sha256)
    assert (found.model, found.input_shape) == (FOLDER.network.model, FOLDER.network.input_shape)
    assert (found.correct, found.accuracy) == (FOLDER.network.correct, FOLDER.network.accuracy)
    assert found.accuracy.dense == result.accuracy.dense
    assert (found.conv_params, found.params, found.macs) == (result.conv_params, result.params, result.macs)
    assert (found.checks, found.tolerances) == (result.checks, result.tolerances)
    for name in ("config.toml", "history.jsonl", "result.json", "report.html", "shrunk.json", "shrunk.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (FOLDER.path / name).read_bytes()


def test_weights_of_an_earlier_network_do_not_stay_beside_another_one(tmp_path: Path) -> None:
    run = run_of(FOLDER, tmp_path / "run")
    publish(run, tmp_path / "out", title="small", note="", reporter=SilentReporter())
    (run / "export" / "shrunk.safetensors").write_bytes(bytes(2_500_000))
    publish(run, tmp_path / "out", title="large", note="", reporter=SilentReporter())
    assert not list((tmp_path / "out").glob("shrunk.*"))


def test_a_run_that_claims_another_accuracy_than_its_file_reaches_is_not_published(tmp_path: Path) -> None:
    run = run_of(FOLDER, tmp_path / "run")
    path = run / "report" / "result.json"
    values = json.loads(path.read_text())
    values["accuracy"]["pruned"] -= 0.1
    path.write_text(json.dumps(values))
    with pytest.raises(InvariantError, match="the run says"):
        publish(run, tmp_path / "out", title="small", note="", reporter=SilentReporter())
    assert not (tmp_path / "out").exists()
