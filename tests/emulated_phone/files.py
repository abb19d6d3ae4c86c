"""The phone's file system: a directory of this computer that holds what an adb shell can see of a phone.

Only `/data/local/tmp`, `/sdcard` and the files that this project reads exist. Paths are mapped one to one below the
root directory. It keeps honest programs inside; it is no security boundary.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shutil
import stat
import threading
from pathlib import Path

from tests.emulated_phone.faults import Faults

MAPPED = ("data", "sdcard", "storage", "sys", "system", "vendor", "odm", "product")
"""Top-level directories of the phone. `/dev`, `/proc` and `/` stay this computer's."""

# What toybox offers on Android 10 and later, as far as this computer has it; GNU's behaviour stands in for toybox's,
# but where `_TOOLS` has one that knows less.
_TOYBOX = (
    "[ base64 basename cat chmod cksum cmp cp cut date dd dirname du echo env expr false grep head id kill ln ls "
    "md5sum mkdir mkfifo mktemp mv nice nohup nproc od paste printf ps pwd readlink realpath rm rmdir seq setsid "
    "sh sha1sum sha256sum sleep sort split stat sync tail tee test time timeout touch tr true tty uniq uptime wc "
    "which xargs yes"
)

_WRITABLE = ("/data", "/sdcard", "/storage")

_PROPERTIES = {
    "ro.build.fingerprint": "structadmm/emulated/emulated:13/EMUL.230101.001/1:user/release-keys",
    "ro.build.version.release": "13",
    "ro.build.version.sdk": "33",
    "ro.product.manufacturer": "structadmm",
    "ro.product.model": "Emulated Phone",
    "ro.product.name": "emulated",
    "ro.product.device": "emulated",
    "ro.board.platform": "msmnile",
    "ro.soc.manufacturer": "QTI",
    "ro.soc.model": "SM8150",
    "ro.hardware": "qcom",
    # Programs on this phone run on the computer that emulates it, so they must be built for that computer.
    "ro.structadmm.emulated": "1",
}

_TOOLS = {
    "getprop": r"""#!/bin/sh
properties="${0%/bin/*}/build.prop"
if [ $# -eq 0 ]; then
    exec sed 's/^\([^=]*\)=\(.*\)$/[\1]: [\2]/' "$properties"
fi
while IFS= read -r line; do
    if [ "${line%%=*}" = "$1" ]; then printf '%s\n' "${line#*=}"; exit 0; fi
done < "$properties"
printf '%s\n' "$2"
""",
    "dumpsys": r"""#!/bin/sh
service="${0%/bin/*}/etc/dumpsys/$1"
if [ -f "$service" ]; then exec cat "$service"; fi
echo "Can't find service: $1"
""",
    "cmd": r"""#!/bin/sh
state="${0%/bin/*}/etc/power_mode"
if [ "$1 $2" = "power set-fixed-performance-mode-enabled" ]; then
    case "$3" in
        true|false) printf '%s\n' "$3" > "$state"; exit 0;;
        *) echo "Error: Invalid boolean: $3"; exit 255;;
    esac
fi
echo "cmd: Can't find service: $1" >&2
exit 20
""",
    "df": r"""#!/bin/sh
echo "Filesystem     1K-blocks      Used Available Use% Mounted on"
if [ -n "$EMULATED_FREE_KIB" ]; then
    echo "/dev/block/dm-6 $((EMULATED_FREE_KIB + 1048576)) 1048576 $EMULATED_FREE_KIB 50% /data"
else
    PATH=/usr/bin:/bin df -Pk "${0%/bin/*}" | tail -n 1 | sed 's,[^ ]*$,/data,'
fi
""",
    "uname": r"""#!/bin/sh
if [ "$1" = -m ]; then PATH=/usr/bin:/bin exec uname -m; fi
if [ "$1" = -r ]; then echo 4.14.180-emulated; exit 0; fi
if [ $# -eq 0 ]; then echo Linux; exit 0; fi
echo "Linux localhost 4.14.180-emulated #1 SMP PREEMPT $(PATH=/usr/bin:/bin uname -m)"
""",
    # bionic's regular expressions know none of GNU's `\|`, `\+`, `\?`, and toybox's find counted days only at first.
    "sed": r"""#!/bin/sh
PATH=/usr/bin:/bin exec sed --posix "$@"
""",
    "find": r"""#!/bin/sh
for word; do
    case "$word" in -mmin|-amin|-cmin|-empty|-delete) echo "find: bad arg '$word'" >&2; exit 1;; esac
done
PATH=/usr/bin:/bin exec find "$@"
""",
    "reboot": r"""#!/bin/sh
echo "reboot: permission denied" >&2
exit 1
""",
}

