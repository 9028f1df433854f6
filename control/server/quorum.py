"""Who the managers are and how they are: what one knows itself (the Quorum service), and what all say when asked.

Answers without a leader, and without a majority: that is when it is needed. No tasks of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc

from control.model import Node
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import QuorumServicer, QuorumStub
from control.server.edge import Edge
from control.store.store import Store

Context = grpc.aio.ServicerContext[Any, Any]

# A manager that is there answers in milliseconds; one whose loop is busy in tenths of a second.
ASK_TIMEOUT_S = 1.5


class QuorumService(QuorumServicer):
    """See the module. `recoveries` tells how often the cluster was recovered without its quorum."""

    def __init__(
        self, store: Store, node_id: str, quorum_address: str = "", recoveries: Callable[[], int] = lambda: 0
    ) -> None:
        self._store, self._node_id, self._recoveries = store, node_id, recoveries
        self._quorum_address = quorum_address

    async def Look(self, request: pb.LookRequest, context: Context) -> pb.LookReply:
        return self.look()

    def look(self) -> pb.LookReply:
        """What this manager knows."""
        status, view = self._store.status(), self._store.view()
        reply = pb.LookReply(
            node_id=self._node_id,
            role=status.role,
            term=status.term,
            version=status.version,
            leader=self._node_id if status.role == "leader" else status.leader,
            size_bytes=status.size_bytes,
            message=status.message,
            digest=status.digest,
            recoveries=self._recoveries(),
            quorum_address=self._quorum_address,
        )
        members = {member.node_id: member for member in self._store.members()}
        named = {node.id for node in view.all(Node) if node.spec.role == "manager"}
        for node_id in sorted(members.keys() | named):
            node, member = view.get(Node, node_id), members.get(node_id)
            reply.members.append(
                pb.LookMember(
                    node_id=node_id,
                    name=node.description.hostname if node is not None else "",
                    voter=member is not None and member.voter,
                    leader=node_id == reply.leader,
                    address=node.control_address if node is not None else "",
                )
            )
        return reply


async def survey(edge: Edge, own: pb.LookReply | None, addresses: Mapping[str, str]) -> pb.QuorumReply:
    """Ask all managers. `addresses`: where they are, by node id; `own` is what the one of this process says.

    For those that only an address is known of (a worker asks), that is the key, too. One that does not answer in time
    is unreachable; never raises.
    """
    answers: dict[str, pb.LookReply | str] = {}
    asked = {key: address for key, address in addresses.items() if own is None or key != own.node_id}
    async with asyncio.TaskGroup() as group:
        for key, address in asked.items():
            group.create_task(_ask(edge, key, address, answers))
    said = {reply.node_id: reply for reply in answers.values() if isinstance(reply, pb.LookReply)}
    if own is not None:
        said[own.node_id] = own
    followed = Counter(reply.leader for reply in said.values() if reply.leader)
    leader = next((node_id for node_id, reply in said.items() if reply.role == "leader"), "")
    if not leader and followed:
        leader = followed.most_common(1)[0][0]
    known = _known(said.values())
    errors = {addresses[key]: error for key, error in answers.items() if isinstance(error, str)}
    rows = []
    for node_id in sorted(known.keys() | said.keys()):
        member, reply = known.get(node_id, pb.LookMember()), said.get(node_id)
        row = pb.QuorumRow(node_id=node_id, name=member.name, address=member.address, voter=member.voter)
        error = errors.pop(member.address, "")
        if reply is None:
            row.status, row.error = "unreachable", error or "its address is not known"
        else:
            row.status = "leader" if reply.role == "leader" else "reachable"
            row.said.CopyFrom(reply)
        rows.append(row)
    for address, error in errors.items():  # nobody who answers knows who that is
        rows.append(pb.QuorumRow(node_id=address, address=address, status="unreachable", error=error))
    return pb.QuorumReply(managers=rows, leader=leader)


def nobody_leads(reply: pb.QuorumReply) -> str:
    """One sentence about a cluster without a leader."""
    voters = [row for row in reply.managers if row.voter] or list(reply.managers)
    there = sum(row.status != "unreachable" for row in voters)
    many = "manager" if len(voters) == 1 else "managers"
    answer = "answers" if there == 1 else "answer"
    return f"no leader: {there} of {len(voters)} {many} {answer}; see mesh quorum status"


def _known(said: Iterable[pb.LookReply]) -> dict[str, pb.LookMember]:
    """All managers that somebody knows of, as the one with the newest state does."""
    newest = max(said, key=lambda reply: reply.version, default=None)
    return {member.node_id: member for member in newest.members} if newest is not None else {}


async def _ask(edge: Edge, key: str, address: str, answers: dict[str, pb.LookReply | str]) -> None:
    if not address:
        return
    try:
        async with edge.channel(address) as channel:
            answers[key] = await QuorumStub(channel).Look(pb.LookRequest(), timeout=ASK_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        answers[key] = f"no answer within {ASK_TIMEOUT_S:g} s" if late else error.details() or error.code().name
