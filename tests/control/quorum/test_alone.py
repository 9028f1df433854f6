"""A manager that is alone, on a real directory: locks, other clusters, failing disks, damage, keys, compaction."""

import asyncio
import contextlib
import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from control.store import journal
from control.store.aesgcm import AesGcmSealer, Keys
from control.store.backend import Failed, Guard, Leading, Proposal
from control.store.disk import RealDisk
from control.store.errors import BackendFailed, Damaged, Refused, StateInUse, StoreError, WrongCluster
from control.store.record import RowChange
from control.store.segments import recorded_cluster
from control.store.snapshots import snapshot_name
from control.store.state import State
from tests.control.alone import alone

SEGMENT = 16 * 1024


class FaultyDisk(RealDisk):
    """The real one, until told otherwise."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, lock_wait_s=0.1)
        self.errors: dict[str, int] = {}  # operation -> errno
        self.only = ""  # of files whose name contains this
        self.opened: dict[int, str] = {}
        self.free: int | None = None
        self.named = threading.Event()  # a snapshot that has its name is kept waiting until this is set
        self.named.set()

    def _fail(self, operation: str, name: str) -> None:
        if operation in self.errors and self.only in name:
            raise OSError(self.errors[operation], os.strerror(self.errors[operation]))

    def open(self, name, *, create):
        if create:
            self._fail("create", name)
        handle = super().open(name, create=create)
        self.opened[handle] = name
        return handle

    def write(self, handle, data, offset):
        if "write" in self.errors and self.only in self.opened[handle]:
            super().write(handle, data[: len(data) // 2], offset)  # what there was space for
            self._fail("write", self.opened[handle])
        super().write(handle, data, offset)

    def rename(self, old, new):
        super().rename(old, new)
        if new.startswith("snapshot"):
            assert self.named.wait(60)

    def free_bytes(self):
        return self.free if self.free is not None else super().free_bytes()

    def sync(self, handle):
        self._fail("sync", self.opened[handle])
        super().sync(handle)

    def sync_directory(self):
        self._fail("sync directory", "")
        super().sync_directory()


class Log:
    """A log and who listens to it."""

    def __init__(self, directory: Path, limit: int = 1 << 20, cluster: str = "c1", ring=None) -> None:
        self.directory, self.cluster = directory, cluster
        self.disk = FaultyDisk(directory)
        self.options = {"disk": self.disk, "log_limit_bytes": limit, "keep_entries": 0, "ring": ring}
        self.rows = {}
        self.version = 0
        self.failed = []
        self._term = asyncio.get_running_loop().create_future()

    async def open(self) -> "Log":
        self.file = await alone(self.directory, self.cluster, segment_bytes=SEGMENT, **self.options)
        image = await self.file.load()
        self.rows = {row.id: row.blob for row in image.rows}
        self.version = image.version
        self.file.watch(image.version, self._deliver)
        self.term = await self._term
        return self

    def _deliver(self, delivery) -> None:
        match delivery:
            case Leading(term):
                self._term.set_result(term)
            case Failed(error):
                self.failed.append(error)
            case _:
                self.version = delivery.version

    def put(self, *names: str, size: int = 10):
        """One commit, on top of what is durable."""
        changes = tuple(RowChange("k", n, 0, b"x" * size) for n in names)
        return self.file.commit(Proposal(self.version + 1, changes), Guard(self.term))

    async def close(self) -> None:
        await self.file.close()


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "state" / "store"


# --- who may use a directory --------------------------------------------------------------------------------------


async def test_the_directory_is_made_for_its_owner_only(directory):
    log = await Log(directory).open()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in directory.iterdir()} == {0o600}
    await log.close()


async def test_one_user_at_a_time(directory):
    log = await Log(directory).open()
    with pytest.raises(StateInUse, match=rf"in use by another meshd \(process {os.getpid()}\)"):
        await Log(directory).open()
    await log.put("a")  # the first is not disturbed
    await log.close()
    again = await Log(directory).open()
    assert sorted(again.rows) == ["a"]
    await again.close()


async def test_a_killed_process_leaves_no_lock_behind(directory):
    code = f"""
