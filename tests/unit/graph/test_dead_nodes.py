"""What a forward pass computes and does not return."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from structadmm.graph import GraphModule, capture
from structadmm.graph.count import count, unread_parameters


class WithAHeadForNothing(nn.Module):
    """The head reads what the output reads, normalises it, and is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.head = nn.Sequential(nn.Conv2d(8, 256, 3), nn.BatchNorm2d(256), nn.ReLU())
        self.last = nn.Linear(8, 4)
        self.unused = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        self.head(x)
        logits: Tensor = self.last(x.mean(dim=(2, 3)))
        return logits


def test_layers_that_reach_no_output_are_no_part_of_the_network() -> None:
    model = WithAHeadForNothing().eval()
    images = torch.randn(2, 3, 8, 8)
    graph, state = capture(model, (images,))
    assert [layer.name for layer in count(graph).layers] == ["first", "last"]
    assert count(graph).conv_params == 3 * 8 * 9
    assert count(graph).params == 3 * 8 * 9 + 8 + 8 * 4 + 4
    unread = ["head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias", "unused.weight", "unused.bias"]
    assert unread_parameters(graph) == unread
    assert torch.equal(GraphModule(graph, state).eval()(images), model(images))
    assert set(state) >= set(model.state_dict())


def test_two_names_of_one_parameter_are_read_by_either() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a
            self.c = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(x)
            return y

    graph, _ = capture(Tied(), (torch.zeros(2, 4),))
    assert unread_parameters(graph) == ["c.weight", "c.bias"]
