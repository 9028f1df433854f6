"""The agent on real sockets: members, events and queries through SWIM and the Serf layer together."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from gossip.agent import Agent, AgentEvent, AgentSettings
from gossip.agent_network import SocketNetwork, socket_network
from gossip.delegate import Address, State
from gossip.profile import LOCAL
from gossip.serf.ports import UserEventSeen

QUICK = replace(LOCAL, probe_interval_s=0.1, probe_timeout_s=0.05, gossip_interval_s=0.02, stream_timeout_s=0.5)


@contextlib.asynccontextmanager
async def agent(name: str, **more: Any) -> AsyncIterator[tuple[Agent, list[AgentEvent]]]:
    """One that runs, and its events."""
    made = Agent(
        AgentSettings(name, Address("127.0.0.1", 0), profile=QUICK, **more),
        socket_network,
        source=random.Random(1),
        nonce=secrets.token_bytes,
    )
    events: list[AgentEvent] = []
    made.listeners.append(events.append)
    await made.start()
    try:
        yield made, events
    finally:
        await made.close()


@pytest.mark.parametrize("keys", [(), (b"k" * 16,)])
async def test_two_agents_join_and_tell(keys: tuple[bytes, ...]) -> None:
    async with agent("a", keys=keys) as (a, _), agent("b", keys=keys, tags={"role": "web"}) as (b, heard):
        assert await b.join([str(a.membership.me.address)]) == (1, "")
        assert {m.name: dict(m.tags) for m in a.members()} == {"a": {}, "b": {"role": "web"}}
        a.user_event("deploy", b"1", coalesce=False)
        async with asyncio.timeout(3.0):
            while not any(isinstance(event, UserEventSeen) for event in heard):
                await asyncio.sleep(0.01)
        assert b.stats()["gossip"]["udp"] == "ok"
        assert b.stats()["serf"]["health_score"] == "0"


async def test_leaving_is_heard() -> None:
    async with agent("a") as (a, _):
        async with agent("b") as (b, _):
            await b.join([str(a.membership.me.address)])
            await b.leave()
        assert a.membership.member("b").state is State.LEFT  # type: ignore[union-attr]


async def test_the_port_is_told_as_it_was_found_and_an_advertised_address_as_it_is() -> None:
    async with agent("a") as (a, _):
        assert a.membership.me.address.port > 0
    async with agent("b", advertise=Address("203.0.113.9", 5)) as (b, _):
        assert b.membership.me.address == Address("203.0.113.9", 5)


async def test_silence_is_final() -> None:
    async with agent("a") as (a, _), agent("b") as (b, _):
        await b.join([str(a.membership.me.address)])
        assert isinstance(a._network, SocketNetwork)
        a._network.silence()
        async with asyncio.timeout(5.0):
            while b.membership.alive_count == 2:
                await asyncio.sleep(0.01)
        assert b.membership.member("a").state is State.DEAD  # type: ignore[union-attr]


async def test_a_label_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        async with agent("a", label="x" * 256):
            pass


async def test_a_seed_that_answers_by_another_address_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind NAT, or a node that listens everywhere: no member has the address that was joined."""
    async with agent("far", advertise=Address("192.0.2.7", 0)) as (far, _), agent("near") as (near, _):
        port = far.membership.me.address.port
        assert await near.join([f"127.0.0.1:{port}"]) == (1, "")
        await far.close()
        monkeypatch.setattr("gossip.agent.JOIN_TIMEOUT_S", 0.5)
        reached, error = await near.join([f"127.0.0.1:{port}"])
        assert (reached, "no answer" in error) == (0, True), "that it answered once says nothing about now"


async def test_the_serf_command_joins_two_of_ours() -> None:
    async with agent("a") as (a, _), agent("b") as (b, _):
        await a.serve_rpc("127.0.0.1:0")
        assert a.rpc is not None
        port = a.rpc._servers[0].sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            "serf", "join", f"-rpc-addr=127.0.0.1:{port}", str(b.membership.me.address), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert b"Successfully joined cluster by contacting 1 nodes" in out
        assert {member.name for member in a.members()} == {"a", "b"}
