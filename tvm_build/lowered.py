"""A network as launches of finished kernels on named tensors, before anything has a place in memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from structadmm.errors import InvariantError
from tvm_build.cost import KernelCost
from tvm_build.emit import OpenClKernel
from tvm_build.launch_plan import ImageFormat
from tvm_build.memory_plan import ImageRow
from tvm_build.network import Array
from tvm_build.ops import Operator


@dataclass(frozen=True)
class KernelLaunch:
    """One launch.

    Attributes:
        kernel: what runs.
        arguments: a tensor's or constant's name for each kernel argument, in OpenCL order.
        writes: those of `arguments` that the kernel writes.
        views: those of `arguments` that lie in buffers and that the kernel reads as images, with their format.
        flops: floating-point operations it must do at the least.
        bytes: memory traffic if everything is read or written once.
        layer: the source network's name for it.
        predicted_us: microseconds that the cost model expects, launch overhead included.
        schedule: what one of our kernels was built with; None for TVM's.
        cost: what the cost model counts for one of our kernels.
        measured_us: what the tuning database says that it takes, if its schedule is from there.
        memory: what of it lies elsewhere than in buffers, in words.
        form: of a layer that takes several launches, such as Winograd's, in words.
        fallbacks: what would lie in an image if it were smaller, each with its reason.
        op: what one of our kernels computes; None for TVM's.
    """

    kernel: OpenClKernel
    arguments: tuple[str, ...]
    writes: frozenset[str]
    flops: int
    bytes: int
    layer: str
    predicted_us: float = 0.0
    schedule: Any = None
    cost: KernelCost | None = None
    measured_us: float | None = None
    memory: str = ""
    form: str = ""
    fallbacks: tuple[str, ...] = ()
    views: Mapping[str, ImageFormat] = field(default_factory=dict)
    op: Operator | None = None


@dataclass(frozen=True)
class External:
    """A network input or output: its name, shape, dtype and the tensor that holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    tensor: str


@dataclass(frozen=True)
class LoweredNetwork:
    """Launches in order.

    Attributes:
        sizes: bytes of every activation tensor.
        constants: arrays of every constant.
        launches: what runs, in order.
        inputs: the network's inputs.
        outputs: the network's outputs.
        images: what a row is of those tensors and constants that lie in images.
    """

    sizes: Mapping[str, int]
    constants: Mapping[str, Array]
    launches: tuple[KernelLaunch, ...]
    inputs: tuple[External, ...]
    outputs: tuple[External, ...]
    images: Mapping[str, ImageRow] = field(default_factory=dict)

    def check(self) -> None:
        """Raise InvariantError unless every argument exists and every tensor is written before it is read."""
        written = {external.tensor for external in self.inputs}
        for launch in self.launches:
            if len(launch.arguments) != len(launch.kernel.arguments):
                raise InvariantError(
                    f"{launch.layer}: {launch.kernel.name} has {len(launch.kernel.arguments)} arguments"
                )
            for name in launch.arguments:
                if name in self.constants:
                    continue
                if name not in self.sizes:
                    raise InvariantError(f"{launch.layer}: there is no tensor {name}")
                if name not in launch.writes and name not in written:
                    raise InvariantError(f"{launch.layer}: reads {name} before anything wrote it")
            written.update(launch.writes)
        for external in self.outputs:
            if external.tensor not in written:
                raise InvariantError(f"the output {external.name} is never written")


def deduplicate(launches: Iterable[KernelLaunch]) -> tuple[KernelLaunch, ...]:
    """Give every distinct kernel one name: equal code is one kernel, different code never shares a name."""
    by_code: dict[tuple[object, ...], OpenClKernel] = {}
    taken: set[str] = set()
    renamed: list[KernelLaunch] = []
    for launch in launches:
        kernel = launch.kernel
        body = "\n".join(line for line in kernel.source.splitlines() if not line.startswith("// Function:"))
        key = (_rename(body, kernel.name, "@"), kernel.arguments, kernel.global_size, kernel.local_size)
        if key not in by_code:
            name, number = kernel.name, 1
            while name in taken:
                number += 1
                name = f"{kernel.name}_{number}"
            taken.add(name)
            source = _rename(body, kernel.name, name).strip() + "\n"
            by_code[key] = replace(kernel, name=name, source=source)
        renamed.append(replace(launch, kernel=by_code[key]))
    return tuple(renamed)


def _rename(source: str, old: str, new: str) -> str:
    return re.sub(rf"\b{re.escape(old)}\b", new, source)
