"""The well-known networks at full size against ONNX Runtime, on every OpenCL device: run by hand, it takes an hour.

    python -m tests.full_networks                        # goes on where it was stopped; writes the reference table
    python -m tests.full_networks --table                # runs nothing: the table of what was found so far
    python -m tests.full_networks --networks resnet18 unet --variants dense columns --out runs/some
    python -m tests.full_networks --memory-only          # runs no network: memory plans, half an hour

Each network, dense and pruned by random structured masks (shrunk as export does), on buffers in every number type that
a device has and with weights and activations in images in float32, on an input that the compiler has not seen. The
bound is relative to the largest output: 1e-3 for float32, 2e-2 for the two half types. Planned activation memory must
stay within 1.3 times the most that is alive at one launch. Exit status 1 if anything fails. `--memory-only` plans
alone, for buffers and for an Adreno, and writes another table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.host_record import write_record
from benchmarks.random_masks import calibrated, prune, save_onnx, shrunk
from device.local_target import LocalDevice, LocalTarget, find_local_devices
from device.runner_client import Runner
from results.markdown import markdown_table
from structadmm.files import write_json
from structadmm.graph import Captured, capture
from structadmm.source import source_commit
from tests.full_size_architectures import FULL_SIZE
from tvm_build.compile import compile_onnx, plan_onnx
from tvm_build.emit import OpenClKernel
from tvm_build.import_onnx import import_onnx

# The project's bounds on any device, relative to the output's scale.
BOUNDS = {"float32": 1e-3, "float16": 2e-2, "float16_float32": 2e-2}
MEMORY_BOUND = 1.3
# Number types on buffers, and images with the type that every device has: types and places of tensors do not meet.
FORMS = (("float32", "buffer"), ("float32", "image"), ("float16", "buffer"), ("float16_float32", "buffer"))
# Two inputs must give outputs that differ by this much of their scale, or an agreement says little.
LEAST_RESPONSE = 1e-2
# Odd shares, so that widths come out that are no multiples of four.
VARIANTS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "dense": (),
    "filters": ({"structure": "filter", "sparsity": 0.47},),
    "channels": ({"structure": "channel", "sparsity": 0.47},),
    "columns": ({"structure": "column", "sparsity": 0.77},),
    "column blocks": ({"structure": "column", "sparsity": 0.77, "block": 4},),
}
# Target, number type, and where tensors lie: on an Adreno by what the cost model predicts, and in images where asked.
PLANS = {
    "float32": ("opencl-cpu", "float32", "buffer"),
    "float16": ("opencl-cpu", "float16", "buffer"),
    "float16_float32": ("opencl-cpu", "float16_float32", "buffer"),
    "adreno-640, float32": ("adreno-640", "float32", "auto"),
    "adreno-640, float16": ("adreno-640", "float16", "auto"),
    "adreno-640, float16, images": ("adreno-640", "float16", "image"),
}
Arrays = Sequence[NDArray[np.float32]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(FULL_SIZE), default=list(FULL_SIZE))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--work", type=Path, default=Path("runs/full_networks"), help="what was found so far")
    parser.add_argument("--out", type=Path, help="instead of results/reference/compiler/{networks,memory}")
    parser.add_argument("--table", action="store_true", help="run nothing, write what was found so far")
    parser.add_argument("--memory-only", action="store_true", help="compile as far as the memory plan")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out or Path("results/reference/compiler") / ("memory" if options.memory_only else "networks")
    if options.memory_only:
        pairs = list(itertools.product(options.networks, options.variants))
        sys.exit(memory_only(pairs, options.work, out, run=not options.table))
    devices = find_local_devices().devices
    found = {}
    for variant, name in itertools.product(options.variants, options.networks):
        path = options.work / f"{name}-{variant.replace(' ', '-')}.json"
        if options.table and not path.exists():
            continue
        found[name, variant] = (
            json.loads(path.read_text()) if options.table else cached_row(name, variant, devices, path)
        )
        print(json.dumps(found[name, variant]), flush=True)
    rows = [found[key] for key in itertools.product(options.networks, options.variants) if key in found]
    failed = [f"{row['network']} {row['variant']}: {reason}" for row in rows for reason in row["failed"]]
    write_record(
        out,
        made_by="python -m tests.full_networks",
        kind="host",
        rows=rows,
        table=table(rows),
        bounds={**BOUNDS, "activation_memory": MEMORY_BOUND},
    )
    print(table(rows))
    print(f"{len(rows)} networks; failed: {failed or 'none'}", file=sys.stderr)
    sys.exit(bool(failed))


def cached_row(name: str, variant: str, devices: Sequence[LocalDevice], path: Path) -> dict[str, Any]:
    """What was found before and lies in `path`, unless it failed."""
    if path.exists():
        row: dict[str, Any] = json.loads(path.read_text())
        if not row["failed"]:
            return row
    started = time.perf_counter()
    try:
        row = check(name, variant, devices)
    except Exception as error:  # one network that fails must not hide the others
        row = {"network": name, "variant": variant, "failed": [f"{type(error).__name__}: {error}"]}
    row |= {"commit": source_commit(), "seconds": round(time.perf_counter() - started, 1)}
    write_json(path, row)
    return row


def memory_only(pairs: Sequence[tuple[str, str]], work: Path, out: Path, *, run: bool) -> bool:
    """Plan networks for buffers in each number type, and for an Adreno; returns whether anything breaks the bound.

    Args:
        pairs: networks and variants.
        work: what was found before, which is not done again.
        out: where the record goes.
        run: False to write what was found before, and no more.
    """
    rows = []
    for name, variant in pairs:
        path = work / f"{name}-{variant.replace(' ', '-')}-memory.json"
        if run and not path.exists():
            write_json(path, memory_row(name, variant) | {"commit": source_commit()})
        if path.exists():
            rows.append(json.loads(path.read_text()))
            print(json.dumps(rows[-1]), flush=True)
    plans = list(PLANS)
    heads = ["network", "input", "variant", "alive, float32, KB", *plans]
    lines = (
        [
            row["network"],
            "x".join(str(size) for size in row["input"][2:]),
            row["variant"],
            f"{row['live_bytes']['float32'] / 1e3:.0f}",
            *(f"{row['memory_ratio'][plan]:.3f}" for plan in plans),
        ]
        for row in rows
    )
    worst = {plan: max(row["memory_ratio"][plan] for row in rows) for plan in plans}
    summary = ", ".join(f"{plan} {ratio:.3f}" for plan, ratio in worst.items())
    count = f"{len(rows)} of {len(FULL_SIZE) * len(VARIANTS)} networks"
    said = f"Planned activations over the most that is alive at one launch, {count}. Worst: {summary}."
    text = f"{markdown_table(heads, lines)}\n\n{said}"
    write_record(
        out,
        made_by="python -m tests.full_networks --memory-only",
        kind="host",
        rows=rows,
        table=text,
        worst=worst,
        bound=MEMORY_BOUND,
    )
    print(text)
    return max(worst.values()) > MEMORY_BOUND


def memory_row(name: str, variant: str) -> dict[str, Any]:
    """Planned bytes over live bytes of one network, for every plan.

    The file is imported once, and no OpenCL is generated, on which memory does not depend: both take most of the time.
    """
    captured, shape = network_of(name, variant)
    ratios, live = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        path = save_onnx(shrunk(captured) if VARIANTS[variant] else captured, Path(scratch) / "network.onnx")
        imported = import_onnx(path)
    with patch("tvm_build.compile.import_onnx", lambda _: imported), patch("tvm_build.lower.emit_opencl", outline):
        for plan, (target, dtype, memory) in PLANS.items():
            assembly = plan_onnx(path, target=target, dtype=dtype, memory=memory)
            ratios[plan] = round(assembly.activation_bytes / assembly.live_bytes, 4)
            live[plan] = assembly.live_bytes
    return {"network": name, "variant": variant, "input": list(shape), "memory_ratio": ratios, "live_bytes": live}


def outline(func: Any) -> OpenClKernel:
    """What memory needs to know of a kernel: its parameters."""
    name = str(func.attrs["global_symbol"])
    return OpenClKernel(name, "-", tuple(str(parameter.name) for parameter in func.params), (1,), (1,))


def network_of(name: str, variant: str) -> tuple[Captured, tuple[int, ...]]:
    """The network with its zeros in place, not shrunk yet, and the shape of its input."""
    build, size = FULL_SIZE[name]
    shape = (1, 3, size, size)
    torch.manual_seed(list(FULL_SIZE).index(name))
    model = calibrated(damping(build()), shape)
    if VARIANTS[variant]:
        pruned = prune(model, shape, VARIANTS[variant])
        return pruned if _normalises(model) else _as_loud_as_before(pruned), shape
    return capture(model, (torch.zeros(shape),)), shape


def _normalises(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _as_loud_as_before(network: Captured) -> Captured:
    """The network with what is left of each weight scaled to the size of the whole.

    Nothing else keeps signals up without normalisation: of AlexNet without three quarters of its columns little but the
    biases is left at the end.
    """
    state = {
        name: tensor * (tensor.numel() / max(1, int(tensor.count_nonzero()))) ** 0.5 if tensor.ndim > 1 else tensor
        for name, tensor in network.state.items()
    }
    return network._replace(state=state)


def damping(model: nn.Module) -> nn.Module:
    """Give a network biases with which most ReLUs are open: it then passes a small change of its input on as it is.

    A trained ResNet-18 halves such a change. Fresh networks of some fifty layers whose ReLUs are half closed make it up
    to seventy times larger, so that rounding to half once already moves their output by several percent, whoever
    computes it.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.7, 0.3)
    return model


