"""Phones on USB: which there are, and a transport to one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from device.adb_connection import LinkError
from device.errors import TargetOfflineError, TargetRefusedError
from structadmm.errors import UserError

# AOSP adb/adb.h: vendor-specific class, ADB subclass and protocol.
_CLASS, _SUBCLASS, _PROTOCOL = 0xFF, 0x42, 0x01


@dataclass(frozen=True)
class UsbPhone:
    """A USB interface that speaks adb. `serial` is None where it cannot be read; `problem` says why."""

    serial: str | None
    bus: str
    problem: str | None = None


def list_usb_phones() -> list[UsbPhone]:
    """All phones on USB with debugging switched on, also those that we may not open.

    Raises:
        UserError: libusb is not installed.
    """
    interfaces = _adb_interfaces()
    import usb1  # after the line above, which explains what is wrong where this would fail

    phones = []
    for device, _setting in interfaces:
        bus = f"{device.getBusNumber():03d}:{device.getDeviceAddress():03d}"
        try:
            phones.append(UsbPhone(device.getSerialNumber(), bus))
        except usb1.USBError as error:
            phones.append(UsbPhone(None, bus, _explain(error, f"USB device {bus}")))
    return phones


def open_usb_transport(serial: str | None) -> Any:
    """A transport to the phone with this serial; None: to the only phone there is.

    Raises:
        TargetOfflineError: there is no such phone.
        TargetRefusedError: it may not be opened.
        UserError: there are several, or USB is not available.
    """
    usb_transport = _usb_transport_class()
    phones = list_usb_phones()
    matching = [phone for phone in phones if serial is None or phone.serial == serial]
    known = ", ".join(phone.serial or f"one at {phone.bus}" for phone in phones) or "none"
    if not matching:
        problem = next((f" ({phone.problem})" for phone in phones if phone.problem), "")
        wanted = f"with serial {serial} " if serial else ""
        raise TargetOfflineError(
            f"no phone {wanted}on USB, found: {known}{problem}: plug it in and switch USB debugging on in its "
            "developer options"
        )
    if len(matching) > 1:
        raise UserError(f"several phones on USB ({known}): choose one with --device adb:SERIAL")
    phone = matching[0]
    if phone.problem:
        raise TargetRefusedError(phone.problem)
    for device, setting in _adb_interfaces():
        if f"{device.getBusNumber():03d}:{device.getDeviceAddress():03d}" == phone.bus:
            return _guarded(usb_transport)(device, setting, usb_info=phone.serial)
    raise LinkError("the phone was unplugged")


def _adb_interfaces() -> list[tuple[Any, Any]]:
    """(device, interface setting) of everything on USB that speaks adb."""
    transport = _usb_transport_class()
    found = []
    for device in transport.USB1_CTX.getDeviceIterator(skip_on_error=True):
        for setting in device.iterSettings():
            if (setting.getClass(), setting.getSubClass(), setting.getProtocol()) == (_CLASS, _SUBCLASS, _PROTOCOL):
                found.append((device, setting))
                break
    return found


def _load_libusb() -> None:
    """Load the system's libusb, or, where there is none, the one that comes as a Python package.

    Raises:
        ImportError: there is neither.
        OSError: the library cannot be loaded.
    """
    import usb1

    try:
        usb1.loadLibrary()
    except OSError:
        import ctypes

        import libusb_package

        path = libusb_package.get_library_path()
        if path is None:
            raise
        usb1.loadLibrary(ctypes.CDLL(str(path)))


def _usb_transport_class() -> Any:
    try:
        _load_libusb()
        from adb_shell.transport.usb_transport import UsbTransport
    except (ImportError, OSError) as error:
        raise UserError(
            f"USB is not available ({str(error).splitlines()[0]}): install libusb-1.0 (Debian: apt-get install "
            "libusb-1.0-0), or reach the phone over TCP with --device adb:HOST:PORT"
        ) from None
    return UsbTransport


def _guarded(base: Any) -> Any:
    """The library's transport with libusb's errors in words, and what adbd expects of a host's transfers."""
    import usb1

    class GuardedUsbTransport(base):  # type: ignore[misc]
        def bulk_write(self, data: bytes | bytearray | memoryview, transport_timeout_s: float | None = None) -> int:
            """All of `data`; where it ends with a full packet of the bus, an empty one says that it has ended.

            adbd reads in blocks larger than a packet and would wait for more (AOSP, docs/dev/internals.md of adb).
            """
            sent: int = super().bulk_write(data, transport_timeout_s)
            if len(data) and len(data) % self._packet_bytes() == 0:
                super().bulk_write(b"", transport_timeout_s)
            return sent

        def _packet_bytes(self) -> int:
            sizes = {end.getAddress(): end.getMaxPacketSize() for end in self._setting.iterEndpoints()}
            return int(sizes[self._write_endpoint])

        def _timeout_ms(self, transport_timeout_s: float | None) -> int:
            """At least one: libusb takes zero for no time-out at all."""
            return max(1, int(super()._timeout_ms(transport_timeout_s)))

        def connect(self, transport_timeout_s: float | None = None) -> None:
            try:
                super().connect(transport_timeout_s)
            except (usb1.USBErrorAccess, usb1.USBErrorBusy) as error:
                raise TargetRefusedError(_explain(error, f"the phone {self.usb_info}")) from None
            except usb1.USBError as error:
                raise LinkError(str(error)) from None

    return GuardedUsbTransport


def _explain(error: Exception, what: str) -> str:
    import usb1

    if isinstance(error, usb1.USBErrorAccess):
        return f"no permission to open {what}: install udev rules (Debian: android-sdk-platform-tools-common)"
    if isinstance(error, usb1.USBErrorBusy):
        return f"another program holds {what}, most likely adb's server: run adb kill-server"
    return f"cannot open {what}: {error}"
