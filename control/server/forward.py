"""Calls that reach a manager which does not lead are handed on to the one that does, once.

A follower waits a little for a leader, since a new one is found within seconds. What only reads is tried again when
the leader is lost meanwhile; a change is not, unless the manager that was asked says that it has done nothing (it names
another leader). Watches and backups are served by each manager from its own store, after a barrier: they outlive the
leader. No tasks of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc

from control.model import Node
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import (
    ControlServicer,
    ControlStub,
    LogsServicer,
    LogsStub,
    MembershipServicer,
    MembershipStub,
)
from control.server.api import CALL_TIMEOUT_S, ControlService, answering
from control.server.edge import Edge
from control.server.guard import said_by
from control.server.hop import CALLER, HOP, LEADER, forwarded, not_done, peer_address
from control.server.logs import LogsService
from control.server.membership import MembershipService
from control.server.refusal import Refusal
from control.store.store import Store

Context = grpc.aio.ServicerContext[Any, Any]

# An election takes 1.5 to 3 s, and with etcd a lease 5 s; whoever calls then gets an answer late instead of none.
LEADER_WAIT_S = 6.0
# A call that is with a leader that was deposed is answered soon, or its manager is gone.
DEPOSED_GRACE_S = 1.0
RETRY_PAUSE_S = 0.1
# Nobody has connected by then: the leader is gone, or about to be replaced.
REACH_S = 1.0
_READS = frozenset({"List", "Get"})
_LOST = "the leader was lost while the call was under way; the change may still come to pass: look before trying again"


class _Unreached(Exception):
    """No connection to the leader."""


class Leaders:
    """Where the leader is. `nobody` says in one sentence that there is none."""

    def __init__(self, store: Store, edge: Edge, nobody: Callable[[], Any]) -> None:
        self._store, self._edge, self._nobody = store, edge, nobody
        self._address = ""
        self._channel: grpc.aio.Channel | None = None

    def address(self) -> str:
        """Of another manager that leads, "" if none is known or this one does."""
        node = self._store.view().get(Node, self._store.leader) if self._store.leader else None
        return node.control_address if node is not None else ""

    async def find(self, end_s: float) -> str:
        """The leader's address, "" if this manager leads; waits for one until `end_s`. Raises Refusal."""
        while True:
            turn = self._store.turn()
            if self._store.term is not None:
                return ""
            if address := self.address():
                return address
            try:
                async with asyncio.timeout_at(end_s):
                    await asyncio.wait([turn])
            except TimeoutError:
                raise Refusal("UNAVAILABLE", await self._nobody()) from None

    async def channel(self, address: str) -> grpc.aio.Channel:
        """The one to the leader; that to an earlier leader is closed."""
        if self._channel is None or self._address != address:
            before, self._channel = self._channel, self._edge.channel(address)
            self._address = address
            if before is not None:
                await before.close()
        return self._channel

    async def close(self) -> None:
        """Let go of the channel."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def call(self, stub: Callable[[grpc.aio.Channel], Any], name: str, request: Any, context: Context) -> Any:
        """Hand one call on. None if this manager leads (now); else the answer, or the call is ended as the leader did.

        Raises Refusal.
        """
        now_s = asyncio.get_running_loop().time
        end_s = now_s() + LEADER_WAIT_S
        while address := await self.find(end_s):
            try:
                channel = await self._reach(address)
                return await self._ask(stub(channel), name, request, context, address)
            except grpc.aio.AioRpcError as error:
                may_retry = not_done(error) or (name in _READS and error.code() is grpc.StatusCode.UNAVAILABLE)
                if not may_retry or now_s() > end_s:
                    sentence = error.details() or error.code().name
                    if error.code() is grpc.StatusCode.UNAVAILABLE and not not_done(error):
                        sentence = f"the leader at {address} does not answer" if name in _READS else _LOST
                    await context.abort(error.code(), sentence)
            except _Unreached:
                if now_s() > end_s:
                    raise Refusal("UNAVAILABLE", f"the leader at {address} does not answer") from None
            except TimeoutError:
                if name not in _READS or now_s() > end_s:
                    raise Refusal("UNAVAILABLE", _LOST) from None
            await asyncio.sleep(RETRY_PAUSE_S)
        return None

    async def _reach(self, address: str) -> grpc.aio.Channel:
        """A connection first: without one nothing has been asked, and another leader may be. Raises _Unreached."""
        channel = await self.channel(address)
        try:
            async with asyncio.timeout(REACH_S):
                await channel.channel_ready()
        except TimeoutError as error:
            raise _Unreached from error
        return channel

    async def _ask(self, stub: Any, name: str, request: Any, context: Context, address: str) -> Any:
        """One attempt. Raises AioRpcError, and TimeoutError if the leader was deposed and does not answer."""
        loop, turn = asyncio.get_running_loop(), self._store.turn()
        metadata = ((HOP, "1"), (CALLER, peer_address(context)), *said_by())
        async with asyncio.timeout(CALL_TIMEOUT_S) as timer:

            def hurry(_: object) -> None:
                if self.address() != address:
                    timer.reschedule(min(timer.when() or 0.0, loop.time() + DEPOSED_GRACE_S))

            turn.add_done_callback(hurry)
            try:
                return await getattr(stub, name)(request, timeout=CALL_TIMEOUT_S, metadata=metadata)
            finally:
                turn.remove_done_callback(hurry)


class ForwardingControl(ControlServicer):
    """`Control` of a manager: served here while it leads."""

    def __init__(self, own: ControlService, leaders: Leaders, store: Store) -> None:
        self._own, self._leaders, self._store = own, leaders, store

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

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Event]:
        await self._catch_up(context)
        async for event in self._own.Watch(request, context):
            yield event

    async def Backup(self, request: pb.BackupRequest, context: Context) -> AsyncIterator[pb.BackupPiece]:
        await self._catch_up(context)
        async for piece in self._own.Backup(request, context):
            yield piece

    async def _pass(self, name: str, request: Any, context: Context) -> Any:
        return await pass_on(self._own, self._leaders, self._store, ControlStub, name, request, context)

    async def _catch_up(self, context: Context) -> None:
        """So that a caller finds here what it has been told elsewhere."""
        async with answering(context):
            if self._store.term is None:
                await self._leaders.find(asyncio.get_running_loop().time() + LEADER_WAIT_S)
                await self._store.barrier()


class ForwardingMembership(MembershipServicer):
    """`Membership` of a manager."""

    def __init__(self, own: MembershipService, leaders: Leaders, store: Store) -> None:
        self._own, self._leaders, self._store = own, leaders, store

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:
        return cast("pb.JoinReply", await self._pass("Join", request, context))

    async def Enlist(self, request: pb.EnlistRequest, context: Context) -> pb.EnlistReply:
        return cast("pb.EnlistReply", await self._pass("Enlist", request, context))

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:
        return cast("pb.RenewReply", await self._pass("Renew", request, context))

    async def let_in(self, request: pb.JoinRequest, address: str) -> pb.JoinReply:
        """A newcomer at the door of this manager. Raises Refusal, StoreError."""
        now_s = asyncio.get_running_loop().time
        end_s = now_s() + LEADER_WAIT_S
        while leader := await self._leaders.find(end_s):
            stub, metadata = MembershipStub(await self._leaders.channel(leader)), ((HOP, "1"), (CALLER, address))
            try:
                return await stub.Join(request, timeout=CALL_TIMEOUT_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if not not_done(error) or now_s() > end_s:
                    raise Refusal.of_wire(error.code().name, error.details() or error.code().name) from error
            await asyncio.sleep(RETRY_PAUSE_S)
        return await self._own.let_in(request, address)

    async def _pass(self, name: str, request: Any, context: Context) -> Any:
        return await pass_on(self._own, self._leaders, self._store, MembershipStub, name, request, context)


class ForwardingLogs(LogsServicer):
    """`Logs` of a manager: nodes push to the one that leads, which has the readers."""

    def __init__(self, own: LogsService, leaders: Leaders, store: Store) -> None:
        self._own, self._leaders, self._store = own, leaders, store

    async def Read(self, request: pb.LogsRequest, context: Context) -> None:  # type: ignore[override]  # no generator, as its own
        async with answering(context, timeout_s=None):
            address = await self._leaders.find(asyncio.get_running_loop().time() + LEADER_WAIT_S)
            if not address:
                await self._own.Read(request, context)
                return
            if forwarded(context):
                raise Refusal("UNAVAILABLE", f"this manager does not lead the cluster: {address} does")
            metadata = ((HOP, "1"), (CALLER, peer_address(context)), *said_by())
            await hand_on(LogsStub(await self._leaders.channel(address)), request, context, metadata)

    async def Push(self, request_iterator: Any, context: Context) -> pb.PushedLogEnd:
        return await self._own.Push(request_iterator, context)


async def hand_on(
    stub: Any, request: pb.LogsRequest, context: Context, metadata: tuple[tuple[str, str], ...] = ()
) -> None:
    """Read logs by another, for this caller."""
    try:
        async for piece in stub.Read(request, metadata=metadata):
            await context.write(piece)
    except grpc.aio.AioRpcError as error:
        await context.abort(error.code(), error.details() or error.code().name)


async def pass_on(
    own: Any, leaders: Leaders, store: Store, stub: Callable[[Any], Any], name: str, request: Any, context: Context
) -> Any:
    """One call: done here by the leader, handed on by others, refused if it was handed on already."""
    reply = None
    if store.term is None:
        if forwarded(context):
            address = leaders.address()
            await context.abort(
                grpc.StatusCode.UNAVAILABLE,
                "this manager does not lead the cluster" + f": {address} does" * bool(address),
                trailing_metadata=((LEADER, address),),
            )
        try:
            reply = await leaders.call(stub, name, request, context)
        except Refusal as refusal:
            await context.abort(grpc.StatusCode[refusal.code], str(refusal))
    return reply if reply is not None else await getattr(own, name)(request, context)
