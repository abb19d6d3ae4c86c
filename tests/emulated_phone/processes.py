"""Which processes of this computer are programs of the phone, found in `/proc`."""

from __future__ import annotations

from pathlib import Path


def _session_of(pid_directory: Path) -> int:
    # Field 6 of /proc/PID/stat; the name in parentheses before it may hold blanks.
    return int((pid_directory / "stat").read_text().rpartition(")")[2].split()[3])


def programs_of_session(session: int, below: Path) -> list[int]:
    """Processes of a session whose executable, or script under a shell, lies below a directory."""
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            if _session_of(directory) != session:
                continue
            arguments = (directory / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended while we looked
        prefix = str(below).encode() + b"/"
        is_script = len(arguments) > 1 and arguments[0].endswith(b"sh") and arguments[1].startswith(prefix)
        if arguments[0].startswith(prefix) or is_script:
            found.append(int(directory.name))
    return found
