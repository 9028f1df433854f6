"""The Membership service of a manager: lets machines in. A thin shell over `nodes.join`; no tasks of its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import grpc
import msgspec

from control.ca.root import SERIAL_BYTES
from control.dispatcher.managers import managers
from control.lifecycle import Writer
from control.model import Node
from control.quorum.seat import Seat
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import MembershipServicer
from control.server import nodes, users
from control.server.api import answering
from control.server.certificates import Issued, certify
from control.server.hop import peer_address
from control.server.managers import Enlistment, enlist
from control.server.refusal import Refusal
from control.server.signing import Signatures
from control.server.transact import Decisions, transact
from control.store.store import Store
from control.store.tables import Snapshot
from control.store.txn import Change, Put


class Admit(Protocol):
    """See `control.roll.Roll.admit`."""

    async def __call__(self, node_id: str, address: str, *, enrolled: bool) -> Seat | None: ...


Context = grpc.aio.ServicerContext[Any, Any]


class MembershipService(MembershipServicer):
    """See the module. `new_id` makes ids and secrets."""

    def __init__(
        self,
        store: Store,
        decisions: Decisions,
        new_id: Callable[[], str],
        store_kind: str,
        admit: Admit,
        wall_ms: Callable[[], int],
        signatures: Signatures | None = None,
    ) -> None:
        """`store_kind`: where managers of this cluster keep its state ("disk", "etcd"); `admit` as `Roll.admit`."""
        self._signatures = signatures or Signatures(None, wall_ms)
        self._wall_ms = wall_ms
        self._store, self._decisions, self._new_id = store, decisions, new_id
        self._store_kind, self._admit = store_kind, admit

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:
        async with answering(context):
            return await self.let_in(request, peer_address(context))

    async def let_in(self, request: pb.JoinRequest, address: str) -> pb.JoinReply:
        """Of this manager, which leads. `address` is where the request comes from. Raises Refusal, StoreError."""
        if request.user:
            return await self._renew_user(request)
        asked = nodes.JoinRequest(
            token=request.token,
            description=request.description,
            data_address=request.data_address,
            availability=request.availability,
            node_id=request.node_id,
            secret=request.secret,
            address=address,
        )
        new_id, new_secret = self._new_id(), self._new_id()
        now_s, serial = self._wall_ms() / 1000, secrets.token_bytes(SERIAL_BYTES)
        joined: list[nodes.Joined] = []
        issued: list[Issued] = []

        def decide(view: Snapshot) -> Iterable[Change]:
            joined[:] = [nodes.join(view, asked, new_id, new_secret)]
            if not request.csr:  # not over the network: the door for newcomers insists on one
                return joined[0].changes
            issued[:] = [certify(view, joined[0].node, request.csr, now_s, serial, self._signatures.take)]
            others = [change for change in joined[0].changes if not _is_of(change, joined[0].node)]
            return [Put(issued[0].node), *others]

        await self._signatures.decided(lambda: self._transact(decide))
        view = self._store.view()
        return pb.JoinReply(
            node_id=joined[0].node.id,
            node_number=joined[0].node.number,
            secret=joined[0].secret,
            cluster_id=view.cluster().id,
            managers=managers(view),
            role=joined[0].node.spec.role,
            certificate=issued[0].chain if issued else b"",
            roots=issued[0].roots if issued else b"",
        )

    async def _renew_user(self, request: pb.JoinRequest) -> pb.JoinReply:
        """Here and not at the API: a change of the root may have left the certificate behind that the user has."""
        now_s, serial = self._wall_ms() / 1000, secrets.token_bytes(SERIAL_BYTES)
        issued: list[users.IssuedUser] = []

        def decide(view: Snapshot) -> Iterable[Change]:
            issued[:] = [users.renew(view, request.user, request.csr, now_s, serial, self._signatures.take)]
            return ()

        await self._signatures.decided(lambda: self._transact(decide))
        known = managers(self._store.view())
        return pb.JoinReply(certificate=issued[0].chain, roots=issued[0].roots, managers=known)

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:
        async with answering(context):
            now_s, serial = self._wall_ms() / 1000, secrets.token_bytes(SERIAL_BYTES)
            issued: list[Issued] = []

            def decide(view: Snapshot) -> Iterable[Change]:
                node = view.get(Node, request.node_id)
                if node is None:
                    raise Refusal("UNAUTHENTICATED", "this node is not a member of the cluster (any more)")
                issued[:] = [certify(view, node, request.csr, now_s, serial, self._signatures.take)]
                return [Put(issued[0].node)] if issued[0].node != node else []

            await self._signatures.decided(lambda: self._transact(decide))
            return pb.RenewReply(certificate=issued[0].chain, roots=issued[0].roots)

    async def _transact(self, decide: Callable[[Snapshot], Iterable[Change]]) -> None:
        async with self._decisions:
            await transact(self._store, decide, Writer.ORCHESTRATOR)

    async def Enlist(self, request: pb.EnlistRequest, context: Context) -> pb.EnlistReply:
        async with answering(context):
            said = Enlistment(
                node_id=request.node_id,
                secret=request.secret,
                address=request.address,
                quorum_address=request.quorum_address,
                store=request.store,
            )
            async with self._decisions:
                await transact(self._store, lambda view: enlist(view, said, self._store_kind), Writer.ORCHESTRATOR)
            seat = await self._admit(said.node_id, said.quorum_address, enrolled=request.enrolled)
            return pb.EnlistReply(
                cluster_id=self._store.view().cluster().id, seat=msgspec.msgpack.encode(seat) if seat else b""
            )


def _is_of(change: Change, node: Node) -> bool:
    return isinstance(change, Put) and isinstance(change.obj, Node) and change.obj.id == node.id
