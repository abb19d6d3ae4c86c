"""The `[export]` section."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class PurifyConfig(BaseModel):
    """Approximate removal of nearly empty channels (off unless `enabled`); every pair of thresholds is tried.

    Attributes:
        enabled: whether to purify at all.
        eta: thresholds to try: a unit is nearly empty when more than this fraction of its columns is zero.
        sigma: thresholds to try: it is unimportant when its norm is under this fraction of its layer's mean unit norm.
        max_accuracy_drop: the most points of top-1 accuracy on held-out images that it may cost. Of the pairs that stay
            within it, the one that leaves the fewest MACs is taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = False
    eta: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.9, 0.7, 0.5)
    sigma: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.05, 0.1, 0.2, 0.4)
    max_accuracy_drop: Annotated[float, Field(ge=0, le=100)] = 0.0


class ExportConfig(BaseModel):
    """How the pruned network is shrunk, saved and verified.

    Attributes:
        batch: the static batch of the ONNX files.
        purify: approximate removal before the exact one.
        random_samples: random inputs per scale that the networks are compared on, besides the real samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: Annotated[int, Field(ge=1, le=4096)] = 1
    purify: PurifyConfig = Field(default_factory=PurifyConfig)
    random_samples: Annotated[int, Field(ge=1, le=1024)] = 2
