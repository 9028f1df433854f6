"""Clusters of real processes on loopback: `serf agent`, `mesh gossip agent`, or both, driven over their RPC."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gossip.serf_client import SerfClient, SerfConnectionError, SerfError
from tests.ports import free_ports

Kind = Literal["serf", "mesh"]
ROOT = Path(__file__).parents[3]
COMMANDS: dict[Kind, tuple[str, ...]] = {
    "serf": ("serf", "agent"),
    "mesh": (sys.executable, "-m", "mesh.cli.main", "gossip", "agent"),
}
POLL_S = 0.05
READY_S = 90.0  # forty interpreters start on one core of a busy machine


@dataclass
class Node:
    """One agent. `client` is connected while it runs."""

    kind: Kind
    name: str
    port: int
    rpc: int
    flags: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()  # such as ("ip", "netns", "exec", ...)
    host: str = "127.0.0.1"
    rpc_host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None
    client: SerfClient = field(default_factory=SerfClient)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self, log: Path) -> None:
        """Start it; `ready` waits."""
        place = (f"-node={self.name}", f"-bind={self.address}", f"-rpc-addr={self.rpc_address}", "-log-level=debug")
        with (log / f"{self.name}.log").open("ab") as out:
            self.process = subprocess.Popen(
                (*self.prefix, *COMMANDS[self.kind], *place, *self.flags), stdout=out, stderr=out, cwd=ROOT
            )

    @property
    def rpc_address(self) -> str:
        return f"{self.rpc_host}:{self.rpc}"

    def ready(self) -> None:
        """Wait until it answers."""
        self.client = SerfClient(self.rpc_address)
        until = time.monotonic() + READY_S
        while True:
            try:
                self.client.connect()
                return
            except SerfConnectionError:
                assert self.process is not None
                assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}"
                assert time.monotonic() < until, f"{self.name} does not answer"
                time.sleep(POLL_S)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL and wait."""
        self.client.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends by itself; its exit code."""
        assert self.process is not None
        code = self.process.wait(timeout_s)
        self.client.close()
        self.process = None
        return code

    def statuses(self) -> dict[str, str]:
        """Status of each member as this node sees it."""
        return {member.name: member.status for member in self.client.members()}

    def rss_mib(self) -> float:
        """Resident memory."""
        assert self.process is not None
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def cpu_s(self) -> float:
        """Processor time used so far."""
        assert self.process is not None
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Cluster:
    """Some agents that join the first. Use as a context manager: they end with it."""

    def __init__(self, log: Path, kinds: Sequence[Kind], flags: Sequence[str] = ()) -> None:
        self.log = log
        self._flags = tuple(flags)
        self.nodes: list[Node] = []
        ports = free_ports(2 * len(kinds))
        for at, kind in enumerate(kinds):
            self.nodes.append(Node(kind, f"{kind}{at}", ports[2 * at], ports[2 * at + 1], self._flags))

    def __enter__(self) -> Cluster:
        try:
            for node in self.nodes:
                node.start(self.log)
            for node in self.nodes:
                node.ready()
            for node in self.nodes[1:]:
                node.client.join([self.nodes[0].address])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()

    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.process is not None]

    def all_see(self, wanted: dict[str, str], timeout_s: float, nodes: Sequence[Node] | None = None) -> float:
        """Wait until all (running) nodes see members so; how long it took."""
        return until(
            lambda: all(wanted.items() <= node.statuses().items() for node in nodes or self.running()),
            timeout_s,
            lambda: "; ".join(
                f"{node.name}: {dict(node.statuses().items() ^ wanted.items())}"
                for node in nodes or self.running()
                if not wanted.items() <= node.statuses().items()
            ),
        )

    def full(self, timeout_s: float = 20.0) -> float:
        """Wait until everybody sees everybody running alive."""
        return self.all_see({node.name: "alive" for node in self.running()}, timeout_s)


def until(done: Callable[[], bool], timeout_s: float, why: Callable[[], str] = str) -> float:
    """Poll until it holds; the seconds it took. Fails with what `why` says."""
    start = time.monotonic()
    while not done():
        assert time.monotonic() - start < timeout_s, f"not within {timeout_s} s: {why()}"
        time.sleep(POLL_S)
    return time.monotonic() - start


__all__ = ["Cluster", "Kind", "Node", "SerfError", "until"]
