"""A whole node without root: a real manager over loopback, a real agent, and the twins of everything it touches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as changed

from control.assignment import AttachmentReport
from control.home import DiskHome
from control.lifecycle import TaskState, Writer
from control.manager import Bootstrapped, Manager
from control.model import (
    Attachment,
    ClusterSpec,
    Network,
    NetworkAttachment,
    NetworkSpec,
    Node,
    NodeDescription,
    ProcessSpec,
    ReplicatedMode,
    RestartPolicy,
    Service,
    ServiceMode,
    ServiceSpec,
    Task,
    TaskSpec,
    TunnelKey,
)
from control.store.txn import Put
from dns.plan import DnsPlan
from mesh.agent.agent import Agent, Doors, Identity
from mesh.agent.attached import Guest
from mesh.executor.fake import FakeExecutor
from mesh.metrics import Metrics
from mesh.vip.fake import FakeKernel as FakeVip
from overlay.fake import FakeKernel as FakeOverlay
from overlay.kernel import Report

TIMEOUT_S = 20.0
KEYS = (TunnelKey(slot=0, key="A" * 43 + "="),)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class FakeNameServer:
    """Remembers the plan."""

    def __init__(self) -> None:
        self.plan = DnsPlan()

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def apply(self, plan: DnsPlan) -> None:
        self.plan = plan

    def answers(self, service: str) -> list[str]:
        return [
            str(a)
            for network in self.plan.networks
            for found in network.services
            if found.name == service
            for task in found.tasks
            if task.ready
            for a in task.addresses
        ]


@dataclass
class Machine:
    """What outlives a daemon: the executor's tasks, the kernel, the disk."""

    directory: Path
    made: Bootstrapped
    executor: FakeExecutor = field(default_factory=FakeExecutor)
    overlay: FakeOverlay = field(default_factory=FakeOverlay)
    vip: FakeVip = field(default_factory=FakeVip)

    @contextlib.asynccontextmanager
    async def manager(self) -> AsyncIterator[Manager]:
        manager = await Manager.open(
            home(self.directory).seat(self.made.cluster_id, self.made.node_id, "127.0.0.1"),
            listen="127.0.0.1:0",
            wall_ms=wall_ms,
        )
        running = asyncio.get_running_loop().create_task(manager.run())
        try:
            yield manager
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await manager.close()

    @contextlib.asynccontextmanager
    async def agent(self, port: int) -> AsyncIterator[tuple[Agent, FakeNameServer]]:
        names = FakeNameServer()
        identity = Identity(
            self.made.node_id, self.made.secret, self.made.cluster_id, "127.0.0.1", (f"127.0.0.1:{port}",)
        )
        doors = Doors(self.executor, self.overlay, self.vip, names)
        described = NodeDescription(hostname="h1", tunnel_keys=KEYS)
        agent = Agent(identity, described, doors, self.directory, "/run/netns", Metrics(), wall_ms)
        running = asyncio.get_running_loop().create_task(agent.run())
        try:
            yield agent, names
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


def home(directory: Path) -> DiskHome:
    return DiskHome(directory / "manager", "127.0.0.1:0")


@pytest.fixture
async def machine(tmp_path: Path) -> Machine:
    made = await Manager.bootstrap(
        home(tmp_path),
        spec=ClusterSpec(heartbeat_period_s=0.2, address_rest_s=0.5),
        description=NodeDescription(hostname="h1"),
        availability="active",
        data_address="127.0.0.1",
        address="127.0.0.1:7377",
        wall_ms=wall_ms,
    )
    return Machine(tmp_path, made)


async def create(manager: Manager, replicas: int, *, encrypted: bool = False) -> None:
    spec = ServiceSpec(
        name="api",
        mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas)),
        task=TaskSpec(
            process=ProcessSpec(command=("serve",)),
            networks=(NetworkAttachment(network_id="web"),),
            restart=RestartPolicy(delay_s=0.1),
        ),
    )
    objects = [Network(id="web", spec=NetworkSpec(name="web", encrypted=encrypted)), Service(id="s1", spec=spec)]
    await manager.store.commit([Put(o) for o in objects], Writer.ORCHESTRATOR)


async def until(what: str, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.02)
    assert holds(), what


def running(manager: Manager) -> list[Task]:
    return [t for t in manager.store.view().all(Task) if t.status.state is TaskState.RUNNING]


async def test_tasks_are_attached_before_they_start_and_answered_when_they_run(machine: Machine) -> None:
    async with machine.manager() as manager, machine.agent(manager.port) as (_, names):
        await create(manager, 3)
        await until("all run", lambda: len(running(manager)) == 3)
        await until("all are answered", lambda: len(names.answers("api")) == 3)
        assert {t.id for t in running(manager)} == machine.executor.running()
        (network,) = machine.overlay.networks.values()
        assert len(network.local) == 3
        (router,) = machine.vip.observe().services.values()
        assert sum(router[0].slots.values()) == 3


async def test_a_task_that_cannot_be_attached_is_not_started(machine: Machine) -> None:
    machine.overlay.broken = True
    async with machine.manager() as manager, machine.agent(manager.port) as (agent, _):
        await create(manager, 1)
        await until("it waits for its interface", lambda: bool(agent.tasks.attaching()))
        await asyncio.sleep(0.5)
        assert machine.executor.running() == set()
        machine.overlay.broken = False
        await until("it runs", lambda: len(running(manager)) == 1)


