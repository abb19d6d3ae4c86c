from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from export.fixed_point import shrink_fully
from export.shrink import Shrunk, _Shrinker, shrink
from export.unused_paths import Removal, remove_unused_paths
from structadmm.errors import UserError
from structadmm.graph import Captured, GraphModule, capture
from structadmm.graph.ir import StateRef
from structadmm.graph.operators import ROLES
from tests.architectures import ARCHITECTURES, INPUT_SHAPE, build, captured, in_float64
from tests.random_networks import NETWORK_INPUT, random_network, with_structured_zeros
from tests.removal_probe import probe

# Both networks add the same non-zero terms in float64; only their order and folded constants round differently.
TOLERANCE = 1e-10


def shrunk_with_zeros(
    model: nn.Module, shape: tuple[int, ...], fraction: float, seed: int
) -> tuple[Captured, Removal, Shrunk]:
    return zeroed(capture(model.double(), (torch.zeros(shape, dtype=torch.float64),)), fraction, seed)


def zeroed(network: Captured, fraction: float, seed: int) -> tuple[Captured, Removal, Shrunk]:
    graph, state = in_float64(network)
    zeros = with_structured_zeros(graph, state, fraction, seed)
    return Captured(graph, zeros), *shrink_fully(graph, zeros)


def relative_error(masked: Captured, shrunk: Shrunk, shape: tuple[int, ...]) -> float:
    inputs = torch.randn(3, *shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = GraphModule(*masked).eval()(inputs)
        arrived = GraphModule(shrunk.graph, shrunk.state).eval()(inputs)
    return float((expected - arrived).abs().max() / expected.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("fraction", [0.4, 0.95])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shrunk_architecture_computes_what_the_masked_one_does(name: str, fraction: float) -> None:
    masked, removal, shrunk = zeroed(captured(name), fraction, seed=3)
    assert removal.count > 0
    assert relative_error(masked, shrunk, INPUT_SHAPE) < TOLERANCE


@settings(max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate])
@given(seed=st.integers(0, 10**6), fraction=st.floats(0.3, 0.95))
def test_a_shrunk_random_network_computes_what_the_masked_one_does(seed: int, fraction: float) -> None:
    masked, _, shrunk = shrunk_with_zeros(random_network(seed), NETWORK_INPUT, fraction, seed)
    assert relative_error(masked, shrunk, NETWORK_INPUT) < TOLERANCE


@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(seed=st.integers(0, 10**6), fraction=st.floats(0.3, 0.9))
def test_no_unit_without_effect_is_left(seed: int, fraction: float) -> None:
    _, _, shrunk = shrunk_with_zeros(random_network(seed), NETWORK_INPUT, fraction, seed)
    assert probe(shrunk).units > 0


def test_the_probe_finds_what_was_not_removed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten())
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    graph, state = in_float64(capture(model, (torch.zeros(1, 3, 12, 12),)))
    with pytest.raises(AssertionError, match="removes 1 more"):
        probe(Shrunk(graph, dict(state), {}, {}))


