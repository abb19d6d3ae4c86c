"""Exactness of shrinking and export on many networks: too long for the test suite, run by hand.

    python -m tests.export_exactness --random 200            # random networks, random zeros at 30 to 95 %
    python -m tests.export_exactness --full-size --out results/reference/exactness

The well-known networks, at full depth and width, are pruned in five ways at three rates each. For each network: the
shrunk one equals the masked PyTorch module to 1e-5 (float64: 1e-10), the ONNX file to 1e-4, all relative to the
largest output; then units of the shrunk network are perturbed by `tests.removal_probe`, and something must change or
stay for a reason that is checked. One JSON line per network; exit status 1 if any fails. `--out` also writes the lines
and a table, and does not repeat what the folder already holds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from export.fixed_point import shrink_fully
from export.onnx_export import OnnxNetwork, export_onnx
from export.shrink import rounded
from export.verify import MASKED_VS_SHRUNK, MASKED_VS_SHRUNK_DOUBLE, SHRUNK_VS_ONNX, random_inputs, verify
from structadmm.files import write_text
from structadmm.graph import Captured, GraphModule, capture, find_coupling
from tests.architectures import in_float64
from tests.full_size_architectures import FULL_SIZE
from tests.random_networks import NETWORK_INPUT, random_network, with_structured_zeros
from tests.removal_probe import probe
from train.batch_norm import calibrate

STRUCTURES = {
    "coupled": "filters of coupled layers together, with their offsets: as this project's training prunes",
    "filters": "filters of each convolution on its own, offsets left: most go on emitting a constant",
    "channels": "input channels of each convolution on its own",
    "columns": "columns of each convolution",
    "mixed": "some of everything",
}
FRACTIONS = (0.3, 0.6, 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="random networks")
    parser.add_argument("--seed", type=int, default=0, help="of the first random network")
    parser.add_argument("--full-size", nargs="*", choices=sorted(FULL_SIZE), help="none named: all")
    parser.add_argument("--structures", nargs="+", choices=list(STRUCTURES), default=list(STRUCTURES))
    parser.add_argument("--fractions", nargs="+", type=float, default=FRACTIONS)
    parser.add_argument("--units", type=int, default=20, help="units to probe per full-size network")
    parser.add_argument("--out", type=Path, help="folder for results.jsonl and table.md")
    options = parser.parse_args()
    # torch (2.13) parses its whole library of ONNX functions at every export; half of a small network's time is that.
    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign,assignment]
    rows: list[dict[str, Any]] = []
    lines = options.out / "results.jsonl" if options.out is not None else None
    if lines is not None and lines.exists():
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
    for seed in range(options.seed, options.seed + options.random):
        fraction = random.Random(seed).uniform(0.3, 0.95)
        network = capture(model := random_network(seed), (torch.zeros(NETWORK_INPUT),))
        rows.append(run("random", model, network, "mixed", fraction, seed, units=None))
    names = list(FULL_SIZE) if options.full_size == [] else options.full_size or []
    captured: dict[str, tuple[nn.Module, Captured]] = {}
    for fraction, structure, name in itertools.product(options.fractions, options.structures, names):
        if any((row["network"], row["structure"], row["zeros"]) == (name, structure, fraction) for row in rows):
            continue
        model, network = captured.setdefault(name, full_size(name) if name not in captured else captured[name])
        rows.append(run(name, model, network, structure, fraction, list(FULL_SIZE).index(name), units=options.units))
        if lines is not None:
            write_text(lines, "".join(json.dumps(row) + "\n" for row in rows))
            write_text(options.out / "table.md", table(rows))
    failed = sum("failed" in row for row in rows)
    print(f"{len(rows) - failed} exact, {failed} not", file=sys.stderr)
    sys.exit(failed > 0)


def full_size(name: str) -> tuple[nn.Module, Captured]:
    """One of the well-known networks, and its graph with a state of its own."""
    builder, size = FULL_SIZE[name]
    torch.manual_seed(list(FULL_SIZE).index(name))
    model = calibrated(builder(), (1, 3, size, size))
    graph, state = capture(model, (torch.zeros(1, 3, size, size),))
    return model, Captured(graph, {key: tensor.detach().clone() for key, tensor in state.items()})


def calibrated(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Give a fresh network statistics of its own activations and an affine of many values: outputs of ordinary size."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return calibrate(model, torch.randn(8, *shape[1:]))


def run(
    name: str, model: nn.Module, network: Captured, structure: str, fraction: float, seed: int, units: int | None
) -> dict[str, Any]:
    """Check one network and print what was found."""
    start = time.perf_counter()
    row = {"network": name, "seed": seed, "structure": structure, "zeros": round(fraction, 2)}
    try:
        row |= check(model, network, structure, fraction, seed, units)
    except Exception as error:  # one network that fails must not hide the others
        row["failed"] = f"{type(error).__name__}: {error}"[:300]
    row["seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(row), flush=True)
    return row


def check(
    model: nn.Module, network: Captured, structure: str, fraction: float, seed: int, units: int | None
) -> dict[str, Any]:
    """All checks of one network; raises on a difference."""
    graph = network.graph
    shape = graph.inputs[0].shape
    if structure == "mixed":
        zeros = living_zeros(network, fraction, seed)
    else:
        zeros = pruned(network, structure, fraction, seed)
    model.float().load_state_dict({key: zeros[key] for key in model.state_dict()})
    start = time.perf_counter()
    _, exact = shrink_fully(*in_float64(Captured(graph, zeros)))
    seconds = time.perf_counter() - start
    smaller = rounded(exact, torch.float32)
    with tempfile.TemporaryDirectory() as directory:
        exported = export_onnx(smaller.graph, smaller.state, Path(directory) / "pruned.onnx")
    masked, shrunk = GraphModule(graph, zeros).eval(), GraphModule(smaller.graph, smaller.state).eval()
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
    probed = probe(exact, units, seed)
    weights = {ref for ref, entry in graph.state.items() if len(entry.shape) > 1}
    before, after = (sum(t[w].numel() for w in weights if w in t) for t in (zeros, smaller.state))
    return {
        **{kind: float(f"{error:.2g}") for kind, error in errors.items()},
        "weights_ratio": round(before / after, 2),
        "depends_on_input": bool((expected != expected[:1]).any()),
        "probed_units": probed.units, "dead_filters_left": probed.dead_filters,
        "why": dict(probed.reasons.most_common()), "shrink_seconds": round(seconds, 1),
    }  # fmt: skip


def pruned(network: Captured, structure: str, fraction: float, seed: int) -> dict[str, Tensor]:
    """A copy of the state with `fraction` of every layer's structures zero, at least one left."""
    graph, state = network
    generator = torch.Generator().manual_seed(seed)
    zeros = {name: tensor.detach().clone() for name, tensor in state.items()}

    def some(count: int) -> Tensor:
        return torch.randperm(count, generator=generator)[: min(round(fraction * count), count - 1)]

    for group in find_coupling(graph).groups if structure == "coupled" else ():
        units = some(group.units)
        for part in group.producers + group.affine if group.frozen is None else ():
            if graph.state[part.parameter].kind == "parameter":
                zeros[part.parameter].index_fill_(part.axis, torch.from_numpy(part.indices[units].reshape(-1)), 0.0)
    for tensor in zeros.values() if structure != "coupled" else ():
        if tensor.ndim != 4:
            continue
        if structure == "filters":
            tensor[some(len(tensor))] = 0.0
        elif structure == "channels":
            tensor[:, some(tensor.shape[1])] = 0.0
        else:
            tensor.flatten(1)[:, some(tensor[0].numel())] = 0.0
    return zeros


