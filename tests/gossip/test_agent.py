"""A whole node above the network: what it tells, remembers, and refuses."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossip.agent import MESH_TAG, Agent, AgentEvent, AgentSettings, split_place
from gossip.delegate import Address, Change, Delegate, MemberEvent
from gossip.endpoints import EndpointChange, Health, TaskState
from gossip.keyring import KeyRing
from gossip.serf.keys import KeyCommand
from gossip.serf.messages import Query, QueryResponse, Vote, decode, encode
from gossip.serf.ports import ConflictOver, Refused, UserEventSeen
from gossip.serf.roster import MemberChange
from tests.gossip.network import LoneNetwork
from tests.gossip.serf.membership import member


class Hub:
    """Makes networks that hand user messages to each other."""

    def __init__(self) -> None:
        self.networks: dict[Address, tuple[LoneNetwork, Delegate]] = {}

    def __call__(self, settings: AgentSettings, delegate: Delegate, _: KeyRing, __: random.Random) -> LoneNetwork:
        network = LoneNetwork(settings, delegate)
        network.fake.send_user = self._send  # type: ignore[method-assign]
        self.networks[settings.address] = (network, delegate)
        return network

    def _send(self, to: Address, message: bytes, now: float) -> bool:
        if to in self.networks:
            asyncio.get_running_loop().call_soon(self.networks[to][1].user_message, message, now)
        return True

    def introduce(self) -> None:
        now = asyncio.get_running_loop().time()
        for network, delegate in self.networks.values():
            for other, _ in self.networks.values():
                if other is not network:
                    network.fake.alive = len(self.networks)
                    delegate.member_changed(MemberEvent(Change.JOINED, other.fake.me, None), now)


def make(hub: Hub, name: str = "me", port: int = 1, **settings: object) -> Agent:
    chosen = AgentSettings(name, Address("127.0.0.1", port), **settings)  # type: ignore[arg-type]
    return Agent(chosen, hub, source=random.Random(port), nonce=secrets.token_bytes)


async def soon(condition: object, timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_endpoint_state_goes_from_one_to_the_other() -> None:
    hub = Hub()
    a, b = (make(hub, name, port, endpoints=True, tags={"x": name}) for name, port in (("a", 1), ("b", 2)))
    told: list[AgentEvent] = []
    b.listeners.append(told.append)
    await a.start()
    await b.start()
    hub.introduce()
    assert a.set_local_endpoints({"task1": TaskState(Health.DRAINING, 0)})
    assert not a.set_local_endpoints({"task1": TaskState(Health.DRAINING, 0)})
    await soon(lambda: b.endpoints_of("a") is not None)
    assert b.endpoints_of("a").state_of("task1") == TaskState(Health.DRAINING, 0)  # type: ignore[union-attr]
    assert [c.owner for c in told if isinstance(c, EndpointChange)] == ["a"]
    b.core.member_changed(MemberEvent(Change.FAILED, member("a"), None), 0.0)
    await soon(lambda: b.endpoints_of("a") is None)
    await a.close()
    await b.close()


async def test_stock_agents_are_sent_no_endpoint_state() -> None:
    hub = Hub()
    ours, stock = make(hub, "ours", 1, endpoints=True), make(hub, "stock", 2)
    await ours.start()
    await stock.start()
    hub.introduce()
    ours.set_local_endpoints({"t": TaskState()})
    await asyncio.sleep(0.5)
    assert stock.counts["unknown_messages"] == 0
    assert MESH_TAG in ours.tags()
    ours.set_tags({"a": "b"})
    assert ours.tags() == {"a": "b", MESH_TAG: "1"}
    await ours.close()
    await stock.close()


async def test_a22_a_restart_looks_for_the_members_of_before_and_replays_nothing(tmp_path: Path) -> None:
    hub, path = Hub(), tmp_path / "snapshot"
    first = make(hub, snapshot=path)
    await first.start()
    first.core.member_changed(MemberEvent(Change.JOINED, member("a", 77), None), 0.0)
    first.user_event("before", b"")
    await asyncio.sleep(0.05)
    first._record_clocks()
    state = first.core.local_state(False)
    await first.close()  # without leaving

    hub = Hub()
    again = make(hub, snapshot=path)
    joined: list[Address] = []
    network = hub.networks[Address("127.0.0.1", 1)][0]
    network.fake.join = lambda seeds, now: joined.extend(seeds)  # type: ignore[method-assign]
    told: list[AgentEvent] = []
    again.listeners.append(told.append)
    await again.start()
    assert joined == [Address("127.0.0.1", 77)]
    again.core.merge_remote_state(state, False, 0.0)
    again.user_event("after", b"")
    await asyncio.sleep(0.05)
    assert [e.name for e in told if isinstance(e, UserEventSeen)] == ["after"]
    await again.close()


async def test_a21_who_loses_its_name_falls_silent_and_stays_up() -> None:
    hub = Hub()
    agent = make(hub)
    network = hub.networks[Address("127.0.0.1", 1)][0]
    told: list[AgentEvent] = []
    agent.listeners.append(told.append)
    await agent.start()
    agent.core.conflict(network.fake.me, member("me", 999), asyncio.get_running_loop().time())
    (asked,) = [decode(raw) for raw in agent.core.queries.take(2, 1400, 1)]
    assert isinstance(asked, Query)
    vote = encode(Vote("me", Address("127.0.0.1", 999)))
    now = asyncio.get_running_loop().time()
    agent.core.user_message(encode(QueryResponse(asked.ltime, asked.id, "a", 0, vote)), now)
    agent.core.wake(now + 60)
    await soon(lambda: agent.conflict_lost)
    assert network.silent
    assert ConflictOver(False, 0, 1) in told
    assert agent.stats()["agent"]["name_conflict"] == "lost"
    with pytest.raises(Refused, match='another node has the name "me"'):
        agent.user_event("x", b"")
    assert not agent.stopped.is_set()
    await agent.close()


async def test_changes_of_keys_and_tags_are_told_to_who_keeps_them() -> None:
    agent = make(Hub(), keys=[b"a" * 32])
    kept: list[object] = []
    agent.keys_changed = kept.append
    agent.tags_changed = kept.append
    await agent.start()
    result = await agent.key_command(KeyCommand.INSTALL, "YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI=")
    assert result.error == ""
    await asyncio.sleep(0)
    agent.set_tags({"a": "b"})
    assert kept == [(b"a" * 32, b"b" * 32), {"a": "b"}]
    await agent.close()


async def test_managers_set_the_whole_ring() -> None:
    agent = make(Hub(), keys=[b"a" * 32])
    agent.set_keys([b"b" * 32, b"a" * 32])
    assert agent.ring.keys == (b"b" * 32, b"a" * 32)
    agent.set_keys([b"c" * 32])
    assert agent.ring.keys == (b"c" * 32,)
    with pytest.raises(Refused, match="16, 24 or 32"):
        agent.set_keys([b"short"])


async def test_a_join_says_what_is_wrong() -> None:
    agent = make(Hub())
    await agent.start()
    assert await agent.join([]) == (0, "no address to join was given")
    reached, error = await agent.join(["nonsense.invalid:1"])
    assert reached == 0
    assert 'Failed to resolve "nonsense.invalid:1"' in error
    with pytest.raises(Refused, match="at most 1024"):
        await agent.join(["127.0.0.1"] * 1025)
    await agent.close()


async def test_listeners_are_told_in_order_and_suspicion_too() -> None:
    agent = make(Hub())
    told: list[str] = []
    agent.listeners.append(lambda e: told.append(e.kind.value) if isinstance(e, MemberChange) else None)
    await agent.start()
    suspected = (Change.SUSPECTED, Change.REFUTED, Change.SUSPECTED)
    for change in (Change.JOINED, *suspected, Change.FAILED, Change.JOINED):
        agent.core.member_changed(MemberEvent(change, member("a"), None), 0.0)
    await asyncio.sleep(0.01)
    assert [kind.removeprefix("member-") for kind in told[1:]] == [
        "join",
        "suspect",
        "refute",
        "suspect",
        "failed",
        "join",
    ]
    found = agent.core.roster.get("a")
    assert found is not None
    assert not found.suspect
    await agent.close()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("h", ("h", 7946)),
        ("h:1", ("h", 1)),
        ("::1", ("::1", 7946)),
        ("[::1]:2", ("::1", 2)),
        ("[::1]", ("::1", 7946)),
        ("h:x", ("h", 7946)),
    ],
)
def test_places(text: str, place: tuple[str, int]) -> None:
    assert split_place(text) == place


# serfclient 1.2.0, the client that people have


@pytest.fixture(scope="module")
def serfclient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which it runs; it needs pkg_resources, which newer setuptools have no more."""
    target = tmp_path_factory.mktemp("serfclient")
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(target)]
    subprocess.run([*install, "serfclient==1.2.0", "msgpack", "setuptools<81"], check=True, timeout=100)
    return {**os.environ, "PYTHONPATH": str(target), "PYTHONWARNINGS": "ignore"}


