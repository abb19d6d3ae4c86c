"""Proof that the masked, the shrunk and the exported network are one function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from export.inference import fold_for_inference
from export.onnx_export import OnnxNetwork
from structadmm.errors import InvariantError, UserError
from structadmm.graph.ir import Graph, StateRef, leaves
from structadmm.graph.module import GraphModule, flat_outputs

# By node name: (dimension, indices that stay) of every dimension that shrinks.
Keeps = Mapping[str, Sequence[tuple[int, Tensor]]]

# Removed terms are exact zeros, so only the order of the remaining sums differs: a few float32 ulps per layer.
MASKED_VS_SHRUNK = 1e-5
# In float64 the same sums agree to the last digits; what is left is the rounding of folded constants.
MASKED_VS_SHRUNK_DOUBLE = 1e-10
# ONNX Runtime sums in other orders, fuses, and folds normalisation into float32 weights.
SHRUNK_VS_ONNX = 1e-4
# Small inputs show lost biases, large ones lost weights.
SCALES = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Difference:
    """What two networks differ by, beside what they may.

    Attributes:
        found: largest |a - b| of an output; infinite if either is not finite.
        allowed: the tolerance, times the largest |a| where that exceeds 1: rounding grows with the numbers rounded.
    """

    found: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the networks agree; never with a NaN."""
        return self.found <= self.allowed


@dataclass(frozen=True)
class Checks:
    """Of all outputs of all inputs, the difference nearest its tolerance.

    Attributes:
        masked_vs_shrunk: in float32.
        masked_vs_shrunk_double: in float64.
        shrunk_vs_onnx: in float32, against ONNX Runtime.
    """

    masked_vs_shrunk: Difference
    masked_vs_shrunk_double: Difference
    shrunk_vs_onnx: Difference | None


def compare(a: Tensor, b: Tensor, tolerance: float) -> Difference:
    """Difference of two tensors, `tolerance` being for numbers up to 1."""
    if a.shape != b.shape or not bool(torch.isfinite(a).all()) or not bool(torch.isfinite(b).all()):
        return Difference(float("inf"), tolerance)
    if a.numel() == 0:
        return Difference(0.0, tolerance)
    return Difference((a - b).abs().max().item(), tolerance * max(1.0, a.abs().max().item()))


def difference(a: Tensor, b: Tensor) -> float:
    """Largest |a - b|, relative to the largest |a| where that exceeds 1; infinite if either is not finite."""
    return _relative(compare(a, b, 1.0))


