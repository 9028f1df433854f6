"""Snapshots on their way between managers, and the messages that go with them.

What is sent is the plain chunks of the snapshot, each with its length, encrypted under a key that is made for this
sending and travels in its `Shipment` alone (over TLS): each manager's disk has keys of its own, and what a receiver
spools must not lie there readable. The cipher is a stream that can be entered anywhere, so chunks can be resumed; what
it does not do, to say that nothing was changed, the digest of the whole does.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from control.raft import messages
from control.raft.messages import HEAD_BYTES, Head, InstallSnapshot, Message
from control.store.errors import Damaged
from control.store.record import SnapshotMeta
from control.store.snapshots import CHUNK_MAX_BYTES
from control.store.state import Ledger
from control.transport.codec import StructCodec

KEY_BYTES = 32
_BLOCK_BYTES = 16
_LENGTH_BYTES = 4


class Shipment(Head, frozen=True, array_like=True, gc=False, tag=64):
    """In place of InstallSnapshot on the wire; never on its own."""

    URGENT = False
    snapshot: SnapshotMeta
    key: bytes

    def install(self) -> InstallSnapshot:
        """What the core gets when all has come."""
        return InstallSnapshot(self.sender, self.receiver, self.term, self.snapshot)


class Comparison(Head, frozen=True, array_like=True, gc=False, tag=65):
    """What the leader's state is at a version: whoever has another one there has gone astray."""

    URGENT = False
    version: int
    digest: str


class Whereabouts(Head, frozen=True, array_like=True, gc=False, tag=66):
    """Where the sender is connected with others, host:port by node id: who knows one manager soon knows all."""

    URGENT = False
    addresses: dict[str, str]


Wire = Message | Shipment | Comparison | Whereabouts


def wire_codec() -> StructCodec[Wire]:
    """For the transport."""
    return StructCodec(Wire, ends=messages.ends, size_bytes=_size_bytes, urgent=messages.urgent)  # type: ignore[arg-type]


def _size_bytes(message: Wire) -> int:
    match message:
        case Shipment(snapshot=snapshot, key=key):
            return HEAD_BYTES + len(snapshot.data) + len(key)
        case Comparison():
            return HEAD_BYTES
        case Whereabouts(addresses=addresses):
            return HEAD_BYTES * (1 + len(addresses))
        case _:
            return messages.size_bytes(message)


class Parcel:
    """A snapshot as it is sent: implements `control.transport.spool.Source`. Made by `of`.

    `chunks` gives the same each time. It is drawn three times in all if nothing breaks, and only a piece is held.
    """

    def __init__(self, chunks: Callable[[], Iterable[bytes]], key: bytes) -> None:
        self._chunks, self._key = chunks, key
        self._stream: Iterator[bytes] = iter(())
        self._at, self._left = 0, b""
        self.size_bytes = 0
        self.sha256 = b""

    @classmethod
    def of(cls, chunks: Callable[[], Iterable[bytes]], key: bytes) -> Parcel:
        """Blocks while it reads it all. Raises Damaged."""
        parcel = cls(chunks, key)
        digest, size, stream = hashlib.sha256(), 0, _cipher(key, 0)
        for piece in _framed(chunks()):
            digest.update(stream.update(piece))
            size += len(piece)
        parcel.size_bytes, parcel.sha256 = size, digest.digest()
        return parcel

    def read(self, offset: int, size: int) -> bytes:
        """See Source. Sequential reads are cheap; another one begins anew. Raises OSError."""
        try:
            if offset != self._at:
                self._stream, self._at, self._left = iter(()), 0, b""
            if self._at == 0:
                self._stream = _framed(self._chunks())
                while self._at < offset and self._take(min(CHUNK_MAX_BYTES, offset - self._at)):
                    pass
            return _crypt(self._key, offset, self._take(size))
        except Damaged as error:  # it was superseded, and its file is gone: a newer one will be sent
            raise OSError(errno.ESTALE, str(error)) from error

    def _take(self, size: int) -> bytes:
        pieces, found = [self._left], len(self._left)
        while found < size and (piece := next(self._stream, None)) is not None:
            pieces.append(piece)
            found += len(piece)
        whole = b"".join(pieces)
        taken, self._left = whole[:size], whole[size:]
        self._at += len(taken)
        return taken


def unpack(path: Path, shipment: Shipment) -> Ledger:
    """The state in a file that has come whole. Blocks. Raises Damaged."""
    return Ledger.of(_chunks_of(path, shipment.key))


def _chunks_of(path: Path, key: bytes) -> Iterator[bytes]:
    stream = _cipher(key, 0)
    try:
        with path.open("rb") as file:
            while head := file.read(_LENGTH_BYTES):
                length = int.from_bytes(stream.update(head), "big")
                if length > CHUNK_MAX_BYTES:
                    raise Damaged("a snapshot of another manager cannot be read: a chunk of it is too long")
                yield stream.update(file.read(length))
    except OSError as error:
        raise Damaged(f"a snapshot of another manager cannot be read: {error.strerror}") from error


def _framed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield len(chunk).to_bytes(_LENGTH_BYTES, "big") + chunk


def _cipher(key: bytes, block: int) -> CipherContext:
    return Cipher(AES(key), CTR(block.to_bytes(_BLOCK_BYTES, "big"))).encryptor()


def _crypt(key: bytes, offset: int, data: bytes) -> bytes:
    block, skip = divmod(offset, _BLOCK_BYTES)
    stream = _cipher(key, block)
    stream.update(bytes(skip))
    return stream.update(data)


def is_key(key: bytes) -> bool:
    """Whether it has the length of one: it comes from another manager."""
    return len(key) == KEY_BYTES