import asyncio, os, signal
from pathlib import Path
from tests.control.alone import alone
async def main():
    await (await alone(Path({str(directory)!r}))).load()
    child = os.fork()
    if child == 0:
        os.close(1)
        os.close(2)
        os.execvp("sleep", ["sleep", "30"])  # a task that outlives the daemon
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    try:
        assert done.returncode == -9, done.stderr
        log = await alone(directory)  # may have to wait until the child has become the program
        await log.load()
        await log.close()
    finally:
        os.kill(int(done.stdout), 9)


async def test_the_state_of_another_cluster_is_refused_and_left_alone(directory):
    log = await Log(directory).open()
    await log.put("a")
    await log.close()
    with pytest.raises(WrongCluster) as caught:
        await Log(directory, cluster="c2").open()
    text = f'the state directory {directory} belongs to cluster "c1", not to "c2"'
    assert str(caught.value) == text + ": use another directory, or remove this one"
    assert recorded_cluster(RealDisk(directory)) == "c1"
    assert recorded_cluster(RealDisk(directory / "nothing")) is None
    assert recorded_cluster(RealDisk(directory.parent)) is None
    again = await Log(directory).open()
    assert sorted(again.rows) == ["a"]
    await again.close()


async def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BackendFailed, match=r"cannot use the state directory .*/file/store: Not a directory"):
        await Log(tmp_path / "file" / "store").open()


# --- full disks ---------------------------------------------------------------------------------------------------


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_end_while_a_write_is_half_there_for_want_of_space(directory):
    log = await Log(directory).open()
    await log.put("a")
    log.disk.errors["write"] = errno.ENOSPC
    waiting = log.put("b", size=3000)
    await until(lambda: "free some space" in log.file.status().message)
    await log.close()
    assert isinstance(waiting.exception(), StoreError)
    again = await Log(directory).open()
    assert sorted(again.rows) == ["a"]
    assert "were cut from the log" in again.file.status().message
    await again.put("c")
    await again.close()


@pytest.mark.parametrize("operation", ["create", "write"])
@pytest.mark.parametrize("what", ["spare", "wal-0000000002", "snapshot"])
async def test_without_space_the_reserve_lasts_a_while(directory, monkeypatch, operation, what):
    """No spare segment can be made, or no snapshot, or both: what was acknowledged stays, and it is over by itself."""
    monkeypatch.setattr(journal, "SPACE_POLL_S", 0.02)
    log = await Log(directory, limit=3000).open()
    await until(lambda: "spare" in names(directory))
    log.disk.errors[operation] = errno.ENOSPC
    log.disk.only = what
    done = 0
    last = log.put("a0", size=1000)
    while done < 40:
        await until(lambda last=last: last.done() or log.file._engine.full)
        if not last.done() or last.exception() is not None:
            break  # it waits, or is refused because there is little space
        done += 1
        last = log.put(f"a{done}", size=1000)
    assert done >= (14 if what != "snapshot" else 3), "the segment in use, until it is known that space is short"
    log.disk.errors.clear()
    with contextlib.suppress(Refused):
        await last
        done += 1
    for i in range(20):
        await until_taken(log, f"b{i}")
    await log.close()
    again = await Log(directory).open()
    assert len(again.rows) == done + 20
    await again.close()


async def until_taken(log: Log, name: str) -> None:
    """Put a row; that there was little space just before is over with the next look."""
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(Refused):
                await log.put(name, size=1000)
                return
            await asyncio.sleep(0.02)


# --- failing disks ------------------------------------------------------------------------------------------------


async def failed(log: Log, text: str) -> None:
    """Everybody is told, and nothing is taken any more."""
    assert [type(e) for e in log.failed] == [BackendFailed]
    assert text in str(log.failed[0])
    assert log.file.status().role == "failed"
    with pytest.raises(BackendFailed):
        await log.put("later")
    await log.close()


