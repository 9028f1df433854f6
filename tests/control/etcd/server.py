"""Real etcd servers on loopback, for tests: one, or a cluster of several, in a directory of the test's."""

import shutil
import socket
import subprocess
import time
from pathlib import Path

from tests.ports import free_ports


class Etcd:
    """Members of one cluster. Fast elections, so that leases may be short and tests need not wait."""

    def __init__(self, directory: Path, members: int = 1, extra: tuple[str, ...] = (), scheme: str = "http") -> None:
        self.directory, self.extra, self.scheme = directory, extra, scheme
        ports = free_ports(2 * members)
        self.clients, self.peers = ports[:members], ports[members:]
        self.processes: list[subprocess.Popen | None] = [None] * members

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{port}" for port in self.clients)

    def start(self, member: int | None = None) -> "Etcd":
        for i in range(len(self.processes)) if member is None else (member,):
            self.processes[i] = subprocess.Popen(self._command(i), stdout=subprocess.DEVNULL, stderr=self._log(i))
        for i in range(len(self.processes)) if member is None else (member,):
            self._wait(i)
        return self

    def _log(self, i: int):
        self.directory.mkdir(parents=True, exist_ok=True)
        return (self.directory / f"log-{i}").open("ab")

    def _command(self, i: int) -> list[str]:
        client = f"{self.scheme}://127.0.0.1:{self.clients[i]}"
        peers = [f"m{j}=http://127.0.0.1:{port}" for j, port in enumerate(self.peers)]
        options = {
            "name": f"m{i}",
            "data-dir": self.directory / f"data-{i}",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": f"http://127.0.0.1:{self.peers[i]}",
            "initial-advertise-peer-urls": f"http://127.0.0.1:{self.peers[i]}",
            "initial-cluster": ",".join(peers),
            "heartbeat-interval": 20,
            "election-timeout": 200,
            "logger": "zap",
            "log-level": "warn",
        }
        return ["etcd", *(f"--{name}={value}" for name, value in options.items()), *self.extra]

    def _wait(self, i: int) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.clients[i]), 0.2).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError((self.directory / f"log-{i}").read_text()[-2000:])

    def kill(self, member: int = 0) -> None:
        process = self.processes[member]
        if process is not None:
            process.kill()
            process.wait()
            self.processes[member] = None

    def stop(self) -> None:
        for i in range(len(self.processes)):
            self.kill(i)
        shutil.rmtree(self.directory, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        """etcdctl."""
        command = ["etcdctl", "--endpoints", ",".join(self.endpoints), *arguments]
        done = subprocess.run(
            command,
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def revision(self) -> int:
        """The newest one."""
        fields = self.ctl("get", "nothing", "-w", "fields")
        return int(next(line.split(":")[1] for line in fields.splitlines() if line.startswith('"Revision"')))

    def compact(self) -> None:
        """Forget all history."""
        self.ctl("compact", str(self.revision()))
