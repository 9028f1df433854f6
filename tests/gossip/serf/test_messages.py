"""Bytes of the Serf layer: what a real agent sent, both ways, and junk."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.coordinates import Coordinate
from gossip.delegate import Address
from gossip.serf.messages import (
    AnyMessage,
    Join,
    KeyRequest,
    KeyResponse,
    Leave,
    NodeFilter,
    PushPull,
    Query,
    QueryResponse,
    Relay,
    TagFilter,
    UserEvent,
    Vote,
    decode,
    decode_coordinate,
    decode_filter,
    decode_tags,
    encode,
    encode_coordinate,
    encode_filters,
    encode_tags,
)
from gossip.serf.pack import BadMessage, pack

RESPONSE = QueryResponse(9, 7, "n1", 0, b"pong")
ALL: list[AnyMessage] = [
    Leave(4, "n1", True),
    Join(14, "py17500"),
    UserEvent(3, "deploy", b"\x00\xff", True),
    Query(5, 77, Address("127.0.0.1", 17001), "n1", (b"\x00\x91\xa1a",), 1, 2, 15 * 10**9, "load", b"x"),
    RESPONSE,
    Relay(Address("127.0.0.1", 17001), "n1", encode(RESPONSE)),
    PushPull(9, {"a": 3, "b": 4}, ("b",), 6, ((5, (("x", b"y"), ("x", b"z"))),), 2),
    KeyRequest(b"k" * 32),
    KeyResponse(True, "", ("a2V5",), "a2V5"),
    Vote("n1", Address("10.0.0.1", 7946)),
    Vote("", None),
]


def test_golden_join_of_a_real_agent() -> None:
    captured = bytes.fromhex("01 82 a5") + b"LTime" + bytes.fromhex("0e a4") + b"Node" + b"\xa7py17500"
    assert decode(captured) == Join(14, "py17500")
    assert encode(Join(14, "py17500")) == captured


def test_golden_tags_of_a_real_agent() -> None:
    captured = bytes.fromhex("ff81a46c616e67a6707974686f6e")
    assert decode_tags(captured) == {"lang": "python"}
    assert encode_tags({"lang": "python"}) == captured


def test_golden_head_of_a_real_agents_coordinate() -> None:
    payload = encode_coordinate(Coordinate())
    assert payload.startswith(b"\x01\x84\xaaAdjustment\xcb")
    assert b"\xa3Vec\x98\xcb" in payload
    assert len(payload) == 0x82, "the length in the captured ack"
    assert decode_coordinate(payload) == Coordinate()


@pytest.mark.parametrize("message", ALL, ids=lambda m: type(m).__name__)
def test_round_trip(message: AnyMessage) -> None:
    assert decode(encode(message)) == message


def test_events_with_holes_are_read() -> None:
    """A real agent sends all 512 slots of its ring, most of them nil."""
    fields = {"LTime": 1, "Events": [None, {"LTime": 5, "Events": [{"Name": "x", "Payload": None}]}] + [None] * 510}
    state = decode(b"\x02" + pack(fields))
    assert isinstance(state, PushPull)
    assert state.events == ((5, (("x", b""),)),)


def test_names_that_are_no_text_survive() -> None:
    name = b"n\xff".decode("utf-8", "surrogateescape")
    assert decode(encode(Join(1, name))) == Join(1, name)


def test_a_bare_role_is_a_tag() -> None:
    assert decode_tags(b"web") == {"role": "web"}
    assert decode_tags(b"") == {}
    assert decode_tags(b"\xff\xc1") == {}


def test_filters() -> None:
    nodes, tag = encode_filters(["a", "b"], {"role": "^w"})
    assert nodes == b"\x00\x92\xa1a\xa1b"
    assert decode_filter(nodes) == NodeFilter(frozenset(("a", "b")))
    assert decode_filter(tag) == TagFilter("role", "^w")


def test_relay_carries_responses_only() -> None:
    """Otherwise anybody could make us send anything to anybody."""
    with pytest.raises(BadMessage):
        decode(encode(Relay(Address("127.0.0.1", 1), "n", encode(Join(1, "x")))))


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"\x63",
        b"\x01",
        b"\x01\xc0",
        b"\x01\x81\xa5LTime\xa1x",
        b"\x01\x81\xa5LTime\xff",
        b"\x01\x81\xa5LTime\xcb" + b"\x7f\xf8" + b"\0" * 6,
        b"\x01\xdf\xff\xff\xff\xff",  # a map of 4 Gi entries
        b"\x01\xdd\xff\xff\xff\xff",
        b"\x01\xdb\xff\xff\xff\xff",
        b"\x01" + b"\x91" * 2000,  # nested beyond reason
        b"\x01\x81\x01\x02",
        b"\x04\x81\xa4Addr\xa3abc",
        b"\x02\x81\xa6Events\x91\x01",
    ],
)
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(junk)


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for kind in range(11):
        with contextlib.suppress(BadMessage):
            decode(bytes((kind,)) + data)
    with contextlib.suppress(BadMessage):
        assert decode_coordinate(b"\x01" + data).height is not None


@given(st.sampled_from(ALL), st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_messages_are_a_message_or_refused(message: AnyMessage, data: st.DataObject) -> None:
    raw = bytearray(encode(message))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadMessage):
        encode(decode(bytes(raw)))


def test_a23_coordinates_with_nan_are_read_and_unusable() -> None:
    rogue = encode_coordinate(Coordinate(vec=(math.nan,) * 8))
    assert not decode_coordinate(rogue).usable()
    assert not decode_coordinate(encode_coordinate(Coordinate(vec=(0.0,) * 3))).usable()
