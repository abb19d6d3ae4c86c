"""Data sets by name, or by `module:callable`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from structadmm.errors import UserError
from train.data.dataset import Augmentation, Dataset
from train.import_path import exit_is_an_error, import_callable

if TYPE_CHECKING:
    from train.config import DataConfig

__all__ = ["DATASETS", "Augmentation", "Dataset", "load_dataset"]

DATASETS = ("cifar10", "digits", "fashion_mnist", "imagefolder", "mnist")


def load_dataset(config: DataConfig) -> Dataset:
    """Load the data set that `config` names.

    Raises:
        UserError: there is none of that name, or its files are absent or damaged.
    """
    if ":" in config.name:
        load = import_callable(config.name, "data")
        try:
            with exit_is_an_error():
                dataset = load(**config.kwargs)
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
            problem = (str(error) or type(error).__name__).replace("\n", " ")[:300]
            raise UserError(f"data {config.name!r} with kwargs {config.kwargs} does not load: {problem}") from error
        if not isinstance(dataset, Dataset):
            raise UserError(
                f"data {config.name!r} returned a {type(dataset).__name__}, expected a train.data.Dataset: "
                "docs/training.md shows one, under 'Images of your own'"
            )
        return dataset
    if config.name not in DATASETS:
        near = difflib.get_close_matches(config.name, DATASETS, n=2) or DATASETS
        raise UserError(f"unknown data {config.name!r}: use {', '.join(near)}, or module:callable")
    if config.name == "imagefolder":
        from train.data import imagefolder

        return imagefolder.load(config.root, config.kwargs)
    if config.kwargs:
        raise UserError(
            f"data {config.name!r} takes no kwargs, got {config.kwargs}: they are for imagefolder and module:callable"
        )
    if config.name == "digits":
        from train.data import digits

        return digits.load()
    if config.name == "cifar10":
        from train.data import cifar10

        return cifar10.load(config.root, verify=config.verify, fetch=config.download)
    from train.data import mnist

    return mnist.load(config.name, config.root, verify=config.verify, fetch=config.download)
