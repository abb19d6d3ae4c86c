from __future__ import annotations

import functools
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from export.shrink import shrink
from export.unused_paths import remove_unused_paths
from structadmm.errors import UserError
from structadmm.graph import Graph, capture
from structadmm.graph.count import count
from tests import architectures
from tests.unit.train import tiny
from train.budget import keep_count
from train.checkpoint import load_checkpoint
from train.config import RoundConfig
from train.constraint import Constraint, LayerConstraint, with_keep
from train.costs import Grid, load_costs, macs_table
from train.footprint import Footprint
from train.footprint_model import FootprintModel
from train.layers import Network
from train.models import build_model
from train.rounds import plan_round
from train.sensitivity import Damage, measure_damage, trial_counts
from train.target import Budget, as_toml, masks_after, neutral

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

State = dict[str, Tensor]


def captured(model: nn.Module, size: int = 16) -> tuple[Graph, State]:
    graph, state = capture(model.eval(), (torch.zeros(2, 3, size, size),))
    return graph, dict(state)


@functools.cache
def wide(name: str) -> tuple[Graph, State]:
    """Networks of usual widths: units small enough for a fit within 2 %."""
    torch.manual_seed(0)
    return captured(build_model(name, {"width": 32, "num_classes": 10, "in_channels": 3}), 32)


@functools.cache
def small(name: str) -> tuple[Graph, State]:
    return captured(architectures.build(name))


def round_config(**changes: Any) -> RoundConfig:
    return RoundConfig.model_validate(
        {"structure": "filter", "target": {"measure": "macs", "reduction": 4.0}} | changes
    )


def random_damages(constraints: Sequence[Constraint], alive: Sequence[int]) -> list[Damage]:
    del constraints
    generator = np.random.default_rng(0)
    measured = [generator.random(len(trial_counts(units))).cumsum() for units in alive]
    return [
        Damage.of(units, trial_counts(units), values.tolist(), 1e-3)
        for units, values in zip(alive, measured, strict=True)
    ]


def pruned_by(graph: Graph, plan_constraints: Sequence[Constraint], state: State, masks: State) -> tuple[State, State]:
    masks = masks_after(plan_constraints, state, masks, Network.of(graph).coupling.groups)
    return masks, {name: value * masks[name] if name in masks else value for name, value in state.items()}


@pytest.mark.parametrize("measure", ["conv_params", "params", "macs"])
@pytest.mark.parametrize("structure", ["filter", "channel", "column"])
@pytest.mark.parametrize("name", ["cifar_resnet18", "cifar_vgg16_bn"])
def test_a_target_is_met_within_two_percent_and_never_exceeded(name: str, structure: str, measure: str) -> None:
    graph, state = wide(name)
    config = round_config(
        structure=structure, first_layer=True, linear=True, target={"measure": measure, "reduction": 4.0}
    )
    budget = Budget(config, Network.of(graph), graph)
    allocation = budget.allocate(state, {}, random_damages)
    masks, pruned = pruned_by(graph, budget.plan(allocation.keeps, {}).constraints, state, {})
    assert 0.98 * budget.limit <= allocation.size <= budget.limit
    # Counted by another path: the pruned weights, as the reports count them.
    counts, dense = count(graph, pruned), count(graph)
    if measure != "params":
        found, whole = getattr(counts, measure), getattr(dense, measure)
        assert 0.98 * whole / 4 <= found <= whole / 4
    assert budget.footprint.total(masks) == allocation.size


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    st.sampled_from(["cifar_resnet18", "cifar_resnet20", "cifar_vgg16_bn"]),
    st.sampled_from(["filter", "channel", "column"]),
    st.sampled_from(["conv_params", "params", "macs"]),
    st.floats(1.05, 12.0),
)
def test_any_target_of_a_network_with_small_units_is_met_within_two_percent(
    name: str, structure: str, measure: str, reduction: float
) -> None:
    graph, state = wide(name)
    target = {"measure": measure, "reduction": reduction}
    budget = Budget(
        round_config(structure=structure, first_layer=True, linear=True, target=target), Network.of(graph), graph
    )
    allocation = budget.allocate(state, {}, random_damages)
    masks, _ = pruned_by(graph, budget.plan(allocation.keeps, {}).constraints, state, {})
    assert 0.98 * budget.limit <= budget.footprint.total(masks) <= budget.limit


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(architectures.ARCHITECTURES)),
    st.sampled_from(["filter", "channel", "column"]),
    st.sampled_from(["conv_params", "params", "macs"]),
    st.floats(1.05, 20.0),
)
def test_a_target_of_any_network_is_never_exceeded_or_refused_with_what_can_be_met(
    name: str, structure: str, measure: str, reduction: float
) -> None:
    graph, state = small(name)
    config = round_config(structure=structure, target={"measure": measure, "reduction": reduction})
    budget = Budget(config, Network.of(graph), graph)
    try:
        allocation = budget.allocate(state, {}, random_damages)
    except UserError as refusal:
        least = float(str(refusal).split(" is the least")[0].rsplit(" ", 1)[1])
        # Printed with six digits.
        assert least > budget.limit * (1 - 1e-5)
        return
    masks, _ = pruned_by(graph, budget.plan(allocation.keeps, {}).constraints, state, {})
    assert budget.footprint.total(masks) <= budget.limit