async def test_a_failed_sync_is_fatal(directory):
    log = await Log(directory).open()
    await log.put("a")
    await until(lambda: "spare" in names(directory))  # else its sync may be the one that fails
    log.disk.errors["sync"] = errno.EIO
    first, second = log.put("b"), log.file.commit(Proposal(3, ()), Guard(log.term))
    for future in (first, second):
        with pytest.raises(BackendFailed, match=r"cannot sync .*/wal-0000000001: Input/output error; meshd must stop"):
            await future
    log.disk.errors.clear()  # the next sync would claim success
    await failed(log, "cannot sync")
    again = await Log(directory).open()
    assert set(again.rows) in ({"a"}, {"a", "b"})
    await again.close()


async def test_another_failed_write_is_fatal(directory):
    log = await Log(directory).open()
    await until(lambda: "spare" in names(directory))
    log.disk.errors = {"write": errno.EIO}
    with pytest.raises(BackendFailed, match="Input/output error"):
        await log.put("a", size=4000)
    await failed(log, "Input/output error")
    again = await Log(directory).open()  # half a frame is there
    assert again.rows == {}
    assert "were cut from the log" in again.file.status().message
    await again.put("b")
    await again.close()


@pytest.mark.parametrize("what", ["spare", "snapshot"])
@pytest.mark.parametrize("operation", ["sync", "write", "sync directory"])
async def test_a_failure_beside_the_log_is_fatal(directory, operation, what):
    log = await Log(directory, limit=3000).open()
    await until(lambda: "spare" in names(directory))
    log.disk.errors[operation] = errno.EIO
    log.disk.only = what if operation != "sync directory" else ""
    for i in range(40):
        if not log.failed:
            with contextlib.suppress(BackendFailed):
                await log.put(f"a{i}", size=1000)
            await asyncio.sleep(0.002)  # a snapshot fails by itself
    version = log.version
    await failed(log, "Input/output error")
    again = await Log(directory).open()
    assert again.version >= version
    await again.close()


# --- damage -------------------------------------------------------------------------------------------------------


def whole_snapshots(directory: Path) -> list[str]:
    """Those that are not being written any more."""
    return [name for name in names(directory) if re.fullmatch(r"snapshot-\d+", name)]


async def used(directory: Path, ring=None) -> tuple[int, list[str], list[str]]:
    """A directory with two snapshots and several segments: how many rows, segments, snapshots."""
    log = await Log(directory, limit=9000, ring=ring).open()
    count = 0
    while len(whole_snapshots(directory)) < 2:
        await log.put(f"a{count}", size=900)
        count += 1
    for _ in range(3):
        await log.put(f"a{count}", size=900)
        count += 1
    await until(lambda: settled(log))
    await log.close()
    found = names(directory)
    snapshots = whole_snapshots(directory)
    return count, [n for n in found if n.startswith("wal")], snapshots


def settled(log: Log) -> bool:
    """No snapshot is being made, those that are there are those that the log speaks of, and no others."""
    spoken_of = [snapshot_name(meta.index) for meta in log.file._journal._log.snapshots]
    saving = log.file._engine.snapshots._saving
    return not saving and len(spoken_of) == 2 and whole_snapshots(log.directory) == spoken_of


async def test_a_snapshot_that_the_log_does_not_speak_of_yet_is_left_out(directory):
    """The end, in order or not, between its name and the log's word for it: what was there before is enough."""
    count, _, before = await used(directory)
    log = await Log(directory, limit=9000).open()
    log.disk.named.clear()
    while (third := whole_snapshots(directory)) == before:
        await log.put(f"a{count}", size=900)
        count += 1
    assert third[:2] == before
    closing = log.file.close()
    log.disk.named.set()
    await closing
    assert whole_snapshots(directory) == third
    again = await Log(directory).open()
    assert len(again.rows) == count
    assert again.file.status().message == ""
    assert whole_snapshots(directory) == before
    await again.close()


