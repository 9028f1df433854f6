"""This node in gossip: joins the other nodes, hears who lives and what serves, and says what serves here.

The shell around `gossip.agent` and the core `rumours`. It begins when the managers have named the keys, follows the
nodes they name as seeds for ever, and never decides anything: `compile` does. A daemon that is stopped does not leave,
since its tasks run on; `mesh leave` does.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from control.assignment import Peer, Settings
from control.lifecycle import TaskState as ControlState
from gossip.agent import Agent, AgentSettings, MakeNetwork
from gossip.delegate import Address
from gossip.endpoints import EndpointError, Health, TaskState
from gossip.keyring import handover
from gossip.serf.ports import Refused
from mesh.agent.rumours import MANAGER_TAG, NODE_TAG, RumourBook
from mesh.agent.view import Assignments, LocalTask, Rumours

log = logging.getLogger(__name__)

# Sockets that cannot be opened (the address is not there yet, another program has the port) are tried again.
RETRY_S = 5.0
EARLY_S = 0.001  # a timer of asyncio may come as much too early, or less


@dataclass(frozen=True, slots=True)
class GossipDoor:
    """How to be in gossip: SWIM on sockets, and where Serf's RPC is served (a path, and HOST:PORT or "")."""

    make_network: MakeNetwork
    rpc_path: Path
    rpc_listen: str = ""
    rpc_key: str = ""