@pytest.mark.parametrize("measure", ["params", "macs"])
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "mobilenet_v2", "densenet", "shufflenet_v2", "googlenet", "unet", "resnext"]
)
def test_what_a_filter_target_counts_is_what_the_shrunk_network_has(name: str, measure: str) -> None:
    graph, state = small(name)
    config = round_config(first_layer=True, linear=True, target={"measure": measure, "reduction": 1.5})
    budget = Budget(config, Network.of(graph), graph)
    allocation = budget.allocate(state, {}, random_damages)
    assert allocation.size <= budget.limit
    _, pruned = pruned_by(graph, budget.plan(allocation.keeps, {}).constraints, state, {})
    shrunk = shrink(remove_unused_paths(graph, pruned))
    # Layers of 8 filters are too coarse for 2 %; the counts must be right all the same. Removing unused paths can only
    # remove more: a filter of a layer whose readers are gone for another reason.
    assert getattr(count(shrunk.graph), measure) <= allocation.size


@pytest.mark.parametrize("name", sorted(architectures.ARCHITECTURES))
@pytest.mark.parametrize("structure", ["filter", "channel", "column"])
def test_the_model_of_the_footprint_agrees_with_counting_masks(name: str, structure: str) -> None:
    graph, state = small(name)
    network = Network.of(graph)
    groups = network.coupling.groups
    generator = np.random.default_rng(1)
    columns = plan_round(
        round_config(structure="column", target=None, sparsity=0.3, first_layer=True), network, {}
    ).constraints
    config = round_config(structure=structure, first_layer=True, linear=True)
    for measure, earlier in itertools.product(("conv_params", "params", "macs"), ((), columns)):
        masks = masks_after(earlier, state, {}, groups)
        constraints = plan_round(config, network, masks, {}).constraints
        footprint = Footprint(graph, measure)  # type: ignore[arg-type]
        model = FootprintModel(footprint, constraints, state, masks, groups)
        assert model.total(model.alive) == footprint.total(masks)
        for _ in range(3):
            keeps = [int(generator.integers(1, alive + 1)) for alive in model.alive]
            pruned = [with_keep(constraint, keep) for constraint, keep in zip(constraints, keeps, strict=True)]
            exact = footprint.total(masks_after(pruned, state, masks, groups))
            # After removed columns, a filter can lose its last column, which only counting sees.
            assert exact <= model.total(keeps) if earlier else exact == model.total(keeps)
            index = int(generator.integers(len(keeps)))
            other = [*keeps[:index], 1, *keeps[index + 1 :]]
            saving = model.savings(keeps, index, np.array([1]))[0]
            assert model.total(keeps) - model.total(other) == pytest.approx(saving)


