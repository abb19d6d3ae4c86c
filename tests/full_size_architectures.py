"""The well-known networks at their full depth and width, as in their papers, for small inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures import Bottleneck, Head, ShuffleUnit, conv_bn
from train.models import build_model


class DenseLayer(nn.Module):
    """Normalisation first, and a bottleneck (1608.06993, DenseNet-B)."""

    def __init__(self, i: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(i), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(i, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


def densenet121() -> nn.Module:
    channels, growth = 64, 32
    layers: list[nn.Module] = [conv_bn(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for block, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        if block < 3:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, Head(channels, 1000))


def shufflenet_v2() -> nn.Module:
    channels = 24
    layers: list[nn.Module] = [conv_bn(3, channels, 3, 2), nn.MaxPool2d(3, 2, 1)]
    for outputs, repeats in ((116, 4), (232, 8), (464, 4)):
        layers += [ShuffleUnit(channels, outputs, 2), *(ShuffleUnit(outputs, outputs, 1) for _ in range(repeats - 1))]
        channels = outputs
    return nn.Sequential(*layers, conv_bn(channels, 1024, 1), Head(1024, 1000))


class Inception(nn.Module):
    def __init__(self, i: int, one: int, r3: int, three: int, r5: int, five: int, pool: int) -> None:
        super().__init__()
        self.b1 = conv_bn(i, one, 1)
        self.b2 = nn.Sequential(conv_bn(i, r3, 1), conv_bn(r3, three))
        self.b3 = nn.Sequential(conv_bn(i, r5, 1), conv_bn(r5, five, 5))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(i, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], 1)


def googlenet() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1), conv_bn(64, 64, 1), conv_bn(64, 192), nn.MaxPool2d(3, 2, 1),
        Inception(192, 64, 96, 128, 16, 32, 32), Inception(256, 128, 128, 192, 32, 96, 64), nn.MaxPool2d(3, 2, 1),
        Inception(480, 192, 96, 208, 16, 48, 64), Inception(512, 160, 112, 224, 24, 64, 64),
        Inception(512, 128, 128, 256, 24, 64, 64), Inception(512, 112, 144, 288, 32, 64, 64),
        Inception(528, 256, 160, 320, 32, 128, 128), nn.MaxPool2d(2, 2),
        Inception(832, 256, 160, 320, 32, 128, 128), Inception(832, 384, 192, 384, 48, 128, 128),
        nn.Dropout(0.2), Head(1024, 1000),
    )  # fmt: skip


class Fire(nn.Module):
    def __init__(self, i: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze, self.one, self.three = (
            nn.Conv2d(i, squeeze, 1), nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


def squeezenet() -> nn.Module:
    """Version 1.1: no BatchNorm, pooling that rounds sizes up, and a convolution for a classifier."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool(),
        Fire(128, 32, 128), Fire(256, 32, 128), pool(), Fire(256, 48, 192), Fire(384, 48, 192),
        Fire(384, 64, 256), Fire(512, 64, 256), nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # PyTorch's default is too small for eighteen layers without normalisation: the output would be constant.
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


def bottlenecks(width: int, groups: int, *, squeeze_excite: bool) -> nn.Module:
    """The 50-layer plan: 3, 4, 6 and 3 blocks; `width` channels in the first stage's 3x3 convolutions."""
    channels = 64
    layers: list[nn.Module] = [conv_bn(3, channels, 7, 2), nn.MaxPool2d(3, 2, 1)]
    for stage, repeats in enumerate((3, 4, 6, 3)):
        for block in range(repeats):
            stride, outputs = 2 if stage and not block else 1, 256 << stage
            layers.append(Bottleneck(channels, width << stage, outputs, stride, groups, squeeze_excite))
            channels = outputs
    return nn.Sequential(*layers, Head(channels, 1000))


class UNet(nn.Module):
    """Four levels down and up, transposed convolutions on the way up (1505.04597), with padding and BatchNorm."""

    def __init__(self, base: int = 64) -> None:
        super().__init__()
        sizes = [base << level for level in range(5)]
        self.down = nn.ModuleList(
            nn.Sequential(conv_bn(i, o), conv_bn(o, o)) for i, o in zip([3, *sizes], sizes, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, 2) for o in reversed(sizes[:-1]))
        self.join = nn.ModuleList(nn.Sequential(conv_bn(2 * o, o), conv_bn(o, o)) for o in reversed(sizes[:-1]))
        self.last = nn.Conv2d(base, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(kept[:-1]), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return self.last(x)


# Name: builder and the input's height and width.
FULL_SIZE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: build_model("resnet18", {}), 64),
    "resnet50": (lambda: build_model("resnet50", {}), 64),
    "vgg16_bn": (lambda: build_model("cifar_vgg16_bn", {}), 32),
    "alexnet": (lambda: build_model("alexnet", {}), 127),
    "mobilenet_v2": (lambda: build_model("mobilenet_v2", {}), 64),
    "densenet121": (densenet121, 64),
    "shufflenet_v2": (shufflenet_v2, 64),
    "googlenet": (googlenet, 64),
    "squeezenet": (squeezenet, 64),
    "unet": (UNet, 32),
    "resnext50_32x4d": (lambda: bottlenecks(128, 32, squeeze_excite=False), 64),
    "se_resnet50": (lambda: bottlenecks(64, 1, squeeze_excite=True), 64),
}
