from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from functools import cache
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from structadmm.errors import InvariantError
from structadmm.graph import trace
from tests.architectures import ARCHITECTURES, INPUT_SHAPE, build
from train.config import RoundConfig
from train.constraint import LayerConstraint
from train.layers import Network, kept_filters_and_columns
from train.masking import MaskedTraining, hard_prune
from train.models import build_model
from train.project import project_filters
from train.rounds import RoundPlan, plan_round

SMALL = "small ResNet-18"


def fresh(name: str = SMALL) -> nn.Module:
    if name == SMALL:
        torch.manual_seed(0)
        return build_model("cifar_resnet18", {"width": 8})
    return build(name)


@cache
def analysed(name: str = SMALL) -> Network:
    return Network.of(trace(fresh(name), (torch.zeros(2, *INPUT_SHAPE[1:]),)))


def plan(config: RoundConfig, name: str = SMALL, masks: Mapping[str, Tensor] | None = None) -> RoundPlan:
    return plan_round(config, analysed(name), masks or {})


def prune(model: nn.Module, *rounds: RoundConfig, name: str = SMALL) -> dict[str, Tensor]:
    """Hard-prune `model` by each round in turn, without training."""
    masks: dict[str, Tensor] = {}
    for config in rounds:
        masks = hard_prune(model, plan(config, name, masks).constraints, masks)
    return masks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_after_a_hard_prune_all_coupled_masks_agree_and_no_layer_is_empty(name: str) -> None:
    network = analysed(name)
    for structure in ("filter", "channel"):
        model = build(name)
        config = RoundConfig.model_validate(
            {"structure": structure, "sparsity": 0.6, "first_layer": True, "linear": True}
        )
        chosen = plan_round(config, network, {})
        assert chosen.constraints
        masks = hard_prune(model, chosen.constraints, {})
        parameters = dict(model.named_parameters())
        for group in network.coupling.groups:
            views = []
            for part in group.slices:
                if part.parameter in masks:
                    mask = masks[part.parameter].movedim(part.axis, 0)
                    along = mask.reshape(len(mask), -1).any(dim=1)
                    views.append(along[torch.as_tensor(part.indices)].any(dim=1))
            if not views:
                continue
            assert all(torch.equal(view, views[0]) for view in views), group.name
            expected = chosen.units[group.name][1] if group.name in chosen.units else group.units
            assert int(views[0].sum()) == expected, group.name
        for layer in network.layers:
            assert min(kept_filters_and_columns(layer, masks)) >= 1, layer.name
        for parameter, mask in masks.items():
            assert not parameters[parameter][~mask].any(), parameter


def test_convolutions_joined_by_an_add_lose_the_same_filters() -> None:
    # Trap: projected one by one, their masks disagree and no channel of the sum can be removed.
    model = fresh()
    masks = prune(model, RoundConfig(structure="filter", sparsity=0.5, first_layer=True))
    joined = ["layer2.0.conv2.weight", "layer2.0.shortcut.0.weight", "layer2.1.conv2.weight"]
    kept = [masks[name].flatten(1).any(dim=1) for name in joined]
    assert all(torch.equal(entry, kept[0]) for entry in kept)
    assert int(kept[0].sum()) == 8
    # Each alone would have kept others: the agreement is the group's doing.
    weights = dict(fresh().named_parameters())
    alone = [project_filters(weights[name].detach(), 8).mask.flatten(1).any(dim=1) for name in joined]
    assert not torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], alone[2])
    assert torch.equal(masks["layer2.1.conv1.weight"].any(dim=(0, 2, 3)), kept[0])
    assert torch.equal(masks["layer3.0.shortcut.0.weight"].any(dim=(0, 2, 3)), kept[0])


