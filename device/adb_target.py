"""A phone as a target: `AdbTarget`, over USB or TCP.

Nothing that a phone says is believed without a check: names are matched against what was asked for, reads are bounded,
files count as arrived only when SHA-256 agrees on both sides. Nothing half-written has a final name: files are sent to
a temporary name beside their place and renamed.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from device.adb_address import AdbAddress, parse_adb_address
from device.adb_command import WORK_DIRECTORY, WrappedCommand, reap_command
from device.adb_connection import (
    IO_TIMEOUT_S,
    AdbConnection,
    DeadlineError,
    LinkError,
    NotAuthorisedError,
    RefusedError,
    TcpTransport,
)
from device.adb_keys import load_signer
from device.adb_sync import SyncError, sync_session
from device.android.audit import MINIMUM_API_LEVEL
from device.errors import DeviceError, TargetOfflineError, TargetRefusedError, TargetTimeoutError
from device.phone_facts import (
    IDENTITY_COMMAND,
    STATE_COMMAND,
    STATE_FILES_COMMAND,
    PhoneIdentity,
    PhoneState,
    parse_identity,
    parse_state,
    parse_state_files,
)
from device.target import ShellResult, StateFile
from structadmm.errors import StructadmmError, UserError
from structadmm.files import atomic_path, sha256_file
from structadmm.progress import Reporter, SilentReporter

T = TypeVar("T")

LIBRARY_PATH_VARIABLE = "STRUCTADMM_LD_LIBRARY_PATH"

_ATTEMPTS = 3
_STORE = f"{WORK_DIRECTORY}/store"
_SESSIONS = f"{WORK_DIRECTORY}/sessions"
_PROGRAMS = f"{WORK_DIRECTORY}/programs"
# What no session has used for a week; `push` marks what it finds or brings as used. Binaries that the driver built are
# not marked: they live a month, and are built again if need be. Old phones' find knows whole days only.
_FORGET_OLD = (
    f"find {_STORE} {_SESSIONS} -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf '{{}}' ';' 2>/dev/null; "
    f"find {_PROGRAMS} -type f -mtime +30 -exec rm -f '{{}}' ';' 2>/dev/null; "
    f"find {WORK_DIRECTORY} -maxdepth 1 -name '.stderr-*' -mtime +7 -exec rm -f '{{}}' ';' 2>/dev/null; true"
)
_SPACE_MARGIN_BYTES = 16 << 20
_OUTPUT_MAX_BYTES = 64 << 20
_PULL_MAX_BYTES = 4 << 30
_HASH_BYTES_PER_S = 20e6  # a slow phone's sha256sum; only bounds how long we wait
_SAFE_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9_.+-]{0,254}")


class TargetUnauthorisedError(TargetOfflineError):
    """The phone is there but has not allowed this computer."""


class AdbTarget:
    """A phone reached by adb. Connects at first use, and again whenever the connection broke.

    One thread at a time uses it (calls wait for each other); several targets, also of one phone, do not disturb each
    other.

    Args:
        address: where the phone is.
        reporter: is told when the phone asks for permission and when a connection had to be made again.
        key: private adb key; None: the user's (see `adb_keys.key_path`).
        connect_timeout_s: how long a phone may take to answer at first.
        allow_s: how long to wait for a person to allow this computer on the phone.
        io_timeout_s: how long a phone may be silent in the middle of a transfer.
        command_timeout_s: how long our own short commands (`mkdir`, `df`) may take.
        library_path: directories where the phone's linker shall look first, such as `/vendor/lib64`, for a vendor's
            OpenCL whose own libraries it does not find.
    """

    def __init__(
        self,
        address: AdbAddress,
        *,
        reporter: Reporter | None = None,
        key: Path | None = None,
        connect_timeout_s: float = 10.0,
        allow_s: float = 60.0,
        io_timeout_s: float = IO_TIMEOUT_S,
        command_timeout_s: float = 30.0,
        library_path: str = "",
    ) -> None:
        self.address = address
        self._reporter = reporter or SilentReporter()
        self._key = key
        self._connect_timeout_s = connect_timeout_s
        self._allow_s = allow_s
        self._io_timeout_s = io_timeout_s
        self._command_timeout_s = command_timeout_s
        self._library_path = library_path
        self._connection: AdbConnection | None = None
        self._seen = False
        self._signer: Any = None
        self._lock = threading.RLock()
        self._identity: PhoneIdentity | None = None
        self._session_directory: str | None = None
        self._left_commands: list[str] = []
        self._left_files: list[str] = []

    def __enter__(self) -> AdbTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What `--device` called it."""
        return str(self.address)

    @property
    def kind(self) -> Literal["host", "phone"]:
        """`phone`, except for an emulated one: its programs run on the computer that emulates it."""
        return "host" if self.identity().emulated else "phone"

    @property
    def abi(self) -> str:
        """Which runner the phone needs."""
        identity = self.identity()
        if identity.emulated:
            return "host"
        if identity.sdk is not None and identity.sdk < MINIMUM_API_LEVEL:
            raise DeviceError(
                f"{self.name} runs Android {identity.android or '?'} (API level {identity.sdk}), expected 8.0 "
                f"({MINIMUM_API_LEVEL}) or later: take a newer phone"
            )
        if identity.abi is None:
            raise DeviceError(f"{self.name} does not say what its processor is (ro.product.cpu.abi): is this Android?")
        return identity.abi

    @property
    def runner_options(self) -> Sequence[str]:
        """None: a phone has one OpenCL device."""
        return ()

    @property
    def no_opencl_remedy(self) -> str:
        """A vendor's driver may need libraries that only its own processes find."""
        return "" if self._library_path else f"try {LIBRARY_PATH_VARIABLE}=/vendor/lib64"

    @property
    def program_cache(self) -> str:
        """Where the runner keeps program binaries; they stay from session to session."""
        return _PROGRAMS

    def workdir(self) -> str:
        """A directory for what this session writes on the phone; `close` removes it."""
        if self._session_directory is None:
            directory = f"{_SESSIONS}/{secrets.token_hex(8)}"
            self._must_succeed(f"mkdir -p {directory} {self.program_cache}", f"cannot make {directory}")
            self._session_directory = directory
        return self._session_directory

    def reach(self) -> None:
        """Connect, trying once.

        Raises:
            TargetOfflineError: nobody answers, or this computer is not allowed.
        """
        self._retrying(self._connected, 1)

    def close(self) -> None:
        """Remove what this session left on the phone, where it can be reached, and disconnect."""
        with self._lock:
            directory, self._session_directory = self._session_directory, None
            if directory:
                self._left_files.append(directory)
            # A command that was interrupted runs on: its connection is gone, and adbd does not end it.
            if (self._connection and self._left_files) or (self._seen and self._left_commands):
                try:
                    self._clean(self._connected())
                except (LinkError, RefusedError, DeviceError) as error:
                    self._reporter.say(f"{self.name}: could not clean up ({error})")
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    # -- commands ------------------------------------------------------------------------------------------------------

    def shell(self, argv: Sequence[str], *, timeout_s: float, retry: bool = False) -> ShellResult:
        """Run a program on the phone; a non-zero exit is returned, not raised.

        Args:
            argv: program and arguments; each arrives as it is, whatever it contains.
            timeout_s: after this, everything that the command started is killed.
            retry: whether running it twice does no harm; then a broken connection is tried again.

        Raises:
            TargetTimeoutError: it was still running after `timeout_s`, and was killed.
            TargetOfflineError: the phone went away.
        """
        if not argv or any("\0" in word for word in argv):
            raise UserError(f"expected a program and arguments without zero bytes, got {list(argv)!r}")
        command = shlex.join(argv)
        if self._library_path:
            command = f"LD_LIBRARY_PATH={shlex.quote(self._library_path)} {command}"
        with self._lock:
            # Connecting may always be tried again; running only where the caller says so.
            self._retrying(self._connected, _ATTEMPTS)
            return self._retrying(lambda: self._run_once(command, timeout_s), _ATTEMPTS if retry else 1)

    def _run(self, command: str) -> ShellResult:
        """One of our own short commands, which all may run twice."""
        return self._retrying(lambda: self._ask(command), _ATTEMPTS)

    def _ask(self, command: str, *, extra_s: float = 0.0) -> ShellResult:
        """The same within an attempt that is retried as a whole: silence counts as a broken connection."""
        timeout_s = self._command_timeout_s + extra_s
        try:
            return self._run_once(command, timeout_s)
        except TargetTimeoutError:
            raise LinkError(f"no answer within {timeout_s:.0f} s") from None

    def _run_once(self, command: str, timeout_s: float) -> ShellResult:
        connection = self._connected()
        deadline = time.monotonic() + timeout_s
        wrapped = WrappedCommand(command)
        self._left_commands.append(wrapped.token)
        try:
            output = self._collect(connection, wrapped.text(), deadline)
        except DeadlineError:
            self._kill_left()
            what = command if len(command) <= 80 else command[:77] + "..."
            raise TargetTimeoutError(f"{what} ran longer than {timeout_s:g} s on {self.name}: it was killed") from None
        parsed = wrapped.parse(output)
        if parsed is None:
            raise LinkError("the phone ended the command's shell early")
        self._left_commands.remove(wrapped.token)
        status, standard, errors = parsed
        return ShellResult(status, standard, errors)

    def _collect(self, connection: AdbConnection, text: str, deadline: float) -> bytes:
        stream = connection.open_stream(f"exec:{text}", deadline=deadline)
        output = bytearray()
        while block := stream.read(deadline):
            output += block
            if len(output) > _OUTPUT_MAX_BYTES:
                self._kill_left()
                raise DeviceError(
                    f"a command on {self.name} printed more than {_OUTPUT_MAX_BYTES >> 20} MiB: stopped it"
                )
        return bytes(output)

    def _kill_left(self) -> None:
        """Make a new connection; that alone kills what an earlier one left running."""
        self._disconnect()
        self._connected()

    def _clean(self, connection: AdbConnection) -> None:
        """Remove what broken attempts left on the phone."""
        deadline = time.monotonic() + self._command_timeout_s
        commands = [reap_command(token) for token in self._left_commands]
        commands += [f"rm -rf {shlex.quote(path)}" for path in self._left_files]
        if commands:
            self._collect_plain(connection, "; ".join(commands), deadline)
        self._left_commands.clear()
        self._left_files.clear()

    def _collect_plain(self, connection: AdbConnection, text: str, deadline: float) -> None:
        try:
            stream = connection.open_stream(f"exec:{text}", deadline=deadline)
            while stream.read(deadline):
                pass
        except DeadlineError:
            raise LinkError("the phone did not finish cleaning up") from None

    # -- files ---------------------------------------------------------------------------------------------------------

    def push(self, source: Path, name: str) -> str:
        """Bring a file or a flat directory to the phone, whole or not at all; what is there already is not sent.

        Content decides where it lies, so an older version under the same name disturbs nobody and a second session
        finds it again.

        Args:
            source: a file (its executable bit is kept) or a directory of files, here.
            name: its last component on the phone.

        Returns:
            its path on the phone.

        Raises:
            UserError: `source` is not there, the phone has too little space or refused to write.
            TargetOfflineError: the phone went away, several times.
        """
        if not _SAFE_NAME.fullmatch(name):
            raise UserError(f"expected a plain name for a file on the phone, got {name!r}")
        files = [source] if source.is_file() else sorted(source.iterdir()) if source.is_dir() else []
        if not files or not all(path.is_file() for path in files):
            raise UserError(f"{source} is neither a file nor a directory of files: nothing to push to {self.name}")
        digest, digests = hashlib.sha256(), {path: sha256_file(path) for path in files}
        for path in files:
            digest.update(f"{path.name}:{digests[path]}\n".encode(errors="surrogateescape"))
        place = f"{_STORE}/{digest.hexdigest()[:32]}"
        target = f"{place}/{name}"
        if source.is_file():
            self.send_file(source, target, digest=digests[source])
        else:
            # A reader takes a bundle for whole by its SHA256SUMS only, so that comes last.
            for path in sorted(files, key=lambda path: path.name == "SHA256SUMS"):
                self.send_file(path, f"{target}/{path.name}", digest=digests[path])
        self._must_succeed(f"touch {place}; {_FORGET_OLD}", f"cannot touch {place}")
        return target

    def send_file(self, local: Path, remote: str, *, digest: str | None = None) -> bool:
        """Bring one file to an absolute path on the phone, whole or not at all; parents are made.

        Args:
            local: the file, here.
            remote: the path.
            digest: its SHA-256, where the caller knows it already.

        Returns:
            Whether anything had to be sent.
        """
        remote = _checked_path(remote)
        digest, size = digest or sha256_file(local), local.stat().st_size
        with self._reporter.task(f"push {local.name}", total=size) as task:
            sent = self._retrying(lambda: self._push_once(local, remote, digest, size, task.advance), _ATTEMPTS)
            if not sent:
                task.advance(size, note="unchanged")
        return sent

    def _push_once(self, local: Path, remote: str, digest: str, size: int, advance: Callable[[int], None]) -> bool:
        directory, name = remote.rsplit("/", 1)
        mode = 0o755 if local.stat().st_mode & 0o100 else 0o644
        place = self._prepare(directory, remote, size, mode)
        if place.digest == digest:
            return False
        if place.available_bytes is None:
            self._reporter.say(f"{self.name} does not say how much space {directory} has: sending {name} all the same")
        elif place.available_bytes < size + _SPACE_MARGIN_BYTES:
            raise TargetRefusedError(
                f"{self.name} has {place.available_bytes >> 20} MiB free for {name}, which needs {size >> 20} MiB and "
                f"{_SPACE_MARGIN_BYTES >> 20} to spare: free some space on the phone"
            )
        temporary = f"{directory}/.{secrets.token_hex(8)}.part"
        self._left_files.append(temporary)
        reported = 0

        def progress(count: int) -> None:
            nonlocal reported
            reported += count
            advance(count)

        try:
            with local.open("rb") as source, sync_session(self._connected()) as session:
                session.send(source, temporary, mode, progress)
            self._settle(temporary, remote, digest, mode, size)
        except BaseException:
            advance(-reported)
            raise
        self._left_files.remove(temporary)
        return True

    def _settle(self, temporary: str, remote: str, digest: str, mode: int, size: int) -> None:
        """Give a file that arrived intact its final name."""
        source, target = shlex.quote(temporary), shlex.quote(remote)
        command = (
            f'case "$(sha256sum {source})" in {digest}*) chmod {mode:o} {source} && mv -f {source} {target};; '
            f"*) rm -f {source}; exit 77;; esac"
        )
        result = self._ask(command, extra_s=size / _HASH_BYTES_PER_S)
        if result.status == 77:
            raise LinkError(f"{remote} arrived damaged")
        if result.status != 0:
            raise TargetRefusedError(f"{self.name} cannot rename {temporary} to {remote}: {_complaint(result)}")

    def _prepare(self, directory: str, remote: str, size: int, mode: int) -> _Place:
        """Make the directory, and learn what is there and how much space is left."""
        folder, file = shlex.quote(directory), shlex.quote(remote)
        command = (
            f"mkdir -p {folder} || exit 1; [ ! -d {file} ] || exit 3; "
            f"find {folder} -maxdepth 1 -name '.*.part' -mtime +0 -exec rm -f '{{}}' ';' 2>/dev/null; "
            f"printf 'free=%s\\n' \"$(df -k {folder} | tail -n 1)\"; "
            f'if [ -f {file} ] && [ "$(wc -c <{file})" -eq {size} ]; then '
            f"chmod {mode:o} {file}; printf 'sum=%s\\n' \"$(sha256sum <{file})\"; fi"
        )
        result = self._ask(command, extra_s=size / _HASH_BYTES_PER_S)
        if result.status == 3:
            raise TargetRefusedError(f"{remote} on {self.name} is a directory: remove it or choose another name")
        if result.status != 0:
            raise TargetRefusedError(f"{self.name} cannot use {directory}: {_complaint(result)}")
        text = result.stdout.decode(errors="replace")
        free = re.search(r"^free=.*\s(\d{1,15})\s+\d{1,3}%\s+\S+\s*$", text, re.MULTILINE)
        digest = re.search(r"^sum=([0-9a-f]{64})\b", text, re.MULTILINE)
        return _Place(int(free[1]) * 1024 if free else None, digest[1] if digest else None)

    def pull(self, path: str, destination: Path, *, max_bytes: int = _PULL_MAX_BYTES) -> None:
        """Fetch a file from the phone to exactly `destination`, whole or not at all.

        Raises:
            DeviceError: the phone has no such file, or it is larger than `max_bytes`.
            TargetOfflineError: the phone went away, several times.
        """
        remote = _checked_path(path)
        with self._reporter.task(f"pull {remote.rsplit('/', 1)[1]}") as task:
            self._retrying(lambda: self._pull_once(remote, destination, max_bytes, task.advance), _ATTEMPTS)

    def _pull_once(self, remote: str, local: Path, max_bytes: int, advance: Callable[[int], None]) -> None:
        file = shlex.quote(remote)
        found = self._ask(f"[ -f {file} ] && wc -c <{file}")
        digits = found.stdout.strip()
        if found.status != 0 or not re.fullmatch(rb"\d{1,15}", digits):
            raise DeviceError(f"{self.name} has no readable file {remote}: {_complaint(found)}")
        if int(digits) > max_bytes:
            raise DeviceError(f"{remote} on {self.name} holds more than {max_bytes} bytes: fetch it by hand")
        result = self._ask(f"sha256sum <{file}", extra_s=int(digits) / _HASH_BYTES_PER_S)
        expected = re.match(rb"[0-9a-f]{64}\b", result.stdout)
        if result.status != 0 or not expected:
            raise DeviceError(f"{self.name} has no readable file {remote}: {_complaint(result)}")
        digest = hashlib.sha256()
        with atomic_path(local) as temporary:
            with temporary.open("wb") as sink, sync_session(self._connected()) as session:
                for block in session.receive(remote, max_bytes=max_bytes):
                    sink.write(block)
                    digest.update(block)
                    advance(len(block))
            if digest.hexdigest() != expected[0].decode():
                raise LinkError(f"{remote} arrived damaged")

    def list_names(self, remote: str) -> list[str]:
        """Names in a directory, newest first; only names that are safe to use in paths here and there.

        Raises:
            UserError: there is no such directory.
        """
        remote = _checked_path(remote)
        result = self._run(f"ls -1t {shlex.quote(remote)}")
        if result.status != 0:
            raise DeviceError(f"{self.name} cannot list {remote}: {_complaint(result)}")
        return [name for name in result.stdout.decode(errors="replace").splitlines() if _SAFE_NAME.fullmatch(name)]

    def remove(self, remote: str) -> None:
        """Remove a file or directory below the project's own directory.

        Raises:
            UserError: it lies elsewhere, or the phone cannot remove it.
        """
        remote = _checked_path(remote)
        if not remote.startswith(f"{WORK_DIRECTORY}/"):
            raise UserError(f"{remote} is not below {WORK_DIRECTORY}: remove it by hand if you want to")
        self._must_succeed(f"rm -rf {shlex.quote(remote)}", f"cannot remove {remote}")

    def discard(self, path: str) -> None:
        """Remove a file or directory that `push` brought.

        Raises:
            UserError: it lies elsewhere, or the phone cannot remove it.
        """
        store, _, place = _checked_path(path).rpartition("/")[0].rpartition("/")
        if store != _STORE:
            raise UserError(f"{path} is not below {_STORE}: remove it by hand if you want to")
        self.remove(f"{store}/{place}")

    def prune(self, *, unused_for_days: int) -> None:
        """Remove pushed files that no session has used for more than so many days."""
        self._must_succeed(
            f"[ ! -d {_STORE} ] || find {_STORE} -mindepth 1 -maxdepth 1 -mtime +{unused_for_days} "
            "-exec rm -rf '{}' ';'",
            "cannot remove old files",
        )

    # -- facts ---------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Identity and present state, flat, with units in the names; what the phone does not say is absent."""
        known = {**asdict(self.identity()), **asdict(self.state())}
        return {name: value for name, value in known.items() if value is not None and value != {}}

    def identity(self) -> PhoneIdentity:
        """Model, Android build, SoC and GPU; asked once."""
        if self._identity is None:
            self._identity = parse_identity(self._run(IDENTITY_COMMAND).stdout.decode(errors="replace"))
        return self._identity

    def state(self) -> PhoneState:
        """Clocks, temperatures and battery, now."""
        return parse_state(self._run(STATE_COMMAND).stdout.decode(errors="replace"))

    def state_files(self) -> Sequence[StateFile]:
        """The GPU's temperature and clock, as far as the phone lets its shell read them."""
        return parse_state_files(self._run(STATE_FILES_COMMAND).stdout.decode(errors="replace"))

    @contextmanager
    def fixed_performance_mode(self) -> Iterator[bool]:
        """Hold the clocks steady (Android 11 and later); yields whether the phone agreed, and switches it off after."""
        command = "cmd power set-fixed-performance-mode-enabled"
        agreed = self._run(f"{command} true").status == 0
        try:
            yield agreed
        except BaseException:
            if agreed:
                self._leave_quietly(f"{command} false")
            raise
        if agreed:
            self._must_succeed(f"{command} false", "cannot leave the fixed performance mode")

    def _leave_quietly(self, command: str) -> None:
        """Undo a setting after a failure, which is what the user must hear about; this one is only mentioned."""
        try:
            self._must_succeed(command, "refused")
        except DeviceError:
            self._reporter.say(
                f"{self.name} stays in its fixed performance mode: restart it or run adb shell {command}"
            )

    # -- connection ----------------------------------------------------------------------------------------------------

    def _must_succeed(self, command: str, complaint: str) -> None:
        result = self._run(command)
        if result.status != 0:
            raise TargetRefusedError(f"{self.name} {complaint}: {_complaint(result)}")

    def _retrying(self, attempt: Callable[[], T], attempts: int) -> T:
        """Do something that may be done twice; a broken connection is made again in between."""
        with self._lock:
            for number in range(1, attempts + 1):
                try:
                    return attempt()
                except (LinkError, RefusedError) as error:
                    self._disconnect()
                    if number == attempts:
                        raise TargetOfflineError(_offline_message(self.name, error)) from None
                    self._reporter.say(f"{self.name}: {error}; trying again ({number} of {attempts - 1})")
                    time.sleep(0.2 * number)
                except SyncError as error:
                    self._tidy()
                    raise TargetRefusedError(f"{self.name} refused the file: {error}") from None
                except StructadmmError:
                    raise  # between two packets: the connection is in order
                except BaseException:
                    self._disconnect()  # what would come next belongs to nobody
                    raise
        raise AssertionError("unreachable")

    def _tidy(self) -> None:
        """Remove at once what a failed attempt left, where the phone can be reached."""
        self._disconnect()
        try:
            self._connected()
        except (LinkError, TargetOfflineError) as error:
            self._reporter.say(f"{self.name}: could not remove the partial file: {error}")

    def _connected(self) -> AdbConnection:
        if self._connection is not None and self._connection.is_stale():
            self._disconnect()
        if self._connection is None:
            connection = self._connect()
            try:
                self._clean(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self._seen = True
        return self._connection

    def _connect(self) -> AdbConnection:
        connection = AdbConnection(self._transport(), self._io_timeout_s)
        if self._signer is None:
            self._signer = load_signer(self._key)
        try:
            connection.log_in(
                self._signer,
                timeout_s=self._connect_timeout_s,
                allow_s=self._allow_s,
                on_prompt=self._explain_prompt,
            )
        except NotAuthorisedError:
            raise TargetUnauthorisedError(
                f"{self.name} has not allowed this computer: unlock it, tap Allow for key "
                f"{fingerprint(self._signer)}, and run the command again"
            ) from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _transport(self) -> Any:
        if self.address.host is not None and self.address.port is not None:
            return TcpTransport(self.address.host, self.address.port)
        from device.adb_usb import open_usb_transport

        try:
            return open_usb_transport(self.address.serial)
        except TargetOfflineError as error:
            if not self._seen:
                raise
            raise LinkError(str(error)) from None  # it was here and may come back: it is tried again

    def _explain_prompt(self) -> None:
        self._reporter.say(
            f'{self.name} asks "Allow USB debugging?": unlock it and tap Allow within {self._allow_s:.0f} s '
            f"(key fingerprint {fingerprint(self._signer)})"
        )


@dataclass(frozen=True)
class _Place:
    """What is known about where a file shall go; None: the phone did not say, or there is no such file."""

    available_bytes: int | None
    digest: str | None


def open_adb_target(device: str, *, reporter: Reporter | None = None) -> AdbTarget:
    """The phone that `--device adb:...` names; nothing is connected yet."""
    library_path = os.environ.get(LIBRARY_PATH_VARIABLE, "")
    return AdbTarget(parse_adb_address(device), reporter=reporter, library_path=library_path)


def fingerprint(signer: Any) -> str:
    """MD5 of a public key, as the phone's dialogue shows it."""
    key = signer.GetPublicKey()
    raw = base64.b64decode((key if isinstance(key, bytes) else key.encode()).split(b" ")[0])
    digest = hashlib.md5(raw, usedforsecurity=False).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def _checked_path(remote: str) -> str:
    """An absolute path of a file on the phone, without `..` and unprintable letters."""
    parts = remote.split("/")
    clean = remote.isprintable() and len(remote.encode()) <= 1000 and not {"", ".", ".."} & set(parts[1:])
    if not remote.startswith("/") or len(parts) < 3 or not clean:
        raise UserError(f"expected an absolute path on the phone such as {WORK_DIRECTORY}/runner, got {remote!r}")
    return remote


def _complaint(result: ShellResult) -> str:
    """The first thing that a failed command said."""
    for output in (result.stderr, result.stdout):
        lines = output.decode(errors="replace").strip().splitlines()
        if lines:
            return "".join(letter for letter in lines[0] if letter.isprintable())[:200]
    return f"exit status {result.status}"


def _offline_message(name: str, error: Exception) -> str:
    if isinstance(error, RefusedError):
        return f"{name} refused the service {str(error)[:60]!r}: its adb daemon is not one this project can use"
    return f"{name} is offline ({error}): check its cable or network and that USB debugging is on, then try again"
