"""Run an emulated phone by hand."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
from pathlib import Path

from device.local_target import choose_local_device, find_local_devices
from tests.emulated_phone import ALL_FEATURES, EmulatedPhone, ThermalModel


def _size(text: str) -> int:
    return int(text, 0)


def main() -> None:
    """Listen until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.emulated_phone", description=__doc__)
    parser.add_argument("--port", type=int, default=5555)
    parser.add_argument("--root", type=Path, required=True, help="directory that becomes the phone's /")
    parser.add_argument("--features", default="", help=f"comma-separated, of {','.join(ALL_FEATURES)}")
    parser.add_argument("--opencl", default="", metavar="PART", help="its GPU is this computer's `local:PART`")
    parser.add_argument("--no-auth", action="store_true", help="accept every host without a key")
    parser.add_argument("--refuse-keys", action="store_true", help="nobody taps Allow")
    parser.add_argument("--throttle", action="store_true", help="grow warm under load and lower the clock")
    parser.add_argument("--offline", action="store_true", help="accept connections and never answer")
    faults = ("drop_after_received", "drop_after_sent", "hang_after_received", "hang_after_sent", "disk_free_bytes")
    for name in faults:
        parser.add_argument("--" + name.replace("_", "-"), type=_size, metavar="BYTES")
    arguments = parser.parse_args()
    gpu = choose_local_device(arguments.opencl, find_local_devices())
    phone = EmulatedPhone(
        arguments.root,
        port=arguments.port,
        features=tuple(name for name in arguments.features.split(",") if name),
        requires_authorisation=not arguments.no_auth,
        environment={**gpu.driver.environment, "PATH": os.environ["PATH"]},
        thermal_model=ThermalModel() if arguments.throttle else None,
        answer=lambda _key: not arguments.refuse_keys,
    )
    phone.faults.offline = arguments.offline
    for name in faults:
        setattr(phone.faults, name, getattr(arguments, name))
    with phone:
        print(f"listening on {phone.serial}, / is {phone.files.root}, OpenCL of {gpu.name}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
