"""A phone that is not there: an adb daemon over TCP, accepted by Google's adb and by this project's `AdbTarget`.

    python -m tests.emulated_phone --port 5555 --root DIR      # then: adb connect 127.0.0.1:5555

What is real: the transport protocol (handshake, RSA authorisation, streams with flow control, checksums by version),
`shell:`, `exec:`, shell v2, `sync:` v1 with the v2 requests for stat and list, and the programs, which run on this
computer.

What is not: the shell is this computer's `/bin/sh` with its tools in place of mksh and toybox; paths are mapped by
rewriting commands (see `PathRewriter`), so a path put together at run time is missed; properties, battery and GPU files
are made up (an Adreno 640's); `shell:` uses pipes where adbd uses a raw pseudo-terminal. There is no USB, no TLS
pairing, no file ownership, no SELinux.
"""

from tests.emulated_phone.faults import Faults
from tests.emulated_phone.phone import ALL_FEATURES, EmulatedPhone
from tests.emulated_phone.thermal import ThermalModel

__all__ = ["ALL_FEATURES", "EmulatedPhone", "Faults", "ThermalModel"]
