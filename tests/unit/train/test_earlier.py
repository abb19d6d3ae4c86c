"""Runs that go on from the pruned network of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.living import living_network
from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from tests.unit.train import tiny
from tests.unit.train.test_run import CrashAt, StopAt, assert_same_run, history
from train.checkpoint import Position
from train.config import TrainConfig
from train.living import LivingPart
from train.loop import Loop
from train.stage import run_train


def first_round(**changes: Any) -> TrainConfig:
    config = tiny.config(**changes)
    return config.model_copy(update={"rounds": config.rounds[:1]})


def second_round(first: Path, **changes: Any) -> TrainConfig:
    config = tiny.config(dense={"epochs": 0}, after=str(first), **changes)
    return config.model_copy(update={"rounds": config.rounds[1:]})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of the first round alone."""
    run = tmp_path_factory.mktemp("first")
    run_train(first_round(), run / "train", SilentReporter(), living_network)
    return run


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("at-once")
    run_train(tiny.config(), out, SilentReporter(), living_network)
    return out


def test_rounds_that_go_on_from_a_run_end_with_the_bytes_of_one_run_of_all_rounds(
    first: Path, at_once: Path, tmp_path: Path
) -> None:
    run_train(second_round(first), tmp_path, SilentReporter(), living_network)
    assert_same_run(at_once, tmp_path)


@pytest.mark.parametrize("stop", [StopAt(3), CrashAt(15)])
def test_such_a_run_resumes(first: Path, at_once: Path, tmp_path: Path, stop: StopAt) -> None:
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        run_train(second_round(first), tmp_path, stop, living_network)
    run_train(second_round(first), tmp_path, SilentReporter(), living_network)
    assert_same_run(at_once, tmp_path)


def test_a_third_run_goes_on_from_the_second(first: Path, tmp_path: Path) -> None:
    run_train(second_round(first), tmp_path / "second" / "train", SilentReporter(), living_network)
    run_train(second_round(tmp_path / "second"), tmp_path / "third", SilentReporter(), living_network)
    rounds = json.loads((tmp_path / "third" / "pruning.json").read_text())["rounds"]
    assert [entry["structure"] for entry in rounds] == ["filter", "column", "column"]
    epochs = [line["round"] for line in history(tmp_path / "third") if line["type"] == "epoch"]
    assert epochs == [-1] * 3 + [0] * 5 + [1] * 4 + [2] * 4
    before, after = (
        load_file(folder / "masks.safetensors") for folder in (tmp_path / "second" / "train", tmp_path / "third")
    )
    assert all(bool((mask <= before[name]).all()) for name, mask in after.items() if name in before)


def test_it_distils_from_the_dense_network_not_from_what_it_starts_from(first: Path, tmp_path: Path) -> None:
    distil = {"weight": 1.0, "phases": "all"}
    explicit = {**distil, "weights": str(first / "train" / "dense.safetensors")}
    for name, section in (("default", distil), ("explicit", explicit)):
        run_train(second_round(first, distill=section), tmp_path / name, SilentReporter(), living_network)
    assert_same_run(tmp_path / "default", tmp_path / "explicit")


