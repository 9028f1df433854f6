"""The manager in this process, for as long as this node is to be one.

One task, `run`. What the node is to be is in its identity, and the managers say it (Welcome, HeartbeatReply): when it
becomes a manager it enlists with the leader, takes its place and opens; when it becomes a worker, or was taken out of
the agreement, the manager is closed and its state removed. No restart either way.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator

import grpc
import msgspec

from control.home import Home, HomeError
from control.manager import Manager, ManagerError
from control.model import Cluster
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import MembershipStub
from control.server.edge import Edge
from control.server.guard import Audit
from control.server.quorum import survey
from control.store.errors import Removed, StoreError
from mesh.daemon.identity import Identity
from mesh.daemon.locker import Locker, LockerError

log = logging.getLogger(__name__)

ENLIST_TIMEOUT_S = 25.0
# A manager that knows of no leader for so long asks others whether it still belongs to them.
LEADERLESS_S = 10.0
# Managers that were left behind by a recovery may have a majority among themselves, and go on, until they look; those
# that have all moved find nobody until they do.
LOOK_S = 3.0
# Between attempts to be let in, or to tell a new address.
OUT_POLL_S = 0.5
RETRY_FIRST_S, RETRY_MAX_S = 0.2, 5.0
# How often it is looked whether a data key has served its time, which is weeks.
KEYS_LOOK_S = 3600.0


class _NoLonger(Exception):
    """This node is no manager any more."""


class _Reseated(Exception):
    """The cluster knows this manager no more (it was recovered, or restored), and gives it another place."""

    def __init__(self, reply: pb.EnlistReply) -> None:
        super().__init__("another place")
        self.reply = reply


class Managing:
    """See the module. `identity` gives what this node is now, and `managers` where others are."""

    def __init__(
        self,
        home: Home,
        edge: Edge,
        listen: str,
        identity: Callable[[], Identity],
        keep: Callable[[Identity], None],
        managers: Callable[[], tuple[str, ...]],
        wall_ms: Callable[[], int],
        certified: Callable[[str], Awaitable[None]],
        audit: Audit,
        locker: Locker | None = None,
    ) -> None:
        """`keep` makes an identity durable; `certified` waits until this node has a certificate for a role.

        `locker` keeps the keys of what is on the disk; None, in tests: nothing is encrypted.
        """
        self._locker = locker
        self._certified, self._audit = certified, audit
        self._home, self._edge, self._listen, self._wall_ms = home, edge, listen, wall_ms
        self._identity, self._keep, self._managers = identity, keep, managers
        self._news = asyncio.Event()
        self._random = random.Random()
        self.manager: Manager | None = None  # while it is open
        self.error = ""  # why there is none, if there should be one

    def reconsider(self) -> None:
        """The identity says something else than before."""
        self._news.set()

    async def run(self) -> None:
        """Until cancelled, or with what the manager failed with."""
        while True:
            if self._identity().role == "manager":
                await self._be_manager()
            else:
                self._news.clear()
                await self._news.wait()

    async def close(self) -> None:
        """Let go of port and files. Idempotent."""
        manager, self.manager = self.manager, None
        if manager is not None:
            await manager.close()

    async def _be_manager(self) -> None:
        """From the first word to the leader until the node is a worker."""
        removed, reseated = False, None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._until_worker())
                group.create_task(self._manage())
        except* _NoLonger:
            log.info("this node is a worker now")
            removed = True
        except* _Reseated as errors:
            reseated = _first(errors)
        except* Removed as errors:
            log.warning("this manager was taken out", extra={"reason": str(_first(errors))})
            removed = True
        finally:
            await self.close()
        if isinstance(reseated, _Reseated):
            log.warning("this manager gets another place: the cluster was recovered or restored without it")
            await self._home.enrol(reseated.reply.cluster_id, reseated.reply.seat)
        elif removed:
            self._keep(msgspec.structs.replace(self._identity(), enrolled=False))
            await asyncio.to_thread(self._home.remove)
            if self._locker is not None:
                await self._locker.release()

    async def _until_worker(self) -> None:
        while True:
            if self._identity().role == "manager":
                self._news.clear()
                await self._news.wait()
            elif self._home.kind != "disk" or await self._is_out():
                raise _NoLonger
            else:
                await asyncio.sleep(OUT_POLL_S)

    async def _is_out(self) -> bool:
        """Whether a leader says that this manager has no part in the agreement; until then its vote may be needed."""
        own = self._identity().node_id
        reply = await survey(self._edge, None, {address: address for address in self._managers()})
        said = [row.said for row in reply.managers if row.status == "leader"]
        return any(own not in (member.node_id for member in look.members) for look in said)

    async def _manage(self) -> None:
        await self._certified("manager")
        enrolled = self._identity().enrolled
        if not enrolled:
            await self._enlist(enrolled=False)
            self._keep(msgspec.structs.replace(self._identity(), enrolled=True))
        identity = self._identity()
        host = identity.address.rpartition(":")[0].strip("[]")
        try:
            seat = self._home.seat(identity.cluster_id, identity.node_id, host)
        except HomeError as error:
            raise ManagerError(str(error)) from error
        self.manager = await Manager.open(
            seat, listen=self._listen, wall_ms=self._wall_ms, edge=self._edge, audit=self._audit
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self.manager.run())
            group.create_task(self._keep_place(self.manager))
            if self._locker is not None:
                group.create_task(self._follow_lock(self.manager, self._locker))
                group.create_task(self._renew_keys(self.manager, self._locker))
            if self._home.kind == "disk":
                group.create_task(self._look_around(self.manager))

    async def _follow_lock(self, manager: Manager, locker: Locker) -> None:
        """Be locked with the cluster's unlock key, whenever that becomes another."""
        more = True
        while more:
            news = manager.store.news(Cluster)  # not a watcher: this is on every manager all the time
            await self._lock(manager, locker)
            more = await asyncio.shield(news)

    async def _lock(self, manager: Manager, locker: Locker) -> None:
        while cluster := next(iter(manager.store.view().all(Cluster)), None):
            try:
                if await locker.follow(cluster) and manager.renew_key is not None:
                    await manager.renew_key()
            except (LockerError, StoreError) as error:
                log.warning("the lock of this manager is not as it should be", extra={"reason": str(error)})
                await asyncio.sleep(RETRY_MAX_S)
            else:
                return

    async def _renew_keys(self, manager: Manager, locker: Locker) -> None:
        """Another data key now and then."""
        while manager.renew_key is not None:
            try:
                if await locker.renew():
                    await manager.renew_key()
            except (LockerError, StoreError) as error:
                log.warning("the key of this manager's files is due, and stays", extra={"reason": str(error)})
            await asyncio.sleep(KEYS_LOOK_S)

    async def _keep_place(self, manager: Manager) -> None:
        """Tell the leader where this manager is, since that may have changed; and again whenever none is known."""
        while True:
            reply = await self._enlist(enrolled=True)
            if reply.seat:
                raise _Reseated(reply)
            while self._is_led():
                await asyncio.wait([manager.store.turn()])
            await asyncio.sleep(LEADERLESS_S)

    async def _look_around(self, manager: Manager) -> None:
        """Ask wherever a manager may be how it is.

        While nobody leads: where it agrees, since others may have moved, or this one, or all of them. And the cluster
        that was recovered last is the one that counts: take a place in it.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            reply = await survey(self._edge, None, {address: address for address in self._managers()})
            if not self._is_led():
                self._meet(manager, reply)
            ahead = max(reply.managers, key=lambda row: row.said.recoveries, default=None)
            if ahead is None or not ahead.address or ahead.said.recoveries <= manager.roll.recoveries():
                continue
            try:
                answer = await self._ask([ahead.address], enrolled=True)
            except grpc.aio.AioRpcError as error:
                log.warning("left behind by a recovery", extra={"manager": ahead.address, "reason": error.details()})
            else:
                if answer.seat:
                    raise _Reseated(answer)

    async def _enlist(self, *, enrolled: bool) -> pb.EnlistReply:
        """Until a leader has answered: take the place that it gives, or have told it where this manager is."""
        pause_s = RETRY_FIRST_S
        while True:
            try:
                reply = await self._ask(self._whom(enrolled=enrolled), enrolled=enrolled)
                if not enrolled:
                    await self._home.enrol(reply.cluster_id, reply.seat)
            except (grpc.aio.AioRpcError, HomeError) as error:
                reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
                if reason != self.error:
                    log.warning("cannot enlist as a manager", extra={"reason": reason})
                self.error = reason or ""
            else:
                self.error = ""
                return reply
            await self._pause(pause_s * self._random.uniform(0.5, 1.0))
            pause_s = min(pause_s * 2, RETRY_MAX_S)

    def _whom(self, *, enrolled: bool) -> Iterator[str]:
        """Places to ask. Who has a place asks itself, and others only as long as nobody leads that it knows of."""
        own = self._identity().address
        if enrolled:
            yield own
        for address in dict.fromkeys(self._managers()):
            if enrolled and (address == own or self._is_led()):
                continue
            yield address

    def _is_led(self) -> bool:
        return self.manager is not None and (self.manager.store.term is not None or bool(self.manager.store.leader))

    async def _pause(self, pause_s: float) -> None:
        """Or less, if another one leads from now on."""
        if self.manager is None:
            await asyncio.sleep(pause_s)
        else:
            await asyncio.wait([self.manager.store.turn()], timeout=RETRY_FIRST_S if self._is_led() else pause_s)

    def _meet(self, manager: Manager, reply: pb.QuorumReply) -> None:
        """Managers that answer agree where they say."""
        said = (row.said for row in reply.managers if row.node_id != self._identity().node_id)
        if found := {look.node_id: look.quorum_address for look in said if look.quorum_address}:
            manager.meet(found)

    async def _ask(self, addresses: Iterable[str], *, enrolled: bool) -> pb.EnlistReply:
        """The first manager that answers. Raises AioRpcError of the last."""
        identity = self._identity()
        request = pb.EnlistRequest(
            node_id=identity.node_id,
            secret=identity.secret,
            address=identity.address,
            quorum_address=self._home.quorum_address(identity.address.rpartition(":")[0].strip("[]")),
            enrolled=enrolled,
            store=self._home.kind,
        )
        failure: grpc.aio.AioRpcError | None = None
        for address in addresses:
            try:
                async with self._edge.channel(address) as channel:
                    return await MembershipStub(channel).Enlist(request, timeout=ENLIST_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                failure = error
        assert failure is not None, "a member knows a manager"
        raise failure


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception in groups of groups."""
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
