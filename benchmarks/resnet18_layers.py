"""The convolutions of CIFAR ResNet-18 at width 64, each once, and how often it occurs."""

from __future__ import annotations

from tvm_build.ops import Conv2d


def _conv(in_channels: int, out_channels: int, size: int, kernel: int = 3, stride: int = 1) -> Conv2d:
    pad = kernel // 2
    return Conv2d(
        1,
        in_channels,
        size,
        size,
        out_channels,
        (kernel, kernel),
        stride=(stride, stride),
        padding=(pad, pad, pad, pad),
        activation="relu" if kernel == 3 else "none",
    )


LAYERS: dict[str, tuple[Conv2d, int]] = {
    "stem": (_conv(3, 64, 32), 1),
    "layer1": (_conv(64, 64, 32), 4),
    "layer2.first": (_conv(64, 128, 32, stride=2), 1),
    "layer2": (_conv(128, 128, 16), 3),
    "layer2.shortcut": (_conv(64, 128, 32, kernel=1, stride=2), 1),
    "layer3.first": (_conv(128, 256, 16, stride=2), 1),
    "layer3": (_conv(256, 256, 8), 3),
    "layer3.shortcut": (_conv(128, 256, 16, kernel=1, stride=2), 1),
    "layer4.first": (_conv(256, 512, 8, stride=2), 1),
    "layer4": (_conv(512, 512, 4), 3),
    "layer4.shortcut": (_conv(256, 512, 8, kernel=1, stride=2), 1),
}
