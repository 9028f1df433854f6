"""Majorities: pure functions."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence


class Tally(enum.Enum):
    """Of an election."""

    OPEN = "open"
    WON = "won"
    LOST = "lost"


def majority(count: int) -> int:
    """The least number of them that is more than half."""
    return count // 2 + 1


def agreed(values: Sequence[int]) -> int:
    """The greatest value that a majority has reached; one value per voter. 0 if there is no voter."""
    if not values:
        return 0
    return sorted(values)[len(values) - majority(len(values))]


def tally(voters: Collection[str], votes: Mapping[str, bool]) -> Tally:
    """By the answers so far. An answer of somebody who is no voter does not count, nor does a second one."""
    need = majority(len(voters))
    yes = no = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is not None:
            yes, no = (yes + 1, no) if vote else (yes, no + 1)
    if voters and yes >= need:
        return Tally.WON
    return Tally.LOST if no > len(voters) - need else Tally.OPEN
