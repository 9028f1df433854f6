"""Logs on their way from a node to a reader: both ends, over real gRPC, with real processes that read the files."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from control.lifecycle import TaskState, Writer
from control.model import Cluster, Meta, Node, NodeDescription, Service, ServiceSpec, Task, TaskSpec, TaskStatus
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import LogsStub, add_LogsServicer_to_server
from control.server import logs
from control.server.edge import Edge
from control.server.logs import LogsService
from control.store.fake import FakeBackend
from control.store.store import Store
from control.store.txn import Delete, Put
from mesh.agent import logs as sender
from mesh.agent.logs import LogSender


def task(slot: int, state: TaskState = TaskState.RUNNING, node: str = "node1") -> Task:
    return Task(
        id=f"t{slot}", service_id="s", service_name="api", slot=slot, node_id=node, spec=TaskSpec(),
        status=TaskStatus(state=state), desired_state=TaskState.RUNNING, meta=Meta(version=1),
    )  # fmt: skip


def write(state_dir: Path, task_id: str, text: str, *, ended: bool = False) -> None:
    directory = state_dir / "tasks" / task_id
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "log").open("a") as file:
        file.write(text)
    if ended:
        (directory / "exit.json").write_text("{}")


class World:
    """A manager with one node, which has the files in `state_dir`."""

    def __init__(self, state_dir: Path, store: Store, reader: Any, node: LogSender) -> None:
        self.state_dir, self.store, self.reader, self.node = state_dir, store, reader, node
        self.service: LogsService | None = None
        self.silent = False

    def tell(self, node_id: str, message: pb.ManagerMessage) -> bool:
        if node_id != "node1":
            return False
        if not self.silent:
            self.node.send([message.log_demand])
        return True

    async def read(self, **request: Any) -> list[tuple[str, str, str]]:
        """(task, text, error), pieces of one task joined."""
        text: dict[str, str] = {}
        errors: dict[str, str] = {}
        async for piece in self.reader.Read(pb.LogsRequest(**request)):
            name = f"{piece.task_name}@{piece.node}"
            text[name] = text.get(name, "") + piece.data.decode()
            errors[name] = errors.get(name, "") + piece.error
        return sorted((name, text[name], errors[name]) for name in text)


@contextlib.asynccontextmanager
async def serving(state_dir: Path, *tasks: Task) -> AsyncIterator[World]:
    objects = [
        Cluster(id="c", meta=Meta(version=1)),
        Node(id="node1", number=1, description=NodeDescription(hostname="h1"), meta=Meta(version=1)),
        Node(id="node2", number=2, description=NodeDescription(hostname="h2"), meta=Meta(version=1)),
        Service(id="s", spec=ServiceSpec(name="api", task=TaskSpec()), meta=Meta(version=1)),
        *tasks,
    ]
    store = Store(FakeBackend(objects), lambda: 1000)
    await store.open()
    numbers = itertools.count(1)
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    address = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(address) as channel:
        world = World(state_dir, store, LogsStub(channel), LogSender(state_dir, Edge(), lambda: address))
        world.service = LogsService(store, world.tell, lambda: f"demand{next(numbers)}")
        add_LogsServicer_to_server(world.service, server)
        await server.start()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(world.node.run())
            try:
                yield world
            finally:
                running.cancel()
                await server.stop(0)
    await store.close()


async def test_the_logs_of_a_service_come_from_its_nodes(tmp_path: Path) -> None:
    ended, away = task(3, TaskState.FAILED, "node2"), task(4, node="node2")
    async with serving(tmp_path, task(1), task(2), ended, away, task(5, TaskState.PENDING, "")) as world:
        write(tmp_path, "t1", "one\ntwo\n")
        write(tmp_path, "t2", "three\n")
        assert await world.read(service="api") == [
            ("api.1@h1", "one\ntwo\n", ""),
            ("api.2@h1", "three\n", ""),
            ("api.4@h2", "", 'node "h2" is away: its logs cannot be read'),
        ]
        assert await world.read(service="api", tail=1) == [
            ("api.1@h1", "two\n", ""),
            ("api.2@h1", "three\n", ""),
            ("api.4@h2", "", 'node "h2" is away: its logs cannot be read'),
        ]
        assert await world.read(task="api.1") == [("api.1@h1", "one\ntwo\n", "")]


async def test_a_long_log_arrives_whole(tmp_path: Path) -> None:
    async with serving(tmp_path, task(1)) as world:
        text = "".join(f"{number}\n" for number in range(400_000))
        write(tmp_path, "t1", text)
        assert await world.read(task="t1") == [("api.1@h1", text, "")]


async def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, task(1), task(2, TaskState.PENDING, "")) as world:
        for request, sentence in (
            ({"service": "nope"}, 'no service "nope"'),
            ({"task": "t2"}, 'task "t2" is on no node yet'),
            ({}, "which task? The reference is empty"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await world.read(**request)
            assert refused.value.details() == sentence
        assert await world.read(task="t1") == [("api.1@h1", "", "nothing of task t1 is on this node any more")]


async def test_following_takes_up_new_tasks_and_ends_with_the_service(tmp_path: Path) -> None:
    write(tmp_path, "t1", "one\n")
    write(tmp_path, "t2", "two\n")
    async with serving(tmp_path, task(1)) as world, asyncio.timeout(20):
        call = world.reader.Read(pb.LogsRequest(service="api", follow=True))
        assert (await call.read()).data == b"one\n"
        term = await world.store.leading()
        new = msgspec.structs.replace(task(2), meta=Meta(), status=TaskStatus(), desired_state=TaskState.RUNNING)
        await world.store.commit([Put(new)], Writer.ORCHESTRATOR, term=term)
        for state, writer in (
            (TaskState.PENDING, Writer.ALLOCATOR),
            (TaskState.ASSIGNED, Writer.SCHEDULER),
            (TaskState.RUNNING, Writer.AGENT),
        ):
            seen = world.store.view().get(Task, "t2")
            assert seen is not None
            changed = msgspec.structs.replace(seen, status=TaskStatus(state=state))
            await world.store.commit([Put(changed)], writer, term=term)
        assert (await call.read()).data == b"two\n"
        write(tmp_path, "t1", "more\n")
        assert (await call.read()).data == b"more\n"
        await world.store.commit([Delete(Service, "s")], Writer.ORCHESTRATOR, term=term)
        for name in ("t1", "t2"):
            write(tmp_path, name, "", ended=True)
        assert await call.read() is grpc.aio.EOF


async def test_a_reader_that_hangs_up_ends_the_process_that_reads(tmp_path: Path) -> None:
    write(tmp_path, "t1", "one\n")
    async with serving(tmp_path, task(1)) as world, asyncio.timeout(20):
        call = world.reader.Read(pb.LogsRequest(task="t1", follow=True))
        assert (await call.read()).data == b"one\n"
        assert await readers(tmp_path, at_least=1)
        call.cancel()
        while await readers(tmp_path):
            await asyncio.sleep(0.05)
        assert world.service is not None
        assert not world.service._readers
        assert not world.service._demands


async def test_a_slow_reader_slows_its_log_and_nothing_grows(tmp_path: Path) -> None:
    async with serving(tmp_path, task(1)) as world, asyncio.timeout(30):
        write(tmp_path, "t1", "x" * (40 << 20))
        call = world.reader.Read(pb.LogsRequest(task="t1"))
        await call.read()
        await asyncio.sleep(1.0)
        assert world.service is not None
        (reader,) = world.service._readers.values()
        assert len(reader.pieces) <= logs.PIECES_MAX
        call.cancel()


async def test_a_node_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BEGIN_TIMEOUT_S", 0.2)
    async with serving(tmp_path, task(1)) as world:
        world.silent = True
        assert await world.read(service="api") == [("api.1@h1", "", 'node "h1" does not send the log')]


async def test_too_many_readers_and_too_many_followed_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "READERS_MAX", 2)
    monkeypatch.setattr(sender, "FOLLOWED_MAX", 1)
    write(tmp_path, "t1", "one\n")
    async with serving(tmp_path, task(1)) as world, asyncio.timeout(20):
        first = world.reader.Read(pb.LogsRequest(task="t1", follow=True))
        assert (await first.read()).data == b"one\n"
        second = world.reader.Read(pb.LogsRequest(task="t1", follow=True))
        assert (await second.read()).error == "its node sends 1 logs already"
        assert await second.read() is grpc.aio.EOF  # so it is no reader any more
        monkeypatch.setattr(logs, "READERS_MAX", 1)
        with pytest.raises(grpc.aio.AioRpcError, match="this manager hands on 1 logs already"):
            await world.reader.Read(pb.LogsRequest(task="t1", follow=True)).read()
        first.cancel()


async def test_a_demand_is_worth_one_push_only(tmp_path: Path) -> None:
    async with serving(tmp_path, task(1)) as world:

        async def pieces(demand: str) -> AsyncIterator[pb.PushedLog]:
            yield pb.PushedLog(demand=demand)
            yield pb.PushedLog(data=b"lies")

        for demand in ("", "demand1", "x" * 1000):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await world.reader.Push(pieces(demand))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def readers(state_dir: Path, at_least: int = 0) -> int:
    """How many processes read logs there; waits for `at_least`."""
    while True:
        found = 0
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                found += b"mesh.executor.logs" in (line := entry.read_bytes()) and str(state_dir).encode() in line
        if found >= at_least:
            return found
        await asyncio.sleep(0.05)
