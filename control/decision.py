"""What a decision core wants changed: the common answer of allocator, orchestrators, scheduler and reaper. Pure.

A core looks at one snapshot and at the time, and keeps nothing: the same snapshot gives the same decision, so a new
leader, or a leader that crashed in the middle, simply decides again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from control.lifecycle import Writer
from control.store.txn import Change


@dataclass(frozen=True, slots=True)
class Decision:
    """Changes, each with the writer in whose name it is made, and when to decide again if nothing happens before."""

    changes: tuple[tuple[Writer, Change], ...] = ()
    wake_at_ms: int | None = None


def merged(decisions: Iterable[Decision]) -> Decision:
    """Several decisions as one; the earliest wake counts."""
    found = list(decisions)
    wakes = [d.wake_at_ms for d in found if d.wake_at_ms is not None]
    return Decision(tuple(c for d in found for c in d.changes), min(wakes, default=None))
