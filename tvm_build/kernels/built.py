"""What every kernel builder returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class BuiltKernel:
    """A kernel, its packed constants and what it must do at the least.

    Attributes:
        func: the `tirx.PrimFunc`; its `global_symbol` is the kernel's name and each parameter is a flat buffer.
        scalars: type of the numbers behind each parameter: "float32", "float16" or "int32".
        roles: what each parameter is: "input0", "input1", ..., "residual", "output" or "constant:NAME".
        constants: by NAME, packed as the kernel reads them, C-contiguous.
        flops: floating-point operations, a multiply-add counted as two.
        bytes: memory traffic if everything is read or written once.
        schedule: the schedule it was built with.
    """

    func: Any
    scalars: dict[str, str]
    roles: dict[str, str]
    flops: int
    bytes: int
    schedule: Any
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def scalars_of(parameters: Mapping[str, tuple[int, str]]) -> dict[str, str]:
    """`BuiltKernel.scalars` for (elements, dtype) of each parameter."""
    return {name: dtype.partition("x")[0] for name, (_, dtype) in parameters.items()}
