from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from export.fixed_point import shrink_fully
from structadmm.graph import GraphModule
from structadmm.graph.count import count
from tests.architectures import ARCHITECTURES, INPUT_SHAPE, build, captured
from tests.random_networks import with_structured_zeros


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_macs_agree_with_torchs_own_counter(name: str) -> None:
    model = build(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(INPUT_SHAPE))
    graph, state = captured(name)  # of more than one sample, which are not counted
    counted = count(graph, state)
    assert 2 * counted.macs == counter.get_total_flops()
    assert counted.params == sum(parameter.numel() for parameter in model.parameters())
    assert counted == count(graph)


@pytest.mark.parametrize("name", ["resnet18", "unet", "shufflenet_v2"])
def test_a_shrunk_network_is_counted_as_torch_counts_it(name: str) -> None:
    graph, state = captured(name)
    _, smaller = shrink_fully(graph, with_structured_zeros(graph, state, 0.5, seed=3))
    module = GraphModule(smaller.graph, smaller.state).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(INPUT_SHAPE))
    counted = count(smaller.graph)
    assert 2 * counted.macs == counter.get_total_flops() < 2 * count(graph).macs
    assert counted.params == sum(parameter.numel() for parameter in module.parameters())


def test_zero_filters_and_columns_are_not_counted() -> None:
    graph, state = captured("vgg")
    weight = state["features.4.weight"].detach().clone()  # [12, 8, 3, 3] at 8 x 8 pixels
    weight[:2] = 0
    weight[:, :3, 1, 1] = 0
    counted = count(graph, {**state, "features.4.weight": weight})
    layer = next(layer for layer in counted.layers if layer.name == "features.4")
    assert (layer.kept_filters, layer.kept_columns) == (10, 69)
    assert layer.params == 690
    assert layer.macs == 690 * 64
    assert counted.conv_params == 690 + 8 * 3 * 9
