"""Sessions over real gRPC: the shell around the core, and what misbehaving peers come to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec
import pytest

from control.dispatcher import sessions
from control.lifecycle import TaskState, Writer
from control.model import (
    Network,
    NetworkSpec,
    Node,
    NodeDescription,
    ProcessSpec,
    Task,
    TaskAddress,
    TaskSpec,
    TaskStatus,
)
from control.rpc import control_pb2 as pb
from control.server import transact
from control.store.txn import Put

S = TaskState


class Session:
    """A node's end of a stream."""

    def __init__(self, manager: Any) -> None:
        self.call = manager.sessions.Session()

    async def say(self, **message: Any) -> None:
        await self.call.write(pb.NodeMessage(**message))

    async def hear(self, kind: str) -> Any:
        """The next message of a kind, others skipped."""
        async with asyncio.timeout(5):
            while True:
                message = await self.call.read()
                if message is grpc.aio.EOF:
                    raise EOFError(f"{await self.call.code()}: {await self.call.details()}")
                if message.WhichOneof("message") == kind:
                    return getattr(message, kind)

    async def hello(self, number: int, **fields: Any) -> Any:
        description = msgspec.msgpack.encode(NodeDescription(hostname=f"h{number}"))
        defaults = {"node_id": f"node{number}", "secret": f"secret{number}", "description": description}
        await self.say(hello=pb.Hello(**(defaults | fields)))
        return await self.hear("welcome")

    async def end(self) -> tuple[str, str]:
        """How the manager ended it."""
        async with asyncio.timeout(5):
            try:
                while await self.call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                return error.code().name, error.details() or ""
            return (await self.call.code()).name, await self.call.details()


def task(number: int, node: int, **fields: Any) -> Task:
    defaults: dict[str, Any] = {
        "status": TaskStatus(state=S.ASSIGNED),
        "addresses": (TaskAddress(network_id="web", address=f"10.128.0.{number + 9}"),),
    }
    return Task(
        id=f"task{number}",
        service_id="api",
        service_name="api",
        slot=number,
        node_id=f"node{node}",
        spec=TaskSpec(process=ProcessSpec(command=("true",))),
        **(defaults | fields),
    )


WEB = Network(id="web", spec=NetworkSpec(name="web"), vni=4096, subnet="10.128.0.0/20", gateway="10.128.0.1")


@pytest.fixture
async def cluster(kit: Any) -> AsyncIterator[Any]:
    objects = [kit.cluster(heartbeat_period_s=0.2), kit.node(1), kit.node(2), WEB, task(1, 1), task(2, 2)]
    async with kit.serving(objects) as manager:
        yield manager


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_session_from_hello_to_acknowledgement(cluster: Any) -> None:
    session = Session(cluster)
    welcome = await session.hello(2, data_address="192.0.2.22")
    assert list(welcome.managers) == ["192.0.2.1:7377"]
    complete = await session.hear("assignments")
    assert (complete.applies_to, {r.kind for r in complete.records}) == (
        0,
        {"settings", "peer", "catalog", "node", "network", "endpoint", "task"},
    )
    await until(lambda: cluster.get(Node, "node2").status.state == "ready")
    assert cluster.get(Node, "node2").status.data_address == "192.0.2.22"
    assert cluster.get(Node, "node2").status.address == "127.0.0.1"

    running = msgspec.msgpack.encode(TaskStatus(state=S.RUNNING, pid=5))
    await session.say(statuses=pb.StatusReport(number=1, statuses={"task2": running, "task1": running}))
    assert (await session.hear("status_ack")).number == 1
    assert cluster.get(Task, "task2").status.state == S.RUNNING, "durable when it is acknowledged"
    assert cluster.get(Task, "task1").status.state == S.ASSIGNED, "not its task"

    difference = await session.hear("assignments")
    assert difference.applies_to >= complete.results_in
    await session.say(applied=pb.Applied(sequence=difference.results_in))
    await session.say(heartbeat=pb.Heartbeat())
    assert 0.18 <= (await session.hear("heartbeat")).period_s <= 0.22
    assert cluster.dispatcher.status().sessions == 1
    session.call.cancel()
    await until(lambda: cluster.dispatcher.status().streams == 0)


async def test_a_node_that_falls_silent_goes_down_and_is_cut_off(cluster: Any) -> None:
    session = Session(cluster)
    await session.hello(1)
    await until(lambda: cluster.get(Node, "node1").status.state == "ready")
    code, sentence = await session.end()
    assert code == "UNAVAILABLE"
    assert "nothing heard of it for 0.6 s" in sentence
    await until(lambda: cluster.get(Node, "node1").status.state == "down")


async def test_changes_reach_a_node(cluster: Any) -> None:
    session = Session(cluster)
    await session.hello(1)
    await session.hear("assignments")
    db = msgspec.structs.replace(WEB, id="db", spec=NetworkSpec(name="db"), vni=4097)
    await cluster.store.commit([Put(db)], Writer.ALLOCATOR)
    await cluster.remove("node", "node2", force=True)
    seen: list[tuple[str, str]] = []
    while ("peer", "node2") not in seen:
        message = await session.hear("assignments")
        seen += [(key.kind, key.key) for key in message.removed]
    await until(lambda: cluster.get(Task, "task2").status.state == S.ORPHANED)
    session.call.cancel()


async def test_wrong_secret(cluster: Any) -> None:
    session = Session(cluster)
    await session.say(hello=pb.Hello(node_id="node1", secret="guess"))
    code, sentence = await session.end()
    assert code == "UNAUTHENTICATED"
    assert "mesh join" in sentence
    assert cluster.get(Node, "node1").status.state != "ready"


