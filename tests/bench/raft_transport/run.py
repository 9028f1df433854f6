"""How many small messages a second two transports in one process, on one core, bring across loopback.

taskset -c 1 .venv/bin/python -m tests.bench.raft_transport.run
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.control.transport.twins import Manager

MESSAGES = 300_000
AHEAD = 2_000  # sent and not received: a pipeline that is full, and queues that are not


async def run(data: bytes, count: int, *, urgent: bool) -> float:
    """Messages a second, sending and receiving together."""
    with tempfile.TemporaryDirectory() as directory:
        a, b = Manager(Path(directory), "a"), Manager(Path(directory), "b")
        a.transport.set_peers({"b": b.address})
        await a.connected("b")
        ahead = min(AHEAD, 900) if urgent else min(AHEAD, 16_000_000 // (len(data) + 1))
        began, sent = time.perf_counter(), 0
        while len(b.notes) < count:
            while sent < count and sent - len(b.notes) < ahead:
                assert a.note("b", sent, data, urgent=urgent)
                sent += 1
            await asyncio.sleep(0)
        took = time.perf_counter() - began
        assert [n.number for n in b.notes] == list(range(count))
        await a.stop()
        await b.stop()
    return count / took


async def heartbeats(load: bytes) -> tuple[float, float]:
    """p50 and p99 of a heartbeat's way, in ms, while appends take all that there is."""
    with tempfile.TemporaryDirectory() as directory:
        a, b = Manager(Path(directory), "a"), Manager(Path(directory), "b")
        a.transport.set_peers({"b": b.address})
        await a.connected("b")
        ways = []
        for number in range(200):
            for _ in range(8):
                a.note("b", 0, load)
            sent = time.perf_counter()
            a.note("b", number, urgent=True)
            while not any(n.urgent and n.number == number for n in b.notes[-50:]):
                await asyncio.sleep(0)
            ways.append((time.perf_counter() - sent) * 1000)
            b.notes.clear()
            await asyncio.sleep(0.002)
        await a.stop()
        await b.stop()
    ways.sort()
    return ways[len(ways) // 2], ways[int(len(ways) * 0.99)]


async def main() -> None:
    print(f"python {sys.version.split()[0]}")
    print(f"urgent, empty:        {await run(b'', MESSAGES, urgent=True):10,.0f} messages/s")
    print(f"bulk, 100 bytes:      {await run(bytes(100), MESSAGES, urgent=False):10,.0f} messages/s")
    print(f"bulk, 1 KiB:          {await run(bytes(1024), MESSAGES // 3, urgent=False):10,.0f} messages/s")
    print(f"bulk, 64 KiB:         {await run(bytes(65_536), 10_000, urgent=False) / 16:10,.0f} MiB/s")
    p50, p99 = await heartbeats(bytes(1_500_000))
    print(f"a heartbeat beside 12 MB of appends: p50 {p50:.2f} ms, p99 {p99:.2f} ms")


if __name__ == "__main__":
    asyncio.run(main())
