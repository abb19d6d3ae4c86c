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
from structadmm.graph import GraphModule, capture, find_coupling

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


class Tokens(nn.Module):
    """A linear layer on tokens, and a normalisation of which axis 1 counts the tokens, not the layer's filters."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=4)
        self.mix = nn.Linear(6, features)
        self.norm = nn.BatchNorm1d(9)
        self.head = nn.Linear(features, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)  # [N, 9, 6]
        return self.head(functional.relu(self.norm(self.mix(tokens))).mean(1))


@pytest.mark.parametrize("features", [9, 12])
def test_a_normalisation_over_tokens_is_not_folded_into_the_filters_before_it(features: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tokens(features).eval()
    with torch.no_grad():
        for tensor in (model.norm.weight, model.norm.bias, model.norm.running_mean):
            assert tensor is not None
            tensor.uniform_(0.5, 1.5)
        model.norm.weight[4] = 0
    export_network(model, torch.zeros(SHAPE), tmp_path / "out")
    exact = Tokens(features).double().eval()
    exact.load_state_dict(model.state_dict())
    graph, state = capture(exact, (torch.zeros(SHAPE, dtype=torch.float64),))
    _, smaller = shrink_fully(graph, state)
    inputs = torch.randn(2, *SHAPE[1:], dtype=torch.float64)
    assert (GraphModule(smaller.graph, smaller.state).eval()(inputs) - exact(inputs)).abs().max() < TOLERANCE


class Standardised(nn.Module):
    """A convolution whose weight is standardised in every pass, and two branches weighted by a softmax over a stack."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(8, 6, 3, dilation=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.a.weight
        variance, mean = weight.var((1, 2, 3), keepdim=True), weight.mean((1, 2, 3), keepdim=True)
        x = functional.relu(functional.conv2d(x, (weight - mean) / (variance + 1e-5).sqrt(), self.a.bias))
        branches = torch.stack([self.b(x), self.c(x)], 0)  # [2, N, 6, H, W]
        return self.head((branches * branches.mean((3, 4), keepdim=True).softmax(0)).sum(0).mean((2, 3)))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_sizes_that_are_even_by_chance_are_not_taken_for_the_batch(batch: int) -> None:
    torch.manual_seed(0)
    model = Standardised().double().eval()
    zero(model.b, 1, 2)
    zero(model.c, 2, 3)
    inputs = torch.randn(batch, *SHAPE[1:], dtype=torch.float64)
    graph, state = capture(model, (inputs,))
    assert find_coupling(graph).groups
    _, smaller = shrink_fully(graph, state)
    assert (GraphModule(smaller.graph, smaller.state).eval()(inputs) - model(inputs)).abs().max() < TOLERANCE