def test_a_filter_after_columns_is_settled_on_the_weights_that_are_pruned() -> None:
    graph, state = wide("cifar_resnet18")
    network = Network.of(graph)
    columns = plan_round(round_config(structure="column", target=None, sparsity=0.8), network, {}).constraints
    masks, state = pruned_by(graph, columns, state, {})
    budget = Budget(round_config(target={"measure": "macs", "reduction": 12.0}), network, graph)
    planned = budget.allocate(state, masks, random_damages)
    # Training moves the norms: other filters go, with other numbers of columns.
    torch.manual_seed(1)
    moved = {
        name: value + torch.randn_like(value) * masks.get(name, 1) if value.is_floating_point() else value
        for name, value in state.items()
    }
    settled = budget.settle(planned.keeps, moved, masks)
    _, pruned = pruned_by(graph, budget.plan(settled.keeps, masks).constraints, moved, masks)
    assert 0.98 * budget.limit <= count(graph, pruned).macs <= budget.limit
    changed = [abs(settled.keeps[name] - keep) for name, keep in planned.keeps.items()]
    assert sum(changed) <= 0.1 * sum(planned.keeps.values())


def test_settling_changes_nothing_when_the_target_is_met() -> None:
    graph, state = wide("cifar_resnet18")
    budget = Budget(round_config(), Network.of(graph), graph)
    planned = budget.allocate(state, {}, random_damages)
    assert budget.settle(planned.keeps, state, {}).keeps == planned.keeps


