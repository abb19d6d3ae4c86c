"""How large a network is under its masks, coupled inputs included."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from structadmm.graph import Graph, Node
from structadmm.graph.count import LayerCount, count, filter_matrices, unread_parameters
from train.costs import CostTable, Extent, Floats

Measure = Literal["conv_params", "params", "macs", "latency"]


@dataclass(frozen=True)
class Site:
    """One use of a weight by a convolution or linear.

    Attributes:
        layer: its dense counts.
        node: the operator.
        positions: outputs (inputs, if transposed) that each weight is multiplied for, in one image.
        first: the first use of this weight; parameters are counted there.
    """

    layer: LayerCount
    node: Node
    positions: int
    first: bool

    @property
    def kernel_positions(self) -> int:
        """Positions of the kernel, kh * kw."""
        return math.prod(self.layer.shape[2:])


class Footprint:
    """What a measure says about a network.

    Args:
        graph: the network.
        measure: what counts.
        table: of a latency.
    """

    def __init__(self, graph: Graph, measure: Measure, table: CostTable | None = None) -> None:
        self._measure = measure
        self._table = table
        unread = set(unread_parameters(graph))
        self._others = {
            name: math.prod(entry.shape)
            for name, entry in graph.state.items()
            if entry.kind == "parameter" and entry.alias_of is None and name not in unread
        }
        nodes = graph.by_name()
        sites: list[Site] = []
        for layer in count(graph).layers:
            first = self._others.pop(layer.parameter, None) is not None
            sites.append(Site(layer, nodes[layer.node], layer.macs // layer.params, first))
        self.sites = tuple(sites)

    @property
    def unit(self) -> str:
        """Of the measure."""
        if self._table is not None:
            return self._table.unit
        return "MACs" if self._measure == "macs" else "parameters"

    def of_site(self, site: Site, extent: Extent) -> Floats:
        """The share of one site for each leading index of `extent`."""
        if self._measure == "latency":
            assert self._table is not None  # the configuration checks it
            return self._table.cost(site.layer.name, site.kernel_positions, extent)
        products: Floats = (extent.rows * extent.columns).sum(axis=-1).astype(np.float64)
        if self._measure == "macs":
            return products * site.positions
        counted = site.first and (self._measure == "params" or site.layer.kind != "linear")
        return products if counted else np.zeros_like(products)

    def of_other(self, parameter: str, elements: int) -> int:
        """The share of `elements` values of a bias, a normalisation or another parameter that is no weight."""
        return elements if self._measure == "params" and parameter in self._others else 0

    def total(self, masks: Mapping[str, Tensor]) -> float:
        """The whole network, exactly: what is zero by the masks is not there."""
        found = sum(float(self.of_site(site, extent_of(site, masks.get(site.layer.parameter)))) for site in self.sites)
        for name, size in self._others.items():
            found += self.of_other(name, int(masks[name].sum()) if name in masks else size)
        return found + (self._table.rest if self._table is not None else 0.0)


def extent_of(site: Site, mask: Tensor | None) -> Extent:
    """What a mask keeps of a layer."""
    used = used_matrices(site, mask)
    columns = used.any(dim=1)  # [groups, columns]
    inputs = columns.view(len(columns), -1, site.kernel_positions).any(dim=2)
    return Extent(*(part.sum(dim=1).numpy() for part in (used.any(dim=2), columns, inputs)))


def used_matrices(site: Site, mask: Tensor | None) -> Tensor:
    """What a mask leaves of a weight, a matrix for each group of the convolution: bool [groups, rows, columns]."""
    whole = torch.ones(1, dtype=torch.bool).expand(site.layer.shape) if mask is None else mask.cpu()
    return filter_matrices(site.node, whole)