@pytest.mark.parametrize("structure", ["filter", "channel"])
def test_a_dead_filter_emits_exactly_zero_behind_its_batch_norm(structure: Literal["filter", "channel"]) -> None:
    # Trap: beta - gamma * mean / std of a zero filter is not zero. A channel round ranks by the readers' weights, so
    # that only the removal of the whole unit reaches gamma and beta.
    model = build("resnet18")
    outputs: dict[str, torch.Tensor] = {}
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d))
    target = model.get_submodule(name)
    target.register_forward_hook(lambda _module, _args, output: outputs.__setitem__("bn", output))
    images = torch.randn(INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    model(images)
    assert outputs["bn"].abs().amax(dim=(0, 2, 3)).min() > 0
    masks = prune(model, RoundConfig(structure=structure, sparsity=0.5, first_layer=True), name="resnet18")
    dead = ~masks[f"{name}.weight"]
    assert dead.any()
    for training in (False, True):
        model.train(training)
        model(images)
        assert not outputs["bn"][:, dead].any()
        assert outputs["bn"][:, ~dead].any()


def test_scale_and_shift_of_a_batch_norm_count_in_the_rank_of_their_filter_and_are_driven_to_zero_with_it() -> None:
    # Trap: BatchNorm divides by the filter's deviation, so that weights alone say nothing about what a filter emits.
    model = fresh()
    parameters = dict(model.named_parameters())
    weight, scale, shift = (parameters[f"layer3.0.{name}"] for name in ("conv1.weight", "bn1.weight", "bn1.bias"))
    with torch.no_grad():
        weight.fill_(1.0)  # all filters alike: those of lower index would stay
        scale.copy_(torch.arange(len(scale)) % 4)
        shift.copy_(torch.arange(len(shift)) % 2 * 10)
    for structure, expected in (("filter", torch.arange(32) % 2 == 1), ("channel", None)):
        chosen = plan(RoundConfig.model_validate({"structure": structure, "sparsity": 0.5}))
        (group,) = (c for c in chosen.constraints if c.name == "layer3.0.conv1")
        driven = {"layer3.0.conv1.weight", "layer3.0.bn1.weight", "layer3.0.bn1.bias"}
        if expected is None:
            # Readers' channels are one and the same function of the input whatever scale they are read at.
            assert not driven & set(group.parameters)
            continue
        assert set(group.parameters) == driven
        kept = group.project({name: parameters[name].detach() for name in driven}, {}).kept
        assert kept is not None
        assert torch.equal(kept, expected)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet", "unet", "alexnet"])
def test_channels_that_a_filter_round_masks_change_nothing(name: str) -> None:
    # The consumers' weights for dead channels multiply exact zeros: with and without them the output is the same.
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    chosen = plan(RoundConfig(structure="filter", sparsity=0.5, first_layer=True), name)
    masks = hard_prune(model, chosen.constraints, {})
    producers = {part.parameter for c in chosen.constraints for part in c.group.producers + c.group.affine}  # type: ignore[attr-defined]
    consumers = {part.parameter for c in chosen.constraints for part in c.group.consumers}  # type: ignore[attr-defined]
    images = torch.randn(2, *INPUT_SHAPE[1:], generator=torch.Generator().manual_seed(1))
    masked = model(images)
    revived = model.state_dict()
    for parameter in consumers - producers:
        assert (~masks[parameter]).any()
        revived[parameter] = before[parameter]
    model.load_state_dict(revived)
    # Adding zeros is exact; kernels may order the remaining terms alike because shapes are the same.
    torch.testing.assert_close(model(images), masked, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_weight_decay_and_momentum_never_revive_masked_weights(kind: str) -> None:
    # Trap: momentum collected before the prune, or decay of stale values, moves masked weights.
    from train.config import OptimizerConfig
    from train.loop import make_optimizer

    model = fresh()
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    masks = prune(
        model,
        RoundConfig(structure="filter", sparsity=0.5),
        RoundConfig(structure="column", sparsity=0.5),
    )
    parameters = dict(model.named_parameters())
    optimizer = make_optimizer(OptimizerConfig.model_validate({"kind": kind, "weight_decay": 0.1}), model, 0.1)
    masked = MaskedTraining(parameters, masks)
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        masked.mask_gradients()
        optimizer.step()
    masked.check()
    moved = parameters["layer3.0.conv1.weight"].detach() != before["layer3.0.conv1.weight"]
    assert torch.equal(moved, masks["layer3.0.conv1.weight"])


def test_a_revived_weight_breaks_an_invariant_that_names_it() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    masked = MaskedTraining({"conv.weight": weight}, {"conv.weight": torch.tensor([[True, False], [True, True]])})
    masked.check()
    weight.data[0, 1] = 1e-30
    with pytest.raises(InvariantError, match=r"1 masked weights of conv\.weight"):
        masked.check()


def test_weights_and_mask_agree_on_ties() -> None:
    # Trap: zeroing `< percentile` and masking `> percentile` leaves tied weights neither zero nor trained.
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.ones(2, 4, 1, 1)))
    masks = hard_prune(model, [LayerConstraint("conv", "weight", "column", keep=2)], {})
    assert torch.equal(masks["weight"], dict(model.named_parameters())["weight"] != 0)
    assert int(masks["weight"].any(dim=0).sum()) == 2


