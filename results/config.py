"""The `[report]` section of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class ReportConfig(BaseModel):
    """How the results are told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_resamples: Annotated[int, Field(ge=1000, le=1_000_000)] = 10_000
    """Resamples behind the confidence interval of the speed-up."""
    bootstrap_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of those resamples: the same samples give the same interval."""