async def test_a_container_of_others_that_cannot_be_attached_holds_nobody_up(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died while its engine is away, perhaps: other nodes wait for what the managers said, and that is in force."""
    async with machine.manager() as manager, machine.agent(manager.port) as (agent, _):
        await create(manager, 1)
        await until("it runs", lambda: len(running(manager)) == 1)
        network = agent.session.assignments.of("network", Network)[0]
        attachment = Attachment(
            id="x1", node_id=agent.identity.node_id, network_id=network.id, address="10.9.9.9", name="x", service="x"
        )
        agent.attach([Guest(attachment, "/run/netns/gone", "eth9")], AttachmentReport())
        refused = "attach task x1 to network"
        monkeypatch.setattr(machine.overlay, "apply", _failing(machine.overlay.apply, refused))
        agent.reconciler.kick()
        await until("it is seen", lambda: agent.outcome is not None and refused in agent.outcome.errors)
        (service,) = manager.store.view().all(Service)
        grown = changed(service, spec=changed(service.spec, mode=ServiceMode(replicated=ReplicatedMode(replicas=2))))
        version = await manager.store.commit([Put(grown)], Writer.ORCHESTRATOR)
        await until("it is in force", lambda: manager.dispatcher.caught_up(agent.identity.node_id, version))
        agent.attach([], AttachmentReport())
        assert agent._holds_up(refused), "what else cannot be applied does hold up"


def _failing(apply: Callable[..., Report], sentence: str) -> Callable[..., Report]:
    def failing(*plan: Any, **rest: Any) -> Report:
        report = apply(*plan, **rest)
        report.errors.append(sentence)
        return report

    return failing


async def test_a_task_whose_network_cannot_be_encrypted_here_is_rejected_and_says_why(machine: Machine) -> None:
    async with machine.manager() as manager, machine.agent(manager.port) as (agent, _):
        await until(
            "it has told its key", lambda: [n.description.tunnel_keys for n in manager.store.view().all(Node)] == [KEYS]
        )
        # It has none any more, and the managers do not know yet.
        agent.session.description = changed(agent.session.description, tunnel_keys=())
        await create(manager, 1, encrypted=True)

        def errors() -> set[str]:
            tasks = [t for t in manager.store.view().all(Task) if t.status.state is TaskState.REJECTED]
            return {t.status.error for t in tasks}

        found = 'network "web" is encrypted, and this node has no WireGuard: mesh doctor says what helps'
        await until("it says why", lambda: errors() == {found})
        assert machine.executor.running() == set()
        agent.session.description = changed(agent.session.description, tunnel_keys=KEYS)
        await until("it runs", lambda: len(running(manager)) == 1)
        assert [network.encrypted for network in machine.overlay.networks.values()] == [True]


async def test_a_new_daemon_takes_over_running_tasks_and_starts_none_again(machine: Machine) -> None:
    async with machine.manager() as manager:
        async with machine.agent(manager.port):
            await create(manager, 3)
            await until("all run", lambda: len(running(manager)) == 3)
            before = machine.executor.running()
            await asyncio.sleep(0.3)
        calls = len(machine.executor.calls)
        async with machine.agent(manager.port) as (agent, names):
            await until("it is connected", lambda: agent.session.connected)
            await until("all are answered", lambda: len(names.answers("api")) == 3)
            await asyncio.sleep(0.3)
            assert machine.executor.running() == before
            assert [str(c) for c in machine.executor.calls[calls:] if "start" in str(c)] == []


async def test_a_node_serves_from_its_copy_while_there_is_no_manager(machine: Machine) -> None:
    async with machine.manager() as manager:
        port = manager.port
        async with machine.agent(port) as (_, names):
            await create(manager, 2)
            await until("all are answered", lambda: len(names.answers("api")) == 2)
            await asyncio.sleep(0.3)
    async with machine.agent(port) as (agent, names):
        await until("all are answered", lambda: len(names.answers("api")) == 2)
        assert not agent.session.connected
        await until("it says so", lambda: bool(agent.connection.error))
        assert len(machine.executor.running()) == 2


async def test_a_task_that_dies_leaves_names_at_once_and_is_replaced(machine: Machine) -> None:
    async with machine.manager() as manager, machine.agent(manager.port) as (_, names):
        await create(manager, 2)
        await until("all are answered", lambda: len(names.answers("api")) == 2)
        victim = running(manager)[0]
        machine.executor.end(victim.id, 3)
        await until("it is replaced", lambda: victim.id not in {t.id for t in running(manager)}
                    and len(running(manager)) == 2)  # fmt: skip
        await until("names follow", lambda: set(names.answers("api")) == {
            a.address for t in running(manager) for a in t.addresses})  # fmt: skip
        ended = manager.store.view().get(Task, victim.id)
        assert ended is not None
        assert (ended.status.state, ended.status.exit_code) == (TaskState.FAILED, 3)


async def test_leaving_stops_and_removes_everything(machine: Machine) -> None:
    async with machine.manager() as manager, machine.agent(manager.port) as (agent, _):
        await create(manager, 2)
        await until("all run", lambda: len(running(manager)) == 2)
        async with asyncio.timeout(TIMEOUT_S):
            await agent.leave()
        assert machine.executor.running() == set()
        assert machine.overlay.networks == {}
        assert not (machine.directory / "assignments").exists()


async def test_a_node_with_a_wrong_secret_is_told_and_keeps_trying(machine: Machine) -> None:
    machine.made = replace(machine.made, secret="wrong")
    async with machine.manager() as manager, machine.agent(manager.port) as (agent, _):
        await until("it is refused", lambda: bool(agent.connection.error))
        assert not agent.session.connected
