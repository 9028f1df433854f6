"""What the conformance suite needs of a backend: a world that makes it, and can be cruel to it.

A new backend joins with one class below and its name in `WORLDS`. `can` says which cruelties it knows:

    kill       `child(i)` is a command that runs manager i as a process of its own (see child.py), to be killed
    several    there are three managers; `open(i)` gives each its backend
    cut        `cut(i)` takes manager i's contact with the others (or what keeps the state), `heal(i)` gives it back,
               `drop(i)` breaks its connections, so that what is under way on them does not arrive later
    forget     `forget_history()` makes everybody who is behind get the whole state instead of the commits
    refuse     `refuse(i)` makes the next write of manager i certainly fail, `accept(i)` ends that
    break      `ruin(i)` makes manager i's backend fail for good
"""

import asyncio
import os
from pathlib import Path
from typing import Protocol

from control.etcd.backend import EtcdBackend
from control.etcd.url import EtcdOptions
from control.store.backend import Backend
from control.store.fake import FakeBackend
from tests.control.conformance.proxy import Proxy
from tests.control.conformance.raft import AloneCompactingWorld, AloneWorld, RaftWorld
from tests.control.etcd.server import Etcd


class World(Protocol):
    can: frozenset[str]
    managers: int

    async def open(self, manager: int = 0) -> Backend:
        """A new backend object of a manager, on the state that there is. The one before was closed."""

    async def stop(self) -> None:
        """The end of the test."""


# --- one manager ----------------------------------------------------------------------------------------------------


class FakeWorld:
    can = frozenset({"refuse", "break"})
    managers = 1

    def __init__(self, directory: Path, etcd) -> None:
        self.backend: FakeBackend | None = None

    async def open(self, manager: int = 0) -> Backend:
        if self.backend is None:
            self.backend = FakeBackend()
        else:
            self.backend.term += 1
        return self.backend

    def refuse(self, manager: int) -> None:
        self.backend.next_outcomes("refused")

    def accept(self, manager: int) -> None:
        pass

    def ruin(self, manager: int) -> None:
        self.backend.next_outcomes("failed")

    async def stop(self) -> None:
        pass


# --- etcd -----------------------------------------------------------------------------------------------------------


class EtcdWorld:
    can = frozenset({"kill", "several", "cut", "forget"})
    managers = 3
    ttl_s = 2
    count = 0

    def __init__(self, directory: Path, etcd: Etcd) -> None:
        EtcdWorld.count += 1
        self.etcd, self.prefix = etcd, f"/test{os.getpid()}-{EtcdWorld.count}"
        self.proxies: dict[int, Proxy] = {}
        self.endpoints: dict[int, str] = {}
        self.backends: list[EtcdBackend] = []

    async def open(self, manager: int = 0) -> Backend:
        if manager not in self.proxies:
            self.proxies[manager] = Proxy(("127.0.0.1", self.etcd.clients[manager % len(self.etcd.clients)]))
            self.endpoints[manager] = await self.proxies[manager].start()
        options = EtcdOptions((self.endpoints[manager],), self.prefix, ttl_s=self.ttl_s)
        backend = EtcdBackend(options, "c1", f"n{manager}")
        self.backends.append(backend)
        return backend

    def child(self, manager: int) -> list[str]:
        return ["etcd", ",".join(self.etcd.endpoints), self.prefix, str(self.ttl_s), f"n{manager}"]

    def cut(self, manager: int) -> None:
        self.proxies[manager].cut()

    def heal(self, manager: int) -> None:
        self.proxies[manager].heal()

    def drop(self, manager: int) -> None:
        self.proxies[manager].drop()

    async def forget_history(self) -> None:
        await asyncio.to_thread(self.etcd.compact)

    async def stop(self) -> None:
        for proxy in self.proxies.values():
            proxy.heal()
        for backend in self.backends:
            await backend.close()
        for proxy in self.proxies.values():
            await proxy.stop()


WORLDS = {
    "fake": FakeWorld,
    "raft, alone": AloneWorld,
    "raft, alone, compacting": AloneCompactingWorld,
    "raft": RaftWorld,
    "etcd": EtcdWorld,
}
