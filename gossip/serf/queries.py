"""Queries that were asked here: who has acknowledged and answered, and when each is over. Pure and bounded."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from gossip.serf.messages import FLAG_ACK, Query, QueryResponse

# Queries of this node that are open at once: each holds the names of those who answered.
OPEN_MAX = 1024
# Answers taken for one query: one of each member, and nobody has more members.
ANSWERS_MAX = 16384
TIMEOUT_MAX_S = 3600.0  # a query open for longer is a leak
TIMEOUT_MULT = 16  # Serf's QueryTimeoutMult


class QueryAnswer(msgspec.Struct, frozen=True):
    """Somebody acknowledged or answered a query of this node."""

    query: int  # what `SerfCore.query` returned
    ack: bool
    node: str
    payload: bytes


class QueryDone(msgspec.Struct, frozen=True):
    """The time of a query of this node is over."""

    query: int


@dataclass
class _Open:
    id: int
    deadline_s: float
    acks: set[str] = field(default_factory=set)
    answers: set[str] = field(default_factory=set)


class OpenQueries:
    """By Lamport time, which is unique among the queries of one node."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self.unexpected = 0  # answers to nothing that is open, or given twice

    def __len__(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        return len(self._open) >= OPEN_MAX

    def start(self, query: Query, deadline_s: float) -> None:
        """Wait for answers."""
        self._open[query.ltime] = _Open(query.id, deadline_s)

    def close(self, ltime: int) -> None:
        """Stop waiting."""
        self._open.pop(ltime, None)

    def answer(self, response: QueryResponse, now: float) -> QueryAnswer | None:
        """An answer came; None if it does not count."""
        asked = self._open.get(response.ltime)
        ack = bool(response.flags & FLAG_ACK)
        if asked is None or asked.id != response.id or now > asked.deadline_s:
            self.unexpected += 1
            return None
        seen = asked.acks if ack else asked.answers
        if response.node in seen or len(seen) >= ANSWERS_MAX:
            self.unexpected += 1
            return None
        seen.add(response.node)
        return QueryAnswer(response.ltime, ack, response.node, response.payload)

    def deadline(self) -> float | None:
        """When the next one is over."""
        return min((asked.deadline_s for asked in self._open.values()), default=None)

    def over(self, now: float) -> list[int]:
        """Close those whose time is over."""
        done = [ltime for ltime, asked in self._open.items() if asked.deadline_s <= now]
        for ltime in done:
            del self._open[ltime]
        return done