class Gossip:
    """One node's part. `follow` and `serve` may be called at any time; `changed` is called when rumours changed."""

    def __init__(
        self, door: GossipDoor, node_id: str, data_address: str, state_dir: Path, wall_ms: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        self._door, self._node_id, self._data_address = door, node_id, data_address
        self._snapshot, self._wall_ms, self._changed = state_dir / "gossip", wall_ms, changed
        self._book = RumourBook()
        self._assignments = Assignments()
        self._tasks: Mapping[str, LocalTask] = {}
        self._manager = ""  # where this node answers as a manager
        self._news = asyncio.Event()
        self._seeds: frozenset[Address] = frozenset()
        self._keys: tuple[bytes, ...] = ()  # as the managers want them
        self._keys_before: tuple[bytes, ...] = ()
        self._keys_changed_s = self._keys_step_s = -math.inf  # when they were heard; when the next step is due
        self._ring: tuple[bytes, ...] = ()  # as they are on the way there
        self.agent: Agent | None = None
        self.error = ""  # why this node is not in gossip, if it should be

    def rumours(self) -> Rumours:
        """What gossip says now."""
        return self._book.rumours()

    def managers(self) -> tuple[str, ...]:
        """Where managers say that they answer, IP:port."""
        return self._book.managers()

    def answer_at(self, address: str) -> None:
        """This node is a manager, and its API is there; "": it is none."""
        if address != self._manager:
            self._manager = address
            self._news.set()

    def troubles(self) -> tuple[str, ...]:
        """What is wrong, for `mesh status`: not in gossip though it should be, or links that UDP does not cross."""
        found = [self.error] if self.error else []
        if self.agent is not None:
            stats = self.agent.stats()["gossip"]
            if stats.get("udp") == "blocked":
                found.append("UDP of this node reaches nobody: gossip goes over TCP, and more slowly")
            elif names := stats.get("degraded", ""):
                found.append(
                    f"UDP does not reach {names.replace(',', ', ')}: gossip goes there over TCP or through others"
                )
            if self.agent.conflict_lost:
                found.append("another node has this node's name: it has fallen silent in gossip")
        return tuple(found)

    def follow(self, assignments: Assignments) -> None:
        """What the managers say now."""
        self._assignments = assignments
        self._news.set()

    def serve(self, tasks: Mapping[str, LocalTask]) -> None:
        """The tasks of this node as they are now."""
        if tasks != self._tasks:
            self._tasks = dict(tasks)
            self._news.set()

    async def run(self) -> None:
        """Take part until cancelled."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                if self.agent is None and not await self._begin():
                    continue
                self._tell()
        finally:
            if self.agent is not None:
                agent, self.agent = self.agent, None
                await agent.close()

    async def leave(self) -> None:
        """Tell the others that this node leaves for good."""
        if self.agent is not None:
            await self.agent.leave()
        self._snapshot.unlink(missing_ok=True)

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _begin(self) -> bool:
        """Open the sockets, once the managers have named the keys. Whether it takes part now."""
        settings, me = self._assignments.settings(), self._assignments.peer(self._node_id)
        if settings is None or me is None or not settings.gossip_keys:
            return False
        agent = Agent(
            AgentSettings(
                name=self._name(me),
                address=Address(self._data_address, settings.gossip_port),
                tags=self._tags({NODE_TAG: self._node_id}),
                keys=_keys(settings),
                snapshot=self._snapshot,
                endpoints=True,
                boot_epoch=self._wall_ms() // 1000,
            ),
            self._door.make_network,
            source=random.Random(secrets.randbits(64)),
            nonce=secrets.token_bytes,
            log=lambda level, line: log.debug(line, extra={"level": level}),
        )
        agent.listeners.append(self._heard)
        try:
            await agent.start()
            await self._serve_rpc(agent)
        except OSError as error:
            await agent.close()
            self._fail(f"cannot gossip on {self._data_address} port {settings.gossip_port}: {error.strerror or error}")
            asyncio.get_running_loop().call_later(RETRY_S, self._news.set)
            return False
        self.agent, self.error, self._seeds = agent, "", frozenset()
        self._keys = self._keys_before = self._ring = _keys(settings)
        log.info("takes part in gossip", extra={"gossip_name": agent.settings.name})
        return True

    async def _serve_rpc(self, agent: Agent) -> None:
        await agent.serve_rpc(str(self._door.rpc_path), self._door.rpc_key)
        if self._door.rpc_listen:
            await agent.serve_rpc(self._door.rpc_listen, self._door.rpc_key)

    def _fail(self, sentence: str) -> None:
        if sentence != self.error:
            log.warning("not in gossip", extra={"reason": sentence})
        self.error = sentence

    def _tags(self, before: Mapping[str, str]) -> dict[str, str]:
        """With what this node is as a manager; what operators set by Serf's RPC stays."""
        kept = {tag: value for tag, value in before.items() if tag != MANAGER_TAG}
        return kept | ({MANAGER_TAG: self._manager} if self._manager else {})

    def _name(self, me: Peer) -> str:
        """The node's name; with its number if an older node has that name, since gossip's names are unique."""
        others = (p for p in self._assignments.of("peer", Peer) if p.name == me.name and p.number < me.number)
        return f"{me.name}-{me.number}" if any(others) else me.name

    def _tell(self) -> None:
        """Bring gossip up to what the managers and the tasks say."""
        assert self.agent is not None
        agent, settings = self.agent, self._assignments.settings()
        if settings is not None and settings.gossip_keys:
            self._change_keys(agent, _keys(settings))
        self._say_where(agent)
        port = settings.gossip_port if settings is not None else 0
        peers = self._assignments.of("peer", Peer)
        seeds = frozenset(Address(p.data_address, port) for p in peers if p.data_address and p.node_id != self._node_id)
        if seeds - self._seeds:
            agent.membership.join(sorted(seeds - self._seeds), asyncio.get_running_loop().time())
        self._seeds = seeds
        try:
            agent.set_local_endpoints(dict(self._served()))
        except EndpointError as error:
            self._fail(str(error))

    def _say_where(self, agent: Agent) -> None:
        tags = self._tags(agent.tags())
        if tags == dict(agent.tags()):
            return
        try:
            agent.set_tags(tags)
        except Refused as error:  # operators have set so many that there is no room
            self._fail(f"cannot say in gossip that this node is a manager: {error}")

    def _change_keys(self, agent: Agent, wanted: tuple[bytes, ...]) -> None:
        """Follow the managers' keys in steps. What operators do by Serf's RPC stays until the managers want another."""
        loop = asyncio.get_running_loop()
        if wanted != self._keys:
            self._keys_before, self._keys, self._keys_changed_s = self._ring, wanted, loop.time()
        ring, step_s = handover(self._keys_before, wanted, loop.time() - self._keys_changed_s)
        if step_s is not None and self._keys_changed_s + step_s > self._keys_step_s:
            self._keys_step_s = self._keys_changed_s + step_s
            loop.call_at(self._keys_step_s + EARLY_S, self._news.set)
        if ring == self._ring:
            return
        try:
            agent.set_keys(ring)
        except Refused as error:
            self._fail(f"cannot take over the gossip keys: {error}")
            return
        self._ring = ring

    def _served(self) -> list[tuple[str, TaskState]]:
        return [
            (task_id, TaskState(Health.DRAINING if task.draining else Health.READY))
            for task_id, task in sorted(self._tasks.items())
            if task.state == ControlState.RUNNING
        ]

    def _heard(self, event: object) -> None:
        if self._book.receive(event):
            self._changed()


def _keys(settings: Settings) -> tuple[bytes, ...]:
    return tuple(base64.b64decode(key) for key in settings.gossip_keys)
