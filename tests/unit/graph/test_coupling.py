from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from structadmm.graph import CoupledGroup, Coupling, find_coupling, trace
from tests.architectures import ARCHITECTURES, INPUT_SHAPE, build, captured, channel_shuffle


class Net(nn.Module):
    """Layers by name and a function that connects them."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.connect = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.connect(self, x)


def conv(i: int, o: int, k: int = 1, g: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, groups=g, padding=k // 2)


def coupling(
    forward: Callable[[Net, Tensor], Tensor], shape: tuple[int, ...] = (1, 3, 8, 8), **layers: nn.Module
) -> Coupling:
    return find_coupling(trace(Net(forward, **layers).eval(), (torch.zeros(shape),)))


def group(found: Coupling, parameter: str) -> CoupledGroup:
    result = found.producer_group(parameter)
    assert result is not None, parameter
    return result


def owned(part_of: CoupledGroup, parameter: str, axis: int) -> list[list[int]]:
    parts = [s for s in part_of.slices if (s.parameter, s.axis) == (parameter, axis)]
    assert len(parts) == 1, f"{parameter} axis {axis} in {part_of.name}"
    assert parts[0].indices.dtype == np.int64
    return parts[0].indices.tolist()


def test_a_chain_couples_filters_with_the_channels_that_read_them() -> None:
    found = coupling(lambda m, x: m.b(torch.relu(m.a(x))), a=conv(3, 4), b=conv(4, 2))
    a = group(found, "a.weight")
    assert a.units == 4 and a.frozen is None
    assert owned(a, "a.weight", 0) == owned(a, "a.bias", 0) == owned(a, "b.weight", 1) == [[0], [1], [2], [3]]


def test_the_network_output_and_input_are_frozen() -> None:
    found = coupling(lambda m, x: m.b(m.a(x)), a=conv(3, 4), b=conv(4, 2))
    assert "output" in str(group(found, "b.weight").frozen)
    (inputs,) = found.consumer_groups("a.weight")
    assert "input" in str(inputs.frozen) and inputs.units == 3


@pytest.mark.parametrize("combine", [torch.add, torch.sub, torch.mul, torch.maximum])
def test_elementwise_operators_unite_their_operands(combine: Callable[[Tensor, Tensor], Tensor]) -> None:
    found = coupling(lambda m, x: m.c(combine(m.a(x), m.b(x))), a=conv(3, 4), b=conv(3, 4), c=conv(4, 1))
    united = group(found, "a.weight")
    assert united is group(found, "b.weight")
    assert owned(united, "b.weight", 0) == owned(united, "c.weight", 1) == [[0], [1], [2], [3]]


def test_a_batch_norm_belongs_to_its_channels() -> None:
    found = coupling(lambda m, x: m.c(m.bn(m.a(x))), a=conv(3, 4), bn=nn.BatchNorm2d(4), c=conv(4, 1))
    names = {s.parameter for s in group(found, "a.weight").affine}
    assert names == {"a.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}


def test_concat_gives_each_part_its_offset() -> None:
    found = coupling(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), a=conv(3, 2), b=conv(3, 3), c=conv(5, 1))
    assert owned(group(found, "a.weight"), "c.weight", 1) == [[0], [1]]
    assert owned(group(found, "b.weight"), "c.weight", 1) == [[2], [3], [4]]


@pytest.mark.parametrize(
    "cut",
    [
        lambda y: y.chunk(2, 1)[1],
        lambda y: y.split([3, 2], 1)[1],
        lambda y: y.split(3, 1)[1],
        lambda y: y[:, 3:],
        lambda y: y.narrow(1, 3, 2),
        lambda y: y[:, -2:5],
    ],
)
def test_a_cut_reads_only_the_units_it_takes(cut: Callable[[Tensor], Tensor]) -> None:
    found = coupling(lambda m, x: m.c(cut(m.a(x))), a=conv(3, 5), c=conv(2, 1))
    assert found.producer_group("a.weight") is None
    groups = found.producer_groups("a.weight")
    reading = next(g for g in groups if g.consumers)
    assert owned(reading, "a.weight", 0) == [[3], [4]] and owned(reading, "c.weight", 1) == [[0], [1]]
    assert sum(g.units for g in groups) == 5


def test_a_selected_channel_is_frozen_by_name() -> None:
    found = coupling(lambda m, x: m.c(m.a(x)[:, 1].unsqueeze(1)), a=conv(3, 4), c=conv(1, 1))
    frozen = [g for g in found.producer_groups("a.weight") if g.frozen is not None]
    assert len(frozen) == 1 and owned(frozen[0], "a.weight", 0) == [[1]]
    assert "select" in str(frozen[0].frozen)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_a_depthwise_convolution_ties_inputs_and_outputs(multiplier: int) -> None:
    depthwise = nn.Conv2d(4, 4 * multiplier, 3, groups=4)
    found = coupling(lambda m, x: m.c(m.d(m.a(x))), a=conv(3, 4), d=depthwise, c=conv(4 * multiplier, 1))
    united = group(found, "a.weight")
    expected = [[multiplier * u + k for k in range(multiplier)] for u in range(4)]
    assert owned(united, "d.weight", 0) == owned(united, "d.bias", 0) == owned(united, "c.weight", 1) == expected


def test_a_grouped_convolution_with_many_groups_loses_whole_groups() -> None:
    found = coupling(lambda m, x: m.c(m.g(m.a(x))), a=conv(3, 8), g=conv(8, 8, 3, 4), c=conv(8, 1))
    united = group(found, "a.weight")
    assert owned(united, "a.weight", 0) == owned(united, "g.weight", 0) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_grouped_convolution_with_few_groups_loses_the_same_positions_in_each() -> None:
    found = coupling(lambda m, x: m.c(m.g(m.a(x))), a=conv(3, 8), g=conv(8, 6, 3, 2), c=conv(6, 1))
    assert owned(group(found, "a.weight"), "a.weight", 0) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert owned(group(found, "a.weight"), "g.weight", 1) == [[0], [1], [2], [3]]
    assert owned(group(found, "g.weight"), "g.weight", 0) == [[0, 3], [1, 4], [2, 5]]


def test_a_transposed_convolution_produces_along_axis_1() -> None:
    found = coupling(lambda m, x: m.c(m.t(m.a(x))), a=conv(3, 4), t=nn.ConvTranspose2d(4, 5, 2, 2), c=conv(5, 1))
    assert owned(group(found, "a.weight"), "t.weight", 0) == [[0], [1], [2], [3]]
    assert owned(group(found, "t.weight"), "t.bias", 0) == owned(group(found, "t.weight"), "c.weight", 1)


def test_flatten_gives_each_channel_a_block_of_linear_columns() -> None:
    found = coupling(
        lambda m, x: m.f(torch.flatten(functional.max_pool2d(m.a(x), 4), 1)), a=conv(3, 2), f=nn.Linear(8, 3)
    )
    assert owned(group(found, "a.weight"), "f.weight", 1) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("pool", [lambda y: y.mean((2, 3)), lambda y: functional.adaptive_avg_pool2d(y, 1).flatten(1)])
def test_pooling_keeps_channels_apart(pool: Callable[[Tensor], Tensor]) -> None:
    found = coupling(lambda m, x: m.f(pool(m.a(x))), a=conv(3, 4), f=nn.Linear(4, 3))
    assert owned(group(found, "a.weight"), "f.weight", 1) == [[0], [1], [2], [3]]


def test_a_channel_shuffle_loses_the_same_positions_in_each_group() -> None:
    found = coupling(lambda m, x: m.c(channel_shuffle(m.a(x), 2)), a=conv(3, 6), c=conv(6, 1))
    united = group(found, "a.weight")
    assert owned(united, "a.weight", 0) == [[0, 3], [1, 4], [2, 5]]
    assert owned(united, "c.weight", 1) == [[0, 1], [2, 3], [4, 5]]


def test_pixel_shuffle_makes_one_unit_of_each_output_channel() -> None:
    found = coupling(lambda m, x: m.c(functional.pixel_shuffle(m.a(x), 2)), a=conv(3, 8), c=conv(2, 1))
    assert owned(group(found, "a.weight"), "a.weight", 0) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_group_norm_makes_one_unit_of_each_group() -> None:
    found = coupling(lambda m, x: m.c(m.n(m.a(x))), a=conv(3, 6), n=nn.GroupNorm(3, 6), c=conv(6, 1))
    assert owned(group(found, "a.weight"), "n.weight", 0) == [[0, 1], [2, 3], [4, 5]]


def test_prelu_slopes_belong_to_their_channels() -> None:
    found = coupling(lambda m, x: m.c(m.p(m.a(x))), a=conv(3, 4), p=nn.PReLU(4), c=conv(4, 1))
    assert owned(group(found, "a.weight"), "p.weight", 0) == [[0], [1], [2], [3]]


def test_squeeze_and_excite_scales_share_the_channels_of_what_they_scale() -> None:
    found = find_coupling(captured("se_resnet").graph)
    united = group(found, "1.body.2.0.weight")
    assert united is group(found, "1.se.up.weight")
    assert owned(united, "1.se.down.weight", 1) == [[u] for u in range(16)]


def test_spatial_attention_leaves_channels_free_and_keeps_its_map() -> None:
    found = coupling(lambda m, x: m.c(m.a(x) * torch.sigmoid(m.s(x))), a=conv(3, 4), s=conv(3, 1), c=conv(4, 1))
    assert group(found, "a.weight").frozen is None
    assert "repeats" in str(group(found, "s.weight").frozen)


def test_an_operator_that_is_not_understood_freezes_what_it_touches_and_is_named() -> None:
    found = coupling(lambda m, x: m.c(torch.softmax(m.a(x), 1)) + m.c(m.b(x)), a=conv(3, 4), b=conv(3, 4), c=conv(4, 4))
    assert "softmax" in str(group(found, "a.weight").frozen)


def test_a_mean_over_channels_freezes_them() -> None:
    found = coupling(lambda m, x: m.c(m.a(x).mean(1, keepdim=True)), a=conv(3, 4), c=conv(1, 1))
    assert "over channels" in str(group(found, "a.weight").frozen)


def test_zero_padded_shortcuts_are_coupled() -> None:
    found = find_coupling(captured("resnet20_option_a").graph)
    assert all(g.frozen is None for g in found.producer_groups("1.body.1.0.weight"))
    shared = next(g for g in found.producer_groups("0.0.weight"))
    assert owned(shared, "1.body.1.0.weight", 0) == [[u + 4] for u in range(8)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_filter_belongs_to_exactly_one_unit(name: str) -> None:
    model = build(name)
    found = find_coupling(captured(name).graph)
    assert len({g.name for g in found.groups}) == len(found.groups)
    claims: dict[tuple[str, int], list[int]] = {}
    for each in found.groups:
        for part in each.slices:
            assert part.indices.shape[0] == each.units
            claims.setdefault((part.parameter, part.axis), []).extend(part.indices.reshape(-1).tolist())
    for (parameter, axis), indices in claims.items():
        assert sorted(indices) == list(range(model.state_dict()[parameter].shape[axis])), parameter
    for layer, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert (f"{layer}.weight", 0) in claims


def test_the_batch_of_the_example_does_not_matter() -> None:
    graph = trace(build("shufflenet_v2"), (torch.zeros(5, *INPUT_SHAPE[1:]),))
    two, five = (find_coupling(each) for each in (captured("shufflenet_v2").graph, graph))
    assert [(g.name, g.units, g.frozen) for g in two.groups] == [(g.name, g.units, g.frozen) for g in five.groups]
