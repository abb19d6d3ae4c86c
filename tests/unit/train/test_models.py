from __future__ import annotations

import pytest
import torch

from structadmm.errors import UserError
from train.config import ModelConfig
from train.data.digits import load
from train.models import MODELS, build_model
from train.stage import model_kwargs

# Parameters of the published networks: a layer too many or a bias too few shows here.
PUBLISHED = {
    "alexnet": 61_100_840,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
    "cifar_resnet18": 11_173_962,
    "cifar_resnet20": 272_474,
    "cifar_resnet56": 855_770,
}


@pytest.mark.parametrize("entry", PUBLISHED)
def test_a_network_has_as_many_parameters_as_the_published_one(entry: str) -> None:
    with torch.device("meta"):
        model = build_model(entry, {})
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[entry]


@pytest.mark.parametrize("entry", MODELS)
def test_every_network_takes_a_width_channels_and_classes(entry: str) -> None:
    narrow = 0.25 if "mobilenet" in entry else 8
    model = build_model(entry, {"width": narrow, "num_classes": 7, "in_channels": 2}).eval()
    size = 64 if entry in ("alexnet", "resnet18", "resnet50", "mobilenet_v2") else 32
    assert model(torch.zeros(1, 2, size, size)).shape == (1, 7)
    wider = build_model(entry, {"width": 2 * narrow, "num_classes": 7, "in_channels": 2})
    assert sum(p.numel() for p in wider.parameters()) > 1.5 * sum(p.numel() for p in model.parameters())


def test_cifar_resnet18_has_the_usual_keys_and_any_image_size() -> None:
    model = build_model("cifar_resnet18", {"width": 4}).eval()
    names = {name.rpartition(".")[0] for name in model.state_dict()}
    expected = {"conv1", "bn1", "fc"}
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            expected |= {f"layer{stage}.{block}.{part}" for part in ("conv1", "bn1", "conv2", "bn2")}
        if stage > 1:
            expected |= {f"layer{stage}.0.shortcut.{part}" for part in (0, 1)}
    assert names == expected
    for size in (8, 17, 32):
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_unknown_models_and_arguments_are_refused_with_what_is_near() -> None:
    with pytest.raises(UserError, match=r"unknown model 'cifar_resnet19': use cifar_resnet18"):
        build_model("cifar_resnet19", {})
    with pytest.raises(UserError, match=r"cannot be built with \{'widht': 8\}.*unexpected keyword"):
        build_model("cifar_resnet18", {"widht": 8})
    with pytest.raises(UserError, match="returned a OrderedDict"):
        build_model("collections:OrderedDict", {})
    with pytest.raises(UserError, match=r"no callable 'missing'"):
        build_model("collections:missing", {})
    with pytest.raises(UserError, match="not of the form module:callable"):
        build_model(":missing", {})


def test_a_built_in_model_takes_its_classes_and_channels_from_the_data() -> None:
    data = load()
    assert model_kwargs(ModelConfig(kwargs={"width": 8}), data) == {"width": 8, "num_classes": 10, "in_channels": 1}
    with pytest.raises(UserError, match=r"num_classes is 100, data 'digits' has 10"):
        model_kwargs(ModelConfig(kwargs={"num_classes": 100}), data)
    assert model_kwargs(ModelConfig(entry="my.module:model", kwargs={"depth": 3}), data) == {"depth": 3}
