"""The local socket of the daemon: `Local` (this machine), and `Control` handed to a manager.

Every call is refused with one sentence when the node is not in the state it needs. `ControlGate` hands a call to the
manager of this process, if it is one, and else passes it on over TCP as it is; the manager checks it either way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast

import grpc
import msgspec

import mesh
from control.model import ClusterSpec
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import ControlServicer, ControlStub, LocalServicer, LogsServicer, LogsStub
from control.server.edge import Edge
from control.server.forward import hand_on
from control.server.guard import said_by
from control.server.refusal import Refusal
from mesh.agent.questions import QuestionError, Questions
from mesh.daemon.identity import Identity
from mesh.daemon.locker import LOCKED

# Names in one message of a dump: far below gRPC's 4 MiB, and short enough a turn of the loop.
DUMP_PIECE = 1000
# A forwarded call other than a watch is answered within this time or not at all.
FORWARD_TIMEOUT_S = 20.0
# A manager that is there takes a connection in milliseconds; then the next one is tried.
REACH_TIMEOUT_S = 1.5


class StateError(Exception):
    """The call does not fit the state of this node. One sentence for the user."""


class NodeControl(Protocol):
    """What the local API needs of the node (mesh.daemon.node.Node)."""

    identity: Identity | None
    edge: Edge

    @property
    def locked(self) -> bool: ...
    def info(self) -> pb.InfoReply: ...
    async def init(self, request: pb.InitRequest, spec: ClusterSpec) -> pb.InitReply: ...
    async def join(self, request: pb.LocalJoinRequest) -> pb.LocalJoinReply: ...
    async def leave(self, *, force: bool) -> None: ...
    async def unlock(self, key: str) -> None: ...
    def questions(self) -> Questions: ...
    def task_process(self, reference: str) -> tuple[str, int]: ...
    def manager_addresses(self) -> tuple[str, ...]: ...
    async def survey(self) -> pb.QuorumReply: ...
    async def attach(self, request: pb.AttachRequest) -> list[str]: ...
    def own_control(self) -> ControlServicer | None: ...
    def own_logs(self) -> LogsServicer | None: ...


Context = grpc.aio.ServicerContext[Any, Any]


class LocalService(LocalServicer):
    """Calls about this machine."""

    def __init__(self, node: NodeControl) -> None:
        self._node = node

    async def Info(self, request: pb.InfoRequest, context: Context) -> pb.InfoReply:
        reply = self._node.info()
        reply.version = mesh.__version__
        return reply

    async def Init(self, request: pb.InitRequest, context: Context) -> pb.InitReply:
        try:
            spec = msgspec.msgpack.decode(request.spec, type=ClusterSpec) if request.spec else ClusterSpec()
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unreadable cluster settings: {error}")
        try:
            return await self._node.init(request, spec)
        except StateError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def Join(self, request: pb.LocalJoinRequest, context: Context) -> pb.LocalJoinReply:
        try:
            return await self._node.join(request)
        except StateError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except Refusal as refusal:
            await context.abort(grpc.StatusCode[refusal.code], str(refusal))

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveReply:
        try:
            await self._node.leave(force=request.force)
        except StateError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return pb.LeaveReply()

    async def Unlock(self, request: pb.UnlockRequest, context: Context) -> pb.UnlockReply:
        try:
            await self._node.unlock(request.key)
        except StateError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        return pb.UnlockReply()

    async def TaskProcess(self, request: pb.TaskProcessRequest, context: Context) -> pb.TaskProcessReply:
        try:
            task_id, pid = self._node.task_process(request.reference)
        except StateError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        return pb.TaskProcessReply(task_id=task_id, pid=pid)

    async def Attach(self, request: pb.AttachRequest, context: Context) -> pb.AttachReply:
        try:
            return pb.AttachReply(addresses=await self._node.attach(request))
        except StateError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def DnsQuery(self, request: pb.DnsQueryRequest, context: Context) -> pb.DnsQueryReply:
        try:
            found = self._node.questions().resolve(request.name, request.type, request.task)
        except StateError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except QuestionError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return pb.DnsQueryReply(view=found.view, outcome=found.outcome, answers=found.answers, why=found.why)

    async def DnsDump(self, request: pb.DnsDumpRequest, context: Context) -> AsyncIterator[pb.DnsDumpReply]:
        try:
            lines = self._node.questions().names()
        except StateError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        for start in range(0, len(lines), DUMP_PIECE):
            yield pb.DnsDumpReply(
                names=[
                    pb.DnsName(network=line.network, name=line.name, type=line.kind, value=line.data, why=line.why)
                    for line in lines[start : start + DUMP_PIECE]
                ]
            )

    async def Trace(self, request: pb.TraceRequest, context: Context) -> pb.TraceReply:
        try:
            asked = (request.source, request.target, request.port, request.protocol or "tcp")
            steps = await self._node.questions().trace(*asked)
        except StateError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except QuestionError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except OSError as error:
            await context.abort(grpc.StatusCode.INTERNAL, f"cannot look at the kernel: {error.strerror}")
        return pb.TraceReply(steps=[pb.TraceStep(what=s.what, found=s.found, lost=s.lost) for s in steps])

    async def QuorumStatus(self, request: pb.LookRequest, context: Context) -> pb.QuorumReply:
        try:
            return await self._node.survey()
        except StateError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))


class ControlGate(ControlServicer):
    """`Control` on the local socket of any node."""

    def __init__(self, node: NodeControl) -> None:
        self._node = node

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListReply:
        return cast("pb.ListReply", await self._pass("List", request, context))

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.Object:
        return cast("pb.Object", await self._pass("Get", request, context))

    async def CreateNetwork(self, request: pb.CreateRequest, context: Context) -> pb.CreateReply:
        return cast("pb.CreateReply", await self._pass("CreateNetwork", request, context))

    async def CreateService(self, request: pb.CreateRequest, context: Context) -> pb.CreateReply:
        return cast("pb.CreateReply", await self._pass("CreateService", request, context))

    async def UpdateService(self, request: pb.UpdateRequest, context: Context) -> pb.Object:
        return cast("pb.Object", await self._pass("UpdateService", request, context))

    async def RollbackService(self, request: pb.GetRequest, context: Context) -> pb.Object:
        return cast("pb.Object", await self._pass("RollbackService", request, context))

    async def UpdateNode(self, request: pb.UpdateRequest, context: Context) -> pb.Object:
        return cast("pb.Object", await self._pass("UpdateNode", request, context))

    async def UpdateCluster(self, request: pb.UpdateRequest, context: Context) -> pb.Object:
        return cast("pb.Object", await self._pass("UpdateCluster", request, context))

    async def Remove(self, request: pb.RemoveRequest, context: Context) -> pb.RemoveReply:
        return cast("pb.RemoveReply", await self._pass("Remove", request, context))

    async def RotateToken(self, request: pb.RotateTokenRequest, context: Context) -> pb.RotateTokenReply:
        return cast("pb.RotateTokenReply", await self._pass("RotateToken", request, context))

    async def GetAuthority(self, request: pb.GetAuthorityRequest, context: Context) -> pb.AuthorityReply:
        return cast("pb.AuthorityReply", await self._pass("GetAuthority", request, context))

    async def RotateAuthority(self, request: pb.RotateAuthorityRequest, context: Context) -> pb.AuthorityReply:
        return cast("pb.AuthorityReply", await self._pass("RotateAuthority", request, context))

    async def GetUnlockKey(self, request: pb.UnlockKeyRequest, context: Context) -> pb.UnlockKeyReply:
        return cast("pb.UnlockKeyReply", await self._pass("GetUnlockKey", request, context))

    async def RotateUnlockKey(self, request: pb.UnlockKeyRequest, context: Context) -> pb.UnlockKeyReply:
        return cast("pb.UnlockKeyReply", await self._pass("RotateUnlockKey", request, context))

    async def AddUser(self, request: pb.AddUserRequest, context: Context) -> pb.UserReply:
        return cast("pb.UserReply", await self._pass("AddUser", request, context))

    async def _pass(self, name: str, request: Any, context: Context) -> Any:
        """One call without a stream, handed on as it is."""
        own = self._node.own_control()
        if own is not None:
            return await getattr(own, name)(request, context)
        async with _reach(self._node, context) as channel:
            try:
                return await getattr(ControlStub(channel), name)(request, timeout=FORWARD_TIMEOUT_S, metadata=said_by())
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), _explain(error))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Event]:
        async for event in self._stream("Watch", request, context):
            yield event

    async def Backup(self, request: pb.BackupRequest, context: Context) -> AsyncIterator[pb.BackupPiece]:
        async for piece in self._stream("Backup", request, context):
            yield piece

    async def _stream(self, name: str, request: Any, context: Context) -> AsyncIterator[Any]:
        own = self._node.own_control()
        if own is not None:
            async for message in getattr(own, name)(request, context):
                yield message
            return
        async with _reach(self._node, context) as channel:
            try:
                async for message in getattr(ControlStub(channel), name)(request, metadata=said_by()):
                    yield message
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), _explain(error))


class LogsGate(LogsServicer):
    """`Logs` on the local socket of any node, for readers."""

    def __init__(self, node: NodeControl) -> None:
        self._node = node

    async def Read(self, request: pb.LogsRequest, context: Context) -> None:  # type: ignore[override]  # no generator, as a manager's
        own = self._node.own_logs()
        if own is not None:
            await cast(Any, own.Read(request, cast(Any, context)))
            return
        async with _reach(self._node, context) as channel:
            await hand_on(LogsStub(channel), request, context, said_by())

    async def Push(self, request_iterator: Any, context: Context) -> pb.PushedLogEnd:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "logs are pushed to managers")
        raise AssertionError


@asynccontextmanager
async def _reach(node: NodeControl, context: Context) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the first manager that takes a connection: so far nothing has been asked of any."""
    if node.locked:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, LOCKED)
    addresses = node.manager_addresses()
    if not addresses:
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION,
            'this node is in no cluster: start one with "mesh init", or enter one with "mesh join"',
        )
    for address in addresses:
        async with node.edge.channel(address) as channel:
            try:
                async with asyncio.timeout(REACH_TIMEOUT_S):
                    await channel.channel_ready()
            except TimeoutError:
                continue
            yield channel
            return
    await context.abort(
        grpc.StatusCode.UNAVAILABLE, f"no manager answers: tried {', '.join(addresses)}; see mesh quorum status"
    )


def _explain(error: grpc.aio.AioRpcError) -> str:
    details = error.details() or error.code().name
    return f"no manager answers: {details}" if error.code() is grpc.StatusCode.UNAVAILABLE else details
