"""The journal's bytes: round trips, and what is torn and what is corrupt, at every byte."""

import os
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.store.aesgcm import AesGcmSealer
from control.store.record import Entry, HardState, SnapshotMeta
from control.store.wal import (
    HEADER_BYTES,
    PLAIN,
    SECTOR_BYTES,
    Batch,
    Chunk,
    Clean,
    Corrupt,
    End,
    Footer,
    SegmentHeader,
    SnapshotHeader,
    Torn,
    first_record,
    frame,
    read_frame,
    scan,
)

FILE = 7
SIZE = 16 * SECTOR_BYTES
HEADER = SegmentHeader(2, "cluster", FILE, "", 0, 4, 1, HardState(1, "me", 3), (SnapshotMeta(2, 1),))
SEALER = AesGcmSealer("key", bytes(32), os.urandom)


def batch(index, data=b"x"):
    return Batch(HardState(1, "me", index), (Entry(index, 1, 0, data),))


def write(records, chain=0, sealer=PLAIN):
    """The segment, filled with zeros, and where each frame ends."""
    data, at, ends = b"", End(0, 0, chain), []
    for record in records:
        more, at = frame(record, at, FILE, sealer)
        data += more
        ends.append(at)
    return data.ljust(SIZE, b"\0"), ends


def read(data, chain=0, sealer=PLAIN):
    return scan(data, End(0, 0, chain), FILE, sealer)


SMALL = [HEADER, batch(1), batch(2, b"y" * 30), batch(3, b"")]
LARGE = [HEADER, batch(1, bytes(range(1, 256)) * 9), batch(2, bytes(range(1, 256)) * 12)]
EMPTY = [HEADER, batch(1, bytes(1200)), batch(2, bytes(3000) + b"\1" * 600)]

metas = st.builds(SnapshotMeta, st.integers(0, 2**63), st.integers(0, 2**63), st.binary(max_size=9))
entries = st.builds(Entry, st.integers(0, 2**63), st.integers(0, 9), st.integers(0, 9), st.binary(max_size=40))
states = st.builds(HardState, st.integers(0, 2**63), st.text(max_size=5), st.integers(0, 2**63))
records = st.one_of(
    st.builds(SnapshotHeader, st.just(2), st.text(max_size=9), st.just(""), metas),
    st.builds(Batch, st.none() | states, st.lists(entries, max_size=3).map(tuple), st.none() | metas, st.booleans()),
    st.builds(Chunk, st.binary(max_size=700) | st.just(bytes(1500))),
    st.builds(Footer, st.integers(0, 2**40), st.integers(0, 2**32 - 1)),
)


@given(st.lists(records, max_size=5), st.integers(0, 2**32 - 1), st.sampled_from([PLAIN, SEALER]))
@settings(max_examples=100, deadline=None)
def test_round_trip(some, chain, sealer):
    data, ends = write(some, chain, sealer)
    found = read(data, chain, sealer)
    assert found.records == tuple(some)
    assert found.verdict == Clean()
    assert found.end == (ends[-1] if ends else End(0, 0, chain))
    assert found.end.offset % 8 == 0


def test_the_header_of_a_file_says_what_is_needed_to_read_it():
    data, _ = write(SMALL)
    assert first_record(data, SegmentHeader) == HEADER
    assert first_record(data, SnapshotHeader) is None
    assert first_record(b"\0" * 100, SegmentHeader) is None
    assert first_record(data[:40], SegmentHeader) is None


