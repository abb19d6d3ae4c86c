"""Each convolution's own error in half precision, given its own inputs, layer by layer: where a network loses digits.

    python benchmarks/half_errors.py [--network googlenet] [--target adreno-640]

Every convolution of the ONNX file runs alone on a device with half precision, on the activations that ONNX Runtime has
there, rounded to half, and is compared with float64 arithmetic on the very same halves. What is left is the kernel's
own: the rounding of its sum, and of its result. Errors are root mean squares over the output's, in units of half's
rounding (2^-11), so 0.4 is what rounding the result alone costs. The last line is the whole network's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from host_record import quiet, record_options, write_record
from kernel_timing import devices
from numpy.typing import NDArray
from random_masks import save_onnx
from torch.nn import functional as F

from results.markdown import markdown_table
from tvm_build.compile import compile_onnx
from tvm_build.gpu import gpu_by_name
from tvm_build.kernel_bundle import KernelCase, write_kernel_bundle
from tvm_build.kernels import default_schedule
from tvm_build.ops import Conv2d
from tvm_build.precision import PRECISIONS

# The networks and the reference are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.full_networks import network_of, reference, relative_error
from tests.kernel_references import from_c4, to_c4

Array = NDArray[np.float32]
HALF_UNIT = 2.0**-11
NAMES = ("float16", "float16_float32")
# The runner's limit is 64 outputs.
AT_ONCE = 32


@dataclass(frozen=True)
class Layer:
    """One convolution with what it reads, all of it in numbers that half has."""

    name: str
    op: Conv2d
    x: Array
    weight: Array
    bias: Array

    def case(self, schedule: object) -> KernelCase:
        """The layer alone, without activation."""
        constants = {"weight": self.weight, "bias": self.bias}
        return KernelCase(self.name, self.op, {"input0": to_c4(self.x)}, constants, schedule)

    def expected(self) -> NDArray[np.float64]:
        """The layer's output [N, O, H, W] in float64."""
        top, left, bottom, right = self.op.padding
        x = F.pad(torch.from_numpy(self.x).double(), (left, right, top, bottom))
        weight, bias = (torch.from_numpy(constant).double() for constant in (self.weight, self.bias))
        out = F.conv2d(x, weight, bias, self.op.stride, 0, self.op.dilation, self.op.groups)
        result: NDArray[np.float64] = out.numpy()
        return result


def layers_of(path: Path, x: Array) -> Iterator[Layer]:
    """The convolutions of an ONNX file on the activations that they meet for the input `x`."""
    model = onnx.load(path)
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    name = model.graph.input[0].name
    inside = sorted({node.input[0] for node in nodes} - {name})
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(tensor) for tensor in inside)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(inside, session.run(inside, {name: x}), strict=True)) | {name: x}
    for number, node in enumerate(nodes):
        settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight, source = half(weights[node.input[1]]), half(values[node.input[0]])
        op = Conv2d(
            *source.shape,
            out_channels=weight.shape[0],
            kernel=weight.shape[2:],
            stride=tuple(settings.get("strides", (1, 1))),
            padding=tuple(settings.get("pads", (0, 0, 0, 0))),
            dilation=tuple(settings.get("dilations", (1, 1))),
            groups=settings.get("group", 1),
        )
        bias = half(weights[node.input[2]]) if len(node.input) > 2 else np.zeros(weight.shape[0], np.float32)
        yield Layer(f"conv{number}", op, source, weight, bias)


def half(array: Array) -> Array:
    """`array`, rounded to half, as float32."""
    return array.astype(np.float16).astype(np.float32)


def error(arrived: Array, expected: NDArray[np.float64]) -> float:
    """Root mean square of the difference over that of what was expected, in units of half's rounding."""
    difference = arrived.astype(np.float64) - expected
    return float(np.sqrt((difference**2).mean() / (expected**2).mean()) / HALF_UNIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="googlenet")
    parser.add_argument("--target", default="adreno-640", help="whose schedules; they run on this machine")
    options = record_options(parser, Path("results/reference/compiler/half_errors"))
    gpu = gpu_by_name(options.target)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, quiet(), devices() as found:
        name, runner = next((name, runner) for name, runner in found if runner.info()[0].fp16)
        captured, shape = network_of(options.network, "dense")
        path = save_onnx(captured, Path(scratch) / "network.onnx")
        x, expected, _ = reference(path, shape)
        layers = list(layers_of(path, x))
        bundle = Path(scratch) / "network.clbundle"
        for start in range(0, len(layers), AT_ONCE):
            part = layers[start : start + AT_ONCE]
            errors = {}
            for precision in map(PRECISIONS.__getitem__, NAMES):
                cases = [layer.case(default_schedule(layer.op, gpu, precision)) for layer in part]
                write_kernel_bundle(bundle, cases, gpu, precision)
                outputs = runner.run(bundle, [np.zeros(4, np.float32)]).outputs
                errors[precision.name] = [
                    error(from_c4(output, layer.op.out_channels), layer.expected())
                    for layer, output in zip(part, outputs, strict=True)
                ]
            for number, layer in enumerate(part):
                rows.append(
                    {"layer": layer.name, "kernel": list(layer.op.kernel), "products": layer.op.reduction}
                    | {kind: round(errors[kind][number], 2) for kind in NAMES}
                )
                print(rows[-1], flush=True)
        whole: dict[str, Any] = {"layer": "whole network, largest error", "kernel": [], "products": ""}
        for kind in NAMES:
            compile_onnx(path, bundle, target="opencl-cpu", dtype=kind)
            whole[kind] = round(relative_error(runner.run(bundle, [x]).outputs, expected) / HALF_UNIT, 2)
        rows.append(whole)
    table = markdown_table(
        ["layer", "kernel", "products in a sum", *NAMES],
        (
            [row["layer"], "x".join(map(str, row["kernel"])), str(row["products"]), *(f"{row[k]:.2f}" for k in NAMES)]
            for row in rows
        ),
    )
    table += f"\n\nUnits of half's rounding, 2^-11; {name}."
    print(table)
    write_record(options.out, made_by=options.made_by, kind="host", rows=rows, table=table)


if __name__ == "__main__":
    main()
