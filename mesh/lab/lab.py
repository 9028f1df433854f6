"""A lab: hosts as bundles of namespaces, joined by a switch, with an outside client. Blocking; used by the command.

Everything of a lab is below `<root>/<name>`: `lab.json` says which processes are its hosts (pid and start time, so
that only they are ever killed), `h1/disk` is a host's disk, `h1/meshd.log` its daemon's log. The switch is a namespace
with a bridge (10.66.0.0/24) that also routes to the client's network (198.51.100.0/24), so an outside address is really
outside. Nothing is added to the machine's own namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.executor.namespaces import start_time

# Not below /run, of which every host has its own: the same path must lead to a host's disk inside and outside.
ROOT = Path("/var/lib/mesh-lab")
MAX_HOSTS = 20  # each is a daemon of some 60 MB, and two cores share them all
UNDERLAY = "10.66.0."
GATEWAY = "10.66.0.1"
CLIENT_ADDRESS = "198.51.100.2"
CLIENT_GATEWAY = "198.51.100.1"
SWITCH, CLIENT = "switch", "client"
# A host's first process is up in a fraction of this, also on a busy machine.
BOOT_TIMEOUT_S = 15.0
# A daemon answers on its socket within this time; Python alone needs half a second on a busy core.
DAEMON_TIMEOUT_S = 30.0
POLL_S = 0.05
_BIN = Path(sys.executable).parent  # where `mesh` and `meshd` are installed


class LabError(Exception):
    """The lab cannot do what was asked. One sentence for the user."""


@dataclass(frozen=True, slots=True)
class HostStatus:
    """One row of `mesh lab status`."""

    name: str
    address: str
    state: str  # "up", "off"
    daemon: str  # "running", "stopped"
    pid: int


class Lab:
    """One lab by name."""

    def __init__(self, name: str = "lab", root: Path = ROOT) -> None:
        self.name, self.directory = name, root / name
        self._file = self.directory / "lab.json"

    def exists(self) -> bool:
        """Whether the lab is there, whole or half."""
        return self._file.exists()

    # --- life -------------------------------------------------------------------------------------------------------

    def up(self, hosts: int) -> None:
        """Make switch, client and hosts, and start a daemon in each. On failure nothing is left."""
        if os.geteuid() != 0:
            raise LabError("a lab needs root: it makes namespaces")
        if not 1 <= hosts <= MAX_HOSTS:
            raise LabError(f"a lab has 1 to {MAX_HOSTS} hosts, not {hosts}")
        if self._file.exists():
            raise LabError(f'lab "{self.name}" is already there: mesh lab down')
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._make_switch()
            for number in range(1, hosts + 1):
                self.start(f"h{number}")
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Kill every host and remove every file. May be repeated, also after a crash in the middle of `up`."""
        for name, (pid, started) in self._processes().items():
            _kill(pid, started, f"lab host {name}")
        if self.directory.exists():
            shutil.rmtree(self.directory)
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()

    def start(self, host: str) -> None:
        """Boot a host with its disk, and its daemon."""
        self._check_name(host)
        if self._pid(host) is not None:
            raise LabError(f"{host} is up already")
        (self.directory / host / "disk").mkdir(parents=True, exist_ok=True)
        pid = self._boot(host, full=True)
        self._net(SWITCH, "ip", "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._net(SWITCH, "ip", "link", "set", host, "master", "br0", "up")
        self._net(host, "ip", "link", "set", "lo", "up")
        self._net(host, "ip", "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        self._net(host, "ip", "link", "set", "eth0", "up")
        self._net(host, "ip", "route", "add", "default", "via", GATEWAY)
        self.start_daemon(host)

    def kill(self, host: str) -> None:
        """Power off: everything in the host dies at once. Its disk stays."""
        self._check_name(host)
        pid, started = self._processes().get(host, (0, 0))
        if not pid or not _is(pid, started):
            raise LabError(f"{host} is off already")
        _kill(pid, started, f"lab host {host}")

    def start_daemon(self, host: str) -> None:
        """Start meshd in a host and wait until it answers."""
        log = self.directory / host / "meshd.log"
        script = 'echo $$ > /run/meshd.pid; exec "$0" "$@"'
        disk = str(self.directory / host / "disk")
        command = [str(_BIN / "meshd"), "--state-dir", disk, "--node-name", host, "--log-format", "text"]
        with open(log, "ab") as output:
            subprocess.Popen(
                [*self._enter(host), "sh", "-c", script, *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=self._environment(),
            )  # fmt: skip
        deadline = time.monotonic() + DAEMON_TIMEOUT_S
        while not self._daemon_answers(host):
            if time.monotonic() > deadline or (self._daemon(host) is None and log.stat().st_size):
                last = log.read_text(errors="replace").strip().rpartition("\n")[2]
                raise LabError(f"meshd does not come up in {host}: {last or 'it says nothing'}")
            time.sleep(POLL_S)

    def kill_daemon(self, host: str) -> None:
        """kill -9 of meshd alone; tasks and the kernel stay as they are."""
        pid = self._daemon(host)
        if pid is None:
            raise LabError(f"no meshd runs in {host}")
        self.exec(host, ["kill", "-9", str(pid)])
        while self._daemon(host) is not None:
            time.sleep(POLL_S)

    # --- use --------------------------------------------------------------------------------------------------------

    def hosts(self) -> list[str]:
        """All hosts that the lab has, on or off, in order."""
        if not self._file.exists():
            raise LabError(f'there is no lab "{self.name}": mesh lab up')
        names = [d.name for d in self.directory.iterdir() if d.name.startswith("h") and (d / "disk").is_dir()]
        return sorted(names, key=lambda name: int(name[1:]))

    def address(self, host: str) -> str:
        """The underlay address of a host, or the client's."""
        return CLIENT_ADDRESS if host == CLIENT else f"{UNDERLAY}{10 + int(host[1:])}"

    def status(self) -> list[HostStatus]:
        """Every host and the client."""
        rows = []
        for name in [*self.hosts(), CLIENT]:
            pid = self._pid(name)
            daemon = "running" if pid is not None and name != CLIENT and self._daemon(name) else "stopped"
            state = "up" if pid is not None else "off"
            rows.append(HostStatus(name, self.address(name), state, "" if name == CLIENT else daemon, pid or 0))
        return rows

    def command(self, host: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The command line and environment that run `argv` inside a host."""
        return [*self._enter(host), *argv], self._environment()

    def exec(self, host: str, argv: Sequence[str], timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command inside a host (or "client") and return what it said."""
        command, environment = self.command(host, argv)
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    # --- inside -----------------------------------------------------------------------------------------------------

    def _make_switch(self) -> None:
        self._boot(SWITCH, full=False)
        client = self._boot(CLIENT, full=False)
        for command in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "link", "add", "br0", "type", "bridge"),
            ("ip", "address", "add", f"{GATEWAY}/24", "dev", "br0"),
            ("ip", "link", "set", "br0", "up"),
            ("sysctl", "-qw", "net.ipv4.ip_forward=1"),
            ("ip", "link", "add", "client", "type", "veth", "peer", "name", "eth0", "netns", str(client)),
            ("ip", "address", "add", f"{CLIENT_GATEWAY}/24", "dev", "client"),
            ("ip", "link", "set", "client", "up"),
        ):
            self._net(SWITCH, *command)
        for command in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "address", "add", f"{CLIENT_ADDRESS}/24", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
            ("ip", "route", "add", "default", "via", CLIENT_GATEWAY),
        ):
            self._net(CLIENT, *command)

    def _boot(self, name: str, *, full: bool) -> int:
        directory = self.directory / name
        directory.mkdir(parents=True, exist_ok=True)
        init = Path(__file__).with_name("init.py")
        command = [sys.executable, "-I", str(init), name, *(["full"] if full else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BOOT_TIMEOUT_S, check=False)
        if done.returncode:
            raise LabError(f"cannot boot {name}: {done.stderr.strip()}")
        pid = int(done.stdout)
        self._record(name, pid)
        return pid

    def _record(self, name: str, pid: int) -> None:
        processes = self._processes() | {name: (pid, start_time(pid))}
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps({"processes": processes}))
        os.replace(temporary, self._file)

    def _processes(self) -> dict[str, tuple[int, int]]:
        try:
            saved = json.loads(self._file.read_text())["processes"]
        except FileNotFoundError:
            return {}
        return {name: (int(pid), int(started)) for name, (pid, started) in saved.items()}

    def _pid(self, name: str) -> int | None:
        """The first process of a host, while it lives."""
        pid, started = self._processes().get(name, (0, 0))
        return pid if pid and _is(pid, started) else None

    def _daemon(self, host: str) -> int | None:
        """The pid of meshd as the host sees it."""
        look = self.exec(host, ["sh", "-c", 'p=$(cat /run/meshd.pid) && grep -aq meshd "/proc/$p/cmdline" && echo $p'])
        return int(look.stdout) if look.stdout.strip().isdigit() else None

    def _daemon_answers(self, host: str) -> bool:
        return (
            self.exec(host, ["test", "-S", "/run/meshd/meshd.sock"]).returncode == 0 and self._daemon(host) is not None
        )

    def _enter(self, host: str) -> list[str]:
        if not self._file.exists():
            raise LabError(f'there is no lab "{self.name}": mesh lab up')
        pid = self._pid(host)
        if pid is None:
            known = host in (*self.hosts(), CLIENT)
            raise LabError(f"{host} is off" if known else f'lab "{self.name}" has no host "{host}"')
        return ["nsenter", "-t", str(pid), "-n", "-m", "-u", "-i", "-p", "--"]

    def _net(self, name: str, *argv: str) -> None:
        """Run a command of the outside in a host's network namespace."""
        pid = self._pid(name)
        done = subprocess.run(
            ["nsenter", "-t", str(pid), "-n", "--", *argv], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise LabError(f"cannot wire {name}: {' '.join(argv)}: {done.stderr.strip()}")

    def _environment(self) -> dict[str, str]:
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("MESH", "NOTIFY"))}
        return keep | {"PATH": f"{_BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

    def _check_name(self, host: str) -> None:
        if not (host.startswith("h") and host[1:].isdigit() and 1 <= int(host[1:]) <= MAX_HOSTS):
            raise LabError(f'no host is called "{host}": they are h1 to h{MAX_HOSTS}')
        if not self._file.exists():
            raise LabError(f'there is no lab "{self.name}": mesh lab up')


def _is(pid: int, started: int) -> bool:
    try:
        return start_time(pid) == started
    except OSError:
        return False


def _kill(pid: int, started: int, what: str) -> None:
    """Kill a process if it is still the one that was recorded, and wait until it is gone."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while _is(pid, started):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            raise LabError(f"{what} (process {pid}) does not end")
        time.sleep(POLL_S)
