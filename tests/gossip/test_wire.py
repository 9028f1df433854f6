"""Golden bytes both ways, and what must be refused (reference/gossip-wire.md 1.3 and A12 to A15)."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip import lzw, packet, stream, wire
from gossip.broadcasts import Broadcasts
from gossip.delegate import Address, Member, State
from gossip.keyring import DecryptError, KeyRing
from gossip.profile import Profile

PING = "0085a44e6f6465a770793137353030a55365714e6fcd0152aa536f7572636541646472a47f000001aa536f757263654e6f6465a26e31aa536f75726365506f7274cd4269"  # noqa: E501
ALIVE = "0c414271d50486a441646472a47f000001ab496e6361726e6174696f6e01a44d657461aeff81a46c616e67a6707974686f6ea44e6f6465a770793137353030a4506f7274cd445ca356736ea6010502020505"  # noqa: E501


def envelope(*keys: bytes, label: bytes = b"") -> packet.Envelope:
    count = itertools.count()
    return packet.Envelope(KeyRing(keys, lambda n: next(count).to_bytes(n, "big")), label)


@pytest.mark.parametrize("golden", [PING, ALIVE])
def test_golden_bytes_of_a_live_serf_both_ways(golden: str) -> None:
    data = bytes.fromhex(golden)
    message = wire.decode(packet.open_packet(data, envelope()).messages[0])
    assert packet.seal([wire.encode(message)], envelope(), crc=data[0] == wire.Kind.CRC) == data


@given(st.binary(max_size=6000))
@settings(max_examples=60, deadline=None)
def test_lzw_round_trip(data: bytes) -> None:
    assert lzw.decompress(lzw.compress(data), len(data)) == data


def test_lzw_past_the_end_of_the_table() -> None:
    data = bytes(n * n % 251 for n in range(60_000)) + bytes(range(256)) * 40
    assert lzw.decompress(lzw.compress(data), len(data)) == data


def test_a12_timeouts_scale() -> None:
    profile = Profile(suspicion_mult=3, retransmit_mult=3, retransmit_floor=0)
    got = [round(profile.suspicion_min_s(n) / 3, 3) for n in (5, 10, 50, 100, 500, 1000)]
    assert got == [1, 1, 1.699, 2, 2.699, 3]
    assert [profile.push_pull_s(n) / 30 for n in (32, 33, 64, 65, 128, 2400)] == [1, 2, 2, 3, 3, 8]
    assert profile.retransmits(99) == 6


def test_a13_oversized_is_refused_before_it_is_kept() -> None:
    bomb = packet.compressed(bytes(packet.DECOMPRESSED_MAX + 1))
    with pytest.raises(wire.WireError):
        packet.open_packet(bomb, envelope())
    for header in (
        b"\x06" + wire.pack({"Join": False, "Nodes": stream.NODES_MAX + 1, "UserStateLen": 0}),
        b"\x06" + wire.pack({"Join": False, "Nodes": 0, "UserStateLen": 0xFFFFFFFF}),
        b"\x08" + wire.pack({"UserMsgLen": stream.PAYLOAD_MAX + 1}),
    ):
        with pytest.raises(wire.WireError):
            stream.Reader(envelope()).feed(header)
    with pytest.raises(wire.WireError):
        stream.Reader(envelope(bytes(16))).feed(b"\x0a\xff\xff\xff\xff")


def test_a13_arrays_are_not_even_begun() -> None:
    with pytest.raises(wire.WireError):
        wire.decode(b"\x02\x81\xa1x" + b"\xdd\x00\x00\xff\x00" * 200)


def test_a14_compound_cut_short_keeps_the_earlier_parts() -> None:
    opened = packet.open_packet(packet.compound([b"\x08one", b"\x08two", b"\x08three"])[:-2], envelope())
    assert opened.messages == [b"\x08one", b"\x08two"]
    assert opened.truncated == 1


def test_a14_more_than_255_messages_are_split() -> None:
    parts = packet.compounds([b"\x08" + struct.pack("!H", n) for n in range(300)])
    assert [part[1] for part in parts] == [255, 45]


def test_a15_bad_crc_wrong_key_and_other_label_are_dropped() -> None:
    sealed = packet.seal([b"\x08hello"], envelope(), crc=True)
    with pytest.raises(wire.WireError):
        packet.open_packet(sealed[:-1] + b"x", envelope())
    sealed = packet.seal([b"\x08hello"], envelope(bytes(32), label=b"blue"), crc=True)
    assert packet.open_packet(sealed, envelope(b"k" * 16, bytes(32), label=b"blue")).messages == [b"\x08hello"]
    with pytest.raises(DecryptError):
        packet.open_packet(sealed, envelope(b"k" * 32, label=b"blue"))
    with pytest.raises(wire.WireError):
        packet.open_packet(sealed, envelope(bytes(32), label=b"red"))


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("keys", [(), (bytes(32),)])
def test_push_pull_in_pieces(step: int, compress: bool, keys: tuple[bytes, ...]) -> None:
    nodes = [
        Member(f"node-{n}", Address("10.0.0.1", n), b"\xff\x80", wire.VERSIONS, n, State(n % 4), 0.0) for n in range(9)
    ]
    plain = stream.push_pull([wire.encode_node_state(node) for node in nodes], b"state", join=True)
    sealed = stream.seal(plain, envelope(*keys, label=b"l"), compress=compress)
    reader = stream.Reader(envelope(*keys, label=b"l"))
    done = [reader.feed(sealed[at : at + step]) for at in range(0, len(sealed), step)]
    assert done[-1]
    assert not any(done[:-1])
    assert reader.message() == stream.PushPull(True, nodes, b"state")


def test_broadcasts_least_sent_first_and_newest_about_a_subject() -> None:
    queue = Broadcasts()
    queue.queue(b"old", "n1")
    queue.queue(b"newer", "n1")
    queue.queue(b"xx")
    assert queue.take(2, 100, 2) == [b"newer", b"xx"]
    queue.queue(b"y")
    assert queue.take(2, 10, 2) == [b"y", b"newer"]
    assert queue.take(2, 100, 2) == [b"xx", b"y"]
    assert len(queue) == 0
