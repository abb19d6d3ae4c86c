"""Networks without branches: VGG-16 (1409.1556) and AlexNet, for small images and for ImageNet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

# Channels of each 3x3 convolution in units of width / 64; 0 is a 2x2 max pool.
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)


def _scaled(channels: int, width: int) -> int:
    return max(1, channels * width // 64)


class FeaturesAndClassifier(nn.Module):
    """Convolutions, an adaptive pool to a fixed size, and linear layers."""

    def __init__(self, features: nn.Module, pool: int, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, in_channels, H, W] to logits [N, num_classes]."""
        logits: Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return logits


def cifar_vgg16_bn(width: int = 64, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """VGG-16 with BatchNorm for 32x32 images: 13 convolutions, a global average, one linear.

    Args:
        width: channels of the first convolution (64 in the paper); the others scale with it.
        num_classes: outputs.
        in_channels: of the image.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for entry in _VGG16:
        if entry == 0:
            layers.append(nn.MaxPool2d(2, 2))
            continue
        out_channels = _scaled(entry, width)
        layers += [nn.Conv2d(channels, out_channels, 3, 1, 1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
        channels = out_channels
    return FeaturesAndClassifier(nn.Sequential(*layers), 1, nn.Linear(channels, num_classes))


def _alexnet(
    convolutions: Sequence[nn.Module], channels: int, pool: int, hidden: int, num_classes: int
) -> FeaturesAndClassifier:
    classifier = nn.Sequential(
        nn.Dropout(),
        nn.Linear(channels * pool * pool, hidden),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
    return FeaturesAndClassifier(nn.Sequential(*convolutions), pool, classifier)


def cifar_alexnet(width: int = 64, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """AlexNet scaled to 32x32 images: five convolutions, BatchNorm, three linears."""
    c1, c2, c3, c4 = (_scaled(channels, width) for channels in (64, 192, 384, 256))
    convolutions = [
        nn.Conv2d(in_channels, c1, 5, 1, 2, bias=False), nn.BatchNorm2d(c1), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(c1, c2, 5, 1, 2, bias=False), nn.BatchNorm2d(c2), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(c2, c3, 3, 1, 1, bias=False), nn.BatchNorm2d(c3), nn.ReLU(),
        nn.Conv2d(c3, c4, 3, 1, 1, bias=False), nn.BatchNorm2d(c4), nn.ReLU(),
        nn.Conv2d(c4, c4, 3, 1, 1, bias=False), nn.BatchNorm2d(c4), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    return _alexnet(convolutions, c4, 2, _scaled(512, width), num_classes)


def alexnet(width: int = 64, num_classes: int = 1000, in_channels: int = 3) -> nn.Module:
    """AlexNet for ImageNet, in the one-column form (1404.5997) without local response normalisation."""
    c1, c2, c3, c4 = (_scaled(channels, width) for channels in (64, 192, 384, 256))
    convolutions = [
        nn.Conv2d(in_channels, c1, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c1, c2, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c2, c3, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(c3, c4, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(c4, c4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2),
    ]  # fmt: skip
    return _alexnet(convolutions, c4, 6, _scaled(4096, width), num_classes)
