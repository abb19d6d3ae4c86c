"""The number types of a compilation: what activations and weights are stored as, and what kernels compute in.

Half storage halves the traffic of everything; half arithmetic doubles the peak of an Adreno, but there are drivers on
which it is slow, and a long sum in half loses digits. So they are chosen separately, and only a measurement on the
phone tells which is best:

| name | stored | products of convolutions, elementwise operators | sums, means, dense layers |
|---|---|---|---|
| `float32` | float32 | float32 | float32 |
| `float16` | half | half | float32; a few half products go into one addend |
| `float16_float32` | half | float32 | float32 |

Kernels need not care: `Body.load` gives what a buffer holds in the type of the arithmetic, `Body.store` converts back.
The network's inputs and outputs, and tensors between kernels of TVM's, are float32; `Pack` and `Unpack` convert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from structadmm.errors import UserError

DType = Literal["float32", "float16", "float16_float32"]


@dataclass(frozen=True)
class Precision:
    """One row of the table above.

    Attributes:
        name: as `--dtype` spells it.
        storage: of C4 activations and of weights.
        arithmetic: of the products of convolutions, and of elementwise operators.
    """

    name: DType
    storage: Literal["float32", "float16"]
    arithmetic: Literal["float32", "float16"]

    @property
    def item_bytes(self) -> int:
        """Bytes of a stored number."""
        return 2 if self.storage == "float16" else 4

    def stored(self, lanes: int) -> str:
        """TVM's name for a vector in memory."""
        return _vector(self.storage, lanes)

    def computed(self, lanes: int) -> str:
        """TVM's name for a vector in registers."""
        return _vector(self.arithmetic, lanes)

    def pack(self, weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A weight as it is stored.

        Raises:
            UserError: a value is beyond what half can hold.
        """
        return as_type(weight, self.storage)


def as_type(array: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """`array` in a floating-point type.

    Raises:
        UserError: a value is beyond what half can hold.
    """
    largest = float(np.abs(array).max(initial=0.0))
    if dtype == "float16" and largest > _LARGEST_HALF:
        raise UserError(
            f"expected weights up to {_LARGEST_HALF:g} for half precision, got {largest:g}: compile with float32"
        )
    return array.astype(dtype, copy=False)


def _vector(scalar: str, lanes: int) -> str:
    return scalar if lanes == 1 else f"{scalar}x{lanes}"


_LARGEST_HALF = float(np.finfo(np.float16).max)

FLOAT32 = Precision("float32", "float32", "float32")
PRECISIONS = {
    precision.name: precision
    for precision in (
        FLOAT32,
        Precision("float16", "float16", "float16"),
        Precision("float16_float32", "float16", "float32"),
    )
}


def precision_by_name(name: str) -> Precision:
    """The precision called `name`.

    Raises:
        UserError: there is none of that name.
    """
    for precision in PRECISIONS.values():
        if precision.name == name:
            return precision
    raise UserError(f"expected a dtype among {', '.join(PRECISIONS)}, got {name!r}: choose one of these with --dtype")
