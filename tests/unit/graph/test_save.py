from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from structadmm.errors import UserError
from structadmm.graph import GraphModule
from structadmm.graph.save import load_network, save_network
from tests.architectures import INPUT_SHAPE, build, captured


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_network(tmp_path / "net.v1", GraphModule(*captured("shufflenet_v2")))
    return tmp_path / "net.v1"


def test_a_saved_network_is_the_same_in_a_process_without_its_code(saved: Path) -> None:
    inputs = torch.randn(2, *INPUT_SHAPE[1:], generator=torch.Generator().manual_seed(0))
    expected = build("shufflenet_v2")(inputs)
    program = f"""
import sys, torch
from pathlib import Path
from structadmm.graph.save import load_network
module = load_network(Path({str(saved)!r}))
out = module(torch.randn(2, *{INPUT_SHAPE[1:]!r}, generator=torch.Generator().manual_seed(0)))
assert not [name for name in sys.modules if name.split(".")[0] in ("train", "tests")]
module.train()(torch.randn(4, *{INPUT_SHAPE[1:]!r})).sum().backward()
print(out.flatten().tolist())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    # The same operators on the same weights and machine.
    assert torch.allclose(torch.tensor(json.loads(result.stdout)), expected.detach().flatten(), atol=1e-6)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_truncated_and_changed_files_are_refused_in_one_line(saved: Path, suffix: str) -> None:
    path = saved.with_name(saved.name + suffix)
    original = path.read_bytes()
    rng = random.Random(0)
    for _ in range(15):
        damaged = bytearray(original)
        if rng.random() < 0.4:
            damaged = damaged[: rng.randrange(len(damaged))]
        else:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(UserError) as error:
            load_network(saved)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_an_absent_file_is_named(saved: Path, suffix: str) -> None:
    saved.with_name(saved.name + suffix).unlink()
    with pytest.raises(UserError, match=f"{saved.name}{suffix} does not exist"):
        load_network(saved)


def _rewrite(saved: Path, change: object) -> None:
    """Change the description and make its digest right again, as somebody with bad intentions would."""
    from structadmm.graph import save

    path = saved.with_name(saved.name + ".json")
    body = json.loads(path.read_text())
    body.pop("description_sha256")
    change(body)  # type: ignore[operator]
    body["description_sha256"] = save._digest(body)
    path.write_text(json.dumps(body))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body["nodes"][3].update(op="aten.from_file.default"), "aten.from_file"),
        (lambda body: body["nodes"][3].update(op="os.system"), "os.system"),
        (lambda body: body["nodes"][3].update(args=[{"node": "nobody"}]), "nobody"),
        (lambda body: body["nodes"][-1].update(args=[{"state": "nothing"}]), "nothing"),
        (lambda body: body["nodes"][0].update(shapes=[[2**39, 3, 2**20, 2**20]]), "fit together"),
        (lambda body: body["nodes"][0].update(shapes=[[1, 3, 32, 32]]), "says otherwise|fit together"),
        (lambda body: body["nodes"][1].update(args=[]), "fit together"),
        (lambda body: body.update(nodes=7), "malformed"),
        (lambda body: body.update(batch=-1), "batch"),
        (lambda body: body["outputs"].append("nobody"), "nobody"),
        (lambda body: body["state"].update({"..": body["state"]["0.0.weight"]}), "dotted"),
        (lambda body: body["state"].update({"forward": body["state"]["0.0.weight"]}), "forward"),
    ],
)
def test_a_description_with_right_digest_and_wrong_content_is_refused(
    saved: Path, change: object, message: str
) -> None:
    _rewrite(saved, change)
    with pytest.raises(UserError, match=message):
        load_network(saved)
