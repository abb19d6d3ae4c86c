"""Residual networks for small images: He et al. (1512.03385), with the first layer of the CIFAR variants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, [N, C, H, W] -> [N, out_channels, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 convolution, stages of `BasicBlock`s that halve the image and double the channels, an average, a linear.

    Args:
        blocks: blocks per stage.
        width: channels of the first stage.
        num_classes: outputs.
        in_channels: of the image, whose size is free.
    """

    def __init__(self, blocks: Sequence[int], width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        stages = []
        for stage, count in enumerate(blocks):
            out_channels = width << stage
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, out_channels, stride))
                channels = out_channels
            stages.append(nn.Sequential(*layers))
        for number, layer in enumerate(stages, start=1):
            self.add_module(f"layer{number}", layer)
        self._stages = len(stages)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, in_channels, H, W] to logits [N, num_classes]."""
        x = torch.relu(self.bn1(self.conv1(x)))
        for number in range(1, self._stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def cifar_resnet18(width: int = 64, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-18 for small images (four stages of two blocks)."""
    return CifarResNet((2, 2, 2, 2), width, num_classes, in_channels)


def cifar_resnet20(width: int = 16, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-20 (three stages of three blocks), with projection shortcuts."""
    return CifarResNet((3, 3, 3), width, num_classes, in_channels)


def cifar_resnet56(width: int = 16, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-56 (three stages of nine blocks), with projection shortcuts."""
    return CifarResNet((9, 9, 9), width, num_classes, in_channels)
