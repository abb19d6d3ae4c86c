"""Each mistake ends `structadmm train` with one line and status 2."""

from __future__ import annotations

import datetime
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.cli import run_command_line
from tests.unit.train import tiny
from train.checkpoint import load_checkpoint
from train.config import DataConfig
from train.data import load_dataset


def write(path: Path, **changes: Any) -> Path:
    train = {
        "threads": 1,
        "device": "cpu",
        "batch_size": 16,
        "model": {"entry": "tests.unit.train.tiny:resnet"},
        "data": {"name": "tests.unit.train.tiny:few_digits"},
        "dense": {"epochs": 1},
        "rounds": [{"structure": "filter", "sparsity": 0.5, "admm_epochs": 1, "retrain_epochs": 1}],
    }
    path.write_text(tomli_w.dumps({"name": "x", "train": train | changes}))
    return path


def refused(capsys: pytest.CaptureFixture[str], config: Path, out: Path) -> str:
    assert run_command_line(["train", str(out), "--config", str(config)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("structadmm: ")]
    assert len(errors) == 1
    return errors[0]


def test_a_loss_that_is_not_a_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rounds = [{"structure": "filter", "sparsity": 0.5, "admm_epochs": 2, "lr": 1e30}]
    line = refused(capsys, write(tmp_path / "x.toml", rounds=rounds), tmp_path / "run")
    assert "step" in line
    assert "learning rate" in line
    checkpoint = load_checkpoint(next((tmp_path / "run").glob("**/checkpoint.safetensors")))
    assert checkpoint.position.global_epoch == 1
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint.tensors.values())


def test_a_rate_that_empties_a_layer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for sparsity in (1.0, {"layer1.*": 1.0}):
        rounds = [{"structure": "filter", "sparsity": sparsity}]
        assert "less than 1" in refused(capsys, write(tmp_path / "x.toml", rounds=rounds), tmp_path / "run")


def test_a_target_that_cannot_be_met_is_refused_before_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rounds = [
        {"structure": "column", "sparsity": 0.5},
        {"structure": "filter", "target": {"measure": "macs", "reduction": 1e4}},
    ]
    line = refused(capsys, write(tmp_path / "x.toml", rounds=rounds), tmp_path / "run")
    assert "cannot be met by removing filters" in line
    assert not list((tmp_path / "run").glob("**/history.jsonl"))
    both = [{"structure": "filter", "sparsity": 0.5, "target": {"measure": "macs", "reduction": 2.0}}]
    assert "give one of them" in refused(capsys, write(tmp_path / "x.toml", rounds=both), tmp_path / "run")
    absent = [{"structure": "filter", "target": {"measure": "latency", "limit": 1.0, "costs": "/nowhere.json"}}]
    assert "/nowhere.json does not exist" in refused(
        capsys, write(tmp_path / "x.toml", rounds=absent), tmp_path / "run"
    )


def test_weights_and_checkpoints_of_another_architecture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path / "x.toml")
    rounds = [{"structure": "filter", "sparsity": 0.5, "admm_epochs": 2, "lr": 1e30}]
    refused(capsys, write(tmp_path / "x.toml", rounds=rounds), tmp_path / "run")  # leaves a checkpoint
    original = tiny.resnet
    monkeypatch.setattr(tiny, "resnet", lambda: original(width=8))
    assert "another architecture" in refused(capsys, config, tmp_path / "run")

    save_file({name: value.clone() for name, value in original().state_dict().items()}, tmp_path / "w.safetensors")
    model = {"entry": "tests.unit.train.tiny:resnet", "weights": str(tmp_path / "w.safetensors")}
    assert "does not fit the model" in refused(capsys, write(tmp_path / "y.toml", model=model), tmp_path / "other")
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    assert "does not fit the model" in refused(capsys, write(tmp_path / "y.toml", model=model), tmp_path / "other")


