"""What of a network is dead, what can be removed, and why the rest cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from export.fixed_point import shrink_fully
from export.shrink import Shrunk
from export.unused_paths import Removal
from structadmm.graph.count import Counts, count
from structadmm.graph.ir import Graph


@dataclass(frozen=True)
class LayerReport:
    """One convolution or linear.

    Attributes:
        name: the layer.
        kind: `conv`, `conv_transpose` or `linear`.
        shape: its weight's shape.
        filters: how many it has.
        dead_filters: filters whose weights are all zero.
        removed_filters: filters that shrinking deletes, dead or unread.
        channels: input channels of one filter; a grouped convolution's filter reads those of its group.
        unread_channels: input channels whose weights are all zero.
        removed_channels: input channels that shrinking deletes.
        columns: positions of a filter.
        empty_columns: positions that are zero in every filter; they stay zeros, and cost nothing when compiled.
        reasons: why dead filters stay, with how many; why none of a layer can go.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    filters: int
    dead_filters: int
    removed_filters: int
    channels: int
    unread_channels: int
    removed_channels: int
    columns: int
    empty_columns: int
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
        """The report as text, one line per layer: what it has, what of that is zero, what is left, and why no less."""
        rows = [("layer", "kind", "filters", "dead", "channels", "unread", "columns", "empty", "why not fewer")]
        for layer in self.layers:
            rows.append(
                (
                    layer.name,
                    layer.kind.replace("_", " "),
                    _change(layer.filters, layer.removed_filters),
                    str(layer.dead_filters or ""),
                    _change(layer.channels, layer.removed_channels),
                    str(layer.unread_channels or ""),
                    str(layer.columns),
                    str(layer.empty_columns or ""),
                    "; ".join(layer.reasons),
                )
            )
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append("")
        for name, before, after in (
            ("CONV parameters", self.dense.conv_params, self.shrunk.conv_params),
            ("parameters", self.dense.params, self.shrunk.params),
            ("MACs", self.dense.macs, self.shrunk.macs),
            ("activations", self.dense.activations, self.shrunk.activations),
        ):
            ratio = f" ({before / after:.2f}x)" if after else ""
            lines.append(f"{name}: {before:,} -> {after:,}{ratio}")
        return "\n".join(lines)


def _change(before: int, removed: int) -> str:
    return f"{before} -> {before - removed}" if removed else str(before)


def inspect_network(graph: Graph, state: Mapping[str, Tensor]) -> NetworkReport:
    """Report on a network without changing it.

    Raises:
        UserError: the network cannot be shrunk; names the node.
    """
    dense, masked = count(graph), count(graph, state)
    removal, smaller = shrink_fully(graph, state)
    layers = []
    for before in masked.layers:
        axis = 1 if before.kind == "conv_transpose" else 0
        gone = {
            key: graph.state[key[0]].shape[key[1]] - len(indices)
            for key, indices in smaller.kept.items()
            if key[0] == before.parameter
        }
        unread = ~(state[before.parameter].detach() != 0).movedim(1 - axis, 0).flatten(1).any(dim=1)
        layers.append(
            LayerReport(
                before.name,
                before.kind,
                before.shape,
                before.filters,
                before.filters - before.kept_filters,
                gone.get((before.parameter, axis), 0),
                before.shape[1 - axis],
                int(unread.sum()),
                gone.get((before.parameter, 1 - axis), 0),
                before.columns,
                before.columns - before.kept_columns,
                _reasons(removal, smaller, before.parameter, axis),
            )
        )
    return NetworkReport(tuple(layers), dense, count(smaller.graph, smaller.state))


def _reasons(removal: Removal, smaller: Shrunk, parameter: str, axis: int) -> tuple[str, ...]:
    """Why filters of one weight that are zero stay, and why others could not be removed if they were."""
    if parameter not in removal.graph.state:
        return ("its result reaches no output, so the whole layer goes",)
    reasons: Counter[str] = Counter()
    fixed = set()
    left = smaller.kept.get((parameter, axis))
    stay = None if left is None else set(left.tolist())
    dead = ~(removal.state[parameter] != 0).movedim(axis, 0).flatten(1).any(dim=1)
    for group in removal.coupling.producer_groups(parameter):
        if group.frozen is not None:
            fixed.add(f"none can go: {group.frozen}")
        (part,) = (part for part in group.producers if (part.parameter, part.axis) == (parameter, axis))
        others = sorted({other.parameter.rpartition(".")[0] for other in group.producers} - {_layer(parameter)})
        for unit, why in removal.kept.get(group.name, {}).items():
            filters = [index for index in part.indices[unit].tolist() if bool(dead[index])]
            if stay is not None:
                filters = [index for index in filters if index in stay]
            if filters and group.frozen is None:
                tied = f"one channel with filters of {_listed(others)}: " if others and "reads it" in why else ""
                reasons[f"{tied}{why}"] += len(filters)
    return (*(f"{times} stay: {why}" for why, times in reasons.most_common()), *sorted(fixed))


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _listed(layers: list[str]) -> str:
    shown = ", ".join(layers[:3])
    return f"{shown} and {len(layers) - 3} more" if len(layers) > 3 else shown