def test_settling_gives_units_back_when_too_little_of_the_target_is_used() -> None:
    graph, state = wide("cifar_resnet18")
    budget = Budget(round_config(), Network.of(graph), graph)
    planned = budget.allocate(state, {}, random_damages)
    fewer = {name: max(1, keep * 9 // 10) for name, keep in planned.keeps.items()}
    settled = budget.settle(fewer, state, {})
    assert budget.met(settled.size)
    assert all(settled.keeps[name] >= keep for name, keep in fewer.items())


def test_the_reported_rates_keep_the_same_units_when_pinned() -> None:
    graph, state = wide("cifar_resnet18")
    network = Network.of(graph)
    for structure, multiple in (("filter", 1), ("filter", 4), ("column", 1)):
        config = round_config(structure=structure, multiple=multiple, first_layer=True)
        budget = Budget(config, network, graph)
        allocation = budget.allocate(state, {}, random_damages)
        rates = tomllib.loads(as_toml(allocation.rates))["sparsity"]
        pinned = round_config(structure=structure, multiple=multiple, target=None, sparsity=rates)
        assert plan_round(pinned, network, {}).units == budget.plan(allocation.keeps, {}).units


def test_kept_counts_are_multiples_and_leave_the_least_that_is_allowed() -> None:
    graph, state = wide("cifar_resnet18")
    config = round_config(multiple=4, target={"measure": "macs", "reduction": 5.0, "least_kept": 0.25})
    budget = Budget(config, Network.of(graph), graph)
    allocation = budget.allocate(state, {}, random_damages)
    assert budget.met(allocation.size)
    for name, keep in allocation.keeps.items():
        assert keep % 4 == 0
        assert keep >= allocation.alive[name] / 4


def test_a_sensitive_layer_keeps_more_than_an_insensitive_one() -> None:
    graph, state = wide("cifar_vgg16_bn")
    config = round_config(structure="column", target={"measure": "conv_params", "reduction": 3.0})
    budget = Budget(config, Network.of(graph), graph)

    def damages(constraints: Sequence[Constraint], alive: Sequence[int]) -> list[Damage]:
        precious = constraints[2].name
        return [
            Damage.of(units, tried := trial_counts(units), [10.0 if c.name == precious else 0.1] * len(tried), 1e-3)
            for c, units in zip(constraints, alive, strict=True)
        ]

    kept = budget.allocate(state, {}, damages)
    shares = {name: keep / kept.alive[name] for name, keep in kept.keeps.items()}
    assert list(shares.values())[2] == max(shares.values()) > 2 * sorted(shares.values())[1]


def test_a_target_that_no_choice_of_units_meets_says_what_does() -> None:
    graph, state = small("resnet18")
    config = round_config(target={"measure": "macs", "reduction": 1000.0})
    with pytest.raises(UserError, match=r"cannot be met by removing filters, \d+ is the least: raise the limit"):
        Budget(config, Network.of(graph), graph).allocate(state, {}, random_damages)
    with pytest.raises(UserError, match="is not below the"):
        Budget(round_config(target={"measure": "macs", "limit": 1e12}), Network.of(graph), graph)


def test_a_budget_of_parameters_leaves_out_what_reaches_no_output() -> None:
    class WithUnusedHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build_model("cifar_resnet20", {"width": 8, "num_classes": 10, "in_channels": 3})
            self.head = nn.Linear(3, 1000)

        def forward(self, x: Tensor) -> Any:
            self.head(x.mean(dim=(2, 3)))
            return self.net(x)

    graph, state = captured(WithUnusedHead())
    budget = Budget(round_config(target={"measure": "params", "reduction": 8.0}), Network.of(graph), graph)
    assert budget.dense == count(graph).params
    assert budget.allocate(state, {}, random_damages).size <= budget.dense / 8


def test_the_table_of_macs_gives_the_same_rates_as_the_measure_macs(tmp_path: Path) -> None:
    graph, state = wide("cifar_resnet18")
    path = tmp_path / "macs.json"
    path.write_text(json.dumps(macs_table(graph)))
    for structure in ("filter", "column"):
        kept = []
        for target in ({"measure": "macs"}, {"measure": "latency", "costs": path}):
            config = round_config(structure=structure, target={**target, "reduction": 4.0})
            kept.append(Budget(config, Network.of(graph), graph).allocate(state, {}, random_damages))
        assert kept[0].keeps == kept[1].keeps
        # Interpolation multiplies and divides by the layer's size.
        assert kept[0].size == pytest.approx(kept[1].size, rel=1e-9)


def test_a_table_with_steps_is_met_although_most_removals_save_nothing(tmp_path: Path) -> None:
    # A GPU computes filters in groups of 8: only whole groups save time.
    graph, state = wide("cifar_resnet18")
    layers = {}
    for layer in count(graph).layers:
        steps = range(8, layer.filters + 8, 8)
        filters = [value for step in steps for value in (step - 7, step)]
        inputs = layer.columns // math.prod(layer.shape[2:])
        cost = [[-(-count // 8) * 0.1, -(-count // 8) * (0.1 + inputs / 64)] for count in filters]
        layers[layer.name] = {"dense": {"filters": filters, "inputs": [0, inputs], "cost": cost}}
    path = tmp_path / "steps.json"
    path.write_text(json.dumps({"schema": 1, "unit": "ms", "source": "made up", "rest": 0.5, "layers": layers}))
    config = round_config(target={"measure": "latency", "costs": path, "reduction": 2.0})
    budget = Budget(config, Network.of(graph), graph)
    allocation = budget.allocate(state, {}, random_damages)
    assert allocation.size <= budget.limit
    assert allocation.size >= 0.9 * budget.limit
    assert budget.footprint.unit == "ms"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {}}, "lists 'no layer'"),
        ({"unit": None}, r"unit: Input should be a valid string"),
        ({"layers": {"nowhere": {"dense": {"filters": [1], "inputs": [1], "cost": [[1]]}}}}, "lists 'nowhere'"),
        ({"layers": {"conv1": {"dense": {"filters": [2, 1], "inputs": [1], "cost": [[1], [1]]}}}}, "does not rise"),
        ({"layers": {"conv1": {"dense": {"filters": [1, 2], "inputs": [1], "cost": [[1]]}}}}, "must have 2 rows of 1"),
        ({"layers": {"conv1": {"dense": {"filters": [1], "inputs": [1], "cost": [[-1]]}}}}, "greater than or equal"),
        ({"layers": {"conv1": {"dense": {"filters": [1], "columns": [1], "cost": [[1]]}}}}, "dense is a grid of filt"),
    ],
)
def test_a_bad_cost_table_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    graph, _ = wide("cifar_resnet18")
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(macs_table(graph) | change))
    with pytest.raises(UserError, match=message) as refused:
        Budget(round_config(target={"measure": "latency", "costs": path, "limit": 1.0}), Network.of(graph), graph)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "axis", "message"),
    [
        ("dense", "filters", r"layer1.0.conv1.dense.filters ends at 16, the dense layer has 32: make the table of"),
        ("dense", "inputs", r"layer1.0.conv1.dense.inputs ends at 16, the dense layer has 32"),
        ("compact", "columns", r"layer1.0.conv1.compact.columns ends at 144, the dense layer has 288"),
    ],
)
def test_the_cost_table_of_a_narrower_network_is_refused(tmp_path: Path, kind: str, axis: str, message: str) -> None:
    graph, _ = wide("cifar_resnet18")
    table = macs_table(graph)
    grid = table["layers"]["layer1.0.conv1"][kind]
    grid[axis] = (0, grid[axis][-1] // 2)
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match=message):
        load_costs(path, graph)


