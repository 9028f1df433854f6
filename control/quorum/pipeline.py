"""The state machine of a manager, and the commits that its own store has under way on top of it.

`state` is what the agreement has made; `staged` has on top, in order, what this manager proposed while it leads. An
entry that is agreed on is either the first of these, then its state is there already, or somebody else's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from control.quorum.seat import applied
from control.store.backend import Proposal
from control.store.errors import Refused, StoreError
from control.store.record import Entry
from control.store.state import State, decode_commit


@dataclass(frozen=True, slots=True, eq=False)
class Queued:
    """A commit of this manager, in its log at (index, term)."""

    index: int
    term: int
    proposal: Proposal
    state: State  # after it
    future: asyncio.Future[None]


class Pipeline:
    """See the module. Bounded by what the core lets be proposed."""

    def __init__(self, state: State) -> None:
        self.state = self._staged = state
        self._queue: deque[Queued] = deque()

    def why_not(self, proposal: Proposal) -> Refused | None:
        """Whether it goes on top of what is under way."""
        if proposal.version != self._staged.version + 1:
            return Refused("a commit before this one failed: try again")
        if (misfit := self._staged.misfit(proposal)) is not None:
            return Refused(f"{misfit.kind} {misfit.id} is not at version {misfit.expected}: try again")
        return None

    def put(self, index: int, term: int, proposal: Proposal, future: asyncio.Future[None]) -> None:
        """It was proposed."""
        self._staged = self._staged.apply(proposal)
        self._queue.append(Queued(index, term, proposal, self._staged, future))

    def owns(self, entry: Entry) -> bool:
        """Whether it is the next of those under way."""
        return bool(self._queue) and self._queue[0].index == entry.index and self._queue[0].term == entry.term

    def apply(self, entry: Entry) -> tuple[Proposal, asyncio.Future[None] | None]:
        """A commit is agreed on: it, and whom to tell if it is this manager's. Raises Damaged."""
        if self.owns(entry):
            queued = self._queue.popleft()
            self.state = queued.state
            return queued.proposal, queued.future
        proposal = decode_commit(entry.data)
        self.state = applied(self.state, proposal)
        if not self._queue:
            self._staged = self.state
        return proposal, None

    def replace(self, state: State) -> None:
        """Another manager's snapshot. Nothing is under way: it comes to followers."""
        assert not self._queue
        self.state = self._staged = state

    def cut_off(self) -> list[Queued]:
        """Forget what is under way, and give it to be failed; whether it comes to pass is open."""
        cut = list(self._queue)
        self._queue.clear()
        self._staged = self.state
        return cut

    def fail(self, error: StoreError) -> None:
        """As `cut_off`, and fail it."""
        for queued in self.cut_off():
            if not queued.future.done():
                queued.future.set_exception(error)