SCRIPT = """
import sys
from serfclient.client import SerfClient
client = SerfClient(host="127.0.0.1", port=int(sys.argv[1]), rpc_auth="secret", timeout=10)
(me,) = client.members().body[b"Members" if b"Members" in client.members().body else "Members"]
assert client.members(name="me", status="alive", tags={"role": "w.b"}).head["Error"] == ""
assert client.event("deploy", "v1", coalesce=False).head["Error"] == ""
assert client.event("deploy", None).head["Error"] == ""
assert client.force_leave("gone").head["Error"] == ""
assert client.stats().body["serf"]["members"] == "1"
assert client.join(["127.0.0.1:1"]).head["Error"] != ""
print(me["Name"], me["Status"], me["Port"])
client.close()
"""


async def test_serfclient(serfclient: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.agent.JOIN_TIMEOUT_S", 0.2)
    agent = make(Hub(), port=7946, tags={"role": "web"})
    await agent.start()
    await agent.serve_rpc("127.0.0.1:0", "secret")
    assert agent.rpc is not None
    port = agent.rpc._servers[0].sockets[0].getsockname()[1]
    command = (sys.executable, "-c", SCRIPT, str(port))
    both = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    process = await asyncio.create_subprocess_exec(*command, env=serfclient, **both)  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert out.decode().split()[-3:] == ["me", "alive", "7946"], out.decode()
    await agent.close()
