"""A directory on a disk that loses power: it keeps apart what was written and what would survive.

A run is cut at each operation in turn; what is found afterwards is any of the states that the file system may leave:
unsynced writes and names lost, kept, or torn. Sectors of 512 bytes are written as a whole.
"""

import asyncio
import random

from control.store.worker import Outcome

SECTOR = 512


class PowerFailure(Exception):
    """The machine is gone in the middle of an operation."""


class Inode:
    def __init__(self, durable: bytes = b"") -> None:
        self.durable = durable
        self.now = bytearray(durable)
        self.unsynced: list[tuple[int, int]] = []  # (offset, length) of writes since the last sync

    def after(self, fate: str) -> "Inode":
        """What a power failure leaves of it."""
        if not self.unsynced or fate == "lost":
            return Inode(self.durable)
        if fate == "kept":
            return Inode(bytes(self.now))
        rng = random.Random(f"{fate} {len(self.now)} {self.unsynced}")
        grown = rng.random() < 0.5 or fate != "random"
        data = bytearray(self.durable.ljust(len(self.now), b"\0")) if grown else bytearray(self.durable)
        for number, (offset, length) in enumerate(self.unsynced):
            sectors = range(offset // SECTOR, (offset + length - 1) // SECTOR + 1)
            for place, sector in enumerate(sectors):
                match fate:
                    case "front":
                        keep = place < max(len(sectors) // 2, 1)
                    case "back":
                        keep = place >= (len(sectors) + 1) // 2
                    case "first write":
                        keep = number == 0
                    case "last write":
                        keep = number == len(self.unsynced) - 1
                    case _:
                        keep = rng.random() < 0.5
                low, high = max(sector * SECTOR, offset), min((sector + 1) * SECTOR, offset + length)
                if keep and high <= len(data):
                    data[low:high] = self.now[low:high]
        return Inode(bytes(data))


FATES = ("lost", "kept", "front", "back", "first write", "last write", "random", "random 2")


class SimDisk:
    """Loses power at its `fail_at`-th operation: before the operation, or when it has had its effect in memory."""

    def __init__(self, names: dict[str, Inode] | None = None, fail_at: int | None = None) -> None:
        self.files = dict(names or {})
        self.durable_names = dict(self.files)
        self.handles: dict[int, Inode] = {}
        self.operations = 0
        self.fail_at = fail_at
        self.dead = False
        self.trace: list[str] = []
        self.free = 1 << 40
        self.lie = False  # syncs do nothing

    def _operation(self, what: str) -> None:
        """Called when the operation has had its effect on what is not durable yet."""
        if self.dead:
            raise PowerFailure
        self.trace.append(what)
        if self.operations == self.fail_at:
            self.dead = True
            raise PowerFailure
        self.operations += 1

    def after(self, fate: str, *, names: str) -> "SimDisk":
        """`names`: "lost", "kept", or "some" of the changes since the last sync of the directory."""
        found = self.files if names == "kept" else self.durable_names
        if names == "some":
            rng = random.Random(f"{self.operations} {fate}")
            both = {**self.durable_names, **self.files}
            found = {
                n: (self.files if rng.random() < 0.5 else self.durable_names).get(n, i)
                for n, i in both.items()
                if (n in self.files and n in self.durable_names) or rng.random() < 0.5
            }
            # A renamed file has one of its names.
            for name, inode in self.durable_names.items():
                new = [n for n, i in self.files.items() if i is inode and n != name]
                if name not in self.files and new:
                    kept = rng.choice([name, *new])
                    for n in (name, *new):
                        found.pop(n, None)
                    found[kept] = inode
        # Renamed or not, a file is the same one.
        after = {id(inode): inode.after(fate) for inode in found.values()}
        return SimDisk({name: after[id(inode)] for name, inode in found.items()})

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

    def size(self, name: str) -> int:
        return len(self.files[name].now)

    def free_bytes(self) -> int:
        return self.free

    def open(self, name: str, *, create: bool) -> int:
        if create:
            if not self.dead:
                self.files[name] = Inode()
            self._operation(f"create {name}")
        if name not in self.files:
            raise FileNotFoundError(2, "No such file", name)
        handle = len(self.handles)
        self.handles[handle] = self.files[name]
        return handle

    def read_at(self, handle: int, offset: int, length: int) -> bytes:
        return bytes(self.handles[handle].now[offset : offset + length])

    def write(self, handle: int, data: bytes, offset: int) -> None:
        inode = self.handles[handle]
        if not self.dead:
            assert offset <= len(inode.now), "a hole"
            inode.now[offset : offset + len(data)] = data
            inode.unsynced.append((offset, len(data)))
        self._operation("write")

    def sync(self, handle: int) -> None:
        self._operation("sync")
        inode = self.handles[handle]
        if not self.lie:
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
        if not self.lie:
            self.durable_names = dict(self.files)


class Inline:
    """Does the job at once, on the loop."""

    def do(self, job, then):
        asyncio.get_running_loop().call_soon(then, Outcome(job))

    def stop(self) -> None:
        pass


class Late:
    """Does the job when told: a snapshot that takes its time."""

    def __init__(self) -> None:
        self.jobs = []

    def do(self, job, then):
        self.jobs.append((job, then))

    def run(self, count: int = 1 << 30) -> None:
        while self.jobs and count:
            count -= 1
            job, then = self.jobs.pop(0)
            asyncio.get_running_loop().call_soon(then, Outcome(job))

    def stop(self) -> None:
        pass
