"""Models that cannot be shrunk, or not everywhere: an exact result or an error that names the node, nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.export_network import export_network
from export.fixed_point import shrink_fully
from export.inspect_network import inspect_network
from structadmm.errors import UserError
from structadmm.graph import GraphModule, capture

SHAPE = (1, 3, 12, 12)
# The same non-zero terms in float64; only their order differs.
TOLERANCE = 1e-10


class Shared(nn.Module):
    """One convolution reads the results of two others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.shared(functional.relu(self.a(x)))) + self.shared(functional.relu(self.b(x)))
        return self.head(y.mean((2, 3)))


def zero(layer: nn.Conv2d, *filters: int) -> None:
    with torch.no_grad():
        for index in filters:
            layer.weight[index] = 0
            assert layer.bias is not None
            layer.bias[index] = 0


def test_a_layer_shared_by_differently_pruned_ones_loses_only_what_both_lack() -> None:
    model = Shared().double().eval()
    zero(model.a, 0, 2)
    zero(model.b, 1, 2)
    graph, state = capture(model, (torch.zeros(SHAPE, dtype=torch.float64),))
    removal, smaller = shrink_fully(graph, state)
    assert removal.removed == {"a": [2]}
    assert set(removal.kept["a"]) == {0, 1} and "shared reads it" in removal.kept["a"][0]
    inputs = torch.randn(2, *SHAPE[1:], dtype=torch.float64)
    assert (GraphModule(smaller.graph, smaller.state).eval()(inputs) - model(inputs)).abs().max() < TOLERANCE
    reasons = {layer.name: layer.reasons for layer in inspect_network(graph, state).layers}
    assert reasons["a"] == ("1 stay: one channel with filters of b: shared reads it",)


def test_constants_of_two_branches_are_not_folded_into_the_bias_that_both_add() -> None:
    model = Shared().double().eval()
    for layer, constant in ((model.a, 0.5), (model.b, 1.0)):
        zero(layer, 0)
        with torch.no_grad():
            assert layer.bias is not None
            layer.bias[0] = constant
    removal, smaller = shrink_fully(*capture(model, (torch.zeros(SHAPE, dtype=torch.float64),)))
    assert removal.removed == {}
    assert removal.kept["a"][0] == "the bias of shared is shared, so nothing is folded"
    inputs = torch.randn(2, *SHAPE[1:], dtype=torch.float64)
    assert (GraphModule(smaller.graph, smaller.state).eval()(inputs) - model(inputs)).abs().max() < TOLERANCE


class Reinterpreting(nn.Module):
    """Memory read with other sizes: no row of the result belongs to one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 4, 3, padding=1), nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(functional.relu(self.conv(x)).view(-1, 6, 96)).mean(2)


def test_channels_that_a_reshape_tears_apart_stay_and_the_result_is_exact() -> None:
    model = Reinterpreting().double().eval()
    zero(model.conv, 1)
    graph, state = capture(model, (torch.zeros(SHAPE, dtype=torch.float64),))
    removal, smaller = shrink_fully(graph, state)
    assert removal.removed == {} and 0 in removal.kept["conv"]
    inputs = torch.randn(2, *SHAPE[1:], dtype=torch.float64)
    assert (GraphModule(smaller.graph, smaller.state).eval()(inputs) - model(inputs)).abs().max() < TOLERANCE


class Sorting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(self.conv(x).mean((2, 3)), dim=1)[0]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * 2 if y.sum() > 0 else y


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().sum().item())):
            x = x / 2
        return x


class WrongSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).view(1, 4, 50, 3)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Sorting(), r"aten\.sort.*\[sort\].*rewrite that part"),
        (Branching(), r"Branching at test_difficult_models\.py:\d+, `return y \* 2 if .*`.*torch\.where"),
        (Looping(), r"Looping at test_difficult_models\.py:\d+, `for _ in range.*`.*fixed count"),
        (
            WrongSize(),
            r"WrongSize at test_difficult_models\.py:\d+, `return .*view\(1, 4, 50, 3\)`.*not \[1, 3, 12, 12\]",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line_that_names_it(
    model: nn.Module, named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=named) as error:
        export_network(model, torch.zeros(SHAPE), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""  # torch would print the graph traced so far
    assert not (tmp_path / "out" / "pruned.onnx").exists()