def test_a_teacher_that_was_pruned_is_run_without_what_it_lost(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.resnet()
    whole.load_state_dict(load_file(first / "train" / "pruned.safetensors"))
    whole.eval()
    epoch = Loop.train_epoch
    differences = []

    def spy(self: Loop, *arguments: Any, **options: Any) -> Position:
        assert isinstance(self.teacher, LivingPart)
        images = tiny.few_digits().normalised(tiny.few_digits().test_images)
        with torch.no_grad():
            differences.append(float((self.teacher(images) - whole(images)).abs().max()))
        return epoch(self, *arguments, **options)

    monkeypatch.setattr(Loop, "train_epoch", spy)
    section = {"weights": str(first / "train" / "pruned.safetensors")}
    run_train(second_round(first, distill=section), tmp_path, SilentReporter(), living_network)
    assert len(differences) == 4
    assert max(differences) < 1e-5


def damaged(run: Path) -> None:
    (run / "train" / "masks.safetensors").write_bytes(b"no tensors")


def without_the_dense_network(run: Path) -> None:
    (run / "train" / "dense.safetensors").unlink()


def with_masks_of_another(run: Path) -> None:
    save_file({"conv1.weight": torch.ones(2, 1, 3, 3, dtype=torch.bool)}, run / "train" / "masks.safetensors")


def unfinished(run: Path) -> None:
    (run / "train" / "pruning.json").unlink()


def no_record(run: Path) -> None:
    (run / "train" / "pruning.json").write_text('{"schema": 1}')


def of_another_network(run: Path) -> None:
    weights = load_file(run / "train" / "pruned.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if name != "fc.bias"}, run / "train/pruned.safetensors")


def on_other_images(run: Path) -> None:
    edit(run, lambda record: record["data"].update(name="many digits"))


def with_fewer_images(run: Path) -> None:
    edit(run, lambda record: record["data"].update(held_out_images=9))


def with_another_option(run: Path) -> None:
    edit(run, lambda record: record["data"]["config"].update(kwargs={"size": 16}))


def with_larger_images(run: Path) -> None:
    edit(run, lambda record: record.update(input_shape=[1, 1, 16, 16]))


def with_other_classes(run: Path) -> None:
    edit(run, lambda record: record["data"]["classes"].reverse())


def with_fewer_tests(run: Path) -> None:
    edit(run, lambda record: record["data"].update(test_images=49))


def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = run / "train" / "pruning.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damaged, r"train\.after: .*train is damaged"),
        (without_the_dense_network, r"train\.after: .*train is damaged .*dense\.safetensors"),
        (
            with_masks_of_another,
            r"train\.after: .*damaged \(mask of conv1\.weight is \[2, 1, 3, 3\], the weight \[4, 1",
        ),
        (unfinished, r"train\.after: .* has no finished train stage: run `structadmm train` on it first"),
        (no_record, r"train\.after: .*train is damaged"),
        (of_another_network, r"train\.after: .*pruned\.safetensors does not fit the model"),
        (on_other_images, r"train\.data\.name: few digits here, many digits in the run of train\.after"),
        (with_fewer_images, r"train\.data\.held_out, in images: 0 here, 9 in the run"),
        (with_another_option, r"train\.data\.kwargs: \{\} here, \{'size': 16\} in the run"),
        (with_larger_images, r"train\.data's images: \[1, 1, 8, 8\] here, \[1, 1, 16, 16\] in the run"),
        (with_other_classes, r"train\.data's classes: \['0', .*'9'\] here, \['9', .*'0'\] in the run"),
        (with_fewer_tests, r"train\.data's test images: 50 here, 49 in the run"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused_in_one_line(
    first: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    copy = tmp_path / "first"
    (copy / "train").mkdir(parents=True)
    for path in (first / "train").iterdir():
        (copy / "train" / path.name).write_bytes(path.read_bytes())
    spoil(copy)
    with pytest.raises(UserError, match=said) as refused:
        run_train(second_round(copy), tmp_path / "out", SilentReporter(), living_network)
    assert "\n" not in str(refused.value)


def test_a_model_of_another_size_is_refused(first: Path, tmp_path: Path) -> None:
    model = {"entry": "tests.unit.train.tiny:resnet", "kwargs": {"width": 8}}
    with pytest.raises(UserError, match=r"train\.model\.kwargs: \{'width': 8\} here, \{\} in the run"):
        run_train(second_round(first, model=model), tmp_path, SilentReporter(), living_network)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dense": {"epochs": 1}}, "set dense.epochs to 0, not 1"),
        ({"dense": {"epochs": 0}, "model": {"weights": "w.pt"}}, "after and model.weights both say where to start"),
    ],
)
def test_one_start_is_given(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny.config(after="runs/first", **changes)


def test_a_budget_is_tried_on_what_the_earlier_run_left(first: Path, tmp_path: Path) -> None:
    """Columns alone that keep a fifth each cannot leave a fifth of the weights; after half of the filters they can."""
    target = {"measure": "conv_params", "reduction": 5.0, "images": 8, "least_kept": 0.2}
    values = tiny.config().model_dump(mode="json")
    values |= {"rounds": [{"structure": "column", "target": target, "admm_epochs": 1, "retrain_epochs": 1}]}
    values |= {"dense": {"epochs": 0}, "data": {**values["data"], "held_out": 0.0}}
    with pytest.raises(UserError, match="cannot be met"):
        run_train(TrainConfig.model_validate(values), tmp_path / "alone", SilentReporter(), living_network)
    config = TrainConfig.model_validate(values | {"after": str(first)})
    run_train(config, tmp_path / "after", SilentReporter(), living_network)
    ratio = json.loads((tmp_path / "after" / "pruning.json").read_text())["conv_params"]["ratio"]
    assert ratio >= 5.0
