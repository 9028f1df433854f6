"""Which members this node reaches only by detours: UDP to them is lost, and TCP or a third node answered; and how many
packets are lost at all. Pure.

Serf's ping over TCP hides such links: everybody looks alive and no event arrives. Here they are named, and what there
is to tell to such a member, or to all while this node's own UDP seems to be blocked, goes over streams (`swim_sync`).
"""

from __future__ import annotations

import math

# Probes of one member in a row that only a detour answered; at a quarter of loss each way, of three pings each, 1 in 12
# is, 1 in 1,700 thrice.
DETOURS_MAX = 3
# Probes in a row, of at least so many different members, all of them by detours: then it is not they, but this node. At
# a quarter of loss each way 1 in 240,000 rows is.
BLOCKED_PROBES, BLOCKED_PEERS = 5, 3
# Of each ping in the estimate of loss: it follows a change within some 20 s, and is within 0.05 at a quarter of loss.
LOSS_WEIGHT = 1 / 32


class Links:
    """By name. A direct answer makes a link good at once."""

    def __init__(self) -> None:
        self._detours: dict[str, int] = {}
        self._degraded: set[str] = set()
        self._in_a_row: dict[str, None] = {}
        self._count = 0
        self._unanswered = 0.0  # share of pings, to members that live

    @property
    def loss(self) -> float:
        """Estimated share of packets that are lost, of those in either direction."""
        return 1.0 - math.sqrt(1.0 - self._unanswered)

    def pinged(self, answered: bool) -> None:
        """A ping to somebody who lives was answered, or was not."""
        self._unanswered += LOSS_WEIGHT * ((not answered) - self._unanswered)

    @property
    def degraded(self) -> list[str]:
        """Members that only detours lead to."""
        return sorted(self._degraded)

    @property
    def any_degraded(self) -> bool:
        return bool(self._degraded)

    def is_degraded(self, name: str) -> bool:
        """Whether only detours lead to this member."""
        return name in self._degraded

    def blocked(self, others: int) -> bool:
        """Whether this node's own UDP leads nowhere; `others`: how many could have answered."""
        return self._count >= BLOCKED_PROBES and len(self._in_a_row) >= min(BLOCKED_PEERS, others)

    def direct(self, name: str) -> None:
        """A member answered a probe itself, by UDP."""
        self.forget(name)
        self._in_a_row.clear()
        self._count = 0

    def detour(self, name: str) -> None:
        """It answered, but not so."""
        self._detours[name] = min(self._detours.get(name, 0) + 1, DETOURS_MAX)
        if self._detours[name] == DETOURS_MAX:
            self._degraded.add(name)
        self._count = min(self._count + 1, BLOCKED_PROBES)
        if len(self._in_a_row) < BLOCKED_PEERS:
            self._in_a_row[name] = None

    def forget(self, name: str) -> None:
        self._detours.pop(name, None)
        self._degraded.discard(name)
