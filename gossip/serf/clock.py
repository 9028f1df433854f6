"""Lamport clocks, and rings that tell what was seen before. Pure and of fixed size.

An event or query is known by its Lamport time and what it says; it is old when its time is more than RING_SIZE behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

X = TypeVar("X")

RING_SIZE = 512  # Serf's EventBuffer and QueryBuffer
# Things of the same Lamport time: one for each node that spoke before it heard of the others.
SAME_TIME_MAX = 1024
# A clock that a peer says is further ahead than this is a lie or damage: it would end the clock of everybody for good.
JUMP_MAX = 1 << 48


class LamportClock:
    """Starts at 1; `time` is the time of the next message of this node."""

    __slots__ = ("time",)

    def __init__(self) -> None:
        self.time = 1

    def increment(self) -> int:
        """Use up a time."""
        self.time += 1
        return self.time

    def witness(self, seen: int) -> bool:
        """A message of this time was seen; whether it can be believed."""
        if seen - self.time > JUMP_MAX:
            return False
        self.time = max(self.time, seen + 1)
        return True


class SeenRing(Generic[X]):
    """What was seen of the last RING_SIZE Lamport times."""

    __slots__ = ("_slots", "minimum")

    def __init__(self) -> None:
        self._slots: list[tuple[int, list[X]] | None] = [None] * RING_SIZE
        self.minimum = 0  # nothing before this time is taken

    def add(self, ltime: int, item: X, clock: int) -> bool:
        """Remember it; False if it was seen before, is too old, or too many of the same time were seen."""
        if ltime < self.minimum or ltime + RING_SIZE < clock:
            return False
        slot = self._slots[ltime % RING_SIZE]
        if slot is None or slot[0] < ltime:
            self._slots[ltime % RING_SIZE] = (ltime, [item])
            return True
        if slot[0] > ltime or item in slot[1] or len(slot[1]) >= SAME_TIME_MAX:
            return False
        slot[1].append(item)
        return True

    def __iter__(self) -> Iterator[tuple[int, tuple[X, ...]]]:
        """All that is remembered: (Lamport time, items)."""
        return ((slot[0], tuple(slot[1])) for slot in self._slots if slot is not None)
