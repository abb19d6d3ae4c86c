"""The `[build]` section of a configuration: what the networks are compiled for, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from structadmm.errors import UserError
from tvm_build.gpu import GPUS, Memory, gpu_by_name
from tvm_build.precision import DType


class BuildConfig(BaseModel):
    """How both networks, baseline and pruned, are compiled.

    Attributes:
        target: the GPU that kernels are chosen for, or "auto": `opencl-cpu` for the local device.
        dtype: of weights and activations in the kernels: all float32, all half ("float16"), or stored as half and
            computed with in float32 ("float16_float32").
        memory: where activations and weights lie: in images where the cost model says that they pay ("auto", for a GPU;
            buffers on a CPU), in buffers, or in images wherever they fit. Activations in buffers may be read as images.
        tuned: a tuning database (docs/tuning.md), or "auto": for the local device, the one that comes with this project
            if it was tuned in this number type on the same device and driver. Layers that it does not have get the
            cost model's choice.
        schedules: our kernels, or TVM's own Adreno pipeline ("upstream") for comparison, on textures with memory
            "image".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str = "auto"
    dtype: DType = "float32"
    memory: Memory = "auto"
    tuned: Path | Literal["auto"] | None = None
    schedules: Literal["structadmm", "upstream"] = "structadmm"

    @field_validator("target")
    @classmethod
    def _known_target(cls, value: str) -> str:
        if value != "auto":
            try:
                gpu_by_name(value)
            except UserError:
                raise ValueError(f"expected auto or one of {', '.join(GPUS)}, got {value!r}") from None
        return value

    @model_validator(mode="after")
    def _upstream_as_it_is(self) -> BuildConfig:
        if self.schedules == "upstream" and self.dtype != "float32":
            raise ValueError(f'schedules = "upstream" are float32, got dtype = {self.dtype!r}: leave dtype out')
        if self.schedules == "upstream" and isinstance(self.tuned, Path):
            raise ValueError('schedules = "upstream" take nothing from a tuning database: leave tuned out')
        return self

    @property
    def resolved_target(self) -> str:
        """The target, with "auto" standing for the host's OpenCL CPU device."""
        return "opencl-cpu" if self.target == "auto" else self.target
