from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.attempts import list_attempts
from pipeline.dense_baselines import BaselineFolder, list_baselines
from pipeline.evaluate import data_digest, evaluate_onnx
from pipeline.headline import README, headline, with_headline
from pipeline.predictions import PREDICTED, predict, read_prediction
from pipeline.published import PUBLISHED
from pipeline.reference_networks import NETWORK, ONNX, WEIGHTS, Folder, find_network, list_networks, networks_dir
from pipeline.results_page import accuracy_points, files, read_entries, speed_points
from pipeline.run_config import load_run_config
from pipeline.tuned_speed import read_tuned
from results.records import read_result
from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from train.config import DataConfig
from train.data import load_dataset
from tvm_build.compile import plan_onnx
from tvm_build.gpu import gpu_by_name

ROOT = Path(__file__).parents[3]
NETWORKS = list_networks()
# A network of images that have to be downloaded is evaluated by hand, as its page says.
EMBEDDED = [folder for folder in NETWORKS if folder.network.data.name == "digits"]


def by_name(folder: Folder) -> str:
    return folder.name


@pytest.mark.parametrize("folder", NETWORKS, ids=by_name)
def test_a_networks_description_agrees_with_the_result_beside_it(folder: Folder) -> None:
    network, result = folder.network, read_result(folder.path / "result.json")
    assert (network.conv_params, network.params, network.macs) == (result.conv_params, result.params, result.macs)
    assert network.accuracy.dense == result.accuracy.dense
    assert network.accuracy.test_samples == network.data.images
    assert network.accuracy.pruned == 100.0 * network.correct / network.data.images
    assert abs(network.accuracy.pruned - result.accuracy.pruned) <= 0.05  # ONNX Runtime against training's precision
    assert network.checks == result.checks


@pytest.mark.parametrize("folder", NETWORKS, ids=by_name)
def test_every_file_of_a_network_is_small_enough_for_a_repository(folder: Folder) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.path.iterdir()}
    assert {NETWORK, ONNX, "config.toml", "history.jsonl", "result.json", "report.html"} <= set(sizes)
    assert max(sizes.values()) < 2_000_000, sizes


@pytest.mark.parametrize("folder", EMBEDDED, ids=by_name)
def test_a_network_reaches_the_count_that_it_states_on_the_images_that_it_names(folder: Folder) -> None:
    data = load_dataset(DataConfig(name=folder.network.data.name))
    assert data_digest(data) == folder.network.data.sha256
    assert evaluate_onnx(folder.onnx, data, SilentReporter()).correct == folder.network.correct


