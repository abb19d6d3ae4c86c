"""Addresses and keys of the RPC tracker, as users write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from structadmm.errors import UserError

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 9190
"""TVM's own choice for trackers."""

# TVM's handshake splits the key at blanks, and its tracker splits off a random part after the last colon.
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Address:
    """Host and port of a TCP service."""

    host: str
    port: int

    def __str__(self) -> str:
        """As `parse_address` reads it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether it means every address of this machine, which is none that others could connect to."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def parse_address(text: str) -> Address:
    """Read `HOST:PORT`, `HOST` (TVM's default port) or `[IPV6]:PORT`.

    Raises:
        UserError: it is none of them.
    """
    matched = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:\[\]/]+))(?::(?P<port>[0-9]{1,5}))?", text)
    port = int(matched["port"] or DEFAULT_PORT) if matched else 0
    if not matched or not 1 <= port <= 65535 or not _can_be_looked_up(matched["host"] or ""):
        raise UserError(f"tracker {text!r}: expected HOST:PORT, such as {LOOPBACK}:{DEFAULT_PORT}")
    return Address(matched["six"] or matched["host"], port)


def _can_be_looked_up(name: str) -> bool:
    try:
        name.encode("idna")  # as `socket` does, to which `a..b` is an error of its own kind
    except UnicodeError:
        return False
    return True


def check_key(key: str) -> str:
    """Return `key` if devices can be registered under it.

    Raises:
        UserError: it is empty, too long, or holds other than letters, digits, dot, dash and underscore.
    """
    if not _KEY.fullmatch(key):
        raise UserError(f"key {key!r}: expected 1 to 64 letters, digits, dots, dashes or underscores, as in adreno-640")
    return key
