"""MobileNetV2 (Sandler et al., 1801.04381): inverted residuals, depthwise convolutions, ReLU6."""

from __future__ import annotations

from torch import Tensor, nn

# Expansion, channels at width 1.0, blocks, stride of the first block.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _divisible_by_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _conv_bn_relu6(in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection, with a shortcut where the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_bn_relu6(in_channels, hidden, 1, 1)]
        layers += [
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y: Tensor = self.conv(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """Features of inverted residuals, a global average, dropout, a linear."""

    def __init__(self, width: float, num_classes: int, in_channels: int, small_images: bool) -> None:
        super().__init__()
        channels = _divisible_by_8(32 * width)
        # Small images keep their size where ImageNet's are halved for the first two times.
        layers: list[nn.Module] = [_conv_bn_relu6(in_channels, channels, 3, 1 if small_images else 2)]
        for stage, (expansion, base, count, stride) in enumerate(_STAGES):
            out_channels = _divisible_by_8(base * width)
            for index in range(count):
                step = stride if index == 0 and not (small_images and stage == 1) else 1
                layers.append(InvertedResidual(channels, out_channels, step, expansion))
                channels = out_channels
        last = _divisible_by_8(1280 * max(1.0, width))
        layers.append(_conv_bn_relu6(channels, last, 1, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, in_channels, H, W] to logits [N, num_classes]."""
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


def mobilenet_v2(width: float = 1.0, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """MobileNetV2 for ImageNet; `width` is the paper's multiplier."""
    return MobileNetV2(width, num_classes, in_channels, small_images=False)


def cifar_mobilenet_v2(width: float = 1.0, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """MobileNetV2 for 32x32 images: the first two halvings are left out."""
    return MobileNetV2(width, num_classes, in_channels, small_images=True)
