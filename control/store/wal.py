"""The journal's bytes ⇄ values, and the judgement of what a crash leaves behind.

A file is a sequence of *frames*, one for each write that was synced as a whole (a group of appends), so at most the
last frame can be incomplete after a crash:

    magic u32 | length u32 | number u32 | mask u8, 3 zeros | file u64 | chain u32 | header check u32
    | payload | 0xA5, once or more, to 8 bytes

(little endian). `number` counts the frames of the file from 0; `file` is the segment's sequence, or the index of the
snapshot. `chain` is the CRC-32 of the frame continued from the chain of the frame before, so no frame can be missing
or come from elsewhere; the first frame of a segment continues from the segment before. The header check covers the
header alone, so that a header can be recognised without what is before it.

The payload is a record in MessagePack, sealed (`control.store.sealing`) but for the first of a file, which names the
key. A segment begins with a `SegmentHeader` and goes on with `Batch`es; a snapshot is a `SnapshotHeader`, `Chunk`s, and
a `Footer` without which it is not whole.

Crash or corruption (reference/raft-and-store.md 2.4; etcd's `isTornEntry`): segments are filled with zeros before they
are used. A crash loses whole sectors of the last write, which then still are zero; and no written sector is: where a
payload has so many zeros, all its bytes are stored XOR a `mask`. So a bad last frame is *torn*, and cut, if it has a
sector of zeros. A bad frame with anything written behind it was synced once, and one that is bad in any other way did
not come from a crash: that is corruption, and never repaired silently.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from control.store.record import Entry, HardState, SnapshotMeta
from control.store.sealing import PlainSealer, SealBroken, Sealer

FORMAT = 2  # 1 was the log of one manager alone
MAGIC = b"mwl2"
SECTOR_BYTES = 512  # the least that disks write as a whole
_HEAD = struct.Struct("<4sIIB3xQ")  # magic, length, number, mask, file
_CHECKS = struct.Struct("<II")  # chain, header check
HEADER_BYTES = _HEAD.size + _CHECKS.size
_ALIGN = 8
_FILL = b"\xa5"  # not zero: the last sector of a frame is never zero once written
_ZEROS = bytes(SECTOR_BYTES)


class SegmentHeader(msgspec.Struct, frozen=True, array_like=True, tag="segment", gc=False):
    """First in every segment: all that the segments before it said, but their entries."""

    format: int
    cluster_id: str
    sequence: int
    key_id: str
    chain: int  # of the end of the segment before, 0 for the first
    last_index: int  # of the log so far
    last_term: int
    hard_state: HardState
    snapshots: tuple[SnapshotMeta, ...]  # that are kept, oldest first


class Batch(msgspec.Struct, frozen=True, array_like=True, tag="batch", gc=False):
    """What was appended and synced together. An entry removes those at its index and above that came before it."""

    hard_state: HardState | None = None
    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMeta | None = None  # its file is safe
    replaces: bool = False  # the snapshot comes from another manager, and takes the place of the whole log


class SnapshotHeader(msgspec.Struct, frozen=True, array_like=True, tag="snapshot", gc=False):
    """First in every snapshot."""

    format: int
    cluster_id: str
    key_id: str
    meta: SnapshotMeta


class Chunk(msgspec.Struct, frozen=True, array_like=True, tag="chunk", gc=False):
    """A part of a snapshot."""

    data: bytes


class Footer(msgspec.Struct, frozen=True, array_like=True, tag="footer", gc=False):
    """Last in a snapshot."""

    chunks: int
    check: int  # CRC-32 of all chunks' data, one after the other


Record = SegmentHeader | Batch | SnapshotHeader | Chunk | Footer

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_MASKS = tuple(bytes(i ^ mask for i in range(256)) for mask in range(256))
PLAIN = PlainSealer()
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)  # the latter is no case of the former


@dataclass(frozen=True, slots=True)
class End:
    """Where the next frame of a file goes."""

    offset: int  # bytes
    number: int
    chain: int


@dataclass(frozen=True, slots=True)
class Clean:
    """Everything that was written belongs to a good frame."""


@dataclass(frozen=True, slots=True)
class Torn:
    """The last write did not get to the disk as a whole: fill the file from `Scan.end` on with zeros."""

    lost_bytes: int


@dataclass(frozen=True, slots=True)
class Corrupt:
    """The frame at `Scan.end` is bad, and no crash did it."""

    reason: str


Verdict = Clean | Torn | Corrupt


@dataclass(frozen=True, slots=True)
class Scan:
    """What is in a file: the records up to the first bad frame, and what to make of that."""

    records: tuple[Record, ...]
    end: End
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Head:
    """A frame's header that is good by itself."""

    length: int
    number: int
    mask: int
    file: int
    chain: int

    @property
    def frame_bytes(self) -> int:
        return frame_bytes(self.length)


def frame(record: Record, at: End, file: int, sealer: Sealer = PLAIN, context: bytes = b"") -> tuple[bytes, End]:
    """A record as the frame to write at `at`, and where the next one goes."""
    payload = sealer.seal(_encoder.encode(record), context + at.number.to_bytes(4, "little"))
    mask = _mask_for(payload)
    if mask:
        payload = payload.translate(_MASKS[mask])
    head = _HEAD.pack(MAGIC, len(payload), at.number, mask, file)
    chain = zlib.crc32(payload, zlib.crc32(head, at.chain))
    head += chain.to_bytes(4, "little")
    head += zlib.crc32(head).to_bytes(4, "little")
    size = frame_bytes(len(payload))
    data = b"".join((head, payload, _FILL * (size - HEADER_BYTES - len(payload))))
    return data, End(at.offset + size, at.number + 1, chain)