class Cycle(nn.Module):
    """Half of the channels are used; the other half, coupled by the product, only feeds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.a(x))
        return self.c((x * self.b(x))[:, :2]).flatten(1)


def test_units_that_only_serve_one_another_go_together() -> None:
    model = Cycle()
    with torch.no_grad():
        model.b.weight[:2, 2:] = 0  # the living half does not read the other one, which reads everything
    masked, removal, shrunk = shrunk_with_zeros_of(model)
    assert sum(map(len, removal.removed.values())) == 2
    assert shrunk.state["a.weight"].shape[0] == 2 and shrunk.state["b.weight"].shape == (2, 2, 3, 3)
    assert relative_error(masked, shrunk, (1, 3, 12, 12)) < TOLERANCE


class TwoSlices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return (self.c(x) + self.b(x[:, 2:])).flatten(1)


def test_a_channel_that_keeps_a_slice_from_being_empty_keeps_the_whole_tensor_too() -> None:
    model = TwoSlices()
    with torch.no_grad():
        model.a.weight.zero_()
        assert model.a.bias is not None
        model.a.bias.zero_()
    masked, removal, shrunk = shrunk_with_zeros_of(model)
    assert shrunk.state["a.weight"].shape[0] == 1
    assert "it is the last channel of (root) [slice_1]" in {why for k in removal.kept.values() for why in k.values()}
    assert relative_error(masked, shrunk, (1, 3, 12, 12)) < TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "unet"])
def test_every_dead_filter_of_coupled_pruning_is_gone(name: str) -> None:
    graph, state = captured(name)
    removal = remove_unused_paths(graph, state)
    zeros = {key: tensor.detach().clone() for key, tensor in state.items()}
    for group in removal.coupling.groups:
        if group.frozen is None:
            for part in group.producers + group.affine:
                zeros[part.parameter].index_fill_(
                    part.axis, torch.from_numpy(part.indices[: group.units // 2].reshape(-1)), 0
                )
    shrunk = shrink(remove_unused_paths(graph, zeros))
    for node in shrunk.graph.nodes:
        if ROLES[node.op] in ("conv", "linear"):
            reference = node.args[1]
            assert isinstance(reference, StateRef)
            weight = shrunk.state[reference.name]
            assert bool(weight.flatten(1).any(dim=1).all()), reference.name
            assert (
                weight.shape[0] <= (graph.state[reference.name].shape[0] + 1) // 2
                or reference.name.endswith("fc.weight")
                or "last" in reference.name
            )


def test_a_constant_channel_is_folded_where_nothing_is_padded() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.Flatten(), nn.Linear(500, 2)
    )
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0.7
    masked, removal, shrunk = shrunk_with_zeros_of(model)
    assert removal.removed == {"0": [1]}
    assert removal.folded
    assert "2.bias" in shrunk.state
    assert relative_error(masked, shrunk, (1, 3, 12, 12)) < TOLERANCE


def test_a_constant_channel_that_meets_padding_stays_and_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1), nn.Flatten())
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0.7
    masked, removal, shrunk = shrunk_with_zeros_of(model)
    assert removal.removed == {}
    assert "padding of 2" in removal.kept["0"][1]
    assert relative_error(masked, shrunk, (1, 3, 12, 12)) < TOLERANCE


def test_a_constant_channel_that_a_transposed_convolution_reads_in_phases_stays_and_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2, stride=2), nn.Flatten())
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 0.7
    _, removal, _ = shrunk_with_zeros_of(model)
    assert (
        removal.kept["0"][1] == "its constant 0.7 meets other weights from place to place of 2, so folding is inexact"
    )


def test_a_filter_behind_a_zero_batch_norm_is_dead() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 5, 1), nn.Flatten())
    with torch.no_grad():
        model[1].weight[2] = 0
    masked, removal, shrunk = shrunk_with_zeros_of(model)
    assert removal.removed == {"0": [2]}
    assert relative_error(masked, shrunk, (1, 3, 12, 12)) < TOLERANCE


def test_a_channel_that_nobody_reads_takes_its_producer_along() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1), nn.Flatten()
    )
    with torch.no_grad():
        model[4].weight[:, 3] = 0
        model[2].weight[:, 0] = 0
        model[2].weight[[0, 1, 2, 4, 5], 1] = 0  # channel 1 feeds filter 3 only
    masked, removal, shrunk = shrunk_with_zeros_of(model)
    assert removal.removed == {"0": [0, 1], "2": [3]}
    assert relative_error(masked, shrunk, (1, 3, 12, 12)) < TOLERANCE


def test_a_layer_with_nothing_left_keeps_one_unit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    masked, removal, shrunk = shrunk_with_zeros_of(model)
    assert shrunk.state["0.weight"].shape[0] == 1
    assert "last channel of 0 [" in removal.kept["0"][0]
    assert relative_error(masked, shrunk, (1, 3, 12, 12)) < TOLERANCE


def test_filters_of_one_group_go_one_by_one_once_it_is_the_only_group() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten()
    )
    with torch.no_grad():
        model[4].weight[:, 2:] = 0  # channels of groups 1, 2 and 3
        model[4].weight[:, 1] = 0  # and half of group 0
    masked, removal, shrunk = shrunk_with_zeros_of(model)
    assert removal.removed == {"0": [1, 2, 3]}  # units of the given network: a group and its input channel
    assert shrunk.state["2.weight"].shape == (1, 1, 3, 3)
    assert shrunk.kept["2.weight", 0].tolist() == shrunk.kept["4.weight", 1].tolist() == [0]
    assert relative_error(masked, shrunk, (1, 3, 12, 12)) < TOLERANCE


def test_a_dead_filter_that_is_tied_to_a_living_one_is_explained() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1), nn.Flatten())
    with torch.no_grad():
        model[1].weight[1] = 0
        model[1].bias[1] = 0
    _, removal, _ = shrunk_with_zeros_of(model)
    assert removal.removed == {}
    assert "2 reads it" in removal.kept["0"][0]


def test_one_living_branch_of_a_sum_keeps_the_unit() -> None:
    masked, removal, shrunk = zeroed_filter(build("resnet18"), "1.conv2.weight", 2)
    assert removal.count == 0
    assert "reads it" in removal.kept["0.0"][2]
    assert relative_error(masked, shrunk, INPUT_SHAPE) < TOLERANCE


class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 144, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(functional.relu(self.conv(x)).view(-1, 8 * 12 * 12))


def test_sizes_written_as_numbers_are_recomputed() -> None:
    masked, removal, shrunk = zeroed_filter(HardCoded(), "conv.weight", 3, bias="conv.bias", shape=(1, 3, 12, 12))
    assert removal.removed == {"conv": [3]}
    assert shrunk.state["fc.weight"].shape == (2, 7 * 144)
    assert relative_error(masked, shrunk, (1, 3, 12, 12)) < TOLERANCE


def zeroed_filter(
    model: nn.Module, name: str, index: int, *, bias: str | None = None, shape: tuple[int, ...] = INPUT_SHAPE
) -> tuple[Captured, Removal, Shrunk]:
    with torch.no_grad():
        model.get_parameter(name)[index] = 0
        if bias is not None:
            model.get_parameter(bias)[index] = 0
    return shrunk_with_zeros_of(model, shape)


def shrunk_with_zeros_of(model: nn.Module, shape: tuple[int, ...] = (1, 3, 12, 12)) -> tuple[Captured, Removal, Shrunk]:
    network = capture(model.double(), (torch.zeros(shape, dtype=torch.float64),))
    return network, *shrink_fully(*network)


def test_the_shrunk_network_trains_a_step_and_shrinks_again() -> None:
    _, _, shrunk = zeroed(captured("mobilenet_v2"), 0.5, seed=1)
    module = GraphModule(shrunk.graph, shrunk.state).train()
    before = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.randn(8, *INPUT_SHAPE[1:], dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    changed = [name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any(name.endswith("weight") for name in changed)
    assert any(name.endswith("running_mean") for name in changed)
    assert any(name.endswith("num_batches_tracked") for name in changed)
    again = capture(module.eval(), (torch.zeros(INPUT_SHAPE, dtype=torch.float64),))
    assert [node.op for node in again.graph.nodes] == [node.op for node in shrunk.graph.nodes]


def test_a_reshape_that_cannot_lose_channels_names_its_node() -> None:
    network = captured("resnet18")
    removal = remove_unused_paths(*network)
    # Two of four dimensions lose single elements: no box is left. Coupling never asks for this; the shrinker checks.
    atoms = torch.arange(4).view(2, 2)
    worker = _Shrinker(removal)
    worker.alive = torch.tensor([True, True, True, False])
    with pytest.raises(UserError, match=r"holes"):
        worker.compact(atoms, network.graph.nodes[1])