def random_inputs(
    graph: Graph, *, samples: int = 2, seed: int = 0, scales: Sequence[float] = SCALES
) -> list[tuple[Tensor, ...]]:
    """Normal inputs at every scale, float32."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for scale in scales:
        shapes = [node.shape if graph.batch is None else (samples, *node.shape[1:]) for node in graph.inputs]
        found.append(tuple(torch.randn(shape, generator=generator) * scale for shape in shapes))
    return found


def verify(
    masked: GraphModule,
    shrunk: GraphModule,
    onnx_model: onnx.ModelProto | None,
    batches: Sequence[tuple[Tensor, ...]],
    keeps: Keeps | None = None,
    shrunk_double: GraphModule | None = None,
) -> Checks:
    """Compare all three on every batch of inputs.

    Args:
        masked: the network before shrinking, zeros in place.
        shrunk: the smaller one; the same module for a network that was not shrunk.
        onnx_model: the exported one; None: not compared.
        batches: inputs, float32, real ones among them.
        keeps: which part of each of the masked network's tensors the shrunk one computes; lets an error name the node.
        shrunk_double: the smaller network before it was rounded to float32; None: the rounded one in float64, which is
            as good where no constant was folded.

    Raises:
        InvariantError: they differ by more than the tolerances of this module; names the first node that does.
    """
    masked, shrunk = masked.eval(), shrunk.eval()
    exported = None if onnx_model is None else OnnxNetwork(onnx_model)
    single, double = Difference(0.0, MASKED_VS_SHRUNK), Difference(0.0, MASKED_VS_SHRUNK_DOUBLE)
    versus_onnx = Difference(0.0, SHRUNK_VS_ONNX)
    masked64, shrunk64 = _double(masked), shrunk_double or _double(shrunk)
    with torch.no_grad():
        for inputs in batches:
            arrived = flat_outputs(shrunk(*inputs))
            if masked is not shrunk:
                error = _worst(flat_outputs(masked(*inputs)), arrived, MASKED_VS_SHRUNK)
                if not error.passed:
                    where = _first_shrunk(masked, shrunk, inputs, keeps)
                    raise InvariantError(f"masked and shrunk network differ by {error.found:.3g}, first at {where}")
                single = max(single, error, key=_relative)
                doubles = tuple(value.double() for value in inputs)
                expected = flat_outputs(masked64(*doubles))
                error = _worst(expected, flat_outputs(shrunk64(*doubles)), MASKED_VS_SHRUNK_DOUBLE)
                if not error.passed:
                    where = _first_shrunk(masked64, shrunk64, doubles, keeps)
                    raise InvariantError(
                        f"masked and shrunk network differ by {error.found:.3g} in float64, first at {where}"
                    )
                double = max(double, error, key=_relative)
            if exported is not None:
                error = _worst(arrived, exported(*inputs), SHRUNK_VS_ONNX)
                if not error.passed:
                    where = _first_exported(shrunk, onnx_model, inputs)
                    raise InvariantError(
                        f"shrunk network and ONNX Runtime differ by {error.found:.3g}, first at {where}"
                    )
                versus_onnx = max(versus_onnx, error, key=_relative)
    return Checks(single, double, None if exported is None else versus_onnx)


def check_samples_apart(module: GraphModule) -> None:
    """See that what a sample yields does not depend on the others of its batch, which have no part in a deployed call.

    Raises:
        UserError: it does; names the first node.
    """
    if module.graph.batch is None:
        return
    (inputs,) = random_inputs(module.graph, scales=(1.0,))
    with torch.no_grad():
        together = module.eval().run(*inputs, keep_all=True)
        alone = module.run(*(value[:1] for value in inputs), keep_all=True)
    returned = {ref.node for ref in module.graph.outputs}
    for node in module.graph.nodes:
        both, one = together[node.name], alone[node.name]
        if not isinstance(both, Tensor) or both.ndim == 0:
            continue
        apart = both.shape[1:] == one.shape[1:] and both.shape[0] == 2 * one.shape[0]
        # In between, samples may lie along any dimension; what a network returns has them first, and one each.
        wrong = node.name in returned and not (apart and len(one) == 1)
        if wrong or (apart and not _differ_by_rounding(both[: len(one)], one)):
            raise UserError(
                f"{node.op} at {node.label} makes of two samples together something else than of each alone: "
                "compute on each sample by itself, and squeeze dimensions by number"
            )


def _differ_by_rounding(a: Tensor, b: Tensor) -> bool:
    # Kernels take another path for another batch.
    return compare(a.double(), b.double(), SHRUNK_VS_ONNX).passed


def _relative(error: Difference) -> float:
    return error.found / error.allowed


def _worst(expected: Sequence[Tensor], arrived: Sequence[Tensor], tolerance: float) -> Difference:
    return max((compare(a, b, tolerance) for a, b in zip(expected, arrived, strict=True)), key=_relative)


def _double(module: GraphModule) -> GraphModule:
    doubles = {n: t.detach().double() if t.is_floating_point() else t.detach() for n, t in module.tensors().items()}
    return GraphModule(module.graph, doubles).eval()


def _first_shrunk(masked: GraphModule, shrunk: GraphModule, inputs: tuple[Tensor, ...], keeps: Keeps | None) -> str:
    if keeps is None:
        return "an unknown node"
    expected, arrived = masked.run(*inputs, keep_all=True), shrunk.run(*inputs, keep_all=True)
    tolerance = MASKED_VS_SHRUNK if inputs[0].dtype == torch.float32 else MASKED_VS_SHRUNK_DOUBLE
    for node in shrunk.graph.nodes:
        if node.name not in expected or not isinstance(expected[node.name], Tensor):
            continue
        whole = expected[node.name]
        for dim, indices in keeps.get(node.name, ()):
            whole = whole.index_select(dim, indices)
        if not difference(whole, arrived[node.name]) <= tolerance:
            return f"{node.op} of {node.label}"
    return "no single node: the outputs are put together differently"


def _first_exported(shrunk: GraphModule, model: onnx.ModelProto | None, inputs: tuple[Tensor, ...]) -> str:
    assert model is not None
    graph, state = fold_for_inference(shrunk.graph, shrunk.tensors())
    values = GraphModule(graph, state).eval().run(*inputs, keep_all=True)
    try:
        everything = OnnxNetwork(model, every_node=True)
        exported = dict(zip(everything.outputs, everything(*inputs), strict=True))
    except UserError:  # its inferred shapes may be wrong; that must not hide the difference
        return "a node that cannot be found"
    of_weight = {name: node for node in model.graph.node for name in node.input[1:2]}
    for node in graph.nodes:
        weight = next((item.name for item in leaves(node, StateRef)), "")
        found = of_weight.get(weight)
        if found is None or found.output[0] not in exported:
            continue
        if not difference(values[node.name], exported[found.output[0]]) <= SHRUNK_VS_ONNX:
            return f"{found.op_type} of {found.name}"
    return "a node without weights"