@pytest.mark.parametrize("some", [SMALL, LARGE, EMPTY])
@pytest.mark.parametrize("sealer", [PLAIN, SEALER])
def test_any_missing_sectors_of_the_last_frame_are_torn(some, sealer):
    """All combinations of lost sectors: a lost one is what it was before, zeros."""
    data, ends = write(some, sealer=sealer)
    start, end = ends[-2].offset, ends[-1].offset
    sectors = range(start // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1)
    for lost in range(1, 2 ** len(sectors)):
        torn = bytearray(data)
        for place, sector in enumerate(sectors):
            if lost >> place & 1:
                low, high = max(sector * SECTOR_BYTES, start), min((sector + 1) * SECTOR_BYTES, end)
                torn[low:high] = bytes(high - low)
        found = read(bytes(torn), sealer=sealer)
        assert found.records == tuple(some[:-1])
        assert found.end == ends[-2]
        if lost == 2 ** len(sectors) - 1:
            assert found.verdict == Clean()
        else:
            assert found.verdict == Torn(len(bytes(torn).rstrip(b"\0")) - start), (lost, found.verdict)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("some", [SMALL, LARGE, EMPTY])
def test_any_flipped_byte_is_corruption_and_never_cut(some, flip):
    """Also in a frame with nothing but zeros in it, which without the mask would look torn."""
    data, ends = write(some)
    for i in range(ends[-1].offset):
        bad = bytearray(data)
        bad[i] ^= flip
        found = read(bytes(bad))
        hit = sum(e.offset <= i for e in ends)
        assert found.records == tuple(some[:hit])
        assert isinstance(found.verdict, Corrupt), i


@pytest.mark.parametrize("place", [0, 1, 100, 511, 512, 3000])
def test_something_in_the_space_that_was_never_written_is_not_taken_for_a_record(place):
    """A byte among the zeros is damage of what nobody needs; it is cut as if it had been torn."""
    data, ends = write(SMALL)
    bad = bytearray(data)
    bad[ends[-1].offset + place] = 1
    found = read(bytes(bad))
    assert found.records == tuple(SMALL)
    assert isinstance(found.verdict, Torn | Corrupt)
    assert found.end == ends[-1]


def test_a_zeroed_sector_before_the_last_frame_is_corruption():
    data, ends = write(LARGE)
    low = SECTOR_BYTES * 2
    assert ends[0].offset < low < ends[1].offset - SECTOR_BYTES
    found = read(data[:low] + bytes(SECTOR_BYTES) + data[low + SECTOR_BYTES :])
    assert found.records == (HEADER,)
    assert isinstance(found.verdict, Corrupt)
    zeroed_head = ends[0].offset // SECTOR_BYTES * SECTOR_BYTES
    found = read(data[: ends[0].offset] + bytes(SECTOR_BYTES - ends[0].offset + zeroed_head) + data[SECTOR_BYTES:])
    assert isinstance(found.verdict, Corrupt)
    assert f"byte {ends[1].offset}" in found.verdict.reason


def test_a_bad_length_does_not_hide_what_follows():
    """A length that reaches beyond the file looks like a torn end, and would throw away synced frames."""
    data, ends = write(SMALL)
    at = ends[0].offset
    bad = bytearray(data)
    struct.pack_into("<I", bad, at + 4, 1 << 20)
    assert isinstance(read(bytes(bad)).verdict, Corrupt)
    bad[at + HEADER_BYTES - 4 : at + HEADER_BYTES] = zlib.crc32(bad[at : at + HEADER_BYTES - 4]).to_bytes(4, "little")
    assert isinstance(read(bytes(bad)).verdict, Corrupt)


def test_frames_cannot_be_taken_out_repeated_or_moved_to_another_file():
    data, ends = write(SMALL)
    a, b, c = (e.offset for e in ends[:3])
    assert isinstance(read(data[:a] + data[b:]).verdict, Corrupt)
    assert isinstance(read(data[:b] + data[a:b] + bytes(100)).verdict, Corrupt)
    other, _ = write([HEADER, batch(7), batch(8, b"z" * 30)])
    assert isinstance(read(data[:b] + other[b:c] + bytes(100)).verdict, Corrupt)
    assert isinstance(read(data, chain=1).verdict, Corrupt)
    assert isinstance(scan(data, End(0, 0, 0), FILE + 1).verdict, Corrupt)


def test_what_is_sealed_opens_in_its_place_with_its_key_only():
    at = End(64, 3, 99)
    secret = b"the secret" * 5
    data, _ = frame(batch(1, secret), at, FILE, SEALER, b"context")
    assert secret not in data
    other = AesGcmSealer("key", b"\1" * 32, os.urandom)
    assert read_frame(data, at, FILE, SEALER, b"context", start=0)[0] == batch(1, secret)
    for sealer, context in ((other, b"context"), (SEALER, b"another"), (PLAIN, b"context")):
        assert isinstance(read_frame(data, at, FILE, sealer, context, start=0), str)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_noise_is_never_read_as_records(noise):
    assert read(noise).records == ()
    data, ends = write(SMALL)
    assert read(data[: ends[-1].offset] + noise).records == tuple(SMALL)


def test_a_record_of_an_unknown_kind_is_not_cut():
    payload = b"\x92\xa7unknown\x01"
    head = struct.pack("<4sIIB3xQ", b"mwl2", len(payload), 0, 0, FILE)
    head += zlib.crc32(payload, zlib.crc32(head)).to_bytes(4, "little")
    head += zlib.crc32(head).to_bytes(4, "little")
    data = head + payload
    data += b"\xa5" * (8 - len(data) % 8)
    found = read(data.ljust(SIZE, b"\0"))
    assert isinstance(found.verdict, Corrupt)
    assert "cannot read" in found.verdict.reason
