"""The rows of a cluster as the log makes them: a state machine, pure. The same on every manager at the same commit.

Its *digest* is kept by the way: the sum, modulo 2^128, of a hash of every row there is (kind, id, version, blob). It
costs a microsecond for each row that changes, depends on nothing but what is there, and can be made again from the rows
alone; so managers compare theirs at the same commit, and a snapshot says what its rows must add up to. What row was
written by which commit is in it: `version` is one of the things hashed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import msgspec

from control.store.backend import Proposal
from control.store.errors import Damaged
from control.store.record import Row, RowChange
from control.store.sortedmap import SortedMap
from control.store.wal import UNREADABLE

RowMap = SortedMap[tuple[str, str], Row]

DIGEST_BYTES = 16
_MODULUS = 1 << (8 * DIGEST_BYTES)
# Of a snapshot: a chunk of some 100 kB takes well under a millisecond to make, so no thread that makes them holds the
# interpreter for long.
CHUNK_ROWS = 256
CHUNK_BYTES = 1024 * 1024  # at most about this, by one row; the largest row is less


class _Commit(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The data of an entry of the log."""

    version: int
    changes: tuple[RowChange, ...]


class _Begin(msgspec.Struct, frozen=True, array_like=True, tag="begin", gc=False):
    """The first chunk of a snapshot."""

    version: int
    count: int
    digest: bytes


class _Rows(msgspec.Struct, frozen=True, array_like=True, tag="rows", gc=False):
    """The others."""

    rows: tuple[Row, ...]


_encoder = msgspec.msgpack.Encoder()
_commit_decoder = msgspec.msgpack.Decoder(_Commit)
_chunk_decoder: msgspec.msgpack.Decoder[_Begin | _Rows] = msgspec.msgpack.Decoder(_Begin | _Rows)


def encode_commit(commit: Proposal) -> bytes:
    """The commit as the data of a log entry."""
    return _encoder.encode(_Commit(commit.version, commit.changes))


def decode_commit(data: bytes) -> Proposal:
    """Inverse. Raises Damaged: an entry that was agreed upon and cannot be read must stop the manager."""
    try:
        found = _commit_decoder.decode(data)
    except UNREADABLE as error:
        raise Damaged(f"an entry of the log cannot be read by this version of meshd: {error}") from error
    return Proposal(found.version, found.changes)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """All rows after one commit. Never changes; the next one shares almost everything."""

    version: int = 0
    rows: RowMap = SortedMap()  # noqa: RUF009 - immutable
    total: int = 0

    @property
    def digest(self) -> str:
        """What managers compare: equal if, but for chance, the states at this version are."""
        return f"{self.version}:{self.total:032x}"

    def apply(self, commit: Proposal) -> State:
        """The state after a commit."""
        editor = self.rows.edit()
        total = self.total
        for change in commit.changes:
            key = (change.kind, change.id)
            before = self.rows.get(key)
            if before is not None:
                total -= row_hash(before)
            if change.blob is None:
                editor.delete(key)
            else:
                row = Row(change.kind, change.id, commit.version, change.blob)
                editor.set(key, row)
                total += row_hash(row)
        return State(commit.version, editor.done(), total % _MODULUS)

    def misfit(self, commit: Proposal) -> RowChange | None:
        """The first change that was not made for this state."""
        for change in commit.changes:
            row = self.rows.get((change.kind, change.id))
            if (row.version if row is not None else 0) != change.expected:
                return change
        return None

    def chunks(self) -> Iterator[bytes]:
        """The state as the chunks of a snapshot. May be drawn in another thread, and over any time."""
        return chunks_of(self.version, self.rows.values(), self.total)

    @staticmethod
    def of_rows(version: int, rows: Iterable[Row]) -> State:
        """The state of these rows."""
        editor = RowMap().edit()
        total = 0
        for row in rows:
            editor.set((row.kind, row.id), row)
            total += row_hash(row)
        return State(version, editor.done(), total % _MODULUS)

    @staticmethod
    def of(chunks: Iterable[bytes]) -> State:
        """Inverse of `chunks`. Raises Damaged."""
        editor = RowMap().edit()
        version, total = read_rows(chunks, lambda row, _: editor.set((row.kind, row.id), row))
        return State(version, editor.done(), total)


