"""What another leader's commits have written here and nobody has looked at yet: pure.

A follower needs the rows at once, and its backend has them. The objects, their indexes and their events only matter
once somebody looks, and by then most of them may have been written again: each row is decoded once, as it is in the
end. That is two thirds of what a commit costs a follower.

`advance` works off a part at a time and never shows a view between two commits: it gives one when everything that was
there when it began is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from control.model import KINDS, Object
from control.store.errors import BackendFailed
from control.store.record import RowChange
from control.store.rows import decode
from control.store.tables import Event, Snapshot, event

# Rows of a round that are worked off in the order of their keys: neighbours are in one leaf of a table, which is then
# copied once for all of them. Among 100,000 objects that makes a row of 12 us one of 9; to sort so many takes 4 ms.
SORTED_ROWS = 5_000

_Key = tuple[str, str]
_Net = tuple[int, bytes | None]  # the version of the row before all that is deferred, and the row after it


class Deferred:
    """See the module. Holds a row once, however often it is written."""

    def __init__(self) -> None:
        self.version = 0  # of the last commit in it
        self._rows: dict[_Key, _Net] = {}
        self._work: list[tuple[_Key, _Net]] = []  # a round: rows that were there when it began
        self._next: list[tuple[_Key, _Net]] = []  # of the round, those that come next, in order
        self._target = 0  # the version that the round leads to
        self._base: Snapshot | None = None  # the view as far as the round has got

    def __len__(self) -> int:
        return len(self._rows) + len(self._work) + len(self._next)

    def __bool__(self) -> bool:
        return bool(self.version)  # also with a commit that changes nothing in the end

    @property
    def working(self) -> bool:
        """Whether a round has begun and is not over."""
        return self._base is not None

    def add(self, version: int, changes: Sequence[RowChange]) -> None:
        """One more commit. Raises BackendFailed if it removes what never was."""
        self.version = version
        rows = self._rows
        for change in changes:
            key = (change.kind, change.id)
            held = rows.get(key)
            if change.blob is None and not change.expected:
                raise diverged(version, *key)
            rows[key] = (change.expected if held is None else held[0], change.blob)

    def advance(self, view: Snapshot, limit: int) -> Snapshot | None:
        """Work off at most `limit` rows on top of `view`; the next view once a round is over, else None.

        Raises BackendFailed if something does not fit on top of it.
        """
        if self._base is None:
            self._base, self._target = view, self.version
            self._work, self._rows = list(self._rows.items()), {}
        if not self._next:
            self._next = sorted(self._work[-SORTED_ROWS:], key=itemgetter(0))
            del self._work[-SORTED_ROWS:]
        part = self._next[-limit:]
        del self._next[-limit:]
        self._base = self._base.apply(self._target, _events(self._base, part, self._target))
        if self._work or self._next:
            return None
        after, self._base = self._base, None
        if not self._rows and self._target == self.version:
            self.version = 0
        return after


def _events(view: Snapshot, part: Sequence[tuple[_Key, _Net]], version: int) -> list[Event]:
    found = []
    for (kind, id_), (expected, blob) in part:
        before = existing(view, kind, id_)
        if (before.meta.version if before is not None else 0) != expected:
            raise diverged(version, kind, id_)
        if before is not None or blob is not None:
            found.append(event(before, decode(kind, blob) if blob is not None else None))
    return found


def existing(view: Snapshot, kind: str, id: str) -> Object | None:  # noqa: A002 - as of rows
    """The object of a row, None also if its kind is not known here."""
    cls = KINDS.get(kind)  # type: ignore[call-overload]
    found: Object | None = view.get(cls, id) if cls is not None else None
    return found


def diverged(version: int, kind: str, id: str) -> BackendFailed:  # noqa: A002 - as of rows
    """What to fail with."""
    return BackendFailed(f"commit {version} does not fit the {kind} {id} here: this manager's copy has diverged")