def check(name: str, variant: str, devices: Sequence[LocalDevice]) -> dict[str, Any]:
    """Compile, run and compare one network in each form on each device that has its number type."""
    captured, shape = network_of(name, variant)
    errors: dict[str, float] = {}
    row: dict[str, Any] = {"network": name, "variant": variant, "failed": [], "errors": errors, "input": list(shape)}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        path = save_onnx(shrunk(captured) if VARIANTS[variant] else captured, Path(scratch) / "network.onnx")
        x, expected, response = reference(path, shape)
        row["response"] = float(f"{response:.2g}")
        if response < LEAST_RESPONSE:
            row["failed"].append(f"outputs of two inputs differ by {response:.2g} of their scale only")
        runners = [
            (device, Runner(stack.enter_context(closing(LocalTarget(device.driver.name))))) for device in devices
        ]
        for dtype, memory in FORMS:
            kind, bound = dtype if memory == "buffer" else f"{dtype} in images", BOUNDS[dtype]
            bundle = Path(scratch) / f"{dtype}-{memory}.clbundle"
            summary = compile_onnx(path, bundle, target="opencl-cpu", dtype=dtype, memory=memory)
            row.setdefault("launches", summary.launches)
            row.setdefault("macs", summary.macs)
            ratio = summary.activation_bytes / summary.live_bytes
            row["memory_ratio"] = max(row.get("memory_ratio", 0.0), round(ratio, 3))
            if ratio > MEMORY_BOUND:
                row["failed"].append(f"{kind}: activations take {ratio:.2f} times what is alive")
            for device, runner in runners:
                if dtype.startswith("float16") and not device.info.fp16:
                    continue
                error = relative_error(runner.run(bundle, [x]).outputs, expected)
                errors[f"{kind} {device.driver.name}"] = float(f"{error:.2g}")
                if not error <= bound:
                    row["failed"].append(f"{kind} on {device.driver.name} is off by {error:.2g}, allowed {bound:g}")
    return row