@dataclass(frozen=True, slots=True, eq=False)
class FrozenRows:
    """A state that is not changed any more, in no order."""

    version: int
    rows: dict[tuple[str, str], Row]
    total: int

    def chunks(self) -> Iterator[bytes]:
        """As of `State`."""
        return chunks_of(self.version, self.rows.values(), self.total)


class Ledger:
    """The same state machine, changed in place: a commit of one change costs a quarter of what it does to a `State`
    of 100,000 rows. To be read while it goes on it is copied (4 ms for so many): `freeze`.

    The hash of each row is kept beside it: to make it again when the row goes would cost as much as all the rest.
    """

    __slots__ = ("_hashes", "rows", "total", "version")

    def __init__(self) -> None:
        self.version = self.total = 0
        self.rows: dict[tuple[str, str], Row] = {}
        self._hashes: dict[tuple[str, str], int] = {}

    @property
    def digest(self) -> str:
        """As of `State`."""
        return f"{self.version}:{self.total:032x}"

    def apply(self, commit: Proposal) -> None:
        """Make a commit that was agreed on. Raises Damaged if it was not made for this state; that is the end of it."""
        if commit.version != self.version + 1:
            raise Damaged(f"commit {commit.version} does not go on top of commit {self.version}")
        rows, hashes, total, version = self.rows, self._hashes, self.total, commit.version
        for change in commit.changes:
            key = (change.kind, change.id)
            before = rows.get(key)
            if (before.version if before is not None else 0) != change.expected:
                raise Damaged(f"commit {version} was not made for the {change.kind} {change.id} that is here")
            if before is not None:
                total -= hashes[key]
            if change.blob is not None:
                row = rows[key] = Row(change.kind, change.id, version, change.blob)
                part = hashes[key] = row_hash(row)
                total += part
            elif before is not None:
                del rows[key], hashes[key]
        self.version, self.total = version, total % _MODULUS

    def freeze(self) -> FrozenRows:
        """What it is now."""
        return FrozenRows(self.version, self.rows.copy(), self.total)

    @staticmethod
    def of(chunks: Iterable[bytes]) -> Ledger:
        """Of a snapshot. Raises Damaged."""
        ledger = Ledger()

        def take(row: Row, part: int) -> None:
            key = (row.kind, row.id)
            ledger.rows[key], ledger._hashes[key] = row, part

        ledger.version, ledger.total = read_rows(chunks, take)
        return ledger


def chunks_of(version: int, rows: Collection[Row], total: int) -> Iterator[bytes]:
    """A state as the chunks of a snapshot."""
    yield _encoder.encode(_Begin(version, len(rows), total.to_bytes(DIGEST_BYTES, "big")))
    values = iter(rows)
    while part := list(islice(values, CHUNK_ROWS)):
        size, start = 0, 0
        for i, row in enumerate(part):
            size += len(row.blob)
            if size > CHUNK_BYTES:
                yield _encoder.encode(_Rows(tuple(part[start : i + 1])))
                size, start = 0, i + 1
        if start < len(part):
            yield _encoder.encode(_Rows(tuple(part[start:])))


def read_rows(chunks: Iterable[bytes], take: Callable[[Row, int], None]) -> tuple[int, int]:
    """Inverse of `chunks_of`: the version and the total; each row goes to `take`, with its hash. Raises Damaged."""
    begin: _Begin | None = None
    total = count = 0
    for data in chunks:
        try:
            chunk = _chunk_decoder.decode(data)
        except UNREADABLE as error:
            raise Damaged(f"a snapshot cannot be read by this version of meshd: {error}") from error
        match chunk:
            case _Begin() if begin is None:
                begin = chunk
            case _Rows(rows) if begin is not None:
                for row in rows:
                    part = row_hash(row)
                    take(row, part)
                    total += part
                count += len(rows)
            case _:
                raise Damaged("a snapshot has something that does not belong there")
    total %= _MODULUS
    if begin is None or count != begin.count or total.to_bytes(DIGEST_BYTES, "big") != begin.digest:
        raise Damaged("the rows of a snapshot are not those that it was made of")
    return begin.version, total


def row_hash(row: Row) -> int:
    """A row's part of the digest."""
    head = f"{len(row.kind)} {row.kind} {len(row.id)} {row.id} {row.version} ".encode()
    return int.from_bytes(blake2b(head + row.blob, digest_size=DIGEST_BYTES).digest(), "big")