@pytest.mark.parametrize("folder", list_baselines(), ids=lambda folder: folder.path.name)
def test_a_dense_baseline_is_what_its_history_says(folder: BaselineFolder) -> None:
    lines = [json.loads(line) for line in (folder.path / "history.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["type"] == "epoch"]
    assert {line["phase"] for line in epochs} == {"dense"}
    before = {found.path.name: found.baseline for found in list_baselines()}
    assert (
        len(epochs) + (before[folder.baseline.after].epochs if folder.baseline.after else 0) == folder.baseline.epochs
    )
    assert abs(epochs[-1]["test_accuracy"] - folder.baseline.percent) <= 0.1  # float32 against bf16
    config = load_run_config(folder.path / "config.toml").train
    assert (config.model.entry, config.data.name) == (folder.baseline.model.entry, folder.baseline.data.name)
    assert config.distill is None


def test_a_damaged_attempt_or_history_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "reference" / "attempts" / "some"
    folder.mkdir(parents=True)
    monkeypatch.setattr("pipeline.attempts.files", lambda _: tmp_path)
    (folder / "attempt.json").write_text('{"schema": 1, "title": "t", "conv_reduction": 2.0, "lesson": "l"}')
    with pytest.raises(UserError, match=r"history\.jsonl is no history"):
        list_attempts()
    (folder / "history.jsonl").write_text('{"type": "epoch", "test_accuracy": 50.0}\n')
    assert [(found.epochs, found.accuracy, found.exported) for found in list_attempts()] == [(1, 50.0, False)]
    shutil.copy(EMBEDDED[0].path / "result.json", folder)
    exported = read_result(folder / "result.json").accuracy.pruned
    assert [(found.epochs, found.accuracy, found.exported) for found in list_attempts()] == [(1, exported, True)]
    (folder / "attempt.json").write_text('{"schema": 1, "title": "t", "conv_reduction": -2.0, "lesson": "l"}')
    with pytest.raises(UserError, match="conv_reduction"):
        list_attempts()


def test_the_readme_shows_what_the_records_say() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_headline(text, headline(NETWORKS)), "run `python -m pipeline.headline`"


def test_the_results_page_and_its_plots_show_what_the_records_say() -> None:
    for name, text in files(read_entries()).items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, "run `python -m pipeline.results_page`"


def test_a_prediction_of_another_network_or_none_is_refused_in_one_line(copy: Path) -> None:
    folder = find_network(str(copy))
    assert read_prediction(folder) == read_prediction(EMBEDDED[0])
    record = json.loads((copy / PREDICTED).read_text())
    for change, complaint in (
        ({"onnx_sha256": "0" * 64}, "is of another network"),
        ({"pruned_ms": -1.0}, "pruned_ms"),
        (None, "is not there"),
    ):
        if change is None:
            (copy / PREDICTED).unlink()
        else:
            (copy / PREDICTED).write_text(json.dumps(record | change))
        with pytest.raises(UserError, match=complaint) as refused:
            read_prediction(folder)
        assert "\n" not in str(refused.value)


def test_a_tuned_measurement_of_another_network_is_refused_in_one_line(copy: Path) -> None:
    (copy / "tuned.json").unlink(missing_ok=True)
    folder = find_network(str(copy))
    assert read_tuned(folder) is None
    values = json.loads((copy / "result.json").read_text())
    (copy / "tuned.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"tuned\.json does not say what was tuned"):
        read_tuned(folder)
    values["environment"]["tuned"] = {"baseline": {"tuned": []}, "pruned": {"tuned": []}}
    values["environment"]["network"] = {"pruned.onnx": folder.network.onnx_sha256}
    (copy / "tuned.json").write_text(json.dumps(values))
    assert read_tuned(folder) is not None
    values["environment"]["network"] = {"pruned.onnx": 64 * "0"}
    (copy / "tuned.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"tuned\.json is of another network than .*pruned\.onnx"):
        read_tuned(folder)


def test_what_is_predicted_of_a_network_is_what_its_compilation_says(copy: Path) -> None:
    folder = find_network(str(copy))
    (copy / PREDICTED).unlink()
    found = predict(folder, SilentReporter())
    assert found == read_prediction(folder)
    plan = plan_onnx(folder.onnx, target=found.target, dtype=found.dtype)
    gpu = gpu_by_name(found.target)
    assert found.pruned_launch_ms == pytest.approx(len(plan.plan.launches) * gpu.launch_us / 1e3)
    assert found.pruned_launch_ms < found.pruned_ms < found.dense_ms


def test_rows_of_the_published_have_what_their_plots_need() -> None:
    entries = read_entries()
    assert {point.label for point in accuracy_points(entries)} >= {entry.folder.name for entry in entries}
    for entry in entries:
        points = [point for point in speed_points(entries) if point.label == entry.folder.name]
        measured, *tuned, predicted = points
        assert (measured.low, measured.high) == entry.result.latency_ms.speedup.ci95
        found = [entry.tuned.latency_ms.speedup.ci95] if entry.tuned is not None else []
        assert [(point.low, point.high) for point in tuned] == found
        assert predicted.value == entry.prediction.dense_ms / entry.prediction.pruned_ms
    for row in PUBLISHED:
        assert max(row.conv_reduction or 0, row.macs_reduction or 0, row.speed_up or 0) > 1
        assert (row.dense is None) == (row.pruned is None)
        assert (row.speed_up is None) == (not row.device)


def test_there_is_a_network_that_needs_no_download() -> None:
    assert EMBEDDED


def test_the_package_takes_every_network_along() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for folder in NETWORKS:
        assert folder.path.parent == networks_dir() == ROOT / "results" / "reference" / "networks"
    for name in (NETWORK, ONNX, WEIGHTS):
        assert f'"reference/networks/*/{name}"' in text


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(EMBEDDED[0].path, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_folder_of_ones_own_is_found_by_its_path(copy: Path) -> None:
    assert find_network(str(copy)).network == EMBEDDED[0].network


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=f"no reference network 'resnet': choose .*{EMBEDDED[0].name}"):
        find_network("resnet")


def test_a_changed_network_is_refused(copy: Path) -> None:
    content = bytearray((copy / ONNX).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / ONNX).write_bytes(content)
    with pytest.raises(UserError, match=f"{ONNX} is not the file that {NETWORK} describes"):
        find_network(str(copy))
    (copy / ONNX).unlink()
    with pytest.raises(UserError, match=f"holds no {ONNX}"):
        find_network(str(copy))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"correct": 0},
        {"input_shape": [3]},
        {"onnx_sha256": "0"},
        {"accuracy": {"dense": 101, "pruned": 1, "test_samples": 1}},
        {"macs": {"dense": 4, "pruned": 2, "ratio": 3}},
        {"surprise": 1},
    ],
)
def test_a_description_that_says_something_else_is_refused_in_one_line(copy: Path, change: dict[str, Any]) -> None:
    values = json.loads((copy / NETWORK).read_text())
    (copy / NETWORK).write_text(json.dumps(values | change))
    with pytest.raises(UserError) as caught:
        find_network(str(copy))
    assert "\n" not in str(caught.value)
    assert NETWORK in str(caught.value)