def reference(path: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], Arrays, float]:
    """A fresh input, ONNX Runtime's outputs for it, and how far another input's outputs are from them, relative."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    x, other = np.random.default_rng(7).standard_normal((2, *shape), dtype=np.float32)
    expected, others = session.run(None, {name: x}), session.run(None, {name: other})
    return x, expected, relative_error(others, expected)


def relative_error(arrived: Arrays, expected: Arrays) -> float:
    """Largest difference over the largest value, the worst output's; infinite where a value is not finite."""
    worst = 0.0
    for got, wanted in zip(arrived, expected, strict=True):
        difference = np.abs(got.astype(np.float64) - wanted).max()
        worst = max(worst, float(difference / np.abs(wanted).max()) if np.isfinite(difference) else float("inf"))
    return worst


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: errors of each number type on each device, and memory."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.get("errors", {})))
    heads = ["network", "input", "variant", "million MACs", "launches", *kinds, "memory / live", ""]
    here = f"{len(rows)} of {len(FULL_SIZE) * len(VARIANTS)} networks; each row's commit is in results.json."
    return markdown_table(heads, (cells(row, kinds) for row in rows)) + f"\n\n{here}"


def cells(row: Mapping[str, Any], kinds: Sequence[str]) -> Iterator[str]:
    """One line of the table."""
    yield row["network"]
    yield "x".join(str(size) for size in row.get("input", [])[2:])
    yield row["variant"]
    yield f"{row['macs'] / 1e6:.1f}" if "macs" in row else ""
    yield str(row.get("launches", ""))
    for kind in kinds:
        yield f"{row['errors'][kind]:.1e}" if kind in row.get("errors", {}) else ""
    yield f"{row['memory_ratio']:.2f}" if "memory_ratio" in row else ""
    yield "; ".join(row["failed"]) or "ok"


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch.onnx about the absence of torchvision
    main()
