"""Managers in one process, on loopback, with fast elections."""

import asyncio
import random
from pathlib import Path

from control.quorum.backend import Network, RaftBackend
from control.quorum.seat import enrol, found
from control.raft.ready import Options
from control.transport.service import listening
from tests.control.conformance.disk import FaultyDisk
from tests.control.conformance.seen import PATIENCE_S, Seen, opened

FAST = Options(tick_s=0.06)  # elections take one to two seconds: the disks of a busy machine hang for half of one
SEGMENT_BYTES = 1024 * 1024


class Lab:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.backends: dict[str, RaftBackend] = {}
        self.seen: dict[str, Seen] = {}
        self.disks: dict[str, FaultyDisk] = {}
        self.addresses: dict[str, str] = {}
        self.tls_of = lambda node: None

    def path(self, node: str) -> Path:
        return self.directory / node

    async def start(self, node: str, *, peers=None, **options) -> Seen:
        """A manager with the store that is there, at a new address."""
        sock = listening("127.0.0.1", 0)
        self.addresses[node] = f"127.0.0.1:{sock.getsockname()[1]}"
        self.disks[node] = FaultyDisk(self.path(node))
        backend = RaftBackend(
            self.path(node),
            "c1",
            node,
            network=Network(sock, advertise=self.addresses[node], tls=self.tls_of(node)),
            peers=peers,
            rng=random.Random(node),
            disk=self.disks[node],
            **{"options": FAST, "segment_bytes": SEGMENT_BYTES, **options},
        )
        self.backends[node] = backend
        self.seen[node] = await opened(backend)
        return self.seen[node]

    async def first(self, node: str = "a", **options) -> Seen:
        """The manager of a new cluster."""
        await found(self.path(node), "c1", node, segment_bytes=SEGMENT_BYTES)
        seen = await self.start(node, **options)
        await seen.leading()
        return seen

    async def join(self, leader: str, node: str, *, standby: bool = False, **options) -> Seen:
        """One more, promoted unless it stands by."""
        seat = await self.backends[leader].add_learner(node, standby=standby)
        await enrol(self.path(node), "c1", seat, segment_bytes=SEGMENT_BYTES)
        seen = await self.start(node, **options)
        await self.until(lambda: self.member(leader, node).voter is not standby)
        return seen

    async def three(self, **options) -> list[Seen]:
        """A cluster of three; the first leads."""
        return [await self.first(**options), await self.join("a", "b", **options), await self.join("a", "c", **options)]

    def member(self, at: str, node: str):
        return next(m for m in self.backends[at].members() if m.node_id == node)

    async def until(self, condition) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def leader(self, *nodes: str) -> str:
        """Which of these leads."""
        await self.until(lambda: any(self.seen[n].term is not None for n in nodes))
        return max((n for n in nodes if self.seen[n].term is not None), key=lambda n: self.seen[n].term)

    async def stop(self, *nodes: str) -> None:
        for node in nodes or tuple(self.backends):
            await self.backends.pop(node).close()

    @staticmethod
    async def in_thread(job, *arguments, **options):
        """For what is done offline, and blocks."""
        return await asyncio.to_thread(job, *arguments, **options)
