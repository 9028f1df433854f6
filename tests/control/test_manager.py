"""A whole manager on disk and on loopback, with nodes that only pretend to run tasks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from control.assignment import Endpoint, Key, Network, Record, decode, key_of
from control.home import DiskHome
from control.lifecycle import TaskState, is_terminal
from control.manager import Bootstrapped, Manager, ManagerError
from control.model import (
    KINDS,
    Cluster,
    ClusterSpec,
    GlobalMode,
    NetworkAttachment,
    NetworkSpec,
    Node,
    NodeDescription,
    NodeSpec,
    PortSpec,
    ProcessSpec,
    ReplicatedMode,
    Resources,
    RestartPolicy,
    Service,
    ServiceMode,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskStatus,
)
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import ControlStub, DispatcherStub, MembershipStub
from control.store.disk import RealDisk
from control.store.segments import recorded_cluster

S = TaskState
# Short, so that tests are; long enough for a loaded machine.
SPEC = ClusterSpec(heartbeat_period_s=0.5, address_rest_s=1.0)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def description(name: str) -> NodeDescription:
    return NodeDescription(
        hostname=name, os="linux", architecture="x86_64", cpus=4, memory_bytes=1 << 30, executors=("process",)
    )


def home(directory: Path) -> DiskHome:
    return DiskHome(directory, "127.0.0.1:0")


async def open_manager(directory: Path, cluster_id: str, node_id: str, listen: str = "127.0.0.1:0") -> Manager:
    seat = home(directory).seat(cluster_id, node_id, "127.0.0.1")
    return await Manager.open(seat, listen=listen, wall_ms=wall_ms)


async def bootstrap(directory: Path, **fields: Any) -> Bootstrapped:
    defaults: dict[str, Any] = {
        "spec": SPEC,
        "description": description("h1"),
        "availability": "active",
        "data_address": "192.0.2.1",
        "address": "192.0.2.1:7377",
        "wall_ms": wall_ms,
    }
    return await Manager.bootstrap(home(directory), **(defaults | fields))


async def until(condition: Callable[[], bool], why: str = "", timeout_s: float = 20) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise AssertionError(f"never came about: {why}") from error


class Pretender:
    """A node that says of each task what a good node would, at once."""

    def __init__(self, port: int, node_id: str, secret: str, name: str) -> None:
        self.port, self.node_id, self.secret, self.name = port, node_id, secret, name
        self.records: dict[Key, Record] = {}
        self.states: dict[str, TaskState] = {}
        self._reports = 0
        self._voice = asyncio.Lock()

    async def run(self) -> None:
        """One session, until it is cancelled or cut."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub: Any = DispatcherStub(channel)
            call = stub.Session()
            said = msgspec.msgpack.encode(description(self.name))
            await call.write(pb.NodeMessage(hello=pb.Hello(node_id=self.node_id, secret=self.secret, description=said)))
            async with asyncio.TaskGroup() as group:
                beats = group.create_task(self._beat(call))
                while (message := await call.read()) is not grpc.aio.EOF:
                    if message.WhichOneof("message") == "assignments":
                        self._take(message.assignments)
                        await self._work(call)
                        await self._say(call, applied=pb.Applied(sequence=message.assignments.results_in))
                beats.cancel()

    async def _beat(self, call: Any) -> None:
        while True:
            await asyncio.sleep(0.2)
            await self._say(call, heartbeat=pb.Heartbeat())

    async def _say(self, call: Any, **message: Any) -> None:
        async with self._voice:  # gRPC takes one message at a time
            await call.write(pb.NodeMessage(**message))

    def _take(self, message: pb.Assignments) -> None:
        if message.applies_to == 0:
            self.records = {}
        for key in message.removed:
            self.records.pop((key.kind, key.key), None)  # type: ignore[arg-type]
        for wire in message.records:
            record = decode(wire.kind, wire.value)  # type: ignore[arg-type]
            self.records[key_of(record)] = record

    async def _work(self, call: Any) -> None:
        changed: dict[str, bytes] = {}
        for task in [r for r in self.records.values() if isinstance(r, Task)]:
            wanted = S.SHUTDOWN if task.desired_state >= S.SHUTDOWN else min(task.desired_state, S.RUNNING)
            now = self.states.get(task.id, task.status.state)
            if now < wanted and not is_terminal(now):
                self.states[task.id] = wanted
                changed[task.id] = msgspec.msgpack.encode(TaskStatus(state=wanted))
        if changed:
            self._reports += 1
            await self._say(call, statuses=pb.StatusReport(number=self._reports, statuses=changed))


