"""The export stage: `train/` in, `export/` out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from export.config import ExportConfig
from export.export_network import Samples, Score, export_network
from structadmm.errors import UserError
from structadmm.files import read_json
from structadmm.graph.module import MOST_APART, GraphModule, apart_by, first_output, flat_outputs
from structadmm.graph.save import read_tensors
from structadmm.progress import Reporter

_IMAGES_AT_ONCE = 256


def run_export(config: ExportConfig, train_dir: Path, out: Path, reporter: Reporter) -> None:
    """Shrink and export what training wrote.

    Reads `dense.safetensors`, `pruned.safetensors`, `pruning.json`, `samples.npz` and, for purification,
    `held_out.npz` (the images that its thresholds are chosen on) and the data set, whose test images the purified
    network is tested on again; writes `pruned.onnx`, `baseline.onnx`, `shrunk.safetensors`, `shrunk.json`,
    `export.json` and `samples.npz`.

    Args:
        config: the `[export]` section.
        train_dir: the training stage's directory.
        out: this stage's directory.
        reporter: shows progress.

    Raises:
        UserError: a file is absent or damaged, or the network cannot be exported.
        InvariantError: an exported network differs from the trained one.
    """
    from train.models import build_model

    pruning = read_json(train_dir / "pruning.json", schema=1)
    try:
        entry, kwargs, shape = pruning["model"]["entry"], pruning["model"]["kwargs"], pruning["input_shape"]
        accuracy = {name: float(pruning["accuracy"][name]) for name in ("dense", "pruned")}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{train_dir / 'pruning.json'} lacks {error}: run the train stage again") from None
    pruned = read_tensors(train_dir / "pruned.safetensors")
    dense = read_tensors(train_dir / "dense.safetensors")
    samples = read_samples(train_dir / "samples.npz")
    held_out = train_dir / "held_out.npz"
    model = build_model(entry, kwargs)
    try:
        model.load_state_dict(pruned)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"{train_dir / 'pruned.safetensors'} does not fit {entry}: {line}: run the train stage again"
        ) from None
    _refuse_other_code(model, entry, train_dir / "samples.npz", samples)
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise UserError(
            f"pruning.json has input_shape {shape!r}, expected positive integers: run the train stage again"
        )
    if config.purify.enabled and not held_out.exists():
        raise UserError(
            "purification chooses its thresholds on images that are neither trained nor tested on, and training held "
            "none out: set train.data.held_out = 0.1 and run from train, or disable export.purify"
        )
    out.mkdir(parents=True, exist_ok=True)
    record = export_network(
        model,
        torch.zeros(1, *shape[1:]),
        out,
        config=config,
        dense_state=dense,
        samples=samples,
        held_out=read_samples(held_out) if held_out.exists() else None,
        accuracy=accuracy,
        test=None if not config.purify.enabled else lambda network: tested(network, pruning, train_dir),
        reporter=reporter,
    )
    shutil.copyfile(train_dir / "samples.npz", out / "samples.npz")
    conv, macs = record["conv_params"], record["macs"]
    reporter.say(
        f"exported: {conv['ratio']:.2f}x fewer CONV parameters, {macs['ratio']:.2f}x fewer MACs; "
        f"largest difference {record['checks']['shrunk_vs_onnx']:.1e} on ONNX Runtime"
    )


def _refuse_other_code(model: torch.nn.Module, entry: str, path: Path, samples: Samples) -> None:
    """Hold the model, as its code builds it now, against what it gave when it had been trained.

    Raises:
        UserError: it gives something else for the same images and weights.
    """
    with np.load(path, allow_pickle=False) as arrays:
        if "outputs" not in arrays:
            return  # of a run from before they were kept
        trained = torch.from_numpy(arrays["outputs"])
    apart = apart_by(first_output(model, samples.inputs), trained)
    if apart > MOST_APART:
        raise UserError(
            f"{entry} gives other outputs than the network that was trained (up to {apart:.1g} of the largest, on the "
            f"images of {path}): its code has changed since; restore it, or run from train"
        )


def tested(network: GraphModule, pruning: dict[str, Any], train_dir: Path) -> Score:
    """Count what `network` classifies rightly of the test images that training tested on.

    Raises:
        UserError: `pruning.json` does not say which data set that was, or it cannot be loaded, or is another one now.
    """
    from pydantic import ValidationError

    from train.config import DataConfig
    from train.data import load_dataset

    try:
        config, images = DataConfig(**pruning["data"]["config"]), int(pruning["accuracy"]["test_images"])
    except (KeyError, TypeError, ValueError, ValidationError):
        raise UserError(
            f"{train_dir / 'pruning.json'} does not say how the test images are loaded: run the train stage again"
        ) from None
    data = load_dataset(config)
    if len(data.test_labels) != images:
        raise UserError(
            f"data {config.name!r} has {len(data.test_labels)} test images, training tested on {images}: "
            "run the train stage again"
        )
    correct = 0
    with torch.no_grad():
        for start in range(0, images, _IMAGES_AT_ONCE):
            part = data.normalised(data.test_images[start : start + _IMAGES_AT_ONCE])
            scores = flat_outputs(network(part))[0]
            correct += int((scores.argmax(dim=1) == data.test_labels[start : start + _IMAGES_AT_ONCE]).sum())
    return Score(correct, images)


def read_samples(path: Path) -> Samples:
    """Read `inputs` (float32 [n, C, H, W]) and `labels` (int64 [n]); never a pickle.

    Raises:
        UserError: absent, damaged, or with other arrays.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            name = "inputs" if "inputs" in arrays else "images"
            inputs, labels = arrays[name], arrays["labels"]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the train stage first") from None
    except Exception as error:  # a damaged archive raises whatever its zip and array readers raise
        line = next(iter(str(error).splitlines()), type(error).__name__)[:150]
        raise UserError(f"{path} does not hold inputs and labels ({line}): run the train stage again") from None
    if inputs.ndim < 2 or labels.shape != inputs.shape[:1] or not np.isfinite(inputs).all():
        raise UserError(f"{path} holds inputs {inputs.shape} and labels {labels.shape}: run the train stage again")
    return Samples(torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))
