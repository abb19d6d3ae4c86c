"""The networks that come with the project, each with a `width`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from torch import nn

from structadmm.errors import UserError
from train.import_path import exit_is_an_error, import_callable
from train.models.cifar_resnet import cifar_resnet18, cifar_resnet20, cifar_resnet56
from train.models.imagenet_resnet import resnet18, resnet50
from train.models.mobilenet import cifar_mobilenet_v2, mobilenet_v2
from train.models.plain import alexnet, cifar_alexnet, cifar_vgg16_bn

MODELS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": alexnet,
    "cifar_alexnet": cifar_alexnet,
    "cifar_mobilenet_v2": cifar_mobilenet_v2,
    "cifar_resnet18": cifar_resnet18,
    "cifar_resnet20": cifar_resnet20,
    "cifar_resnet56": cifar_resnet56,
    "cifar_vgg16_bn": cifar_vgg16_bn,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet50": resnet50,
}


def build_model(entry: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build a network with fresh weights, drawn from PyTorch's global generator.

    Args:
        entry: a name in `MODELS`, or `module:callable`.
        kwargs: arguments of the callable.

    Raises:
        UserError: no such model, the callable does not take the arguments, or it does not return an `nn.Module`.
    """
    if ":" in entry:
        build = import_callable(entry, "model")
    elif entry in MODELS:
        build = MODELS[entry]
    else:
        near = difflib.get_close_matches(entry, MODELS, n=3) or sorted(MODELS)
        raise UserError(f"unknown model {entry!r}: use {', '.join(near)}, or module:callable")
    try:
        with exit_is_an_error():
            model = build(**kwargs)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        problem = (str(error) or type(error).__name__).replace("\n", " ")[:300]
        raise UserError(f"model {entry!r} cannot be built with {kwargs}: {problem}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model {entry!r} returned a {type(model).__name__}, expected a torch.nn.Module")
    return model