class Lab:
    """A manager that runs, its API, and pretended nodes."""

    def __init__(
        self, manager: Manager, made: Bootstrapped, group: asyncio.TaskGroup, channel: grpc.aio.Channel
    ) -> None:
        self.manager, self.made, self._group = manager, made, group
        self.control: Any = ControlStub(channel)
        self.membership: Any = MembershipStub(channel)
        self.nodes: dict[str, Pretender] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def start_node(self, node: Pretender) -> None:
        self.nodes[node.name] = node
        self._running[node.name] = self._group.create_task(node.run())

    async def stop_node(self, name: str) -> None:
        """It dies without a word."""
        task = self._running.pop(name)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def stop_nodes(self) -> None:
        for name in list(self._running):
            await self.stop_node(name)

    async def join(self, name: str, address: str) -> None:
        request = pb.JoinRequest(
            token=self.made.worker_token,
            description=msgspec.msgpack.encode(description(name)),
            data_address=address,
        )
        reply = await self.membership.Join(request)
        self.start_node(Pretender(self.manager.port, reply.node_id, reply.secret, name))

    async def create_network(self, spec: NetworkSpec) -> str:
        reply = await self.control.CreateNetwork(pb.CreateRequest(spec=msgspec.msgpack.encode(spec)))
        return str(reply.id)

    async def create_service(self, spec: ServiceSpec) -> str:
        reply = await self.control.CreateService(pb.CreateRequest(spec=msgspec.msgpack.encode(spec)))
        return str(reply.id)

    def all(self, cls: type[Any]) -> list[Any]:
        return list(self.manager.store.view().all(cls))

    def running(self, service_id: str) -> list[Task]:
        tasks = self.manager.store.view().tasks_of_service(service_id)
        return [t for t in tasks if t.status.state == S.RUNNING and t.desired_state == S.RUNNING]

    def node_id(self, name: str) -> str:
        return self.nodes[name].node_id


@contextlib.asynccontextmanager
async def running(directory: Path, made: Bootstrapped) -> AsyncIterator[Lab]:
    """The manager of `directory`, running, and its own machine as a node."""
    manager = await open_manager(directory, made.cluster_id, made.node_id)
    try:
        async with asyncio.TaskGroup() as group, grpc.aio.insecure_channel(f"127.0.0.1:{manager.port}") as channel:
            task = group.create_task(manager.run())
            cluster = Lab(manager, made, group, channel)
            cluster.start_node(Pretender(manager.port, made.node_id, made.secret, "h1"))
            try:
                yield cluster
            finally:
                await cluster.stop_nodes()
                task.cancel()
    finally:
        await manager.close()


def service(name: str, network: str, replicas: int = 4, **fields: Any) -> ServiceSpec:
    task = TaskSpec(
        process=ProcessSpec(command=("/bin/server",)),
        networks=(NetworkAttachment(network_id=network),),
        restart=RestartPolicy(delay_s=0),
    )
    mode = ServiceMode(replicated=ReplicatedMode(replicas=replicas))
    return ServiceSpec(name=name, **({"task": task, "mode": mode} | fields))


# --- bootstrap and open -------------------------------------------------------------------------------------------


async def test_bootstrap_makes_a_cluster_with_one_manager(tmp_path: Path) -> None:
    directory = tmp_path / "manager"
    made = await bootstrap(directory)
    assert recorded_cluster(RealDisk(directory)) == made.cluster_id
    assert [p.name for p in tmp_path.iterdir()] == ["manager"]
    async with running(directory, made) as cluster:
        (found,) = cluster.all(Cluster)
        assert (found.id, found.worker_token, found.manager_token, found.next_node_number) == (
            made.cluster_id,
            made.worker_token,
            made.manager_token,
            2,
        )
        (node,) = cluster.all(Node)
        assert (node.id, node.number, node.spec.role, node.control_address) == (
            made.node_id,
            made.node_number,
            "manager",
            "192.0.2.1:7377",
        )
        await until(lambda: cluster.all(Node)[0].status.state == "ready", "the node is ready")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"spec": ClusterSpec(heartbeat_period_s=-1)}, "heartbeat period must be"),
        ({"availability": "lazy"}, "availability must be active, pause or drain"),
        ({"description": NodeDescription(hostname="a b")}, "must be a host name"),
    ],
)
async def test_a_cluster_that_cannot_be_made_leaves_nothing_behind(
    tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ManagerError, match=sentence):
        await bootstrap(tmp_path / "manager", **fields)
    assert list(tmp_path.iterdir()) == []


