"""Small networks in the style of the well-known ones, one per construct that coupling must understand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from structadmm.graph import Captured, capture


def conv_bn(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if act else []))


class Head(nn.Module):
    def __init__(self, features: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, s: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, s, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(o)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(o)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = conv_bn(i, o, 1, s, act=False) if s != 1 or i != o else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class OptionA(nn.Module):
    """A residual block whose shortcut pads channels with zeros."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(i, o, 3, 2), conv_bn(o, o, act=False))
        self.extra = o - i

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return F.relu(self.body(x) + shortcut)


class Bottleneck(nn.Module):
    def __init__(self, i: int, w: int, o: int, s: int = 1, g: int = 1, se: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(i, w, 1), conv_bn(w, w, 3, s, g), conv_bn(w, o, 1, act=False))
        self.se = SqueezeExcite(o, max(2, o // 4)) if se else None
        self.shortcut = conv_bn(i, o, 1, s, act=False) if s != 1 or i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.se is not None:
            y = self.se(y)
        return F.relu(y + self.shortcut(x))


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, r: int) -> None:
        super().__init__()
        self.down = nn.Linear(c, r)
        self.up = nn.Linear(r, c)

    def forward(self, x: Tensor) -> Tensor:
        s = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * s[:, :, None, None]


def resnet18() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 16, 1), Head(16))


def resnet20_option_a() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), OptionA(8, 16), OptionA(16, 24), Head(24))


def resnet50() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8),
        nn.MaxPool2d(3, 2, 1),
        Bottleneck(8, 6, 16),
        Bottleneck(16, 6, 16),
        Bottleneck(16, 8, 24, 2),
        Head(24),
    )


def resnext() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), Bottleneck(8, 16, 16, 1, 8), Bottleneck(16, 16, 24, 2, 2), Head(24))


def se_resnet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), Bottleneck(8, 6, 16, se=True), Bottleneck(16, 8, 16, se=True), Head(16))


class VGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(
            nn.Linear(12 * 16, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 14), nn.ReLU(True), nn.Linear(14, 5)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(x.view(x.size(0), -1))


def alexnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2),
        nn.ReLU(True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, groups=2),
        nn.ReLU(True),
        nn.Conv2d(12, 12, 3, padding=1, groups=2),
        nn.ReLU(True),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(12 * 16, 5),
    )


class InvertedResidual(nn.Module):
    def __init__(self, i: int, o: int, s: int, t: int) -> None:
        super().__init__()
        h = i * t
        self.use_res = s == 1 and i == o
        layers: list[nn.Module] = []
        if t != 1:
            layers += [nn.Conv2d(i, h, 1, bias=False), nn.BatchNorm2d(h), nn.ReLU6(True)]
        layers += [nn.Conv2d(h, h, 3, s, 1, groups=h, bias=False), nn.BatchNorm2d(h), nn.ReLU6(True)]
        layers += [nn.Conv2d(h, o, 1, bias=False), nn.BatchNorm2d(o)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res else self.conv(x)


def mobilenet_v2() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8, 3, 2), InvertedResidual(8, 6, 1, 1), InvertedResidual(6, 8, 2, 3), InvertedResidual(8, 8, 1, 3),
        conv_bn(8, 20, 1), Head(20),
    )  # fmt: skip


class DenseLayer(nn.Module):
    def __init__(self, i: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(i)
        self.conv = nn.Conv2d(i, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), DenseLayer(8, 4), DenseLayer(12, 4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2), DenseLayer(8, 5), nn.BatchNorm2d(13), nn.ReLU(), Head(13),
    )  # fmt: skip


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class ShuffleUnit(nn.Module):
    def __init__(self, i: int, o: int, s: int) -> None:
        super().__init__()
        self.stride = s
        h = o // 2
        if s > 1:
            self.branch1 = nn.Sequential(conv_bn(i, i, 3, s, i, act=False), conv_bn(i, h, 1))
        self.branch2 = nn.Sequential(
            conv_bn(i if s > 1 else h, h, 1), conv_bn(h, h, 3, s, h, act=False), conv_bn(h, h, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            return channel_shuffle(torch.cat((x1, self.branch2(x2)), 1), 2)
        return channel_shuffle(torch.cat((self.branch1(x), self.branch2(x)), 1), 2)


def shufflenet_v2() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8, 3, 2),
        ShuffleUnit(8, 16, 2),
        ShuffleUnit(16, 16, 1),
        ShuffleUnit(16, 16, 1),
        conv_bn(16, 12, 1),
        Head(12),
    )


class Inception(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.b1 = conv_bn(i, 4, 1)
        self.b2 = nn.Sequential(conv_bn(i, 5, 1), conv_bn(5, 7))
        self.b3 = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(i, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b1(x), self.b2(x), self.b3(x)], 1)


def googlenet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), Inception(8), nn.MaxPool2d(3, 2, 1), Inception(14), nn.Dropout(0.2), Head(14))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_bn(3, 6)
        self.down2 = conv_bn(6, 10)
        self.bottom = conv_bn(10, 12)
        self.up2 = nn.ConvTranspose2d(12, 10, 2, 2)
        self.dec2 = conv_bn(20, 8)
        self.up1 = nn.ConvTranspose2d(8, 6, 2, 2, bias=False)
        self.dec1 = conv_bn(12, 6)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        d = self.dec2(torch.cat([self.up2(c), b], 1))
        return self.last(self.dec1(torch.cat([self.up1(d), a], 1)))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet20_option_a": resnet20_option_a,
    "resnet50": resnet50,
    "resnext": resnext,
    "se_resnet": se_resnet,
    "vgg": VGG,
    "alexnet": alexnet,
    "mobilenet_v2": mobilenet_v2,
    "densenet": densenet,
    "shufflenet_v2": shufflenet_v2,
    "googlenet": googlenet,
    "unet": UNet,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The named network with random weights and random normalisation statistics, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ARCHITECTURES[name]()
    return randomise(model, generator).eval()


def randomise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give every normalisation layer statistics and an affine that a fresh one does not have."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                if module.affine:
                    module.weight.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                    module.bias.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
    return model


INPUT_SHAPE = (1, 3, 16, 16)
TRACED_BATCH = 2


@cache
def captured(name: str) -> Captured:
    """The named network's graph and tensors, traced once for all tests: do not modify them."""
    return capture(build(name), (torch.zeros(TRACED_BATCH, *INPUT_SHAPE[1:]),))


def in_float64(network: Captured) -> Captured:
    """A copy of a network's tensors in double precision."""
    state = {n: t.detach().double() if t.is_floating_point() else t.clone() for n, t in network.state.items()}
    return Captured(network.graph, state)
