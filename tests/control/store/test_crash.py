"""Power failures at every operation on the disk: nothing acknowledged is ever lost, nothing half is ever read.

A script of all that a journal does (appends of all sizes, a conflicting suffix, terms and votes, new segments, its own
snapshots, one from another manager, compaction) is cut at each write, sync, rename, removal in turn.
"""

import asyncio
import itertools
from collections.abc import Iterator
from copy import deepcopy

import pytest

from control.store.errors import BackendFailed
from control.store.journal import Journal
from control.store.log import Log
from control.store.record import Entry, HardState, SnapshotMeta
from control.store.segments import Segments
from control.store.wal import Batch
from tests.control.store.simdisk import FATES, Inline, Late, PowerFailure, SimDisk

SEGMENT = 4096
NAMES = ("lost", "kept", "some")


def entry(index: int, term: int, size: int) -> Entry:
    return Entry(index, term, 0, bytes([65 + index % 60]) * size)


def run_of(first: int, last: int, term: int, size: int) -> tuple[Entry, ...]:
    return tuple(entry(i, term, size + i) for i in range(first, last + 1))


def chunks_of(meta: SnapshotMeta) -> list[bytes]:
    return [f"{meta.index} {i} ".encode() * 90 for i in range(3)]


# Each step: batches that are appended together, or a snapshot of one's own and what to compact, or another's.
SCRIPT: list[tuple[str, object]] = [
    ("append", [Batch(HardState(1, "a", 0))]),
    ("append", [Batch(None, run_of(1, 3, 1, 20)), Batch(HardState(1, "a", 2), run_of(4, 4, 1, 700))]),
    ("append", [Batch(HardState(1, "a", 4), run_of(5, 8, 1, 300))]),
    ("append", [Batch(HardState(2, "", 5), run_of(6, 7, 2, 10))]),  # 6..8 of term 1 were never agreed upon
    ("append", [Batch(None, (entry(8, 2, 1500),)), Batch(None, (entry(9, 2, 1800),))]),
    ("snapshot", SnapshotMeta(7, 2, b"members")),
    ("append", [Batch(HardState(2, "", 9), (Entry(10, 2, 1, bytes(1400)),))]),  # sectors of nothing but zeros
    ("compact", 6),
    ("append", [Batch(HardState(3, "c", 9), run_of(11, 12, 3, 900))]),
    ("snapshot", SnapshotMeta(11, 3)),
    ("compact", 11),
    ("append", [Batch(HardState(3, "c", 12), run_of(13, 16, 3, 800))]),
    ("rotate", None),
    ("append", [Batch(None, run_of(17, 17, 3, 5000))]),  # larger than a segment
    ("install", SnapshotMeta(40, 5, b"from another")),
    ("append", [Batch(HardState(6, "b", 41), run_of(41, 44, 6, 500))]),
    ("snapshot", SnapshotMeta(42, 6)),
    ("compact", 42),
    ("append", [Batch(None, run_of(45, 48, 6, 900))]),
    ("snapshot", SnapshotMeta(46, 6)),
    ("compact", 46),
    ("append", [Batch(HardState(6, "b", 48), run_of(49, 49, 6, 30))]),
]


def _logs() -> tuple[list[Log], list[int]]:
    """The log after each change, and how many changes each step of the script ends with."""
    logs, ends = [Log()], []
    for what, detail in SCRIPT:
        match what:
            case "append":
                for batch in detail:
                    logs.append(deepcopy(logs[-1]))
                    assert logs[-1].apply(batch)
            case "snapshot" | "install":
                logs.append(deepcopy(logs[-1]))
                assert logs[-1].apply(Batch(snapshot=detail, replaces=what == "install"))
        ends.append(len(logs) - 1)
    return logs, ends


LOGS, ENDS = _logs()


async def opened(disk: SimDisk, helper: Late | None = None) -> tuple[Journal, Log]:
    threads: Iterator = iter([Inline(), helper or Inline()])
    journal, found = await Journal.open(disk, "c1", segment_bytes=SEGMENT, threads=lambda: next(threads))
    return journal, found.log


async def step(journal: Journal, what: str, detail) -> None:
    match what:
        case "append":
            futures = [journal.append(b.hard_state, b.entries) for b in detail]
            for future in futures:
                await future
        case "snapshot":
            await journal.save_snapshot(detail, chunks_of(detail))
        case "install":
            incoming = journal.receive_snapshot(detail)
            for i, chunk in enumerate(chunks_of(detail)):
                await incoming.write(i, chunk)
            await incoming.finish()
        case "rotate":
            await journal.rotate()
        case "compact":
            journal.compact(detail)
            await asyncio.sleep(0)


async def run(disk: SimDisk, helper: Late | None = None) -> tuple[int, int]:
    """Everything, until the end or the power failure. How many changes were acknowledged, and how many begun."""
    acknowledged = begun = 0
    journal = None
    try:
        if helper is None:
            journal, _ = await opened(disk)
        else:
            journal, _ = await opened(disk, helper)
        for (what, detail), end in zip(SCRIPT, ENDS, strict=True):
            begun = end
            if helper is None:
                await step(journal, what, detail)
            else:
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(step(journal, what, detail))
                    for _ in range(20):  # the helper comes when the writer has done much already
                        await asyncio.sleep(0)
                        if task.done():
                            break
                    while not task.done():
                        helper.run(1)
                        await asyncio.sleep(0)
            acknowledged = end
    except (PowerFailure, BackendFailed):
        assert disk.dead
    except BaseExceptionGroup as group:
        if not disk.dead or group.split((PowerFailure, BackendFailed))[1] is not None:
            raise
    if journal is not None:
        if helper is not None:
            helper.run()
        closing = journal.close()
        if helper is not None:
            helper.run()
        await closing
    return acknowledged, begun


