"""A network on disk: `NAME.safetensors` and `NAME.json`. Nothing in either is executed when it is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from structadmm.errors import UserError
from structadmm.files import read_json, sha256_file, write_bytes, write_json
from structadmm.graph.ir import SCHEMA, Shape, StateEntry, graph_from_json, graph_to_json
from structadmm.graph.module import GraphModule, infer_shapes

_LARGEST_DESCRIPTION_BYTES = 64 << 20


def save_network(path_stem: Path, module: GraphModule) -> None:
    """Write `path_stem.safetensors`, then `path_stem.json`, which names the former's SHA-256.

    Args:
        path_stem: the path without extension.
        module: the network; its mode is not saved.
    """
    weights, description = _paths(path_stem)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.tensors().items()}
    write_bytes(weights, safetensors.torch.save(tensors))
    body = graph_to_json(module.graph)
    body["weights_sha256"] = sha256_file(weights)
    body["description_sha256"] = _digest(body)
    write_json(description, body)


def load_network(path_stem: Path) -> GraphModule:
    """Read what `save_network` wrote, in evaluation mode.

    Raises:
        UserError: a file is absent, truncated, changed, or describes something this version does not run.
    """
    weights, description = _paths(path_stem)
    try:
        if description.stat().st_size > _LARGEST_DESCRIPTION_BYTES:
            raise UserError(f"{description} is larger than any network description: save the network again")
    except FileNotFoundError:
        raise UserError(
            f"{description} does not exist: give the path of a saved network without its extension"
        ) from None
    body = read_json(description, schema=SCHEMA)
    expected = body.pop("description_sha256", None)
    if expected != _digest(body):
        raise UserError(f"{description} was changed after it was saved: save the network again")
    if not weights.is_file():
        raise UserError(f"{weights} does not exist, {description.name} needs it: copy both files")
    if sha256_file(weights) != body.get("weights_sha256"):
        raise UserError(f"{weights} is not the file {description.name} was saved with: copy both files again")
    graph = graph_from_json(body)
    state = read_tensors(weights)
    for name, entry in graph.state.items():
        _check_tensor(name, entry, state, weights)
    module = GraphModule(graph, state).eval()
    shapes = infer_shapes(graph, state)
    for node in graph.nodes:
        if shapes[node.name] != node.shapes:
            raise UserError(
                f"{description}: node {node.name!r} yields {_text(shapes[node.name])}, the file says otherwise"
            )
    return module


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        UserError: absent, truncated, or not a safetensors file.
    """
    try:
        return dict(safetensors.torch.load_file(path, device="cpu"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the stage that writes it first") from None
    except Exception as error:  # safetensors raises an exception class of its native module
        line = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a valid safetensors file ({line}): write it again") from None


def _paths(stem: Path) -> tuple[Path, Path]:
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_tensor(name: str, entry: StateEntry, state: dict[str, Tensor], weights: Path) -> None:
    if entry.alias_of is not None:
        return
    tensor = state.get(name)
    if tensor is None:
        raise UserError(f"{weights} has no tensor {name!r}: copy both files of the network again")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise UserError(
            f"{weights}: {name!r} is {dtype}{list(tensor.shape)}, expected {entry.dtype}{list(entry.shape)}"
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{weights}: {name!r} holds values that are not finite: save a network that has not diverged")


def _text(shapes: tuple[Shape, ...]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes)