async def test_an_existing_state_is_not_overwritten(tmp_path: Path) -> None:
    made = await bootstrap(tmp_path / "manager")
    with pytest.raises(ManagerError, match="holds the state of a cluster already"):
        await bootstrap(tmp_path / "manager")
    assert recorded_cluster(RealDisk(tmp_path / "manager")) == made.cluster_id


async def test_what_an_interrupted_bootstrap_left_is_replaced(tmp_path: Path) -> None:
    await bootstrap(tmp_path / "manager")
    (tmp_path / "manager").rename(tmp_path / "manager.new")
    made = await bootstrap(tmp_path / "manager")
    assert recorded_cluster(RealDisk(tmp_path / "manager")) == made.cluster_id
    assert [p.name for p in tmp_path.iterdir()] == ["manager"]


async def test_a_state_directory_of_another_cluster(tmp_path: Path) -> None:
    made = await bootstrap(tmp_path / "manager")
    with pytest.raises(ManagerError, match="belongs to cluster"):
        await open_manager(tmp_path / "manager", "another", made.node_id)


async def test_a_state_directory_without_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(ManagerError, match="holds no manager"):
        await open_manager(tmp_path / "manager", "c", "n")


async def test_a_port_in_use_and_an_address_of_nobody(tmp_path: Path) -> None:
    made = await bootstrap(tmp_path / "manager")
    other = await bootstrap(tmp_path / "other")
    async with running(tmp_path / "manager", made) as cluster:
        for listen in (f"127.0.0.1:{cluster.manager.port}", "192.0.2.77:1"):
            with pytest.raises(ManagerError, match="cannot listen on"):
                await Manager.open(
                    home(tmp_path / "other").seat(other.cluster_id, other.node_id, "127.0.0.1"),
                    listen=listen,
                    wall_ms=wall_ms,
                )
    manager = await Manager.open(  # its files were let go
        home(tmp_path / "other").seat(other.cluster_id, other.node_id, "127.0.0.1"),
        listen="127.0.0.1:0",
        wall_ms=wall_ms,
    )
    await manager.close()
    await manager.close()


async def test_the_api_on_a_second_server(tmp_path: Path) -> None:
    """As the daemon does with its local socket."""
    made = await bootstrap(tmp_path / "manager")
    async with running(tmp_path / "manager", made) as cluster:
        server = grpc.aio.server()
        cluster.manager.add_services(server)
        server.add_insecure_port(f"unix:{tmp_path}/api.sock")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/api.sock") as channel:
            stub: Any = ControlStub(channel)
            reply = await stub.List(pb.ListRequest(kind="node"))
        await server.stop(0)
        assert [msgspec.msgpack.decode(o.value, type=KINDS["node"]).id for o in reply.objects] == [made.node_id]


# --- the main job -------------------------------------------------------------------------------------------------


async def test_a_service_over_three_nodes_and_the_loss_of_one(tmp_path: Path) -> None:
    made = await bootstrap(tmp_path / "manager")
    async with running(tmp_path / "manager", made) as cluster:
        await cluster.join("h2", "192.0.2.2")
        await cluster.join("h3", "192.0.2.3")
        await until(lambda: [n.status.state for n in cluster.all(Node)] == ["ready"] * 3, "three ready nodes")
        web = await cluster.create_network(NetworkSpec(name="web"))
        api = await cluster.create_service(service("api", "web", ports=(PortSpec(target=80, published=8080),)))
        await until(lambda: len(cluster.running(api)) == 4, "four tasks run")
        assert {t.node_id for t in cluster.running(api)} == {n.node_id for n in cluster.nodes.values()}

        # Every node knows every endpoint: the port is published on all of them.
        def ready(name: str) -> set[str]:
            records = cluster.nodes[name].records.values()
            return {r.task_id for r in records if isinstance(r, Endpoint) and r.state == "ready"}

        tasks = {t.id for t in cluster.running(api)}
        await until(lambda: all(ready(n) == tasks for n in ("h1", "h2", "h3")), "all know all")
        (net,) = [r for r in cluster.nodes["h1"].records.values() if isinstance(r, Network)]
        assert (net.id, bool(net.vni), bool(net.gateway)) == (web, True, True)
        version = cluster.manager.store.view().version
        await until(
            lambda: all(cluster.manager.dispatcher.caught_up(n.node_id, version) for n in cluster.nodes.values()),
            "every kernel holds it",
        )

        # One node dies: its tasks are hidden, and run elsewhere.
        lost = {t.id for t in cluster.running(api) if t.node_id == cluster.node_id("h3")}
        await cluster.stop_node("h3")
        await until(lambda: not lost & ready("h1"), "lost tasks are taken out")
        await until(
            lambda: (
                {t.node_id for t in cluster.running(api)} == {cluster.node_id("h1"), cluster.node_id("h2")}
                and len(cluster.running(api)) == 4
            ),
            "replacements run",
        )
        await until(lambda: ready("h1") == {t.id for t in cluster.running(api)}, "and are known")

        # Removed: nothing is left, and the network can go.
        await cluster.control.Remove(pb.RemoveRequest(kind="node", reference="h3"))
        await cluster.control.Remove(pb.RemoveRequest(kind="service", reference="api"))
        await until(lambda: not cluster.all(Task), "all tasks are gone")
        await cluster.control.Remove(pb.RemoveRequest(kind="network", reference="web"))
        await until(
            lambda: {kind for kind, _ in cluster.nodes["h1"].records} == {"settings", "peer", "node"},
            "nodes hold nothing of it",
        )


