"""Bytes of others: whatever is wrong with them is noticed before anything is kept for it."""

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.transport.wire import (
    BODY_MAX,
    BULK_MAX,
    HEADER_BYTES,
    PREAMBLE_BYTES,
    BadBytes,
    Frames,
    Hello,
    Kind,
    Preamble,
    Welcome,
    decode,
    encode,
    frame,
    preamble,
    seed_of,
)

HELLO = encode(Hello("c1", 1, "a", "b", 0, ":4000"))
SEED = seed_of(HELLO)


def test_a_hello_comes_back():
    data = preamble(HELLO)
    fixed = Preamble.parse(data[:PREAMBLE_BYTES])
    body = data[PREAMBLE_BYTES:]
    assert fixed.length == len(body)
    fixed.check(body)
    assert decode(Hello, body) == Hello("c1", 1, "a", "b", 0, ":4000")


@pytest.mark.parametrize(
    ("at", "byte", "reason"),
    [(0, b"X", "magic"), (5, b"\x09", "version"), (6, b"\xff", "length"), (9, b"\0", "checksum")],
)
def test_a_bad_preamble(at, byte, reason):
    data = bytearray(preamble(HELLO))
    data[at : at + 1] = byte
    with pytest.raises(BadBytes, match=reason):
        Preamble.parse(bytes(data[:PREAMBLE_BYTES])).check(bytes(data[PREAMBLE_BYTES:]))


def test_a_body_of_something_else():
    for body in (b"", b"\xc1", encode(Welcome(0, "a", 1))[:-1], b"\x93\x01\x02\x03"):
        with pytest.raises(BadBytes):
            decode(Hello, body)


def test_ids_fit_into_a_hello():
    assert len(encode(Hello("c" * 64, 2**63, "n" * 64, "m" * 64, 2, "h" * 253 + ":65535"))) < BODY_MAX


@given(payloads=st.lists(st.binary(max_size=300), max_size=8), cuts=st.lists(st.integers(1, 50), max_size=40))
@settings(max_examples=100, deadline=None)
def test_frames_come_out_however_they_are_cut(payloads, cuts):
    data = b"".join(frame(Kind.MESSAGES, p, SEED) for p in payloads)
    frames, out = Frames(SEED, 1000), []
    for cut in cuts:
        out += frames.feed(data[:cut])
        data = data[cut:]
    out += frames.feed(data)
    assert out == [(Kind.MESSAGES, p) for p in payloads]
    assert not frames.partial
    assert frames.complete == len(payloads)


@given(payload=st.binary(max_size=64), bit=st.integers(0, (HEADER_BYTES + 64) * 8 - 1))
@settings(max_examples=100, deadline=None)
def test_no_flipped_bit_goes_unnoticed(payload, bit):
    data = bytearray(frame(Kind.MESSAGES, payload, SEED))
    bit %= len(data) * 8
    data[bit // 8] ^= 1 << bit % 8
    frames = Frames(SEED, 1000)
    try:
        assert list(frames.feed(bytes(data))) == []  # it waits for more
        assert frames.partial
    except BadBytes:
        pass


def test_a_frame_of_another_connection_does_not_fit():
    others = [("c2", 1, "a", "b", 0), ("c1", 2, "a", "b", 0), ("c1", 1, "x", "b", 0), ("c1", 1, "a", "x", 0)]
    for other in [*others, ("c1", 1, "a", "b", 1)]:
        with pytest.raises(BadBytes, match="frame checksum"):
            list(Frames(SEED, 1000).feed(frame(Kind.MESSAGES, b"x", seed_of(encode(Hello(*other))))))


def test_a_gibibyte_announced_costs_nothing():
    frames = Frames(SEED, BULK_MAX)
    tracemalloc.start()
    try:
        with pytest.raises(BadBytes, match="frame length"):
            list(frames.feed(struct.pack("!BBII", 0xA7, 1, 1 << 30, 0)))
        # The largest that is allowed is not set aside either, before it is there.
        waiting = Frames(SEED, BULK_MAX)
        assert list(waiting.feed(struct.pack("!BBII", 0xA7, 1, BULK_MAX, 0) + bytes(1000))) == []
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_unknown_kinds_and_magic():
    with pytest.raises(BadBytes, match="frame magic"):
        list(Frames(SEED, 100).feed(b"\0" * HEADER_BYTES))
    with pytest.raises(BadBytes, match="frame kind"):
        list(Frames(SEED, 100).feed(frame(99, b"", SEED)))


def test_text_that_is_no_utf8_is_bad_bytes() -> None:
    body = bytearray(HELLO)
    body[body.index(b"c1")] = 0xF2
    with pytest.raises(BadBytes, match="body"):
        decode(Hello, bytes(body))
