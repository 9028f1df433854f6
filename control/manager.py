"""A manager: store, decisions, dispatcher and API, put together behind one gRPC server.

`Manager.bootstrap` makes the state of a new cluster; `Manager.open` opens it and takes the port; `run` serves
until it is cancelled or fails; `close` lets go of everything. Tasks: gRPC's server, one that waits for the store's end,
and, while this manager leads, one TaskGroup with the leader's loop and the dispatcher's. A failing store ends `run`
with its error: the process must end then, and systemd starts it anew.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import grpc

from control import allocator, keymanager, orchestrator, scheduler, trust
from control.ca.external import External
from control.ca.root import CaError, Root
from control.home import Home, HomeError, Seating
from control.ids import IdSource
from control.leader import Core, Leader
from control.lifecycle import Writer
from control.lock import KEY_BYTES as UNLOCK_KEY_BYTES
from control.model import Cluster, ClusterSpec, Node, NodeDescription, NodeSpec, NodeStatus, Object
from control.roll import Roll
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import (
    add_ControlServicer_to_server,
    add_DispatcherServicer_to_server,
    add_LogsServicer_to_server,
    add_MembershipServicer_to_server,
    add_QuorumServicer_to_server,
)
from control.server.api import ControlService
from control.server.dispatcher import DispatcherService
from control.server.edge import Edge, ListenError
from control.server.forward import ForwardingControl, ForwardingLogs, ForwardingMembership, Leaders
from control.server.guard import Audit
from control.server.logs import LogsService
from control.server.managers import check_farewell
from control.server.membership import MembershipService
from control.server.nodes import availability_of, with_lock
from control.server.quorum import QuorumService, nobody_leads, survey
from control.server.refusal import Refusal
from control.server.signing import Signatures
from control.spec import cluster_mistakes, is_hostname
from control.store.backend import Backend
from control.store.errors import NotLeader, Removed, StoreClosed, StoreError
from control.store.store import Store
from control.store.txn import Put
from control.token import RANDOM_BYTES, make_token, secret_digest
from control.trust import Trust, found, found_outside

log = logging.getLogger(__name__)

# Calls under way have this long to end; sessions of nodes never do, and are cut.
SERVER_GRACE_S = 0.5
FIRST_NODE_NUMBER = 1


class ManagerError(Exception):
    """A manager cannot be made or opened here. One sentence (mistakes of a spec: one a line)."""


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """A new cluster, and its first node. `secret` is told only here."""

    cluster_id: str
    node_id: str
    node_number: int
    secret: str
    worker_token: str
    manager_token: str
    chain: bytes = b""  # its certificate, and the roots to believe; PEM
    roots: bytes = b""
    unlock_key: str = ""  # with autolock


class Manager:
    """See the module. Made by `open`."""

    def __init__(self, store: Store, seat: Seating, edge: Edge, wall_ms: Callable[[], int], audit: Audit) -> None:
        self.store = store
        self.renew_key = seat.renew_key
        decisions = asyncio.Lock()
        new_id = IdSource(random.SystemRandom())
        self.roll = Roll(store, seat.electorate, seat.node_id)
        self.quorum = QuorumService(store, seat.node_id, seat.quorum_address, self.roll.recoveries)
        self._edge = edge
        self._leaders = Leaders(store, edge, self._nobody)
        signatures = Signatures(edge.credentials, wall_ms)
        control = ControlService(store, decisions, new_id, _random_bytes, wall_ms, self._may_go, signatures)
        membership = MembershipService(store, decisions, new_id, seat.kind, self.roll.admit, wall_ms, signatures)
        self.control = ForwardingControl(control, self._leaders, store)
        self.membership = ForwardingMembership(membership, self._leaders, store)
        self.trust = Trust(store, edge, audit, wall_ms)
        self.dispatcher = DispatcherService(store, wall_ms, random.Random(), self._leaders.address)
        self.logs = ForwardingLogs(LogsService(store, self.dispatcher.tell, new_id), self._leaders, store)
        self.leader = Leader(store, decisions, _cores(new_id), wall_ms)
        self.port = 0  # where the server listens
        self._server = edge.server([self.trust.guard] if self.trust.secure else [])

    @classmethod
    async def open(
        cls,
        seat: Seating,
        *,
        listen: str,
        wall_ms: Callable[[], int],
        edge: Edge = Edge(),  # noqa: B008 - it has no state
        audit: Audit = lambda *_: None,
    ) -> Manager:
        """Open the state that the seat's backend keeps and bind `listen` (host:port, or unix:path; port 0 for any).

        Raises ManagerError, or Removed if the state says that this manager is none any more.
        """
        store = Store(seat.backend, wall_ms)
        try:
            await store.open()
        except Removed:
            await store.close()
            raise
        except StoreError as error:
            await store.close()
            raise ManagerError(str(error)) from error
        if not store.view().all(Cluster) and not seat.newcomer:
            await store.close()
            raise ManagerError("the state of this manager holds no cluster: it was not made by mesh init, or only half")
        manager = cls(store, seat, edge, wall_ms, audit)
        server = manager._server
        manager.add_services(server)
        add_MembershipServicer_to_server(manager.membership, server)
        add_DispatcherServicer_to_server(manager.dispatcher, server)
        add_QuorumServicer_to_server(manager.quorum, server)
        add_LogsServicer_to_server(manager.logs, server)
        try:
            manager.port = edge.listen(server, listen)
            manager.trust.listen(listen, manager.membership)
        except ListenError as error:
            await store.close()
            raise ManagerError(str(error)) from error
        return manager

    @staticmethod
    async def bootstrap(
        home: Home,
        *,
        spec: ClusterSpec,
        description: NodeDescription,
        availability: str,
        data_address: str,
        address: str,
        wall_ms: Callable[[], int],
        csr: bytes = b"",
        root: Root | None = None,
        external: External | None = None,
    ) -> Bootstrapped:
        """Begin a new cluster in `home`, where there must be none, with this node as its manager.

        `address` is host:port of its API, as others reach it; `csr` asks for its certificate; `root` is an authority
        that was brought along, `external` one that signs elsewhere. Raises ManagerError.
        """
        if mistakes := cluster_mistakes(spec):
            raise ManagerError("\n".join(mistakes))
        if not is_hostname(description.hostname):
            raise ManagerError(f'the name of this machine must be a host name, not "{description.hostname[:80]}"')
        try:
            node_spec = NodeSpec(role="manager", availability=availability_of(availability))
        except Refusal as refusal:
            raise ManagerError(str(refusal)) from refusal
        new_id = IdSource(random.SystemRandom())
        cluster_id, secret = new_id(), new_id()
        node_id = new_id()
        try:
            if external is not None:
                founding = await found_outside(cluster_id, node_id, external, csr, wall_ms)
            else:
                founding = found(cluster_id, node_id, root, csr, wall_ms() / 1000, spec.certificate_life_s)
        except CaError as error:
            raise ManagerError(str(error)) from error
        node = Node(
            id=node_id,
            spec=node_spec,
            number=FIRST_NODE_NUMBER,
            description=description,
            status=NodeStatus(message="has made the cluster", data_address=data_address),
            secret_digest=secret_digest(secret),
            control_address=address,
            key_digest=founding.key_digest,
            issuer=founding.digest,
        )
        cluster = _first_cluster(cluster_id, spec, founding.digest, wall_ms())
        first = (cluster, node, founding.authority)
        try:
            await home.create(cluster_id, node.id, lambda backend: _write(backend, first, wall_ms))
        except HomeError as error:
            raise ManagerError(str(error)) from error
        tokens = cluster.worker_token, cluster.manager_token
        papers = founding.chain, founding.roots
        return Bootstrapped(cluster_id, node.id, node.number, secret, *tokens, *papers, cluster.unlock_key)

    def add_services(self, server: grpc.aio.Server) -> None:
        """Serve the API on another server, too (the daemon's local socket): Control, with the same object."""
        add_ControlServicer_to_server(self.control, server)

    async def run(self) -> None:
        """Serve until cancelled. Returns when the store is closed; raises what it failed with."""
        await self._server.start()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._store_end())
                group.create_task(self.trust.run())
                while True:
                    await self._lead()
        except* StoreClosed:
            log.info("the manager has stopped")
        finally:
            await self._server.stop(SERVER_GRACE_S)

    async def close(self) -> None:
        """Let go of the port and of the files. Idempotent."""
        await self._server.stop(0)
        self.trust.close()
        await self._leaders.close()
        await self.store.close()

    async def survey(self) -> pb.QuorumReply:
        """How all managers are; see `control.server.quorum`."""
        own = self.quorum.look()
        return await survey(self._edge, own, {m.node_id: m.address for m in own.members})

    def meet(self, addresses: Mapping[str, str]) -> None:
        """Other managers agree there, host:port by node id: they, or this one, have moved."""
        self.roll.meet(addresses)

    async def _nobody(self) -> str:
        return nobody_leads(await self.survey())

    def _may_go(self, node: Node) -> None:
        if self.roll.votes:
            check_farewell(node, self.store.members(), self.roll.answering())

    async def _store_end(self) -> None:
        await self.store.closed()
        raise StoreClosed("the store is closed: this manager is stopping")

    async def _lead(self) -> None:
        """One term of leadership, from its beginning to its end."""
        term = await self.store.leading()
        log.info("leading the cluster", extra={"term": term})
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.leader.run(term))
                group.create_task(self.dispatcher.run(term))
                group.create_task(self.roll.run(term))
                group.create_task(self._until_deposed(term))
        except* NotLeader:
            log.info("not leading the cluster any more", extra={"term": term})

    async def _until_deposed(self, term: int) -> None:
        await self.store.deposed(term)
        raise NotLeader(f"the leadership of term {term} is over")


