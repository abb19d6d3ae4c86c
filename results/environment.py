"""What a result was made with: versions, machine, device, commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structadmm
from structadmm.files import read_json
from structadmm.source import describe_machine, source_commit
from train.config import CHECKSUMMED


def describe_environment(records: Mapping[str, dict[str, Any]], run_dir: Path) -> dict[str, Any]:
    """Versions as the stages recorded them, the machine, and the device's own facts.

    Training may have been done elsewhere, and long before: what made the weights is told apart.

    Args:
        records: the stages' records by stage.
        run_dir: whose bundles' manifests say which compiler made them.
    """
    manifest = read_json(run_dir / "build" / "pruned.clbundle" / "manifest.json", schema=1)
    train = records["train"]
    loaded = train["data"].get("config", {})
    versions = {**records["export"]["versions"], **manifest["versions"]}
    session, state = records["measure"]["opencl"], records["measure"]["environment"]
    device_fields = ("name", "vendor", "platform", "driver", "version", "type", "compute_units", "clock_mhz", "fp16")
    return {
        "structadmm": structadmm.__version__,
        "commit": source_commit(),
        "versions": dict(sorted(versions.items())),
        "machine": describe_machine(),
        "training": {"versions": dict(sorted(train["versions"].items())), **train.get("made_by", {})},
        "device": {
            "option": records["measure"]["device"],
            "kernels_for": records["measure"].get("built_for", []),
            **{field: session[field] for field in device_fields},
        },
        "state": {name: state[name] for name in ("before", "after", "fixed_performance_mode")},
        **({"tuned": tuned} if (tuned := tuned_networks(records["build"])) else {}),
        "model": train["model"],
        "data": {
            **{field: train["data"][field] for field in ("name", "train_images", "test_images")},
            # Whether the files are the published ones, byte for byte; None where nobody has published any.
            "verified": loaded.get("verify") if loaded.get("name") in CHECKSUMMED else None,
        },
        "seed": train["seed"],
    }


def tuned_networks(build: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each network that was compiled with a tuning database, what `build.json` says of that."""
    return {name: network["tuned"] for name, network in build["networks"].items() if network.get("tuned")}
