"""A command for a phone's shell, wrapped so that one stream carries its exit status and both of its outputs.

adb's first shell protocol, the only one that every release and `adb_shell` have, merges the two outputs and drops the
status. The wrapper sends the errors to a file, prints the status between markers that nobody can guess, and marks every
process that the command starts through its environment, so that all of them can be found and killed later.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

WORK_DIRECTORY = "/data/local/tmp/structadmm"
_ERRORS_MAX_BYTES = 1 << 20
_VARIABLE = "STRUCTADMM_RUN"


@dataclass(frozen=True)
class WrappedCommand:
    """One execution of a command line.

    Attributes:
        command: shell text, already quoted.
        token: marks this execution's output and processes.
    """

    command: str
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    def text(self) -> str:
        """What the phone's shell is given."""
        errors = f"{WORK_DIRECTORY}/.stderr-{self.token}"
        return (
            f"export {_VARIABLE}={self.token}; mkdir -p {WORK_DIRECTORY}; "
            f"( {self.command}\n) </dev/null 2>{errors}; s=$?; "
            f"printf '\\n{self.token}:%d:' $s; head -c {_ERRORS_MAX_BYTES} {errors}; rm -f {errors}; "
            f"printf '\\n{self.token}:end'"
        )

    def parse(self, output: bytes) -> tuple[int, bytes, bytes] | None:
        """Exit status, output and errors; None where the phone did not print all of it."""
        pattern = rb"(?s)(.*)\n%b:(\d{1,3}):(.*)\n%b:end\r?\n?" % (self.token.encode(), self.token.encode())
        match = re.fullmatch(pattern, output)
        return (int(match[2]), match[1], match[3]) if match else None


def reap_command(token: str) -> str:
    """Shell text that kills every process which an execution left on the phone, and prints how many it found.

    A phone's shell user sees the environment of its own processes only, so nothing else can be hit.
    """
    # Again until a pass finds nothing: a process may start another while the list is read.
    return (
        "n=0; for pass in 1 2 3 4 5; do m=$n; for p in /proc/[0-9]*; do "
        '[ -O "$p" ] && tr "\\0" "\\n" <"$p/environ" 2>/dev/null | grep -qx '
        f"{_VARIABLE}={token} && kill -9 ${{p#/proc/}} 2>/dev/null && n=$((n+1)); done; "
        "[ $m = $n ] && break; done 2>/dev/null; "
        f"rm -f {WORK_DIRECTORY}/.stderr-{token}; echo reaped $n"
    )
