"""How a store of each kind is opened for the benchmarks, its followers included, and closed again."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from control.quorum.backend import OPTIONS, Network, RaftBackend
from control.quorum.seat import found
from control.store.backend import Backend
from control.store.store import Store
from control.transport.service import listening

FOLLOWERS = 2
# Elections after ten seconds instead of one and a half: the machine has other work, all of this shares one core of it,
# and what is measured is not who leads. Costs and saves nothing otherwise.
PATIENT = replace(OPTIONS, election_ticks=100)

SWITCH_INTERVAL_S = 0.0005  # as mesh.daemon.main has it, which would bring all of the daemon with it


@dataclass
class Opened:
    store: Store
    files: Path  # of the manager in this process
    followers: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def close(self) -> None:
        await self.store.close()
        for process in self.followers:
            process.stdin.close()
            await process.wait()


def _store(backend: Backend) -> Store:
    return Store(backend, lambda: time.time_ns() // 1_000_000)


async def alone(directory: Path) -> Opened:
    """Raft with one manager."""
    if not directory.exists():
        await found(directory, "bench", "n0")
    opened = Opened(_store(RaftBackend(directory, "bench", "n0")), directory)
    await opened.store.open()
    return opened


async def raft(directory: Path) -> Opened:
    """Raft with three managers: this process leads, the followers have processes and stores of their own."""
    mine = directory / "n0"
    if mine.exists():  # again, without the others: for the time that opening takes
        opened = Opened(_store(RaftBackend(mine, "bench", "n0")), mine)
        await opened.store.open()
        return opened
    address = await asyncio.to_thread(_free_address)
    await found(mine, "bench", "n0", address=address)
    host, port = address.split(":")
    network = Network(listening(host, int(port)), advertise=address)
    backend = RaftBackend(mine, "bench", "n0", network=network, options=PATIENT)
    opened = Opened(_store(backend), mine)
    await opened.store.open()
    await opened.store.leading()
    for number in range(1, FOLLOWERS + 1):
        node, where = f"n{number}", await asyncio.to_thread(_free_address)
        seat = await backend.add_learner(node, where)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.store.follower",
            str(directory / node), node, msgspec.json.encode(seat).decode(), where.split(":")[1], address,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        opened.followers.append(process)
        assert await process.stdout.readline() == b"ready\n"
    while not all(member.voter for member in backend.members()):
        await asyncio.sleep(0.05)
    return opened


def _free_address() -> str:
    sock = listening("127.0.0.1", 0)
    try:
        return f"127.0.0.1:{sock.getsockname()[1]}"
    finally:
        sock.close()


KINDS: dict[str, Callable] = {"alone": alone, "raft": raft}
