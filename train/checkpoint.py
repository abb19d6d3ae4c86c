"""Checkpoints: one safetensors file, replaced atomically, whose header carries the position as JSON. No pickle."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from structadmm.errors import UserError
from structadmm.files import atomic_path

SCHEMA = 1


@dataclass(frozen=True)
class Position:
    """Where a run is, between two optimizer steps.

    Attributes:
        phase: index into `train.rounds.phases`.
        epoch: of the phase, the next to do or to go on with.
        global_epoch: of the run; seeds the order of the samples.
        step: of the epoch, the next to do.
        loss_sum: over the samples of the epoch so far.
        correct: of them, how many were classified correctly.
        seconds: that the epoch took so far.
        done: the phase needs no further epoch.
    """

    phase: int = 0
    epoch: int = 0
    global_epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    done: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """All that the next optimizer step depends on.

    Attributes:
        position: where the run is.
        tensors: `model.NAME`, `optimizer.NAME.KEY`, `mask.NAME`, `Z.NAME`, `U.NAME`, `removed.NAME`.
        rho: current penalty weight by weight name.
        config: of the run, as JSON.
        threads: of the CPU: another number would round otherwise.
        history_bytes: length of the history file at this position.
        record: results so far, as JSON.
    """

    position: Position
    tensors: Mapping[str, Tensor]
    rho: Mapping[str, float]
    config: dict[str, Any]
    threads: int
    history_bytes: int
    record: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose name starts with `prefix.`, without it."""
        start = f"{prefix}."
        return {name[len(start) :]: tensor for name, tensor in self.tensors.items() if name.startswith(start)}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically, whatever the memory format and device of `tensors`.

    Raises:
        OSError: it cannot be written.
    """
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # The format has no aliases: a tensor with two names is stored twice.
        plain[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata=metadata)
        except SafetensorError as error:
            if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace `path` by `checkpoint`."""
    state = {
        "schema": SCHEMA,
        "position": asdict(checkpoint.position),
        "rho": dict(checkpoint.rho),
        "config": checkpoint.config,
        "threads": checkpoint.threads,
        "history_bytes": checkpoint.history_bytes,
        "record": checkpoint.record,
    }
    save_tensors(path, checkpoint.tensors, {"state": json.dumps(state, allow_nan=False)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote.

    Raises:
        UserError: the file is damaged or of another version.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            state = json.loads((stream.metadata() or {})["state"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - it is no dict
        if state["schema"] != SCHEMA:
            raise UserError(
                f"{path} has schema {state['schema']}, this version reads {SCHEMA}: delete it to start over"
            )
        return Checkpoint(
            position=Position(**state["position"]),
            tensors=tensors,
            rho=state["rho"],
            config=state["config"],
            threads=state["threads"],
            history_bytes=state["history_bytes"],
            record=state["record"],
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint ({error}): delete it to start over") from error


def load_position(path: Path) -> Position:
    """Where the run of a checkpoint is; its tensors are not read.

    Raises:
        UserError: the file is damaged or of another version.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            return Position(**json.loads((stream.metadata() or {})["state"])["position"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint ({error}): delete it to start over") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimizer's state by `NAME.KEY`, NAME being the parameter's."""
    return {
        f"{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` gave, in the memory format of the parameters."""
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(".")
        parameter = parameters[name]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter).copy_(value)  # noqa: PLW2901 - the same value, placed as the weight is
        optimizer.state[parameter][key] = value
