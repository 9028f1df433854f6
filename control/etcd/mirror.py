"""What one manager knows of the store in etcd: a core. Revisions of the prefix go in, commits come out.

It keeps no blobs but those on their way (the store above has the objects), only which version each row has, so that
commits can be checked before they are sent, and who would lead. Leadership comes out of the same ordered stream as the
commits: whoever sees itself become the oldest candidate has seen every commit of the leader before it, because a
commit needs its leader's key to be there (`wire`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from control.etcd.sealed import BlobSeal
from control.etcd.wire import Commit, CommitRecord, Head, Keys, RowKey, StoredRow, decode_head, decode_row, part_keys
from control.store.errors import BackendFailed
from control.store.record import Row, RowChange


class KeyChange(NamedTuple):
    """One key as it is after a revision. `value` None: it is gone."""

    key: bytes
    value: bytes | None
    create_revision: int


class RowAt(NamedTuple):
    """Which version a row has, and where its blob lies if it has parts."""

    version: int
    part_key: bytes
    parts: int


@dataclass(frozen=True, slots=True)
class Run:
    """A manager that would lead. The one with the lowest `create_revision` does, and that is its term."""

    lease: int
    node_id: str
    create_revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys at one revision."""

    revision: int
    head: bytes
    head_revision: int
    rows: Sequence[KeyChange]
    parts: Sequence[KeyChange]
    runs: Sequence[KeyChange]


class Gap(Exception):
    """Revisions are missing: list everything anew."""


class Mirror:
    """See the module."""

    def __init__(self, keys: Keys, seal: BlobSeal) -> None:
        self._keys, self._seal = keys, seal
        self.revision = 0  # everything up to here is in
        self.version = 0  # of our last commit
        self.term = 0  # in which it was made
        self.head_revision = 0
        self.index: dict[RowKey, RowAt] = {}
        self.runs: dict[int, Run] = {}
        self._parts: dict[bytes, bytes] = {}  # pieces whose commit has not come yet

    def leader(self) -> Run | None:
        """The oldest candidate."""
        return min(self.runs.values(), key=lambda run: run.create_revision, default=None)

    def row_version(self, key: RowKey) -> int:
        """0: there is none."""
        at = self.index.get(key)
        return at.version if at is not None else 0

    def orphans(self) -> tuple[bytes, ...]:
        """Keys of parts that no row names. If no commit is under way, none ever will."""
        return tuple(self._parts)

    # --- all at once ----------------------------------------------------------------------------------------------

    def load(self, listing: Listing) -> tuple[Row, ...]:
        """Begin from here; all rows. Raises BackendFailed."""
        head = decode_head(listing.head)
        pieces = {change.key: change.value for change in listing.parts if change.value is not None}
        self.index = {}
        rows = []
        for change in listing.rows:
            assert change.value is not None, "a listing has no deleted keys"
            stored = decode_row(change.value)
            kind, id_ = self._keys.row_key(change.key)
            sealed = _blob(stored, pieces)
            if sealed is None:
                raise BackendFailed(f"etcd has lost a part of the {kind} {id_}: restore a backup")
            self.index[kind, id_] = RowAt(stored.version, stored.part_key, stored.parts)
            blob = self._seal.unseal(kind, id_, stored.version, stored.key_id, sealed)
            rows.append(Row(kind, id_, stored.version, blob))
        used = {key for at in self.index.values() for key in part_keys(at.part_key, at.parts)}
        self._parts = {key: value for key, value in pieces.items() if key not in used}
        self.runs = {}
        for change in listing.runs:
            self._run(change)
        self.revision, self.version, self.term = listing.revision, head.version, head.term
        self.head_revision = listing.head_revision
        return tuple(rows)

    # --- one revision after the other -----------------------------------------------------------------------------

    def apply(self, revision: int, changes: Iterable[KeyChange]) -> tuple[Commit, ...]:
        """Take in all changes of one revision; the commits in it. Raises Gap, BackendFailed."""
        if revision <= self.revision:
            return ()
        head: bytes | None = None
        rows: dict[RowKey, bytes | None] = {}
        for change in changes:
            key, value = change.key, change.value
            if key.startswith(self._keys.rows):
                rows[self._keys.row_key(key)] = value
            elif key.startswith(self._keys.parts):
                if value is None:
                    self._parts.pop(key, None)
                else:
                    self._parts[key] = value
            elif key.startswith(self._keys.runs):
                self._run(change)
            elif key == self._keys.head and value is not None:
                head = value
            else:
                raise _foreign(key)
        self.revision = revision
        if head is None:
            if rows:
                raise _foreign(self._keys.row(*next(iter(rows))))
            return ()
        self.head_revision = revision
        return self._commits(decode_head(head), rows)

    def _commits(self, head: Head, rows: dict[RowKey, bytes | None]) -> tuple[Commit, ...]:
        committed = tuple(self._commit(record, rows) for record in head.commits)
        if rows:
            raise _foreign(self._keys.row(*next(iter(rows))))
        if self.version != head.version:
            raise _foreign(self._keys.head)
        self.term = head.term
        self._parts.clear()  # of this transaction, and of those before it that never came to pass
        return committed

    def _commit(self, record: CommitRecord, rows: dict[RowKey, bytes | None]) -> Commit:
        if record.version != self.version + 1:
            raise Gap
        changes = []
        for touched in record.touched:
            key = touched.kind, touched.id
            if self.row_version(key) != touched.expected or key not in rows:
                raise BackendFailed(
                    f"commit {record.version} in etcd does not fit the {touched.kind} {touched.id}: "
                    "something that is not meshd has changed the keys of the store"
                )
            changes.append(RowChange(touched.kind, touched.id, touched.expected, self._value(key, rows.pop(key))))
        self.version = record.version
        return Commit(record.version, tuple(changes))

    def _value(self, key: RowKey, value: bytes | None) -> bytes | None:
        if value is None:
            self.index.pop(key, None)
            return None
        stored = decode_row(value)
        self.index[key] = RowAt(stored.version, stored.part_key, stored.parts)
        sealed = _blob(stored, self._parts)
        if sealed is None:
            raise Gap
        return self._seal.unseal(*key, stored.version, stored.key_id, sealed)

    def _run(self, change: KeyChange) -> None:
        try:
            lease = int(change.key[len(self._keys.runs) :], 16)
        except ValueError:
            raise _foreign(change.key) from None
        if change.value is None:
            self.runs.pop(lease, None)
        else:
            self.runs[lease] = Run(lease, change.value.decode(errors="replace"), change.create_revision)


def _blob(stored: StoredRow, pieces: dict[bytes, bytes]) -> bytes | None:
    """None if a piece is missing."""
    if stored.blob is not None:
        return stored.blob
    found = [pieces.get(key) for key in part_keys(stored.part_key, stored.parts)]
    present = [piece for piece in found if piece is not None]
    return b"".join(present) if len(present) == len(found) else None


def _foreign(key: bytes) -> BackendFailed:
    return BackendFailed(
        f"the key {key.decode(errors='replace')} in etcd was changed by something that is not meshd: "
        "stop it, and restore a backup"
    )
