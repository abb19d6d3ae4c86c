"""The `[measure]` section of a configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class MeasureConfig(BaseModel):
    """How the pruned network is timed against its baseline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: Annotated[int, Field(ge=2, le=1_000_000)] = 200
    """Timed rounds; each times baseline and pruned once."""

    warmup_runs: Annotated[int, Field(ge=0, le=1_000_000)] = 10
    """At least so many inferences of each before the first round."""

    warmup_ms: Annotated[int, Field(ge=0, le=600_000)] = 500
    """And at least so many milliseconds of them."""

    rest_ms: Annotated[int, Field(ge=0, le=60_000)] = 0
    """Pause between rounds, against throttling."""

    rest_above_c: Annotated[int, Field(ge=0, le=150)] = 75
    """Rest before a round while the device's own sensor shows more, until it is 5 degrees cooler; 0: never."""

    cooling_s: Annotated[int, Field(ge=0, le=86_400)] = 120
    """But no longer than this in all."""

    fixed_performance: bool = True
    """Ask a phone to hold its clocks steady meanwhile (Android 11 and later)."""

    launch_runs: Annotated[int, Field(ge=0, le=1_000_000)] = 20
    """Further rounds that time the launches without transfers."""

    profile_runs: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Inferences behind each launch's median."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the order inside the rounds."""

    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 3600.0
    """For the timed rounds, and for each profile."""

    perf_hint: bool = True
    """Ask a Qualcomm driver for high clocks, where it can be asked."""

    priority_hint: bool = True
    """Likewise for priority over the GPU's other users."""

    recording: bool = True
    """Replay the launches from recordings, where a Qualcomm driver has them; profiles are launched one by one."""

    program_cache: bool = True
    """Start from the driver's program binaries of an earlier measurement."""