_SYSFS = {
    "class/kgsl/kgsl-3d0/gpu_model": "Adreno640v2",
    "class/kgsl/kgsl-3d0/gpuclk": "585000000",
    "class/kgsl/kgsl-3d0/max_gpuclk": "585000000",
    "class/kgsl/kgsl-3d0/devfreq/cur_freq": "585000000",
    "class/kgsl/kgsl-3d0/devfreq/max_freq": "585000000",
    "class/kgsl/kgsl-3d0/devfreq/governor": "msm-adreno-tz",
    "class/kgsl/kgsl-3d0/devfreq/available_frequencies": "585000000 499200000 427000000 345000000 257000000",
    "class/kgsl/kgsl-3d0/gpu_busy_percentage": "0 %",
    "class/kgsl/kgsl-3d0/temp": "31000",
    "class/thermal/thermal_zone0/type": "gpu-usr",
    "class/thermal/thermal_zone0/temp": "31000",
    "class/thermal/thermal_zone1/type": "battery",
    "class/thermal/thermal_zone1/temp": "29000",
}

_BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  status: 2
  health: 2
  present: true
  level: 87
  scale: 100
  voltage: 4183
  temperature: 290
  technology: Li-ion
"""


class PhoneFiles:
    """The directory tree of one phone.

    Args:
        root: where `/` of the phone lies; created and filled where files are missing.
        faults: `disk_free_bytes` and `disk_full_after_bytes` are honoured by `spend`.
    """

    def __init__(self, root: Path, faults: Faults) -> None:
        self.root = root.resolve()
        if not re.fullmatch(r"[A-Za-z0-9_./-]+", str(self.root)):
            # Commands are rewritten as text (see `PathRewriter`); a root that needs quoting could not be put into them.
            raise ValueError(f"{self.root} holds characters that a shell interprets: choose another directory")
        self._faults = faults
        self._lock = threading.Lock()
        self._populate()

    def host_path(self, path: str) -> Path:
        """Where a path of the phone lies on this computer."""
        return self.root / posixpath.normpath("/" + path).lstrip("/")

    def writable_path(self, path: str) -> Path:
        """The same for a file that is going to be written.

        Raises:
            OSError: the place is read-only to an adb shell.
        """
        clean = posixpath.normpath("/" + path.lstrip("/"))
        if not clean.startswith(tuple(f"{top}/" for top in _WRITABLE)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if clean.startswith("/data/") and not clean.startswith("/data/local/tmp/"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return self.host_path(clean)

    def spend(self, size: int) -> None:
        """Take `size` bytes of free space.

        Raises:
            OSError: ENOSPC.
        """
        if self._faults.count_down("disk_full_after_bytes", size) is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self._lock:
            if self._faults.disk_free_bytes is None:
                return
            if size > self._faults.disk_free_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._faults.disk_free_bytes -= size

    def write_sysfs(self, name: str, value: str) -> None:
        """Replace one file below `/sys`, whole, so that a reader never sees it empty."""
        target = self.root / "sys" / name
        temporary = target.with_name(f".{target.name}.new")
        temporary.write_text(f"{value}\n")
        temporary.replace(target)

    def _populate(self) -> None:
        for directory in ("data/local/tmp", "data/misc/adb", "sdcard", "system/bin", "system/etc/dumpsys"):
            (self.root / directory).mkdir(parents=True, exist_ok=True)
        for name in _TOYBOX.split():
            program, link = shutil.which(name), self.root / "system/bin" / name
            if program and not link.is_symlink():
                link.symlink_to(program)
        for name, text in _TOOLS.items():
            tool = self.root / "system/bin" / name
            tool.write_text(text)
            tool.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
        properties = _PROPERTIES | {"ro.product.cpu.abi": _host_abi()}
        (self.root / "system/build.prop").write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        (self.root / "system/etc/dumpsys/battery").write_text(_BATTERY)
        (self.root / "system/etc/power_mode").write_text("false\n")
        for name, value in _SYSFS.items():
            (self.root / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
            self.write_sysfs(name, value)


def _host_abi() -> str:
    return {"aarch64": "arm64-v8a"}.get(os.uname().machine, os.uname().machine)


class PathRewriter:
    """Turns the phone's absolute paths into this computer's in commands, and back in what programs print.

    A path is recognised where it begins a word (after a blank, a quote, `=`, `:`, `<`, `>`, `;`, `(`, `|`, `&`), so a
    command that puts a path together from pieces is not understood. On the way back every occurrence of the root is
    removed.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._pattern = re.compile(rf"(?<![\w./~*?%+@-])/(?=(?:{'|'.join(MAPPED)})(?:$|[^\w.-]))")

    def to_host(self, command: str) -> str:
        """Rewrite a command line."""
        return self._pattern.sub(lambda _: self._root + "/", command)

    def from_host(self) -> OutputRewriter:
        """A rewriter for one stream of output."""
        return OutputRewriter(self._root.encode())


class OutputRewriter:
    """Removes the root's path from a stream of bytes, wherever the stream is cut into blocks."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._held = b""

    def feed(self, block: bytes) -> bytes:
        """Rewrite a block; a tail that may be the start of the root is held back."""
        data = (self._held + block).replace(self._root, b"")
        for length in range(min(len(self._root) - 1, len(data)), 0, -1):
            if data.endswith(self._root[:length]):
                self._held = data[-length:]
                return data[:-length]
        self._held = b""
        return data

    def flush(self) -> bytes:
        """What was held back, at the end of the stream."""
        held, self._held = self._held, b""
        return held
