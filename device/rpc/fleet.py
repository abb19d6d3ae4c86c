"""All servers of a tracker, as `structadmm rpc query` shows them and tuners choose among them."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from device.candidates import DeviceFacts
from device.rpc.address import Address
from device.rpc.tracker_client import RegisteredServer, TrackerClient, TrackerSummary
from structadmm.errors import UserError


@dataclass(frozen=True)
class FleetServer:
    """One server.

    Attributes:
        address: HOST:PORT where it listens.
        device: what its own machine calls the device; None for a TVM server that is not ours.
        facts: likewise.
        busy: whether a client holds it; None: it does not say.
        tried: candidates since its bridge started.
    """

    key: str
    address: str
    device: str | None
    facts: DeviceFacts | None
    busy: bool | None
    tried: int | None


@dataclass(frozen=True)
class Fleet:
    """What is registered with a tracker.

    Attributes:
        free: key -> servers that wait for a client.
        pending: key -> clients that wait for a server.
    """

    servers: tuple[FleetServer, ...]
    free: dict[str, int]
    pending: dict[str, int]

    def of_key(self, key: str) -> tuple[FleetServer, ...]:
        """The servers of one key."""
        return tuple(server for server in self.servers if server.key == key)


def query_fleet(tracker: Address) -> Fleet:
    """Ask a tracker for everything that it knows.

    Raises:
        TrackerError: there is none.
    """
    with TrackerClient(tracker) as client:
        return _fleet(client.summary())


def common_facts(fleet: Fleet, key: str, tracker: Address) -> DeviceFacts:
    """What all devices of a key have in common.

    Raises:
        UserError: there is none, one is no device server, or they differ in GPU or driver family.
    """
    servers = fleet.of_key(key)
    if not servers:
        keys = ", ".join(sorted({server.key for server in fleet.servers})) or "none"
        raise UserError(
            f"no device with key {key!r} at the tracker {tracker} (keys there: {keys}): "
            f"start one with `structadmm rpc serve --key {key}`"
        )
    known = [server.facts for server in servers if server.facts]
    if len(known) < len(servers):
        foreign = next(server.address for server in servers if not server.facts)
        raise UserError(f"{foreign} has key {key!r} and is no `structadmm rpc serve`: give ours a key of their own")
    kinds = sorted({facts.key for facts in known})
    if len(kinds) > 1:
        raise UserError(f"the devices of key {key!r} differ ({'; '.join(kinds)}): give each kind a key of its own")
    return known[0]


def _fleet(summary: TrackerSummary) -> Fleet:
    return Fleet(tuple(_server(server) for server in summary.servers), summary.free, summary.pending)


def _server(registered: RegisteredServer) -> FleetServer:
    about = registered.about
    try:
        facts = DeviceFacts.model_validate(about.get("facts"))
    except ValidationError:
        facts = None
    device, busy, tried = about.get("device"), about.get("busy"), about.get("tried")
    return FleetServer(
        key=_printable(registered.key),
        address=_printable(str(Address(registered.host, registered.port))),
        device=_printable(device) if isinstance(device, str) else None,
        facts=facts,
        busy=busy if isinstance(busy, bool) else None,
        tried=tried if isinstance(tried, int) else None,
    )


def _printable(text: str) -> str:
    """Anybody may register: nothing that a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
