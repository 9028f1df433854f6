"""The replicated log in memory, as the journal's records make it: pure.

`base_index` is the entry before the first one that is there; its term is known, as Raft's check of what is before
an append needs it. Between them and the entries there is never a gap.
"""

from __future__ import annotations

from control.store.record import Entry, HardState, SnapshotMeta
from control.store.wal import Batch

NOTHING_PROMISED = HardState()
KEPT_SNAPSHOTS = 2  # if the newest cannot be read, there is one more


class Log:
    """See the module."""

    __slots__ = ("_entries", "base_index", "base_term", "hard_state", "snapshots")

    def __init__(
        self,
        base_index: int = 0,
        base_term: int = 0,
        hard_state: HardState = NOTHING_PROMISED,
        snapshots: tuple[SnapshotMeta, ...] = (),
    ) -> None:
        self.base_index = base_index
        self.base_term = base_term
        self.hard_state = hard_state
        self.snapshots = snapshots
        self._entries: list[Entry] = []

    @property
    def last_index(self) -> int:
        return self.base_index + len(self._entries)

    @property
    def last_term(self) -> int:
        return self._entries[-1].term if self._entries else self.base_term

    def term(self, index: int) -> int | None:
        """Of an entry; None if it is not there, or not any more."""
        if index == self.base_index:
            return self.base_term
        at = index - self.base_index - 1
        return self._entries[at].term if 0 <= at < len(self._entries) else None

    def entries(self, low: int, high: int) -> list[Entry]:
        """Those with low <= index < high; all must be there."""
        assert self.base_index < low <= high <= self.last_index + 1, (low, high, self.base_index, self.last_index)
        return self._entries[low - self.base_index - 1 : high - self.base_index - 1]

    def apply(self, batch: Batch) -> bool:
        """What the log is after a batch. False if it does not fit: then nothing can be relied on any more."""
        for entry in batch.entries:
            at = entry.index - self.base_index - 1
            if not 0 <= at <= len(self._entries):
                return False
            if at < len(self._entries):
                if self._entries[at].term == entry.term:
                    continue  # the same: no two leaders have one term. What follows it may be acknowledged (case 4)
                if entry.index <= self.hard_state.commit:
                    return False
                del self._entries[at:]
            self._entries.append(entry)
        if batch.hard_state is not None:
            self.hard_state = batch.hard_state
        if batch.snapshot is not None:
            self._take(batch.snapshot, replaces=batch.replaces)
        return True

    def news(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Those from the first one on that is not there already."""
        for at, entry in enumerate(entries):
            if self.term(entry.index) != entry.term:
                return entries[at:]
        return ()

    def replay(self, batch: Batch) -> bool:
        """`apply` for what is read from the first segments that are left.

        They may replace entries of segments that are gone. Those were compacted, so the replaced ones will be, too:
        see `settle`.
        """
        if batch.entries and batch.entries[0].index <= self.base_index:
            self.base_index, self.base_term = batch.entries[0].index - 1, 0
            self._entries.clear()
        return self.apply(batch)

    def settle(self) -> None:
        """After the last `replay`: forget what may have been replaced, all of which is in the oldest snapshot."""
        if self.snapshots and self.base_index < self.snapshots[0].index:
            self.forget(self.snapshots[0].index)

    def _take(self, meta: SnapshotMeta, *, replaces: bool) -> None:
        if not replaces:
            self.snapshots = (*(s for s in self.snapshots if s.index < meta.index), meta)[-KEPT_SNAPSHOTS:]
        else:
            self.snapshots = (meta,)
            self.base_index, self.base_term = meta.index, meta.term
            self._entries.clear()
        if self.hard_state.commit < meta.index:
            self.hard_state = HardState(self.hard_state.term, self.hard_state.vote, meta.index)

    def forget(self, index: int) -> None:
        """Drop the entries up to `index`, which a snapshot holds."""
        if index > self.base_index:
            term = self.term(index)
            assert term is not None
            del self._entries[: index - self.base_index]
            self.base_index, self.base_term = index, term

    def tip(self) -> Log:
        """The same without its entries."""
        return Log(self.last_index, self.last_term, self.hard_state, self.snapshots)
