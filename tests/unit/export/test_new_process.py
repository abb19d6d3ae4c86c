from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from export.export_network import export_network
from tests.architectures import INPUT_SHAPE, build

# What somebody does who has the two files, torch and this package: no code of the model, no training code.
PROGRAM = """
import json, sys
from pathlib import Path

import torch

import export

folder, shape = Path(sys.argv[1]), json.loads(sys.argv[2])
network = export.load_network(folder / "shrunk")
inputs = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
before = network(inputs).detach()
optimizer = torch.optim.SGD(network.train().parameters(), lr=0.1)
network(inputs).square().mean().backward()
optimizer.step()
trained = network.eval()(inputs).detach()
export.save_network(folder / "trained", network)
again = export.load_network(folder / "trained")(inputs).detach()
assert not [name for name in sys.modules if name.split(".")[0] in ("train", "tests", "tvm_build", "onnx")]

from export.export_network import export_network

record = export_network(network, inputs[:1], folder / "out")
assert not [name for name in sys.modules if name.split(".")[0] in ("train", "tests", "tvm_build")]
print(json.dumps({
    "before": before.flatten().tolist(), "changed": bool((trained != before).any()),
    "kept": torch.equal(trained, again),
    "checks": record["checks"], "ratio": record["params"]["ratio"],
}))
"""


def test_a_shrunk_network_is_loaded_trained_saved_and_exported_where_its_code_is_not(tmp_path: Path) -> None:
    model = build("resnet18")
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight[:, : layer.weight.shape[1] // 2] = 0
    export_network(model, torch.zeros(INPUT_SHAPE), tmp_path)
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(INPUT_SHAPE[1:])]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    inputs = torch.randn(4, *INPUT_SHAPE[1:], generator=torch.Generator().manual_seed(0))
    # float32: the same sums in another order.
    assert torch.allclose(torch.tensor(found["before"]), model(inputs).detach().flatten(), atol=1e-5)
    assert found["changed"] and found["kept"]
    assert found["checks"]["shrunk_vs_onnx"] < 1e-4 and found["ratio"] == 1.0
