"""Worlds of the embedded Raft: one manager alone, and three over TCP on loopback, each pair through proxies.

Three managers need each other, but many tests open one only. So those that are not open are run by the world itself, as
*stand-ins*: they vote, but never campaign, and hand over what leadership they are given.
"""

import asyncio
import contextlib
import errno
import random
from pathlib import Path

from control.quorum.backend import Network, RaftBackend
from control.quorum.seat import Seat, found, write_seat
from control.raft.configuration import Configuration, Member
from control.raft.ready import Options, bootstrap
from control.store.backend import Backend
from control.store.disk import RealDisk
from control.store.errors import StoreError
from control.store.journal import Journal
from control.transport.service import listening
from tests.control.conformance.disk import FaultyDisk
from tests.control.conformance.proxy import Proxy
from tests.ports import free_port

SEGMENT_BYTES = 4 * 1024 * 1024
FAST = Options(tick_s=0.03)  # elections take half a second to one
NOBODY = "127.0.0.1:9"  # said to be listened at: the others shall come through their proxies


class AloneWorld:
    can = frozenset({"kill", "break"})
    managers = 1
    limit = 1 << 20

    def __init__(self, directory: Path, etcd) -> None:
        self.directory = directory / "store"
        self.disk: FaultyDisk | None = None

    async def open(self, manager: int = 0) -> Backend:
        if not self.directory.exists():
            await found(self.directory, "c1", "n0")
        self.disk = FaultyDisk(self.directory)
        return RaftBackend(self.directory, "c1", "n0", disk=self.disk, log_limit_bytes=self.limit)

    def child(self, manager: int) -> list[str]:
        return ["raft", str(self.directory), str(self.limit)]

    def ruin(self, manager: int) -> None:
        self.disk.code = errno.EIO

    async def stop(self) -> None:
        pass


class AloneCompactingWorld(AloneWorld):
    limit = 600


class Never(random.Random):
    """Draws election timeouts that never end."""

    def randrange(self, *_):
        return 1 << 40


class Opened(RaftBackend):
    """A stand-in takes over when it is closed."""

    world: "RaftWorld"
    number: int

    def close(self):
        first = self._closing is None
        closing = super().close()
        if first:
            self.world.closed(self.number, closing)
        return closing


class RaftWorld:
    can = frozenset({"several", "cut", "forget"})
    managers = 3

    def __init__(self, directory: Path, etcd) -> None:
        self.directory = directory
        self.proxies: dict[tuple[int, int], Proxy] = {}
        self.ports: list[int] = []
        self.open_ones: dict[int, Opened] = {}
        self.stand_ins: dict[int, RaftBackend] = {}
        self.tasks: set[asyncio.Task] = set()
        self.locks = [asyncio.Lock() for _ in range(self.managers)]
        self.ended = False

    # --- making

    async def begin(self) -> None:
        members = tuple(Member(f"n{i}.{i + 1}", voter=True) for i in range(self.managers))
        begin = bootstrap(Configuration(members, joined=self.managers))
        for i in range(self.managers):
            self.ports.append(free_port())
            disk = RealDisk(self.directory / f"n{i}")
            journal, _ = await Journal.open(disk, "c1", segment_bytes=SEGMENT_BYTES)
            await journal.append(begin.hard_state, begin.entries)
            write_seat(disk, Seat(f"n{i}.{i + 1}", 0))
            await journal.close()
        for i in range(self.managers):
            for j in range(self.managers):
                if i != j:
                    self.proxies[i, j] = Proxy(("127.0.0.1", self.ports[j]))
                    await self.proxies[i, j].start()
        self.spawn(self.hand_over())

    def spawn(self, job) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self.tasks.add(task)

    def make(self, cls, i: int, rng: random.Random):
        peers = {f"n{j}": self.proxies[i, j].address for j in range(self.managers) if i != j}
        return cls(
            self.directory / f"n{i}",
            "c1",
            f"n{i}",
            network=Network(listening("127.0.0.1", self.ports[i]), advertise=NOBODY),
            peers=peers,
            rng=rng,
            options=FAST,
            keep_entries=0,
            segment_bytes=SEGMENT_BYTES,
        )

    async def stand_in(self, i: int) -> None:
        async with self.locks[i]:
            if i not in self.open_ones and not self.ended:
                await self.begin_stand_in(i)

    async def begin_stand_in(self, i: int) -> None:
        backend = self.make(RaftBackend, i, Never(i))
        self.stand_ins[i] = backend
        image = await backend.load()
        backend.watch(image.version, lambda delivery: None)

    async def hand_over(self) -> None:
        while not self.ended:
            for backend in tuple(self.stand_ins.values()):
                for i in tuple(self.open_ones):
                    if backend.status().role == "leader" and i in self.open_ones:
                        with contextlib.suppress(StoreError):
                            await backend.transfer(f"n{i}")
            await asyncio.sleep(0.02)

    # --- what tests do

    async def open(self, manager: int = 0) -> Backend:
        if not self.proxies:
            await self.begin()
            for i in range(self.managers):
                if i != manager:
                    await self.stand_in(i)
        async with self.locks[manager]:
            backend = self.stand_ins.pop(manager, None)
            if backend is not None:
                await backend.close()
            opened = self.make(Opened, manager, random.Random())
            opened.world, opened.number = self, manager
            self.open_ones[manager] = opened
            return opened

    def closed(self, number: int, closing: asyncio.Future) -> None:
        self.open_ones.pop(number, None)

        async def replace() -> None:
            await closing
            await self.stand_in(number)

        self.spawn(replace())

    def pairs(self, manager: int) -> list[Proxy]:
        return [proxy for pair, proxy in self.proxies.items() if manager in pair]

    def cut(self, manager: int) -> None:
        for proxy in self.pairs(manager):
            proxy.cut()

    def heal(self, manager: int) -> None:
        for proxy in self.pairs(manager):
            proxy.heal()

    def drop(self, manager: int) -> None:
        for proxy in self.pairs(manager):
            proxy.drop()

    async def forget_history(self) -> None:
        for backend in (*self.open_ones.values(), *self.stand_ins.values()):
            snapshots, core = backend._engine.snapshots, backend._engine.core
            index = core.applied
            async with asyncio.timeout(20):
                while core.first_index <= index:
                    snapshots.save()
                    await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.ended = True
        for proxy in self.proxies.values():
            proxy.heal()
        for backend in (*tuple(self.open_ones.values()), *tuple(self.stand_ins.values())):
            await backend.close()
        for task in self.tasks:
            await task
        for proxy in self.proxies.values():
            await proxy.stop()
