"""Power failures at every operation on the disk: nothing acknowledged is ever lost, nothing half is ever read.

The disk here keeps apart what was written and what would survive. A run is cut at each operation in turn; what is
found afterwards is any of the states that the file system may leave: unsynced writes and names lost, kept, or torn.
"""

import asyncio
import itertools
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from control.store.backend import Guard, Leading, Proposal
from control.store.errors import BackendFailed, Damaged
from control.store.logfile import LogFile
from control.store.record import Row, RowChange


class PowerFailure(Exception):
    """The machine is gone in the middle of an operation."""


class Inode:
    def __init__(self, durable: bytes = b"") -> None:
        self.durable = durable
        self.now = bytearray(durable)
        self.unsynced: list[tuple[int, int]] = []  # (offset, length) of writes since the last sync

    def after(self, fate: str) -> "Inode":
        """What a power failure leaves: "lost", "kept", or parts of the unsynced writes."""
        if fate == "lost" or not self.unsynced:
            return Inode(self.durable if self.unsynced or fate == "lost" else bytes(self.now))
        data = bytearray(self.now)
        offset, length = self.unsynced[-1]
        match fate:
            case "kept":
                pass
            case "cut":
                del data[offset + length // 2 :]
            case "cut after a sector":
                del data[(offset // 512 + 1) * 512 :]
            case "front missing":
                end = min((offset + length // 2) // 512 * 512 + 512, len(data))
                data[offset:end] = bytes(end - offset)
            case "back missing":
                start = max(((offset + length // 2) // 512) * 512, offset)
                data[start : offset + length] = bytes(offset + length - start)
            case "all zeros":
                data[offset : offset + length] = bytes(length)
        return Inode(bytes(data))


FATES = ("lost", "kept", "cut", "cut after a sector", "front missing", "back missing", "all zeros")


class SimDisk:
    """A directory on a disk that loses power at its `fail_at`-th operation."""

    def __init__(self, names: dict[str, Inode] | None = None, fail_at: int | None = None) -> None:
        self.files = dict(names or {})
        self.durable_names = dict(self.files)
        self.handles: dict[int, Inode] = {}
        self.operations = 0
        self.fail_at = fail_at
        self.dead = False
        self.trace: list[str] = []

    def _operation(self, what: str) -> None:
        """Called when the operation has had its effect on what is not durable yet."""
        if self.dead:
            raise PowerFailure
        self.trace.append(what)
        if self.operations == self.fail_at:
            self.dead = True
            raise PowerFailure
        self.operations += 1

    def after(self, fate: str, *, names_kept: bool) -> "SimDisk":
        names = self.files if names_kept else self.durable_names
        # Renamed or not, a file is the same one.
        after = {id(inode): inode.after(fate) for inode in names.values()}
        return SimDisk({name: after[id(inode)] for name, inode in names.items()})

    def killed(self) -> "SimDisk":
        """Only the process is gone: all that was written is there, but what was not synced is still not durable."""
        out = SimDisk()
        out.files, out.durable_names = self.files, self.durable_names
        return out

    def path(self, name: str) -> str:
        return f"/sim/{name}"

    def lock(self) -> None: ...

    def unlock(self) -> None: ...

    def names(self) -> list[str]:
        return sorted(self.files)

    def read(self, name: str) -> bytes:
        return bytes(self.files[name].now)

    def open(self, name: str, *, create: bool) -> int:
        if create:
            self.files[name] = Inode()
            self._operation(f"create {name}")
        handle = len(self.handles)
        self.handles[handle] = self.files[name]
        return handle

    def write(self, handle: int, data: bytes, offset: int) -> None:
        inode = self.handles[handle]
        if not self.dead:
            assert offset <= len(inode.now), "a hole"
            inode.now[offset : offset + len(data)] = data
            inode.unsynced.append((offset, len(data)))
        self._operation("write")

    def truncate(self, handle: int, size: int) -> None:
        inode = self.handles[handle]
        del inode.now[size:]
        inode.unsynced.append((size, 0))
        self._operation("truncate")

    def sync(self, handle: int) -> None:
        self._operation("sync")
        inode = self.handles[handle]
        inode.durable = bytes(inode.now)
        inode.unsynced.clear()

    def close(self, handle: int) -> None: ...

    def rename(self, old: str, new: str) -> None:
        if not self.dead:
            self.files[new] = self.files.pop(old)
        self._operation(f"rename {new}")

    def remove(self, name: str) -> None:
        if not self.dead:
            del self.files[name]
        self._operation(f"remove {name}")

    def sync_directory(self) -> None:
        self._operation("sync directory")
        self.durable_names = dict(self.files)


class Inline(Executor):
    """Does the job at once, on the loop."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - an executor hands on whatever it was
            future.set_exception(error)
        return future


class Late(Executor):
    """Does the job when told: a snapshot that takes its time."""

    def __init__(self) -> None:
        self.jobs = []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.jobs.append((future, fn))
        return future

    def run(self) -> None:
        while self.jobs:
            future, fn = self.jobs.pop(0)
            try:
                future.set_result(fn())
            except Exception as error:  # noqa: BLE001 - as above
                future.set_exception(error)


# --- the run ------------------------------------------------------------------------------------------------------


def _script() -> list[list[Proposal]]:
    """Groups of commits proposed together: creations, changes, deletions, of less and more than a sector."""
    versions: dict[str, int] = {}
    groups, version = [], 0
    for size, names in [
        (20, "abc"),
        (900, "d"),
        (40, "ae"),
        (700, "bf"),
        (10, "a"),
        (300, "ghi"),
        (1500, "d"),
        (5, "c"),
    ]:
        group = []
        for name in names:
            version += 1
            gone = name in versions and size == 40
            group.append(
                Proposal(
                    version,
                    (
                        RowChange("k", name, versions.get(name, 0), None if gone else bytes([65 + version]) * size),
                        RowChange("n", str(version), 0, b""),
                    ),
                )
            )
            versions[name] = 0 if gone else version
        groups.append(group)
    return groups


SCRIPT = _script()
LOG_LIMIT = 800  # so that the run seals several logs


def _states() -> list[dict[tuple[str, str], Row]]:
    states = [{}]
    for proposal in itertools.chain(*SCRIPT):
        rows = dict(states[-1])
        for c in proposal.changes:
            rows.pop((c.kind, c.id), None)
            if c.blob is not None:
                rows[c.kind, c.id] = Row(c.kind, c.id, proposal.version, c.blob)
        states.append(rows)
    return states


STATES = _states()


def backend(disk: SimDisk, snapshotter: Executor | None = None) -> LogFile:
    threads = iter([Inline(), snapshotter or Inline()])
    return LogFile(Path("/sim"), "c1", disk=disk, thread=lambda: next(threads), log_limit_bytes=LOG_LIMIT)


async def load(disk: SimDisk) -> tuple[LogFile, int]:
    """Open, and check that what is there is exactly one of the states."""
    log = backend(disk)
    image = await log.load()
    assert {(r.kind, r.id): r for r in image.rows} == STATES[image.version]
    return log, image.version


async def run(disk: SimDisk, snapshotter: Late | None = None) -> tuple[int, int]:
    """Everything, until the end or the power failure. The last version acknowledged, and the last proposed."""
    acknowledged = proposed = 0
    log = backend(disk, snapshotter)
    try:
        await log.load()
        term = await leading(log)
        for group in SCRIPT:
            futures = [log.commit(p, Guard(term)) for p in group]
            proposed = group[-1].version
            await asyncio.wait(futures)
            for proposal, future in zip(group, futures, strict=True):
                if future.exception() is None:
                    assert acknowledged == proposal.version - 1
                    acknowledged = proposal.version
            futures[-1].result()
            if snapshotter is not None and acknowledged % 3 == 0:
                snapshotter.run()
                await asyncio.sleep(0)
    except (PowerFailure, BackendFailed):
        assert disk.dead
    if snapshotter is not None:
        snapshotter.run()
    await log.close()
    return acknowledged, proposed


async def leading(log: LogFile) -> int:
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    log.watch(log.status().version, lambda d: told.set_result(d.term) if isinstance(d, Leading) else None)
    return await told


async def go_on(disk: SimDisk) -> None:
    """The next commit of the script works on what is there, and lasts."""
    log, version = await load(disk)
    for proposal in itertools.chain(*SCRIPT):
        if proposal.version == version + 1:
            await log.commit(proposal, Guard(await leading(log)))
            version += 1
            break
    await log.close()
    log, found = await load(disk.after("lost", names_kept=False))
    assert found == version
    await log.close()


async def operations(snapshotter: Late | None) -> int:
    disk = SimDisk()
    assert await run(disk, snapshotter) == (len(STATES) - 1,) * 2
    kinds = {what.split()[0] + (" snapshot" if "snapshot" in what else "") for what in disk.trace}
    assert {"create", "write", "sync", "rename", "rename snapshot", "remove", "remove snapshot"} <= kinds
    return disk.operations


@pytest.mark.parametrize("late", [False, True])
async def test_power_failure_at_every_operation(late):
    for fail_at in range(await operations(Late() if late else None)):
        disk = SimDisk(fail_at=fail_at)
        acknowledged, proposed = await run(disk, Late() if late else None)
        assert disk.dead
        for fate, names_kept in itertools.product(FATES, (False, True)):
            found = disk.after(fate, names_kept=names_kept)
            log, version = await load(found)
            await log.close()
            assert acknowledged <= version <= proposed, (fail_at, fate, names_kept, disk.trace)
            await go_on(found)


async def test_power_failure_while_recovering_from_a_power_failure():
    for fail_at in range(await operations(None)):
        first = SimDisk(fail_at=fail_at)
        acknowledged, proposed = await run(first)
        for fate in ("kept", "cut", "all zeros"):
            for again in itertools.count():
                second = first.after(fate, names_kept=True)
                second.fail_at = again
                log = backend(second)
                try:
                    await log.load()
                except PowerFailure:
                    pass
                else:
                    await log.close()
                    break
                for last_fate in ("lost", "kept"):
                    log, version = await load(second.after(last_fate, names_kept=last_fate == "kept"))
                    await log.close()
                    assert acknowledged <= version <= proposed


async def test_what_was_read_after_a_kill_survives_a_power_failure_right_after():
    """The process dies between write and sync; the next one reads the commit from memory, and acts on it."""
    read_unsynced = 0
    for fail_at in range(await operations(None)):
        disk = SimDisk(fail_at=fail_at)
        acknowledged, _ = await run(disk)
        killed = disk.killed()
        log, version = await load(killed)
        await log.close()
        read_unsynced += version > acknowledged
        log, later = await load(killed.after("lost", names_kept=False))
        await log.close()
        assert later == version
        await go_on(killed)  # what comes next is not in a file whose name is lost
    assert read_unsynced > 3


async def test_a_log_cut_at_any_byte_gives_the_commits_before_it():
    disk = SimDisk()
    log = backend(disk)
    log._log_limit_bytes = 1 << 20  # one log only
    await log.load()
    term = await leading(log)
    header = len(disk.files["log-0000000000"].now)
    ends = []
    for proposal in itertools.chain(*SCRIPT[:5]):
        await log.commit(proposal, Guard(term))
        ends.append(len(disk.files["log-0000000000"].now))
    await log.close()
    data = disk.read("log-0000000000")
    for size in range(len(data)):
        cut = SimDisk({"log-0000000000": Inode(data[:size])})
        if size < header:
            with pytest.raises(Damaged):
                await backend(cut).load()
            continue
        found, version = await load(cut)
        await found.close()
        assert version == sum(end <= size for end in ends)
        assert len(cut.files["log-0000000000"].now) == ([header, *ends])[version]


async def test_a_test_of_the_tests_no_sync_is_noticed():
    """With a sync that does nothing, the enumeration above must fail."""
    caught = 0
    for fail_at in range(5, 40):
        disk = SimDisk(fail_at=fail_at)
        disk.sync = lambda _handle, disk=disk: disk._operation("sync")
        acknowledged, _ = await run(disk)
        try:
            log, version = await load(disk.after("lost", names_kept=True))
            await log.close()
            caught += version < acknowledged
        except BackendFailed:
            caught += 1
    assert caught > 20
