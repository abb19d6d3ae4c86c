"""Purify, shrink and export a pruned network, with proof: pruned checkpoint in, ONNX out."""
