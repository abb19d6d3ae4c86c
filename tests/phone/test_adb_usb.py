"""Phones on USB, with libusb's answers made up: no phone is plugged into a test machine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import usb1

from device import adb_usb
from device.adb_usb import UsbPhone, list_usb_phones, open_usb_transport
from device.target import open_target
from structadmm.errors import UserError


@dataclass
class FakeDevice:
    """A USB device whose serial is a text, or an error of libusb when asked for."""

    serial: str | usb1.USBError
    address: int

    def getBusNumber(self) -> int:  # noqa: N802 -- libusb's name
        return 1

    def getDeviceAddress(self) -> int:  # noqa: N802 -- libusb's name
        return self.address

    def getSerialNumber(self) -> str:  # noqa: N802 -- libusb's name
        if isinstance(self.serial, usb1.USBError):
            raise self.serial
        return self.serial


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    def plug(*serials: str | usb1.USBError) -> None:
        found = [(FakeDevice(serial, address), object()) for address, serial in enumerate(serials, start=1)]
        monkeypatch.setattr(adb_usb, "_adb_interfaces", lambda: found)

    return plug


def test_phones_are_listed_with_what_is_wrong_with_them(plug_in: Any) -> None:
    plug_in("8A1X0B2C", usb1.USBErrorAccess(), usb1.USBErrorBusy())
    good, forbidden, busy = list_usb_phones()
    assert good == UsbPhone("8A1X0B2C", "001:001")
    assert forbidden.serial is None
    assert "no permission" in (forbidden.problem or "")
    assert "udev rules" in (forbidden.problem or "")
    assert "adb kill-server" in (busy.problem or "")


@pytest.mark.parametrize(
    ("plugged", "wanted", "said"),
    [
        ([], None, r"no phone on USB, found: none: plug it in"),
        (["ABC"], "XYZ", r"no phone with serial XYZ on USB, found: ABC: "),
        (["ABC", "DEF"], None, r"several phones on USB \(ABC, DEF\): choose one with --device adb:SERIAL"),
        ([usb1.USBErrorAccess()], None, r"no permission to open USB device 001:001"),
        ([usb1.USBErrorAccess()], "XYZ", r"found: one at 001:001 \(no permission"),
    ],
)
def test_a_phone_that_cannot_be_opened_is_explained(
    plug_in: Any, plugged: list[Any], wanted: str | None, said: str
) -> None:
    plug_in(*plugged)
    with pytest.raises(UserError, match=said) as caught:
        open_usb_transport(wanted)
    assert "\n" not in str(caught.value)


def test_without_libusb_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adb_shell.transport.usb_transport", None)
    monkeypatch.setitem(sys.modules, "usb1", None)
    with pytest.raises(UserError, match=r"install libusb-1\.0"):
        list_usb_phones()


def test_a_serial_that_is_not_plugged_in_ends_a_command_in_one_line() -> None:
    # The real libusb, on a machine where no phone has this serial.
    target = open_target("adb:NO-SUCH-PHONE")
    with pytest.raises(UserError, match="no phone with serial NO-SUCH-PHONE on USB"):
        target.facts()


def test_the_packaged_libusb_serves_where_the_system_has_none() -> None:
    # In a process of its own: a library once loaded stays.
    program = (
        "import usb1; own, loaded = usb1.loadLibrary, []\n"
        "def load(libusb=None):\n"
        "    if libusb is None and not loaded: raise OSError('cannot find a suitable libusb-1.0')\n"
        "    loaded.append(libusb)\n"
        "    return own(libusb)\n"
        "usb1.loadLibrary = load\n"
        "from device.adb_usb import list_usb_phones\n"
        "list_usb_phones()\n"
        "print(loaded[0]._name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "libusb_package" in done.stdout


class FakeEndpoint:
    def __init__(self, address: int, packet_bytes: int) -> None:
        self.address, self.packet_bytes = address, packet_bytes

    def getAddress(self) -> int:  # noqa: N802 -- libusb's name
        return self.address

    def getMaxPacketSize(self) -> int:  # noqa: N802 -- libusb's name
        return self.packet_bytes


class FakeSetting:
    def iterEndpoints(self) -> list[FakeEndpoint]:  # noqa: N802 -- libusb's name
        return [FakeEndpoint(0x81, 64), FakeEndpoint(0x02, 512)]


class FakeHandle:
    def __init__(self) -> None:
        self.writes: list[tuple[int, int]] = []

    def bulkWrite(self, endpoint: int, data: bytes, timeout: int) -> int:  # noqa: N802 -- libusb's name
        assert endpoint == 0x02
        self.writes.append((len(data), timeout))
        return len(data)


def test_a_transfer_that_fills_its_last_packet_is_ended_by_an_empty_one() -> None:
    """adbd reads larger blocks than a packet: without it the phone would wait for more."""
    from adb_shell.transport.usb_transport import UsbTransport

    transport = adb_usb._guarded(UsbTransport)(object(), FakeSetting(), usb_info="ABC")
    handle = transport._transport = FakeHandle()
    transport._write_endpoint = 0x02
    for size in (24, 511, 512, 1024, 0, 1025):
        assert transport.bulk_write(bytes(size), 1.0) == size
    assert [size for size, _ in handle.writes] == [24, 511, 512, 0, 1024, 0, 0, 1025]


def test_a_deadline_that_is_nearly_over_is_not_taken_for_none() -> None:
    from adb_shell.transport.usb_transport import UsbTransport

    transport = adb_usb._guarded(UsbTransport)(object(), FakeSetting(), usb_info="ABC")
    assert [transport._timeout_ms(seconds) for seconds in (0.0, 0.0004, 0.25, 2.0)] == [1, 1, 250, 2000]
