"""The write-ahead log's bytes ⇄ values, and the judgement of what a crash leaves behind.

A file is a sequence of *frames*, one for each write that was synced as a whole (a group of commits), so at most the
last frame can be incomplete after a crash:

    magic u32 | length u32 | number u64 | chain u32 | header check u32 | payload | 0xA5, once or more, to 8 bytes

(little endian). `number` counts the frames of the file from 0. `chain` is the CRC-32 of the frame continued from the
chain of the frame before, so no frame can be missing or come from elsewhere; the first continues from the file before.
The header check covers the header alone, so that a header can be recognised without what is before it.

The payload is a record in MessagePack. A log begins with a `Header` and goes on with `Group`s; a snapshot is a
`Header`, `Rows`, and a `Footer` without which it is not whole.

Crash or corruption (reference/raft-and-store.md 2.4; etcd's `isTornEntry`): a crash loses the end of the last write,
or whole sectors of it, which then are missing or zero. So a bad last frame is *torn*, and cut, if it is shorter than it
should be or has a sector of zeros. A bad frame with a good header after it was synced once, and one that is bad in any
other way did not come from a crash: that is corruption, and never repaired silently.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import msgspec

from control.store.record import Row, RowChange

FORMAT = 1
MAGIC = b"mwl1"
_HEAD = struct.Struct("<4sIQ")  # magic, length, number
_CHECKS = struct.Struct("<II")  # chain, header check
HEADER_BYTES = _HEAD.size + _CHECKS.size
_ALIGN = 8
_FILL = b"\xa5"  # not zero: the last sector of a frame is never zero once written
SECTOR_BYTES = 512  # the least that disks write as a whole


class Header(msgspec.Struct, frozen=True, array_like=True, tag="header", gc=False):
    """First in every file."""

    format: int
    cluster_id: str
    generation: int  # a snapshot and the log that goes on from it have the same
    version: int  # of the state that the file begins with (log) or holds (snapshot)
    term: int
    chain: int  # of the end of the log before, 0 for a snapshot and the first log


class WrittenCommit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One commit in a log."""

    version: int
    changes: tuple[RowChange, ...]


class Group(msgspec.Struct, frozen=True, array_like=True, tag="group", gc=False):
    """Commits that were synced together."""

    term: int
    commits: tuple[WrittenCommit, ...]


class Rows(msgspec.Struct, frozen=True, array_like=True, tag="rows", gc=False):
    """A part of a snapshot."""

    rows: tuple[Row, ...]


class Footer(msgspec.Struct, frozen=True, array_like=True, tag="footer", gc=False):
    """Last in a snapshot."""

    count: int  # rows in all


Record = Header | Group | Rows | Footer

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


@dataclass(frozen=True, slots=True)
class End:
    """Where the next frame of a file goes."""

    offset: int  # bytes
    number: int
    chain: int


@dataclass(frozen=True, slots=True)
class Clean:
    """Every byte of the file belongs to a good frame."""


@dataclass(frozen=True, slots=True)
class Torn:
    """The last write did not get to the disk as a whole: cut the file at `Scan.end`."""

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


def frame(record: Record, at: End) -> tuple[bytes, End]:
    """A record as the frame to write at `at`, and where the next one goes."""
    payload = _encoder.encode(record)
    head = _HEAD.pack(MAGIC, len(payload), at.number)
    chain = zlib.crc32(payload, zlib.crc32(head, at.chain))
    head += chain.to_bytes(4, "little")
    head += zlib.crc32(head).to_bytes(4, "little")
    size = _frame_bytes(len(payload))
    data = b"".join((head, payload, _FILL * (size - HEADER_BYTES - len(payload))))
    return data, End(at.offset + size, at.number + 1, chain)


def scan(data: bytes, chain: int = 0) -> Scan:
    """Read a whole file. `chain` is what its first frame continues from."""
    records: list[Record] = []
    end = End(0, 0, chain)
    verdict: Verdict = Clean()
    while end.offset < len(data):
        found = _read(data, end)
        if isinstance(found, str):
            verdict = _judge(data, end, found)
            break
        record, end = found
        records.append(record)
    return Scan(tuple(records), end, verdict)


def first_header(data: bytes) -> Header | None:
    """The header of a file, whatever chain it continues; None if it has no good one."""
    head = _header_at(data, 0)
    if head is None or _frame_bytes(head[0]) > len(data):
        return None
    try:
        record = _decoder.decode(data[HEADER_BYTES : HEADER_BYTES + head[0]])
    except msgspec.DecodeError:
        return None
    return record if isinstance(record, Header) else None


def _frame_bytes(length: int) -> int:
    return (HEADER_BYTES + length) // _ALIGN * _ALIGN + _ALIGN


def _read(data: bytes, at: End) -> tuple[Record, End] | str:
    """The record of the frame at `at` and where the next one is; or what is wrong with it."""
    head = _header_at(data, at.offset)
    if head is None:
        return "its header is bad"
    length, number, chain = head
    if number != at.number:
        return f"it is number {number} where {at.number} should be"
    size = _frame_bytes(length)
    if at.offset + size > len(data):
        return "it is incomplete"
    start = at.offset + HEADER_BYTES
    payload = data[start : start + length]
    fill = data[start + length : at.offset + size]
    if zlib.crc32(payload, zlib.crc32(data[at.offset : at.offset + _HEAD.size], at.chain)) != chain:
        return "its checksum is wrong"
    if fill != _FILL * len(fill):
        return "its end is bad"
    try:
        record = _decoder.decode(payload)
    except msgspec.DecodeError as error:
        return f"this version of meshd cannot read it ({error})"
    return record, End(at.offset + size, number + 1, chain)


def _header_at(data: bytes, offset: int) -> tuple[int, int, int] | None:
    """(length, number, chain) of a header that is good by itself."""
    head = data[offset : offset + HEADER_BYTES]
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        return None
    chain, check = _CHECKS.unpack_from(head, _HEAD.size)
    if zlib.crc32(head[:-4]) != check:
        return None
    _, length, number = _HEAD.unpack_from(head)
    return length, number, chain


def _judge(data: bytes, at: End, reason: str) -> Verdict:
    """A bad frame at `at`: torn or corrupt."""
    later = _later_header(data, at)
    if later is not None:
        return Corrupt(f"{reason}, but what was written after it is there (at byte {later})")
    head = _header_at(data, at.offset)
    if head is not None and head[1] != at.number:
        return Corrupt(reason)
    cut_short = (
        at.offset + _frame_bytes(head[0]) > len(data) if head is not None else len(data) - at.offset < HEADER_BYTES
    )
    if cut_short or _has_zero_sector(data, at.offset):
        return Torn(len(data) - at.offset)
    return Corrupt(reason)


def _later_header(data: bytes, at: End) -> int | None:
    """Where behind `at` there is a good header of a later frame."""
    offset = data.find(MAGIC, at.offset + _ALIGN)
    while offset >= 0:
        head = _header_at(data, offset) if offset % _ALIGN == 0 else None
        if head is not None and head[1] > at.number:
            return offset
        offset = data.find(MAGIC, offset + 1)
    return None


def _has_zero_sector(data: bytes, start: int) -> bool:
    """Whether one of the sectors, or the parts of them behind `start`, is nothing but zeros."""
    while start < len(data):
        end = (start // SECTOR_BYTES + 1) * SECTOR_BYTES
        if not any(data[start:end]):
            return True
        start = end
    return False