async def test_damage_anywhere_is_refused_or_harmless(directory):
    """A byte of each region of each file: never a row too few, and a message that says what to do."""
    count, segments, snapshots = await used(directory)
    assert len(segments) >= 2
    refused = expected = 0
    changed = False
    for name in (*segments, *snapshots):
        data = (directory / name).read_bytes()
        written = len(data.rstrip(b"\0"))
        places = {0, 5, 30, 33, 60, written - 1, *range(100, written, max(written // 12, 1))}
        for where in sorted(places):
            bad = bytearray(data)
            bad[where] ^= 0x10
            (directory / name).write_bytes(bad)
            log = Log(directory)
            try:
                await log.open()
            except Damaged as error:
                refused += name in str(error) and "meshd restore" in str(error) and "\n" not in str(error)
                expected += 1
                changed |= (directory / name).read_bytes() != bad
            else:
                assert len(log.rows) == count
                await log.close()
                assert name.startswith("snapshot")
            (directory / name).write_bytes(data)
            for other in snapshots:  # a bad one is removed when the other is enough
                if not (directory / other).exists():
                    left = f"{names(directory)}, {log.file.status()}"
                    pytest.fail(f"{other} is gone, though only {name} was damaged: {left}")
    assert refused == expected > 20
    assert not changed


async def test_a_bad_newest_snapshot_is_replaced_by_the_one_before_and_the_log(directory):
    count, _, (old, new) = await used(directory)
    data = bytearray((directory / new).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / new).write_bytes(data)
    log = await Log(directory).open()
    assert len(log.rows) == count
    assert f"{new} is damaged at byte" in log.file.status().message
    assert "the snapshot before it and the log were used instead" in log.file.status().message
    await log.close()
    (directory / old).unlink()
    with pytest.raises(Damaged, match=rf"{new} is missing, and the log alone is not enough"):
        await Log(directory).open()


@pytest.mark.parametrize("which", [0, -1])
async def test_a_missing_segment_is_refused(directory, which):
    count, segments, snapshots = await used(directory)
    if which == -1:
        for name in segments:
            (directory / name).unlink()
    else:
        (directory / segments[which]).unlink()
    if which == 0:  # needed only if the newest snapshot cannot be read
        log = await Log(directory).open()
        assert len(log.rows) == count
        await log.close()
        (directory / snapshots[1]).unlink()
    with pytest.raises(Damaged, match="is missing"):
        await Log(directory).open()


async def test_files_cannot_stand_in_for_each_other(directory):
    _, segments, snapshots = await used(directory)
    later = f"wal-{int(segments[-1][4:]) + 1:010d}"
    (directory / later).write_bytes((directory / segments[-1]).read_bytes())
    with pytest.raises(Damaged, match=f"{later} was segment"):
        await Log(directory).open()
    (directory / later).unlink()
    for name in snapshots:
        (directory / name).write_bytes((directory / snapshots[0]).read_bytes())
    log = await Log(directory).open()
    assert "is damaged" in log.file.status().message or "another snapshot" in log.file.status().message
    await log.close()


async def test_a_full_segment_cannot_be_torn(directory):
    _, segments, _ = await used(directory)
    data = bytearray((directory / segments[0]).read_bytes())
    end = len(bytes(data).rstrip(b"\0"))
    data[end - 600 : end] = bytes(600)
    (directory / segments[0]).write_bytes(data)
    with pytest.raises(Damaged, match=r"(is damaged at byte \d+ \(its end is missing\)|does not go on from)"):
        await Log(directory).open()


async def test_a_newer_format_asks_for_an_update_an_older_one_says_what_it_is(directory, monkeypatch):
    monkeypatch.setattr("control.store.segments.FORMAT", 3)
    log = await Log(directory).open()
    await log.close()
    monkeypatch.undo()
    with pytest.raises(BackendFailed, match="has format 3, this version of meshd knows 2: update it"):
        await Log(directory).open()
    (directory / "log-0000000000").write_bytes(b"old")
    with pytest.raises(BackendFailed, match="was written by a meshd that knew one manager only"):
        await Log(directory).open()


# --- encryption ---------------------------------------------------------------------------------------------------


def key(number: int) -> AesGcmSealer:
    return AesGcmSealer(f"key {number}", bytes([number]) * 32, os.urandom)


async def test_everything_is_encrypted_and_nothing_is_read_without_the_key(directory):
    ring = Keys([key(1)])
    count, _, _ = await used(directory, ring)
    for path in directory.iterdir():
        assert b"x" * 20 not in path.read_bytes()
    with pytest.raises(BackendFailed, match='is encrypted with key "key 1", which this manager does not have'):
        await Log(directory).open()
    with pytest.raises(BackendFailed, match="which this manager does not have"):
        await Log(directory, ring=Keys([key(2)])).open()
    impostor = Keys([AesGcmSealer("key 1", bytes([9]) * 32, os.urandom)])
    with pytest.raises(Damaged, match="not encrypted with this key"):
        await Log(directory, ring=impostor).open()
    again = await Log(directory, ring=ring).open()
    assert len(again.rows) == count
    await again.close()


async def test_an_unencrypted_store_becomes_an_encrypted_one(directory):
    count, _, _ = await used(directory)
    ring = Keys([key(1)], plain=True)
    log = await Log(directory, limit=9000, ring=ring).open()
    await log.file._journal.rotate()
    while log.file._journal.keys_in_use() != {"key 1"}:
        await log.put(f"a{count}", size=900)
        count += 1
    await log.close()
    again = await Log(directory, limit=9000, ring=ring).open()
    assert len(again.rows) == count
    await again.close()


# --- compaction ---------------------------------------------------------------------------------------------------


async def test_the_log_stays_bounded_while_it_is_written(directory):
    log = await Log(directory, limit=20_000).open()
    for i in range(300):
        row = RowChange("k", "a", i, b"x" * 1000)
        await log.file.commit(Proposal(i + 1, (row,)), Guard(log.term))
        # All that is written is 300,000 bytes; a snapshot may take its time on a busy disk while writing goes on.
        assert log.file.status().size_bytes < 200_000
    await log.close()
    # Two snapshots' worth of log, the spare, and the one to become the next spare.
    assert sum(n.startswith("wal") for n in names(directory)) <= 6
    again = await Log(directory).open()
    assert again.version == 300
    assert again.rows == {"a": b"x" * 1000}
    await again.close()


async def test_a_large_state_is_not_written_again_and_again(directory):
    """The log may grow to the size of the snapshot."""
    log = await Log(directory, limit=1000).open()
    written = []
    save = log.file._journal.save_snapshot
    log.file._journal.save_snapshot = lambda meta, chunks: written.append(meta) or save(meta, chunks)
    await log.put(*(f"a{i}" for i in range(200)), size=500)
    for i in range(60):
        await log.put(f"b{i}", size=500)
    await log.close()
    assert 1 <= len(written) <= 2


async def test_the_digest_is_that_of_the_rows_and_survives(directory):
    log = await Log(directory, limit=3000).open()
    for i in range(30):
        await log.put(f"a{i}", size=200)
    await log.file.commit(Proposal(31, (RowChange("k", "a3", 4, None), RowChange("k", "a4", 5, b"y"))), Guard(log.term))
    digest = log.file.status().digest
    await log.close()
    again = await Log(directory).open()
    assert again.file.status().digest == digest
    state = State.of(again.file._engine.pipeline.ledger.freeze().chunks())
    assert state.digest == digest
    await again.close()


async def test_terms_grow_with_every_start_that_wrote(directory):
    terms = []
    for i in range(3):
        log = await Log(directory).open()
        terms.append(log.term)
        await log.put(f"a{i}")
        await log.close()
    assert terms == sorted(set(terms))


async def test_commits_share_syncs(directory):
    log = await Log(directory).open()
    syncs = 0
    sync = log.disk.sync

    def counting(handle: int) -> None:
        nonlocal syncs
        syncs += 1
        sync(handle)

    log.disk.sync = counting
    futures = [log.file.commit(Proposal(i, (RowChange("k", f"{i}", 0, b""),)), Guard(log.term)) for i in range(1, 201)]
    for future in futures:
        await future
    assert syncs <= 3  # the first alone, the others together
    await log.close()
