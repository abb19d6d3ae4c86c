"""Networks that were not trained here: anybody's `module:callable` and anybody's file of weights."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from structadmm.errors import UserError
from structadmm.graph.save import read_tensors

# Where training programs put a state_dict beside optimizer and epoch; the first that is there is taken.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")


def build_network(entry: str, weights: Path | None = None) -> nn.Module:
    """A network in evaluation mode, with its weights loaded.

    Args:
        entry: a built-in model's name, or `module:callable`, called without arguments.
        weights: a `.safetensors` file, or a `.pt` file that holds tensors and plain containers only; None: as built.

    Raises:
        UserError: no such model, or the weights do not fit it.
    """
    from train.models import build_model

    network = build_model(entry, {}).eval()
    if weights is not None:
        load_weights(network, read_weights(weights), f"{weights} does not fit {entry}")
    return network


def load_weights(network: nn.Module, state: Mapping[str, Tensor], complaint: str) -> None:
    """Load a complete state; `complaint` opens the error.

    Raises:
        UserError: a tensor is missing, left over, or of another shape.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{complaint}: {' '.join(str(error).split())[:200]}: give weights of exactly this network"
        ) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state_dict from `.safetensors` or `.pt`; nothing in the file is executed.

    A state_dict inside a training checkpoint is found, the prefix that `DataParallel` adds is taken off, and masks of
    `torch.nn.utils.prune` are applied.

    Raises:
        UserError: absent, damaged, or holding more than tensors in plain containers.
    """
    if path.suffix == ".safetensors":
        return _plain(read_tensors(path))
    if path.suffix not in _PICKLED:
        raise UserError(f"{path}: expected .safetensors or .pt: convert the weights with safetensors.torch.save_file")
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a file of weights") from None
    except pickle.UnpicklingError:
        # The message of torch is a page long and suggests to run what the file holds.
        raise UserError(
            f"{path} holds more than tensors, or is damaged: save model.state_dict() alone with torch.save"
        ) from None
    except Exception as error:  # a damaged archive raises whatever its reader raises
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is not a file of weights ({line[:120]}): save it again with torch.save") from None
    if isinstance(value, Mapping):
        value = next((value[key] for key in _NESTED if isinstance(value.get(key), Mapping)), value)
    if (
        not isinstance(value, Mapping)
        or not value
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    ):
        raise UserError(f"{path} holds no state_dict: save model.state_dict() with torch.save")
    return _plain(value)


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wrapped = all(name.startswith("module.") for name in state)
    found = {name.removeprefix("module.") if wrapped else name: tensor.detach() for name, tensor in state.items()}
    # torch.nn.utils.prune keeps a weight and its mask apart until `prune.remove` is called.
    for name in [name for name in found if name.endswith("_orig") and f"{name[:-5]}_mask" in found]:
        found[name[:-5]] = found.pop(name) * found.pop(f"{name[:-5]}_mask")
    return found


def example_inputs(shapes: Sequence[str]) -> tuple[Tensor, ...]:
    """Zeros of shapes written as `1,3,224,224`, one for each input.

    Raises:
        UserError: one is no such list, or larger than any image network's input.
    """
    return tuple(_zeros(shape) for shape in shapes)


def _zeros(shape: str) -> Tensor:
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or math.prod(sizes) > 1 << 30:
        raise UserError(f"--shape {shape}: expected positive integers, batch first, such as 1,3,224,224")
    return torch.zeros(sizes)