def table(rows: Sequence[dict[str, Any]]) -> str:
    """One line per network and structure."""
    fractions = sorted({row["zeros"] for row in rows})
    lines = [
        "| Network | Zeros | " + " | ".join(f"weights left out at {fraction:.0%}" for fraction in fractions)
        + " | float32 | float64 | ONNX | units probed | dead filters left |",
        "|---" * (len(fractions) + 7) + "|",
    ]  # fmt: skip
    for name, structure in dict.fromkeys((row["network"], row["structure"]) for row in rows):
        found = [row for row in rows if (row["network"], row["structure"]) == (name, structure)]
        failed = [row for row in found if "failed" in row]
        if failed:
            lines.append(f"| {name} | {structure} | **{failed[0]['failed']}** |" + " |" * (len(fractions) + 4))
            continue
        by_fraction = {row["zeros"]: f"{row['weights_ratio']:.1f}×" for row in found}
        cells = [by_fraction.get(fraction, "") for fraction in fractions]
        cells += [f"{max(row[kind] for row in found):.0e}" for kind in ("float32", "float64", "onnx")]
        cells += [str(sum(row[key] for row in found)) for key in ("probed_units", "dead_filters_left")]
        lines.append(f"| {name} | {structure} | {' | '.join(cells)} |")
    why: dict[str, int] = {}
    for row in rows:
        for reason, times in row.get("why", {}).items():
            why[reason] = why.get(reason, 0) + times
    sizes = ", ".join(f"{name} {FULL_SIZE[name][1]}" for name in dict.fromkeys(row["network"] for row in rows))
    lines += [
        "",
        "Networks at full depth and width. Height and width of the input, chosen so that every stage is "
        f"larger than one pixel: {sizes}.",
        f"{len(rows)} cases of {len(FULL_SIZE) * len(STRUCTURES) * len(FRACTIONS)}; without a figure: not run.",
        "",
        "Weights left out: of convolutions and linears, masked over shrunk. Zero columns stay as zeros and count.",
        "Differences are relative to the largest output, the largest of all rates; allowed are "
        f"{MASKED_VS_SHRUNK:.0e}, {MASKED_VS_SHRUNK_DOUBLE:.0e} and {SHRUNK_VS_ONNX:.0e}.",
        "",
        *(f"- {structure}: {meaning}." for structure, meaning in STRUCTURES.items()),
        "",
        "What computes and what reads a unit is perturbed: the output changes, or the unit stays because it is:",
        "",
        *(f"- {reason}: {times}" for reason, times in sorted(why.items(), key=lambda item: -item[1])),
        "",
        "Made by `python -m tests.export_exactness --full-size --out DIR`.",
    ]
    return "\n".join(lines) + "\n"


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


if __name__ == "__main__":
    main()
