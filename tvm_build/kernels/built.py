"""What every kernel builder returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_build.kernels.stored import Parameter


@dataclass(frozen=True)
class BuiltKernel:
    """A kernel, its packed constants and what it must do at the least.

    Attributes:
        func: the `tirx.PrimFunc`; its `global_symbol` is the kernel's name.
        parameters: where each parameter lies, and what it holds.
        roles: what each parameter is: "input0", "input1", ..., "residual", "output" or "constant:NAME".
        constants: by NAME, packed as the kernel reads them, C-contiguous.
        flops: floating-point operations, a multiply-add counted as two.
        bytes: memory traffic if everything is read or written once.
        schedule: the schedule it was built with.
    """

    func: Any
    parameters: dict[str, Parameter]
    roles: dict[str, str]
    flops: int
    bytes: int
    schedule: Any
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)

    @property
    def scalars(self) -> dict[str, str]:
        """Type of the numbers behind each parameter: "float32", "float16" or "int32"."""
        return {name: parameter.scalar for name, parameter in self.parameters.items()}
