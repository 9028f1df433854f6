"""Docker's embedded resolver, beside the others: a dockerd of our own, a container, and its 127.0.0.11.

The daemon (Debian's docker.io) runs in a network namespace and below a directory of its own, so that it neither sees
nor changes what the machine has. One container made by `docker import` has all names as network aliases; questions are
asked from inside its network namespace, as its programs ask. Everything is ended by pid and removed. Needs root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ADDRESS, PORT = "127.0.0.11", 53
# Aliases are arguments of a command: what they may amount to is limited, and nobody has so many.
NAMES_MAX = 1_000
START_S, STOP_S = 30.0, 15.0
_BUSYBOX = "bin/busybox"


@dataclass(frozen=True)
class Embedded:
    """The resolver: whose CPU time counts, and in front of which command to put what to be inside the container."""

    pid: int
    inside: tuple[str, ...]


@contextlib.contextmanager
def running(names: Sequence[str], cpu: int) -> Iterator[Embedded]:
    """A container that has these names, and its resolver on one core."""
    netns = f"bench-dockerd-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="bench-dockerd-", ignore_cleanup_errors=True) as directory:
        root = Path(directory)
        subprocess.run(["ip", "netns", "add", netns], check=True)
        try:
            subprocess.run(["ip", "-n", netns, "link", "set", "lo", "up"], check=True)
            with _daemon(netns, root, cpu) as pid:
                docker = ("docker", "-H", f"unix://{root}/sock")
                yield Embedded(pid, ("nsenter", "-t", _container(docker, root, names), "-n"))
                subprocess.run([*docker, "rm", "-f", "names"], check=True, capture_output=True)
        finally:
            subprocess.run(["ip", "netns", "del", netns], check=True)


@contextlib.contextmanager
def _daemon(netns: str, root: Path, cpu: int) -> Iterator[int]:
    command = ["taskset", "-c", str(cpu), "dockerd", "--data-root", f"{root}/data", "--exec-root", f"{root}/exec",
               "-H", f"unix://{root}/sock", "-p", f"{root}/pid", "--storage-driver", "vfs"]  # fmt: skip
    # A mount namespace, too: `ip netns exec` gives it a /sys of its own, without the control groups dockerd wants.
    script = 'mount -t cgroup2 none /sys/fs/cgroup; exec "$@"'
    whole = ["ip", "netns", "exec", netns, "unshare", "-m", "sh", "-c", script, "sh", *command]
    with (root / "log").open("wb") as log, subprocess.Popen(whole, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + START_S
            ask = ["docker", "-H", f"unix://{root}/sock", "version"]
            while subprocess.run(ask, capture_output=True, check=False).returncode:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit(f"dockerd does not start:\n{(root / 'log').read_text()[-2000:]}")
                time.sleep(0.2)
            yield process.pid  # each command has become the next one
        finally:
            process.send_signal(signal.SIGTERM)  # it ends its containerd, too
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _container(docker: Sequence[str], root: Path, names: Sequence[str]) -> str:
    """Start the container that has the names, and say the pid of its first process."""
    image = root / "image.tar"
    subprocess.run(["tar", "-C", "/", "-chf", str(image), _BUSYBOX], check=True)
    aliases = [f"--network-alias={name}" for name in names[:NAMES_MAX]]
    for arguments in (
        ["import", str(image), "bench:1"],
        ["network", "create", "bench"],
        ["run", "-d", "--name", "names", "--network", "bench", *aliases, "bench:1", f"/{_BUSYBOX}", "sleep", "7200"],
    ):
        subprocess.run([*docker, *arguments], check=True, capture_output=True)
    found = subprocess.run(
        [*docker, "inspect", "-f", "{{.State.Pid}}", "names"], check=True, capture_output=True, text=True
    )
    return found.stdout.strip()
