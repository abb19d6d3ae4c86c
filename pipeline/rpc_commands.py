"""The commands for a fleet of devices: `rpc tracker`, `rpc serve`, `rpc query`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from device.rpc.address import DEFAULT_PORT, LOOPBACK, parse_address
from pipeline.toml_config import validate
from structadmm.errors import UserError

if TYPE_CHECKING:
    from device.rpc.fleet import Fleet

Tracker = Annotated[str, typer.Option("--tracker", metavar="HOST:PORT", help="The RPC tracker.")]
Host = Annotated[
    str, typer.Option("--host", help="Address to listen on; other than the loopback, read docs/rpc.md first.")
]

SCHEMA = 1


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    rpc = typer.Typer(no_args_is_help=True)
    rpc.callback(help="Share devices between tuning sessions, through TVM's RPC tracker.")(lambda: None)
    rpc.command()(tracker)
    rpc.command()(serve)
    rpc.command()(query)
    app.add_typer(rpc, name="rpc")


def tracker(
    *,
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = DEFAULT_PORT,
) -> None:
    """Run TVM's RPC tracker until interrupted. Standard output gets one line: where it listens."""
    from device.rpc.address import Address
    from device.rpc.tracker import run_tracker

    def ready(address: Address) -> None:
        print(f"RPC tracker at {address}", flush=True)
        _warn_of_strangers(host)

    run_tracker(host, port, ready)


def serve(
    *,
    tracker: Tracker = f"{LOOPBACK}:{DEFAULT_PORT}",
    key: Annotated[str, typer.Option("--key", help="What tuners ask for; one for each kind of GPU and driver.")],
    device: Annotated[str, typer.Option("--device", help="As `structadmm devices` lists them.")] = "local",
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 0,
    give_up_s: Annotated[
        float, typer.Option("--give-up-s", min=0, help="How long a device or tracker may stay away.")
    ] = 600.0,
    max_trial_s: Annotated[
        float, typer.Option("--max-trial-s", min=1, help="Largest time-out of a candidate that clients may ask for.")
    ] = 300.0,
) -> None:
    """Serve one device to tuning sessions until interrupted. Start one for each device."""
    from device.rpc.serve import serve as serve_device
    from device.rpc.serve_config import ServeConfig
    from pipeline.progress import console_reporter

    _warn_of_strangers(host)
    options = {
        "device": device,
        "tracker": tracker,
        "key": key,
        "host": host,
        "port": port,
        "give_up_s": give_up_s,
        "max_trial_s": max_trial_s,
    }
    config = validate(ServeConfig, options, "rpc serve")
    serve_device(config, console_reporter())


def query(
    *,
    tracker: Tracker = f"{LOOPBACK}:{DEFAULT_PORT}",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the devices that a tracker knows: keys, what they are, which are free."""
    from device.rpc.fleet import query_fleet

    fleet = query_fleet(parse_address(tracker))
    if as_json:
        servers = [
            {**asdict(server), "facts": server.facts.model_dump(mode="json") if server.facts else None}
            for server in fleet.servers
        ]
        keys = {key: {"free": fleet.free.get(key, 0), "pending": fleet.pending.get(key, 0)} for key in _keys(fleet)}
        typer.echo(json.dumps({"schema": SCHEMA, "servers": servers, "keys": keys}, indent=2))
        return
    if not fleet.servers:
        raise UserError(f"no device at the tracker {tracker}: start one with `structadmm rpc serve`")
    _print_fleet(fleet)


def _keys(fleet: Fleet) -> list[str]:
    """The tracker never forgets a key that was once asked for; these still mean something."""
    waited_for = {key for key, pending in fleet.pending.items() if pending}
    return sorted(waited_for | {server.key for server in fleet.servers})


def _print_fleet(fleet: Fleet) -> None:
    from pipeline.tables import print_table

    states = {True: "busy", False: "free", None: "unknown"}
    headings = ("key", "server", "device", "GPU", "driver", "state")
    print_table(
        (*headings, "tried"),
        (
            (
                server.key,
                server.address,
                server.device or "no structadmm server",
                server.facts.gpu if server.facts else "",
                f"{server.facts.driver_family} ({server.facts.driver})" if server.facts else "",
                states[server.busy],
                "" if server.tried is None else str(server.tried),
            )
            for server in fleet.servers
        ),
        left=len(headings),
    )
    for key in _keys(fleet):
        pending = fleet.pending.get(key, 0)
        if pending:
            typer.echo(f"{key}: {pending} clients wait for a device")


def _warn_of_strangers(host: str) -> None:
    from device.rpc.address import is_loopback

    if not is_loopback(host):
        typer.echo(
            f"listening on {host}: whoever reaches it may run OpenCL on the devices (docs/rpc.md says what that means)",
            err=True,
        )