def which(found: Log) -> int:
    """Which of the states of the run this is: the last one that it could be."""
    for number in reversed(range(len(LOGS))):
        log = LOGS[number]
        if log.hard_state != found.hard_state or log.last_index != found.last_index:
            continue
        if (log.snapshots[-1:]) != (found.snapshots[-1:]):
            continue
        low = max(log.base_index, found.base_index) + 1
        if log.entries(low, log.last_index + 1) == found.entries(low, found.last_index + 1):
            return number
    pytest.fail(f"no such state: {found.hard_state} {found.last_index} {found.snapshots}")


async def load(disk: SimDisk) -> int:
    """Open, check that it is one of the states, whole, and that it can be gone on from."""
    journal, log = await opened(disk)
    number = which(log)
    if log.snapshots:
        assert list(journal.snapshot_chunks(log.snapshots[-1])) == chunks_of(log.snapshots[-1])
        assert log.base_index <= log.snapshots[-1].index
        low = log.base_index + 1
        journal.entries(low, journal.last_index + 1)
    else:
        assert log.base_index == 0
    await journal.close()
    assert not any(name.endswith(".new") and "recycled" not in name for name in disk.files), disk.files.keys()
    return number


async def go_on(disk: SimDisk, number: int) -> None:
    """The next step of the script works on what is there, and lasts."""
    journal, _ = await opened(disk)
    for (what, detail), end in zip(SCRIPT, ENDS, strict=True):
        if what == "append" and end - len(detail) >= number:
            if end - len(detail) == number:
                await step(journal, what, detail)
                number = end
            break
    await journal.close()
    assert await load(disk.after("lost", names="lost")) >= number


async def operations(helper: Late | None = None) -> int:
    disk = SimDisk()
    assert await run(disk, helper) == (len(LOGS) - 1,) * 2
    kinds = {what.split("-")[0] for what in disk.trace}
    assert {"write", "sync", "sync directory", "rename wal", "rename snapshot", "rename spare"} <= kinds
    assert {"remove snapshot", "rename recycled.new"} <= kinds
    assert await load(disk.after("lost", names="lost")) == len(LOGS) - 1
    return disk.operations


@pytest.mark.parametrize("late", [False, True])
async def test_power_failure_at_every_operation(late):
    points = await operations(Late() if late else None)
    assert points > 100
    for fail_at in range(points):
        disk = SimDisk(fail_at=fail_at)
        acknowledged, begun = await run(disk, Late() if late else None)
        assert disk.dead
        for fate, names in itertools.product(FATES, NAMES):
            found = disk.after(fate, names=names)
            number = await load(found)
            assert acknowledged <= number <= begun, (fail_at, fate, names, disk.trace[-6:])
            await go_on(found, number)


async def test_power_failure_while_recovering_from_a_power_failure():
    for fail_at in range(0, await operations(), 3):
        first = SimDisk(fail_at=fail_at)
        acknowledged, begun = await run(first)
        for fate in ("kept", "front", "random"):
            for again in itertools.count():
                second = first.after(fate, names="kept")
                second.fail_at = again
                try:
                    journal, _ = await opened(second)
                    await journal.close()
                except (PowerFailure, BackendFailed):
                    pass
                if not second.dead:
                    break
                for last_fate, names in (("lost", "lost"), ("kept", "kept"), ("random", "some")):
                    number = await load(second.after(last_fate, names=names))
                    assert acknowledged <= number <= begun


async def test_what_was_read_after_a_kill_survives_a_power_failure_right_after():
    """The process dies between write and sync; the next one reads the entry from memory, and acts on it."""
    read_unsynced = 0
    for fail_at in range(await operations()):
        disk = SimDisk(fail_at=fail_at)
        acknowledged, _ = await run(disk)
        killed = disk.killed()
        number = await load(killed)
        read_unsynced += number > acknowledged
        assert await load(killed.after("lost", names="lost")) >= number
    assert read_unsynced > 3


@pytest.mark.parametrize("lie", ["sync", "early", "no marker order"])
async def test_a_test_of_the_tests(lie, monkeypatch):
    """Without syncs, with an answer before the sync, with a snapshot named before it is safe: it must be noticed."""
    append = Segments.append

    def before_the_sync(self, batch, tip):
        disk, written = self._disk, self._disk.operations
        try:
            append(self, batch, tip)
        except PowerFailure:
            if disk.operations == written + 1:  # the write was done, the sync was not
                return
            raise

    if lie == "early":
        monkeypatch.setattr(Segments, "append", before_the_sync)
    if lie == "no marker order":
        monkeypatch.setattr("control.store.snapshots.SnapshotWriter.finish", _careless)
    caught = 0
    for fail_at in range(10, await operations() if lie == "early" else 120):
        disk = SimDisk(fail_at=fail_at)
        disk.lie = lie == "sync"
        acknowledged, _ = await run(disk)
        try:
            caught += await load(disk.after("lost", names="kept")) < acknowledged
        except (BackendFailed, pytest.fail.Exception, AssertionError):
            caught += 1
    assert caught > 3


def _careless(self) -> None:
    """A snapshot under its name, but not synced."""
    self._disk.rename(self._temporary, f"snapshot-{self._meta.index:016d}")
    self._handle = None
