from __future__ import annotations

import pytest

from device.candidates import DeviceFacts
from device.rpc.address import Address, check_key, is_wildcard, parse_address
from device.rpc.fleet import Fleet, FleetServer, common_facts
from structadmm.errors import UserError

TRACKER = Address("127.0.0.1", 9190)


def facts(gpu: str = "adreno-640", driver: str = "1") -> DeviceFacts:
    return DeviceFacts(gpu=gpu, driver_family=f"qualcomm {driver}", driver=driver, kind="phone", type="gpu", fp16=True)


def fleet(*known: DeviceFacts | None) -> Fleet:
    return Fleet(tuple(FleetServer("k", f"phone:{n}", None, f, False, 0) for n, f in enumerate(known)), {}, {})


def test_devices_of_one_kind_have_their_facts_in_common() -> None:
    assert common_facts(fleet(facts(), facts()), "k", TRACKER) == facts()


@pytest.mark.parametrize(
    ("known", "key", "match"),
    [
        ([], "k", r"no device with key 'k' .*keys there: none"),
        ([facts()], "other", r"no device with key 'other' .*keys there: k\)"),
        ([facts(), None], "k", r"phone:1 has key 'k' and is no `structadmm rpc serve`"),
        ([facts(), facts(gpu="adreno-730")], "k", r"differ \(adreno-640 / .*; adreno-730 / "),
        ([facts(), facts(driver="2")], "k", r"differ"),
    ],
    ids=["empty", "unknown key", "foreign", "gpu", "driver"],
)
def test_a_key_that_means_no_one_kind_of_device_is_one_line(
    known: list[DeviceFacts | None], key: str, match: str
) -> None:
    with pytest.raises(UserError, match=match) as caught:
        common_facts(fleet(*known), key, TRACKER)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9300", Address("127.0.0.1", 9300)),
        ("lab", Address("lab", 9190)),
        ("[::1]:9300", Address("::1", 9300)),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":9190", "a:b:c", "lab:0", "lab:70000", "lab:-1", "a b:1", "::1:9190", "lab/x:1", "a..b:1", f"{'x' * 64}:1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize("key", ["", "two words", "a:b", "-x", "x" * 65, "schlüssel", "a\n"])
def test_a_key_that_the_tracker_would_misread_is_refused(key: str) -> None:
    with pytest.raises(UserError, match="expected 1 to 64"):
        check_key(key)


@pytest.mark.parametrize(
    ("host", "alone"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("lab", False)]
)
def test_the_loopback_is_known(host: str, alone: bool) -> None:
    assert Address(host, 1).is_loopback is alone


@pytest.mark.parametrize(
    ("host", "every"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("10.0.0.1", False), ("lab", False)]
)
def test_every_address_is_known_from_one(host: str, every: bool) -> None:
    assert is_wildcard(host) is every
