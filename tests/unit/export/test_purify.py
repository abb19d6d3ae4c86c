from __future__ import annotations

import torch
from torch import Tensor, nn

from export.inspect_network import inspect_network
from export.purify import emptiness, purify
from export.unused_paths import remove_unused_paths
from structadmm.graph import capture, find_coupling
from structadmm.graph.ir import Graph


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


def test_nothing_is_purified_when_the_accuracy_check_refuses() -> None:
    graph, state = nearly_empty()
    purified = purify(graph, state, eta=0.8, sigma=0.1, accept=lambda _: False)
    assert purified.rejected
    assert all(torch.equal(purified.state[name], tensor) for name, tensor in state.items())


def test_one_unit_stays_however_low_the_bar() -> None:
    graph, state = nearly_empty()
    purified = purify(graph, state, eta=-1.0, sigma=1e9)
    assert sorted(purified.emptied["0"]) == [0, 1, 3]


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
