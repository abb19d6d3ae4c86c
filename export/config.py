"""The `[export]` section."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class PurifyConfig(BaseModel):
    """Approximate removal of nearly empty channels (off unless `enabled`).

    Attributes:
        enabled: whether to purify at all.
        eta: a unit is nearly empty when more than this fraction of its weights is zero.
        sigma: and unimportant when its norm is under this fraction of its layer's mean unit norm.
        max_accuracy_drop: the most points of top-1 accuracy on the samples that it may cost; else nothing is purified.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = False
    eta: Annotated[float, Field(ge=0, le=1)] = 0.9
    sigma: Annotated[float, Field(ge=0)] = 0.1
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