def _cores(new_id: Callable[[], str]) -> tuple[Core, ...]:
    """The decision cores, in the order in which a task passes through them."""
    return (
        Core("orchestrator", partial(orchestrator.decide, new_id=new_id)),
        Core("allocator", partial(allocator.decide, new_id=new_id)),
        Core("scheduler", partial(scheduler.decide, new_id=new_id)),
        Core("trust", trust.decide),
        Core("keys of gossip", partial(keymanager.decide, random_bytes=secrets.token_bytes)),
    )


def _first_cluster(cluster_id: str, spec: ClusterSpec, root_digest: str, now_ms: int) -> Cluster:
    """With its tokens and keys."""
    cluster = Cluster(
        id=cluster_id,
        spec=spec,
        worker_token=make_token(root_digest, _random_bytes()),
        manager_token=make_token(root_digest, _random_bytes()),
        next_node_number=FIRST_NODE_NUMBER + 1,
        gossip_keys=keymanager.new_ring(secrets.token_bytes),
        gossip_keys_ms=now_ms,
    )
    return with_lock(cluster, secrets.token_bytes(UNLOCK_KEY_BYTES))


def _random_bytes() -> bytes:
    return secrets.token_bytes(RANDOM_BYTES)


async def _write(backend: Backend, objects: Iterable[Object], wall_ms: Callable[[], int]) -> None:
    store = Store(backend, wall_ms)
    try:
        await store.open()
        await store.commit([Put(obj) for obj in objects], Writer.ORCHESTRATOR, term=await store.leading())
    finally:
        await store.close()
