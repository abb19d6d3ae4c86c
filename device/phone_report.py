"""What `structadmm devices` and `structadmm doctor` tell about a phone: who it is, or why it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

from device.adb_address import parse_adb_address
from device.adb_target import AdbTarget
from device.adb_usb import list_usb_phones
from device.phone_facts import PhoneIdentity
from structadmm.errors import StructadmmError
from structadmm.progress import Reporter

_CONNECT_S = 5.0
_ALLOW_S = 30.0


@dataclass(frozen=True)
class PhoneReport:
    """One phone.

    Attributes:
        device: what `--device` calls it; with `?` where its serial cannot be read.
        identity: None where it could not be asked.
        problem: why not, one line; empty if it could.
    """

    device: str
    identity: PhoneIdentity | None
    problem: str = ""

    @property
    def summary(self) -> str:
        """Model, Android release and GPU as far as the phone tells them, or the problem."""
        if self.identity is None:
            return self.problem
        known = self.identity
        model = " ".join(filter(None, (known.manufacturer, known.model))) or "unknown model"
        parts = [model, f"Android {known.android}" if known.android else "", known.soc or "", known.gpu or ""]
        return ", ".join(filter(None, parts)) + (" (emulated)" if known.emulated else "")


def find_phones(named: list[str]) -> tuple[list[tuple[str, str]], str]:
    """Every phone on USB and those named, once each.

    Args:
        named: `adb:...` as `--device` takes it; phones on TCP are found only by name.

    Returns:
        (device, problem) for each, the problem empty where it may be connected to; and why USB cannot be read, or an
        empty text.

    Raises:
        UserError: a name is no adb address.
    """
    found = {str(parse_adb_address(device)): "" for device in named}
    try:
        on_usb = list_usb_phones()
    except (StructadmmError, OSError) as error:
        return list(found.items()), str(error)
    nameless = [
        (f"adb:? (USB {phone.bus})", phone.problem or "it tells no serial") for phone in on_usb if not phone.serial
    ]
    found |= {f"adb:{phone.serial}": phone.problem or "" for phone in on_usb if phone.serial}
    return [*found.items(), *nameless], ""


def connect_phone(device: str, reporter: Reporter | None = None) -> AdbTarget:
    """A target with short time-outs: somebody waits for an answer."""
    return AdbTarget(parse_adb_address(device), reporter=reporter, connect_timeout_s=_CONNECT_S, allow_s=_ALLOW_S)


def why_out_of_reach(device: str, reporter: Reporter | None = None) -> str | None:
    """Why nothing can be run on a phone at this moment, in one line; None: it answers.

    Args:
        device: what `--device` calls it.
        reporter: is told when the phone asks for permission.
    """
    try:
        with connect_phone(device, reporter) as target:
            target.reach()
    except StructadmmError as error:
        return str(error)
    return None


def ask_phone(device: str, problem: str = "", reporter: Reporter | None = None) -> PhoneReport:
    """Connect to a phone and ask who it is; what goes wrong becomes its `problem`.

    Args:
        device: what `--device` calls it.
        problem: what is known to be wrong with it already; then nobody connects.
        reporter: is told when the phone asks for permission.
    """
    if problem:
        return PhoneReport(device, None, problem)
    try:
        with connect_phone(device, reporter) as target:
            return PhoneReport(device, target.identity())
    except StructadmmError as error:
        return PhoneReport(device, None, str(error))
