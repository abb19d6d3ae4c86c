"""The training stage: model and data in, dense and pruned weights, masks and their record out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

import structadmm
from structadmm.errors import UserError
from structadmm.files import atomic_path, write_json
from structadmm.graph.module import MOST_APART, apart_by, first_output
from structadmm.progress import Reporter
from structadmm.source import describe_machine, source_commit
from train.checkpoint import load_checkpoint, save_tensors
from train.config import ModelConfig, TrainConfig
from train.data import Dataset, load_dataset
from train.data.images import Images
from train.earlier import read_earlier
from train.import_path import exit_is_an_error
from train.layers import Network, kept_filters_and_columns
from train.living import FindSmaller
from train.loop import process_group, reproducible
from train.models import MODELS, build_model
from train.run import TrainingRun
from train.stage_files import CHECKPOINT, HELD_OUT, MASKS, PRUNED, PRUNING, SAMPLES

_SAMPLES = 64
_HELD_OUT_SAMPLES = 1000  # an accuracy in steps of 0.1 points
_HELD_OUT_BYTES = 128 << 20


def run_train(config: TrainConfig, out: Path, reporter: Reporter, find_smaller: FindSmaller | None = None) -> None:
    """Train, prune and retrain a network; resume if `out` holds what an interrupted attempt left.

    Writes `dense.safetensors`, `pruned.safetensors` (masked weights in dense shapes), `masks.safetensors` (bool, for
    parameters that lost something), `pruning.json` (schema 1), `history.jsonl`, `samples.npz` (preprocessed images),
    and, where training images were held out, `held_out.npz` (likewise, of those).

    Args:
        config: the `[train]` section.
        out: the stage's directory.
        reporter: shows progress.
        find_smaller: finds the network that masks leave; `compact` has no effect without.

    Raises:
        UserError: something in the configuration, the data or a checkpoint is wrong, or the loss diverges.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / CHECKPOINT
    threads = load_checkpoint(checkpoint).threads if checkpoint.exists() else config.threads or torch.get_num_threads()
    with reproducible(threads, config.deterministic), process_group():
        _train(config, out, reporter, find_smaller)