def test_a_configuration_with_another_architecture_does_not_drop_a_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rounds = [{"structure": "filter", "sparsity": 0.5, "admm_epochs": 2, "lr": 1e30}]
    run = tmp_path / "run"
    refused(capsys, write(tmp_path / "x.toml", rounds=rounds), run)  # leaves a checkpoint
    checkpoint = next(run.glob("**/checkpoint.safetensors"))
    before, kept = checkpoint.read_bytes(), (run / "config.toml").read_text()
    wider = {"entry": "tests.unit.train.tiny:resnet", "kwargs": {"width": 8}}
    line = refused(capsys, write(tmp_path / "y.toml", rounds=rounds, model=wider), run)
    assert "train.model.kwargs.width: unset -> 8" in line
    assert checkpoint.read_bytes() == before
    assert (run / "config.toml").read_text() == kept
    # Asked for by name, training starts over: a good configuration completes in the same directory.
    config = write(tmp_path / "y.toml", model=wider)
    assert run_command_line(["train", str(run), "--config", str(config), "--force"]) == 0
    assert load_file(run / "train" / "pruned.safetensors")["conv1.weight"].shape[0] == 8


def test_data_that_was_tampered_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (batches / name).write_bytes(b"not what was published")
    data = {"name": "cifar10", "root": str(tmp_path)}
    model = {"entry": "cifar_resnet20"}
    assert "has MD5" in refused(capsys, write(tmp_path / "x.toml", data=data, model=model), tmp_path / "run")
    data["verify"] = False  # type: ignore[assignment]
    assert "is not a CIFAR-10 batch" in refused(
        capsys, write(tmp_path / "x.toml", data=data, model=model), tmp_path / "run"
    )
    folder = tmp_path / "images"
    for split in ("train", "val"):
        (folder / split / "a").mkdir(parents=True)
        (folder / split / "a" / "1.png").write_bytes(b"no image")
    data = {"name": "imagefolder", "root": str(folder)}
    assert "1.png is not an image" in refused(
        capsys, write(tmp_path / "x.toml", data=data, model=model), tmp_path / "run"
    )


def test_a_damaged_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rounds = [{"structure": "filter", "sparsity": 0.5, "admm_epochs": 2, "lr": 1e30}]
    config = write(tmp_path / "x.toml", rounds=rounds)
    refused(capsys, config, tmp_path / "run")
    path = next((tmp_path / "run").glob("**/checkpoint.safetensors"))
    tensors = load_file(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a checkpoint" in refused(capsys, config, tmp_path / "run")
    save_file(tensors, path, {"state": json.dumps({"schema": 99})})
    assert "schema 99" in refused(capsys, config, tmp_path / "run")


def raises(**options: Any) -> Any:
    raise KeyError("no such split", options)


def exits(**options: Any) -> Any:
    raise SystemExit(options.get("status", 3))


def exits_in_use() -> nn.Module:
    class Exits(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            raise SystemExit

    return Exits(1, 4, 3)


def small_images_only() -> nn.Module:
    class Asserts(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-1] == 4
            out: Tensor = super().forward(x)
            return out

    return Asserts(nn.Conv2d(1, 4, 3))


def two_results_while_training() -> nn.Module:
    """As GoogLeNet's auxiliary heads are written."""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny.resnet()

        def forward(self, x: Tensor) -> Any:
            out = self.net(x)
            return (out, out) if self.training else out

    return Auxiliary()


def three_outputs() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def one_convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data": {"name": "tests.unit.train.tiny:few_digits", "kwargs": {"sise": 8}}},
            "with kwargs {'sise': 8} does not load: few_digits() got an unexpected keyword argument 'sise'",
        ),
        ({"data": {"name": "tests.unit.train.test_refusals:raises"}}, "does not load: ('no such split'"),
        ({"model": {"entry": "tests.unit.train.test_refusals:raises"}}, "cannot be built with {}: ('no such split'"),
        ({"data": {"name": "tests.unit.train.test_refusals:exits"}}, "does not load: it calls sys.exit(3)"),
        ({"model": {"entry": "tests.unit.train.test_refusals:exits"}}, "with {}: it calls sys.exit(3)"),
        ({"model": {"entry": "tests.unit.train.test_refusals:exits_in_use"}}, "images (2, 1, 8, 8): it calls sys.exit"),
        ({"model": {"entry": "tests.unit.train.test_refusals:small_images_only"}}, "does not take images (2, 1, 8, 8)"),
        (
            {"model": {"entry": "tests.unit.train.test_refusals:two_results_while_training"}},
            "to a tuple while training, expected logits (2, 10): return the logits alone",
        ),
        (
            {"model": {"entry": "tests.unit.train.test_refusals:three_outputs"}},
            "to (2, 3), expected logits (2, 10): give it 10 outputs, one for each class",
        ),
        (
            {"data": {"name": "tests.unit.train.tiny:few_digits", "held_out": 0.99}},
            "1 training images are left, expected at least 2: lower train.data.held_out",
        ),
        (
            {"rounds": [{"structure": "filter", "sparsity": {"fc": 0.5}}]},
            "round 1 (filter) has nothing to prune (fc: ",
        ),
        (
            {
                "model": {"entry": "tests.unit.train.test_refusals:one_convolution"},
                "rounds": [{"structure": "filter", "sparsity": 0.5}],
            },
            "has nothing to prune (0: shares its filters with the first layer (first_layer = true prunes them)",
        ),
        (
            {"rounds": [{"structure": "filter", "sparsity": 0.5, "multiple": 1000}]},
            "multiple = 1000 rounds the 4 units to keep up to all 8",
        ),
        (
            {"rounds": {"structure": "filter", "sparsity": 0.5}},
            "one table, expected a list of tables: write [[train",
        ),
        (
            {"rounds": [{"structure": "filter", "target": {"measure": "latency", "limit": 1.0}}]},
            "a latency target needs costs",
        ),
        (
            {"rounds": [{"structure": "filter", "target": {"measure": "macs", "limit": 1.0, "costs": "c.json"}}]},
            "costs is the table of a latency target, the measure is 'macs': leave it out",
        ),
        ({"rounds": [{"structure": "filter", "sparsity": 0.5, "rho_max": float("inf")}]}, "finite number"),
        (
            {"model": {"entry": "tests.unit.train.tiny:resnet", "kwargs": {"clip": [float("inf")]}}},
            "[train.model.kwargs]: clip is [inf], expected what JSON can hold",
        ),
        (
            {"data": {"name": "tests.unit.train.tiny:few_digits", "kwargs": {"since": datetime.date(2020, 1, 1)}}},
            "[train.data.kwargs]: since is datetime.date(2020, 1, 1), expected what JSON can hold",
        ),
        ({"dense": {"lr": float("nan")}}, "[train.dense] lr = nan: expected it to be a finite number"),
    ],
)
def test_what_the_users_own_code_raises_and_numbers_that_are_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    assert said in refused(capsys, write(tmp_path / "x.toml", **changes), tmp_path / "run")


