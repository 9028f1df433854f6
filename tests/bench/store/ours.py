"""Our side: a store on one of the backends, with its clients in the same process and on the same event loop.

`clusters` says how each is opened, with its followers in processes of their own. Prints one JSON object.

    python -m tests.bench.store.ours BACKEND DIRECTORY SECONDS OBJECTS
    python -m tests.bench.store.ours --restart BACKEND DIRECTORY
"""

import asyncio
import gc
import json
import os
import random
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from control.lifecycle import TaskState, Writer
from control.model import NetworkAttachment, ProcessSpec, Task, TaskAddress, TaskSpec, TaskStatus
from control.store.store import Store
from control.store.txn import Put
from tests.bench.store.clusters import KINDS, SWITCH_INTERVAL_S, Opened

CLIENTS = 100
BATCHERS = 20
# After the filling the followers make objects of 100,000 rows, a hundred at a time; a cluster has had them for long.
SETTLED_S = 25.0
TICK_S = 0.005  # seldom enough to cost nothing beside one commit at a time


def task(number: int, generation: int = 0) -> Task:
    """A task as a cluster has them: on a node, with an address, about 350 bytes."""
    return Task(
        id=f"{number:025d}",
        service_id=f"{number % 1000:025d}",
        service_name=f"service-{number % 1000}",
        slot=number // 1000 + 1,
        node_id=f"{number % 100:025d}",
        spec=TaskSpec(
            process=ProcessSpec(command=("/usr/bin/server", "--port", "8080"), env={"LEVEL": "info"}),
            networks=(NetworkAttachment(network_id="0" * 24 + "1"),),
        ),
        status=TaskStatus(state=TaskState.NEW, at_ms=generation, message="created"),
        addresses=(
            TaskAddress(network_id="0" * 24 + "1", address=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"),
        ),
    )


def rss_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def percentile(values: list[float], part: float) -> float:
    values = sorted(values)
    return values[min(int(len(values) * part), len(values) - 1)] * 1000 if values else 0.0


class Pauses:
    """How late the loop is, at worst: what a heartbeat would see.

    "busy" is the processor time that the loop took between two looks: what it would be late on a core of its own.
    """

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.busy: list[float] = []
        self.collections: list[float] = []
        self._began = 0.0

    async def run(self) -> None:
        gc.callbacks.append(self._collected)
        try:
            last, used = time.perf_counter(), time.thread_time()
            while True:
                await asyncio.sleep(TICK_S)
                now, now_used = time.perf_counter(), time.thread_time()
                self.gaps.append(now - last - TICK_S)
                self.busy.append(now_used - used)
                last, used = now, now_used
        finally:
            gc.callbacks.remove(self._collected)

    def _collected(self, phase: str, info: dict) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._began = now
        else:
            self.collections.append(now - self._began)

    def report(self) -> dict[str, float]:
        return {
            "pause_p99_ms": percentile(self.gaps, 0.99),
            "pause_max_ms": max(self.gaps, default=0) * 1000,
            "busy_max_ms": max(self.busy, default=0) * 1000,
            "gc_max_ms": max(self.collections, default=0) * 1000,
        }


def cpu_s(pids: Sequence[int]) -> float:
    """Processor time of other processes so far, user and system."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def load(opened: Opened, clients: int, batch: int, seconds: float, objects: range) -> dict[str, float]:
    """Clients that each change the status of `batch` tasks of their own at a time, one transaction after the other.

    "cpu_us_object" is of all managers, and of the clients, which are in the leader's process.
    """
    store, others = opened.store, [process.pid for process in opened.followers]
    latencies: list[float] = []
    pauses = Pauses()
    keys = [[f"{n:025d}" for n in objects[number::clients]] for number in range(clients)]
    end = time.perf_counter() + seconds

    async def client(mine: list[str]) -> None:
        place = random.Random(mine[0]).randrange(len(mine))
        while time.perf_counter() < end:
            before = time.perf_counter()
            view, status = store.view(), _status(place)
            puts = []
            for at in range(place, place + batch):
                found = view.get(Task, mine[at % len(mine)])
                assert found is not None
                puts.append(Put(msgspec.structs.replace(found, status=status)))
            place += batch
            await store.commit(puts, Writer.ORCHESTRATOR)
            latencies.append(time.perf_counter() - before)

    began, cpu = time.perf_counter(), time.process_time() + cpu_s(others)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(pauses.run())
        async with asyncio.TaskGroup() as work:
            for mine in keys:
                work.create_task(client(mine))
        watching.cancel()
    took, cpu = time.perf_counter() - began, time.process_time() + cpu_s(others) - cpu
    return {
        "txn_s": len(latencies) / took,
        "objects_s": len(latencies) * batch / took,
        "p50_ms": percentile(latencies, 0.5),
        "p99_ms": percentile(latencies, 0.99),
        "cpu_us_object": cpu / len(latencies) / batch * 1e6,
        **pauses.report(),
    }


def _status(generation: int) -> TaskStatus:
    """As agents and managers write: nearly all changes are those of a status."""
    return TaskStatus(state=TaskState.NEW, at_ms=generation, message="created")


async def measure(name: str, directory: Path, seconds: float, count: int) -> dict[str, object]:
    out: dict[str, object] = {}
    opened = await KINDS[name](directory / "small")
    store = opened.store
    small = range(20_000)
    await store.batch([Put(task(n)) for n in small], Writer.ORCHESTRATOR)
    for key, clients, batch in (
        ("seq", 1, 1),
        ("100 clients", CLIENTS, 1),
        ("10", CLIENTS, 10),
        ("200", BATCHERS, 200),
    ):
        out[key] = await load(opened, clients, batch, seconds, small)
    await opened.close()
    del store, opened
    gc.collect()  # a store of before is nothing that a manager has

    before_mib = rss_mib()
    opened = await KINDS[name](directory / "large")
    store = opened.store
    began = time.perf_counter()
    pauses = Pauses()
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(pauses.run())
        for first in range(0, count, 2000):
            await store.batch([Put(task(n)) for n in range(first, min(first + 2000, count))], Writer.ORCHESTRATOR)
        watching.cancel()
    out["filling"] = {"objects_s": count / (time.perf_counter() - began), **pauses.report()}
    await asyncio.sleep(SETTLED_S)
    large = range(count)
    out["large, 100 clients"] = await load(opened, CLIENTS, 1, seconds, large)
    out["large, 10"] = await load(opened, CLIENTS, 10, seconds, large)
    out["large, 200"] = await load(opened, BATCHERS, 200, seconds, large)
    out["memory_mib"] = rss_mib() - before_mib
    out["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out["snapshot"] = await _snapshot(store, opened.files)
    await opened.close()
    return out


async def _snapshot(store: Store, directory: Path) -> dict[str, float]:
    """Write until one more snapshot has been made, and look at the pauses meanwhile."""

    def newest() -> set[str]:
        return {p.name for p in directory.iterdir() if p.name.startswith("snapshot") and not p.name.endswith(".new")}

    before, pauses = newest(), Pauses()
    began = 0.0
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(pauses.run())
        number = 0
        while not newest() - before:
            if not began and any(p.name.endswith(".new") and p.name.startswith("snap") for p in directory.iterdir()):
                began = time.perf_counter()
            found = [store.view().get(Task, f"{n:025d}") for n in range(number, number + 100)]
            puts = [Put(msgspec.structs.replace(one, status=_status(number))) for one in found]
            await store.commit(puts, Writer.ORCHESTRATOR)
            number = (number + 100) % 10_000
        took = time.perf_counter() - began
        watching.cancel()
    name = max(newest())
    return {"seconds": took, "mib": (directory / name).stat().st_size / 2**20, **pauses.report()}


async def restart(name: str, directory: Path) -> dict[str, float]:
    """In a process of its own: everything is cold but the page cache."""
    before_mib, began = rss_mib(), time.perf_counter()
    opened = await KINDS[name](directory / "large")
    store = opened.store
    took = time.perf_counter() - began
    objects = len(store.view().all(Task))
    out = {"seconds": took, "objects": objects, "memory_mib": rss_mib() - before_mib}
    await opened.close()
    return out


if __name__ == "__main__":
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as the daemon does
    if sys.argv[1] == "--restart":
        print(json.dumps(asyncio.run(restart(sys.argv[2], Path(sys.argv[3])))))
    else:
        print(json.dumps(asyncio.run(measure(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))))
