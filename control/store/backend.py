"""The seam between the store and whatever makes its commits durable and agreed on.

A backend keeps *rows*, opaque to it, and a sequence of *commits* of them. There are two behind it: the embedded
Raft (`control.quorum`) and etcd; `fake` is for tests, and tests/control/conformance is the contract as tests, the same
for all.

**One writer, numbered commits.** Only the leader's store writes. It numbers its commits itself: each is exactly one
above the one it goes on top of, and the backend refuses any other number, so the store knows the version of a commit
when it proposes it, may have many under way, and a commit can never land on a state it was not checked against. A
backend with numbers of its own (log index, revision) keeps ours beside them. Numbers survive restarts and only grow; a
restore from a backup must begin well above all that were ever handed out.

**One ordered stream.** Everything the backend has to say comes through `deliver`, called on the event loop in an order
that can be relied on: a commit is delivered before its future is resolved; `Leading` comes only after everything
committed in earlier terms has been delivered; `Following` comes before the futures of commits cut off by it fail.
`deliver` must not be called from within `commit` or `watch` themselves, and does not block.

**Three outcomes.** The future of a commit resolves (it is durable, agreed and delivered), or fails with `Refused` or
`NotLeader` (it certainly will never happen) or with `OutcomeUnknown` or `BackendFailed` (it may or may not happen; if
it does, it will be delivered like a commit of somebody else's). When a commit fails, all later ones that were proposed
on top of it fail as well. There is no timeout: nothing can take back what was proposed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from control.store.errors import StoreError
from control.store.record import Row, RowChange


class Proposal(msgspec.Struct, frozen=True, gc=False):
    """A commit to be: all of it or nothing. `version` is one above the commit it goes on top of."""

    version: int
    changes: tuple[RowChange, ...]


class Guard(msgspec.Struct, frozen=True, gc=False):
    """The fence: the commit may only happen while the leadership of this term lasts."""

    term: int


@dataclass(frozen=True, slots=True)
class Image:
    """The whole state after one commit."""

    version: int
    rows: Iterable[Row]


# --- what `deliver` is called with --------------------------------------------------------------------------------


class Committed(msgspec.Struct, frozen=True, gc=False):
    """A durable commit, this manager's own or another's."""

    version: int
    changes: tuple[RowChange, ...]


@dataclass(frozen=True, slots=True)
class Replaced:
    """The state jumped (a snapshot was installed, a watch could not be continued): this is all of it now."""

    image: Image


@dataclass(frozen=True, slots=True)
class Leading:
    """This manager leads from now on. Terms only grow, and no two managers ever have the same one."""

    term: int


@dataclass(frozen=True, slots=True)
class Following:
    """This manager does not lead. `leader` is the node id of the one that does, "" if none is known."""

    leader: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The backend cannot go on. Nothing is delivered after it."""

    error: StoreError


Delivery = Committed | Replaced | Leading | Following | Failed
Deliver = Callable[[Delivery], None]


# --- what can be asked --------------------------------------------------------------------------------------------


Role = Literal["leader", "follower", "closed", "failed"]


@dataclass(frozen=True, slots=True)
class Member:
    """A manager that takes part in the agreement."""

    node_id: str
    voter: bool
    leader: bool


@dataclass(frozen=True, slots=True)
class Status:
    """For `mesh quorum status`: what this manager itself knows; answered without quorum."""

    role: Role
    term: int
    version: int  # last durable commit known here
    leader: str  # node id, "" if unknown
    size_bytes: int  # on disk
    message: str = ""  # one sentence if something is wrong
    digest: str = ""  # of the state at `version` (`state.State.digest`); "" if the backend has none


class Backend(Protocol):
    """See the top of the file."""

    async def load(self) -> Image:
        """Open, recover, and give the state. Called once, first. Raises BackendFailed with what to do about it."""

    def watch(self, after: int, deliver: Deliver) -> None:
        """Called once, after `load`: deliver every commit above `after` from now on, and who leads.

        If the commits just above `after` are not at hand, `Replaced` comes first.
        """

    def commit(self, proposal: Proposal, guard: Guard) -> asyncio.Future[None]:
        """Put a commit in the queue, in the order of the calls; see "three outcomes" above. Does not raise.

        The caller does not cancel the future.
        """

    async def barrier(self) -> int:
        """A version that is at least that of every commit acknowledged anywhere before the call (linearizable reads).

        Raises NotLeader or OutcomeUnknown if no leader answers.
        """

    def members(self) -> tuple[Member, ...]:
        """All managers, as far as known here."""

    def status(self) -> Status:
        """See Status."""

    def close(self) -> asyncio.Future[None]:
        """Stop. What was proposed and is not durable yet fails; resolves when everything is released. Idempotent."""
