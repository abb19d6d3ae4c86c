"""Weights that were trained with other code than there is now are not exported as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from export.config import ExportConfig
from export.stage import run_export
from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from tests.unit.train import tiny
from train.models import build_model
from train.stage import run_train


class Negated(nn.Module):
    """The same parameters by the same names, and another meaning."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, part in network.named_children():
            self.add_module(name, part)
        self._network = (network,)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self._network[0](x)
        return -logits


class Penalised(nn.Module):
    """Keeps a tensor of the graph on itself in training, as models with further losses do."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny.resnet()
        self.penalty: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        if self.training:
            self.penalty = logits.abs().mean()
        return logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    run_train(tiny.config(), out, SilentReporter())
    return out


def test_what_training_gave_is_kept_and_what_it_gives_now_is_exported(trained: Path, tmp_path: Path) -> None:
    with np.load(trained / "samples.npz") as samples:
        assert samples["outputs"].shape == (len(samples["labels"]), 10)
    run_export(ExportConfig(), trained, tmp_path, SilentReporter())


def test_a_model_that_keeps_tensors_of_its_training_is_trained_to_the_end(tmp_path: Path) -> None:
    run_train(tiny.config(model={"entry": f"{__name__}:Penalised"}), tmp_path, SilentReporter())
    with np.load(tmp_path / "samples.npz") as samples:
        assert np.isfinite(samples["outputs"]).all()


def test_what_weights_do_not_tell_is_refused_where_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[nn.Module] = []

    def build(entry: str, kwargs: dict[str, Any]) -> nn.Module:
        built.append(Negated(build_model(entry, kwargs)) if built else build_model(entry, kwargs))
        return built[-1]

    monkeypatch.setattr("train.stage.build_model", build)
    with pytest.raises(UserError, match=r"tiny:resnet, built anew with .*, gives other outputs .*register it"):
        run_train(tiny.config(), tmp_path, SilentReporter())
    assert (tmp_path / "checkpoint.safetensors").exists()


def test_a_model_whose_code_has_changed_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tiny.resnet
    monkeypatch.setattr(tiny, "resnet", lambda *args: Negated(original(*args)))
    with pytest.raises(
        UserError, match=r"tiny:resnet gives other outputs than the network that was trained .*run from"
    ):
        run_export(ExportConfig(), trained, tmp_path / "out", SilentReporter())
    assert not (tmp_path / "out").exists()


def test_a_run_from_before_outputs_were_kept_is_exported(trained: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "train"
    earlier.mkdir()
    for path in trained.iterdir():
        (earlier / path.name).write_bytes(path.read_bytes())
    with np.load(trained / "samples.npz") as samples:
        np.savez(earlier / "samples.npz", images=samples["images"], labels=samples["labels"])
    run_export(ExportConfig(), earlier, tmp_path / "out", SilentReporter())
