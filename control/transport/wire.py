"""Bytes ⇄ values of the managers' own connections: a core.

A connection carries one *lane* in one direction, from the manager that opened it. It begins with a hello, which says
who it is from and for, and a welcome, or the reason why not; then come frames, until it ends.

    hello, welcome      magic (4) | version (2) | length (2) | CRC-32 of the body (4) | body, MessagePack
    frame               magic (1) | kind (1) | length (4) | CRC-32 (4) | payload

A frame does not repeat the cluster, epoch, sender and receiver: its checksum starts from that of the hello, so a frame
of another connection does not fit in. A length is judged before anything is read for it.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec

MAGIC = b"MSHR"
VERSION = 1
_PREAMBLE = struct.Struct("!4sHHI")
PREAMBLE_BYTES = _PREAMBLE.size
# Ids, and an address: a few hundred bytes.
BODY_MAX = 1024

FRAME_MAGIC = 0xA7
_HEADER = struct.Struct("!BBII")
_CHECKED = 6  # bytes of the header that the checksum covers
HEADER_BYTES = _HEADER.size

# What a lane may say at once. Urgent messages are tens of bytes each. An append holds at least one entry, and an entry
# one commit: 1.5 MiB of objects and 200 changes around them; a few of them share a frame.
URGENT_MAX = 256 * 1024
BULK_MAX = 8 * 1024 * 1024
CHUNK_BYTES = 512 * 1024
SNAPSHOT_MAX = CHUNK_BYTES + 64 * 1024


class Lane(enum.IntEnum):
    """What a connection is for. None waits for another."""

    URGENT = 0  # heartbeats, votes, and other small messages
    BULK = 1  # appends
    SNAPSHOT = 2  # one snapshot in chunks; answers come back on it


LIMITS = {Lane.URGENT: URGENT_MAX, Lane.BULK: BULK_MAX, Lane.SNAPSHOT: SNAPSHOT_MAX}


class Kind(enum.IntEnum):
    """What is in a frame."""

    MESSAGES = 1  # a MessagePack array of Raft messages
    OFFER = 2  # sender: a snapshot
    ACCEPT = 3  # receiver: go on from this offset
    CHUNK = 4  # sender: offset (8) | bytes
    ACK = 5  # receiver: everything below this offset is on disk
    RESULT = 6  # receiver: whether the whole is what was offered


class Answer(enum.IntEnum):
    """Why a hello is not welcome."""

    WELCOME = 0
    OTHER_CLUSTER = 1
    OTHER_EPOCH = 2
    OTHER_NODE = 3  # the receiver is not the node that was meant
    NOT_YOU = 4  # the certificate is another node's
    REMOVED = 5  # this node is not a manager any more
    FULL = 6


class BadBytes(Exception):
    """What came is not what a manager sends. The text is for counting: a few constants."""


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """Who opens a connection, and for what. `address` is where it listens itself; host "" is that of the connection."""

    cluster_id: str
    epoch: int
    sender: str
    receiver: str
    lane: int
    address: str = ""


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a hello."""

    answer: int
    node_id: str
    epoch: int


class Offer(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot that is to be sent. `message` is what the receiver's core gets when it has it all."""

    size_bytes: int
    sha256: bytes
    message: bytes


class Accept(msgspec.Struct, frozen=True, array_like=True):
    """Also an ACK: everything below is on disk."""

    offset: int


class Result(msgspec.Struct, frozen=True, array_like=True):
    """The end of a snapshot."""

    ok: bool


Body = TypeVar("Body", Hello, Welcome, Offer, Accept, Result)

_encoder = msgspec.msgpack.Encoder()


def encode(body: Hello | Welcome | Offer | Accept | Result) -> bytes:
    """MessagePack."""
    return _encoder.encode(body)


def decode(cls: type[Body], data: bytes) -> Body:
    """Inverse of `encode`. Raises BadBytes."""
    try:
        return msgspec.msgpack.decode(data, type=cls)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBytes("body") from error


# --- the beginning ------------------------------------------------------------------------------------------------


def preamble(body: bytes) -> bytes:
    """A hello or a welcome, as sent."""
    assert len(body) <= BODY_MAX, "ids and addresses are bounded"
    return _PREAMBLE.pack(MAGIC, VERSION, len(body), zlib.crc32(body)) + body


@dataclass(frozen=True, slots=True)
class Preamble:
    """The fixed part, judged: how long the body is, and its checksum."""

    length: int
    checksum: int

    @classmethod
    def parse(cls, data: bytes) -> Preamble:
        """Raises BadBytes."""
        magic, version, length, checksum = _PREAMBLE.unpack(data)
        if magic != MAGIC:
            raise BadBytes("magic")
        if version != VERSION:
            raise BadBytes("version")
        if length > BODY_MAX:
            raise BadBytes("length")
        return cls(length, checksum)

    def check(self, body: bytes) -> None:
        """Raises BadBytes."""
        if zlib.crc32(body) != self.checksum:
            raise BadBytes("checksum")


def seed_of(hello: bytes) -> int:
    """What the checksums of all frames of a connection start from."""
    return zlib.crc32(hello)


# --- frames -------------------------------------------------------------------------------------------------------


def frame(kind: Kind, payload: bytes, seed: int) -> bytes:
    """A frame, as sent."""
    head = struct.pack("!BBI", FRAME_MAGIC, kind, len(payload))
    return head + zlib.crc32(payload, zlib.crc32(head, seed)).to_bytes(4, "big") + payload


class Frames:
    """Takes bytes as they come, gives frames."""

    def __init__(self, seed: int, limit: int) -> None:
        self._seed, self._limit = seed, limit
        self._buffer = bytearray()
        self.complete = 0  # frames so far

    @property
    def partial(self) -> bool:
        """Whether the rest of a frame is awaited."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """The frames that are complete now. Raises BadBytes, after which the connection must end."""
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= HEADER_BYTES:
                magic, kind, length, checksum = _HEADER.unpack_from(self._buffer, at)
                if magic != FRAME_MAGIC:
                    raise BadBytes("frame magic")
                if length > self._limit:
                    raise BadBytes("frame length")
                if len(self._buffer) - at - HEADER_BYTES < length:
                    break
                with memoryview(self._buffer) as view:
                    head, payload = (
                        bytes(view[at : at + _CHECKED]),
                        bytes(view[at + HEADER_BYTES : at + HEADER_BYTES + length]),
                    )
                if zlib.crc32(payload, zlib.crc32(head, self._seed)) != checksum:
                    raise BadBytes("frame checksum")
                at += HEADER_BYTES + length
                self.complete += 1
                yield _kind(kind), payload
        finally:
            del self._buffer[:at]


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError as error:
        raise BadBytes("frame kind") from error


def chunk(offset: int, data: bytes) -> bytes:
    """The payload of a CHUNK."""
    return offset.to_bytes(8, "big") + data


def parse_chunk(payload: bytes) -> tuple[int, bytes]:
    """Inverse of `chunk`. Raises BadBytes."""
    if len(payload) < 8:
        raise BadBytes("chunk")
    return int.from_bytes(payload[:8], "big"), payload[8:]