def test_a_grid_is_linear_between_points_and_constant_beyond() -> None:
    grid = Grid.model_validate({"filters": [2, 4], "inputs": [10, 20], "cost": [[1.0, 2.0], [3.0, 6.0]]})
    filters, inputs = np.array([2, 3, 3, 1, 9, 0, 4]), np.array([10, 10, 15, 5, 99, 15, 0])
    assert grid.at(filters, inputs).tolist() == [1.0, 2.0, 3.0, 1.0, 6.0, 0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.lists(st.floats(0, 100), min_size=8, max_size=8))
def test_damage_is_convex_and_never_below_what_was_measured(alive: int, measured: list[float]) -> None:
    kept = trial_counts(alive)
    damage = Damage.of(alive, kept, measured[: len(kept)], 1e-6) if kept else Damage.of(alive, (), (), 1e-6)
    values = damage.at(np.arange(alive, 0, -1))
    assert values[0] == 0
    steps = np.diff(values)
    # Each further unit does at least as much damage; rounding of logarithms and of sums up to 1e3.
    assert (np.diff(steps) >= -1e-9).all()
    for keep, value in zip(kept, measured, strict=False):
        assert damage.at(np.array(keep)) >= value - 1e-9
    assert damage.measured == tuple(zip(kept, measured, strict=False))


def test_measuring_leaves_the_network_as_it_was_and_sees_a_useless_layer() -> None:
    torch.manual_seed(0)
    model = tiny.resnet().eval()
    with torch.no_grad():
        model.get_submodule("layer1.0.bn2").weight.zero_()  # the block's second convolution adds nothing
    images = torch.randn(8, 1, 8, 8)
    graph, state = capture(model, (images[:2],))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = round_config(structure="column")
    constraints = plan_round(config, Network.of(graph), {}, {}).constraints
    alive = [len(constraint.ranking(state, {})) for constraint in constraints]

    class Counter:
        trials = 0

        def advance(self, amount: int = 1, note: str | None = None) -> None:
            del note
            Counter.trials += amount

    damages = measure_damage(model, lambda: iter([images]), constraints, alive, {}, Counter())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    by_name = {constraint.name: damage for constraint, damage in zip(constraints, damages, strict=True)}
    assert Counter.trials == sum(len(trial_counts(units)) for units in alive)
    # Only the slope that every layer has.
    assert by_name["layer1.0.conv2"].values[-1] < 1e-3 * max(damage.values[-1] for damage in damages)


@pytest.mark.parametrize("doubled", [True, False])
def test_a_removal_that_normalisation_makes_up_for_does_no_damage(doubled: bool) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.Conv2d(8, 5, 1, bias=False)
    with torch.no_grad():
        second.weight.mul_(10)  # far above what normalisation adds to the variance
        if doubled:  # half of the second layer's columns say what all of them say, half as loud
            first.weight[4:] = first.weight[:4]
            second.weight[:, 4:] = second.weight[:, :4]
    model = nn.Sequential(first, nn.ReLU(), second, nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 36, 3))
    images = torch.randn(16, 2, 6, 6)
    model.train()(images)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    class Silent:
        def advance(self, amount: int, note: str | None = None) -> None:
            pass

    constraint = LayerConstraint("2", "2.weight", "column", 2, block=4)
    (damage,) = measure_damage(model, lambda: iter([images]), [constraint], [2], {}, Silent())
    assert trial_counts(2) == (1,)
    assert damage.values[-1] < 1e-6 if doubled else damage.values[-1] > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_removal_that_makes_the_network_overflow_does_the_most_damage() -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Flatten())

    class Silent:
        def advance(self, amount: int, note: str | None = None) -> None:
            pass

    images = iter([torch.ones(4, 2, 1, 1), torch.full((4, 2, 1, 1), torch.inf)])
    constraint = LayerConstraint("0", "0.weight", "column", 1)
    (damage,) = measure_damage(model, lambda: iter([next(images)]), [constraint], [2], {}, Silent())
    assert damage.measured == ((1, 1e6),)


