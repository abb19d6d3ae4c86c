"""Measured costs of layers as a table that chooses pruning rates: what each layer takes with fewer filters and inputs.

The table is what `[train]` reads for a latency target (docs/training.md): for each convolution a grid of kept filters
and kept inputs, and one of kept filters and kept columns for the compacted kernel. Layers of one shape are measured
once, each convolution by itself; `rest` is what the compiled network takes beyond their sum.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from structadmm.errors import UserError
from structadmm.progress import Reporter
from tvm_build.gpu import Gpu
from tvm_build.kernel_bundle import KernelCase, write_kernel_bundle
from tvm_build.network import Network
from tvm_build.ops import Conv2d, Interleave
from tvm_build.precision import Precision
from tvm_build.tuning.expected import task_data
from tvm_build.tuning.tuned import TunedSchedules

Profile = Callable[[Path], Sequence[float]]
"""Milliseconds of each launch of a bundle."""

# The runner's limit on outputs is 64.
_CASES_PER_BUNDLE = 48


@dataclass(frozen=True)
class LayerGrid:
    """What is measured of one layer.

    Attributes:
        layer: its name in the source network.
        op: the whole layer.
        filters: kept filters, rising.
        inputs: kept inputs, rising.
        columns: kept columns, rising; empty where there is no compacted kernel.
    """

    layer: str
    op: Conv2d
    filters: tuple[int, ...]
    inputs: tuple[int, ...]
    columns: tuple[int, ...]

    def dense(self, filters: int, inputs: int) -> Conv2d:
        """The layer with fewer filters, and fewer inputs of each."""
        groups = filters if self.is_depthwise else self.op.groups
        return replace(self.op, in_channels=inputs * groups, out_channels=filters, groups=groups)

    def compact(self, filters: int, columns: int) -> Conv2d:
        """The layer with fewer filters and columns: spread evenly, in blocks of four inputs as far as they go."""
        taps = self.op.kernel[0] * self.op.kernel[1]
        steps = [
            [channel * taps + tap for channel in range(first, min(first + 4, self.op.in_channels))]
            for first in range(0, self.op.in_channels, 4)
            for tap in range(taps)
        ]
        spread = np.random.default_rng(0).permutation(len(steps))
        kept = [column for step in spread for column in steps[step]][:columns]
        return replace(self.op, out_channels=filters, columns=tuple(sorted(kept)))

    @property
    def is_depthwise(self) -> bool:
        """Whether each filter reads an input of its own."""
        return self.op.groups == self.op.in_channels == self.op.out_channels > 1


def layer_grids(network: Network, points: int) -> list[LayerGrid]:
    """The convolutions of a network, each with what to measure of it.

    Args:
        network: the dense one, as recognized: nothing is joined.
        points: along each axis of a grid.

    Raises:
        UserError: it has none.
    """
    # The filters of a strided transposed convolution are phases here, and none of the network's: it stays in the rest.
    phases = {node.inputs[0] for node in network.nodes if isinstance(node.op, Interleave)}
    grids = [
        _grid(node.layer, node.op, points)
        for node in network.nodes
        if isinstance(node.op, Conv2d) and node.output not in phases
    ]
    if not grids:
        raise UserError("the network has no convolution: there is nothing to prune by latency")
    return grids


def _grid(layer: str, op: Conv2d, points: int) -> LayerGrid:
    inputs = op.in_channels // op.groups
    taps = op.kernel[0] * op.kernel[1]
    step = 1 if op.groups in (1, op.out_channels) else op.groups
    multiple = math.lcm(4, step)
    return LayerGrid(
        layer=layer,
        op=op,
        filters=_axis(op.out_channels, points, multiple if op.out_channels % multiple == 0 else step),
        inputs=_axis(inputs, points, 4),
        columns=_axis(inputs * taps, points, 4) if op.groups == 1 else (),
    )


def _axis(whole: int, points: int, multiple: int) -> tuple[int, ...]:
    """About `points` counts from a `points`-th of `whole` up to it, all but the last multiples of `multiple`."""
    parts = (-(-whole * k // (points * multiple)) * multiple for k in range(1, points))
    return tuple(sorted({min(part, whole) for part in parts} | {whole}))


def costs_table(
    grids: Sequence[LayerGrid],
    gpu: Gpu,
    precision: Precision,
    tuned: TunedSchedules | None,
    profile: Profile,
    *,
    whole_ms: float,
    source: str,
    reporter: Reporter,
) -> dict[str, Any]:
    """Measure every point and make the table.

    Args:
        grids: of `layer_grids`.
        gpu: what kernels are built for.
        precision: of the kernels.
        tuned: schedules; layers that it does not have, as most points of a grid, get the cost model's.
        profile: measures a bundle.
        whole_ms: what the compiled network takes.
        source: where the numbers come from, in words.
        reporter: where progress is shown.
    """
    ops: dict[Conv2d, float] = {}
    for grid in grids:
        ops.update(dict.fromkeys((grid.dense(f, i) for f in grid.filters for i in grid.inputs), 0.0))
        ops.update(dict.fromkeys((grid.compact(f, c) for f in grid.filters for c in grid.columns[:-1]), 0.0))
    pending = list(ops)
    with reporter.task("measuring layers", total=len(pending)) as task, tempfile.TemporaryDirectory() as scratch:
        for start in range(0, len(pending), _CASES_PER_BUNDLE):
            part = pending[start : start + _CASES_PER_BUNDLE]
            bundle = Path(scratch) / f"{start}.clbundle"
            write_kernel_bundle(bundle, [_case(op, tuned) for op in part], gpu, precision)
            ops.update(zip(part, profile(bundle), strict=True))
            task.advance(len(part))
    layers = {grid.layer: _layer(grid, ops) for grid in grids}
    full_ms = sum(ops[grid.dense(grid.filters[-1], grid.inputs[-1])] for grid in grids)
    return {
        "schema": 1,
        "unit": "ms",
        "source": source,
        "rest": round(max(0.0, whole_ms - full_ms), 6),
        "layers": layers,
    }


def _case(op: Conv2d, tuned: TunedSchedules | None) -> KernelCase:
    data = task_data(op)
    found = None if tuned is None else tuned.find(op)
    return KernelCase("point", op, data.inputs, data.constants, None if found is None else found.schedule)


def _layer(grid: LayerGrid, ms: Mapping[Conv2d, float]) -> dict[str, Any]:
    dense = {
        "filters": list(grid.filters),
        "inputs": list(grid.inputs),
        "cost": [[ms[grid.dense(f, i)] for i in grid.inputs] for f in grid.filters],
    }
    if len(grid.columns) < 2:
        return {"dense": dense}
    # A compacted kernel for all columns is the ordinary one: the compiler takes the faster.
    whole = [ms[grid.dense(f, grid.inputs[-1])] for f in grid.filters]
    rows = [
        [min(ms[grid.compact(f, c)], full) for c in grid.columns[:-1]] + [full]
        for f, full in zip(grid.filters, whole, strict=True)
    ]
    return {"dense": dense, "compact": {"filters": list(grid.filters), "columns": list(grid.columns), "cost": rows}}