def test_almost_total_sparsity_leaves_one_unit_in_every_layer() -> None:
    # Trap: a layer pruned to nothing.
    model = fresh()
    masks = prune(
        model,
        RoundConfig(structure="filter", sparsity=0.999, first_layer=True),
        RoundConfig(structure="column", sparsity=0.999, first_layer=True),
    )
    for layer in analysed().layers:
        assert kept_filters_and_columns(layer, masks) == (1, 1)


def test_rounds_count_what_is_alive_and_never_revive_it() -> None:
    model = fresh()
    config = RoundConfig(structure="filter", sparsity=0.5)
    first = prune(model, config)
    second = plan(config, masks=first)
    assert second.units["layer4.0.conv1"] == (32, 16)
    masks = hard_prune(model, second.constraints, first)
    for name, mask in first.items():
        assert not (masks[name] & ~mask).any()
    columns = plan(RoundConfig(structure="column", sparsity=0.5, block=4), masks=masks)
    # 16 of 64 channels are alive: at most 16 and at least 4 blocks of 4 at each of the 9 positions.
    alive, keep = columns.units["layer4.0.conv2"]
    assert 4 * 9 <= alive <= 16 * 9
    assert keep == (alive + 1) // 2


def test_the_first_layer_stays_unless_asked_for() -> None:
    by_default = plan(RoundConfig(structure="filter", sparsity=0.5))
    assert "conv1" not in by_default.units
    assert any("conv1" in entry.layers and "first layer" in entry.reason for entry in by_default.unpruned)
    assert plan(RoundConfig(structure="filter", sparsity=0.5, first_layer=True)).units["conv1"] == (8, 4)
    columns = plan(RoundConfig(structure="column", sparsity=0.5))
    assert "conv1" not in columns.units
    assert "layer1.0.conv1" in columns.units


def test_what_is_left_alone_is_reported_with_its_reason() -> None:
    network_output = plan(RoundConfig(structure="filter", sparsity=0.5, linear=True)).unpruned
    assert any(entry.layers == ("fc",) and "output" in entry.reason for entry in network_output)
    hidden = plan(RoundConfig(structure="filter", sparsity=0.5), "vgg").unpruned
    assert any("linear = true" in entry.reason for entry in hidden)
    depthwise = plan(RoundConfig(structure="column", sparsity=0.5), "mobilenet_v2").unpruned
    assert any("grouped" in entry.reason for entry in depthwise)


def test_a_ramp_takes_most_units_at_first_and_ends_at_the_rounds_own() -> None:
    chosen = plan(RoundConfig(structure="filter", sparsity=0.75))
    before, after = zip(*chosen.units.values(), strict=True)
    courses = [[constraint.keep for constraint in chosen.ramped(step / 4)] for step in range(6)]
    assert courses[0] == list(before)
    assert courses[4] == courses[5] == list(after)
    for course in zip(*courses[:5], strict=True):
        losses = [earlier - later for earlier, later in itertools.pairwise(course)]
        assert losses == sorted(losses, reverse=True)
    assert chosen.ramped(1.0) == chosen.constraints
