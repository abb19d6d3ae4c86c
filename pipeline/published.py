"""What others report for structured pruning of the networks that we prune: the rows of the results page."""

from __future__ import annotations

from dataclasses import dataclass

STRUCTADMM = "[StructADMM](https://arxiv.org/abs/1807.11091), abstract"
P_RM = "[P-RM](https://arxiv.org/abs/1905.00136), quoted second-hand"
DEPGRAPH = "[DepGraph](https://github.com/VainF/Torch-Pruning)"
HRANK_PLUS = "[HRankPlus](https://github.com/lmbxmu/HRankPlus)"


@dataclass(frozen=True)
class Published:
    """One row of somebody's table; what they do not give is None.

    Attributes:
        network: and its data.
        conv_reduction: times fewer weights of convolutions.
        macs_reduction: times fewer multiply-accumulates.
        dense: top-1 accuracy before, percent.
        pruned: and after.
        loss: what is said of it instead.
        speed_up: measured, times faster.
        device: what that was measured on.
        source: where the row is from, as Markdown.
    """

    network: str
    source: str
    conv_reduction: float | None = None
    macs_reduction: float | None = None
    dense: float | None = None
    pruned: float | None = None
    loss: str = ""
    speed_up: float | None = None
    device: str = ""


_LOST = "up to 2 points lost"
PUBLISHED = (
    Published("ResNet-18, CIFAR-10", STRUCTADMM, conv_reduction=54.2, speed_up=7.6, device="Adreno 640"),
    Published("ResNet-18, CIFAR-10", P_RM, conv_reduction=59.84, dense=93.79, pruned=93.22),
    Published("AlexNet, ImageNet", STRUCTADMM, loss="no loss", speed_up=2.58, device="a GPU"),
    Published("AlexNet, ImageNet", STRUCTADMM, loss="no loss", speed_up=3.65, device="another GPU"),
    Published("AlexNet, ImageNet", STRUCTADMM, conv_reduction=15.0, loss=_LOST, speed_up=3.15, device="a GPU"),
    Published("AlexNet, ImageNet", STRUCTADMM, conv_reduction=15.0, loss=_LOST, speed_up=8.52, device="another GPU"),
    Published("AlexNet, ImageNet", STRUCTADMM, conv_reduction=15.0, loss=_LOST, speed_up=11.93, device="CPU"),
    Published("VGG-16-BN, CIFAR-10", HRANK_PLUS, macs_reduction=1 / (1 - 0.581), dense=93.96, pruned=93.73),
    Published("VGG-16-BN, CIFAR-10", HRANK_PLUS, macs_reduction=1 / (1 - 0.786), dense=93.96, pruned=93.10),
    Published("ResNet-56, CIFAR-10", DEPGRAPH, macs_reduction=2.13, dense=93.53, pruned=93.77),
    Published("ResNet-56, CIFAR-10", DEPGRAPH, macs_reduction=2.57, dense=93.53, pruned=93.64),
)
