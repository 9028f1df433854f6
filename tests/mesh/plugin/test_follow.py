"""Containers of others while their engine does not answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from control.model import Lease
from mesh.agent.agent import Agent
from mesh.executor import netns
from mesh.executor.docker.engine import Engine
from mesh.plugin.book import Entry
from mesh.plugin.follow import Follower
from mesh.plugin.keeper import Keeper
from tests.mesh.plugin.test_driver import LEASE, SETTINGS, WEB, FakeAgent, KnownNetwork

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    lease: Lease = LEASE
    made = Keeper(cast(Agent, FakeAgent(SETTINGS, KnownNetwork(network=WEB), lease)), tmp_path / "book", lambda: 1000)
    for name, adopted in (("x1", True), ("x2", True), ("e1", False), ("e2", False)):
        book, address = made.book.request(WEB.id, [lease], "", 1000)
        where = f"/run/netns/{'here' if name.endswith('1') else 'gone'}"
        entry = Entry(id=name, network_id=WEB.id, address=address, sandbox=where, container=name, adopted=adopted)
        made.change(book.create(entry, 1000).put(entry))
    return made


async def test_who_has_no_namespace_has_ended(keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "exists", lambda path: path.endswith("here"))
    follower = Follower(keeper, Engine(str(tmp_path / "nobody"), away_max_s=0))
    async with asyncio.TaskGroup() as group:
        await follower.look(group)
        assert set(keeper.book.entries) == {"x1", "e1", "e2"}
        assert keeper.book.entries["e2"].sandbox, "an engine that starts it has not made its namespace yet"
        await follower.look(group)
    assert {e.id: bool(e.sandbox) for e in keeper.book.entries.values()} == {"x1": True, "e1": True, "e2": False}
    agent = cast(FakeAgent, keeper.agent)
    assert {guest.attachment.id for guest in agent.guests} == {"x1", "e1"}
