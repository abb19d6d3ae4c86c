"""Filters without weights whose BatchNorm goes on emitting a constant, in front of convolutions with padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from export.fixed_point import shrink_fully
from export.merge_constants import ConstantRead, Transfer, transfers
from export.shrink import Shrunk
from export.unused_paths import Removal
from structadmm.graph import GraphModule, capture
from tests.architectures import INPUT_SHAPE, build, randomise

# The same terms in float64, some of them scaled by a quotient of constants.
TOLERANCE = 1e-10
SHAPE = (1, 3, 12, 12)


def without_weights(model: nn.Module, *layers: str, every: int = 2) -> nn.Module:
    """Zero all but each `every`-th filter; offsets stay, as with tools that look at weights only."""
    randomise(model, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name in layers:
            weight = model.get_parameter(f"{name}.weight")
            weight[torch.arange(len(weight)) % every != 0] = 0
            if f"{name}.bias" in dict(model.named_parameters()):
                model.get_parameter(f"{name}.bias").uniform_(0.2, 1.0)  # alive behind a ReLU
    return model


def shrunk(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> tuple[Removal, Shrunk]:
    """Shrink, and see that inputs of two scales give the same."""
    network = capture(model.double().eval(), (torch.zeros(shape, dtype=torch.float64),))
    before = {name: tensor.clone() for name, tensor in network.state.items()}
    removal, smaller = shrink_fully(*network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state.items())
    module = GraphModule(smaller.graph, smaller.state).eval()
    for scale in (1.0, 10.0):
        inputs = scale * torch.randn(2, *shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        expected = model(inputs)
        assert (module(inputs) - expected).abs().max() <= TOLERANCE * expected.abs().max()
    return removal, smaller


def test_of_many_constants_that_meet_padding_one_stays() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 5, 3, padding=1), nn.Flatten()
    )
    removal, smaller = shrunk(without_weights(model, "0"))
    assert smaller.state["0.weight"].shape[0] == 5  # four of eight live, one speaks for the other four
    assert next(iter(removal.kept["0"].values())).count("padding of 3") == 1
    assert sum("merged" in line for line in removal.folded) == 3


def test_constants_meet_only_within_their_group() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.Flatten()
    )
    _, smaller = shrunk(without_weights(model, "0"))
    # Channels 1, 3 of one group and 5, 7 of the other are constants: one of each stays, at the same place in both.
    assert smaller.state["0.weight"].shape[0] == 6 and smaller.state["2.weight"].shape == (6, 3, 3, 3)


def test_constants_in_front_of_a_transposed_convolution_are_merged() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.ConvTranspose2d(8, 4, 3, stride=2), nn.Flatten())
    _, smaller = shrunk(without_weights(model, "0"))
    assert smaller.state["2.weight"].shape[0] == 5


class TwoReaders(nn.Module):
    """Both convolutions pad; `one` has no weights for the second constant, so the first must stay for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3, padding=1), nn.Conv2d(6, 2, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.a(x))
        return (self.one(x) + self.two(x)).flatten(1)


def test_all_readers_settle_on_the_same_constant() -> None:
    model = without_weights(TwoReaders(), "a")
    with torch.no_grad():
        model.get_parameter("one.weight")[:, 3] = 0
    _, smaller = shrunk(model)
    assert smaller.state["a.weight"].shape[0] == 4


class SharedReader(nn.Module):
    """One convolution reads constants of both branches, whose quotients differ."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.shared(torch.sigmoid(self.a(x))) + self.shared(torch.sigmoid(self.b(x)))).flatten(1)


def test_a_convolution_that_is_used_twice_keeps_its_constants() -> None:
    _, smaller = shrunk(without_weights(SharedReader(), "a", "b"))
    assert smaller.state["shared.weight"].shape == (2, 4, 3, 3)


@pytest.mark.parametrize("name", ["resnet50", "densenet", "googlenet", "mobilenet_v2", "unet", "resnext"])
def test_networks_pruned_by_weights_alone_shrink_and_stay_exact(name: str) -> None:
    model = build(name)
    convolutions = [layer for layer, module in model.named_modules() if type(module) is nn.Conv2d]
    before = sum(parameter.numel() for parameter in model.parameters())
    _, smaller = shrunk(without_weights(model, *convolutions[:-1], every=4), INPUT_SHAPE)
    after = sum(t.numel() for key, t in smaller.state.items() if smaller.graph.state[key].kind == "parameter")
    assert after < 0.3 * before


def test_a_unit_is_spared_only_where_every_reader_can_do_without_it() -> None:
    reads = {
        0: [ConstantRead("p", 0, 0, 2.0), ConstantRead("q", 0, 0, 2.0)],
        1: [ConstantRead("p", 0, 1, 1.0)],
        2: [ConstantRead("p", 0, 2, -0.5), ConstantRead("r", 0, 2, 3.0)],  # nobody else speaks at r
        3: [ConstantRead("p", 0, 3, 1e-9)],
    }
    assert transfers(reads, set()) == {1: [Transfer("p", 1, 0, 0.5)], 3: [Transfer("p", 3, 0, 5e-10)]}
    # A unit that stays anyway speaks first, but not with a factor that leaves the range of weights.
    assert transfers({0: reads[0][:1], 3: reads[3]}, {3}) == {}
    assert transfers({0: reads[0][:1], 1: reads[1]}, {1}) == {0: [Transfer("p", 0, 1, 2.0)]}
