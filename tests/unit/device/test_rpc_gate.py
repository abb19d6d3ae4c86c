"""What passes the gate before TVM's RPC server, and what does not. Packets are put together by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.rpc.gate import Gate
from device.rpc.packets import PacketError

FACTS, MEASURE = 0x7F0000001000, 0x7F0000002000
FUNCTIONS = {"facts": FACTS, "measure": MEASURE}
MAX_PACKET = 1 << 16


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack("<Qi", 4 + len(body), code) + body


def raw_string(text: bytes) -> bytes:
    return struct.pack("<iQ", 8, len(text)) + text


def string(text: bytes, kind: int = 65) -> bytes:
    return struct.pack("<iIQ", kind, kind, len(text)) + text


def arguments(*values: bytes) -> bytes:
    return struct.pack("<i", len(values)) + b"".join(values)


def pointer(address: int) -> bytes:
    return struct.pack("<iQ", 4, address)


INIT = packet(2, struct.pack("<Q", 5) + b"0.8.0" + arguments())
GET_MEASURE = packet(9, arguments(string(b"measure")))
GET_FACTS = packet(9, arguments(raw_string(b"facts")))
CALL_MEASURE = packet(3, struct.pack("<Q", MEASURE) + arguments(string(b"\0" * 99, 66), string(b"{}")))
FREE_MEASURE = packet(10, arguments(pointer(MEASURE)))
SHUTDOWN = packet(1)


def receiver(stream: bytes) -> Callable[[int], bytes]:
    """As the socket would: so many bytes, or none at its end."""
    at = 0

    def receive(size: int) -> bytes:
        nonlocal at
        if at + size > len(stream):
            return b""
        at += size
        return stream[at - size : at]

    return receive


def gate_and_replies() -> tuple[Gate, list[bytes]]:
    replies: list[bytes] = []
    return Gate(FUNCTIONS, max_packet=MAX_PACKET, reply=replies.append), replies


def pass_all(*packets: bytes) -> list[bytes]:
    """Have them pass; gives what was answered before TVM's server saw it."""
    (gate, replies), receive = gate_and_replies(), receiver(b"".join(packets))
    for expected in packets:
        if expected != FREE_MEASURE:
            assert gate.next_packet(receive) == expected
    assert gate.next_packet(receive) == b""
    return replies


def test_what_a_tuning_client_says_passes_unchanged() -> None:
    assert pass_all(INIT, GET_FACTS, GET_MEASURE, GET_MEASURE, CALL_MEASURE, SHUTDOWN) == []


def test_a_release_is_answered_and_never_reaches_tvm_however_often_it_comes() -> None:
    replies = pass_all(INIT, GET_MEASURE, FREE_MEASURE, FREE_MEASURE, CALL_MEASURE, FREE_MEASURE, SHUTDOWN)
    assert replies == [packet(4, arguments(struct.pack("<i", 0)))] * 3  # as TVM answers it: nothing, in one argument


TENSOR = struct.pack("<QiiiBBHqQQ", 0x7F0000000000, 1, 0, 1, 0, 8, 1, 64, 0, 64)


@pytest.mark.parametrize(
    ("packets", "match"),
    [
        ([packet(6, TENSOR)], "code 6"),
        ([packet(7, TENSOR + b"\0" * 64)], "code 7"),
        *[([packet(code)], f"code {code}") for code in (0, 4, 5, 8, *range(11, 23), -1, 1 << 30)],
        ([packet(9, arguments(string(b"rpc.Connect")))], "the function 'rpc.Connect'"),
        ([packet(9, arguments(string(b"measure"), string(b"x")))], "not one string"),
        ([packet(9, arguments(pointer(MEASURE)))], "type 4"),
        # TVM takes a name as a string only: for bytes it would answer that it does not.
        ([packet(9, arguments(string(b"measure", 66)))], "type 66"),
        ([packet(9, arguments(struct.pack("<iIQ", 65, 66, 7) + b"measure"))], "type 66"),
        ([CALL_MEASURE], "not given"),
        ([GET_FACTS, CALL_MEASURE], "not given"),
        ([GET_MEASURE, packet(3, struct.pack("<Q", MEASURE + 8) + arguments())], "not given"),
        ([GET_MEASURE, packet(3, struct.pack("<Q", MEASURE) + arguments(pointer(FACTS)))], "type 4"),
        ([GET_MEASURE, packet(3, struct.pack("<Q", MEASURE) + arguments(struct.pack("<iIq", 65, 128, 1)))], "type 128"),
        ([GET_MEASURE, packet(3, struct.pack("<Q", MEASURE) + arguments(struct.pack("<iQ", 68, FACTS)))], "type 68"),
        ([GET_MEASURE, packet(3, struct.pack("<Qi", MEASURE, 1 << 30))], "arguments"),
        ([GET_MEASURE, packet(3, struct.pack("<Qi", MEASURE, -1))], "arguments"),
        ([GET_MEASURE, packet(3, struct.pack("<Q", MEASURE) + struct.pack("<iiQ", 1, 8, 1 << 60))], "ends early"),
        ([FREE_MEASURE], "not given"),
        ([GET_FACTS, FREE_MEASURE], "not given"),
        ([INIT], "a second start"),
        ([GET_MEASURE, packet(10, arguments(string(b"measure")))], "expected a handle"),
        ([GET_MEASURE, packet(10, arguments(pointer(MEASURE)) + b"\0")], "after the last"),
        ([packet(1, b"\0")], "after the last"),
        ([struct.pack("<Q", 0)], "0 bytes"),
        ([struct.pack("<Q", MAX_PACKET + 1)], "65537 bytes"),
        ([struct.pack("<Q", 1 << 63)], "bytes"),
    ],
)
def test_anything_else_is_refused(packets: list[bytes], match: str) -> None:
    with pytest.raises(PacketError, match=match):
        pass_all(INIT, *packets)


@pytest.mark.parametrize(
    ("packets", "match"),
    [
        ([GET_MEASURE, INIT], "before its session was started"),
        ([CALL_MEASURE], "before its session was started"),
        ([FREE_MEASURE], "before its session was started"),
        ([packet(2, struct.pack("<Q", 5) + b"0.8.0" + arguments(string(b"rpc.Connect")))], "another kind"),
    ],
)
def test_a_session_starts_as_a_plain_one_before_anything_else(packets: list[bytes], match: str) -> None:
    with pytest.raises(PacketError, match=match):
        pass_all(*packets)


def test_a_client_that_hangs_up_in_the_middle_of_a_packet_ends_the_session() -> None:
    gate, _ = gate_and_replies()
    assert gate.next_packet(receiver(INIT[:-1])) == b""


@given(st.binary(max_size=200), st.sampled_from([INIT, GET_MEASURE, CALL_MEASURE, FREE_MEASURE]), st.integers(8, 200))
def test_whatever_is_written_over_a_packet_it_is_refused_or_whole(noise: bytes, known: bytes, at: int) -> None:
    changed = (known[:at] + noise + known[at + len(noise) :])[: len(known)]
    (gate, replies), receive = gate_and_replies(), receiver(INIT + GET_MEASURE + changed)
    gate.next_packet(receive)
    gate.next_packet(receive)
    try:
        assert gate.next_packet(receive) == (b"" if replies else changed)
    except PacketError:
        return
    # Whatever passed calls or frees the one function that was handed out, and no other address.
    if struct.unpack_from("<i", changed, 8)[0] == 3:
        assert struct.unpack_from("<Q", changed, 12)[0] == MEASURE
