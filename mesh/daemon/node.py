"""The life of a node: idle, then a member of a cluster, then perhaps idle again.

`Node.run` owns everything: the local socket always, and while the node is a member the manager (if it is one) and the
agent. Tasks end in the order agent, manager, local socket. What runs in the kernel and as tasks outlives all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import msgspec

from control.audit import AuditLog
from control.ca.disk import CredentialsError
from control.ca.root import CaError
from control.home import home_of
from control.manager import Manager, ManagerError
from control.model import ClusterSpec, NodeDescription
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import (
    ControlServicer,
    LogsServicer,
    add_ControlServicer_to_server,
    add_LocalServicer_to_server,
    add_LogsServicer_to_server,
)
from control.server.calls import make_server
from control.server.edge import Edge
from control.server.guard import Guard
from control.server.quorum import survey
from control.token import TokenError, parse_token
from control.vault import VaultError
from mesh import machine
from mesh.agent.agent import Agent, Doors
from mesh.agent.agent import Identity as AgentIdentity
from mesh.agent.questions import Questions, UnknownTaskError, find_task
from mesh.config import Config
from mesh.daemon import identity as identities
from mesh.daemon.addressing import Addressing
from mesh.daemon.doorman import Doorman
from mesh.daemon.identity import Identity, IdentityError
from mesh.daemon.joining import ask_to_join, brought_root, external_ca
from mesh.daemon.leaving import lay_down, sign_off
from mesh.daemon.local import ControlGate, LocalService, LogsGate, StateError
from mesh.daemon.locker import LOCKED, Locker, LockerError, open_vault
from mesh.daemon.managing import Managing
from mesh.daemon.papers import ManagersTls, Papers
from mesh.daemon.renewal import Renewal
from mesh.metrics import Metrics
from mesh.plugin.plugin import AttachError, Plugin

log = logging.getLogger(__name__)

# Whoever is in it may use the local socket as root may, if there is such a group.
GROUP = "mesh"
# An engine that comes after us is noticed within twice this; one that is only restarted is not missed.
EXECUTORS_LOOK_S = 5.0
# `init` and `join` wait this long for the node's first session; it is there in a fraction.
CONNECT_TIMEOUT_S = 10.0
CONNECT_POLL_S = 0.02
# The local server gives calls in flight this long at the end.
LOCAL_GRACE_S = 0.5
# A manager that has just been opened hears what gossip says at most so much later.
RUMOURS_S = 2.0


class _Left(Exception):
    """The node has left its cluster; ends the member's task group."""