def _train(config: TrainConfig, out: Path, reporter: Reporter, find_smaller: FindSmaller | None) -> None:
    fraction = config.held_out
    whole = load_dataset(config.data)
    dataset, held_out = whole.hold_out(fraction)
    kwargs = model_kwargs(config.model, dataset)
    torch.manual_seed(config.seed)
    model = build_model(config.model.entry, kwargs)
    _check_outputs(config.model, model, dataset)
    teacher: nn.Module | None = None
    if config.distill is not None and config.distill.weights is not None:
        teacher = copy.deepcopy(model)
        _load_weights(config.distill.weights, teacher, "train.distill.weights")
    if config.model.weights is not None:
        _load_weights(config.model.weights, model, "train.model.weights")
    earlier = read_earlier(config, dataset, len(held_out) if fraction else 0, kwargs)
    if earlier is not None:
        earlier.load_into(model)
    run = TrainingRun(config, model, dataset, held_out, out, reporter, find_smaller, teacher, earlier)
    run.execute()
    if run.is_main_process:
        _write_results(config, kwargs, dataset, len(held_out) if fraction else 0, run, out)
        if fraction:
            count = min(_HELD_OUT_SAMPLES, _HELD_OUT_BYTES // (4 * math.prod(dataset.image_shape)))
            _write_samples(out / HELD_OUT, _samples(dataset, held_out, whole.held_out_labels(fraction), count))
        for line in layer_table(run.network, run.masks):
            reporter.say(line)
        (out / CHECKPOINT).unlink(missing_ok=True)
    # A process that ends early has its peers killed by the launcher: nobody leaves while files are written.
    run.wait_for_everyone()


def model_kwargs(config: ModelConfig, dataset: Dataset) -> dict[str, Any]:
    """The model's arguments; built-in models take the number of classes and channels from the data.

    Raises:
        UserError: a built-in model is told another number than the data has.
    """
    kwargs = dict(config.kwargs)
    if config.entry in MODELS:
        for name, value in (("num_classes", len(dataset.classes)), ("in_channels", dataset.image_shape[0])):
            if kwargs.setdefault(name, value) != value:
                raise UserError(
                    f"train.model.kwargs.{name} is {kwargs[name]}, data {dataset.name!r} has {value}: drop the argument"
                )
    return kwargs


def _check_outputs(config: ModelConfig, model: nn.Module, dataset: Dataset) -> None:
    images = dataset.normalised(dataset.test_images[:2])
    images = images.expand(2, -1, -1, -1) if len(images) == 1 else images
    try:
        with exit_is_an_error(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = model.eval()(images)
            # On a copy: a step in training mode moves running statistics.
            trained = copy.deepcopy(model).train()(images)
    except Exception as error:  # the user's code may raise anything
        problem = (str(error) or type(error).__name__).replace("\n", " ")[:300]
        raise UserError(f"model {config.entry!r} does not take images {tuple(images.shape)}: {problem}") from error
    expected = (2, len(dataset.classes))
    for mode, found in (("", logits), (" while training", trained)):
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != expected:
            told = tuple(found.shape) if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
            are_logits = isinstance(found, torch.Tensor) and tuple(found.shape[:-1]) == expected[:1]
            remedy = f"give it {expected[1]} outputs, one for each class" if are_logits else "return the logits alone"
            raise UserError(
                f"model {config.entry!r} maps {tuple(images.shape)} to {told}{mode}, expected logits {expected}: "
                f"{remedy}"
            )


def _load_weights(path: Path, model: nn.Module, option: str) -> None:
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        model.load_state_dict(
            {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        )
    except FileNotFoundError:
        raise UserError(f"{option}: {path} does not exist") from None
    except Exception as error:  # damaged files fail in as many ways as there are formats
        problem = str(error).replace("\n", " ")[:300]
        raise UserError(f"{option}: {path} does not fit the model ({problem})") from error


def _write_samples(path: Path, samples: Mapping[str, torch.Tensor]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **{name: array.numpy() for name, array in samples.items()})  # type: ignore[arg-type]


def _samples(dataset: Dataset, images: Images, labels: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    return {"images": dataset.normalised(images[:count]), "labels": labels[:count]}


def _outputs(entry: str, kwargs: dict[str, Any], trained: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a network that is built anew gives with the trained weights, as export builds it: the first output.

    Raises:
        UserError: the trained network gives something else, which its weights do not tell.
    """
    anew = build_model(entry, kwargs)
    anew.load_state_dict({name: tensor.detach().cpu() for name, tensor in trained.state_dict().items()})
    outputs = first_output(anew.float(), images)
    device = next((tensor.device for tensor in trained.state_dict().values()), images.device)
    apart = apart_by(first_output(trained, images.to(device)).float().cpu(), outputs)
    if apart > MOST_APART:
        raise UserError(
            f"{entry}, built anew with the trained weights, gives other outputs (up to {apart:.1g} of the largest): "
            "it depends on something that training changed and that is neither a parameter nor a buffer; register it"
        )
    return outputs


def layer_table(network: Network, masks: Mapping[str, torch.Tensor]) -> list[str]:
    """What is left of every convolution, as lines of a table."""
    rows = [("layer", "filters", "columns", "weights", "removed")]
    for layer in network.layers:
        filters, columns = kept_filters_and_columns(layer, masks)
        whole = layer.shape[1 if layer.transposed else 0]
        removed = f"{1 - filters * columns / layer.params:.1%}"
        rows.append(
            (layer.name, f"{filters}/{whole}", f"{columns}/{layer.params // whole}", f"{filters * columns}", removed)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def _write_results(
    config: TrainConfig, kwargs: dict[str, Any], dataset: Dataset, held_out: int, run: TrainingRun, out: Path
) -> None:
    save_tensors(out / PRUNED, run.model.state_dict())
    masks = {name: mask.cpu() for name, mask in run.masks.items()}
    save_tensors(out / MASKS, masks)
    samples = _samples(dataset, dataset.test_images, dataset.test_labels, _SAMPLES)
    samples["outputs"] = _outputs(config.model.entry, kwargs, run.model, samples["images"])
    _write_samples(out / SAMPLES, samples)
    layers: list[dict[str, Any]] = []
    for layer in run.network.layers:
        filters, columns = kept_filters_and_columns(layer, masks)
        axis = 1 if layer.transposed else 0
        layers.append(
            {
                "name": layer.name,
                "shape": list(layer.shape),
                "groups": layer.groups,
                "filters": layer.shape[axis],
                "kept_filters": filters,
                "columns": layer.params // layer.shape[axis],
                "kept_columns": columns,
                "params": layer.params,
                "kept_params": filters * columns,
                "nonzero": int(masks[layer.parameter].sum()) if layer.parameter in masks else layer.params,
            }
        )
    dense_params = sum(entry["params"] for entry in layers)
    kept_params = sum(entry["kept_params"] for entry in layers)
    dense, pruned = run.record["dense"], run.record["pruned"]
    write_json(
        out / PRUNING,
        {
            "schema": 1,
            "model": {"entry": config.model.entry, "kwargs": kwargs},
            "input_shape": [1, *dataset.image_shape],
            "data": {
                "name": dataset.name,
                "config": config.data.model_dump(mode="json"),
                "classes": list(dataset.classes),
                "mean": list(dataset.mean),
                "std": list(dataset.std),
                "train_images": len(dataset.train_labels),
                "held_out_images": held_out,
                "test_images": len(dataset.test_labels),
            },
            "accuracy": {
                "dense": 100.0 * dense["correct"] / dense["total"],
                "pruned": 100.0 * pruned["correct"] / pruned["total"],
                "dense_correct": dense["correct"],
                "pruned_correct": pruned["correct"],
                "test_images": pruned["total"],
            },
            "conv_params": {"dense": dense_params, "pruned": kept_params, "ratio": dense_params / kept_params},
            "layers": layers,
            "rounds": [
                *run.earlier_rounds,
                *(
                    {"sparsity": entry.model_dump(mode="json")["sparsity"], **result}
                    for entry, result in zip(config.rounds, run.record["rounds"], strict=True)
                ),
            ],
            "frozen": [
                {"group": group.name, "units": group.units, "reason": group.frozen}
                for group in run.network.coupling.groups
                if group.frozen is not None and group.producers
            ],
            "seed": config.seed,
            "made_by": {"commit": source_commit(), "machine": describe_machine(), "device": run.device_name},
            "versions": {
                "structadmm": structadmm.__version__,
                "torch": torch.__version__,
                "accelerate": accelerate.__version__,
                "safetensors": safetensors.__version__,
            },
        },
    )
