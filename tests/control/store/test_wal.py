"""The log's bytes: round trips, and what is torn and what is corrupt, at every byte."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.store.record import Row, RowChange
from control.store.wal import (
    HEADER_BYTES,
    SECTOR_BYTES,
    Clean,
    Corrupt,
    End,
    Footer,
    Group,
    Header,
    Rows,
    Torn,
    WrittenCommit,
    first_header,
    frame,
    scan,
)

HEADER = Header(1, "cluster", 0, 0, 1, 0)


def group(version, blob=b"x"):
    return Group(1, (WrittenCommit(version, (RowChange("task", f"t{version}", 0, blob),)),))


def write(records, chain=0):
    """The file, and where each frame ends."""
    data, at, ends = b"", End(0, 0, chain), []
    for record in records:
        more, at = frame(record, at)
        data += more
        ends.append(at)
    return data, ends


SMALL = [HEADER, group(1), group(2, b"y" * 30), group(3, b"")]
LARGE = [HEADER, group(1, bytes(range(1, 256)) * 9), group(2, bytes(range(1, 256)) * 12)]

blobs = st.none() | st.binary(max_size=40)
changes = st.builds(RowChange, st.text(max_size=5), st.text(max_size=5), st.integers(0, 2**63), blobs)
commits = st.builds(WrittenCommit, st.integers(0, 2**63), st.lists(changes, max_size=3).map(tuple))
records = st.one_of(
    st.builds(Header, st.just(1), st.text(max_size=9), *[st.integers(0, 2**32 - 1)] * 4),
    st.builds(Group, st.integers(0, 9), st.lists(commits, max_size=3).map(tuple)),
    st.builds(
        lambda rows: Rows(tuple(rows)),
        st.lists(st.builds(Row, st.text(), st.text(), st.integers(0, 2**63), st.binary()), max_size=3),
    ),
    st.builds(Footer, st.integers(0, 2**40)),
)


@given(st.lists(records, max_size=6), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_round_trip(some, chain):
    data, ends = write(some, chain)
    found = scan(data, chain)
    assert found.records == tuple(some)
    assert found.verdict == Clean()
    assert found.end == (ends[-1] if ends else End(0, 0, chain))
    assert len(data) % 8 == 0
    assert first_header(data) == (some[0] if some and isinstance(some[0], Header) else None)


@pytest.mark.parametrize("some", [SMALL, LARGE])
def test_cut_at_every_byte_gives_the_whole_frames_before_it(some):
    data, ends = write(some)
    offsets = [0, *(e.offset for e in ends)]
    for size in range(len(data)):
        whole = sum(e.offset <= size for e in ends)
        found = scan(data[:size])
        assert found.records == tuple(some[:whole])
        assert found.end.offset == offsets[whole]
        lost = size - offsets[whole]
        assert found.verdict == (Torn(lost) if lost else Clean()), size


@pytest.mark.parametrize("some", [SMALL, LARGE])
def test_a_tail_of_zeros_from_any_byte_of_the_last_frame_is_torn(some):
    """The size got to the disk, the data did not."""
    data, ends = write(some)
    start = ends[-2].offset
    # Sectors are written as a whole: data that did get there ends at a sector's end or is all of it.
    for kept in {start, *range(start // SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES, len(data), SECTOR_BYTES)}:
        found = scan(data[:kept] + bytes(len(data) - kept))
        assert found.records == tuple(some[:-1])
        assert found.verdict == Torn(len(data) - start)


def test_any_missing_sector_of_the_last_frame_is_torn():
    data, ends = write(LARGE)
    start = ends[-2].offset
    sectors = range(start // SECTOR_BYTES, len(data) // SECTOR_BYTES + 1)
    assert len(sectors) > 4
    for sector in sectors:
        low, high = max(sector * SECTOR_BYTES, start), min((sector + 1) * SECTOR_BYTES, len(data))
        found = scan(data[:low] + bytes(high - low) + data[high:])
        assert found.records == tuple(LARGE[:-1])
        assert found.verdict == Torn(len(data) - start), sector


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("some", [SMALL, LARGE])
def test_any_flipped_byte_is_corruption_and_never_cut(some, flip):
    data, ends = write(some)
    for i in range(len(data)):
        bad = bytearray(data)
        bad[i] ^= flip
        found = scan(bytes(bad))
        hit = sum(e.offset <= i for e in ends)
        assert found.records == tuple(some[:hit])
        assert isinstance(found.verdict, Corrupt), i


def test_a_zeroed_sector_before_the_last_frame_is_corruption():
    data, ends = write(LARGE)
    low = SECTOR_BYTES * 2
    assert ends[0].offset < low < ends[1].offset - SECTOR_BYTES
    found = scan(data[:low] + bytes(SECTOR_BYTES) + data[low + SECTOR_BYTES :])
    assert found.records == (HEADER,)
    assert isinstance(found.verdict, Corrupt)
    assert f"byte {ends[1].offset}" in found.verdict.reason


def test_a_bad_length_does_not_hide_what_follows():
    """A length that reaches beyond the file looks like a torn end, and would throw away synced frames."""
    data, ends = write(SMALL)
    at = ends[0].offset
    bad = bytearray(data)
    struct.pack_into("<I", bad, at + 4, 1 << 20)
    assert isinstance(scan(bytes(bad)).verdict, Corrupt)
    bad[at + HEADER_BYTES - 4 : at + HEADER_BYTES] = zlib.crc32(bad[at : at + HEADER_BYTES - 4]).to_bytes(4, "little")
    assert isinstance(scan(bytes(bad)).verdict, Corrupt)


def test_frames_cannot_be_taken_out_repeated_or_moved_to_another_file():
    data, ends = write(SMALL)
    a, b, c = (e.offset for e in ends[:3])
    assert isinstance(scan(data[:a] + data[b:]).verdict, Corrupt)
    assert isinstance(scan(data[:b] + data[a:b]).verdict, Corrupt)
    other, _ = write([HEADER, group(7), group(8)])
    assert isinstance(scan(data[:b] + other[b : b + c - b]).verdict, Corrupt)
    assert isinstance(scan(data, chain=1).verdict, Corrupt)


def test_zeros_behind_the_last_frame_are_cut():
    data, _ = write(SMALL)
    assert scan(data + bytes(100)).verdict == Torn(100)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_noise_is_never_read_as_records(noise):
    assert scan(noise).records == ()
    data, _ = write(SMALL)
    assert scan(data + noise).records == tuple(SMALL)


def test_a_record_of_an_unknown_kind_is_not_cut():
    payload = b"\x92\xa7unknown\x01"
    head = struct.pack("<4sIQ", b"mwl1", len(payload), 0)
    head += zlib.crc32(payload, zlib.crc32(head)).to_bytes(4, "little")
    head += zlib.crc32(head).to_bytes(4, "little")
    data = head + payload
    data += b"\xa5" * (8 - len(data) % 8)
    found = scan(data)
    assert isinstance(found.verdict, Corrupt)
    assert "cannot read" in found.verdict.reason
