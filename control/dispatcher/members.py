"""What the core of the dispatcher (`sessions`) knows of a stream and of a node."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from control.dispatcher.feed import Feed
from control.dispatcher.patience import Rumour, Sign
from control.model import NodeState

REGISTRATIONS = 3  # whose times are kept


@dataclass(slots=True)
class Stream:
    """One that a node has opened."""

    id: int
    address: str
    hello_by: float
    node: Member | None = None
    unread: int = 0


@dataclass(slots=True)
class Member:
    """A node of the store. `due` is when it is given up: declared down, or, once down, its tasks orphaned.

    `since` is when it was last heard, or this manager began to listen; once down, when it was given up.
    """

    id: str
    state: NodeState
    since: float
    due: float
    period_s: float
    rumour: Rumour = "alive"
    stream: Stream | None = None
    feed: Feed | None = None
    applied: int = 0  # sequence that its kernel holds, in this session
    registrations: deque[float] = field(default_factory=lambda: deque(maxlen=REGISTRATIONS))
    acks: list[tuple[int, int]] = field(default_factory=list)  # (number of the write to wait for, number of the report)

    def sign(self, now: float) -> Sign:
        """What it looks like."""
        age_s = now - self.since
        return Sign(self.rumour, self.period_s, None if self.state == "down" else age_s, age_s)
