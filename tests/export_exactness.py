"""Exactness of shrinking and export on many networks: too long for the test suite, run by hand.

    python -m tests.export_exactness --random 200            # random networks, random zeros at 30 to 95 %
    python -m tests.export_exactness --full-size             # the well-known networks at full depth and width

For each network: the shrunk one equals the masked PyTorch module to 1e-5 (float64: 1e-10), the ONNX file to 1e-4, all
relative to the largest output; then each unit of the shrunk network (a sample of them in large ones) is perturbed by a
probe that knows nothing of graphs, and something must change. One JSON line per network; exit status 1 if any fails.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.fixed_point import shrink_fully
from export.onnx_export import OnnxNetwork, export_onnx
from export.shrink import Shrunk, rounded
from export.unused_paths import remove_unused_paths
from export.verify import MASKED_VS_SHRUNK, MASKED_VS_SHRUNK_DOUBLE, SHRUNK_VS_ONNX, random_inputs, verify
from structadmm.graph import Captured, Graph, GraphModule, capture
from tests.architectures import in_float64
from tests.full_size_architectures import FULL_SIZE
from tests.random_networks import NETWORK_INPUT, random_network, with_structured_zeros

SATURATING = ("aten.relu.default", "aten.hardtanh.default", "aten.hardsigmoid.default", "aten.hardswish.default")
# A ReLU that happens to be off hides one perturbation, but hardly those of both signs at several strengths.
PROBES = (1.0, -1.0, 10.0, -10.0, 1000.0, -1000.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="random networks")
    parser.add_argument("--seed", type=int, default=0, help="of the first random network")
    parser.add_argument("--full-size", nargs="*", choices=sorted(FULL_SIZE), help="none named: all")
    parser.add_argument("--units", type=int, default=40, help="units to probe per full-size network")
    options = parser.parse_args()
    failed = 0
    for seed in range(options.seed, options.seed + options.random):
        fraction = random.Random(seed).uniform(0.3, 0.95)
        failed += run(f"random {seed}", random_network(seed), NETWORK_INPUT, fraction, seed, units=None)
    names = list(FULL_SIZE) if options.full_size == [] else options.full_size or []
    for position, name in enumerate(names):
        builder, size = FULL_SIZE[name]
        torch.manual_seed(position)
        model = calibrated(builder(), (1, 3, size, size))
        failed += run(name, model, (1, 3, size, size), (0.3, 0.6, 0.95)[position % 3], position, units=options.units)
    print(f"{options.random + len(names) - failed} exact, {failed} not", file=sys.stderr)
    sys.exit(failed > 0)


def calibrated(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Give a fresh network statistics of its own activations and an affine of many values: outputs of ordinary size."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for module in norms:
            module.momentum = None
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
        model.train()(torch.randn(8, *shape[1:]))
    for module in norms:
        module.momentum = 0.1
    return model.eval()


def run(name: str, model: nn.Module, shape: tuple[int, ...], fraction: float, seed: int, units: int | None) -> bool:
    """Check one network and print what was found; whether it failed."""
    start = time.perf_counter()
    try:
        found = check(model, shape, fraction, seed, units)
    except Exception as error:  # one network that fails must not hide the others
        found = {"failed": f"{type(error).__name__}: {error}"}
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({"network": name, "zeros": round(fraction, 2), **found, "seconds": seconds}), flush=True)
    return "failed" in found


def check(model: nn.Module, shape: tuple[int, ...], fraction: float, seed: int, units: int | None) -> dict[str, Any]:
    """All checks of one network; raises on a difference."""
    graph, state = capture(model, (torch.zeros(shape),))
    zeros = living_zeros(Captured(graph, state), fraction, seed)
    model.load_state_dict({key: zeros[key] for key in model.state_dict()})
    start = time.perf_counter()
    _, exact = shrink_fully(*in_float64(Captured(graph, zeros)))
    seconds = time.perf_counter() - start
    smaller = rounded(exact, torch.float32)
    with tempfile.TemporaryDirectory() as directory:
        exported = export_onnx(smaller.graph, smaller.state, Path(directory) / "pruned.onnx")
    masked, shrunk = (GraphModule(each.graph, each.state).eval() for each in (Shrunk(graph, zeros, {}, {}), smaller))
    double = GraphModule(exact.graph, exact.state).eval()
    # The checks that always run at export: they name the node that differs first.
    verify(masked, shrunk, exported, random_inputs(graph, seed=seed), smaller.keeps, double)
    # And against the module itself, which the graph is only a trace of.
    inputs = torch.randn(3, *shape[1:], generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        expected = model(inputs)
        errors = {
            "float32": relative(expected, shrunk(inputs)),
            "onnx": relative(expected, OnnxNetwork(exported)(inputs)[0]),
            "float64": relative(model.double()(inputs.double()), double(inputs.double())),
        }
    model.float()
    allowed = {"float32": MASKED_VS_SHRUNK, "onnx": SHRUNK_VS_ONNX, "float64": MASKED_VS_SHRUNK_DOUBLE}
    for kind, error in errors.items():
        if not error <= allowed[kind]:
            raise AssertionError(f"{kind} differs by {error:.3g}, allowed {allowed[kind]}")
    probed, stay = probe(exact, units, seed)
    weights = {ref for ref, entry in graph.state.items() if len(entry.shape) > 1}
    before, after = (sum(t[w].numel() for w in weights if w in t) for t in (zeros, smaller.state))
    return {
        **{kind: float(f"{error:.2g}") for kind, error in errors.items()},
        "weights_ratio": round(before / after, 2), "probed": probed, "dead_but_explained": stay,
        "shrink_seconds": round(seconds, 1),
    }  # fmt: skip


def living_zeros(network: Captured, fraction: float, seed: int) -> dict[str, Tensor]:
    """Random structured zeros that leave a network whose output depends on its input, if few tries find some."""
    shape = network.graph.inputs[0].shape
    inputs = torch.randn(4, *shape[1:], generator=torch.Generator().manual_seed(seed))
    for attempt in range(20):
        zeros = with_structured_zeros(*network, fraction, seed + 10_000 * attempt)
        with torch.no_grad():
            outputs = GraphModule(network.graph, zeros).eval()(inputs)
        if bool((outputs != outputs[:1]).any()):
            break
    return zeros


def relative(expected: Tensor, arrived: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((expected - arrived).abs().max() / expected.abs().max().clamp(min=1e-30))


def probe(shrunk: Shrunk, units: int | None, seed: int) -> tuple[int, dict[str, int]]:
    """Perturb filters one by one, knowing only weights and the output; each must matter, or be explained.

    Returns:
        How many were perturbed, and why those that are all zero stay.
    """
    again = remove_unused_paths(shrunk.graph, shrunk.state)
    explained: dict[tuple[str, int, int], str] = {}
    for group in again.coupling.groups:
        for unit, why in again.kept.get(group.name, {}).items():
            for part in group.producers:
                explained |= {(part.parameter, part.axis, int(index)): why for index in part.indices[unit]}
    if again.count:
        raise AssertionError(f"shrinking again removes {again.count} more units")
    unit_of = {
        (part.parameter, part.axis, int(index)): [(p.parameter, p.axis, p.indices[unit]) for p in group.producers]
        for group in again.coupling.groups
        for part in group.producers
        for unit in range(group.units)
        for index in part.indices[unit]
    }
    frozen = {
        key
        for group in again.coupling.groups
        if group.frozen
        for part in group.producers
        for key in ((part.parameter, part.axis, int(index)) for index in part.indices.flatten())
    }
    filters = []
    stay: Counter[str] = Counter()
    for name, axis, index in unit_of:
        why = explained.get((name, axis, index))
        dead = not bool(shrunk.state[name].select(axis, index).any())
        if dead and why is None:
            raise AssertionError(f"filter {index} of {name} is zero and nothing says why it stays")
        if why is None:
            filters.append((name, axis, index))
        elif dead:
            stay[" ".join(word for word in why.split() if not any(c.isdigit() for c in word))[:60]] += 1
    chosen = filters if units is None else random.Random(seed).sample(filters, min(units, len(filters)))
    shape = shrunk.graph.inputs[0].shape
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(24 if units is None else 2, *shape[1:], dtype=torch.float64, generator=generator)
    inputs[len(inputs) // 2 :] *= 10
    real, linear = (
        Probe(shrunk.graph, shrunk.state, inputs),
        Probe(without_saturation(shrunk.graph), shrunk.state, inputs),
    )
    for name, axis, index in chosen:
        alone, together = [(name, axis, [index])], unit_of[name, axis, index]
        if real.matters(alone) or linear.matters(alone):
            continue
        if (name, axis, index) in frozen:
            stay["tied to the network's input or output"] += 1
            continue
        if len(together) == 1 or not (real.matters(together) or linear.matters(together)):
            raise AssertionError(f"filter {index} of {name} has no effect on the output")
        # Its result is not used, but the same channel of a tensor it is added to or multiplied with is.
        stay["tied to a filter that matters"] += 1
    return len(chosen), dict(stay.most_common(4))


class Probe:
    """Perturbs weights of a network and watches its output."""

    def __init__(self, graph: Graph, state: dict[str, Tensor], inputs: Tensor) -> None:
        self.module = GraphModule(graph, {key: tensor.clone() for key, tensor in state.items()}).eval()
        self.inputs = inputs
        with torch.no_grad():
            self.expected = self.module(inputs)

    def matters(self, parts: Sequence[tuple[str, int, Sequence[int]]]) -> bool:
        """Whether any of a few perturbations of these slices changes the output."""
        slices = [(self.module.get_parameter(name).data, axis, torch.as_tensor(rows)) for name, axis, rows in parts]
        before = [tensor.index_select(axis, rows) for tensor, axis, rows in slices]
        changed = False
        with torch.no_grad():
            for scale in PROBES:
                for (tensor, axis, rows), old in zip(slices, before, strict=True):
                    noise = torch.randn(old.shape, dtype=old.dtype, generator=torch.Generator().manual_seed(7))
                    tensor.index_copy_(axis, rows, old + scale * noise)
                changed = bool((self.module(self.inputs) != self.expected).any())
                for (tensor, axis, rows), old in zip(slices, before, strict=True):
                    tensor.index_copy_(axis, rows, old)
                if changed:
                    break
        return changed


def without_saturation(graph: Graph) -> Graph:
    """`graph` with its ReLUs and clamps let everything through: one that happens to be off hides what is before it."""
    nodes = [
        replace(node, op="aten.alias.default", args=node.args[:1], kwargs={}) if node.op in SATURATING else node
        for node in graph.nodes
    ]
    return replace(graph, nodes=tuple(nodes))


if __name__ == "__main__":
    main()
