"""One node's day, put together: assignments in, tasks run, plans applied, statuses out.

The shell around the cores `session`, `tasks` and `compile`. Tasks (asyncio): the connection, the reconciler, the name
server, and one per action of a task under way; all in one TaskGroup that `run` owns. A component that fails takes the
daemon down with its whole exception group; the data plane and the tasks stay as they are, and are adopted at restart.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from control.assignment import AttachmentReport, Endpoint
from control.model import HealthCheck, Network, NodeDescription, Task
from control.server.edge import Edge
from mesh.agent import disk
from mesh.agent.attached import Guest, local_task, with_attached
from mesh.agent.connection import Connection
from mesh.agent.gossip import Gossip, GossipDoor
from mesh.agent.logs import LogSender
from mesh.agent.reconcile import Balancer, MakeWatch, NameServer, Outcome, Overlay, Reconciler, Unwatched
from mesh.agent.session import Session
from mesh.agent.tasks import (
    Action,
    Attached,
    Check,
    Drain,
    Drained,
    Event,
    Exited,
    Failed,
    Healthy,
    Prepare,
    Prepared,
    Remove,
    Removed,
    RetryDue,
    RetryLater,
    Start,
    Started,
    Stop,
    Tasks,
    Unhealthy,
    Wait,
    Watch,
    Withdraw,
    Withdrawn,
)
from mesh.agent.view import Assignments, LocalTask, Rumours, View
from mesh.executor.probe import probe
from mesh.executor.protocol import Executor, ExecutorError, Launch
from mesh.metrics import Metrics

log = logging.getLogger(__name__)

# Between two writes of the copy on disk: soon, so that a crash costs little freshness, and when a large copy on a slow
# disk takes long, no more than a tenth of the time.
SAVE_PAUSE_S = 0.1
SAVE_SHARE = 10
# Until a task is well for the first time it is probed this often: it gets its first connections so much later at most.
START_INTERVAL_S = 0.1
# While it waits for the next probe, it looks this often whether the task is still there.
PROBE_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is in its cluster."""

    node_id: str
    secret: str
    cluster_id: str
    data_address: str
    managers: tuple[str, ...]
    hints: tuple[str, ...] = ()  # where managers may be besides


@dataclass(frozen=True, slots=True)
class Doors:
    """The outside of an agent: everything that touches the machine."""

    executor: Executor
    overlay: Overlay
    balancer: Balancer
    name_server: NameServer
    gossip: GossipDoor | None = None
    watch: MakeWatch = lambda _: Unwatched()
    edge: Edge = Edge()  # noqa: RUF009 - it has no state


