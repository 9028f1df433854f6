import random

import pytest

from control.quorum.peers import LINGER_S, STRANGERS_MAX, Peers
from control.quorum.shipment import KEY_BYTES, Parcel, Shipment, unpack
from control.raft.configuration import Configuration, Member
from control.store.errors import Damaged
from control.store.record import Row, SnapshotMeta
from control.store.state import State

KEY = bytes(range(KEY_BYTES))
SHIPMENT = Shipment("a.1", "b.2", 3, SnapshotMeta(5, 2), KEY)


def state(rows: int) -> State:
    return State.of_rows(7, [Row("k", f"{i:05}", 3, b"secret" * (i % 50)) for i in range(rows)])


@pytest.mark.parametrize("piece", [1, 15, 16, 1000, 1 << 20])
def test_what_is_packed_is_unpacked_whatever_the_pieces(tmp_path, piece):
    before = state(3 if piece < 100 else 2000)
    parcel = Parcel.of(before.chunks, KEY)
    data = b"".join(parcel.read(at, min(piece, parcel.size_bytes - at)) for at in range(0, parcel.size_bytes, piece))
    assert b"secret" not in data
    path = tmp_path / "whole"
    path.write_bytes(data)
    assert unpack(path, SHIPMENT).digest == before.digest


def test_reading_goes_on_anywhere(tmp_path):
    parcel = Parcel.of(state(2000).chunks, KEY)
    whole = parcel.read(0, parcel.size_bytes)
    rng = random.Random(1)
    for _ in range(20):
        at, size = rng.randrange(parcel.size_bytes), rng.randrange(1, 50_000)
        assert parcel.read(at, size) == whole[at : at + size]


def test_a_snapshot_that_is_gone_is_an_error_of_the_file():
    def gone():
        raise Damaged("it is missing")
        yield b""

    parcel = Parcel(gone, KEY)
    with pytest.raises(OSError, match="missing"):
        parcel.read(0, 10)


@pytest.mark.parametrize("change", ["cut", "flip", "other key"])
def test_what_is_not_what_was_packed_is_damaged(tmp_path, change):
    parcel = Parcel.of(state(300).chunks, KEY)
    data = bytearray(parcel.read(0, parcel.size_bytes))
    key = KEY
    if change == "cut":
        del data[-1:]
    elif change == "flip":
        data[len(data) // 2] ^= 1
    else:
        key = bytes(KEY_BYTES)
    path = tmp_path / "whole"
    path.write_bytes(data)
    with pytest.raises(Damaged):
        unpack(path, Shipment("a.1", "b.2", 3, SnapshotMeta(5, 2), key))


# --- where the others are ---------------------------------------------------------------------------------------------


def configuration(*nodes: str) -> Configuration:
    members = tuple(Member(f"{n}.{i}", voter=True, address=f"{n}:1") for i, n in enumerate(nodes, 1))
    return Configuration(members, len(nodes))


def test_the_newest_good_address_wins():
    peers = Peers("a", {"b": "joined:1"})
    assert peers.among(Configuration(), 0) == {"b": "joined:1"}
    assert peers.among(configuration("a", "b"), 0) == {"b": "b:1"}
    assert peers.told({"b": "told:1", "x": "x:1"}, frozenset())
    assert peers.among(configuration("a", "b"), 0) == {"b": "told:1"}
    peers.learn("b", "learned:1")
    assert peers.among(configuration("a", "b"), 0) == {"b": "learned:1"}
    peers.hint({"b": "hint:1"})
    assert peers.among(configuration("a", "b"), 0) == {"b": "hint:1"}


def test_what_is_said_of_those_who_can_be_reached_is_not_heeded():
    peers = Peers("a", {})
    peers.among(configuration("a", "b", "c"), 0)
    assert not peers.told({"b": "elsewhere:1"}, frozenset({"b"}))
    assert not peers.told({"c": "x" * 1000}, frozenset())


def test_one_that_is_no_member_any_more_is_kept_for_a_while():
    peers = Peers("a", {})
    peers.learn("c", "c:2")
    peers.among(configuration("a", "b", "c"), 0)
    peers._learned.clear()
    peers.hint({"c": "c:3"})
    assert peers.among(configuration("a", "b"), 1)["c"] == "c:3"
    assert "c" not in peers.among(configuration("a", "b"), 1 + LINGER_S)


def test_strangers_are_bounded():
    peers = Peers("a", {})
    for i in range(100):
        peers.learn(f"s{i}", f"s{i}:1")
    assert len(peers.among(configuration("a"), 0)) == STRANGERS_MAX
