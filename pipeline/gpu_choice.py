"""Which GPU a network is compiled for when the device it will run on is at hand."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from structadmm.errors import UserError

if TYPE_CHECKING:
    from device.target import Target

HOST_GPU = "opencl-cpu"


def choose_gpu(wanted: str, target: Target) -> str:
    """A name of `tvm_build.gpu.GPUS`.

    Args:
        wanted: such a name, or `auto` for what the device says it is. An Adreno that is not listed is compiled for as
            its nearest lower neighbour; bundles run on any GPU, chosen for another they are slower at the most.
        target: the open device.

    Raises:
        UserError: there is no such name, or the phone does not tell its GPU.
    """
    from tvm_build.gpu import GPUS, gpu_by_name

    if wanted != "auto":
        return gpu_by_name(wanted).name
    if target.kind == "host":
        return HOST_GPU
    told = str(target.facts().get("gpu", ""))
    match = re.search(r"adreno\D{0,8}(\d{3})", told, re.IGNORECASE)
    if match is None:
        raise UserError(f"{target.name} says that its GPU is {told[:60]!r}, expected an Adreno: name one with --target")
    models = sorted(int(name.removeprefix("adreno-")) for name, gpu in GPUS.items() if gpu.kind == "adreno")
    below = [model for model in models if model <= int(match[1])]
    return f"adreno-{below[-1] if below else models[0]}"
