from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from tests.unit.train import tiny
from train.checkpoint import load_checkpoint
from train.config import DistillConfig
from train.loop import Evaluation, Loop
from train.rounds import distilled, mixed, phases
from train.stage import run_train

ROOT = Path(__file__).parents[3]


def history(out: Path) -> list[dict[str, Any]]:
    """The history without what a clock decides."""
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    run_train(tiny.config(), out, SilentReporter())
    return out


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("dense.safetensors", "pruned.safetensors", "masks.safetensors", "samples.npz", "pruning.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert history(one) == history(other)


class StopAt:
    """Sends this process a SIGTERM when the `step`-th step is done."""

    def __init__(self, step: int) -> None:
        self._left = step

    def say(self, line: str) -> None:
        del line

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[StopAt]:
        del description, total
        yield self

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        del note
        for _ in range(amount):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGTERM)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(undisturbed: Path, tmp_path: Path) -> None:
    run_train(tiny.config(), tmp_path / "again", SilentReporter())
    assert_same_run(undisturbed, tmp_path / "again")
    run_train(tiny.config(seed=1), tmp_path / "other", SilentReporter())
    assert (tmp_path / "other" / "pruned.safetensors").read_bytes() != (undisturbed / "pruned.safetensors").read_bytes()


def test_a_run_killed_at_a_random_moment_ends_with_the_same_bytes(undisturbed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.train.tiny", str(tmp_path), "{}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kills = 0
    for after_lines in (random.Random().randint(0, 5), None):
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        path = tmp_path / "history.jsonl"
        while after_lines is not None and process.poll() is None:
            if path.exists() and len(path.read_bytes().splitlines()) > after_lines:
                time.sleep(random.Random().random() * 0.1)
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.002)
        else:
            assert process.wait() == 0
    assert kills == 1
    assert_same_run(undisturbed, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in undisturbed.iterdir()}


@pytest.mark.parametrize("step", [2, 20, 33])
def test_sigterm_leaves_a_checkpoint_from_which_the_run_goes_on_exactly(
    undisturbed: Path, tmp_path: Path, step: int
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_train(tiny.config(), tmp_path, StopAt(step))
    assert stopped.value.code == 143
    position = load_checkpoint(tmp_path / "checkpoint.safetensors").position
    # 90 samples in batches of 16 are 6 steps an epoch.
    assert position.global_epoch * 6 + position.step == step
    (tmp_path / ".checkpoint.safetensors.0.tmp").touch()  # as a SIGKILL during a checkpoint leaves it
    run_train(tiny.config(), tmp_path, SilentReporter())
    assert_same_run(undisturbed, tmp_path)
    assert not list(tmp_path.glob(".*"))
    assert not (tmp_path / "checkpoint.safetensors").exists()


class CrashAt(StopAt):
    """Ends the run on the spot when the `step`-th step is done."""

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        del note
        self._left -= amount
        if amount and self._left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("step", "saved"), [(14, 2), (23, 2), (33, 4)])
