"""The traced graph of a network: coupled channels, counts, and the module that executes it."""

from structadmm.graph.coupling import AxisSlice, CoupledGroup, Coupling, find_coupling
from structadmm.graph.ir import Graph, Node
from structadmm.graph.module import GraphModule
from structadmm.graph.trace import Captured, capture, trace

__all__ = [
    "AxisSlice",
    "Captured",
    "CoupledGroup",
    "Coupling",
    "Graph",
    "GraphModule",
    "Node",
    "capture",
    "find_coupling",
    "trace",
]
