from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from structadmm.errors import UserError
from structadmm.graph import GraphModule, capture, trace
from structadmm.graph.ir import Graph, graph_from_json, graph_to_json
from tests.architectures import ARCHITECTURES, INPUT_SHAPE, TRACED_BATCH, build, captured

# The graph repeats the model's own operators in float32; only their memory layout may differ.
TOLERANCE = 1e-6


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_graph_repeats_its_model_in_both_modes_at_another_batch(name: str) -> None:
    model = build(name)
    graph, state = captured(name)
    assert graph.eval_only is None and graph.batch == TRACED_BATCH
    assert graph_from_json(graph_to_json(graph)) == graph
    again = GraphModule(graph, {key: value.clone() for key, value in state.items()})
    assert set(again.state_dict()) == set(model.state_dict())
    inputs = torch.randn(5, *INPUT_SHAPE[1:], generator=torch.Generator().manual_seed(0))
    for training in (False, True):
        torch.manual_seed(1)  # of dropout
        expected = model.train(training)(inputs)
        torch.manual_seed(1)
        arrived = again.train(training)(inputs)
        assert (expected - arrived).abs().max() < TOLERANCE * max(1.0, float(expected.detach().abs().max()))
    for key, value in model.state_dict().items():
        assert torch.allclose(value, again.state_dict()[key], atol=TOLERANCE), key


def test_dropout_follows_the_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    module = GraphModule(*capture(model, (torch.ones(1, 1, 8, 8),)))
    assert bool((module.eval()(torch.ones(1, 1, 8, 8)) == 1).all())
    assert bool((module.train()(torch.ones(1, 1, 8, 8)) == 0).any())


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.tied = self.conv
        self.register_buffer("scale", torch.full((4, 1, 1), 2.0), persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        offset = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)
        return {"sum": self.conv(a) * self.scale + offset, "second": self.tied(b)}


def test_shared_parameters_constants_and_several_inputs_and_outputs_survive() -> None:
    model = TwoHeads()
    inputs = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    graph, state = capture(model, inputs)
    module = GraphModule(graph, state)
    assert set(module.state_dict()) == set(model.state_dict())
    assert module.get_parameter("tied.weight") is module.get_parameter("conv.weight")
    expected, arrived = model(*inputs), module(*inputs)
    assert all(torch.equal(expected[key], arrived[key]) for key in ("sum", "second"))


def test_an_in_place_operator_replaces_its_operand() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = functional.relu(y, inplace=True)
            y += 1
            return y + z

    model = InPlace()
    inputs = torch.randn(2, 3)
    assert torch.equal(GraphModule(*capture(model, (inputs,)))(inputs), model(inputs))


def test_an_in_place_operator_seen_through_a_view_is_refused_by_name() -> None:
    class Aliased(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            view = y[:, :1]
            y.relu_()
            return y + view

    with pytest.raises(UserError, match=r"relu_.*slice"):
        trace(Aliased(), (torch.randn(2, 3),))


def test_control_flow_on_data_is_refused_in_one_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(UserError, match=r"torch.export cannot trace Branching") as error:
        trace(Branching(), (torch.randn(2, 3),))
    assert "\n" not in str(error.value)


def test_a_model_that_trains_another_network_is_evaluation_only() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x)) if self.training else self.fc(x)

    model = Auxiliary().train()
    graph, state = capture(model, (torch.zeros(1, 3),))
    assert model.training
    assert graph.eval_only is not None
    with pytest.raises(UserError, match="evaluation only"):
        GraphModule(graph, state).train()


def test_a_model_bound_to_its_batch_says_so() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(4, 3)

    graph, state = capture(Fixed(), (torch.zeros(2, 6),))
    assert graph.batch is None
    with pytest.raises(UserError, match="expected \\[2, 6\\]"):
        GraphModule(graph, state)(torch.zeros(4, 6))


def test_an_operator_off_the_list_is_refused_by_name() -> None:
    graph = trace(nn.Sequential(nn.Linear(3, 3)), (torch.zeros(1, 3),))
    body = graph_to_json(graph)
    body["nodes"][-1]["op"] = "aten.from_file.default"
    changed: Graph = graph_from_json(body)
    with pytest.raises(UserError, match=r"aten\.from_file\.default"):
        GraphModule(changed, {"0.weight": torch.zeros(3, 3), "0.bias": torch.zeros(3)})


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_model_whose_output_is_not_finite_is_told_of_as_that(factor: float) -> None:
    class Diverged(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * factor

    with pytest.raises(UserError, match=r"Diverged returns NaN or infinity \(output 0\) for the example input: check"):
        capture(Diverged(3, 4, 3), (torch.zeros(2, 3, 8, 8),))
