"""What a leader knows of another member, and what it may send it: three states.

PROBE      where the logs meet is not known: one append at a time, the next one when it or a heartbeat is answered
REPLICATE  it is: appends go out without waiting, `next` runs ahead, up to the window of what is unanswered
SNAPSHOT   its entries are gone here: nothing until the snapshot has arrived, failed or is superseded

PROBE     -- acknowledged --> REPLICATE      REPLICATE -- refused, or unreachable --> PROBE
any       -- entries gone --> SNAPSHOT       SNAPSHOT  -- arrived, failed, caught up otherwise --> PROBE
"""

from __future__ import annotations

import enum
from collections import deque

from control.raft.ready import Options


class Flow(enum.Enum):
    """See the module."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One other member. `heard` is the tick of its last answer, -1 if none came in this term."""

    __slots__ = (
        "_bytes",
        "_window",
        "flow",
        "heard",
        "id",
        "match",
        "next",
        "paused",
        "reluctant",
        "round",
        "round_began",
        "round_goal",
        "sent_commit",
        "snapshot_index",
        "voter",
    )

    def __init__(self, member_id: str, last_index: int, tick: int, *, voter: bool) -> None:
        self.id = member_id
        self.voter = voter
        self.flow = Flow.PROBE
        self.match = 0  # durable there
        self.next = last_index + 1
        self.paused = False  # PROBE: one is out
        self.heard = -1
        self.round = 0  # of the last heartbeat answered
        self.reluctant = False  # as it said then
        self.sent_commit = 0
        self.snapshot_index = 0
        # Catching up in rounds (thesis 4.2.1): a learner has when it gets within one election timeout what was the
        # log when the round began.
        self.round_goal = last_index
        self.round_began = tick
        self._window: deque[tuple[int, int]] = deque()  # last index, bytes of each append that is out
        self._bytes = 0

    def may_send(self, options: Options) -> bool:
        """Whether an append with entries may go out now."""
        match self.flow:
            case Flow.PROBE:
                return not self.paused
            case Flow.REPLICATE:
                return len(self._window) < options.inflight_messages and self._bytes < options.inflight_bytes
            case Flow.SNAPSHOT:
                return False

    def sent(self, last: int, size: int) -> None:
        """An append whose last entry is `last` went out."""
        if self.flow is Flow.REPLICATE:
            self.next = last + 1
            self._window.append((last, size))
            self._bytes += size
        else:
            self.paused = True

    def acknowledged(self, index: int) -> bool:
        """Everything up to `index` is there. Whether that is new."""
        while self._window and self._window[0][0] <= index:
            self._bytes -= self._window.popleft()[1]
        self.next = max(self.next, index + 1)
        if index <= self.match:
            return False
        self.match = index
        return True

    def refused(self, prev_index: int, meeting: int) -> bool:
        """An append after `prev_index` was refused. False for one that is out of date."""
        if self.flow is Flow.REPLICATE:
            if prev_index <= self.match:
                return False
            self.probe()
            return True
        if self.flow is Flow.SNAPSHOT or self.next - 1 != prev_index:
            return False
        self.next = max(min(prev_index, meeting + 1), self.match + 1)
        self.paused = False
        return True

    def probe(self) -> None:
        """Find out (again) where the logs meet."""
        self.next = self.match + 1
        if self.flow is Flow.SNAPSHOT:
            self.next = max(self.next, self.snapshot_index + 1)
        self.flow, self.paused, self.snapshot_index = Flow.PROBE, False, 0
        self._empty()

    def replicate(self) -> None:
        """The logs meet at `match`."""
        self.flow, self.paused, self.snapshot_index = Flow.REPLICATE, False, 0
        self.next = self.match + 1
        self._empty()

    def snapshot(self, index: int) -> None:
        """A snapshot goes out."""
        self.flow, self.paused, self.snapshot_index = Flow.SNAPSHOT, False, index
        self._empty()

    def free_one(self) -> None:
        """It answers heartbeats: the window may be full of appends that got lost. Let one more go."""
        if self._window:
            self._bytes -= self._window.popleft()[1]

    def full(self, options: Options) -> bool:
        """Whether the window is."""
        return len(self._window) >= options.inflight_messages or self._bytes >= options.inflight_bytes

    def caught_up(self, last_index: int, tick: int, election_ticks: int) -> bool:
        """Whether a round has just ended, and in time."""
        if self.match < self.round_goal or self.match == 0:
            return False
        in_time = tick - self.round_began <= election_ticks
        self.round_goal, self.round_began = last_index, tick
        return in_time

    def _empty(self) -> None:
        self._window.clear()
        self._bytes = 0
