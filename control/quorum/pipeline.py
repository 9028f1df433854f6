"""The state machine of a manager, and the commits that its own store has under way on top of it.

`ledger` is what the agreement has made; what this manager proposed on top of it while it leads waits in a queue, and of
the rows that it changes only the versions are known, to check the next one against.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import msgspec

from control.store.backend import Proposal
from control.store.errors import Refused, StoreError
from control.store.record import Entry
from control.store.state import Ledger, decode_commit

Key = tuple[str, str]  # of a row: kind and id


def keys_of(proposal: Proposal) -> list[Key]:
    """Of the rows that it changes."""
    return [(change.kind, change.id) for change in proposal.changes]


class Queued(msgspec.Struct, frozen=True, eq=False):
    """A commit of this manager, in its log at (index, term)."""

    index: int
    term: int
    proposal: Proposal
    keys: Sequence[Key]
    future: asyncio.Future[None]


class Pipeline:
    """See the module. Bounded by what the core lets be proposed."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._queue: deque[Queued] = deque()
        self._tip = ledger.version  # of the last commit under way
        # The last commit under way that changes a row, and the row's version after it (0: there is none).
        self._staged: dict[tuple[str, str], tuple[int, int]] = {}

    def why_not(self, proposal: Proposal) -> Refused | None:
        """Whether it goes on top of what is under way."""
        if proposal.version != self._tip + 1:
            return Refused("a commit before this one failed: try again")
        staged, rows, keys = self._staged, self.ledger.rows, keys_of(proposal)
        for key, change in zip(keys, proposal.changes, strict=True):
            under_way = staged.get(key)
            if under_way is not None:
                version = under_way[1]
            else:
                row = rows.get(key)
                version = row.version if row is not None else 0
            if version != change.expected:
                return Refused(f"{change.kind} {change.id} is not at version {change.expected}: try again")
        if len(set(keys)) < len(keys):
            return Refused("a commit changes the same object twice")
        return None

    def put(self, index: int, term: int, proposal: Proposal, future: asyncio.Future[None]) -> None:
        """It was proposed."""
        self._tip, keys = proposal.version, keys_of(proposal)
        self._staged.update(dict.fromkeys(keys, (proposal.version, proposal.version)))
        for change in proposal.changes:
            if change.blob is None:
                self._staged[change.kind, change.id] = proposal.version, 0
        self._queue.append(Queued(index, term, proposal, keys, future))

    def owns(self, entry: Entry) -> bool:
        """Whether it is the next of those under way."""
        return bool(self._queue) and self._queue[0].index == entry.index and self._queue[0].term == entry.term

    def apply(self, entry: Entry) -> tuple[Proposal, asyncio.Future[None] | None]:
        """A commit is agreed on: it, and whom to tell if it is this manager's. Raises Damaged."""
        if not self.owns(entry):
            proposal = decode_commit(entry.data)
            self.ledger.apply(proposal)
            if not self._queue:
                self._tip = self.ledger.version
            return proposal, None
        queued = self._queue.popleft()
        self.ledger.apply(queued.proposal)
        staged, version = self._staged, queued.proposal.version
        for key in queued.keys:
            if staged[key][0] == version:
                del staged[key]
        return queued.proposal, queued.future

    def replace(self, ledger: Ledger) -> None:
        """Another manager's snapshot. Nothing is under way: it comes to followers."""
        assert not self._queue
        self.ledger, self._tip = ledger, ledger.version

    def cut_off(self) -> list[Queued]:
        """Forget what is under way, and give it to be failed; whether it comes to pass is open."""
        cut = list(self._queue)
        self._queue.clear()
        self._staged.clear()
        self._tip = self.ledger.version
        return cut

    def fail(self, error: StoreError) -> None:
        """As `cut_off`, and fail it."""
        for queued in self.cut_off():
            if not queued.future.done():
                queued.future.set_exception(error)
