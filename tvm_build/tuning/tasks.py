"""The layers of networks as tuning tasks: which ones there are, how often they occur, and which of them matter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_build.cost import predict_us
from tvm_build.gpu import Gpu
from tvm_build.kernels import default_schedule
from tvm_build.network import Network
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator
from tvm_build.precision import Precision
from tvm_build.tuning.task_key import operator_key

# Layers beyond this share of the predicted time are left as they are: a tenth gained there is two thousandths in all.
COVERED = 0.98


@dataclass(frozen=True)
class Task:
    """One distinct layer.

    Attributes:
        op: what to compute; of identical layers the first.
        layers: names of the layers it stands for; each is one launch of an inference.
        group: tasks of one group are ways to compute the same layers, of which compilation takes the fastest: a
            reduction over the kept columns, or over all of them.
        predicted_us: of one launch with the schedule that the cost model chooses.
    """

    op: Operator
    layers: tuple[str, ...]
    group: str
    predicted_us: float

    @property
    def key(self) -> str:
        """What identifies it in a database, beside the device and the number type."""
        return operator_key(self.op)

    @property
    def count(self) -> int:
        """Launches in an inference."""
        return len(self.layers)


def extract_tasks(networks: Iterable[Network], gpu: Gpu, precision: Precision) -> list[Task]:
    """The tasks of fused networks that matter, the most expensive group first.

    Args:
        networks: after `fuse`, `assign_layouts` and `assign_memory`; layers of all of them count.
        gpu: what they are compiled for.
        precision: of their kernels.
    """
    from tvm_build.fuse import column_options

    layers: dict[str, list[str]] = {}
    variants: dict[str, list[Operator]] = {}
    for network in networks:
        for node in network.nodes:
            if not isinstance(node.op, Conv2d | Dense | GlobalAverage):
                continue
            options: Sequence[Operator] = column_options(node) if isinstance(node.op, Conv2d) else (node.op,)
            keys = sorted(operator_key(option) for option in options)
            group = "|".join(keys)
            layers.setdefault(group, []).append(node.layer)
            variants.setdefault(group, list(options))
    found: dict[str, list[Task]] = {}
    for group, ops in variants.items():
        times = [predict_us(op, default_schedule(op, gpu, precision), gpu, precision) for op in ops]
        found[group] = [Task(op, tuple(layers[group]), group, us) for op, us in zip(ops, times, strict=True)]

    def share_us(group: str) -> float:
        return min(task.predicted_us for task in found[group]) * len(layers[group])

    whole = sum(map(share_us, found))
    tasks: list[Task] = []
    covered = 0.0
    for group in sorted(found, key=share_us, reverse=True):
        if covered >= COVERED * whole:
            break
        covered += share_us(group)
        tasks += found[group]
    return tasks


def fused_network(path: Path, gpu: Gpu, precision: Precision) -> Network:
    """An ONNX file as the network whose nodes become launches.

    Raises:
        UserError: the file is not a network that can be compiled.
    """
    from tvm_build.fuse import fuse
    from tvm_build.import_onnx import import_onnx
    from tvm_build.layout import assign_layouts
    from tvm_build.recognize import recognize
    from tvm_build.storage import assign_memory

    network = assign_layouts(fuse(recognize(import_onnx(path)), gpu, precision), precision)
    return assign_memory(network, gpu, precision)
