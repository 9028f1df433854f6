"""How a node leaves its cluster, as far as the managers have to do with it. No tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc
import msgspec

from control.model import Node
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import ControlStub
from control.server.edge import Edge
from mesh.daemon.identity import Identity
from mesh.daemon.local import StateError

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 20.0
LEAVE_TIMEOUT_S = 5.0
# A manager that leaves is let go first: an election, a change of the members, and a heartbeat to hear of it.
LAY_DOWN_TIMEOUT_S = 30.0
LAY_DOWN_POLL_S = 0.02


async def lay_down(edge: Edge, identity: Identity, manages: Callable[[], bool], *, force: bool) -> None:
    """Have this manager be a worker, so that the others do not wait for it. Raises StateError, but with `force`."""
    try:
        async with asyncio.timeout(LAY_DOWN_TIMEOUT_S):
            await _demote(edge, identity)
            while manages():  # noqa: ASYNC110 - bounded above
                await asyncio.sleep(LAY_DOWN_POLL_S)
    except (grpc.aio.AioRpcError, TimeoutError) as error:
        said = error.details() if isinstance(error, grpc.aio.AioRpcError) else "it takes too long"
        if not force:
            raise StateError(
                f"this node cannot leave, since it is a manager: {said}; "
                "use --force to leave all the same, which ends the cluster if this is its only manager"
            ) from error
        log.warning("leaving without being let go", extra={"reason": said})


async def _demote(edge: Edge, identity: Identity) -> None:
    async with edge.channel(identity.address) as channel:
        stub = ControlStub(channel)
        reference = pb.GetRequest(kind="node", reference=identity.node_id)
        found = await stub.Get(reference, timeout=CALL_TIMEOUT_S)
        node = msgspec.msgpack.decode(found.value, type=Node)
        spec = msgspec.msgpack.encode(msgspec.structs.replace(node.spec, role="worker"))
        await stub.UpdateNode(pb.UpdateRequest(reference=node.id, spec=spec), timeout=CALL_TIMEOUT_S)


async def sign_off(edge: Edge, identity: Identity) -> None:
    """Have the managers forget this node. If none answers, it stays in their list as down."""
    if identity.role == "manager":
        return
    request = pb.RemoveRequest(kind="node", reference=identity.node_id, force=True)
    for address in identity.managers:
        try:
            async with edge.channel(address) as channel:
                await ControlStub(channel).Remove(request, timeout=LEAVE_TIMEOUT_S)
                return
        except grpc.aio.AioRpcError as error:
            log.warning("cannot sign off", extra={"manager": address, "error": error.details()})
