"""When a silent node is given up: by its heartbeats alone, or sooner if gossip has it for dead. Pure.

Gossip finds a dead machine in some five seconds, and heartbeats of five seconds in fifteen. Either may be wrong: a node
whose gossip is blocked still speaks to its manager, and one whose stream hangs is still known to gossip. Both together
are taken for a death early. Not so when much of the cluster seems to be gone at once: then it is rather this manager
that is cut off, or a switch that restarts; nothing is moved before heartbeats alone say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from control.model import NodeState

Rumour = Literal["alive", "suspect", "dead"]

# A heartbeat that is not there after its period and this has been missed: one on its way takes milliseconds.
MISSED_S = 1.0
# Nodes that were given up within this time still count as gone at once with those that are to be given up now.
AT_ONCE_S = 60.0
# When too many are missing, it is looked again after this.
LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a node may be silent: so many periods, and so much more."""

    periods: float
    more_s: float = 0.0

    def seconds(self, period_s: float) -> float:
        """With this heartbeat."""
        return self.periods * period_s + self.more_s


# A node that is "unknown" has to find a manager that has just begun to lead first. Of one that gossip has for dead
# nobody expects that; it had a suspicion's time to object.
TABLE: dict[tuple[NodeState, bool], Patience] = {
    ("ready", False): Patience(3),
    ("ready", True): Patience(1, MISSED_S),
    ("unknown", False): Patience(6),
    ("unknown", True): Patience(1, MISSED_S),
}


def patience_s(state: NodeState, rumour: Rumour, period_s: float) -> float:
    """How long a node that is not down may be silent, unless too many are missing."""
    return min(longest_s(state, period_s), TABLE[state, rumour == "dead"].seconds(period_s))


def longest_s(state: NodeState, period_s: float) -> float:
    """By heartbeats alone."""
    return TABLE[state, False].seconds(period_s)


@dataclass(frozen=True, slots=True)
class Sign:
    """What one node looks like. `silent_s` is None when it is down, since `down_s`."""

    rumour: Rumour
    period_s: float
    silent_s: float | None
    down_s: float = 0.0


def is_cut_off(signs: Iterable[Sign]) -> bool:
    """Whether half of the nodes or more are missing at once. Those that have been down for long do not count."""
    missing = total = 0
    for sign in signs:
        if sign.silent_s is None:
            recent = sign.down_s < AT_ONCE_S
            missing, total = missing + recent, total + recent
        else:
            missed = sign.silent_s > sign.period_s + MISSED_S
            missing, total = missing + (missed or sign.rumour != "alive"), total + 1
    return 2 * missing >= total