def test_a_module_that_does_not_compile(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_written_module.py").write_text("def net(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    line = refused(capsys, write(tmp_path / "x.toml", model={"entry": "half_written_module:net"}), tmp_path / "run")
    assert "half_written_module does not import (SyntaxError: " in line
    (tmp_path / "module_that_exits.py").write_text("import sys\nsys.exit('no data here')\n")
    line = refused(capsys, write(tmp_path / "x.toml", model={"entry": "module_that_exits:net"}), tmp_path / "run")
    assert "module_that_exits does not import (RuntimeError: it calls sys.exit('no data here')): correct it" in line


def test_the_exit_that_a_sigterm_asks_for_passes_through_the_users_code() -> None:
    data = DataConfig(name="tests.unit.train.test_refusals:exits", kwargs={"status": 128 + signal.SIGTERM})
    with pytest.raises(SystemExit):
        load_dataset(data)


def test_a_layer_that_a_pattern_names_in_vain_is_told_of(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rounds = [{"structure": "filter", "sparsity": {"fc": 0.5, "layer1.0.conv1": 0.5}, "admm_epochs": 1}]
    config = write(tmp_path / "x.toml", rounds=rounds)
    assert run_command_line(["train", str(tmp_path / "run"), "--config", str(config)]) == 0
    assert "round 1: fc stays whole: " in capsys.readouterr().err


def test_a_round_that_removes_nothing_may_have_epochs_of_admm(tmp_path: Path) -> None:
    rounds = [{"structure": "column", "sparsity": 0.0, "admm_epochs": 1, "retrain_epochs": 1}]
    config = write(tmp_path / "x.toml", rounds=rounds)
    assert run_command_line(["train", str(tmp_path / "run"), "--config", str(config)]) == 0
