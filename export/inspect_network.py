"""What of a network is dead, what can be removed, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from export.fixed_point import shrink_fully
from structadmm.graph.count import Counts, count
from structadmm.graph.ir import Graph


@dataclass(frozen=True)
class LayerReport:
    """One convolution or linear.

    Attributes:
        name: the layer.
        shape: its weight's shape.
        dead_filters: filters whose weights are all zero.
        empty_columns: positions that are zero in every filter.
        removed_filters: filters that shrinking deletes, dead or unread.
        removed_channels: input channels that shrinking deletes.
        reasons: why filters that are dead stay; and why none of a frozen layer can go.
    """

    name: str
    shape: tuple[int, ...]
    dead_filters: int
    empty_columns: int
    removed_filters: int
    removed_channels: int
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class NetworkReport:
    """All layers, and the network before and after.

    Attributes:
        layers: in order of execution.
        dense: everything counted.
        shrunk: what is left after shrinking, zero columns not counted.
    """

    layers: tuple[LayerReport, ...]
    dense: Counts
    shrunk: Counts

    def table(self) -> str:
        """The report as text, one line per layer."""
        rows = [("layer", "weight", "dead filters", "empty columns", "filters", "channels", "why not")]
        for layer in self.layers:
            rows.append(
                (
                    layer.name,
                    "x".join(map(str, layer.shape)),
                    str(layer.dead_filters),
                    str(layer.empty_columns),
                    f"-{layer.removed_filters}",
                    f"-{layer.removed_channels}",
                    "; ".join(layer.reasons),
                )
            )
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        for name, before, after in (
            ("CONV parameters", self.dense.conv_params, self.shrunk.conv_params),
            ("parameters", self.dense.params, self.shrunk.params),
            ("MACs", self.dense.macs, self.shrunk.macs),
        ):
            ratio = f" ({before / after:.2f}x)" if after else ""
            lines.append(f"{name}: {before:,} -> {after:,}{ratio}")
        return "\n".join(lines)


def inspect_network(graph: Graph, state: Mapping[str, Tensor]) -> NetworkReport:
    """Report on a network without changing it.

    Raises:
        UserError: the network cannot be shrunk; names the node.
    """
    dense, masked = count(graph), count(graph, state)
    removal, smaller = shrink_fully(graph, state)
    layers = []
    for before in masked.layers:
        groups = removal.coupling.producer_groups(before.parameter)
        reasons = {why for group in groups for why in removal.kept.get(group.name, {}).values()}
        reasons |= {group.frozen for group in groups if group.frozen is not None}
        if before.parameter not in removal.graph.state:
            reasons.add("its result reaches no output, so the whole layer goes")
        axis = 1 if before.kind == "conv_transpose" else 0
        gone = {
            key: graph.state[key[0]].shape[key[1]] - len(indices)
            for key, indices in smaller.kept.items()
            if key[0] == before.parameter
        }
        layers.append(
            LayerReport(
                before.name,
                before.shape,
                before.filters - before.kept_filters,
                before.columns - before.kept_columns,
                gone.get((before.parameter, axis), 0),
                gone.get((before.parameter, 1 - axis), 0),
                tuple(sorted(reasons)),
            )
        )
    return NetworkReport(tuple(layers), dense, count(smaller.graph, smaller.state))
