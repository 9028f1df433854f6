"""How well this node itself seems to do: Lifeguard's local health. Pure.

A node that is slow sees others as failed. Each sign of it raises the score, each good probe lowers it, and with the
score grows the time it grants to others before it accuses them.
"""

from __future__ import annotations


class Awareness:
    """A score of 0 (healthy) to `limit` - 1."""

    __slots__ = ("_limit", "score")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.score = 0

    def apply(self, delta: int) -> None:
        """Better (negative) or worse."""
        self.score = min(max(self.score + delta, 0), self._limit - 1)

    def scale_s(self, time_s: float) -> float:
        """`time_s`, longer the worse this node does."""
        return time_s * (self.score + 1)
