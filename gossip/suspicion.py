"""How long a suspicion lasts: long at first, shorter with each other node that has the same one (Lifeguard). Pure."""

from __future__ import annotations

import math

from gossip.profile import Profile


class Suspicion:
    """One member's. `deadline_s` is when it is taken for dead, on the clock of `now`."""

    __slots__ = ("_by", "_max_s", "_min_s", "_needed", "_start_s", "confirmations")

    def __init__(self, by: str, needed: int, min_s: float, max_s: float, now: float) -> None:
        """Suspected first `by` a node (maybe this one); `needed` confirmations bring the time down to `min_s`."""
        self._by = {by}
        self._needed = needed
        self._min_s, self._max_s = min_s, max_s
        self._start_s = now
        self.confirmations = 0

    @property
    def deadline_s(self) -> float:
        return self._start_s + duration_s(self.confirmations, self._needed, self._min_s, self._max_s)

    def confirm(self, by: str) -> bool:
        """Another node suspects too; whether that is news (and worth telling others)."""
        if self.confirmations >= self._needed or by in self._by:
            return False
        self._by.add(by)
        self.confirmations += 1
        return True


def duration_s(confirmations: int, needed: int, min_s: float, max_s: float) -> float:
    """Of a suspicion with so many confirmations, at least `min_s`; whole milliseconds, as memberlist has it."""
    if needed < 1:
        return min_s
    share = math.log(confirmations + 1) / math.log(needed + 1)
    return max(min_s, math.floor(1000 * (max_s - share * (max_s - min_s))) / 1000)


def suspicion(profile: Profile, nodes: int, by: str, now: float) -> Suspicion:
    """A new one in a cluster of so many nodes."""
    needed = profile.suspicion_mult - 2
    if nodes - 2 < needed:  # there are not enough others to confirm it
        needed = 0
    min_s = profile.suspicion_min_s(nodes)
    return Suspicion(by, needed, min_s, profile.suspicion_max_mult * min_s, now)
