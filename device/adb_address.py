"""`adb:SERIAL`, `adb:HOST:PORT` and `adb:` taken apart, strictly: they end up in messages and file names."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from structadmm.errors import UserError

_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*\.?")


@dataclass(frozen=True)
class AdbAddress:
    """Where a phone is: a TCP port of a host, or USB with a serial (None: the only phone there is)."""

    host: str | None = None
    port: int | None = None
    serial: str | None = None

    def __str__(self) -> str:
        if self.host is not None:
            host = f"[{self.host}]" if ":" in self.host else self.host
            return f"adb:{host}:{self.port}"
        return f"adb:{self.serial or ''}"


def parse_adb_address(text: str) -> AdbAddress:
    """Read what follows `--device`.

    Args:
        text: `adb:` (the only phone on USB), `adb:SERIAL`, `adb:HOST:PORT` or `adb:[IPV6]:PORT`.

    Raises:
        UserError: it is none of these.
    """
    scheme, colon, rest = text.partition(":")
    if scheme == "adb" and colon:
        if not rest:
            return AdbAddress()
        host, separator, port = rest.rpartition(":")
        if not separator and _SERIAL.fullmatch(rest):
            return AdbAddress(serial=rest)
        if separator and _is_port(port):
            if host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1]):
                return AdbAddress(host=host[1:-1], port=int(port))
            if _HOST.fullmatch(host):
                return AdbAddress(host=host, port=int(port))
    raise UserError(f"expected adb:SERIAL, adb:HOST:PORT or adb:[IPV6]:PORT, got {text!r}: see structadmm devices")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