async def test_a_manager_that_starts_again_goes_on_where_it_was(tmp_path: Path) -> None:
    directory = tmp_path / "manager"
    made = await bootstrap(directory)
    async with running(directory, made) as cluster:
        await cluster.join("h2", "192.0.2.2")
        await cluster.create_network(NetworkSpec(name="web"))
        api = await cluster.create_service(service("api", "web"))
        await until(lambda: len(cluster.running(api)) == 4, "four tasks run")
        before = {t.id: (t.node_id, t.addresses) for t in cluster.running(api)}
        h2 = cluster.nodes["h2"]
    async with running(directory, made) as cluster:
        again = Pretender(cluster.manager.port, h2.node_id, h2.secret, "h2")
        again.states = dict(h2.states)
        cluster.start_node(again)
        await until(lambda: [n.status.state for n in cluster.all(Node)] == ["ready"] * 2, "both are back")
        await asyncio.sleep(0.3)
        assert {t.id: (t.node_id, t.addresses) for t in cluster.running(api)} == before
        assert len(cluster.all(Task)) == 4, "no task was started twice, none again"


async def test_drain_scale_and_update(tmp_path: Path) -> None:
    made = await bootstrap(tmp_path / "manager")
    async with running(tmp_path / "manager", made) as cluster:
        await cluster.join("h2", "192.0.2.2")
        await cluster.create_network(NetworkSpec(name="web"))
        spec = service("api", "web", replicas=2)
        api = await cluster.create_service(spec)
        agent = await cluster.create_service(service("agent", "web", mode=ServiceMode(global_=GlobalMode())))
        await until(lambda: len(cluster.running(api)) == 2 and len(cluster.running(agent)) == 2, "all run")

        drained = msgspec.msgpack.encode(NodeSpec(availability="drain"))
        await cluster.control.UpdateNode(pb.UpdateRequest(reference="h2", spec=drained))
        h1 = cluster.node_id("h1")
        await until(
            lambda: (
                [t.node_id for t in cluster.running(api)] == [h1] * 2
                and [t.node_id for t in cluster.running(agent)] == [h1]
            ),
            "all run on the other node",
        )

        more = msgspec.structs.replace(spec, mode=ServiceMode(replicated=ReplicatedMode(replicas=5)))
        await cluster.control.UpdateService(pb.UpdateRequest(reference="api", spec=msgspec.msgpack.encode(more)))
        await until(lambda: len(cluster.running(api)) == 5, "scaled")

        limits = msgspec.structs.replace(more.task.resources, limits=Resources(pids=50))
        policy = msgspec.structs.replace(more.update, parallelism=0, monitor_s=0)
        newer = msgspec.structs.replace(more, task=msgspec.structs.replace(more.task, resources=limits), update=policy)
        await cluster.control.UpdateService(pb.UpdateRequest(reference="api", spec=msgspec.msgpack.encode(newer)))
        await until(
            lambda: len(cluster.running(api)) == 5 and all(t.spec_version == 2 for t in cluster.running(api)), "updated"
        )
        await until(
            lambda: cluster.manager.store.view().get(Service, api).update_status.state == "completed",  # type: ignore[union-attr]
            "the update is complete",
        )


async def test_a_manager_that_is_closed_ends_quietly(tmp_path: Path) -> None:
    made = await bootstrap(tmp_path / "manager")
    manager = await Manager.open(
        home(tmp_path / "manager").seat(made.cluster_id, made.node_id, "127.0.0.1"),
        listen="127.0.0.1:0",
        wall_ms=wall_ms,
    )
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        task = group.create_task(manager.run())
        await asyncio.sleep(0.1)
        await manager.close()
        await task
