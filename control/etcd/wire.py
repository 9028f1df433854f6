"""Keys and values of the store in etcd.

    PREFIX/meta                     which cluster this is, and the format of the rest
    PREFIX/head                     the newest commits: versions, term, and which rows they touch
    PREFIX/row/KIND/ID              one row: the version of our own that wrote it, and its blob or where that is
    PREFIX/part/TERM/VERSION/N/I    a piece of a blob that is too large to go with its commit
    PREFIX/run/LEASE                a manager that would lead; the oldest one does

One etcd transaction writes the rows of one or several commits and the head. The head says what each commit was, which
the rows alone do not: who deletes leaves no version behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from control.store.errors import BackendFailed
from control.store.record import RowChange

T = TypeVar("T")

FORMAT = 1

# A blob above INLINE_MAX always goes into parts, and so do the largest of a commit until the rest is below TXN_BYTES:
# etcd refuses requests above 1.5 MiB, keys and envelopes counted, and one page of rows must stay readable at once.
INLINE_MAX = 64 * 1024
TXN_BYTES = 1024 * 1024
PART_BYTES = 512 * 1024


class Meta(msgspec.Struct, frozen=True, array_like=True):
    """Whose keys these are."""

    format: int
    cluster_id: str


class StoredRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The value of a row. `blob`, sealed, or else the key and number of its parts."""

    version: int
    blob: bytes | None
    part_key: bytes = b""  # without the last "/I"
    parts: int = 0
    key_id: str = ""  # with which the blob is sealed (`sealed`)


class Commit(NamedTuple):
    """One of our commits, proposed or done."""

    version: int
    changes: tuple[RowChange, ...]


class Touched(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One row of a commit; its new value is in its key."""

    kind: str
    id: str
    expected: int
    deleted: bool


class CommitRecord(msgspec.Struct, frozen=True, array_like=True):
    """One of our commits."""

    version: int
    touched: tuple[Touched, ...]


class Head(msgspec.Struct, frozen=True, array_like=True):
    """The commits of the last transaction. `version` is that of the last one; without commits: an empty store."""

    version: int
    term: int
    commits: tuple[CommitRecord, ...]


RowKey = tuple[str, str]

_encoder = msgspec.msgpack.Encoder()
_meta = msgspec.msgpack.Decoder(Meta)
_row = msgspec.msgpack.Decoder(StoredRow)
_head = msgspec.msgpack.Decoder(Head)


def encode(value: Meta | StoredRow | Head) -> bytes:
    """A value of a key."""
    return _encoder.encode(value)


def decode_meta(data: bytes) -> Meta:
    """Raises BackendFailed."""
    return _decoded(_meta, data, "meta")


def decode_row(data: bytes) -> StoredRow:
    """Raises BackendFailed."""
    return _decoded(_row, data, "row")


def decode_head(data: bytes) -> Head:
    """Raises BackendFailed."""
    return _decoded(_head, data, "head")


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BackendFailed(f"etcd holds a {what} of the store that meshd cannot read: {error}") from error


class Keys:
    """The keys below one prefix."""

    def __init__(self, prefix: str) -> None:
        self.root = prefix.encode() + b"/"
        self.meta = self.root + b"meta"
        self.head = self.root + b"head"
        self.rows = self.root + b"row/"
        self.parts = self.root + b"part/"
        self.runs = self.root + b"run/"

    def row(self, kind: str, id_: str) -> bytes:
        """Of one row."""
        return b"%s%s/%s" % (self.rows, kind.encode(), id_.encode())

    def row_key(self, key: bytes) -> RowKey:
        """Inverse of `row`. Raises BackendFailed."""
        kind, slash, id_ = key[len(self.rows) :].decode(errors="replace").partition("/")
        if not slash:
            raise BackendFailed(f"etcd holds the key {key.decode(errors='replace')}, which is not of meshd: remove it")
        return kind, id_

    def part_key(self, term: int, version: int, number: int) -> bytes:
        """Of the parts of the `number`-th blob of a commit, without the last piece."""
        return b"%s%016x/%016x/%d" % (self.parts, term, version, number)

    def run(self, lease: int) -> bytes:
        """Of a candidate."""
        return b"%s%016x" % (self.runs, lease)


def end_of(prefix: bytes) -> bytes:
    """The end of the range of all keys with this prefix, which ends with "/"."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def part_keys(part_key: bytes, parts: int) -> list[bytes]:
    """All keys of one blob in parts."""
    return [b"%s/%d" % (part_key, i) for i in range(parts)]


def record_of(commit: Commit) -> CommitRecord:
    """What the head says of a commit."""
    touched = (Touched(c.kind, c.id, c.expected, c.blob is None) for c in commit.changes)
    return CommitRecord(commit.version, tuple(touched))


def to_spill(changes: Sequence[RowChange]) -> frozenset[int]:
    """Places of the changes whose blobs must go into parts."""
    sizes = {i: len(c.blob) for i, c in enumerate(changes) if c.blob is not None}
    spilled = {i for i, size in sizes.items() if size > INLINE_MAX}
    rest = sum(size for i, size in sizes.items() if i not in spilled)
    for i in sorted(sizes.keys() - spilled, key=lambda i: sizes[i], reverse=True):
        if rest <= TXN_BYTES:
            break
        spilled.add(i)
        rest -= sizes[i]
    return frozenset(spilled)


def pieces(blob: bytes) -> Iterable[bytes]:
    """The parts of a blob, in order."""
    return (blob[at : at + PART_BYTES] for at in range(0, len(blob), PART_BYTES))