def test_with_fewer_checkpoints_a_crash_costs_epochs_and_changes_nothing(
    undisturbed: Path, tmp_path: Path, step: int, saved: int
) -> None:
    config = tiny.config(checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        run_train(config, tmp_path, CrashAt(step))
    position = load_checkpoint(tmp_path / "checkpoint.safetensors").position
    assert (position.global_epoch, position.step) == (saved, 0)
    run_train(config, tmp_path, SilentReporter())
    assert (tmp_path / "pruned.safetensors").read_bytes() == (undisturbed / "pruned.safetensors").read_bytes()
    assert history(tmp_path) == history(undisturbed)


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_are_deterministic_unless_told_otherwise_and_only_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    seen = set()
    evaluate = Loop.evaluate

    def watched(self: Loop) -> Evaluation:
        seen.add((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return evaluate(self)

    monkeypatch.setattr(Loop, "evaluate", watched)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    run_train(tiny.config(deterministic=deterministic), tmp_path, SilentReporter())
    assert seen == {(deterministic, not deterministic)}
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark) == before


def test_the_network_that_is_distilled_from_runs_in_the_precision_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    distillation = Loop._distillation

    def watched(self: Loop, logits: Tensor, images: Tensor, distill: DistillConfig) -> Tensor:
        assert isinstance(self.teacher, nn.Module)
        hook = self.teacher.get_submodule("fc").register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
        loss = distillation(self, logits, images, distill)
        hook.remove()
        return loss

    monkeypatch.setattr(Loop, "_distillation", watched)
    run_train(tiny.config(precision="bf16", distill={"weight": 0.5}), tmp_path, SilentReporter())
    assert seen == {torch.bfloat16}


def test_the_files_of_a_run_agree_with_each_other(undisturbed: Path) -> None:
    record = json.loads((undisturbed / "pruning.json").read_text())
    pruned, masks = load_file(undisturbed / "pruned.safetensors"), load_file(undisturbed / "masks.safetensors")
    dense = load_file(undisturbed / "dense.safetensors")
    assert dense.keys() == pruned.keys()
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert not pruned[name][~mask].any()
    assert record["schema"] == 1
    assert record["input_shape"] == [1, 1, 8, 8]
    total = 0
    for layer in record["layers"]:
        weight = pruned[layer["name"] + ".weight"]
        assert layer["shape"] == list(weight.shape)
        filters = int(weight.flatten(1).any(dim=1).sum())
        columns = int(weight.flatten(1).any(dim=0).sum())
        assert (layer["kept_filters"], layer["kept_columns"]) == (filters, columns)
        total += filters * columns
    assert record["conv_params"]["pruned"] == total
    assert record["frozen"][0]["group"] == "fc"
    samples = np.load(undisturbed / "samples.npz")
    data = tiny.few_digits()
    assert samples["images"].dtype == np.float32
    np.testing.assert_array_equal(samples["images"], data.normalised(data.test_images).numpy())
    np.testing.assert_array_equal(samples["labels"], data.test_labels.numpy())

    model = tiny.resnet()
    model.load_state_dict(pruned)
    with torch.no_grad():
        correct = int((model.eval()(torch.from_numpy(samples["images"])).argmax(dim=1) == data.test_labels).sum())
    assert record["accuracy"]["pruned_correct"] == correct
    assert record["accuracy"]["pruned"] == 100 * correct / 50


def test_the_history_tells_every_epoch_and_every_update(undisturbed: Path) -> None:
    lines = history(undisturbed)
    epochs = [(line["phase"], line["round"], line["epoch"]) for line in lines if line["type"] == "epoch"]
    expected = [("dense", -1, epoch) for epoch in (1, 2, 3)]
    expected += [("admm", 0, epoch) for epoch in (1, 2, 3)] + [("retrain", 0, epoch) for epoch in (1, 2)]
    expected += [("admm", 1, epoch) for epoch in (1, 2)] + [("retrain", 1, epoch) for epoch in (1, 2)]
    assert epochs == expected
    updates = [(line["round"], line["update"], line["rho"]) for line in lines if line["type"] == "residuals"]
    # Every second epoch of three, then every epoch of two; rho grows by 1.3 after an update.
    assert updates == [(0, 1, 1e-3), (1, 1, 1e-3), (1, 2, pytest.approx(1.3e-3))]


def test_the_last_epoch_is_reported_even_when_an_earlier_one_was_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trap: reporting the best test epoch.
    scores = iter(range(50, 0, -1))
    monkeypatch.setattr(Loop, "evaluate", lambda _self: Evaluation(next(scores), 50))
    run_train(tiny.config(), tmp_path, SilentReporter())
    record = json.loads((tmp_path / "pruning.json").read_text())
    last = [line for line in history(tmp_path) if line["type"] == "epoch"][-1]["test_accuracy"]
    assert record["accuracy"]["pruned"] < last + 1e-9
    assert record["accuracy"]["pruned_correct"] == next(scores) + 1


def test_a_diverging_loss_names_step_and_rate_and_leaves_the_checkpoint_intact(tmp_path: Path) -> None:
    changes = {"rounds": [{"structure": "filter", "sparsity": 0.5, "admm_epochs": 2, "lr": 1e30}]}
    with pytest.raises(UserError, match=r"(loss is nan|weights are not finite).*step.*learning rate.*1e\+30"):
        run_train(tiny.config(**changes), tmp_path, SilentReporter())
    checkpoint = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert checkpoint.position.global_epoch == 3
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint.tensors.values())


def test_a_run_stops_before_training_when_a_later_round_is_wrong(tmp_path: Path) -> None:
    rounds = [{"structure": "filter", "sparsity": 0.5}, {"structure": "column", "sparsity": {"layer9.*": 0.5}}]
    with pytest.raises(UserError, match=r"'layer9\.\*', which matches no layer"):
        run_train(tiny.config(rounds=rounds), tmp_path, SilentReporter())
    assert not (tmp_path / "history.jsonl").exists()


def test_a_network_without_convolutions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no convolution to prune"):
        run_train(tiny.config(model={"entry": "tests.unit.train.tiny:no_convolution"}), tmp_path, SilentReporter())


def test_a_checkpoint_of_something_else_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run_train(tiny.config(), tmp_path, StopAt(8))
    with pytest.raises(UserError, match=r"train\.optimizer\.momentum differs"):
        run_train(tiny.config(optimizer={"momentum": 0.5}), tmp_path, SilentReporter())

    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is not a checkpoint"):
        run_train(tiny.config(), tmp_path, SilentReporter())


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        run_train(tiny.config(), tmp_path, StopAt(8))
    original = tiny.resnet
    monkeypatch.setattr(tiny, "resnet", lambda: original(width=8))
    with pytest.raises(UserError, match="another architecture") as refused:
        run_train(tiny.config(), tmp_path, SilentReporter())
    assert "\n" not in str(refused.value)


def test_a_network_with_one_weight_under_two_names_is_trained_and_saved(tmp_path: Path) -> None:
    run_train(tiny.config(model={"entry": "tests.unit.train.tiny:shared_weight"}), tmp_path, SilentReporter())
    pruned = load_file(tmp_path / "pruned.safetensors")
    assert torch.equal(pruned["layer1.0.conv1.weight"], pruned["layer1.0.conv2.weight"])


@pytest.mark.parametrize("ramp", [0, 3])
def test_the_admm_phase_ends_early_once_it_has_converged_and_its_ramp_is_over(tmp_path: Path, ramp: int) -> None:
    rounds = [
        {
            **{"structure": "filter", "sparsity": 0.5, "admm_epochs": 9, "ramp_epochs": ramp, "retrain_epochs": 1},
            "converged_residual": 0.999,
        }
    ]
    run_train(tiny.config(rounds=rounds), tmp_path, SilentReporter())
    assert sum(line.get("phase") == "admm" for line in history(tmp_path)) == max(1, ramp)


def test_distillation_may_be_left_to_the_last_retraining() -> None:
    config = tiny.config(distill={"phases": "last"})
    told = {(phase.kind, phase.round): distilled(config, phase) is not None for phase in phases(config)}
    assert [key for key, on in told.items() if on] == [("retrain", 1)]
    everywhere = tiny.config(distill={})
    told = {(phase.kind, phase.round): distilled(everywhere, phase) is not None for phase in phases(everywhere)}
    assert [key for key, on in told.items() if not on] == [("dense", -1)]
    assert distilled(tiny.config(), phases(config)[-1]) is None


def test_images_are_blended_in_every_phase_or_in_the_last_retraining() -> None:
    everywhere, last = tiny.config(mix={}), tiny.config(mix={"phases": "last"})
    assert all(mixed(everywhere, phase) is not None for phase in phases(everywhere))
    told = [(phase.kind, phase.round) for phase in phases(last) if mixed(last, phase) is not None]
    assert told == [("retrain", 1)]
    assert mixed(tiny.config(), phases(last)[-1]) is None


def test_a_run_on_blends_differs_from_one_without_and_goes_on_to_the_bit(undisturbed: Path, tmp_path: Path) -> None:
    changes = {"mix": {"alpha": 1.0}, "distill": {"phases": "last"}, "accumulate": 2}
    run_train(tiny.config(**changes), tmp_path / "whole", SilentReporter())
    with pytest.raises(SystemExit):
        run_train(tiny.config(**changes), tmp_path / "stopped", StopAt(30))
    run_train(tiny.config(**changes), tmp_path / "stopped", SilentReporter())
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert (tmp_path / "whole" / "dense.safetensors").read_bytes() != (undisturbed / "dense.safetensors").read_bytes()


def test_distillation_pulls_towards_the_dense_network(undisturbed: Path, tmp_path: Path) -> None:
    changes = {"distill": {"weight": 1.0}}
    with pytest.raises(SystemExit):
        run_train(tiny.config(**changes), tmp_path, StopAt(30))
    run_train(tiny.config(**changes), tmp_path, SilentReporter())
    assert (tmp_path / "dense.safetensors").read_bytes() == (undisturbed / "dense.safetensors").read_bytes()

    def distance(out: Path) -> float:
        images = torch.from_numpy(np.load(out / "samples.npz")["images"])
        logits = []
        for name in ("dense", "pruned"):
            model = tiny.resnet()
            model.load_state_dict(load_file(out / f"{name}.safetensors"))
            with torch.no_grad():
                logits.append(model.eval()(images).softmax(dim=1))
        return float((logits[0] - logits[1]).norm())

    assert distance(tmp_path) < distance(undisturbed)


def test_a_network_to_distil_from_may_be_given(undisturbed: Path, tmp_path: Path) -> None:
    def run(name: str, **section: Any) -> Path:
        run_train(tiny.config(distill={"phases": "last", **section}), tmp_path / name, SilentReporter())
        return tmp_path / name

    own = run("own")
    assert_same_run(own, run("same", weights=str(undisturbed / "dense.safetensors")))
    other = run("other", weights=str(undisturbed / "pruned.safetensors"))
    assert (other / "dense.safetensors").read_bytes() == (own / "dense.safetensors").read_bytes()
    assert (other / "pruned.safetensors").read_bytes() != (own / "pruned.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"train\.distill\.weights: .*none\.safetensors does not exist"):
        run("absent", weights=str(tmp_path / "none.safetensors"))


RAMP = {"structure": "filter", "sparsity": 0.5, "admm_epochs": 4, "ramp_epochs": 3, "penalise": "removed"}
RETURN = {**RAMP, "structure": "column", "sparsity": 0.8, "loss_at": "projection", "rho": 0.1}


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16", "channels_last": True},
        {"optimizer": {"kind": "adamw"}},
        {"rounds": [RAMP]},
        {"rounds": [RETURN]},
    ],
)
def test_every_way_of_training_keeps_masked_weights_at_zero_and_resumes(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    run_train(tiny.config(**changes), tmp_path / "whole", SilentReporter())
    with pytest.raises(SystemExit):
        run_train(tiny.config(**changes), tmp_path / "halved", StopAt(28))
    run_train(tiny.config(**changes), tmp_path / "halved", SilentReporter())
    assert_same_run(tmp_path / "whole", tmp_path / "halved")
    pruned = load_file(tmp_path / "whole" / "pruned.safetensors")
    for name, mask in load_file(tmp_path / "whole" / "masks.safetensors").items():
        assert not pruned[name][~mask].any()


@pytest.mark.parametrize("structure", ["column", "channel"])
def test_a_phase_with_the_loss_at_the_projection_trains_and_tests_the_network_to_come(
    tmp_path: Path, structure: str
) -> None:
    whole = {**RETURN, "structure": structure, "ramp_epochs": 0, "retrain_epochs": 0, "admm_epochs": 3}
    tests = {}
    for place in ("projection", "weights"):
        run_train(tiny.config(rounds=[{**whole, "loss_at": place}]), tmp_path / place, SilentReporter())
        lines = history(tmp_path / place)
        cut = next(line["test_accuracy"] for line in lines if line["type"] == "hard_prune")
        tests[place] = ([line["test_accuracy"] for line in lines if line["type"] == "epoch"][-1], cut)
        residuals = [line["layers"] for line in lines if line["type"] == "residuals"]
        assert max(layer["primal"] for layer in residuals[-1].values()) > 0.1  # far from a converged W = Z
    assert tests["projection"][0] == tests["projection"][1]
    assert tests["weights"][0] != tests["weights"][1]


def run_two_processes(out: Path, changes: dict[str, Any]) -> None:
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "tests.unit.train.tiny", str(out), repr(changes)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    # A launcher that started one process would pass every comparison with one process.
    assert sorted(re.findall(r"process \d of \d", finished.stdout)) == ["process 0 of 2", "process 1 of 2"]
    # Such a thread aborts its process one time in forty, when the interpreter shuts down before it is done.
    assert re.findall(r"threads of the group left: (.*)", finished.stdout) == ["[]", "[]"]


def test_accumulation_and_two_processes_give_the_weights_of_one(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "model": {"entry": "tests.unit.train.tiny:WithoutBatchNorm"},
        "rounds": [
            {"structure": "filter", "sparsity": 0.5, "admm_epochs": 2, "retrain_epochs": 1, "rho": 0.1},
            {**RETURN, "admm_epochs": 3, "retrain_epochs": 1},
        ],
    }
    run_train(tiny.config(**changes), tmp_path / "one", SilentReporter())
    run_train(tiny.config(**changes, accumulate=3), tmp_path / "accumulated", SilentReporter())
    run_two_processes(tmp_path / "two", changes)
    one = load_file(tmp_path / "one" / "pruned.safetensors")
    for other in ("accumulated", "two"):
        found = load_file(tmp_path / other / "pruned.safetensors")
        for name, value in one.items():
            # 36 steps of float32 whose sums are taken in another order; a wrong scale shows in the first digit.
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_every_process_has_as_many_parts_of_a_batch_whatever_its_share(tmp_path: Path) -> None:
    """Batches of 7 and a last one of 6 in four parts: shares of 3 and 4 images, which are less than a pair each."""
    changes: dict[str, Any] = {
        "batch_size": 7,
        "model": {"entry": "tests.unit.train.tiny:WithoutBatchNorm"},
        "dense": {"epochs": 2},
        "rounds": [{"structure": "filter", "sparsity": 0.5, "admm_epochs": 1, "retrain_epochs": 1, "rho": 0.1}],
    }
    run_train(tiny.config(**changes), tmp_path / "one", SilentReporter())
    run_train(tiny.config(**changes, accumulate=5), tmp_path / "accumulated", SilentReporter())
    run_two_processes(tmp_path / "two", {**changes, "accumulate": 4})
    one = load_file(tmp_path / "one" / "pruned.safetensors")
    for other in ("accumulated", "two"):
        found = load_file(tmp_path / other / "pruned.safetensors")
        for name, value in one.items():
            # 52 steps of float32 whose sums are taken in another order; gradients of one process alone differ at once.
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def test_micro_batches_of_one_image_do_not_reach_batch_norm(tmp_path: Path) -> None:
    """The last batch of 10 images in eight parts: a normalisation over 1x1 pixels needs two images."""
    changes: dict[str, Any] = {"model": {"entry": "tests.unit.train.tiny:normalised_at_the_end"}, "accumulate": 8}
    rounds = [{"structure": "column", "sparsity": 0.5, "admm_epochs": 1, "retrain_epochs": 1}]
    run_train(tiny.config(**changes, dense={"epochs": 1}, rounds=rounds), tmp_path, SilentReporter())
    assert (tmp_path / "pruned.safetensors").exists()


def test_layers_that_are_not_trained_stay_whole(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model": {"entry": "tests.unit.train.tiny:partly_fixed"}, "dense": {"epochs": 1}}
    for structure in ("filter", "channel", "column", "nonstructured"):
        rounds = [{"structure": structure, "sparsity": 0.5, "first_layer": True, "admm_epochs": 1, "retrain_epochs": 1}]
        out = tmp_path / structure
        run_train(tiny.config(**changes, rounds=rounds), out, SilentReporter())
        record = json.loads((out / "pruning.json").read_text())
        (round_,) = record["rounds"]
        whole = [entry["layers"] for entry in round_["unpruned"] if "weights are not trained" in entry["reason"]]
        # Of a channel its readers are regularised: here those of the residual stream, which that layer reads.
        assert whole == [["conv1", "layer1.0.conv2"] if structure == "channel" else ["layer1.0.conv1"]]
        (fixed,) = (layer for layer in record["layers"] if layer["name"] == "layer1.0.conv1")
        assert (fixed["kept_filters"] == fixed["filters"]) == (structure != "channel")
        assert (fixed["nonzero"] == fixed["params"]) == (structure in ("column", "nonstructured"))
        assert len(round_["units"]) > 0


def test_two_processes_normalise_by_the_statistics_of_the_global_batch(tmp_path: Path) -> None:
    # Few steps: BatchNorm amplifies rounding from step to step, in one process with other sums just as much.
    changes: dict[str, Any] = {
        "dense": {"epochs": 1, "lr": 0.02},
        "rounds": [
            {
                "structure": "filter",
                "target": {"measure": "macs", "reduction": 2.0, "images": 8},
                "admm_epochs": 1,
                "retrain_epochs": 1,
            }
        ],
    }
    run_train(tiny.config(**changes), tmp_path / "one", SilentReporter())
    run_two_processes(tmp_path / "two", changes)
    one, two = (load_file(tmp_path / name / "pruned.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        # 18 steps; statistics of half a batch of 16 differ by a tenth.
        torch.testing.assert_close(two[name], value, rtol=5e-3, atol=5e-4)


class Sayings:
    """Keeps what a stage says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Sayings]:
        del description, total
        yield self

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        del amount, note


def test_a_person_sees_every_epoch_with_its_residuals_and_what_is_left_of_every_layer(
    undisturbed: Path, tmp_path: Path
) -> None:
    sayings = Sayings()
    run_train(tiny.config(), tmp_path, sayings)
    epochs = [line for line in history(tmp_path) if line["type"] == "epoch"]
    told = [line for line in sayings.lines if "loss" in line]
    assert len(told) == len(epochs)
    for line, epoch in zip(told, epochs, strict=True):
        assert f"loss {epoch['loss']:.3f}" in line
        assert f"test {epoch['test_accuracy']:.2f} %" in line
    # The first round updates Z and U after its second epoch of three, the second after each of two.
    assert [line.split(":")[0] for line in told if "residuals: primal" in line] == [
        "round 1 admm 2/3",
        "round 2 admm 1/2",
        "round 2 admm 2/2",
    ]
    layers = json.loads((undisturbed / "pruning.json").read_text())["layers"]
    table = sayings.lines[-len(layers) :]
    for line, layer in zip(table, layers, strict=True):
        filters = f"{layer['kept_filters']}/{layer['filters']}"
        columns = f"{layer['kept_columns']}/{layer['columns']}"
        assert line.split()[:4] == [layer["name"], filters, columns, str(layer["kept_params"])]
