"""Seconds that shrinking, exporting and verifying a pruned ImageNet ResNet-50 take on this machine.

    python benchmarks/export_resnet50.py

Half of every coupled group and a quarter of the columns are zero. The targets are 10 s for shrinking and 60 s for ONNX
export and verification, on two cores.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import torch

from export.export_network import export_network
from export.fixed_point import shrink_fully
from structadmm.graph import capture, find_coupling
from train.models import build_model


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))  # waiting threads cost time on a busy machine
    torch.manual_seed(0)
    model = build_model("resnet50", {}).eval()
    example = torch.zeros(1, 3, 224, 224)
    start, start_cpu = time.perf_counter(), time.process_time()
    graph, state = capture(model, (example,))
    with torch.no_grad():
        for group in find_coupling(graph).groups:
            for part in group.producers + group.affine if group.frozen is None else ():
                indices = torch.from_numpy(part.indices[: group.units // 2].reshape(-1))
                state[part.parameter].index_fill_(part.axis, indices, 0)
        for tensor in state.values():
            if tensor.ndim == 4:
                tensor.mul_(torch.rand(1, *tensor.shape[1:]) >= 0.25)
    zeroed, zeroed_cpu = time.perf_counter(), time.process_time()
    shrink_fully(graph, state)
    shrunk, shrunk_cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        record = export_network(model, example, Path(directory))
    done, done_cpu = time.perf_counter(), time.process_time()
    for name, wall_s, cpu_s in (
        ("trace and zero", zeroed - start, zeroed_cpu - start_cpu),
        ("shrink", shrunk - zeroed, shrunk_cpu - zeroed_cpu),
        ("trace, shrink, export and verify", done - shrunk, done_cpu - shrunk_cpu),
    ):
        print(f"{name}: {wall_s:.1f} s, {cpu_s:.1f} s of processor time")
    print(f"{record['macs']['ratio']:.2f}x fewer MACs, checks {record['checks']}")


if __name__ == "__main__":
    main()