def test_a_run_with_a_target_reports_rates_that_keep_as_many_units_when_pinned(tmp_path: Path) -> None:
    from structadmm.progress import SilentReporter
    from train.stage import run_train

    shared = {"structure": "column", "admm_epochs": 2, "retrain_epochs": 1}
    changes: dict[str, Any] = {
        "dense": {"epochs": 1},
        "rounds": [{**shared, "target": {"measure": "macs", "reduction": 3.0, "images": 4}}],
    }
    run_train(tiny.config(**changes), tmp_path / "target", SilentReporter())
    record = json.loads((tmp_path / "target" / "pruning.json").read_text())
    entry = record["rounds"][0]
    assert entry["target"]["met"]
    assert 0.98 <= entry["target"]["used"] <= 1
    assert record["data"]["held_out_images"] == 4
    assert record["data"]["train_images"] == 86
    graph, _ = capture(tiny.resnet(), (torch.zeros(2, 1, 8, 8),))
    from safetensors.torch import load_file

    pruned = load_file(tmp_path / "target" / "pruned.safetensors")
    assert count(graph, pruned).macs == entry["target"]["reached"] <= count(graph).macs / 3

    # The same images for training, so that nothing else differs.
    changes["data"] = {"name": "tests.unit.train.tiny:few_digits", "held_out": 0.05}
    changes["rounds"] = [{**shared, "sparsity": entry["rates"]}]
    run_train(tiny.config(**changes), tmp_path / "pinned", SilentReporter())
    pinned = json.loads((tmp_path / "pinned" / "pruning.json").read_text())
    # Which columns go may differ: the target's counts are settled after ADMM.
    kept = [[layer["kept_columns"] for layer in run["layers"]] for run in (pinned, record)]
    assert kept[0] == kept[1]


def test_an_interrupted_run_with_a_target_goes_on_exactly(tmp_path: Path) -> None:
    from structadmm.progress import SilentReporter
    from tests.unit.train.test_run import StopAt, assert_same_run
    from train.stage import run_train

    changes: dict[str, Any] = {
        "dense": {"epochs": 1},
        "rounds": [
            {"structure": "column", "sparsity": 0.3, "admm_epochs": 1, "retrain_epochs": 0},
            {
                "structure": "filter",
                "admm_epochs": 2,
                "retrain_epochs": 1,
                "target": {"measure": "macs", "reduction": 3.0, "images": 4},
            },
        ],
    }
    run_train(tiny.config(**changes), tmp_path / "whole", SilentReporter())
    with pytest.raises(SystemExit):
        # 6 steps of the dense network, 6 of round 1, some trials of sensitivity, then 12 of the second round.
        run_train(tiny.config(**changes), tmp_path / "halved", StopAt(28))
    assert "1" in load_checkpoint(tmp_path / "halved" / "checkpoint.safetensors").record["targets"]
    run_train(tiny.config(**changes), tmp_path / "halved", SilentReporter())
    assert_same_run(tmp_path / "whole", tmp_path / "halved")


def test_rates_survive_rounding_to_six_digits() -> None:
    for alive in (3, 7, 64, 4608):
        for keep in (1, 2, alive // 2 or 1, alive - 1):
            assert keep_count(alive, round(1 - keep / alive, 6)) == keep
    assert neutral([5])[0].at(np.array(5)) == 0
