"""The `[report]` section of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ReportConfig(BaseModel):
    """How the results are told.

    Attributes:
        bootstrap_resamples: resamples behind the confidence interval of the speed-up.
        bootstrap_seed: seed of those resamples: the same samples give the same interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_resamples: Annotated[int, Field(ge=1000, le=1_000_000)] = 10_000
    bootstrap_seed: Annotated[int, Field(ge=0)] = 0
