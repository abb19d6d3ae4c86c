"""docs/cost-model.md as text, from the record that `cost_model_check.py` writes: no figure is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from results.markdown import markdown_table

_NAMES = {
    "mobilenet_v1": "MobileNetV1", "mobilenet_v2": "MobileNetV2", "resnet18": "ResNet-18", "alexnet": "AlexNet",
    "resnet50": "ResNet-50", "vgg16": "VGG-16",
}  # fmt: skip


def ratios(record: Mapping[str, Any], dtype: str) -> list[float]:
    """Predicted over published, for each published latency."""
    return [
        row["predicted_ms"][dtype] / published for row in record["rows"] for published in row["published_ms"].values()
    ]


def summary_table(record: Mapping[str, Any]) -> str:
    """Each published latency beside the prediction."""

    def cells() -> Iterator[list[str]]:
        for row in record["rows"]:
            for engine, published in row["published_ms"].items():
                both = [row["predicted_ms"][dtype] for dtype in ("float32", "float16")]
                yield [
                    _NAMES[row["network"]], f"{row['million_macs']:.0f}", str(row["launches"]), engine,
                    f"{published:.2f}", *(f"{value:.2f}" for value in both),
                    *(f"{value / published:.2f}" for value in both),
                ]  # fmt: skip

    heads = ["network", "million MACs", "our launches", "published by", "published ms", "predicted ms, float32",
             "float16", "predicted / published, float32", "float16"]  # fmt: skip
    return markdown_table(heads, cells())


def verdict(record: Mapping[str, Any], dtype: str) -> str:
    """One sentence on how far off the predictions of a number type are."""
    found = ratios(record, dtype)
    middle = math.exp(sum(map(math.log, found)) / len(found))
    allowed = record["uncertainty"]
    within = sum(1 / allowed <= ratio <= allowed for ratio in found)
    return (
        f"In {dtype} the predictions are {min(found):.2f} to {max(found):.2f} times the published latencies, "
        f"{middle:.2f} in the geometric mean; {within} of {len(found)} are within the factor of {allowed:g} that every "
        "prediction is printed with."
    )


def page(record: Mapping[str, Any]) -> str:
    """The page."""
    ours, theirs = record["counted"]

    def bound(kernels: Mapping[str, Any]) -> str:
        return ", ".join(f"{count} by {what}" for what, count in sorted(kernels["bound_by"].items()))

    kernels = markdown_table(
        ["kernels", "launches", "predicted ms", "of it launch overhead", "bound"],
        (
            [name, str(row["launches"]), f"{row['counted_ms']:.2f}", f"{row['launch_ms']:.2f}", bound(row)]
            for name, row in (("ours", ours), ("TVM's own, on buffers", theirs))
        ),
    )
    off = ours["counted_ms"] / ours["from_schedules_ms"]
    return f"""# How far to trust the cost model

Every figure on this page is **predicted** by `tvm_build/cost.py` for the {record["target"]}, or published by others;
none was measured by this project. The page is written by `benchmarks/cost_model_check.py` from
`results/reference/compiler/cost_model/results.json`.

## Against latencies that others have published

Batch 1, 224x224, on an Adreno 640. The published figures are those of two other engines with kernels of their own, at
their default precision, so they check the model's scale, not its details: an engine may be faster or slower than ours
will be on the same phone.

{summary_table(record)}

{verdict(record, "float32")}

{verdict(record, "float16")}

Where two engines publish the same network, they differ by a factor of their own. What the model can be used
for is therefore the choice between schedules of one kernel, and the order of magnitude of a network; for a decision
about a product, measure on the phone.

## The same model, fed with our kernels and with TVM's

For CIFAR ResNet-18 in float32, loads from buffers and images are counted in the emitted OpenCL of each kernel, times
the turns of the loops around them, and given to the same equations. A load of one number takes the slot of a load of
four. Stores, constant memory and registers are left out for both.

{kernels}

Predicted for the {record["target"]}: ours {theirs["counted_ms"] / ours["counted_ms"]:.1f} times faster. Counted this
way, our network is predicted at {off:.2f} times what the compiler predicts from its schedules
({ours["from_schedules_ms"]:.2f} ms), which checks the counting of one against the other.
"""
