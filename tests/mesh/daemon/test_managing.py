"""A node becomes a manager, is one, and is none any more, without a restart: two managers with Raft in one process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from control.home import DiskHome
from control.manager import Bootstrapped, Manager
from control.model import ClusterSpec, NodeDescription, NodeSpec
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import ControlStub, MembershipStub
from control.server.edge import Edge
from mesh.daemon.identity import Identity
from mesh.daemon.managing import Managing
from tests.ports import free_port


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise AssertionError(f"never came about: {what}") from error


class Machine:
    """One node's manager, with its identity in memory."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        self.directory, self.identity = directory, identity
        port = identity.address.rpartition(":")[2]
        self.home = DiskHome(directory / "manager", f"127.0.0.1:{free_port()}")
        self.managing = Managing(
            self.home, Edge(), f"127.0.0.1:{port}", lambda: self.identity, self.keep, self.known, wall_ms,
            self.certified, lambda *_: None,
        )  # fmt: skip
        self.others: tuple[str, ...] = ()

    def keep(self, identity: Identity) -> None:
        self.identity = identity

    def known(self) -> tuple[str, ...]:
        return (*self.identity.managers, *self.others)

    async def certified(self, role: str) -> None:
        """There is no TLS here."""

    def become(self, role: Any) -> None:
        """As the managers tell it."""
        enrolled = self.identity.enrolled and self.identity.role == "manager"
        self.keep(msgspec.structs.replace(self.identity, role=role, enrolled=enrolled))
        self.managing.reconsider()


async def first_machine(directory: Path) -> tuple[Machine, Bootstrapped]:
    address = f"127.0.0.1:{free_port()}"
    made = await Manager.bootstrap(
        DiskHome(directory / "manager", "127.0.0.1:0"),
        spec=ClusterSpec(),
        description=NodeDescription(hostname="h1"),
        availability="active",
        data_address="192.0.2.1",
        address=address,
        wall_ms=wall_ms,
    )
    identity = Identity(
        node_id=made.node_id, node_number=1, secret=made.secret, cluster_id=made.cluster_id, role="manager",
        data_address="192.0.2.1", managers=(address,), address=address,
    )  # fmt: skip
    return Machine(directory, identity), made


async def joined(directory: Path, first: Machine, made: Bootstrapped) -> Machine:
    """A worker."""
    async with grpc.aio.insecure_channel(first.identity.address) as channel:
        stub: Any = MembershipStub(channel)
        description = msgspec.msgpack.encode(NodeDescription(hostname="h2"))
        reply = await stub.Join(
            pb.JoinRequest(token=made.worker_token, description=description, data_address="192.0.2.2")
        )
    identity = Identity(
        node_id=reply.node_id, node_number=reply.node_number, secret=reply.secret, cluster_id=reply.cluster_id,
        role="worker", data_address="192.0.2.2", managers=(first.identity.address,),
        address=f"127.0.0.1:{free_port()}", enrolled=False,
    )  # fmt: skip
    return Machine(directory, identity)


async def give_role(first: Machine, node_id: str, role: Any) -> None:
    async with grpc.aio.insecure_channel(first.identity.address) as channel:
        stub: Any = ControlStub(channel)
        spec = msgspec.msgpack.encode(NodeSpec(role=role))
        await stub.UpdateNode(pb.UpdateRequest(reference=node_id, spec=spec))


@contextlib.asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[tuple[Machine, Machine]]:
    """A manager and a worker, both running."""
    first, made = await first_machine(tmp_path / "1")
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(first.managing.run())]
        await until(lambda: first.managing.manager is not None, "the first is open")
        second = await joined(tmp_path / "2", first, made)
        tasks.append(group.create_task(second.managing.run()))
        try:
            yield first, second
        finally:
            for task in tasks:
                task.cancel()
    for machine in (first, second):
        await machine.managing.close()


def voters(machine: Machine) -> set[str]:
    manager = machine.managing.manager
    return {member.node_id for member in manager.store.members() if member.voter} if manager is not None else set()


async def test_promoted_demoted_and_promoted_again(tmp_path: Path) -> None:
    async with two(tmp_path) as (first, second):
        both = {first.identity.node_id, second.identity.node_id}
        for _ in range(2):
            second.become("manager")  # told before the leader knows: it asks until it is let in
            await asyncio.sleep(0.3)
            assert second.managing.manager is None
            assert "is a worker" in second.managing.error
            await give_role(first, second.identity.node_id, "manager")
            await until(lambda: voters(second) == both, "both vote")
            assert second.identity.enrolled
            second.become("worker")  # told before it is taken out: it stays, since its vote is needed
            await asyncio.sleep(1.0)
            assert second.managing.manager is not None
            await give_role(first, second.identity.node_id, "worker")
            await until(lambda: second.managing.manager is None and not second.identity.enrolled, "it has stopped")
            await until(lambda: not (second.directory / "manager").exists(), "its state is gone")
            assert voters(first) == {first.identity.node_id}


async def test_a_manager_that_was_thrown_out_takes_the_place_it_is_given(tmp_path: Path) -> None:
    async with two(tmp_path) as (first, second):
        await give_role(first, second.identity.node_id, "manager")
        second.become("manager")
        await until(lambda: len(voters(first)) == 2, "both vote")
        manager = first.managing.manager
        assert manager is not None
        before = (second.directory / "manager/member").read_bytes()
        assert manager.roll.electorate is not None
        await manager.roll.electorate.remove(second.identity.node_id)
        await until(lambda: len(voters(first)) == 2, "it votes again")
        assert (second.directory / "manager/member").read_bytes() != before


async def test_those_who_have_all_moved_meet_though_nobody_answers_where_they_were(tmp_path: Path) -> None:
    """The old places take connections and say nothing, as a network does that drops packets; gossip says the new."""
    async with two(tmp_path) as (first, second):
        await give_role(first, second.identity.node_id, "manager")
        second.become("manager")
        await until(lambda: len(voters(first)) == len(voters(second)) == 2, "both vote")
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        before = tuple(f"127.0.0.1:{sock.getsockname()[1]}" for sock in silent)
        moved = [
            Machine(
                machine.directory,
                msgspec.structs.replace(machine.identity, managers=before, address=f"127.0.0.1:{free_port()}"),
            )
            for machine in (first, second)
        ]
        for machine in moved:
            machine.others = tuple(one.identity.address for one in moved)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(machine.managing.run()) for machine in moved]
            await until(lambda: sorted(map(standing, moved)) == ["follows", "leads"], "one leads, and the other knows")
            for task in tasks:
                task.cancel()
        for machine in moved:
            await machine.managing.close()


def standing(machine: Machine) -> str:
    manager = machine.managing.manager
    if manager is None:
        return "closed"
    if manager.store.term is not None:
        return "leads"
    return "follows" if manager.store.leader else "is alone"


@pytest.mark.parametrize("others", [(), ("127.0.0.1:1",)])
async def test_it_waits_until_a_manager_answers(tmp_path: Path, others: tuple[str, ...]) -> None:
    identity = Identity(
        node_id="n", node_number=2, secret="s", cluster_id="c", role="manager", data_address="192.0.2.2",
        managers=("127.0.0.1:1",), address=f"127.0.0.1:{free_port()}", enrolled=False,
    )  # fmt: skip
    machine = Machine(tmp_path, identity)
    machine.others = others
    async with asyncio.TaskGroup() as group:
        task = group.create_task(machine.managing.run())
        await until(lambda: machine.managing.error != "", "it has tried")
        assert machine.managing.manager is None
        task.cancel()
