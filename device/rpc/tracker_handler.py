"""TVM's handler of a tracker, but for what ends its service to everybody. Imported once TVM's runtime is loaded."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import Any

from tvm.rpc.tracker import TCPEventHandler, TrackerServerHandler

_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S = 0.2


class TrackerHandler(TrackerServerHandler):  # type: ignore[misc]  # TVM has no types
    """Tracks servers and gives them to clients; `run` serves until the process ends.

    Args:
        listener: a listening socket.
        stop_key: whoever knows it may end the tracker.
    """

    _sock: socket.socket

    def _on_event(self, _: int) -> None:
        # TVM's goes on accepting after every error but "nobody is there": without end, where no descriptor is left.
        while True:
            try:
                connection, address = self._sock.accept()
            except OSError as error:
                if error.errno in _FULL:
                    self._accept_later()
                return
            TCPEventHandler(self, connection, address)

    def _accept_later(self) -> None:
        """Who knocks now stays ready to be accepted; look again when somebody may have left."""
        number = self._sock.fileno()
        self._ioloop.remove_handler(number)
        self._ioloop.call_later(
            _PAUSE_S, self._ioloop.add_handler, number, lambda _, events: self._on_event(events), self._ioloop.READ
        )

    def summary(self) -> Any:
        """What is registered, and who waits."""
        # One connection whose key is no text would turn every answer into an error.
        for connection in list(self._connections):
            if not isinstance(connection.summary().get("key", ""), str):
                with suppress(Exception):  # TVM's forgets what it offered, and fails where that was never so
                    connection.close()
                self._connections.discard(connection)
        return super().summary()
