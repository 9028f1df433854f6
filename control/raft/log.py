"""The replicated log as one member sees it: in memory, and how much of it is durable.

    base_index .. applied .. commit .. last_index      base_index <= applied <= min(commit, durable)
    base_index .. durable .. handed .. last_index      handed: given to the disk; durable: known to be there

**What counts as durable** (reference/raft-and-store.md 2.2, rule 5; case 22). Writes end in the order in which they
were given to the disk. When a suffix is replaced while the write of it is still under way, the end of that write says
nothing about what is in the log now, even if an equal entry has come back meanwhile: a later write will replace it on
the disk, and another one bring it back. So a write in flight only counts up to where the log was cut since.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from control.raft.messages import ENTRY_BYTES
from control.raft.ready import Inconsistent, Kind
from control.store.record import Entry, SnapshotMeta


class _Write(Protocol):
    """A write under way; `upto` is the last index of it that still counts."""

    upto: int


class Log:
    """See the module."""

    __slots__ = (
        "applied",
        "base_index",
        "base_term",
        "commit",
        "durable",
        "entries",
        "handed",
        "in_flight",
        "installing",
        "last_index",
        "uncommitted_bytes",
    )

    def __init__(self, base_index: int, base_term: int, entries: Sequence[Entry], commit: int, applied: int) -> None:
        """What the disk holds."""
        self.base_index = base_index
        self.base_term = base_term
        self.entries = list(entries)
        self.last_index = base_index + len(self.entries)
        self.commit = commit
        self.applied = applied
        self.durable = self.handed = self.last_index
        self.installing: SnapshotMeta | None = None  # a received snapshot that the disk has not been given yet
        self.in_flight: deque[_Write] = deque()
        self.uncommitted_bytes = 0
        if not base_index <= applied <= commit <= self.last_index:
            raise Inconsistent(f"the log ends at {self.last_index}, but {commit} were committed: entries are lost")
        self.uncommitted_bytes = self._bytes(commit + 1)

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def last_term(self) -> int:
        """Of the last entry."""
        return self.entries[-1].term if self.entries else self.base_term

    def term(self, index: int) -> int | None:
        """Of an entry; None if it is not there, or not any more."""
        at = index - self.base_index - 1
        if at >= 0:
            return self.entries[at].term if at < len(self.entries) else None
        return self.base_term if at == -1 else None

    def between(self, low: int, high: int, max_bytes: int) -> tuple[Entry, ...]:
        """Those with low <= index <= high, as many as have `max_bytes`, but at least one."""
        first = low - self.base_index - 1
        assert first >= 0
        chosen = self.entries[first : high - self.base_index]
        size = 0
        for count, entry in enumerate(chosen):
            size += len(entry.data) + ENTRY_BYTES
            if size > max_bytes and count:
                return tuple(chosen[:count])
        return tuple(chosen)

    def meeting(self, index: int, term: int) -> tuple[int, int]:
        """The last place at or before `index` whose term is at most `term`: below it the logs may be equal.

        One step goes over all entries of a term (case 16). Its term is 0 if it is before the base.
        """
        index = min(index, self.last_index)
        while index > self.base_index:
            own = self.entries[index - self.base_index - 1].term
            if own <= term:
                return index, own
            index -= 1
        return index, self.base_term if index == self.base_index else 0

    def has_change(self, low: int, high: int) -> bool:
        """Whether one of low < index <= high changes the configuration."""
        base = self.base_index
        return any(entry.kind == Kind.CHANGE for entry in self.entries[low - base : high - base])

    # --- changing -----------------------------------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        """A leader's own."""
        self.entries.append(entry)
        self.last_index += 1
        self.uncommitted_bytes += len(entry.data) + ENTRY_BYTES

    def merge(self, entries: Sequence[Entry]) -> None:
        """Take a leader's entries, which follow one that is here. Those that are here already stay, and so does what
        follows them: it may have come by a later message, and be acknowledged (case 4)."""
        for at, entry in enumerate(entries):
            if self.term(entry.index) != entry.term:
                if entry.index <= self.last_index:
                    self._cut(entry.index)
                self.entries.extend(entries[at:])
                self.last_index = self.base_index + len(self.entries)
                self.uncommitted_bytes += self._bytes(entry.index)
                return

    def _cut(self, index: int) -> None:
        if index <= self.commit:
            raise Inconsistent(f"a leader would replace entry {index}, but {self.commit} are committed")
        self.uncommitted_bytes -= self._bytes(index)
        del self.entries[index - self.base_index - 1 :]
        self.last_index = index - 1
        self.handed = min(self.handed, index - 1)
        self.durable = min(self.durable, index - 1)
        for write in self.in_flight:
            write.upto = min(write.upto, index - 1)

    def commit_to(self, index: int) -> None:
        """All up to `index` is agreed on."""
        if index > self.commit:
            if index > self.last_index:
                raise Inconsistent(
                    f"this manager has acknowledged entries up to {index}, but has only {self.last_index}: "
                    "its disk has lost some"
                )
            self.uncommitted_bytes -= self._bytes(self.commit + 1, index)
            self.commit = index

    def restore(self, meta: SnapshotMeta) -> None:
        """Begin anew after a leader's snapshot. All of it is committed: nobody counts on it being durable here."""
        self.base_index = self.last_index = self.commit = self.applied = meta.index
        self.durable = self.handed = meta.index
        self.base_term = meta.term
        self.entries = []
        self.uncommitted_bytes = 0
        self.installing = meta
        for write in self.in_flight:
            write.upto = 0

    def compact(self, index: int) -> None:
        """Forget the entries up to `index`, which a durable snapshot holds."""
        if index > self.base_index:
            assert index <= self.applied
            term = self.term(index)
            assert term is not None
            del self.entries[: index - self.base_index]
            self.base_index, self.base_term = index, term

    # --- the disk -----------------------------------------------------------------------------------------------------

    def hand_over(self) -> tuple[Entry, ...]:
        """What the disk has not been given yet."""
        if self.handed == self.last_index:
            return ()
        entries = tuple(self.entries[self.handed - self.base_index :])
        self.handed = self.last_index
        return entries

    def written(self) -> None:
        """The oldest write in flight has ended."""
        write = self.in_flight.popleft()
        self.durable = max(self.durable, write.upto)

    def applicable(self, max_bytes: int) -> tuple[Entry, ...]:
        """What may be applied now, and is from now on: committed, and durable here (rule 2)."""
        high = min(self.commit, self.durable)
        if high <= self.applied:
            return ()
        entries = self.between(self.applied + 1, high, max_bytes)
        self.applied = entries[-1].index
        return entries

    def _bytes(self, low: int, high: int | None = None) -> int:
        base = self.base_index
        chosen = self.entries[low - base - 1 : None if high is None else high - base]
        return sum(len(entry.data) + ENTRY_BYTES for entry in chosen)