class Node:
    """See the module. `doors` makes the outside of an agent anew for each membership."""

    def __init__(
        self,
        config: Config,
        doors: Callable[[Config], Doors],
        describe: Callable[[str], NodeDescription],
        metrics: Metrics,
        wall_ms: Callable[[], int],
        plugin: Plugin | None = None,
    ) -> None:
        self.config, self.metrics = config, metrics
        self.plugin = plugin
        if plugin is not None:
            plugin.expected = lambda: self.identity is not None
        self.state_dir = Path(config.state_dir)
        try:
            self.identity: Identity | None = identities.load(self.state_dir)
            self.vault = open_vault(self.state_dir, self.identity, lambda: wall_ms() / 1000)
            self.papers = Papers(self.state_dir, wall_ms, locked=self.vault.locked)
        except (CredentialsError, VaultError) as error:
            raise IdentityError(str(error)) from error
        self.locker = Locker(self.vault, self.papers)
        self.edge = Edge(self.papers.credentials)
        self.audit = AuditLog(self.state_dir / "audit.log", wall_ms)
        tls = ManagersTls(self.papers)
        self.home = home_of(config.store, self.state_dir / "manager", config.quorum_listen, tls, self.vault)
        self._doors, self._describe, self._wall_ms = doors, describe, wall_ms
        self._addressing = Addressing(config)
        if self.identity is not None and not self.papers.exist:
            raise IdentityError(f"this node has lost its certificate: restore {self.state_dir}/tls, or start it anew")
        self._agent: Agent | None = None
        self._managing: Managing | None = None
        self._renewal: Renewal | None = None
        self._wake = asyncio.Event()
        self._leave = asyncio.Event()
        self._left = asyncio.Event()
        self._changing = asyncio.Lock()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until cancelled. `ready` is called once the local socket answers."""
        doorman = Doorman(Path(self.config.socket))
        server = await self._serve_local(doorman)
        ready()
        try:
            while True:
                if self.identity is None:
                    await self._wake.wait()
                self._wake.clear()
                await self._be_member()
        finally:
            doorman.close()
            await server.stop(LOCAL_GRACE_S)

    async def _serve_local(self, doorman: Doorman) -> grpc.aio.Server:
        doorman.prepare()  # an earlier life is over: the lock on the state directory says so
        guard = Guard(lambda who, _: who, self.audit, secure=False)
        server = make_server((("grpc.so_reuseport", 0),), (guard,))
        add_LocalServicer_to_server(LocalService(self), server)
        add_ControlServicer_to_server(ControlGate(self), server)
        add_LogsServicer_to_server(LogsGate(self), server)
        server.add_insecure_port(f"unix:{doorman.inside}")
        await server.start()
        await doorman.open(machine.group_id(GROUP))
        return server

    async def _be_member(self) -> None:
        """Run manager and agent until the node leaves."""
        assert self.identity is not None
        identity = await self._addressing.settled(self.identity)
        self._keep(identity)
        log.info("member of a cluster", extra={"node": identity.node_id, "role": identity.role})
        doors = replace(self._doors(self.config), edge=self.edge)
        balancer = doors.balancer.balancer.name
        log.info("balances", extra={"by": balancer, "why": doors.balancer.balancer_reason})
        described = await asyncio.to_thread(self._describe, identity.data_address)
        description = msgspec.structs.replace(described, balancer=balancer)
        renewal = self._renewal = Renewal(
            self.papers, self.edge, self._own, self.manager_addresses, self._is_connected, random.Random()
        )
        managing = self._managing = Managing(
            self.home,
            self.edge,
            self.config.listen,
            self._own,
            self._keep,
            self.manager_addresses,
            self._wall_ms,
            renewal.until_role,
            self.audit,
            self.locker,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.locker.once_open(renewal.run))
                group.create_task(self.locker.once_open(managing.run))
                self._agent = self._make_agent(identity, description, doors)
                self._say_where(self._agent)
                group.create_task(self._agent.run())
                if self.plugin is not None:
                    group.create_task(self.plugin.run(self._agent))
                group.create_task(self._until_left(self._agent))
                group.create_task(self._follow_executors(self._agent, description))
                group.create_task(self._follow_managers(self._agent, managing, renewal))
                group.create_task(_tell_rumours(self._agent, managing))
        except* _Left:
            log.info("leaving the cluster")
        finally:
            self._agent = None
            self._managing = self._renewal = None
            await managing.close()
        await self._forget(self._own())  # there is no other way to get here than to leave

    def _make_agent(self, identity: Identity, description: NodeDescription, doors: Doors) -> Agent:
        return Agent(
            AgentIdentity(
                node_id=identity.node_id,
                secret=identity.secret,
                cluster_id=identity.cluster_id,
                data_address=identity.data_address,
                managers=identity.managers,
                hints=self.config.managers,
            ),
            description,
            doors,
            self.state_dir,
            self.config.netns_dir,
            self.metrics,
            self._wall_ms,
            self.config.dns_address(),
        )

    def _own(self) -> Identity:
        assert self.identity is not None, "only while this node is a member"
        return self.identity

    def _keep(self, identity: Identity) -> None:
        if identity != self.identity:
            identities.save(self.state_dir, identity)
            self.identity = identity

    async def _follow_managers(self, agent: Agent, managing: Managing, renewal: Renewal) -> None:
        """What the managers say of themselves, and of the role of this node."""
        while True:
            await agent.connection.told.wait()
            agent.connection.told.clear()
            before = self._own()
            role = agent.connection.role or before.role
            address = before.address
            if role == "manager" and not address:
                address = await self._addressing.control("", before.data_address)
            enrolled = before.enrolled and before.role == "manager"
            self._keep(
                msgspec.structs.replace(
                    before,
                    role="manager" if role == "manager" else "worker",
                    enrolled=enrolled,
                    address=address,
                    managers=agent.connection.managers,
                )
            )
            self._say_where(agent)
            managing.reconsider()
            renewal.reconsider(asked=agent.connection.renew)

    def _say_where(self, agent: Agent) -> None:
        """In gossip, where this node answers as a manager."""
        own = self._own()
        if agent.gossip is not None:
            agent.gossip.answer_at(own.address if own.role == "manager" else "")

    async def _follow_executors(self, agent: Agent, description: NodeDescription) -> None:
        """Tell the managers when an engine for containers has come, or has been away for some time; and new keys."""
        log.info("runs", extra={"executors": ", ".join(description.executors)})
        seen = description
        while True:
            await asyncio.sleep(EXECUTORS_LOOK_S)
            try:
                found = await asyncio.to_thread(self._describe, agent.identity.data_address)
            except OSError as error:  # interfaces that change while they are listed, no descriptors left
                log.warning("cannot look at this machine", extra={"error": str(error)})
                continue
            found = msgspec.structs.replace(description, executors=found.executors, tunnel_keys=found.tunnel_keys)
            if found == seen and found != description:
                log.info("runs", extra={"executors": ", ".join(found.executors), "keys": len(found.tunnel_keys)})
                description = found
                agent.describe(description)
            seen = found

    async def _until_left(self, agent: Agent) -> None:
        await self._leave.wait()
        self._leave.clear()
        await agent.leave()
        raise _Left

    async def _forget(self, identity: Identity) -> None:
        """Nothing of the cluster stays here, and as little as possible of this node there."""
        await sign_off(self.edge, identity)
        identities.forget(self.state_dir)
        await self.papers.forget()
        await self.locker.release()
        if self.plugin is not None:
            self.plugin.forget()
        await asyncio.to_thread(self.home.remove)
        self.identity = None
        self._left.set()

    # --- the local API ------------------------------------------------------------------------------------------------

    def own_control(self) -> ControlServicer | None:
        """The API of the manager in this process, if there is one; not of one that is being let go."""
        if self.identity is None or self.identity.role != "manager":
            return None
        manager = self._managing.manager if self._managing is not None else None
        return manager.control if manager is not None else None

    def own_logs(self) -> LogsServicer | None:
        """As `own_control`."""
        manager = self._managing.manager if self._managing is not None else None
        return manager.logs if manager is not None else None

    async def survey(self) -> pb.QuorumReply:
        """How the managers are. Raises StateError."""
        if self.identity is None:
            raise StateError("this node is in no cluster")
        if self.locked:
            raise StateError(LOCKED)
        manager = self._managing.manager if self._managing is not None else None
        if manager is not None:
            return await manager.survey()
        return await survey(self.edge, None, {address: address for address in self.manager_addresses()})

    def manager_addresses(self) -> tuple[str, ...]:
        """Where managers are, best known first."""
        if self.identity is None:
            return ()
        if self._agent is None:
            return tuple(dict.fromkeys((*self.identity.managers, *self.config.managers)))
        return tuple(dict.fromkeys((*self._agent.connection.managers, *self._agent.hints())))

    def info(self) -> pb.InfoReply:
        """What `mesh status` shows of this node."""
        if self.identity is None:
            return pb.InfoReply(state="idle", node_name=self.config.node_name)
        agent = self._agent
        errors = agent.outcome.errors if agent is not None and agent.outcome is not None else ()
        troubles = agent.gossip.troubles() if agent is not None and agent.gossip is not None else ()
        return pb.InfoReply(
            state="locked" if self.locked else "active",
            node_id=self.identity.node_id,
            node_name=self.config.node_name,
            cluster_id=self.identity.cluster_id,
            role=self.identity.role,
            managers=list(self.manager_addresses()),
            connected=agent is not None and agent.session.connected,
            executor=agent.executor_name if agent is not None else "",
            balancer=agent.session.description.balancer if agent is not None else "",
            sequence=agent.session.assignments.sequence if agent is not None else 0,
            repairs=int(agent.reconciler.repairs.value) if agent is not None else 0,
            error="; ".join((*errors, *troubles)) or self._problem(agent),
        )

    @property
    def locked(self) -> bool:
        """Whether this is a manager that waits for the unlock key."""
        return self.identity is not None and self.locker.locked

    async def unlock(self, key: str) -> None:
        """Give it the key. Raises StateError."""
        async with self._changing:
            if not self.locked:
                raise StateError("this machine is not locked")
            try:
                await self.locker.unlock(key)
            except LockerError as error:
                raise StateError(str(error)) from error

    def _manages(self) -> bool:
        return self._managing is not None and self._managing.manager is not None

    def _is_connected(self) -> bool:
        return self._agent is not None and self._agent.session.connected

    def _problem(self, agent: Agent | None) -> str:
        said = agent.connection.error if agent is not None else ""
        return said or (self._renewal.error if self._renewal is not None else "")

    def questions(self) -> Questions:
        """Whom to ask about the data plane of this node. Raises StateError."""
        if self._agent is None:
            raise StateError("this node is in no cluster")
        return Questions(self._agent)

    def task_process(self, reference: str) -> tuple[str, int]:
        """The process of a task that runs here. Raises StateError."""
        if self._agent is None:
            raise StateError("this node is in no cluster")
        found = {
            task_id: pid for task_id in self._agent.tasks.known() if (pid := self._agent.tasks.pid(task_id)) is not None
        }
        try:
            task_id = find_task(reference, {i: t for i, t in self._agent.tasks.known().items() if i in found})
        except UnknownTaskError as error:
            raise StateError(str(error)) from error
        return task_id, found[task_id]

    async def attach(self, request: pb.AttachRequest) -> list[str]:
        """Attach or detach a container of others. Raises StateError."""
        if self.plugin is None:
            raise StateError("this node has no plugin for Docker: see docker_plugin and executor in its configuration")
        try:
            return await self.plugin.attach(request)
        except AttachError as error:
            raise StateError(str(error)) from error

    async def init(self, request: pb.InitRequest, spec: ClusterSpec) -> pb.InitReply:
        """Start a cluster with this node as its first manager."""
        async with self._changing:
            self._must_be_idle()
            address, data = await self._addressing.first(request.advertise_address, request.data_address)
            description = await asyncio.to_thread(self._describe, data)
            try:
                made = await Manager.bootstrap(
                    self.home,
                    spec=spec,
                    description=description,
                    availability=request.availability or "active",
                    data_address=data,
                    address=address,
                    wall_ms=self._wall_ms,
                    csr=await self.papers.request(),
                    root=brought_root(request, self._wall_ms() / 1000),
                    external=external_ca(request),
                )
                await self.papers.keep(made.chain, made.roots)
            except (CaError, ManagerError, CredentialsError) as error:
                raise StateError(str(error)) from error
            self._become(
                Identity(
                    node_id=made.node_id,
                    node_number=made.node_number,
                    secret=made.secret,
                    cluster_id=made.cluster_id,
                    role="manager",
                    data_address=data,
                    managers=(address,),
                    address=address,
                )
            )
            await self._until_connected()
            return pb.InitReply(
                node_id=made.node_id,
                cluster_id=made.cluster_id,
                worker_token=made.worker_token,
                manager_address=address,
                unlock_key=made.unlock_key,
            )

    async def join(self, request: pb.LocalJoinRequest) -> pb.LocalJoinReply:
        """Enter a cluster. Raises StateError or the manager's Refusal; no identity is kept unless it succeeds."""
        async with self._changing:
            self._must_be_idle()
            try:
                believe = self.papers.by_digest(parse_token(request.token).digest)
                csr = await self.papers.request()
            except (TokenError, CredentialsError) as error:
                raise StateError(str(error)) from error
            own = await self._addressing.towards(request.data_address, next(iter(request.managers), ""))
            address = await self._addressing.control(request.advertise_address, own)
            description = await asyncio.to_thread(self._describe, own)
            reply = await ask_to_join(
                list(request.managers),
                believe,
                pb.JoinRequest(
                    token=request.token,
                    description=msgspec.msgpack.encode(description),
                    data_address=own,
                    availability=request.availability or "active",
                    csr=csr,
                ),
            )
            try:
                await self.papers.keep(reply.certificate, reply.roots)
            except CredentialsError as error:
                raise StateError(str(error)) from error
            self._become(
                Identity(
                    node_id=reply.node_id,
                    node_number=reply.node_number,
                    secret=reply.secret,
                    cluster_id=reply.cluster_id,
                    role="manager" if reply.role == "manager" else "worker",
                    data_address=own,
                    managers=tuple(reply.managers) or tuple(request.managers),
                    address=address if reply.role == "manager" else "",
                    enrolled=False,
                )
            )
            await self._until_connected()
            return pb.LocalJoinReply(node_id=reply.node_id)

    async def leave(self, *, force: bool) -> None:
        """Leave the cluster: tasks stopped, kernel cleaned, identity forgotten."""
        async with self._changing:
            if self.identity is None:
                raise StateError("this node is in no cluster")
            if self._agent is None:
                raise StateError("this node is not up yet; try again")
            if self.locked and not force:
                raise StateError(f"{LOCKED}; or use --force, and forget what it knows")
            if self.identity.role == "manager" and not self.locked:
                await lay_down(self.edge, self.identity, self._manages, force=force)
            self._left.clear()
            self._leave.set()
            await self._left.wait()

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _must_be_idle(self) -> None:
        if self.identity is not None:
            raise StateError('this node is already in a cluster: "mesh leave" first')
        if (self.state_dir / "manager").exists():
            raise StateError(
                f"{self.state_dir}/manager holds the state of another cluster: "
                "restore its identity.json, or move the directory away"
            )

    def _become(self, identity: Identity) -> None:
        identities.save(self.state_dir, identity)
        self.identity = identity
        self._wake.set()

    async def _until_connected(self) -> None:
        """Give a new member a moment to speak to its manager, so that what follows finds it ready."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                while self._agent is None or not self._agent.session.connected:  # noqa: ASYNC110 - bounded above
                    await asyncio.sleep(CONNECT_POLL_S)


async def _tell_rumours(agent: Agent, managing: Managing) -> None:
    """Keep the manager of this process, whenever there is one, up to what gossip says of the nodes."""
    while agent.gossip is not None:
        agent.rumoured.clear()
        if managing.manager is not None:
            managing.manager.dispatcher.rumour(agent.gossip.rumours().nodes)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RUMOURS_S):
                await agent.rumoured.wait()
