"""The configuration of one run: a name, and a section for each stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from device.config import MeasureConfig
from export.config import ExportConfig
from pipeline.toml_config import apply_overrides, read_toml, validate
from results.config import ReportConfig
from train.config import TrainConfig
from tvm_build.config import BuildConfig


class RunConfig(BaseModel):
    """A whole experiment: one TOML file.

    Attributes:
        name: names the run: in its results, and its directory under `runs/` where no `--out` is given. At
            most 80 of the letters A to Z and a to z, digits, `.`, `_` and `-`, a letter or a digit first.
        train: what is trained on what, and how it is pruned.
        export: how the pruned network is shrunk, saved and verified.
        build: how both networks are compiled.
        measure: how both are timed.
        report: how the results are told.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    train: TrainConfig
    export: ExportConfig = Field(default_factory=ExportConfig)
    build: BuildConfig = Field(default_factory=BuildConfig)
    measure: MeasureConfig = Field(default_factory=MeasureConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)

    @field_validator("name")
    @classmethod
    def _fits_a_file_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}", name):
            raise ValueError(
                "expected at most 80 of the letters A to Z and a to z, digits, '.', '_' and '-', a letter or a digit "
                "first: rename it"
            )
        return name

    @model_validator(mode="after")
    def _purified_on_images_held_out(self) -> RunConfig:
        if self.export.purify.enabled and not self.train.held_out:
            raise ValueError(
                "export.purify.enabled needs images that are neither trained nor tested on, and none are held out: set "
                "train.data.held_out = 0.1"
            )
        return self


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, override (`section.key=value`) and validate a configuration.

    Raises:
        UserError: in one line, whatever is wrong with the file or an override.
    """
    return validate(RunConfig, apply_overrides(read_toml(path), overrides), str(path))
