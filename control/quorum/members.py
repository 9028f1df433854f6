"""Changes of the members that somebody waits for, and what there is to tell about them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from control.quorum.seat import count_of
from control.raft.configuration import node_of
from control.raft.ready import Accepted, Options, Refusal, Why
from control.raft.ready import Status as CoreStatus
from control.store.errors import ChangeRefused, NotLeader, OutcomeUnknown, StoreError
from control.store.record import Entry
from control.transport.seam import PeerStatus

# Reasons that pass by themselves: another change is being agreed on, the term has only just begun, a learner learns.
PASSING = frozenset({Why.NOT_YET, Why.CHANGE_PENDING, Why.TRANSFERRING, Why.NOT_CAUGHT_UP})


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One manager. The last three are known to the leader alone; `silent_s` is infinite if it was not heard at all."""

    node_id: str
    member_id: str
    voter: bool
    standby: bool  # a learner that is not promoted by itself
    leader: bool
    address: str
    connected: bool
    problem: str  # of the connection, one sentence
    flow: str = ""  # probe, replicate or snapshot
    match: int = 0  # last entry that it has durably
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class QuorumStatus:
    """For `mesh quorum status`: what this manager knows, without asking anybody. Indexes are of the log's entries."""

    member_id: str
    role: str  # of Raft: leader, follower, candidate, pre-candidate
    term: int
    leader: str  # node id, "" if none is known
    epoch: int
    recoveries: int
    commit: int
    applied: int
    first: int
    last: int
    members: tuple[MemberStatus, ...]
    late_ticks: int  # that this process missed: a machine that is too busy
    dropped: int  # messages of those who are no members
    message: str = ""


def quorum_status(
    core: CoreStatus, options: Options, peers: Iterable[PeerStatus], node_id: str, message: str
) -> QuorumStatus:
    """Put together from the core's and the transport's."""
    links = {peer.node_id: peer for peer in peers}
    progress = {peer.id: peer for peer in core.peers}
    members = []
    for member in core.configuration.members:
        node = node_of(member.id)
        link, seen = links.get(node), progress.get(member.id)
        members.append(
            MemberStatus(
                node,
                member.id,
                member.voter,
                member.standby,
                member.id == core.soft.leader,
                link.addresses[0] if link is not None else member.address,
                node == node_id or (link is not None and link.connected),
                link.problem if link is not None else "",
                seen.state if seen is not None else "",
                seen.match if seen is not None else core.last_index * (node == node_id),
                seen.silent_ticks * options.tick_s if seen is not None else 0.0,
            )
        )
    epoch = core.configuration.epoch
    return QuorumStatus(
        core.id,
        core.soft.role.value,
        core.soft.term,
        node_of(core.soft.leader),
        epoch,
        count_of(epoch),
        core.commit,
        core.applied,
        core.first_index,
        core.last_index,
        tuple(members),
        core.late_ticks,
        core.dropped,
        message,
    )


class Changes:
    """Changes that were proposed, by the index of their entry. At most one is under way at a time (`Core`)."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, asyncio.Future[None]]] = {}

    def put(self, accepted: Accepted) -> asyncio.Future[None]:
        """Wait for it to be in force here."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[accepted.index] = accepted.term, future
        return future

    def applied(self, entry: Entry) -> None:
        """An entry with a change is in force."""
        term, future = self._waiting.pop(entry.index, (0, None))
        if future is None or future.done():
            return
        if term == entry.term:
            future.set_result(None)
        else:
            future.set_exception(NotLeader("another manager leads: nothing was changed"))

    def cut_off(self) -> None:
        """The leadership is over: nobody knows whether they come to pass."""
        self.fail(OutcomeUnknown("the leadership was lost meanwhile: look whether it came to pass"))

    def fail(self, error: StoreError) -> None:
        """The end of all."""
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            if not future.done():
                future.set_exception(error)


def not_leading(leader: str) -> NotLeader:
    """With the member that does, if known."""
    return NotLeader("this manager does not lead the cluster" + (f": {node_of(leader)} does" if leader else ""))


def refused(refusal: Refusal, node_id: str) -> StoreError:
    """A refusal of the core in a sentence about that node."""
    if refusal.why is Why.NOT_LEADER:
        return not_leading(refusal.leader)
    return ChangeRefused(refusal.text or f"manager {node_id} cannot be changed now: {refusal.why.value}")
