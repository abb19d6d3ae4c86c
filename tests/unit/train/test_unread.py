"""What nothing reads is masked with the columns that read it, and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from export.unused_paths import remove_unused_paths
from structadmm.graph import capture
from structadmm.graph.count import count
from tests import architectures
from train.config import RoundConfig
from train.layers import Network
from train.masking import hard_prune
from train.models import build_model
from train.rounds import plan_round
from train.unread import unread_supports


def column_round(sparsity: float, block: int = 1) -> RoundConfig:
    return RoundConfig.model_validate(
        {"structure": "column", "sparsity": sparsity, "first_layer": True, "block": block}
    )


@pytest.mark.parametrize("name", sorted(architectures.ARCHITECTURES))
@pytest.mark.parametrize("sparsity", [0.7, 0.95])
def test_masking_what_nothing_reads_changes_no_output_and_leaves_nothing_unread(name: str, sparsity: float) -> None:
    torch.manual_seed(0)
    model = architectures.build(name).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 16, 16)
    graph, _ = capture(model, (images,))
    network = Network.of(graph)
    constraints = plan_round(column_round(sparsity), network, {}).constraints
    without = hard_prune(model, constraints, {})
    with torch.no_grad():
        expected = model(images)
    masks = hard_prune(model, constraints, {}, network.coupling.groups)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
    assert all((masks[name] <= mask).all() for name, mask in without.items())
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert not unread_supports(network.coupling.groups, shapes, masks)


def test_a_filter_goes_with_its_last_reader_and_takes_along_what_only_it_read() -> None:
    class Chain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.b = torch.nn.Conv2d(4, 4, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(4)
            self.c = torch.nn.Conv2d(4, 4, 3, padding=1)
            self.d = torch.nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.d(self.c(x) + self.norm(self.b(x)))

    model = Chain().eval()
    graph, _ = capture(model, (torch.randn(2, 3, 8, 8),))
    network = Network.of(graph)
    masks = {f"{layer}.weight": torch.ones(4, 4, *size, dtype=torch.bool) for layer, size in (("d", (1, 1)),)}
    masks["d.weight"][:, 2] = False
    masks["b.weight"] = torch.ones(4, 4, 3, 3, dtype=torch.bool)
    masks["c.weight"] = masks["b.weight"].clone()
    masks["b.weight"][:, 1] = False
    masks["c.weight"][:, 1, 0] = False  # still reads it at six positions
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = unread_supports(network.coupling.groups, shapes, masks)
    for name in ("b.weight", "c.weight"):
        assert found[name].flatten(1).any(dim=1).tolist() == [True, True, False, True]
    for name in ("b.bias", "c.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
        assert found[name].tolist() == [True, True, False, True]
    assert "a.weight" not in found
    # Without its last reader, too, the first layer's filter goes.
    masks["c.weight"][:, 1] = False
    found = unread_supports(network.coupling.groups, shapes, masks)
    assert found["a.weight"].flatten(1).any(dim=1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_resnet20", "cifar_vgg16_bn"])
def test_what_training_counts_is_what_export_leaves(name: str) -> None:
    torch.manual_seed(1)
    model = build_model(name, {"width": 8}).eval()
    # Large enough that no tap of a kernel meets padding alone, which is another reason to remove it.
    graph, _ = capture(model, (torch.randn(2, 3, 64, 64),))
    network = Network.of(graph)
    masks: dict[str, torch.Tensor] = {}
    for sparsity, block in ((0.5, 4), (0.7, 1), (0.7, 1)):
        constraints = plan_round(column_round(sparsity, block), network, masks).constraints
        without = hard_prune(model, constraints, masks)
        unread = remove_unused_paths(graph, masked(model, without))
        masks = hard_prune(model, constraints, masks, network.coupling.groups)
        left = remove_unused_paths(graph, masked(model, masks))
        assert count(graph, masked(model, masks)).conv_params == count(graph, unread.state).conv_params
        assert count(graph, left.state).conv_params == count(graph, masked(model, masks)).conv_params
    assert unread.count


def masked(model: torch.nn.Module, masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value * masks.get(name, True) for name, value in model.state_dict().items()}


class Blurred(torch.nn.Module):
    """A fixed blur between two convolutions: its kernel is a buffer, as in BlurPool."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.register_buffer("kernel", torch.full((8, 1, 3, 3), 1 / 9))
        self.b = torch.nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blurred = torch.nn.functional.conv2d(self.a(x), self.get_buffer("kernel"), padding=1, groups=8)
        return self.b(blurred)


def test_kernels_that_are_buffers_are_not_pruned_and_do_not_hide_what_is_gone() -> None:
    model = Blurred().eval()
    graph, _ = capture(model, (torch.randn(2, 3, 8, 8),))
    network = Network.of(graph)
    for structure in ("column", "nonstructured"):
        config = RoundConfig.model_validate({"structure": structure, "sparsity": 0.5, "first_layer": True})
        plan = plan_round(config, network, {})
        assert "kernel" not in {name for constraint in plan.constraints for name in constraint.parameters}
        assert "kernel" in {name for item in plan.unpruned for name in item.layers}
    for structure in ("filter", "channel"):
        config = RoundConfig.model_validate({"structure": structure, "sparsity": 0.5, "first_layer": True})
        masks: dict[str, torch.Tensor] = {}
        kept = []
        for _ in range(3):
            plan = plan_round(config, network, masks)
            assert "kernel" not in {name for constraint in plan.constraints for name in constraint.parameters}
            kept.append(plan.units["a"])
            masks = hard_prune(model, plan.constraints, masks, network.coupling.groups)
        assert kept == [(8, 4), (4, 2), (2, 1)], structure
