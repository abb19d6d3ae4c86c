"""The page on the cost model says what its record says, and the model fed by counts behaves like the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from structadmm.files import read_json
from tvm_build.cost import estimate, estimate_counted
from tvm_build.emit import emit_opencl
from tvm_build.gpu import gpu_by_name
from tvm_build.kernels import build_kernel, default_schedule
from tvm_build.kernels.conv_tiling import ConvSchedule
from tvm_build.ops import Conv2d, Elementwise

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results/reference/compiler/cost_model/results.json"


def test_the_page_is_what_its_record_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Benchmarks are scripts: they import each other by file name.
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from cost_model_page import page  # type: ignore[import-not-found]

    record = read_json(RECORD, schema=1)
    assert record["kind"] == "predicted"
    assert (ROOT / "docs/cost-model.md").read_text() == page(record)


def test_the_accesses_of_an_emitted_kernel_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from adreno_quality import KERNEL, count  # type: ignore[import-not-found]

    op = Elementwise("add", 1, 8, 8, 8)
    source = emit_opencl(build_kernel(op, {}, gpu_by_name("adreno-640")).func).source
    ((name, parameters, body),) = KERNEL.findall(source)
    assert name == "elementwise_kernel"
    counted = count(parameters, body)
    assert (counted.loads, counted.bytes, counted.wide_bytes) == (2, 48, 48)


def test_a_kernel_known_by_its_counts_is_predicted_like_one_known_by_its_schedule() -> None:
    gpu = gpu_by_name("adreno-640")
    op = Conv2d(1, 64, 32, 32, 64, (3, 3), padding=(1, 1, 1, 1))
    cost = estimate(op, default_schedule(op, gpu), gpu)
    items = cost.work_items
    counted = estimate_counted(
        gpu,
        global_size=(items,),
        local_size=(gpu.wave,),
        flops=2 * op.macs,
        buffer_loads=cost.load_bytes / 16 / items,
        image_loads=cost.image_bytes / 16 / items,
        memory_bytes=cost.memory_bytes,
    )
    assert counted.predicted_us == pytest.approx(cost.predicted_us, rel=0.15)


def test_loads_of_single_numbers_are_what_a_kernel_waits_for() -> None:
    gpu = gpu_by_name("adreno-640")

    def predicted(loads: float) -> tuple[float, str]:
        cost = estimate_counted(
            gpu,
            global_size=(65536,),
            local_size=(256,),
            flops=2 * 65536 * 576,
            buffer_loads=loads,
            image_loads=0.0,
            memory_bytes=1 << 20,
        )
        return cost.predicted_us, cost.bound_by

    few, many = predicted(576 / 16), predicted(576 * 2)
    assert few[1] == "arithmetic"
    assert many[1] == "loads"
    assert many[0] > 5 * few[0]


@pytest.mark.parametrize("items", [1 << 20, 1 << 9])
def test_a_prediction_is_the_launch_the_longest_part_and_a_quarter_of_the_others(items: int) -> None:
    gpu = gpu_by_name("adreno-640")
    flops, loads, texels, memory_bytes = items * 400, 20.0, 30.0, items * 40
    cost = estimate_counted(
        gpu,
        global_size=(items,),
        local_size=(gpu.wave,),
        flops=flops,
        buffer_loads=loads,
        image_loads=texels,
        memory_bytes=memory_bytes,
    )
    fill = min(1.0, items / gpu.wave / (gpu.cores * gpu.latency_waves))
    assert (fill < 1) == (items == 1 << 9)
    # Microseconds; memory alone does not wait for waves.
    parts = [
        flops / (gpu.gflops_fp32 * gpu.efficiency * 1e3) / fill,
        loads * 16 * items / (gpu.l2_gb_s * 1e3) / fill,
        texels * 16 * items / (gpu.texture_gb_s * 1e3) / fill,
        memory_bytes / (gpu.dram_gb_s * 1e3),
    ]
    expected = gpu.launch_us + max(parts) + (sum(parts) - max(parts)) / 4
    assert cost.predicted_us == pytest.approx(expected, rel=1e-9)


def test_a_residual_is_one_more_tensor_to_read() -> None:
    gpu = gpu_by_name("adreno-640")
    op = Conv2d(1, 64, 32, 32, 64, (3, 3), padding=(1, 1, 1, 1))
    schedule = default_schedule(op, gpu)
    alone, joined = (estimate(each, schedule, gpu) for each in (op, replace(op, has_residual=True)))
    assert joined.memory_bytes - alone.memory_bytes == 4 * 64 * 32 * 32
    assert joined.predicted_us > alone.predicted_us


def test_loads_that_must_ask_whether_they_are_inside_cost_more() -> None:
    gpu = gpu_by_name("adreno-640")
    inner = Conv2d(1, 64, 34, 34, 64, (3, 3))
    padded = replace(inner, in_height=32, in_width=32, padding=(1, 1, 1, 1))  # the same work on fewer bytes
    inside, asking = (estimate(op, ConvSchedule(), gpu) for op in (inner, padded))
    assert (inside.load_bytes, inside.work_items) == (asking.load_bytes, asking.work_items)
    assert asking.predicted_us > inside.predicted_us
