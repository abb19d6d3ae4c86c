"""The command `structadmm`.

Exit status: 0 when everything asked for was done and verified, 2 for a mistake of the user's (one line says what to
do), 1 for anything else, 130 after Ctrl-C, 143 after a SIGTERM. Results go to standard output, progress and errors to
standard error.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import pipeline.bundle_commands
import pipeline.machine_commands
import pipeline.network_commands
import pipeline.rpc_commands
import pipeline.stage_commands
import pipeline.tune_commands
import structadmm
from structadmm.errors import StructadmmError, UserError
from structadmm.files import disk_problem

INTERRUPTED = 130
TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    name="structadmm",
    help="Prune a CNN with ADMM, compile it to OpenCL, and measure the speed-up on an Adreno GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"structadmm {structadmm.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the command; `--debug` is looked up where errors are shown."""
    del debug, version


pipeline.stage_commands.register(app)
pipeline.bundle_commands.register(app)
pipeline.machine_commands.register(app)
pipeline.network_commands.register(app)
pipeline.rpc_commands.register(app)
pipeline.tune_commands.register(app)


def main() -> None:
    """Run the command line and exit with its status. A SIGTERM unwinds it: phones and half-written files are tidied."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run_command_line(sys.argv[1:]))


def _terminate(number: int, frame: object) -> None:
    del frame
    signal.signal(number, signal.SIG_IGN)  # once is enough: what unwinds is not to be interrupted
    _fail("ended by SIGTERM", TERMINATED, debug=False)
    sys.exit(TERMINATED)


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command; every failure ends in one line on standard error.

    Returns:
        The exit status.
    """
    debug = "--debug" in _options_before_command(arguments)
    try:
        status = app(list(arguments), standalone_mode=False, prog_name="structadmm")
        sys.stdout.flush()
        if status == INTERRUPTED:  # typer has turned Ctrl-C into a status
            return _fail("interrupted", INTERRUPTED, debug)
        return status if isinstance(status, int) else 0
    except StructadmmError as error:
        return _fail(str(error), error.exit_status, debug)
    except typer.TyperException as error:
        message = error.format_message().strip()
        if not message or message.startswith("Usage:"):  # no command was given: the help has been printed
            return 2
        return _fail(f"{message} (see `structadmm --help`)", 2, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED, debug)
    except BrokenPipeError:
        # The reader of our output (a pager, `head`) has gone; the interpreter must not write to it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if (told := disk_problem(error)) is not None:
            return _fail(told, UserError.exit_status, debug)
        again = shlex.join(["structadmm", "--debug", *arguments])
        return _fail(f"unexpected {type(error).__name__}: {error}; `{again}` shows where", 1, debug)


def _options_before_command(arguments: Sequence[str]) -> list[str]:
    options: list[str] = []
    for argument in arguments:
        if not argument.startswith("-"):
            break
        options.append(argument)
    return options


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"structadmm: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
