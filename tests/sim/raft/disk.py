"""A disk as the journal uses it: frames are written in order and synced in groups, and a crash keeps a prefix of them.

A frame that was torn is cut by the journal as a whole (docs/decisions/0011), so to the core a tear is a loss.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from control.raft.ready import Restored
from control.store.record import Entry, HardState, SnapshotMeta


@dataclass(slots=True)
class Frame:
    """One write. `number` is that of the Ready; 0 for a snapshot of the node's own."""

    number: int
    hard: HardState | None = None
    entries: tuple[Entry, ...] = ()
    snapshot: SnapshotMeta | None = None
    state: object = None
    messages: tuple = ()


@dataclass(slots=True)
class Disk:
    """What is durable, and what waits."""

    hard: HardState = field(default_factory=HardState)
    base_index: int = 0
    base_term: int = 0
    log: list[Entry] = field(default_factory=list)
    snapshot: SnapshotMeta | None = None
    state: object = None
    queue: list[Frame] = field(default_factory=list)
    syncing: int = 0  # frames at the front of the queue that the sync under way will make durable

    def term(self, index: int) -> int | None:
        """Of a durable entry."""
        at = index - self.base_index - 1
        if at == -1:
            return self.base_term
        return self.log[at].term if 0 <= at < len(self.log) else None

    def has(self, index: int, term: int) -> bool:
        """Whether an entry would be there after a crash now; one that a snapshot holds is."""
        if self.snapshot is not None and self.snapshot.index >= index:
            return True
        return self.term(index) == term

    def apply(self, frame: Frame) -> None:
        """It is durable."""
        if (meta := frame.snapshot) is not None and (self.snapshot is None or self.snapshot.index < meta.index):
            if self.term(meta.index) != meta.term:
                self.base_index, self.base_term, self.log = meta.index, meta.term, []
            self.snapshot, self.state = meta, frame.state
            self.hard = HardState(self.hard.term, self.hard.vote, max(self.hard.commit, meta.index))
        for entry in frame.entries:
            at = entry.index - self.base_index - 1
            assert 0 <= at <= len(self.log), "a gap in the log"
            if at < len(self.log) and self.log[at].term == entry.term:
                continue
            assert entry.index > self.hard.commit, "what is committed is replaced"
            del self.log[at:]
            self.log.append(entry)
        if frame.hard is not None:
            self.hard = frame.hard

    def synced(self) -> list[Frame]:
        """The sync under way has ended."""
        frames, self.queue = self.queue[: self.syncing], self.queue[self.syncing :]
        self.syncing = 0
        for frame in frames:
            self.apply(frame)
        return frames

    def crash(self, rng: random.Random) -> None:
        """Of what was not synced, a prefix stays, or nothing."""
        kept = rng.randrange(len(self.queue) + 1) if rng.random() < 0.5 else 0
        for frame in self.queue[:kept]:
            self.apply(frame)
        self.queue, self.syncing = [], 0

    def compact(self, index: int) -> None:
        """Segments up to there are gone."""
        if index > self.base_index:
            term = self.term(index)
            assert term is not None
            del self.log[: index - self.base_index]
            self.base_index, self.base_term = index, term

    def restored(self) -> Restored:
        """What a new process finds."""
        return Restored(self.hard, self.snapshot, self.base_index, self.base_term, tuple(self.log))
