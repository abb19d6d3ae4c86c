from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device.adb_address import AdbAddress, parse_adb_address
from structadmm.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adb:", AdbAddress()),
        ("adb:8A1X0B2C", AdbAddress(serial="8A1X0B2C")),
        ("adb:emulator-5554", AdbAddress(serial="emulator-5554")),
        ("adb:192.168.1.7:5555", AdbAddress(host="192.168.1.7", port=5555)),
        ("adb:phone-3.lab.example:41234", AdbAddress(host="phone-3.lab.example", port=41234)),
        ("adb:[fe80::1]:5555", AdbAddress(host="fe80::1", port=5555)),
    ],
)
def test_an_address_is_read_and_written_back_as_it_was(text: str, expected: AdbAddress) -> None:
    assert parse_adb_address(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "adb",
        "usb:123",
        "adb:host:",
        "adb:host:0",
        "adb:host:65536",
        "adb:host:+80",
        "adb:host:٣",
        "adb::5555",
        "adb:-serial",
        "adb:a b",
        "adb:$(reboot):5555",
        "adb:ho;st:5555",
        "adb:../../etc/passwd",
        "adb:serial\n",
        "adb:fe80::1:5555",
        "adb:[fe80::zz]:5555",
        "adb:" + "a" * 65,
    ],
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="expected adb:SERIAL") as caught:
        parse_adb_address(text)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_what_is_accepted_holds_only_letters_that_no_shell_and_no_path_interprets(text: str) -> None:
    try:
        address = parse_adb_address("adb:" + text)
    except UserError:
        return
    for part in (address.host or "", address.serial or ""):
        assert all(letter.isascii() and (letter.isalnum() or letter in "._-:") for letter in part)
        assert not part.startswith("-")
