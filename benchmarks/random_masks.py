"""Networks with random structured zeros, made as training makes them: the projection of fresh weights is random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.fixed_point import shrink_fully
from export.onnx_export import export_onnx
from export.shrink import Shrunk, rounded
from structadmm.graph import Captured, capture
from train.batch_norm import calibrate
from train.config import RoundConfig
from train.layers import Network
from train.masking import hard_prune
from train.rounds import plan_round


def calibrated(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Give every BatchNorm statistics of its own activations, so that signals keep their size through all layers.

    Args:
        model: modified; left in evaluation mode.
        shape: of the input; its batch does not matter.
    """
    return calibrate(model, torch.randn(8, *shape[1:], generator=torch.Generator().manual_seed(0)))


def prune(model: nn.Module, shape: tuple[int, ...], rounds: Sequence[dict[str, Any]]) -> Captured:
    """Project the weights onto the structures of `rounds`, one after the other.

    Args:
        model: its weights are modified, and its BatchNorm statistics made anew.
        shape: of the input.
        rounds: `[[train.rounds]]` tables: structure, sparsity, and what else matters for the projection.

    Returns:
        The traced network and its weights, zeros in place.
    """
    graph, state = capture(model, (torch.zeros(shape),))
    network = Network.of(graph)
    masks: dict[str, Tensor] = {}
    for table in rounds:
        plan = plan_round(RoundConfig.model_validate(table), network, masks)
        masks = hard_prune(model, plan.constraints, masks)
    # A dead filter's statistics come out as they were: its input is zero.
    calibrated(model, shape)
    state.update(model.state_dict())
    return Captured(graph, state)


def shrunk(network: Captured) -> Shrunk:
    """The network without its dead filters and channels, as export makes it."""
    doubles = {name: t.double() if t.is_floating_point() else t for name, t in network.state.items()}
    return rounded(shrink_fully(network.graph, doubles)[1], torch.float32)


def save_onnx(network: Captured | Shrunk, path: Path) -> Path:
    """Write a network as the export stage does, without verifying it again."""
    export_onnx(network.graph, network.state, path)
    return path
