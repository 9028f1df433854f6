"""How an agent finds the manager that leads: sent on by followers, in turn, without hammering."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from control.model import NodeDescription
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import DispatcherServicer, add_DispatcherServicer_to_server
from control.server.edge import Edge
from control.server.hop import LEADER
from mesh.agent.connection import Connection
from mesh.agent.session import Session


class Fake(DispatcherServicer):
    """A manager: leads, or sends nodes to `leader`."""

    def __init__(self) -> None:
        self.leads, self.leader, self.asked, self.address = False, "", 0, ""
        self.managers: list[str] = []
        self.said = asyncio.Event()  # to be said something of a change

    async def Session(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        self.asked += 1
        if not self.leads:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "not the leader", trailing_metadata=((LEADER, self.leader),)
            )
        await context.write(
            pb.ManagerMessage(
                welcome=pb.Welcome(session_id="s", heartbeat_period_s=1, managers=self.managers, role="worker")
            )
        )
        await context.write(pb.ManagerMessage(assignments=pb.Assignments(applies_to=0, results_in=1)))
        await self.said.wait()
        reply = pb.HeartbeatReply(period_s=1, managers=["192.0.2.9:1"], role="manager")
        await context.write(pb.ManagerMessage(heartbeat=reply))
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving(count: int) -> AsyncIterator[list[Fake]]:
    servers, fakes = [], []
    for _ in range(count):
        server, fake = grpc.aio.server(), Fake()
        add_DispatcherServicer_to_server(fake, server)
        fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
        fakes.append(fake)
    try:
        yield fakes
    finally:
        for server in servers:
            await server.stop(0)


@contextlib.asynccontextmanager
async def connecting(*managers: str, hints: tuple[str, ...] = ()) -> AsyncIterator[tuple[Connection, Session]]:
    session = Session("n", "secret", "192.0.2.1", NodeDescription(hostname="h"))
    connection = Connection(session, managers, lambda: None, random.Random(1), Edge(), lambda: hints)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(connection.run())
        try:
            yield connection, session
        finally:
            task.cancel()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_follower_sends_it_to_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(2) as (follower, leader):
        follower.leader, leader.leads = leader.address, True
        leader.managers = [leader.address, follower.address]
        monkeypatch.setattr("mesh.agent.connection.BACKOFF_FIRST_S", 60.0)  # it goes there at once
        async with connecting(follower.address) as (connection, session):
            await until(lambda: session.connected)
            assert (follower.asked, leader.asked) == (1, 1)
            assert connection.managers == (leader.address, follower.address)
            assert connection.role == "worker"
            # What changes is told, and whoever keeps it on disk hears of it.
            connection.told.clear()
            leader.said.set()
            async with asyncio.timeout(5):
                await connection.told.wait()
            assert (connection.managers, connection.role) == (("192.0.2.9:1",), "manager")


async def test_two_that_send_it_to_each_other_are_not_hammered() -> None:
    async with serving(2) as (one, other):
        one.leader, other.leader = other.address, one.address
        async with connecting(one.address, other.address):
            await asyncio.sleep(1.0)
            assert 2 <= one.asked + other.asked <= 20  # at 0.05 s, 0.1 s, ... twice each


async def test_each_is_tried_and_also_those_of_the_configuration() -> None:
    async with serving(3) as (one, other, hinted):
        hinted.leads = True
        async with connecting(one.address, other.address, hints=(hinted.address,)) as (_, session):
            await until(lambda: session.connected)
            assert max(one.asked, other.asked) <= 1


def test_a_manager_that_says_nothing_is_given_up_soon() -> None:
    session = Session("n", "secret", "192.0.2.1", NodeDescription(hostname="h"))
    session.open(100.0)
    assert not session.silent(104.0)
    assert session.silent(105.1)
    assert session.deadline() <= 105.0
    session.open(200.0)
    session.receive(pb.ManagerMessage(welcome=pb.Welcome(heartbeat_period_s=5)), 201.0)
    assert not session.silent(220.0)  # four periods from now on
    assert session.silent(221.1)
