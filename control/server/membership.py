"""The Membership service of a manager: lets machines in. A thin shell over `nodes.join`; no tasks of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

import grpc

from control.dispatcher.sessions import managers
from control.lifecycle import Writer
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import MembershipServicer
from control.server import nodes
from control.server.api import answering
from control.server.transact import Decisions, transact
from control.store.store import Store
from control.store.tables import Snapshot
from control.store.txn import Change

Context = grpc.aio.ServicerContext[Any, Any]


class MembershipService(MembershipServicer):
    """See the module. `new_id` makes ids and secrets."""

    def __init__(self, store: Store, decisions: Decisions, new_id: Callable[[], str]) -> None:
        self._store, self._decisions, self._new_id = store, decisions, new_id

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:
        async with answering(context):
            asked = nodes.JoinRequest(
                token=request.token,
                description=request.description,
                data_address=request.data_address,
                availability=request.availability,
                node_id=request.node_id,
                secret=request.secret,
                address=peer_address(context),
            )
            new_id, new_secret = self._new_id(), self._new_id()
            joined: list[nodes.Joined] = []

            def decide(view: Snapshot) -> Iterable[Change]:
                joined[:] = [nodes.join(view, asked, new_id, new_secret)]
                return joined[0].changes

            async with self._decisions:
                await transact(self._store, decide, Writer.ORCHESTRATOR)
            view = self._store.view()
            return pb.JoinReply(
                node_id=joined[0].node.id,
                node_number=joined[0].node.number,
                secret=joined[0].secret,
                cluster_id=view.cluster().id,
                managers=managers(view),
            )


def peer_address(context: Context) -> str:
    """The caller's address, without port; "" on a unix socket. gRPC's form is `ipv4:1.2.3.4:5` or `ipv6:[::1]:5`."""
    family, _, rest = unquote(context.peer()).partition(":")
    host = rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else ""
    return host.removeprefix("::ffff:")
