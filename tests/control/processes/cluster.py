"""Managers as processes, each in a network namespace of its own, on one bridge; some on small disks of their own.

Cruelties: `kill`, `freeze`, `cut` (nftables in the namespace), `fill` (the disk). All can be taken back, by `start`,
`thaw`, `heal` and `free`. Names of namespaces carry the process id, and `stop` removes everything.
"""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from control.quorum.seat import Seat, write_seat
from control.raft.configuration import Configuration, Member
from control.raft.ready import bootstrap
from control.store.disk import RealDisk
from control.store.journal import Journal
from tests.control.processes.manager import SEGMENT_BYTES

PORT = 7000
SMALL_DISK_MIB = 24
_numbers = itertools.count()


def run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, stdout=subprocess.DEVNULL, stderr=None if check else subprocess.DEVNULL)


@dataclass(eq=False)
class Manager:
    number: int
    namespace: str
    directory: Path
    process: asyncio.subprocess.Process | None = None
    frozen: bool = False
    reader: asyncio.Task | None = None
    terms: list[tuple[float, int]] = field(default_factory=list)  # when it began to lead, by the monotonic clock
    failures: list[str] = field(default_factory=list)

    @property
    def node_id(self) -> str:
        return f"n{self.number}"

    @property
    def address(self) -> str:
        return f"10.99.0.{self.number + 1}"

    @property
    def socket(self) -> Path:
        return self.directory.parent / f"{self.node_id}.sock"


class Cluster:
    def __init__(self, directory: Path, count: int, small: int) -> None:
        """The first `small` managers have small disks."""
        prefix = f"mq{os.getpid()}-{next(_numbers)}"
        self.directory, self.hub = directory, f"{prefix}-hub"
        self.managers = [Manager(i, f"{prefix}-{i}", directory / f"n{i}") for i in range(count)]
        self.small = self.managers[:small]

    # --- making and removing

    async def begin(self) -> None:
        run("ip", "netns", "add", self.hub)
        run("ip", "-n", self.hub, "link", "add", "name", "br0", "type", "bridge")
        run("ip", "-n", self.hub, "link", "set", "br0", "up")
        members = tuple(Member(f"{m.node_id}.{m.number + 1}", voter=True) for m in self.managers)
        first = bootstrap(Configuration(members, joined=len(members)))
        for manager in self.managers:
            port, ns = f"p{manager.number}", manager.namespace
            run("ip", "netns", "add", ns)
            run("ip", "-n", self.hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", ns)
            run("ip", "-n", self.hub, "link", "set", port, "master", "br0", "up")
            run("ip", "-n", ns, "address", "add", f"{manager.address}/24", "dev", "eth0")
            run("ip", "-n", ns, "link", "set", "eth0", "up")
            run("ip", "-n", ns, "link", "set", "lo", "up")
            manager.directory.mkdir(parents=True)
            if manager in self.small:
                run("mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MIB}m", "tmpfs", str(manager.directory))
            disk = RealDisk(manager.directory)
            journal, _ = await Journal.open(disk, "c1", segment_bytes=SEGMENT_BYTES)
            await journal.append(first.hard_state, first.entries)
            write_seat(disk, Seat(f"{manager.node_id}.{manager.number + 1}", 0))
            await journal.close()
        for manager in self.managers:
            await self.start(manager)

    async def stop(self) -> None:
        for manager in self.managers:
            await self.kill(manager)
            if manager in self.small:
                run("umount", "-l", str(manager.directory), check=False)
            run("ip", "netns", "del", manager.namespace, check=False)
        run("ip", "netns", "del", self.hub, check=False)

    # --- cruelties

    async def start(self, manager: Manager) -> None:
        peers = {m.node_id: f"{m.address}:{PORT}" for m in self.managers if m is not manager}
        manager.process = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", manager.namespace,
            sys.executable, "-m", "tests.control.processes.manager",
            str(manager.directory), manager.node_id, f"{manager.address}:{PORT}", str(manager.socket),
            json.dumps(peers),
            stdout=asyncio.subprocess.PIPE,
            stderr=(self.directory / f"{manager.node_id}.log").open("ab"),
        )  # fmt: skip
        manager.frozen = False
        manager.reader = asyncio.get_running_loop().create_task(self._read(manager, manager.process))

    async def _read(self, manager: Manager, process: asyncio.subprocess.Process) -> None:
        while line := (await process.stdout.readline()).decode().strip():
            word, _, rest = line.partition(" ")
            if word == "leading":
                manager.terms.append((time.monotonic(), int(rest)))
            elif word == "failed":
                manager.failures.append(rest)

    async def kill(self, manager: Manager) -> None:
        """`ip netns exec` has become the process itself."""
        if manager.process is not None:
            with contextlib.suppress(ProcessLookupError):
                manager.process.send_signal(signal.SIGKILL)
            await manager.process.wait()
            await manager.reader
            manager.process = None

    def freeze(self, manager: Manager) -> None:
        manager.process.send_signal(signal.SIGSTOP)
        manager.frozen = True

    def thaw(self, manager: Manager) -> None:
        if manager.process is not None:
            manager.process.send_signal(signal.SIGCONT)
        manager.frozen = False

    def cut(self, manager: Manager, others: list[Manager], *, one_way: bool = False) -> None:
        """What comes from the others is dropped; unless `one_way`, what goes to them, too."""
        addresses = "{ " + ", ".join(m.address for m in others) + " }"
        rules = f"chain in {{ type filter hook input priority 0; ip saddr {addresses} drop;\n}}"
        if not one_way:
            rules += f"\nchain out {{ type filter hook output priority 0; ip daddr {addresses} drop;\n}}"
        run("ip", "netns", "exec", manager.namespace, "nft", f"table ip cut {{\n{rules}\n}}")

    def heal(self, manager: Manager) -> None:
        run("ip", "netns", "exec", manager.namespace, "nft", "delete", "table", "ip", "cut", check=False)

    def fill(self, manager: Manager) -> None:
        with contextlib.suppress(OSError), (manager.directory / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65_536))

    def free(self, manager: Manager) -> None:
        (manager.directory / "ballast").unlink(missing_ok=True)

    # --- looking

    async def call(self, manager: Manager, *request, timeout_s: float = 5.0):
        """An answer, or None if there is none."""
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(str(manager.socket))
                try:
                    writer.write(json.dumps(request).encode() + b"\n")
                    line = await reader.readline()
                    return json.loads(line) if line else None
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None

    async def statuses(self) -> list[dict]:
        found = [await self.call(m, "status") for m in self.managers]
        return [answer[1] for answer in found if answer is not None]
