"""This node in gossip, alone: keys that the managers change, seeds, sockets that do not open."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from control.assignment import Peer, Settings
from gossip.keyring import HANDOVER_STEP_S, handover
from mesh.agent.gossip import Gossip, GossipDoor
from mesh.agent.rumours import MANAGER_TAG, NODE_TAG
from mesh.agent.view import Assignments
from tests.gossip.network import LoneNetwork, lone

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 16


def told(*keys: bytes) -> Assignments:
    settings = Settings(
        cluster_id="c",
        cluster_name="c",
        vxlan_port=4789,
        heartbeat_period_s=5.0,
        gossip_keys=tuple(base64.b64encode(key).decode() for key in keys),
    )
    me = Peer(node_id="n1", number=1, name="h1", data_address="10.66.0.11", state="ready")
    return Assignments().updated(0, 1, [settings, me], ())


@asynccontextmanager
async def taking_part(tmp_path: Path, make: object = lone) -> AsyncIterator[Gossip]:
    door = GossipDoor(make, tmp_path / "rpc")  # type: ignore[arg-type]
    gossip = Gossip(door, "n1", "10.66.0.11", tmp_path, lambda: 10_000, lambda: None)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(gossip.run())
        try:
            yield gossip
        finally:
            running.cancel()


async def ring(gossip: Gossip, *keys: bytes) -> None:
    """Wait until the ring is this one."""
    async with asyncio.timeout(5):
        while gossip.agent is None or gossip.agent.ring.keys != keys:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("age_s", "keys"),
    [(0.0, (OLD, NEW)), (HANDOVER_STEP_S, (NEW, OLD)), (2 * HANDOVER_STEP_S, (NEW,)), (1e9, (NEW,))],
)
def test_a_new_key_is_read_then_written_then_alone(age_s: float, keys: tuple[bytes, ...]) -> None:
    assert handover((OLD,), (NEW,), age_s)[0] == keys


def test_nodes_that_hear_of_new_keys_at_other_moments_can_always_read_each_other() -> None:
    for age_s in (0.0, 1.0, HANDOVER_STEP_S, 1.5 * HANDOVER_STEP_S, 2 * HANDOVER_STEP_S, 3 * HANDOVER_STEP_S):
        for later_s in (0.0, 0.3 * HANDOVER_STEP_S, 0.99 * HANDOVER_STEP_S):
            first, _ = handover((OLD,), (NEW, OTHER), age_s)
            second = handover((OLD,), (NEW, OTHER), age_s - later_s)[0] if age_s >= later_s else (OLD,)
            assert first[0] in second
            assert second[0] in first


async def test_keys_of_the_managers_are_followed_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.keyring.HANDOVER_STEP_S", 0.2)
    async with taking_part(tmp_path) as gossip:
        gossip.follow(told(OLD))
        await ring(gossip, OLD)
        gossip.follow(told(NEW, OLD))
        await ring(gossip, OLD, NEW)
        await ring(gossip, NEW, OLD)
        gossip.follow(told(NEW))
        await ring(gossip, NEW)


async def test_a_change_within_a_change_begins_anew_from_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gossip.keyring.HANDOVER_STEP_S", 0.2)
    async with taking_part(tmp_path) as gossip:
        gossip.follow(told(OLD))
        await ring(gossip, OLD)
        gossip.follow(told(NEW))
        await ring(gossip, OLD, NEW)
        gossip.follow(told(OTHER))
        await ring(gossip, OLD, NEW, OTHER)
        await ring(gossip, OTHER)


async def test_what_operators_do_stays_until_the_managers_want_something_else(tmp_path: Path) -> None:
    async with taking_part(tmp_path) as gossip:
        gossip.follow(told(OLD))
        await ring(gossip, OLD)
        assert gossip.agent is not None
        gossip.agent.ring.install(OTHER)
        gossip.follow(told(OLD))
        await asyncio.sleep(0.05)
        assert gossip.agent.ring.keys == (OLD, OTHER)


async def test_a_manager_says_where_it_answers(tmp_path: Path) -> None:
    async with taking_part(tmp_path) as gossip:
        gossip.answer_at("10.66.0.11:7377")
        gossip.follow(told(OLD))
        await ring(gossip, OLD)
        assert gossip.agent is not None
        assert gossip.managers() == ("10.66.0.11:7377",)
        gossip.agent.set_tags({**gossip.agent.tags(), "rack": "7"})  # an operator, by Serf's RPC
        for address in ("10.66.0.99:7377", ""):
            gossip.answer_at(address)
            async with asyncio.timeout(60):
                while gossip.agent.tags().get(MANAGER_TAG, "") != address:
                    await asyncio.sleep(0.01)
            assert gossip.managers() == tuple(filter(None, (address,)))
        assert gossip.agent.tags()["rack"] == "7"
        assert gossip.agent.tags()[NODE_TAG] == "n1"


async def test_keys_that_are_none_are_told_in_a_sentence(tmp_path: Path) -> None:
    async with taking_part(tmp_path) as gossip:
        gossip.follow(told(OLD))
        await ring(gossip, OLD)
        gossip.follow(told(b"short"))
        async with asyncio.timeout(5):
            while not gossip.error:
                await asyncio.sleep(0.01)
        assert "a key has 16, 24 or 32 bytes" in gossip.error


async def test_sockets_that_do_not_open_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.agent.gossip.RETRY_S", 0.05)
    tries: list[int] = []

    class Stubborn(LoneNetwork):
        async def start(self) -> None:
            tries.append(1)
            if len(tries) < 3:
                raise OSError(99, "Cannot assign requested address")

    def make(settings: object, delegate: object, *_: object) -> Stubborn:
        return Stubborn(settings, delegate)  # type: ignore[arg-type]

    async with taking_part(tmp_path, make) as gossip:
        gossip.follow(told(OLD))
        async with asyncio.timeout(5):
            while not gossip.error:
                await asyncio.sleep(0.01)
        assert gossip.error == "cannot gossip on 10.66.0.11 port 7946: Cannot assign requested address"
        await ring(gossip, OLD)
        assert gossip.error == ""


async def test_troubles_are_sentences(tmp_path: Path) -> None:
    said = {"udp": "ok", "degraded": ""}

    class Talking(LoneNetwork):
        def stats(self) -> dict[str, str]:
            return said

    def make(settings: object, delegate: object, *_: object) -> Talking:
        return Talking(settings, delegate)  # type: ignore[arg-type]

    async with taking_part(tmp_path, make) as gossip:
        assert gossip.troubles() == ()
        gossip.follow(told(OLD))
        await ring(gossip, OLD)
        assert gossip.troubles() == ()
        said["degraded"] = "h2,h3"
        assert gossip.troubles() == ("UDP does not reach h2, h3: gossip goes there over TCP or through others",)
        said["udp"] = "blocked"
        assert gossip.troubles() == ("UDP of this node reaches nobody: gossip goes over TCP, and more slowly",)
