"""The journal as Raft uses it: anything appended in any order is there again after any restart."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.store.disk import RealDisk
from control.store.errors import BackendFailed, Refused, StoreClosed
from control.store.journal import DiskLow, DiskRecovered, Journal, JournalFailed
from control.store.log import Log
from control.store.record import Entry, HardState, SnapshotMeta
from control.store.wal import Batch
from tests.control.store.simdisk import Inline, SimDisk

SEGMENT = 4096


async def opened(disk) -> tuple[Journal, Log]:
    journal, found = await Journal.open(disk, "c1", segment_bytes=SEGMENT, threads=Inline)
    return journal, found.log


# --- any history --------------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 4), st.integers(1, 5), st.integers(0, 1500)),
        st.tuples(st.just("again"), st.integers(0, 4)),
        st.tuples(st.just("commit"), st.integers(0, 5)),
        st.tuples(st.just("snapshot"), st.integers(0, 3)),
        st.tuples(st.just("compact"), st.integers(0, 3)),
        st.tuples(st.just("install"), st.integers(1, 30)),
        st.tuples(st.just("rotate")),
        st.tuples(st.just("reopen")),
    ),
    max_size=40,
)


@given(steps)
@settings(max_examples=100, deadline=None)
def test_any_history_is_there_after_a_restart(history):
    asyncio.run(_history(history))


async def _history(history) -> None:
    disk = SimDisk()
    journal, _ = await opened(disk)
    model: dict[int, Entry] = {}
    term, commit, last, base = 1, 0, 0, 0
    newest: SnapshotMeta | None = None
    for what, *detail in history:
        match what:
            case "append":  # over the last `back` entries, of a new term
                back, count, size = detail
                first = max(last - back, commit) + 1
                term += back > 0
                entries = [Entry(i, term, 0, bytes(size) + bytes([i % 256])) for i in range(first, first + count)]
                await journal.append(HardState(term, "v", commit), entries)
                for index in range(first, last + 1):
                    del model[index]
                model.update((e.index, e) for e in entries)
                last = first + count - 1
            case "again":  # a message that came twice: nothing behind it may be lost
                entries = [model[i] for i in range(max(last - detail[0], base) + 1, last + 1)]
                await journal.append(None, entries[:2])
            case "commit":
                commit = min(commit + detail[0], last)
                await journal.append(HardState(term, "v", commit), must_sync=True)
            case "snapshot":
                index = commit - detail[0]
                if index > (newest.index if newest else 0) and index in model:
                    newest = SnapshotMeta(index, model[index].term)
                    await journal.save_snapshot(newest, [b"state %d" % index])
            case "compact" if newest is not None and newest.index - detail[0] > journal.first_index:
                journal.compact(newest.index - detail[0])
            case "install":
                term += 1
                last = commit = base = last + detail[0]
                newest = SnapshotMeta(last, term)
                incoming = journal.receive_snapshot(newest)
                await incoming.write(0, b"state %d" % last)
                await incoming.finish()
                await journal.append(HardState(term, "v", commit))
                model.clear()
            case "rotate":
                await journal.rotate()
            case "reopen":
                await journal.close()
                journal, _ = await opened(disk)
        base = journal.first_index - 1
        assert journal.last_index == last
        assert journal.entries(base + 1, last + 1) == [model[i] for i in range(base + 1, last + 1)]
        assert journal.snapshot == newest
    await journal.close()
    again, found = await opened(disk.after("lost", names="lost"))
    assert found.hard_state == journal.hard_state
    assert found.hard_state.commit == commit
    assert (again.last_index, again.snapshot) == (last, newest)
    if newest is not None:
        assert list(again.snapshot_chunks(newest)) == [b"state %d" % newest.index]
        assert again.first_index <= newest.index + 1
        assert again.term(newest.index) == newest.term
    else:
        assert again.first_index == 1
    low = max(again.first_index, base + 1)
    assert again.entries(low, last + 1) == [model[i] for i in range(low, last + 1)]
    await again.close()


# --- what it refuses ----------------------------------------------------------------------------------------------


async def test_gaps_and_changes_of_what_is_agreed_are_refused():
    journal, _ = await opened(SimDisk())
    await journal.append(HardState(1, "a", 2), [Entry(i, 1, 0, b"") for i in (1, 2, 3)])
    with pytest.raises(Refused):
        await journal.append(None, [Entry(5, 1, 0, b"")])
    assert journal.last_index == 3
    events = []
    journal.listen(events.append)
    with pytest.raises(BackendFailed, match="gap in the log"):
        await journal.append(None, [Entry(2, 2, 0, b"")])
    await asyncio.sleep(0)
    assert [type(e) for e in events] == [JournalFailed]
    with pytest.raises(BackendFailed):
        await journal.append(HardState(2, "", 2))
    await journal.close()
    log = Log()
    assert log.apply(Batch(HardState(1, "", 1), (Entry(1, 1, 0, b""),)))
    assert not log.apply(Batch(None, (Entry(1, 2, 0, b""),)))


async def test_a_commit_index_may_wait_for_the_next_append():
    disk = SimDisk()
    journal, _ = await opened(disk)
    await journal.append(HardState(1, "a", 0), [Entry(1, 1, 0, b"")])
    before = disk.operations
    await journal.append(HardState(1, "a", 1), must_sync=False)
    assert disk.operations == before
    await journal.append(None, [Entry(2, 1, 0, b"")])
    await journal.close()
    _, found = await opened(disk.after("lost", names="lost"))
    assert found.hard_state == HardState(1, "a", 1)


async def test_chunks_of_another_manager_may_come_twice_and_not_at_all():
    disk = SimDisk()
    journal, _ = await opened(disk)
    await journal.append(HardState(1, "a", 0), [Entry(1, 1, 0, b"")])
    meta = SnapshotMeta(9, 2, b"members")
    incoming = journal.receive_snapshot(meta)
    await incoming.write(0, b"zero")
    await incoming.write(2, b"two")  # dropped: one is wanted
    await incoming.write(0, b"zero")
    assert incoming.next_chunk == 1
    incoming.abandon()
    assert not any(n.endswith(".new") and "snapshot" in n for n in disk.files)
    incoming = journal.receive_snapshot(meta)
    for number, chunk in enumerate((b"zero", b"one", b"two")):
        await incoming.write(number, chunk)
    await incoming.finish()
    assert (journal.first_index, journal.last_index, journal.hard_state.commit) == (10, 9, 9)
    assert list(journal.snapshot_chunks(meta)) == [b"zero", b"one", b"two"]
    with pytest.raises(Refused, match="a snapshot of entry 9 already"):
        await journal.save_snapshot(SnapshotMeta(9, 2), [])
    await journal.close()
    with pytest.raises(StoreClosed):
        await journal.append(HardState(3))


async def test_low_space_is_told_before_and_after(monkeypatch):
    monkeypatch.setattr("control.store.journal.SPACE_POLL_S", 0.01)
    disk = SimDisk()
    journal, _ = await opened(disk)
    events = []
    journal.listen(events.append)
    for free, kinds in ((10**6, [DiskLow]), (10**5, [DiskLow]), (10**8, [DiskLow]), (10**9, [DiskLow, DiskRecovered])):
        disk.free = free
        await asyncio.sleep(0.05)
        assert [type(e) for e in events] == kinds
        assert journal.low == (len(kinds) == 1)
    await journal.close()


# --- real processes and disks -------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from control.store.disk import RealDisk
from control.store.journal import Journal
from control.store.record import Entry, HardState, SnapshotMeta
from pathlib import Path

async def main(directory, start):
    journal, found = await Journal.open(RealDisk(Path(directory)), "c1", segment_bytes=32768)
    index = journal.last_index
    while True:
        batch = [Entry(index + i, start, 0, b"%d" % (index + i) * 40) for i in range(1, 8)]
        await journal.append(HardState(start, "a", index), batch)
        index += len(batch)
        print(index, flush=True)
        if index % 21 == 0 and (journal.snapshot is None or index > journal.snapshot.index + 60):
            await journal.save_snapshot(SnapshotMeta(index, start), (b"%d" % index * 500 for _ in range(20)))
            journal.compact(index)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_a_real_process_killed_at_any_time_loses_nothing_it_said(tmp_path):
    last = 0
    for round_ in range(1, 9):
        process = subprocess.Popen(  # noqa: ASYNC220 - the loop has nothing else to do
            [sys.executable, "-c", WRITER, str(tmp_path / "j"), str(round_)], stdout=subprocess.PIPE, text=True
        )
        try:
            for _ in range(3 + 7 * round_):
                line = process.stdout.readline()
                assert line, "the writer died by itself"
                last = int(line)
        finally:
            process.send_signal(signal.SIGKILL)
            rest, _ = process.communicate()
        last = int(rest.split()[-1]) if rest.endswith("\n") and rest.split() else last
        journal, _ = await Journal.open(RealDisk(tmp_path / "j"), "c1", segment_bytes=32768)
        assert last <= journal.last_index <= last + 14
        for entry in journal.entries(journal.first_index, journal.last_index + 1):
            assert entry.data == b"%d" % entry.index * 40
        if journal.snapshot is not None:
            assert b"".join(journal.snapshot_chunks(journal.snapshot)) == b"%d" % journal.snapshot.index * 10_000
        last = journal.last_index
        await journal.close()


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", f"meshd-{os.getpid()}", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.root
async def test_a_disk_that_is_really_full_stops_nothing_for_good(small_disk: Path, monkeypatch):
    monkeypatch.setattr("control.store.journal.SPACE_POLL_S", 0.02)
    monkeypatch.setattr("control.store.space.RESERVE_BYTES", 40_000)
    journal, _ = await Journal.open(RealDisk(small_disk / "j"), "c1", segment_bytes=32768)
    events = []
    journal.listen(events.append)
    await journal.append(HardState(1, "a", 0), [Entry(1, 1, 0, b"x" * 1000)])
    await asyncio.sleep(0.1)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    async with asyncio.timeout(10):
        while not any(isinstance(e, DiskLow) for e in events):
            await asyncio.sleep(0.01)
    index = 1
    refused = 0
    while refused < 3:  # the segment in use and the spare are still there
        try:
            await journal.append(None, [Entry(index + 1, 1, 0, b"x" * 1000)])
            index += 1
        except Refused as error:
            refused += 1
            assert "No space left on device; free some space" in str(error)  # noqa: PT017 - one of many
    assert index > 50
    with pytest.raises(Refused):
        await journal.save_snapshot(SnapshotMeta(index, 1), [b"y" * 100_000])
    await journal.close()
    journal, _ = await Journal.open(RealDisk(small_disk / "j"), "c1", segment_bytes=32768)  # full, and it starts
    journal.listen(events.append)
    assert journal.last_index == index
    filler.unlink()
    async with asyncio.timeout(10):
        while journal.low or not (small_disk / "j" / "spare").exists():
            await asyncio.sleep(0.01)
    await journal.append(None, [Entry(index + 1, 1, 0, b"x" * 1000)])
    await journal.save_snapshot(SnapshotMeta(index, 1), [b"y" * 10_000])
    await journal.close()
    journal, _ = await Journal.open(RealDisk(small_disk / "j"), "c1", segment_bytes=32768)
    assert (journal.last_index, journal.snapshot) == (index + 1, SnapshotMeta(index, 1))
    await journal.close()