async def test_a_removed_node_is_sent_away(cluster: Any) -> None:
    session = Session(cluster)
    await session.hello(2)
    await cluster.remove("node", "node2", force=True)
    assert await session.end() == ("UNAUTHENTICATED", "this node was removed from the cluster")


async def test_the_old_stream_of_a_node_is_closed_for_the_new(cluster: Any) -> None:
    old, new = Session(cluster), Session(cluster)
    await old.hello(1)
    await new.hello(1)
    assert await old.end() == ("UNAVAILABLE", "another session of this node has begun")
    await new.say(heartbeat=pb.Heartbeat())
    assert (await new.hear("heartbeat")).period_s > 0
    new.call.cancel()


async def test_a_node_that_just_joined_may_come_at_once(cluster: Any) -> None:
    for i in range(5):
        description = msgspec.msgpack.encode(NodeDescription(hostname=f"n{i}"))
        reply = await cluster.join(description=description, data_address=f"192.0.2.{100 + i}")
        session = Session(cluster)
        await session.hello(0, node_id=reply.node_id, secret=reply.secret)
        session.call.cancel()


async def test_hanging_up_halfway(cluster: Any) -> None:
    session = Session(cluster)
    await session.call.done_writing()
    assert (await session.end())[0] == "OK"
    session = Session(cluster)
    await session.hello(1)
    await session.call.done_writing()
    assert (await session.end())[0] == "OK"
    await until(lambda: cluster.dispatcher.status().streams == 0)


@pytest.mark.parametrize("junk", [b"\xff\xff\xff\xff", b"\x0a\xff", b"junk" * 1000])
async def test_junk_bytes_end_their_stream_only(cluster: Any, junk: bytes) -> None:
    good = Session(cluster)
    await good.hello(1)
    call = cluster.channel.stream_stream("/mesh.control.v1.Dispatcher/Session")()
    await call.write(junk)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    await good.say(heartbeat=pb.Heartbeat())
    await good.hear("heartbeat")
    good.call.cancel()
    await until(lambda: cluster.dispatcher.status().streams == 0)


async def test_an_oversized_message_ends_its_stream_only(cluster: Any) -> None:
    good, bad = Session(cluster), Session(cluster)
    await good.hello(1)
    await bad.hello(2)
    await bad.say(description=b"x" * (5 << 20))
    assert (await bad.end())[0] == "RESOURCE_EXHAUSTED"
    await good.say(heartbeat=pb.Heartbeat())
    await good.hear("heartbeat")
    good.call.cancel()


async def test_junk_to_the_other_services(cluster: Any) -> None:
    for method in ("Control/List", "Control/CreateService", "Membership/Join"):
        call = cluster.channel.unary_unary(f"/mesh.control.v1.{method}")
        for junk in (b"\xff\xff\xff", b"x" * (5 << 20)):
            with pytest.raises(grpc.aio.AioRpcError):
                await call(junk, timeout=5)
    assert (await cluster.control.Get(pb.GetRequest(kind="node", reference="h1"))).kind == "node"


async def test_sessions_end_with_the_leadership(cluster: Any, kit: Any) -> None:
    async with kit.serving([kit.cluster(), kit.node(1)], dispatch=False) as follower:
        assert await Session(follower).end() == ("UNAVAILABLE", "this manager does not lead the cluster")
        term = await follower.store.leading()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(follower.dispatcher.run(term))
            session = Session(follower)
            await asyncio.sleep(0)
            await session.hello(1)
            running.cancel()
        assert await session.end() == ("UNAVAILABLE", "this manager does not lead the cluster any more")


async def test_a_full_disk_is_waited_for(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transact, "REFUSED_PAUSE_S", 0.01)
    session = Session(cluster)
    await session.hello(1)
    await until(lambda: cluster.get(Node, "node1").status.state == "ready")
    cluster.backend.next_outcomes("refused", "unknown, not done", "unknown, done")
    running = msgspec.msgpack.encode(TaskStatus(state=S.RUNNING))
    await session.say(statuses=pb.StatusReport(number=1, statuses={"task1": running}))
    assert (await session.hear("status_ack")).number == 1
    assert cluster.get(Task, "task1").status.state == S.RUNNING
    session.call.cancel()


async def test_a_node_that_does_not_read_is_cut_off(kit: Any) -> None:
    """Its stream is full, so nothing more can be written to it, not even how it ended."""
    long = Network(id="long", spec=NetworkSpec(name="long", labels={"x": "y" * 16_000_000}), vni=4097)
    addresses = (TaskAddress(network_id="long", address="10.0.0.9"),)
    objects = [kit.cluster(), kit.node(1), long, task(1, 1, addresses=addresses)]
    async with kit.serving(objects) as manager:
        session = Session(manager)
        description = msgspec.msgpack.encode(NodeDescription(hostname="h1"))
        hello = pb.Hello(node_id="node1", secret="secret1", description=description)
        await session.say(hello=hello)
        await until(lambda: manager.dispatcher.status().sessions == 1)
        with contextlib.suppress(grpc.aio.AioRpcError):
            for _ in range(sessions.UNREAD_MAX + 10):
                await session.say(heartbeat=pb.Heartbeat())
        await until(lambda: manager.dispatcher.status().counters.get("slow") == 1)
        await until(lambda: manager.dispatcher.open_streams == 0)
        session.call.cancel()
