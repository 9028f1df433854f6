"""A backend in memory, for tests, with every misfortune that the contract allows.

Commits settle at the next turn of the loop, or when told (`hold`, `release`). The rows outlive `close`, so that a
second store can be opened on the same backend as after a restart.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from control.model import Object
from control.store.backend import (
    Committed,
    Deliver,
    Delivery,
    Failed,
    Following,
    Guard,
    Image,
    Leading,
    Member,
    Proposal,
    Replaced,
    Role,
    Status,
)
from control.store.errors import BackendFailed, NotLeader, OutcomeUnknown, Refused, StoreClosed, StoreError
from control.store.record import Row, RowChange
from control.store.rows import row_of

Outcome = Literal["done", "refused", "unknown, done", "unknown, not done", "failed"]


@dataclass(frozen=True, slots=True)
class _Queued:
    proposal: Proposal
    guard: Guard
    future: asyncio.Future[None]


class FakeBackend:
    """Implements `control.store.backend.Backend`. Leads in term 1 unless told otherwise."""

    def __init__(self, objects: Iterable[Object] = (), version: int = 0, leader: str = "self") -> None:
        self.rows: dict[tuple[str, str], Row] = {(row.kind, row.id): row for row in map(_row, objects)}
        self.version = max([version, *(row.version for row in self.rows.values())])
        self.term = 1
        self.proposed: list[Proposal] = []  # everything that was ever asked for
        self._leader = leader
        self._deliver: Deliver | None = None
        self._queue: deque[_Queued] = deque()
        self._outcomes: deque[Outcome] = deque()
        self._held = False
        self._error: StoreError | None = None

    # --- the contract ---------------------------------------------------------------------------------------------

    async def load(self) -> Image:
        if self._error is not None:
            raise self._error
        return Image(self.version, tuple(self.rows.values()))

    def watch(self, after: int, deliver: Deliver) -> None:
        self._deliver = deliver
        loop = asyncio.get_running_loop()
        if after != self.version:
            loop.call_soon(lambda: self._tell(Replaced(Image(self.version, tuple(self.rows.values())))))
        loop.call_soon(self._tell_leader)

    def commit(self, proposal: Proposal, guard: Guard) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self.proposed.append(proposal)
        self._queue.append(_Queued(proposal, guard, future))
        loop.call_soon(self._turn)
        return future

    async def barrier(self) -> int:
        if self._leader != "self":
            raise NotLeader("this manager does not lead the cluster")
        return self.version

    def members(self) -> tuple[Member, ...]:
        return (Member("self", voter=True, leader=self._leader == "self"),)

    def status(self) -> Status:
        role: Role = "leader" if self._leader == "self" else "follower"
        if self._deliver is None:
            role = "failed" if self._error is not None else "closed"
        return Status(role, self.term, self.version, self._leader, sum(len(r.blob) for r in self.rows.values()))

    def close(self) -> asyncio.Future[None]:
        self._deliver = None
        self._fail_queue(StoreClosed("the store is closed: this manager is stopping"))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    # --- misfortunes ----------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Settle nothing until `release`."""
        self._held = True

    def release(self, count: int | None = None) -> None:
        """Settle the next `count` commits now (None: all, and stop holding)."""
        if count is None:
            self._held = False
        for _ in range(len(self._queue) if count is None else count):
            self._settle()

    def next_outcomes(self, *outcomes: Outcome) -> None:
        """How the next commits end, one after the other; after that, well."""
        self._outcomes.extend(outcomes)

    def depose(self, leader: str = "") -> None:
        """Another manager leads: what is in the queue may or may not have happened (it has not)."""
        self._leader = leader
        self.term += 1
        self._tell_leader()
        self._fail_queue(OutcomeUnknown("the leadership was lost while the commit was under way"))

    def elect(self) -> None:
        """This manager leads again, in a new term."""
        self._leader = "self"
        self.term += 1
        self._tell_leader()

    def write(self, *changes: RowChange) -> None:
        """A commit by another leader."""
        self._apply(Proposal(self.version + 1, changes))

    def replace(self, objects: Iterable[Object], version: int) -> None:
        """The state jumps, as when a snapshot is installed."""
        self.rows = {(row.kind, row.id): row for row in map(_row, objects)}
        self.version = version
        self._tell(Replaced(Image(version, tuple(self.rows.values()))))

    def fail(self, error: StoreError | None = None) -> None:
        """The backend dies."""
        self._error = error or BackendFailed("the disk failed: replace it, and restore a backup")
        self._tell(Failed(self._error))
        self._deliver = None
        self._fail_queue(self._error)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        if not self._held and self._queue:
            self._settle()

    def _settle(self) -> None:
        if not self._queue:
            return
        queued = self._queue.popleft()
        error = self._why_not(queued)
        if error is not None:
            queued.future.set_exception(error)
            return
        match self._outcomes.popleft() if self._outcomes else "done":
            case "done":
                self._apply(queued.proposal)
                queued.future.set_result(None)
            case "refused":  # those on top of it will be refused for their number
                queued.future.set_exception(Refused("no space left on the disk of this manager"))
            case "unknown, done" | "unknown, not done" as outcome:
                unknown = OutcomeUnknown("contact was lost while the commit was under way")
                queued.future.set_exception(unknown)
                self._fail_queue(unknown)
                if outcome == "unknown, done":
                    self._apply(queued.proposal)
            case "failed":
                self._queue.appendleft(queued)
                self.fail()

    def _why_not(self, queued: _Queued) -> StoreError | None:
        if self._error is not None:
            return self._error
        if self._leader != "self" or queued.guard.term != self.term:
            return NotLeader(f"the leadership of term {queued.guard.term} is over")
        if queued.proposal.version != self.version + 1:
            return Refused("an earlier commit failed: try again")
        for change in queued.proposal.changes:
            row = self.rows.get((change.kind, change.id))
            if (row.version if row is not None else 0) != change.expected:
                return Refused(f"{change.kind} {change.id} is not at version {change.expected}")
        return None

    def _apply(self, proposal: Proposal) -> None:
        self.version = proposal.version
        for change in proposal.changes:
            if change.blob is None:
                del self.rows[change.kind, change.id]
            else:
                self.rows[change.kind, change.id] = Row(change.kind, change.id, proposal.version, change.blob)
        self._tell(Committed(proposal.version, proposal.changes))

    def _fail_queue(self, error: StoreError) -> None:
        while self._queue:
            self._queue.popleft().future.set_exception(error)

    def _tell_leader(self) -> None:
        self._tell(Leading(self.term) if self._leader == "self" else Following(self._leader))

    def _tell(self, delivery: Delivery) -> None:
        if self._deliver is not None:
            self._deliver(delivery)


def _row(obj: Object) -> Row:
    """The row of an object; one that was never written counts as written by commit 1."""
    if obj.meta.version == 0:
        obj = msgspec.structs.replace(obj, meta=msgspec.structs.replace(obj.meta, version=1))
    return row_of(obj)
