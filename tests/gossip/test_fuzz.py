"""A few thousand hostile inputs into the whole stack; more by `python -m tests.fuzz.gossip.run`."""

from __future__ import annotations

from tests.fuzz.gossip.run import ROUND, fuzz


def test_hostile_inputs_break_nothing() -> None:
    kinds = fuzz(seed=1, first=0, count=8)
    kinds.pop("slow", None)
    assert sum(kinds.values()) == 8 * ROUND
