from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from structadmm.graph.count import count
from tests.architectures import ARCHITECTURES, INPUT_SHAPE, build, captured


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
