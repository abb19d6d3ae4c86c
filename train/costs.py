"""What layers cost as a function of what is kept of them: a table in JSON that measurements on a device can fill."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from structadmm.errors import UserError
from structadmm.files import read_json
from structadmm.graph import Graph
from structadmm.graph.count import LayerCount, count

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_Axis = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Extent(NamedTuple):
    """What is kept of a layer, for each of its convolution groups, int64 [..., groups].

    Attributes:
        rows: filters.
        columns: positions (channel, y, x) that a filter reads.
        inputs: channels of which any position is read.
    """

    rows: Ints
    columns: Ints
    inputs: Ints


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(_Table):
    """Costs on a grid, linear between its points and constant beyond them; a layer without filters costs nothing.

    Attributes:
        filters: kept filters of the layer, rising.
        inputs: kept input channels of a filter, rising, in a grid for layers that keep every position of an input.
        columns: kept columns of a filter, rising, in a grid for a compacted kernel.
        cost: in the table's unit, `cost[i][j]` at `filters[i]` and `inputs[j]` (or `columns[j]`).
    """

    filters: _Axis
    inputs: _Axis | None = None
    columns: _Axis | None = None
    cost: tuple[tuple[Annotated[float, Field(ge=0.0, allow_inf_nan=False)], ...], ...]

    @model_validator(mode="after")
    def _shape(self) -> Grid:
        if (self.inputs is None) == (self.columns is None):
            raise ValueError("a grid has either inputs or columns: give one of them")
        across = self.across
        for axis in (self.filters, across):
            if any(low >= high for low, high in itertools.pairwise(axis)):
                raise ValueError(f"{list(axis)} does not rise")
        if len(self.cost) != len(self.filters) or any(len(row) != len(across) for row in self.cost):
            raise ValueError(f"cost must have {len(self.filters)} rows of {len(across)} numbers")
        return self

    @property
    def across(self) -> tuple[int, ...]:
        """The second axis."""
        found = self.inputs if self.columns is None else self.columns
        assert found is not None  # validated
        return found

    def at(self, filters: Ints, across: Ints) -> Floats:
        """Cost at each pair of two arrays of one shape."""
        cost = np.array(self.cost)
        row, row_share = _between(self.filters, filters)
        column, column_share = _between(self.across, across)
        next_row, next_column = np.minimum(row + 1, len(cost) - 1), np.minimum(column + 1, cost.shape[1] - 1)
        low = cost[row, column] * (1 - column_share) + cost[row, next_column] * column_share
        high = cost[next_row, column] * (1 - column_share) + cost[next_row, next_column] * column_share
        found: Floats = np.where((filters > 0) & (across > 0), low * (1 - row_share) + high * row_share, 0.0)
        return found


def _between(points: Sequence[int], values: Ints) -> tuple[Ints, Floats]:
    """Index of the point at or below each value, and how far the value is towards the next, in [0, 1]."""
    axis = np.asarray(points, dtype=np.float64)
    clamped = np.clip(values.astype(np.float64), axis[0], axis[-1])
    index = np.clip(np.searchsorted(axis, clamped, side="right") - 1, 0, max(0, len(axis) - 2))
    step = axis[np.minimum(index + 1, len(axis) - 1)] - axis[index]
    return index, np.divide(clamped - axis[index], step, out=np.zeros_like(clamped), where=step > 0)


class LayerCosts(_Table):
    """Costs of one layer.

    Attributes:
        dense: for an ordinary kernel over kept filters and inputs.
        compact: for a kernel that reads only the kept columns; without it, the ordinary one is what a layer with
            removed columns costs.
    """

    dense: Grid
    compact: Grid | None = None

    @model_validator(mode="after")
    def _axes(self) -> LayerCosts:
        if self.dense.inputs is None or (self.compact is not None and self.compact.columns is None):
            raise ValueError("dense is a grid of filters and inputs, compact one of filters and columns")
        return self


class CostTable(_Table):
    """Costs of the layers of one network on one device.

    Attributes:
        schema_: 1 (`schema` in the file).
        unit: of all costs, such as `ms`.
        source: where the numbers come from.
        rest: what the network costs besides these layers, whatever is pruned.
        layers: by layer name.
    """

    schema_: Annotated[int, Field(alias="schema")] = 1
    unit: str
    source: str
    rest: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    layers: dict[str, LayerCosts]

    def cost(self, layer: str, kernel_positions: int, extent: Extent) -> Floats:
        """Cost of a layer for each leading index of `extent`; a layer that the table does not list costs nothing."""
        if layer not in self.layers:
            return np.zeros(extent.rows.shape[:-1])
        costs = self.layers[layer]
        filters, inputs, columns = extent.rows.sum(axis=-1), extent.inputs.max(axis=-1), extent.columns.max(axis=-1)
        dense = costs.dense.at(filters, inputs)
        if costs.compact is None:
            return dense
        return np.where(columns < inputs * kernel_positions, costs.compact.at(filters, columns), dense)


def load_costs(path: Path, graph: Graph) -> CostTable:
    """Read a table and check that it is about this network.

    Raises:
        UserError: the file is absent, malformed, lists a layer that the network does not have, or none of them, or is
            of a narrower network.
    """
    try:
        table = CostTable.model_validate(read_json(path, schema=1))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {place or 'the table'}: {first['msg']}") from error
    layers = count(graph).layers
    names = {layer.name for layer in layers}
    strange = sorted(set(table.layers) - names)
    if strange or not table.layers:
        raise UserError(
            f"{path} lists {strange[0] if strange else 'no layer'!r}, the network has layers such as "
            f"{', '.join(sorted(names)[:3])}: make the table for this network"
        )
    for layer in layers:
        if layer.name in table.layers:
            _refuse_narrower(path, table.layers[layer.name], layer)
    return table


def _refuse_narrower(path: Path, costs: LayerCosts, layer: LayerCount) -> None:
    """Beyond a grid costs are constant: what is removed there would seem to save nothing."""
    inputs = layer.columns // math.prod(layer.shape[2:])
    for kind, grid in (("dense", costs.dense), ("compact", costs.compact)):
        if grid is None:
            continue
        across, whole = ("inputs", inputs) if grid.columns is None else ("columns", layer.columns)
        for axis, largest, needed in (
            ("filters", grid.filters[-1], layer.filters),
            (across, grid.across[-1], whole),
        ):
            if largest < needed:
                raise UserError(
                    f"{path}: layers.{layer.name}.{kind}.{axis} ends at {largest}, the dense layer has {needed}: make "
                    "the table of the dense network (`structadmm layer-costs`)"
                )


def macs_table(graph: Graph) -> dict[str, Any]:
    """The table whose costs are multiply-accumulates: the simplest one, and a pattern for measured ones."""
    layers = {}
    for layer in count(graph).layers:
        positions = layer.macs // layer.params
        kernel = math.prod(layer.shape[2:])
        full = (layer.filters, layer.columns)
        compact = {"filters": (0, full[0]), "columns": (0, full[1]), "cost": ((0, 0), (0, positions * math.prod(full)))}
        dense = {**compact, "inputs": (0, full[1] // kernel)}
        del dense["columns"]
        layers[layer.name] = {"dense": dense, "compact": compact}
    return {"schema": 1, "unit": "MAC", "source": "multiply-accumulates of one image", "layers": layers}
