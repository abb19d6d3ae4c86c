"""Purify, shrink and export a pruned network, with proof: pruned checkpoint in, ONNX out.

A shrunk network is used wherever torch and this package are, without the code that it was made from:

    import export, torch

    network = export.load_network(Path("out/shrunk"))   # an ordinary nn.Module
    export.save_network(Path("trained"), network)
"""

from structadmm.graph.save import load_network, save_network

__all__ = ["load_network", "save_network"]
