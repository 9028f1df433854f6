"""The two cores of a snapshot on its way, and the directory where it is put together."""

import hashlib
import random

import pytest

from control.transport.snapshots import SNAPSHOT_BYTES_MAX, WINDOW_BYTES, Receiving, Sending
from control.transport.spool import BytesSource, FileSource, Spool
from control.transport.wire import CHUNK_BYTES, Accept, BadBytes, Kind, Offer, Result, chunk, encode

DATA = random.Random(1).randbytes(5 * CHUNK_BYTES + 12_345)
OFFER = Offer(len(DATA), hashlib.sha256(DATA).digest(), b"m")


def move(sending, receiving, spool, *, chunks=10_000):
    """Until it ends or so many chunks have arrived; the path or None."""
    receiving.receive(*sending.begin())
    sending.receive(*receiving.accept(spool.begin(OFFER)))
    while not receiving.complete():
        offset, size = sending.wanted()
        if not chunks:
            return None
        chunks -= 1
        at, data = receiving.receive(*sending.chunk(DATA[offset : offset + size]))
        spool.write(OFFER, at, data)
        sending.receive(*receiving.written(len(data)))
    path = spool.finish(OFFER)
    sending.receive(*receiving.result(path is not None))
    return path


def test_a_snapshot_arrives(tmp_path):
    sending = Sending(OFFER)
    path = move(sending, Receiving(), Spool(tmp_path))
    assert sending.ok
    assert path.read_bytes() == DATA
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("first", [0, 1, 3, 5])
def test_it_goes_on_where_a_break_has_left_it(tmp_path, first):
    assert move(Sending(OFFER), Receiving(), Spool(tmp_path), chunks=first) is None
    sending, receiving = Sending(OFFER), Receiving()
    path = move(sending, receiving, Spool(tmp_path), chunks=6 - first)
    assert path.read_bytes() == DATA


def test_one_that_is_damaged_on_the_way_is_not_taken_and_begins_anew(tmp_path):
    spool = Spool(tmp_path)
    move(Sending(OFFER), Receiving(), spool, chunks=2)
    part = next(tmp_path.glob("*.part"))
    part.write_bytes(b"\0" + part.read_bytes()[1:])
    sending = Sending(OFFER)
    assert move(sending, Receiving(), spool) is None
    assert sending.ok is False
    assert list(tmp_path.iterdir()) == []
    assert move(Sending(OFFER), Receiving(), spool).read_bytes() == DATA


def test_a_newer_one_takes_the_place_of_a_part(tmp_path):
    spool = Spool(tmp_path)
    move(Sending(OFFER), Receiving(), spool, chunks=2)
    newer = Offer(10, hashlib.sha256(b"x" * 10).digest(), b"m")
    assert spool.begin(newer) == 0
    assert [p.stem for p in tmp_path.iterdir()] == [newer.sha256.hex()]


def test_what_nobody_took_is_removed_at_the_next_start(tmp_path):
    path = move(Sending(OFFER), Receiving(), Spool(tmp_path))
    Spool(tmp_path).clear()
    assert not path.exists()
    Spool(tmp_path / "nothing").clear()


def test_the_window_is_bounded():
    sending = Sending(OFFER)
    sending.begin()
    assert sending.wanted() is None
    sending.receive(Kind.ACCEPT, encode(Accept(0)))
    sent = 0
    while (wanted := sending.wanted()) is not None:
        sending.chunk(bytes(wanted[1]))
        sent += wanted[1]
    assert sent == WINDOW_BYTES
    sending.receive(Kind.ACK, encode(Accept(CHUNK_BYTES)))
    assert sending.wanted() == (WINDOW_BYTES, CHUNK_BYTES)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Kind.ACCEPT, encode(Accept(len(DATA) + 1))),
        (Kind.ACCEPT, encode(Accept(-1))),
        (Kind.ACCEPT, b"\xc1"),
        (Kind.ACK, encode(Accept(0))),
        (Kind.MESSAGES, b"\x90"),
        (Kind.CHUNK, chunk(0, b"x")),
    ],
)
def test_answers_that_make_no_sense(kind, payload):
    sending = Sending(OFFER)
    sending.begin()
    with pytest.raises(BadBytes):
        sending.receive(kind, payload)


def test_acknowledgements_neither_go_back_nor_ahead():
    sending = Sending(OFFER)
    sending.receive(Kind.ACCEPT, encode(Accept(CHUNK_BYTES)))
    sending.chunk(bytes(100))
    for offset in (0, CHUNK_BYTES + 101):
        with pytest.raises(BadBytes, match="offset"):
            sending.receive(Kind.ACK, encode(Accept(offset)))
    sending.receive(Kind.RESULT, encode(Result(False)))
    with pytest.raises(BadBytes, match="answer"):
        sending.receive(Kind.RESULT, encode(Result(True)))


@pytest.mark.parametrize(
    "offer", [Offer(0, bytes(32), b""), Offer(SNAPSHOT_BYTES_MAX + 1, bytes(32), b""), Offer(9, b"", b"")]
)
def test_offers_that_are_refused(offer):
    with pytest.raises(BadBytes, match="offer"):
        Receiving().receive(Kind.OFFER, encode(offer))


def test_chunks_must_follow_each_other():
    receiving = Receiving()
    with pytest.raises(BadBytes):
        receiving.receive(Kind.CHUNK, chunk(0, b"x"))
    receiving.receive(Kind.OFFER, encode(Offer(100, bytes(32), b"")))
    receiving.accept(10)
    for payload in (chunk(0, b"x"), chunk(11, b"x"), chunk(10, b""), chunk(10, bytes(91)), b"short"):
        with pytest.raises(BadBytes, match="chunk"):
            receiving.receive(Kind.CHUNK, payload)
    with pytest.raises(BadBytes):
        receiving.receive(Kind.OFFER, encode(OFFER))
    assert receiving.receive(Kind.CHUNK, chunk(10, bytes(90))) == (10, bytes(90))


def test_sources(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    source, small = FileSource.of(tmp_path / "file"), BytesSource(DATA)
    assert (source.size_bytes, source.sha256) == (small.size_bytes, small.sha256) == (len(DATA), OFFER.sha256)
    assert source.read(100, 50) == small.read(100, 50) == DATA[100:150]
