"""What can be made to go wrong, set by a test or from the command line while the phone runs."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass
class Faults:
    """Knobs for failures; a phone reads them at the moment they matter. Byte counts are of a connection's raw traffic.

    Those marked (once) clear themselves when they have struck, so that a second attempt can succeed; `struck` counts
    them by name.
    """

    drop_after_received: int | None = None
    """Reset the connection once this many more bytes have come from the host (once)."""
    drop_after_sent: int | None = None
    """Reset the connection once this many more bytes have gone to the host (once)."""
    hang_after_received: int | None = None
    """Stop reading after this many more bytes, and keep the connection open (once; that connection stays dead)."""
    hang_after_sent: int | None = None
    """Stop sending after this many more bytes, and keep the connection open (once; that connection stays dead)."""
    corrupt_push: bool = False
    """Flip one bit of the next pushed file's content on its way to the disk (once)."""
    disk_free_bytes: int | None = None
    """Free space of /data; None: whatever the host has."""
    disk_full_after_bytes: int | None = None
    """Fail a push with "No space left on device" after this many bytes of files, whatever `df` said (once)."""
    kill_program_after_bytes: int | None = None
    """Kill a program under /data/local/tmp with SIGKILL once it has printed this many bytes (once)."""
    stop_program_after_bytes: int | None = None
    """Stop (SIGSTOP) a program under /data/local/tmp once it has printed this many bytes (once): it hangs."""
    garbage_after_bytes: int | None = None
    """Put bytes that are no text into the output of a program under /data/local/tmp at this place (once)."""
    offline: bool = False
    """Accept connections and never answer."""
    refuse_connections: bool = False
    """Close connections at once, as adbd does while it starts."""
    struck: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def strike(self, name: str) -> None:
        """Record that a fault happened."""
        with self._lock:
            self.struck[name] = self.struck.get(name, 0) + 1

    def take_flag(self, name: str) -> bool:
        """Whether the one-time fault `name` is set; it is not any more after this."""
        with self._lock:
            if not getattr(self, name):
                return False
            setattr(self, name, False)
            self.struck[name] = self.struck.get(name, 0) + 1
            return True

    def count_down(self, name: str, amount: int) -> int | None:
        """Let `amount` bytes pass the counter `name`.

        Returns:
            None: they may all pass. Else how many of them pass before the fault strikes; the counter is cleared.
        """
        with self._lock:
            left = getattr(self, name)
            if left is None:
                return None
            if amount < left:
                setattr(self, name, left - amount)
                return None
            setattr(self, name, None)
            self.struck[name] = self.struck.get(name, 0) + 1
            return int(left)

    def any_for_programs(self) -> bool:
        """Whether a fault waits for a program to print something."""
        waiting = (self.kill_program_after_bytes, self.stop_program_after_bytes, self.garbage_after_bytes)
        return any(count is not None for count in waiting)

    def clear(self) -> None:
        """Back to a phone that works; what struck so far is forgotten too."""
        with self._lock:
            fresh = Faults()
            for name in self.__dataclass_fields__:
                setattr(self, name, getattr(fresh, name))
