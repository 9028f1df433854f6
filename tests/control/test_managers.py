"""Three managers in one process: forwarding, the way of nodes to the leader, and who may go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from control.home import DiskHome, Seating
from control.manager import Manager
from control.model import Network, NetworkSpec, Node, NodeSpec
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import ControlStub, DispatcherStub, MembershipStub
from control.server.hop import HOP, leader_said
from control.server.quorum import nobody_leads, survey
from control.store.backend import Image
from control.store.disk import RealDisk
from control.store.errors import Removed
from control.store.fake import FakeBackend
from tests.control.test_manager import Bootstrapped, bootstrap, description, until, wall_ms
from tests.ports import free_port


@dataclass
class Member:
    """One manager that runs."""

    node_id: str
    secret: str
    manager: Manager
    task: asyncio.Task[None]
    channel: grpc.aio.Channel

    @property
    def control(self) -> Any:
        return ControlStub(self.channel)

    async def stop(self) -> None:
        """As kill -9 would: without handing over."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        await self.channel.close()
        await self.manager.close()


class Cluster:
    """The managers of one cluster, by node id."""

    def __init__(self, directory: Path, made: Bootstrapped, group: asyncio.TaskGroup) -> None:
        self.directory, self.made, self._group = directory, made, group
        self.members: dict[str, Member] = {}

    async def open(self, home: DiskHome, node_id: str, secret: str, port: int) -> Member:
        seat = home.seat(self.made.cluster_id, node_id, "127.0.0.1")
        manager = await Manager.open(seat, listen=f"127.0.0.1:{port}", wall_ms=wall_ms)
        task = self._group.create_task(until_removed(manager))
        member = Member(node_id, secret, manager, task, grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        self.members[node_id] = member
        return member

    async def join(self, number: int, through: Member) -> Member:
        stub: Any = MembershipStub(through.channel)
        joined = await stub.Join(
            pb.JoinRequest(
                token=self.made.manager_token,
                description=msgspec.msgpack.encode(description(f"h{number}")),
                data_address=f"192.0.2.{number}",
            )
        )
        assert joined.role == "manager"
        port, quorum_port = free_port(), free_port()
        request = pb.EnlistRequest(
            node_id=joined.node_id,
            secret=joined.secret,
            store="disk",
            address=f"127.0.0.1:{port}",
            quorum_address=f"127.0.0.1:{quorum_port}",
        )
        reply = await stub.Enlist(request)
        home = DiskHome(self.directory / str(number), f"127.0.0.1:{quorum_port}")
        await home.enrol(reply.cluster_id, reply.seat)
        member = await self.open(home, joined.node_id, joined.secret, port)
        wanted = len(self.members)
        await until(lambda: len(voters(through)) == wanted, f"manager {number} votes")
        await until(lambda: member.manager.store.leader != "", f"manager {number} knows the leader")
        return member

    def leader(self) -> Member | None:
        return next((m for m in self.members.values() if m.manager.store.term is not None), None)

    async def stop(self, member: Member) -> None:
        del self.members[member.node_id]
        await member.stop()


async def until_removed(manager: Manager) -> None:
    """As the daemon takes it: a manager that was taken out is no failure."""
    try:
        await manager.run()
    except* Removed:
        pass


def voters(seen_by: Member) -> set[str]:
    return {member.node_id for member in seen_by.manager.store.members() if member.voter}


@contextlib.asynccontextmanager
async def managers(directory: Path, count: int) -> AsyncIterator[tuple[Cluster, list[Member]]]:
    """So many of one cluster; the first one leads."""
    port = free_port()
    made = await bootstrap(directory / "1", address=f"127.0.0.1:{port}")
    async with asyncio.TaskGroup() as group:
        cluster = Cluster(directory, made, group)
        home = DiskHome(directory / "1", f"127.0.0.1:{free_port()}")
        found = [await cluster.open(home, made.node_id, made.secret, port)]
        try:
            for number in range(2, count + 1):
                found.append(await cluster.join(number, found[-1]))  # a follower hands it on
            yield cluster, found
        finally:
            for member in list(cluster.members.values()):
                await cluster.stop(member)


def network(name: str) -> pb.CreateRequest:
    return pb.CreateRequest(spec=msgspec.msgpack.encode(NetworkSpec(name=name)))


def known(member: Member) -> set[str]:
    return {found.spec.name for found in member.manager.store.view().all(Network)}


async def test_any_manager_takes_calls_and_a_new_leader_has_them(tmp_path: Path) -> None:
    async with managers(tmp_path, 3) as (cluster, (first, second, third)):
        await second.control.CreateNetwork(network("a"))
        found = await third.control.Get(pb.GetRequest(kind="network", reference="a"))
        assert msgspec.msgpack.decode(found.value, type=Network).spec.name == "a"
        # A watch on a follower outlives the leader.
        watch = third.control.Watch(pb.WatchRequest(kind="network"))
        seen = [await watch.read() for _ in range(2)]
        assert [event.action for event in seen] == [pb.Event.PRESENT, pb.Event.LIVE]
        await cluster.stop(first)
        await second.control.CreateNetwork(network("b"), timeout=15)  # waits for the new leader
        event = await watch.read()
        while event.action == pb.Event.UPDATED:  # the allocator gives "a" a subnet
            event = await watch.read()
        assert event.action == pb.Event.CREATED
        assert msgspec.msgpack.decode(event.object.value, type=Network).spec.name == "b"
        leader = cluster.leader()
        assert leader in (second, third)
        await until(lambda: known(second) == known(third) == {"a", "b"}, "both have both")


async def test_a_call_is_handed_on_once(tmp_path: Path) -> None:
    async with managers(tmp_path, 2) as (_, (first, second)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await second.control.List(pb.ListRequest(kind="node"), metadata=((HOP, "1"),))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert leader_said(caught.value) == f"127.0.0.1:{first.manager.port}"


async def test_a_node_that_calls_a_follower_is_sent_to_the_leader(tmp_path: Path) -> None:
    async with managers(tmp_path, 2) as (_, (first, second)):
        stub: Any = DispatcherStub(second.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Session().read()
        assert leader_said(caught.value) == f"127.0.0.1:{first.manager.port}"


async def test_without_a_majority_it_is_said_who_answers(tmp_path: Path) -> None:
    async with managers(tmp_path, 2) as (cluster, (first, second)):
        await cluster.stop(first)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await second.control.CreateNetwork(network("a"), timeout=15)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "no leader: 1 of 2 managers answers; see mesh quorum status"
        reply = await second.manager.survey()
        assert {row.node_id: row.status for row in reply.managers} == {
            first.node_id: "unreachable",
            second.node_id: "reachable",
        }
        # The same is told to a worker, which knows addresses only.
        addresses = [f"127.0.0.1:{member.manager.port}" for member in (first, second)]
        asked = await survey(second.manager._edge, None, dict(zip(addresses, addresses, strict=True)))
        assert nobody_leads(asked) == "no leader: 1 of 2 managers answers; see mesh quorum status"


async def test_a_manager_that_is_needed_may_not_go(tmp_path: Path) -> None:
    async with managers(tmp_path, 3) as (cluster, (first, second, third)):
        await cluster.stop(third)
        await until(lambda: third.node_id not in first.manager.roll.answering(), "it is missed")
        demote = pb.UpdateRequest(reference=second.node_id, spec=msgspec.msgpack.encode(NodeSpec(role="worker")))
        with pytest.raises(grpc.aio.AioRpcError, match='node "h2" must stay a manager: without it 1 of 2 managers'):
            await first.control.UpdateNode(demote)
        # The one that is lost may; then the other two can, one after the other, and the last may not.
        await first.control.UpdateNode(
            pb.UpdateRequest(reference=third.node_id, spec=msgspec.msgpack.encode(NodeSpec(role="worker")))
        )
        await until(lambda: voters(first) == {first.node_id, second.node_id}, "it is taken out")
        await first.control.UpdateNode(demote)
        await until(lambda: voters(first) == {first.node_id}, "the second one is, too")
        (node,) = [n for n in first.manager.store.view().all(Node) if n.id == second.node_id]
        assert (node.spec.role, node.control_address) == ("worker", "")
        with pytest.raises(grpc.aio.AioRpcError, match="is the only manager"):
            await first.control.UpdateNode(
                pb.UpdateRequest(reference=first.node_id, spec=msgspec.msgpack.encode(NodeSpec(role="worker")))
            )


async def test_what_a_full_leader_refuses_is_said_by_who_hands_the_call_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was "the leader was lost; the change may still come to pass", though nothing of the kind was so."""
    async with managers(tmp_path, 3) as (_, found):
        monkeypatch.setattr(RealDisk, "free_bytes", lambda _: 3 << 20)
        await until(lambda: all("MiB are free" in one.manager.quorum.look().message for one in found), "all are full")
        for number, member in enumerate(found):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await member.control.CreateNetwork(network(f"n{number}"), timeout=15)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "only 3 MiB are free on the disk of" in str(refused.value.details())


async def test_a_leader_that_is_demoted_hands_over(tmp_path: Path) -> None:
    async with managers(tmp_path, 3) as (_, (first, second, third)):
        spec = msgspec.msgpack.encode(NodeSpec(role="worker"))
        await third.control.UpdateNode(pb.UpdateRequest(reference=first.node_id, spec=spec))
        await until(lambda: voters(second) == {second.node_id, third.node_id}, "it is taken out by its successor")


async def test_a_manager_whose_removal_is_in_its_own_log_says_so() -> None:
    """Not as a mistake that ends the daemon: it goes on as a worker."""

    class Gone(FakeBackend):
        async def load(self) -> Image:
            raise Removed("node n is no manager of the cluster any more")

    with pytest.raises(Removed):
        await Manager.open(Seating("n", "disk", Gone()), listen="127.0.0.1:0", wall_ms=wall_ms)