def frame_bytes(length: int) -> int:
    """Size of the frame of a payload of `length` bytes."""
    return (HEADER_BYTES + length) // _ALIGN * _ALIGN + _ALIGN


def read_head(data: bytes, offset: int = 0) -> Head | None:
    """The header at `offset`; None if there is no good one."""
    head = data[offset : offset + HEADER_BYTES]
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        return None
    chain, check = _CHECKS.unpack_from(head, _HEAD.size)
    if zlib.crc32(head[:-4]) != check:
        return None
    _, length, number, mask, file = _HEAD.unpack_from(head)
    return Head(length, number, mask, file, chain)


def read_frame(
    data: bytes, at: End, file: int, sealer: Sealer = PLAIN, context: bytes = b"", *, start: int | None = None
) -> tuple[Record, End] | str:
    """The record of the frame at `at` and where the next one is; or what is wrong with it.

    `start` is where in `data` the frame is, if `data` is not the whole file.
    """
    start = at.offset if start is None else start
    head = read_head(data, start)
    if head is None:
        return "its header is bad"
    if (head.number, head.file) != (at.number, file):
        return f"it is frame {head.number} of file {head.file} where {at.number} of {file} should be"
    if start + head.frame_bytes > len(data):
        return "it is incomplete"
    begin = start + HEADER_BYTES
    payload = data[begin : begin + head.length]
    fill = data[begin + head.length : start + head.frame_bytes]
    if zlib.crc32(payload, zlib.crc32(data[start : start + _HEAD.size], at.chain)) != head.chain:
        return "its checksum is wrong"
    if fill != _FILL * len(fill):
        return "its end is bad"
    if head.mask:
        payload = payload.translate(_MASKS[head.mask])
    try:
        record = _decoder.decode(sealer.unseal(payload, context + at.number.to_bytes(4, "little")))
    except SealBroken:
        return "it was not encrypted with this key, or not for this place"
    except UNREADABLE as error:
        return f"this version of meshd cannot read it ({error})"
    return record, End(at.offset + head.frame_bytes, at.number + 1, head.chain)


R = TypeVar("R", SegmentHeader, SnapshotHeader)


def first_record(data: bytes, of: type[R]) -> R | None:
    """The header of a file, whatever chain it continues; None if it has no good one."""
    head = read_head(data)
    if head is None or head.frame_bytes > len(data):
        return None
    payload = data[HEADER_BYTES : HEADER_BYTES + head.length]
    try:
        record = _decoder.decode(payload.translate(_MASKS[head.mask]))
    except UNREADABLE:
        return None
    return record if isinstance(record, of) else None


def scan(data: bytes, start: End, file: int, sealer: Sealer = PLAIN, context: bytes = b"") -> Scan:
    """Read a segment from `start` on, which is behind its header."""
    records: list[Record] = []
    end = start
    while True:
        found = read_frame(data, end, file, sealer, context)
        if isinstance(found, str):
            return Scan(tuple(records), end, _judge(data, end, found))
        record, end = found
        records.append(record)


def _mask_for(payload: bytes) -> int:
    """A mask with which the payload has no run of zeros as long as a sector."""
    if _ZEROS not in payload:
        return 0
    for mask in range(1, 256):
        if bytes((mask,)) * SECTOR_BYTES not in payload:
            return mask
    return 0  # 128 KiB made for this purpose: then its damage may be taken for a crash


def _judge(data: bytes, at: End, reason: str) -> Verdict:
    """A bad frame at `at`: nothing at all, torn, or corrupt."""
    written = len(data.rstrip(b"\0"))  # behind the last byte that is not zero
    if written <= at.offset:
        return Clean()
    head = read_head(data, at.offset)
    if head is None:
        later = _later_head(data, at)
        if later is not None:
            return Corrupt(f"{reason}, but what was written after it is there (at byte {later})")
        end = max(written, at.offset + HEADER_BYTES)
    elif head.number != at.number:
        return Corrupt(reason)
    else:
        end = at.offset + head.frame_bytes
        if end > len(data) or written > end:
            return Corrupt(f"{reason}, and something else is behind it")
    if any(not any(data[low:high]) for low, high in _sectors(at.offset, min(end, len(data)))):
        return Torn(written - at.offset)
    return Corrupt(reason)


def _later_head(data: bytes, at: End) -> int | None:
    """Where behind `at` there is a good header of a later frame."""
    offset = data.find(MAGIC, at.offset + _ALIGN)
    while offset >= 0:
        head = read_head(data, offset) if offset % _ALIGN == 0 else None
        if head is not None and head.number > at.number:
            return offset
        offset = data.find(MAGIC, offset + 1)
    return None


def _sectors(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The sectors of a file between two offsets, and the parts of them at both ends."""
    while start < end:
        high = min((start // SECTOR_BYTES + 1) * SECTOR_BYTES, end)
        yield start, high
        start = high
