"""`python -m tests.rpc.stand_in FD` plays a bridge: it runs the code in STAND_IN with `frames` to its supervisor."""

from __future__ import annotations

import os
import socket
import sys

from device.rpc.frames import Frames

exec(os.environ["STAND_IN"], {"frames": Frames(socket.socket(fileno=int(sys.argv[1])), max_payload=0)})
