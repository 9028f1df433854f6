"""Sending and receiving one snapshot in chunks: two cores, each a table of what may come when.

The sender offers it; the receiver says from where on it wants it (what an earlier connection has brought is on its
disk), acknowledges what it has written, and in the end says whether the whole is what was offered.
"""

from __future__ import annotations

import enum

from control.transport.wire import (
    CHUNK_BYTES,
    Accept,
    BadBytes,
    Kind,
    Offer,
    Result,
    chunk,
    decode,
    encode,
    parse_chunk,
)

# Chunks sent and not acknowledged: enough to fill a gigabit link over 15 ms, little enough to forget.
WINDOW_BYTES = 4 * CHUNK_BYTES
# A state of 100,000 tasks is some 40 MB; whoever announces more than this is mistaken.
SNAPSHOT_BYTES_MAX = 16 * 1024 * 1024 * 1024


class _State(enum.Enum):
    WAITING = enum.auto()  # for the answer to the offer
    MOVING = enum.auto()
    ENDED = enum.auto()


class Sending:
    """The sender's side of one connection."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._state = _State.WAITING
        self._next = 0
        self.acknowledged = 0
        self.ok: bool | None = None  # the result

    def begin(self) -> tuple[Kind, bytes]:
        """The first frame."""
        return Kind.OFFER, encode(self._offer)

    def wanted(self) -> tuple[int, int] | None:
        """Offset and size of the next chunk; None if it has to wait."""
        left = min(self._offer.size_bytes - self._next, self.acknowledged + WINDOW_BYTES - self._next)
        if self._state is not _State.MOVING or left <= 0:
            return None
        return self._next, min(CHUNK_BYTES, left)

    def chunk(self, data: bytes) -> tuple[Kind, bytes]:
        """The wanted chunk as a frame."""
        offset, self._next = self._next, self._next + len(data)
        return Kind.CHUNK, chunk(offset, data)

    def receive(self, kind: Kind, payload: bytes) -> None:
        """An answer. Raises BadBytes."""
        match self._state, kind:
            case _State.WAITING, Kind.ACCEPT:
                self._next = self.acknowledged = self._offset(payload, 0, self._offer.size_bytes)
                self._state = _State.MOVING
            case _State.MOVING, Kind.ACK:
                self.acknowledged = self._offset(payload, self.acknowledged, self._next)
            case ((_State.WAITING | _State.MOVING), Kind.RESULT):
                self.ok = decode(Result, payload).ok
                self._state = _State.ENDED
            case _:
                raise BadBytes("answer")

    def _offset(self, payload: bytes, low: int, high: int) -> int:
        offset = decode(Accept, payload).offset
        if not low <= offset <= high:
            raise BadBytes("offset")
        return offset


class Receiving:
    """The receiver's side of one connection. The shell writes to disk what `receive` gives it, then asks on."""

    def __init__(self) -> None:
        self.offer: Offer | None = None
        self._next = 0

    def receive(self, kind: Kind, payload: bytes) -> Offer | tuple[int, bytes]:
        """An offer to be answered by `accept`, or bytes to be written at an offset. Raises BadBytes."""
        match kind:
            case Kind.OFFER if self.offer is None:
                offer = decode(Offer, payload)
                if not 0 < offer.size_bytes <= SNAPSHOT_BYTES_MAX or len(offer.sha256) != 32:
                    raise BadBytes("offer")
                self.offer = offer
                return offer
            case Kind.CHUNK if self.offer is not None:
                offset, data = parse_chunk(payload)
                if offset != self._next or not data or offset + len(data) > self.offer.size_bytes:
                    raise BadBytes("chunk")
                return offset, data
            case _:
                raise BadBytes("frame kind")

    def accept(self, offset: int) -> tuple[Kind, bytes]:
        """Go on from here."""
        self._next = offset
        return Kind.ACCEPT, encode(Accept(offset))

    def written(self, size: int) -> tuple[Kind, bytes]:
        """So much more is on disk."""
        self._next += size
        return Kind.ACK, encode(Accept(self._next))

    def complete(self) -> bool:
        """Whether all of it is there."""
        return self.offer is not None and self._next == self.offer.size_bytes

    @staticmethod
    def result(ok: bool) -> tuple[Kind, bytes]:
        """The last frame."""
        return Kind.RESULT, encode(Result(ok))
