"""Training what masks leave of a network is training the masked network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from export.living import living_network
from export.shrink import Shrunk
from structadmm.graph import capture
from structadmm.progress import SilentReporter
from tests.architectures import ARCHITECTURES, INPUT_SHAPE, build
from tests.unit.train import tiny
from tests.unit.train.test_run import StopAt, assert_same_run
from train.config import RoundConfig
from train.layers import Network
from train.living import LivingPart
from train.masking import MaskedTraining, hard_prune
from train.rounds import plan_round
from train.stage import run_train

Masks = Mapping[str, Tensor]


def pruned(model: nn.Module, shape: tuple[int, ...], structure: str, sparsity: float) -> tuple[LivingPart, Masks]:
    """What is left of `model`, which is pruned in place, and the masks."""
    captured = capture(model, (torch.zeros(shape, dtype=torch.float64),))
    config = RoundConfig.model_validate({"structure": structure, "sparsity": sparsity})
    plan = plan_round(config, Network.of(captured.graph), {})
    masks = hard_prune(model, plan.constraints, {})
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    smaller = living_network(captured.graph, {**captured.state, **state}, masks)
    assert smaller is not None
    assert smaller.kept
    return LivingPart(smaller, model), masks


@pytest.mark.parametrize("structure", ["filter", "channel"])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_logits_gradients_and_statistics_are_those_of_the_masked_network(name: str, structure: str) -> None:
    model = build(name).double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # draws as many numbers as there are channels
    living, masks = pruned(model, INPUT_SHAPE, structure, 0.5)
    whole = copy.deepcopy(model).train()
    model.train()
    images = torch.randn(6, *INPUT_SHAPE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for network, function in ((whole, whole), (model, living)):
        logits = function(images)
        functional.smooth_l1_loss(
            logits, torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
        ).backward()
        MaskedTraining(dict(network.named_parameters()), masks).mask_gradients()
    expected, found = dict(whole.named_parameters()), dict(model.named_parameters())
    for key, parameter in expected.items():
        if parameter.grad is not None:
            gradient = found[key].grad
            torch.testing.assert_close(torch.zeros_like(parameter) if gradient is None else gradient, parameter.grad)
    with torch.no_grad():
        torch.testing.assert_close(living(images), whole(images))
        # By now both have counted two batches into their running statistics.
        torch.testing.assert_close(model.eval()(images), whole.eval()(images))
        torch.testing.assert_close(living(images), whole(images))


def test_a_masked_filter_that_still_gives_a_constant_is_left_to_the_whole_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    captured = capture(model, (torch.zeros(2, 3, 8, 8),))
    mask = torch.ones_like(model.get_parameter("0.weight"), dtype=torch.bool)
    mask[:4] = False
    assert living_network(captured.graph, captured.state, {"0.weight": mask, "0.bias": mask[:, 0, 0, 0]}) is None
    whole = {"1.weight": mask[:, 0, 0, 0], "1.bias": mask[:, 0, 0, 0]}
    smaller = living_network(captured.graph, captured.state, {"0.weight": mask, "0.bias": mask[:, 0, 0, 0], **whole})
    assert smaller is not None
    assert smaller.state["3.weight"].shape == (4, 4, 3, 3)


class WithConstant(nn.Module):
    """Its forward pass makes a tensor, which is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.second = nn.Conv2d(8, 4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(
            self.second(torch.relu(self.first(x))) * torch.tensor([[[0.5]], [[1.0]], [[2.0]], [[4.0]]]), 1
        )


class Weighted(nn.Module):
    """Its forward pass makes a tensor for logits of ten classes."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits * torch.tensor([1.0, 2.0] * 5)


def constant_and_shared() -> nn.Module:
    """A residual network with a weight of two names, and a constant."""
    return nn.Sequential(tiny.shared_weight(), Weighted())


def test_a_constant_of_the_forward_pass_is_one_of_the_living_network() -> None:
    model = WithConstant()
    captured = capture(model, (torch.zeros(2, 3, 8, 8),))
    mask = torch.ones_like(model.get_parameter("first.weight"), dtype=torch.bool)
    mask[:6] = False
    smaller = living_network(captured.graph, captured.state, {"first.weight": mask})
    assert smaller is not None
    with torch.no_grad():
        model.get_parameter("first.weight").masked_fill_(~mask, 0.0)
        images = torch.randn(3, 3, 8, 8)
        torch.testing.assert_close(LivingPart(smaller, model)(images), model(images))


def test_what_is_zero_but_not_masked_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.Flatten())
    nn.init.zeros_(model.get_parameter("0.weight"))
    captured = capture(model, (torch.zeros(2, 3, 8, 8),))
    assert living_network(captured.graph, captured.state, {}) is None


def test_a_compact_run_is_the_same_run_but_for_rounding_and_resumes_to_the_bit(tmp_path: Path) -> None:
    for name, config in (("whole", tiny.config(compact=False)), ("compact", tiny.config())):
        run_train(config, tmp_path / name, SilentReporter(), living_network)
    whole, compact = (load_file(tmp_path / name / "pruned.safetensors") for name in ("whole", "compact"))
    assert any(not torch.equal(whole[key], compact[key]) for key in whole)
    masks = load_file(tmp_path / "whole" / "masks.safetensors")
    assert all(
        torch.equal(masks[key], value) for key, value in load_file(tmp_path / "compact" / "masks.safetensors").items()
    )
    for key, value in whole.items():
        if "running" in key:
            continue  # those of channels that nobody reads are not kept up
        torch.testing.assert_close(compact[key], value, rtol=1e-3, atol=1e-4)
    for step in (33, 47):
        with pytest.raises(SystemExit):
            run_train(tiny.config(), tmp_path / str(step), StopAt(step), living_network)
        run_train(tiny.config(), tmp_path / str(step), SilentReporter(), living_network)
        assert_same_run(tmp_path / "compact", tmp_path / str(step))


def test_a_run_with_a_shared_weight_and_a_constant_is_compact_too(tmp_path: Path) -> None:
    found: list[bool] = []

    def noticed(*arguments: Any) -> Shrunk | None:
        smaller = living_network(*arguments)
        found.append(smaller is not None)
        return smaller

    run_train(tiny.config(model={"entry": f"{__name__}:constant_and_shared"}), tmp_path, SilentReporter(), noticed)
    # The first retraining, and both phases of the second round.
    assert found == [True, True, True]


def test_a_branch_behind_an_expression_that_is_zero_at_one_is_alive() -> None:
    """A gate `1 - g` is no reason to take a branch for dead, whatever its parameter is now."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3, padding=1)
            self.b = nn.Conv2d(8, 8, 3, padding=1)
            self.c = nn.Conv2d(8, 8, 3, padding=1)
            self.gate = nn.Parameter(torch.tensor(0.5))
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.relu(self.a(x))
            y, z = functional.relu(self.b(x)), functional.relu(self.c(x))
            return self.head(torch.cat([self.gate * y, (1 - self.gate) * z], 1).mean((2, 3)))

    torch.manual_seed(0)
    model = Gated().double()
    part, _ = pruned(model, (2, 3, 8, 8), "filter", 0.5)
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(part(images), model(images))
    gradients = []
    for network in (part, model):
        model.zero_grad()
        network(images).square().sum().backward()
        assert model.c.weight.grad is not None
        gradients.append(model.c.weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0
