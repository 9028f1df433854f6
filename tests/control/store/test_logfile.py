"""The log on a real directory: full and failing disks, locks, other clusters, damage, compaction."""

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from control.store.backend import Failed, Guard, Leading, Proposal
from control.store.disk import RealDisk
from control.store.errors import BackendFailed, Damaged, Refused, StateInUse, WrongCluster
from control.store.logfile import LogFile, cluster_of
from control.store.record import RowChange


class FaultyDisk(RealDisk):
    """The real one, until told otherwise."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, lock_wait_s=0.1)
        self.errors: dict[str, int] = {}  # operation -> errno
        self.only = ""  # of files whose name contains this
        self.opened: dict[int, str] = {}

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

    def truncate(self, handle, size):
        self._fail("truncate", self.opened[handle])
        super().truncate(handle, size)

    def sync(self, handle):
        self._fail("sync", self.opened[handle])
        super().sync(handle)

    def sync_directory(self):
        self._fail("sync directory", "")
        super().sync_directory()


class Log:
    """A log and who listens to it."""

    def __init__(self, directory: Path, limit: int = 1 << 20, cluster: str = "c1") -> None:
        self.disk = FaultyDisk(directory)
        self.file = LogFile(directory, cluster, "n1", disk=self.disk, log_limit_bytes=limit)
        self.rows = {}
        self.version = 0
        self.failed = []
        self._term = asyncio.get_running_loop().create_future()

    async def open(self) -> "Log":
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
from control.store.logfile import LogFile
async def main():
    await LogFile(Path({str(directory)!r}), "c1").load()
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
        log = LogFile(directory, "c1")  # may have to wait until the child has become the program
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
    assert cluster_of(directory) == "c1"
    assert cluster_of(directory / "nothing") is None
    assert cluster_of(directory.parent) is None
    again = await Log(directory).open()
    assert sorted(again.rows) == ["a"]
    await again.close()


async def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BackendFailed, match=r"cannot use the state directory .*/file/store: Not a directory"):
        await Log(tmp_path / "file" / "store").open()


# --- full disks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_disk_refuses_commits_and_recovers_by_itself(directory, code):
    log = await Log(directory).open()
    await log.put("a")
    log.disk.errors["write"] = code
    size = (directory / "log-0000000000").stat().st_size
    # The first is being written when the second comes: both fail, neither is half there.
    first, second = log.put("b"), log.file.commit(Proposal(3, (RowChange("k", "c", 0, b""),)), Guard(log.term))
    for future in (first, second):
        with pytest.raises(Refused, match=r"log-0000000000: .*; free some space"):
            await future
    assert (directory / "log-0000000000").stat().st_size == size
    assert "free some space" in log.file.status().message
    assert log.file.status().role == "leader"
    log.disk.errors.clear()
    await log.put("d")
    await log.close()
    again = await Log(directory).open()
    assert sorted(again.rows) == ["a", "d"]
    assert again.version == 2
    await again.close()


@pytest.mark.parametrize("operation", ["create", "write"])
@pytest.mark.parametrize("what", ["log-0000000001", "snapshot"])
async def test_without_space_for_compaction_the_log_goes_on(directory, operation, what):
    log = await Log(directory, limit=500).open()
    log.disk.errors[operation] = errno.ENOSPC
    log.disk.only = what
    for i in range(20):
        await log.put(f"a{i}", size=100)
    assert "snapshot-0000000001" not in names(directory)
    assert "not compacted" in log.file.status().message
    log.disk.errors.clear()
    for i in range(20):
        await log.put(f"b{i}", size=100)
    await log.close()
    assert any(n.startswith("snapshot") for n in names(directory))
    assert not any(n.endswith(".new") for n in names(directory))
    assert len(names(directory)) == 3
    again = await Log(directory).open()
    assert len(again.rows) == 40
    await again.close()


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
    log.disk.errors["sync"] = errno.EIO
    first, second = log.put("b"), log.file.commit(Proposal(3, ()), Guard(log.term))
    for future in (first, second):
        with pytest.raises(BackendFailed, match=r"cannot sync .*/log-0000000000: Input/output error; meshd must stop"):
            await future
    log.disk.errors.clear()  # the next sync would claim success
    await failed(log, "cannot sync")
    again = await Log(directory).open()
    assert set(again.rows) in ({"a"}, {"a", "b"})
    await again.close()


async def test_a_failed_write_that_cannot_be_undone_is_fatal(directory):
    log = await Log(directory).open()
    log.disk.errors = {"write": errno.ENOSPC, "truncate": errno.EIO}
    with pytest.raises(BackendFailed, match="cannot write"):
        await log.put("a")
    await failed(log, "cannot write")


async def test_another_failed_write_is_fatal(directory):
    log = await Log(directory).open()
    log.disk.errors = {"write": errno.EIO}
    with pytest.raises(BackendFailed, match="Input/output error"):
        await log.put("a")
    await failed(log, "Input/output error")
    again = await Log(directory).open()  # half a frame is there
    assert again.rows == {}
    assert "were cut from the log" in again.file.status().message
    await again.put("b")
    await again.close()


@pytest.mark.parametrize("what", ["log-0000000001", "snapshot"])
@pytest.mark.parametrize("operation", ["sync", "write", "sync directory"])
async def test_a_failure_while_compacting_is_fatal(directory, operation, what):
    log = await Log(directory, limit=300).open()
    log.disk.errors[operation] = errno.EIO
    log.disk.only = what if operation != "sync directory" else ""
    for i in range(20):
        if not log.failed:
            with contextlib.suppress(BackendFailed):
                await log.put(f"a{i}", size=100)
            await asyncio.sleep(0.01)  # a snapshot fails by itself
    version = log.version
    await failed(log, "Input/output error")
    again = await Log(directory).open()
    assert again.version >= version
    await again.close()


# --- damage -------------------------------------------------------------------------------------------------------


async def three_generations(directory: Path) -> list[str]:
    log = await Log(directory, limit=700).open()
    for i in range(12):
        await log.put(f"a{i}", size=100)
    await log.close()
    found = names(directory)
    assert found[0] == "lock"
    assert [n.partition("-")[0] for n in found] == ["lock", "log", "snapshot"]
    return found[1:]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("where", [0, 30, 100, 300])
async def test_damage_is_refused_with_what_to_do(directory, which, where):
    name = (await three_generations(directory))[which]
    data = bytearray((directory / name).read_bytes())
    data[where] ^= 0x10
    (directory / name).write_bytes(data)
    with pytest.raises(Damaged, match=f"{name} is damaged at .*restore the state directory from a backup") as caught:
        await Log(directory).open()
    assert "\n" not in str(caught.value)
    assert (directory / name).read_bytes() == data, "it was changed"
    data[where] ^= 0x10
    (directory / name).write_bytes(data)  # "restored"
    log = await Log(directory).open()
    assert len(log.rows) == 12
    await log.close()


async def test_a_missing_file_is_refused(directory):
    log, snapshot = await three_generations(directory)
    (directory / snapshot).rename(directory / "kept")
    with pytest.raises(Damaged, match="log-0000000000 is missing"):
        await Log(directory).open()
    (directory / "kept").rename(directory / snapshot)
    (directory / log).unlink()
    with pytest.raises(Damaged, match=f"{log} is missing"):
        await Log(directory).open()


async def test_a_cut_snapshot_is_refused(directory):
    _, snapshot = await three_generations(directory)
    data = (directory / snapshot).read_bytes()
    for size in (len(data) - 1, len(data) - 40, 200):
        (directory / snapshot).write_bytes(data[:size])
        with pytest.raises(Damaged):
            await Log(directory).open()


async def test_files_of_other_generations_cannot_stand_in(directory):
    log, _ = await three_generations(directory)
    later = f"log-{int(log[4:]) + 1:010d}"
    (directory / later).write_bytes((directory / log).read_bytes())
    with pytest.raises(Damaged, match=f"{later} was generation"):
        await Log(directory).open()


async def test_a_log_does_not_go_on_from_another_snapshot(directory):
    log, snapshot = await three_generations(directory)
    other = directory.parent / "other"
    writer = await Log(other, limit=200).open()
    while snapshot not in names(other):  # of the same generation, but of an earlier version
        await writer.put(f"b{writer.version}", size=300)
        await asyncio.sleep(0.01)
    await writer.close()
    (directory / snapshot).write_bytes((other / snapshot).read_bytes())
    with pytest.raises(Damaged, match=f"{log} does not go on from the file before it"):
        await Log(directory).open()


async def test_a_sealed_log_cannot_be_torn(directory):
    writer = await Log(directory, limit=700).open()
    writer.disk.errors["create"], writer.disk.only = errno.ENOSPC, "snapshot"
    for i in range(10):
        await writer.put(f"a{i}", size=100)
    await writer.close()
    assert names(directory) == ["lock", "log-0000000000", "log-0000000001"]
    data = (directory / "log-0000000000").read_bytes()
    (directory / "log-0000000000").write_bytes(data[:-20])
    with pytest.raises(Damaged, match=r"log-0000000000 is damaged at byte \d+ \(its end is missing\)"):
        await Log(directory).open()
    (directory / "log-0000000000").write_bytes(data)
    again = await Log(directory).open()
    assert len(again.rows) == 10
    await again.close()


async def test_a_newer_format_asks_for_an_update(directory, monkeypatch):
    monkeypatch.setattr("control.store.logdir.FORMAT", 2)
    log = await Log(directory).open()
    await log.close()
    monkeypatch.undo()
    with pytest.raises(BackendFailed, match="has format 2, this version of meshd knows 1: update it"):
        await Log(directory).open()


# --- compaction ---------------------------------------------------------------------------------------------------


async def test_the_log_stays_bounded_while_it_is_written(directory):
    log = await Log(directory, limit=20_000).open()
    for i in range(300):
        row = RowChange("k", "a", i, b"x" * 1000)
        await log.file.commit(Proposal(i + 1, (row,)), Guard(log.term))
        # All that is written is 300,000 bytes; a snapshot may take its time on a busy disk while writing goes on.
        assert log.file.status().size_bytes < 150_000
    await log.close()
    assert len(names(directory)) == 3
    assert sum(p.stat().st_size for p in directory.iterdir()) < 25_000
    again = await Log(directory).open()
    assert again.version == 300
    assert again.rows == {"a": b"x" * 1000}
    await again.close()


async def test_a_large_state_is_not_written_again_and_again(directory):
    """The log may grow to the size of the snapshot."""
    log = await Log(directory, limit=1000).open()
    await log.put(*(f"a{i}" for i in range(200)), size=500)
    for i in range(60):
        await log.put(f"b{i}", size=500)
    await log.close()
    generation = max(int(n.partition("-")[2]) for n in names(directory) if n != "lock")
    assert generation <= 2


async def test_terms_grow_with_every_start_that_wrote(directory):
    terms = []
    for i in range(3):
        log = await Log(directory).open()
        terms.append(log.term)
        await log.put(f"a{i}")
        await log.close()
    assert terms == [1, 2, 3]


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
