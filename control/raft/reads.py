"""Read indexes: the questions of this member, and, while it leads, those of all (thesis 6.4).

A leader may answer a question once a majority has confirmed, *after it came*, that it still leads, and only when it has
committed an entry of its own term: before that it does not know what is committed (case 10). Confirmations are counted
in rounds of heartbeats; each round has a number of its own, also one that repeats a lost one. A question has an id that
is never used again, in this process or a later one: to ask again is to ask something else (etcd #20418, #21399).
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from control.raft.ready import ReadState

# Ids begin at a random place for each process and count up from there.
NONCE_BITS, COUNTER_BITS = 42, 20


@dataclass(frozen=True, slots=True)
class Question:
    """Who wants to know."""

    asker: str
    read_id: int


class Reads:
    """See the module."""

    __slots__ = ("_next_id", "answers", "asked", "dirty", "held", "open", "round")

    def __init__(self, rng: random.Random) -> None:
        self._next_id = rng.getrandbits(NONCE_BITS) << COUNTER_BITS
        self.asked: dict[int, int] = {}  # this member's own: id -> tick, in order
        self.answers: list[ReadState] = []
        # As a leader:
        self.held: list[Question] = []  # until something of this term is committed
        self.open: deque[tuple[int, int, Question]] = deque()  # round that confirms it, index
        self.round = 0  # the last one that was sent
        self.dirty = False  # there are questions that no round sent so far confirms

    def new(self, tick: int) -> int:
        """A question of this member."""
        self._next_id += 1
        self.asked[self._next_id] = tick
        return self._next_id

    def count(self) -> int:
        """Questions that wait here as with the leader."""
        return len(self.held) + len(self.open)

    def enter(self, question: Question, commit: int) -> None:
        """A leader takes it up."""
        self.open.append((self.round + 1, commit, question))
        self.dirty = True

    def release(self, commit: int) -> None:
        """Something of this term is committed."""
        for question in self.held:
            self.enter(question, commit)
        self.held.clear()

    def next_round(self) -> int:
        """The number of the round that is being sent now."""
        self.round += 1
        self.dirty = False
        return self.round

    def confirmed(self, up_to: int) -> list[tuple[int, Question]]:
        """What a majority's answers to round `up_to` settle: (index, question)."""
        settled = []
        while self.open and self.open[0][0] <= up_to:
            _, index, question = self.open.popleft()
            settled.append((index, question))
        return settled

    def answer(self, read_id: int, index: int) -> None:
        """One of this member's own is answered; a late or repeated answer is not looked at."""
        if self.asked.pop(read_id, None) is not None:
            self.answers.append(ReadState(read_id, index))

    def expire(self, before: int) -> None:
        """Give up what was asked before a tick: the question or the answer got lost."""
        while self.asked:
            read_id, tick = next(iter(self.asked.items()))
            if tick >= before:
                return
            del self.asked[read_id]
            self.answers.append(ReadState(read_id, None))

    def abort(self) -> None:
        """There is another leader, or none."""
        if self.asked:
            self.answers.extend(ReadState(read_id, None) for read_id in self.asked)
            self.asked.clear()
        self.held.clear()
        self.open.clear()
        self.dirty = False
