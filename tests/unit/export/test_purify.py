from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from export.config import ExportConfig, PurifyConfig
from export.export_network import Samples, export_network
from export.inspect_network import inspect_network
from export.purify import emptiness, purify
from export.purify_search import PurifySearch, search_purification
from export.unused_paths import remove_unused_paths
from structadmm.graph import GraphModule, capture, find_coupling
from structadmm.graph.ir import Graph
from structadmm.graph.save import load_network


def nearly_empty() -> tuple[Graph, dict[str, Tensor]]:
    """Channel 1 of the second convolution keeps one small column of nine; channel 2 one large one."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.Flatten()).eval()
    with torch.no_grad():
        weight = model[2].weight.fill_(1.0)
        weight[:, 1:3] = 0.0
        weight[:, 1, 1, 1] = 0.01
        weight[:, 2, 1, 1] = 5.0
    return capture(model, (torch.zeros(1, 3, 6, 6),))


def test_emptiness_and_importance_are_what_their_definition_says() -> None:
    graph, state = nearly_empty()
    group = find_coupling(graph).producer_group("0.weight")
    assert group is not None
    found = emptiness(group, state)
    norms = torch.tensor([45.0, 5 * 0.01**2, 5 * 25.0, 45.0], dtype=torch.float64).sqrt()
    assert torch.allclose(found.eta, torch.tensor([0.0, 8 / 9, 8 / 9, 0.0], dtype=torch.float64))
    # 0.01 is rounded to float32 in the weights.
    assert torch.allclose(found.sigma, norms / norms.mean(), rtol=1e-6)


def test_only_channels_both_empty_and_unimportant_go_and_take_their_filters_along() -> None:
    graph, state = nearly_empty()
    purified = purify(graph, state, eta=0.8, sigma=0.1)
    assert purified.emptied == {"0": [1]}
    assert remove_unused_paths(graph, state).removed == {}
    assert remove_unused_paths(graph, purified.state).removed == {"0": [1]}


def found_with(budget: float, loss_per_unit: float) -> PurifySearch:
    graph, state = nearly_empty()

    def accuracy(tensors: Mapping[str, Tensor]) -> float:
        emptied = int((tensors["2.weight"].flatten(2).abs().sum(dim=(0, 2)) == 0).sum())
        return 90.0 - loss_per_unit * emptied

    return search_purification(
        graph, state, etas=(0.95, 0.8), sigmas=(0.1, 3.0), accuracy=accuracy, max_accuracy_drop=budget
    )


def test_nothing_is_purified_when_everything_costs_too_much() -> None:
    found = found_with(budget=0.5, loss_per_unit=0.6)
    assert found.purified.emptied == {} and found.chosen is found.trials[0]
    assert bool(found.purified.state["2.weight"][:, 1].any())


def test_the_smallest_network_within_the_budget_is_taken_and_every_different_one_recorded() -> None:
    assert found_with(budget=0.6, loss_per_unit=0.6).purified.emptied == {"0": [1]}
    found = found_with(budget=1.2, loss_per_unit=0.6)
    assert sorted(found.purified.emptied["0"]) == [1, 2]
    # Nothing exceeds eta = 0.95: three networks, of 4, 3 and 2 channels and 27 + 45, 27 + 5 or 27 weights to each.
    assert [(trial.emptied, trial.accuracy) for trial in found.trials] == [(0, 90.0), (1, 89.4), (2, 88.8)]
    assert [trial.conv_params for trial in found.trials] == [4 * 27 + 90 + 10, 3 * 27 + 90 + 5, 2 * 27 + 90]


def test_one_unit_stays_however_low_the_bar() -> None:
    graph, state = nearly_empty()
    purified = purify(graph, state, eta=-1.0, sigma=1e9)
    assert sorted(purified.emptied["0"]) == [0, 1, 3]


def test_an_export_records_what_was_tried_on_which_images(tmp_path: Path) -> None:
    graph, state = nearly_empty()
    inputs = torch.randn(8, *graph.inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    module = GraphModule(graph, state)
    held_out = Samples(inputs, module.eval()(inputs).argmax(dim=1))  # the network is right about all of them
    config = ExportConfig(purify=PurifyConfig(enabled=True, eta=(0.8,), sigma=(0.1,)))
    found = export_network(module, inputs[:1], tmp_path, config=config, held_out=held_out)["purified"]
    assert (found["checked_on"], found["images"]) == ("held-out images", 8)
    assert found["emptied"] == {"0": [1]}
    assert [trial["accuracy"] for trial in found["trials"]] == [100.0, 100.0]
    assert found["chosen"] == found["trials"][1]
    assert load_network(tmp_path / "shrunk").state_dict()["0.weight"].shape[0] == 3


def test_a_report_counts_dead_removed_and_kept() -> None:
    graph, state = nearly_empty()
    weight, bias = state["0.weight"].detach().clone(), state["0.bias"].detach().clone()
    weight[[0, 3]] = 0.0
    bias[0], bias[3] = 0.0, 1.0
    report = inspect_network(graph, {**state, "0.weight": weight, "0.bias": bias})
    first, second = report.layers
    assert (first.dead_filters, first.removed_filters, second.removed_channels) == (2, 1, 1)
    assert second.empty_columns == 16
    assert any("padding of 2" in reason for reason in first.reasons)
    assert any("output" in reason for reason in second.reasons)
    assert "padding of 2" in report.table() and "MACs" in report.table()