class Agent:
    """Runs one node. `run` returns only by cancellation or failure."""

    def __init__(
        self,
        identity: Identity,
        description: NodeDescription,
        doors: Doors,
        state_dir: Path,
        netns_dir: str,
        metrics: Metrics,
        wall_ms: Callable[[], int],
        dns_listen: tuple[str, int] | None = None,
    ) -> None:
        self.identity = identity
        self.gossip: Gossip | None = None
        self._dns_listen = dns_listen
        self._doors, self._netns_dir, self._wall_ms = doors, netns_dir, wall_ms
        self._file = state_dir / "assignments"
        self.session = Session(identity.node_id, identity.secret, identity.data_address, description)
        self.connection = Connection(
            self.session, identity.managers, self._assigned, random.Random(), doors.edge, self.hints
        )
        self.logs = LogSender(state_dir, doors.edge, lambda: self.connection.address)
        self.tasks = Tasks()
        self.reconciler = Reconciler(
            doors.overlay, doors.balancer, doors.name_server, self._planned, self._applied, metrics, doors.watch
        )
        names = doors.name_server
        metrics.table("meshd_dns_total", "What the name server did", lambda: names.status().counters)
        metrics.table("meshd_dns", "What the name server holds", lambda: names.status().levels, kind="gauge")
        self.rumoured = asyncio.Event()  # set whenever gossip says something else
        if doors.gossip is not None:
            heard = self._rumoured
            self.gossip = Gossip(doors.gossip, identity.node_id, identity.data_address, state_dir, wall_ms, heard)
        self._group: asyncio.TaskGroup | None = None
        self._save = asyncio.Event()
        self._leaving = False
        self._empty = asyncio.Event()
        self.outcome: Outcome | None = None
        self._attached: tuple[Guest, ...] = ()
        self.hosts_others = False
        self.followers: list[Callable[[], None]] = []  # hear of each plan in force, and of each message of a manager

    async def run(self) -> None:
        """Adopt what is there, then live."""
        self.session.assignments = disk.load(self._file)
        self.tasks.adopt(await self._doors.executor.adopt(), self._wall_ms())
        self.tasks.assign(self._own_tasks(), self._wall_ms(), complete=False)
        self.session.report(self.tasks.statuses())
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self.connection.run())
                group.create_task(self.logs.run())
                group.create_task(self._doors.name_server.run())
                group.create_task(self.reconciler.run())
                group.create_task(self._save_copies())
                if self.gossip is not None:
                    group.create_task(self.gossip.run())
                    self.gossip.follow(self.session.assignments)
                self._act()
        finally:
            self._group = None
            self.reconciler.close()

    @property
    def name_server(self) -> NameServer:
        """The name server of this node."""
        return self._doors.name_server

    @property
    def executor_name(self) -> str:
        """Which executor runs the tasks of this node."""
        return self._doors.executor.name

    def describe(self, description: NodeDescription) -> None:
        """Tell the managers something else of this node."""
        self.session.description = description
        self.connection.reopen()

    async def leave(self) -> None:
        """Stop and remove every task and everything in the kernel; the caller forgets the identity."""
        self._leaving = True
        self.tasks.assign((), self._wall_ms(), complete=True)
        self._act()
        await self._empty.wait()
        if self.gossip is not None:
            await self.gossip.leave()
        await self.reconciler.apply_once()
        self._file.unlink(missing_ok=True)

    def hints(self) -> tuple[str, ...]:
        """Where managers may be besides where they have said themselves."""
        return (*self.identity.hints, *(self.gossip.managers() if self.gossip is not None else ()))

    def _rumoured(self) -> None:
        self.rumoured.set()
        self.reconciler.kick()

    # --- containers of others ---------------------------------------------------------------------------------------

    def attach(self, attached: Iterable[Guest], report: AttachmentReport) -> None:
        """These are there now: give them their interfaces, and tell the managers."""
        self._attached = tuple(attached)
        self.session.attached(msgspec.msgpack.encode(report))
        self.connection.kick()
        self.reconciler.repair()  # their engine may have done something to their interfaces
        if self.gossip is not None:
            self.gossip.serve(self._serving())

    def _serving(self) -> dict[str, LocalTask]:
        return {**self.tasks.local(), **{a.attachment.id: local_task(a) for a in self._attached}}

    def placed(self) -> frozenset[str]:
        """What has its interfaces, by the plan in force: tasks and attachments."""
        if self.outcome is None:
            return frozenset()
        found = {e.id for net in self.outcome.plan.overlay.networks for e in net.local}
        return frozenset(i for i in found if not any(i in error for error in self.outcome.errors))

    # --- assignments ------------------------------------------------------------------------------------------------

    def _own_tasks(self) -> list[Task]:
        return self.session.assignments.of("task", Task)

    def _assigned(self) -> None:
        """The manager sent something."""
        if self._leaving:
            return
        self.tasks.assign(self._own_tasks(), self._wall_ms(), complete=True)
        demands, self.session.log_demands = self.session.log_demands, ()
        self.logs.send(demands)
        while self.session.withdrawn:
            self.tasks.receive(Withdrawn(self.session.withdrawn.pop()), self._wall_ms())
        self._save.set()
        if self.gossip is not None:
            self.gossip.follow(self.session.assignments)
        self._act()
        self.reconciler.kick()
        for follower in self.followers:
            follower()

    async def _save_copies(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._save.wait()
            self._save.clear()
            began = loop.time()
            try:
                await loop.run_in_executor(None, disk.save, self._file, self.session.assignments)
            except OSError as error:
                log.warning("cannot save the assignments", extra={"path": str(self._file), "error": str(error)})
            await asyncio.sleep(max(SAVE_PAUSE_S, SAVE_SHARE * (loop.time() - began)))

    # --- plans ------------------------------------------------------------------------------------------------------

    def view(self) -> View:
        """All that this node knows, now."""
        view = View(
            node_id=self.identity.node_id,
            data_address=self.identity.data_address,
            netns_dir=self._netns_dir,
            assignments=self.session.assignments,
            tasks=dict(self.tasks.local()),
            dns_listen=self._dns_listen,
            rumours=self.gossip.rumours() if self.gossip is not None else Rumours(),
            hosts_others=self.hosts_others,
        )
        return with_attached(view, self._attached)

    def _planned(self) -> tuple[View, int]:
        """What plans are made of. Whoever leaves knows nothing any more, and so holds nothing."""
        if self._leaving:
            return replace(self.view(), assignments=Assignments()), 0
        return self.view(), self.session.assignments.sequence

    def _applied(self, outcome: Outcome) -> None:
        """A plan is in force: tasks whose interfaces are in it may start."""
        self.outcome = outcome
        placed = {e.id for net in outcome.plan.overlay.networks for e in net.local}
        for task_id in self.tasks.attaching():
            wanted = self._networks_of(task_id)
            if wanted is None or (wanted and task_id not in placed) or any(task_id in e for e in outcome.errors):
                continue
            self.tasks.receive(Attached(task_id), self._wall_ms())
        if not any(self._holds_up(error) for error in outcome.errors):  # what could not be applied is tried again soon
            self.session.applied(outcome.sequence)
        self._act()
        for follower in self.followers:
            follower()

    def _holds_up(self, error: str) -> bool:
        """Whether other nodes may wait for what could not be applied. Nobody waits for a container of others."""
        return not any(guest.attachment.id in error for guest in self._attached)

    def _networks_of(self, task_id: str) -> int | None:
        """How many networks a task is on; None when its record is not here."""
        task = self.session.assignments.task(task_id)
        return len(task.addresses) if task is not None else None

    # --- tasks ------------------------------------------------------------------------------------------------------

    def _act(self) -> None:
        """Perform what the task core wants, and tell what changed."""
        assert self._group is not None
        if self._leaving and not self.tasks.known():
            self._empty.set()
        for action in self.tasks.drain():
            self._group.create_task(self._perform(action))
        if self.gossip is not None:
            self.gossip.serve(self._serving())
        changed = self.tasks.drain_statuses()
        if changed:
            self.session.report(changed)
            self.connection.kick()
            self.reconciler.kick()
        self.connection.kick()

    async def _perform(self, action: Action) -> None:
        """Do one action and feed back how it went."""
        try:
            event = await self._do(action)
        except ExecutorError as error:
            log.warning("a task action failed", extra={"action": type(action).__name__, "error": str(error)})
            event = Failed(_task_id(action), str(error))
        self.tasks.receive(event, self._wall_ms())
        self.reconciler.kick()
        self._act()

    async def _do(self, action: Action) -> Event:
        executor = self._doors.executor
        match action:
            case Prepare(task):
                self._refuse_without_encryption(task)
                return Prepared(task.id, await executor.prepare(self._launch(task)))
            case Start(task):
                return Started(task.id, await executor.start(self._launch(task)))
            case Wait(task_id):
                return Exited(task_id, await executor.wait(task_id))
            case Check(task):
                return await self._until_healthy(task)
            case Watch(task):
                return await self._while_healthy(task)
            case Withdraw(task_id, most_s):
                await asyncio.sleep(most_s)
                return Withdrawn(task_id)
            case Drain(task_id, delay_s):
                await asyncio.sleep(delay_s)
                return Drained(task_id)
            case Stop(task_id, signal, grace_s):
                await executor.stop(task_id, signal, grace_s)
                return Exited(task_id, await executor.wait(task_id))
            case Remove(task_id):
                await executor.remove(task_id)
                return Removed(task_id)
            case RetryLater(task_id, delay_s):
                await asyncio.sleep(delay_s)
                return RetryDue(task_id)

    def _refuse_without_encryption(self, task: Task) -> None:
        """A task whose networks cannot be here is rejected, so that another node gets the next one."""
        wanted = {address.network_id for address in task.addresses}
        for network in self.session.assignments.of("network", Network):
            if network.id in wanted and network.spec.encrypted and not self.session.description.tunnel_keys:
                found = f'network "{network.spec.name}" is encrypted, and this node has no WireGuard'
                raise ExecutorError(f"{found}: mesh doctor says what helps")

    async def _until_healthy(self, task: Task) -> Event:
        check, began = _check_of(task), asyncio.get_running_loop().time()
        while self.tasks.probed(task.id):
            error = await self._probe(task, check)
            if not error:
                return Healthy(task.id)
            if asyncio.get_running_loop().time() - began > check.start_period_s + check.retries * check.interval_s:
                return Unhealthy(task.id, f"unhealthy: {error}")
            await asyncio.sleep(min(START_INTERVAL_S, check.interval_s))
        return Unhealthy(task.id, "")  # it has ended meanwhile, and nobody minds

    async def _while_healthy(self, task: Task) -> Event:
        check, failures, error = _check_of(task), 0, ""
        while failures < check.retries:
            if not await self._pause_probing(task.id, check.interval_s):
                break
            error = await self._probe(task, check)
            failures = failures + 1 if error else 0
        return Unhealthy(task.id, f"unhealthy: {error}")

    async def _pause_probing(self, task_id: str, delay_s: float) -> bool:
        """Whether the task is still to be probed after a while; looked at in between, for pauses may be long."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay_s
        while self.tasks.probed(task_id) and loop.time() < due:  # noqa: ASYNC110 - a slow look is all it needs
            await asyncio.sleep(min(PROBE_LOOK_S, due - loop.time()))
        return self.tasks.probed(task_id)

    async def _probe(self, task: Task, check: HealthCheck) -> str:
        """ "" when it is well, else why not."""
        local, pid = self.tasks.local().get(task.id), self.tasks.pid(task.id)
        if local is None or local.netns is None or pid is None:
            return "it does not run"
        address = task.addresses[0].address if task.addresses else "127.0.0.1"
        return await probe(check, local.netns, address, pid)

    def _launch(self, task: Task) -> Launch:
        networks = {n.id: n for n in self.session.assignments.of("network", Network)}
        mine = [networks[a.network_id] for a in task.addresses if a.network_id in networks]
        return Launch(
            task_id=task.id,
            service_name=task.service_name,
            slot=task.slot,
            hostname=self._hostname(task),
            spec=task.spec,
            nameservers=tuple(IPv4Address(n.gateway) for n in mine),
            search=tuple(f"{n.spec.name}.mesh" for n in mine),
        )

    def _hostname(self, task: Task) -> str:
        for endpoint in self.session.assignments.of("endpoint", Endpoint):
            if endpoint.task_id == task.id:
                return endpoint.hostname
        return f"{task.service_name}.{task.slot}"


def _task_id(action: Action) -> str:
    return action.task.id if isinstance(action, Prepare | Start | Check | Watch) else action.task_id


def _check_of(task: Task) -> HealthCheck:
    assert task.spec.health is not None, "only tasks with a health check are probed"
    return task.spec.health
