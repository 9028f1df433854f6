"""A lab: hosts as bundles of namespaces, joined by a switch, with an outside client. Blocking; used by `mesh lab`.

Everything of a lab is below `<root>/<name>`: `lab.json` (what runs in its hosts), and for each host a directory with
`init.json` (its first process, by pid, start time and boot, so that only that is ever killed), `disk` (its
/var/lib/meshd), `meshd.log`. The switch is a namespace with a bridge (10.66.0.0/24) that also routes to the client's
network (198.51.100.0/24), so an outside address is really outside. Nothing is added to the machine's own namespaces.

    h1 10.66.0.11 ─┐
    h2 10.66.0.12 ─┼─ br0 10.66.0.1 [ switch ] 198.51.100.1 ── 198.51.100.2 client
    h3 10.66.0.13 ─┘
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.executor import records
from mesh.executor.namespaces import started
from mesh.lab import engine

# Not below /run, which is memory, and of which every host has its own.
ROOT = Path("/var/lib/mesh-lab")
GROUPS = Path("/sys/fs/cgroup")
MAX_HOSTS = 20  # each is a daemon of some 60 MB, and two cores share them all
GATEWAY = "10.66.0.1"
CLIENT_ADDRESS = "198.51.100.2"
CLIENT_GATEWAY = "198.51.100.1"
SWITCH, CLIENT = "switch", "client"
# A host's first process is up in a fraction of this, also on a busy machine; so is a link.
BOOT_TIMEOUT_S = 15.0
# A daemon answers on its socket within this time; Python alone needs half a second on a busy core.
DAEMON_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 15.0
POLL_S = 0.02
LOG_MAX_BYTES = 10 << 20  # a daemon's log that has grown beyond is begun anew when the daemon is
_BIN = Path(sys.executable).parent  # where `mesh` and `meshd` are installed
_INIT = Path(__file__).with_name("init.py")
# Runs a daemon as a child of the host's first process, with its output in the log, and says its pid in the host.
_SPAWN = 'setsid "$0" "$@" </dev/null >&2 & echo $!'


class LabError(Exception):
    """The lab cannot do what was asked. One sentence for the user."""


class LabMissingError(LabError):
    """There is no such lab or host."""


class LabConflictError(LabError):
    """It is so already."""


class LabRefusedError(LabError):
    """Not without root."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """What runs in every host. `{host}` in the command is its name; `socket` is where it listens when it is ready."""

    command: tuple[str, ...]
    socket: str = ""


MESHD = Daemon((str(_BIN / "meshd"), "--node-name", "{host}", "--log-format", "text"), "/run/meshd/meshd.sock")


@dataclass(frozen=True, slots=True)
class HostStatus:
    """One row of `mesh lab status`. `pid` is the host's first process, 0 when it is off."""

    name: str
    address: str
    state: str  # "up", "off"
    daemon: str  # "running", "stopped", "" where none belongs
    pid: int


class Lab:
    """One lab by name. Every method may raise LabError."""

    def __init__(self, name: str = "lab", root: Path = ROOT) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
            raise LabError(f'"{name}" is no name for a lab: up to 31 small letters, digits and hyphens')
        self.name, self.directory = name, root / name

    # --- life -------------------------------------------------------------------------------------------------------

    def up(
        self,
        hosts: int,
        daemon: Daemon = MESHD,
        tell: Callable[[str], None] = lambda _: None,
        *,
        engines: bool = False,
    ) -> None:
        """Make switch, client and hosts, and start the daemon in each; with `engines` also a Docker Engine.

        On failure nothing is left.
        """
        _need_root()
        if engines:
            _or_lab_error(engine.check)
        if not 1 <= hosts <= MAX_HOSTS:
            raise LabError(f"a lab has 1 to {MAX_HOSTS} hosts, not {hosts}")
        try:
            self.directory.mkdir(parents=True)
        except FileExistsError:
            raise LabConflictError(
                f'lab "{self.name}" is up already, or was not taken down: {self._hint("down")}'
            ) from None
        except OSError as error:
            raise LabError(f"cannot make {self.directory}: {error.strerror}") from error
        try:
            names = [f"h{number}" for number in range(1, hosts + 1)]
            saved = {"hosts": names, "command": list(daemon.command), "socket": daemon.socket, "engines": engines}
            records.write(str(self.directory / "lab.json"), saved)
            tell("switch and client")
            self._make_switch()
            for name in names:
                tell(f"{name} at {self.address(name)}")
                self._power_on(name)
                self._spawn_engine(name)
            for name in names:
                tell(f"{name} gets its images")
                self._provide_images(name)
                self._spawn(name)
            for name in names:
                tell(f"{name} waits for its daemon")
                self._await_daemon(name)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Kill every host and remove every file. May be repeated, also after a crash in the middle of anything."""
        _need_root()
        names = [path.name for path in self.directory.iterdir() if path.is_dir()] if self.directory.is_dir() else []
        self._kill(names)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.directory)
        with contextlib.suppress(OSError):  # other labs are in it, or it is not there
            self.directory.parent.rmdir()

    def start(self, host: str) -> None:
        """Boot a host with its disk, and its daemon."""
        self._check(host)
        if self._pid(host) is not None:
            raise LabConflictError(f"{host} is up already")
        self._power_on(host)
        self._spawn_engine(host)
        self._provide_images(host)
        self.start_daemon(host)

    def kill(self, host: str) -> None:
        """Power off: everything in the host dies at once. Its disk stays."""
        self._check(host)
        if self._pid(host) is None:
            raise LabConflictError(f"{host} is off already")
        self._kill([host])
        self._unplug(host)

    def start_daemon(self, host: str) -> None:
        """Start the daemon of a host and wait until it answers."""
        self._check(host)
        if self.daemon_pid(host) is not None:
            raise LabConflictError(f"the daemon runs already in {host}")
        self._spawn(host)
        self._await_daemon(host)

    def stop_daemon(self, host: str) -> None:
        """End the daemon in order (SIGTERM); tasks and the kernel stay as they are."""
        self._end_daemon(host, signal.SIGTERM)

    def kill_daemon(self, host: str) -> None:
        """kill -9 of the daemon alone; tasks and the kernel stay as they are."""
        self._end_daemon(host, signal.SIGKILL)

    def restart_daemon(self, host: str) -> None:
        """End the daemon in order, if it runs, and start it again."""
        self._check(host)
        if self.daemon_pid(host) is not None:
            self.stop_daemon(host)
        self.start_daemon(host)

    # --- use --------------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is something to take down."""
        return self.directory.exists()

    def hosts(self) -> list[str]:
        """All hosts that the lab has, on or off, in order."""
        saved = records.read(str(self.directory / "lab.json"))
        if saved is None:
            raise LabMissingError(f'there is no lab "{self.name}": {self._hint("up")}')
        return [str(name) for name in saved["hosts"]]

    def address(self, host: str) -> str:
        """The underlay address of a host, or the client's."""
        return CLIENT_ADDRESS if host == CLIENT else f"10.66.0.{10 + int(host[1:])}"

    def log(self, host: str) -> Path:
        """Where the daemon of a host logs to."""
        return self.directory / host / "meshd.log"

    def status(self) -> list[HostStatus]:
        """Every host and the client."""
        _need_root()
        rows = []
        for name in (*self.hosts(), CLIENT):
            pid = self._pid(name)
            daemon = "running" if self.daemon_pid(name) is not None else "stopped"
            state = "up" if pid is not None else "off"
            rows.append(HostStatus(name, self.address(name), state, "" if name == CLIENT else daemon, pid or 0))
        return rows

    def daemon_pid(self, host: str) -> int | None:
        """The daemon's pid as its host sees it, while it runs."""
        return self._process(host, "daemon.json")

    def _process(self, host: str, file: str) -> int | None:
        """The pid in a record of `_run_in_background`, while that very process runs."""
        init, record = self._pid(host), records.read(str(self.directory / host / file))
        if init is None or record is None or record["init"] != init or record["start"] is None:
            return None
        return (
            int(record["pid"]) if started(f"/proc/{init}/root/proc/{record['pid']}/stat") == record["start"] else None
        )

    def command(self, host: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The command line and environment that run `argv` inside a host or the client."""
        _need_root()
        return [*self._enter(host), *argv], _environment()

    def exec(self, host: str, argv: Sequence[str], timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command inside a host (or "client") and return what it said. Raises subprocess.TimeoutExpired."""
        command, environment = self.command(host, ["setpriv", "--pdeathsig", "KILL", "--", *argv])
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    # --- hosts ------------------------------------------------------------------------------------------------------

    def _make_switch(self) -> None:
        self._boot(SWITCH)
        client = self._boot(CLIENT)
        self._net(SWITCH, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self._ip(
            SWITCH,
            "link set lo up",
            "link add br0 type bridge",
            f"address add {GATEWAY}/24 dev br0",
            "link set br0 up",
            f"link add client type veth peer name eth0 netns {client}",
            f"address add {CLIENT_GATEWAY}/24 dev client",
            "link set client up",
        )
        self._configure(CLIENT, CLIENT_GATEWAY)

    def _power_on(self, host: str) -> None:
        (self.directory / host / "disk").mkdir(parents=True, exist_ok=True)
        pid = self._boot(host, "full")
        self._unplug(host)  # what is left of the last time goes by itself, but not at once
        hardware = f"02:00:0a:42:00:{10 + int(host[1:]):02x}"  # a machine keeps it over a reboot, and peers remember it
        plug = f"link add {host} type veth peer name eth0 address {hardware} netns {pid}"
        self._ip(SWITCH, plug, f"link set {host} master br0", f"link set {host} up")
        self._configure(host, GATEWAY)

    def _configure(self, name: str, gateway: str) -> None:
        self._ip(
            name,
            "link set lo up",
            f"address add {self.address(name)}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {gateway}",
        )

    def _unplug(self, host: str) -> None:
        """Take a host's cable out of the switch, if there is one."""
        with contextlib.suppress(LabError):
            self._ip(SWITCH, f"link del {host}")

    def _boot(self, name: str, *options: str) -> int:
        """Start a host's first process; its pid."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        arguments = [str(os.getpid()), str(directory), name, self._group(name), *options]
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(_INIT), *arguments],
            capture_output=True,
            text=True,
            timeout=BOOT_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        pid = self._pid(name)
        if done.returncode or pid is None:
            raise LabError(f"cannot boot {name}: {done.stderr.strip() or 'its first process died'}")
        return pid

    def _kill(self, names: Iterable[str]) -> None:
        """Kill hosts if their first processes are those that were recorded, and wait until nothing of them is left."""
        living = {name: pid for name in names if (pid := self._pid(name)) is not None}
        for pid in living.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name, pid in living.items():
            _until(functools.partial(self._is_off, name), KILL_TIMEOUT_S, f"{name} (process {pid}) does not end")
        for name in names:
            _remove_groups(self._group(name))

    def _is_off(self, name: str) -> bool:
        return self._pid(name) is None

    def _group(self, host: str) -> str:
        """The name of a host's control groups."""
        return f"mesh-lab.{self.name}.{host}"

    def _pid(self, name: str) -> int | None:
        """The first process of a host, while it lives."""
        return records.living(records.read(str(self.directory / name / "init.json")))

    # --- daemons ----------------------------------------------------------------------------------------------------

    def _spawn(self, host: str) -> None:
        """Start the daemon of a host."""
        saved = records.read(str(self.directory / "lab.json")) or {}
        command = [str(word).replace("{host}", host) for word in saved["command"]]
        self._run_in_background(host, command, self.log(host), "daemon.json", "a daemon")

    def _run_in_background(self, host: str, command: Sequence[str], log: Path, record: str, what: str) -> None:
        """Run a command as a child of the host's first process, and note which process it is."""
        if log.exists() and log.stat().st_size > LOG_MAX_BYTES:
            log.unlink()
        with open(log, "ab") as output:
            done = subprocess.run(
                [*self._enter(host), "sh", "-c", _SPAWN, *command],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, env=_environment(), check=False,
                timeout=BOOT_TIMEOUT_S,
            )  # fmt: skip
        if done.returncode:
            raise LabError(f"cannot start {what} in {host}: {_last_line(log)}")
        pid, init = int(done.stdout), self._pid(host)
        start = started(f"/proc/{init}/root/proc/{pid}/stat")
        records.write(str(self.directory / host / record), {"pid": pid, "start": start, "init": init})

    def _await_daemon(self, host: str) -> None:
        """Wait until the daemon of a host answers."""
        path = (records.read(str(self.directory / "lab.json")) or {}).get("socket", "")

        def ready() -> bool:
            if self.daemon_pid(host) is None:
                raise LabError(f"the daemon does not come up in {host}: {_last_line(self.log(host))}")
            return not path or _answers(f"/proc/{self._pid(host)}/root{path}")

        _until(ready, DAEMON_TIMEOUT_S, f"the daemon in {host} does not answer, see {self.log(host)}")

    def _end_daemon(self, host: str, number: signal.Signals) -> None:
        self._check(host)
        pid = self.daemon_pid(host)
        if pid is None:
            raise LabConflictError(f"no daemon runs in {host}")
        self.exec(host, ["kill", f"-{number.value}", str(pid)])
        _until(lambda: self.daemon_pid(host) is None, KILL_TIMEOUT_S, f"the daemon in {host} does not end")

    # --- engines ----------------------------------------------------------------------------------------------------

    def has_engines(self) -> bool:
        """Whether each host has a Docker Engine."""
        return bool((records.read(str(self.directory / "lab.json")) or {}).get("engines"))

    def engine_pid(self, host: str) -> int | None:
        """The pid of a host's engine as its host sees it, while it runs."""
        return self._process(host, "engine.json")

    def start_engine(self, host: str) -> None:
        """Start the engine of a host, which is not running, and wait until it answers."""
        self._check(host)
        if self.engine_pid(host) is not None:
            raise LabConflictError(f"the Docker Engine runs already in {host}")
        self._spawn_engine(host)
        self._provide_images(host)

    def stop_engine(self, host: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End the engine of a host: in order, with its containers; or by SIGKILL, which leaves them running."""
        self._check(host)
        pid = self.engine_pid(host)
        if pid is None:
            raise LabConflictError(f"no Docker Engine runs in {host}")
        self.exec(host, ["kill", f"-{number.value}", str(pid)])
        _until(lambda: self.engine_pid(host) is None, engine.STOP_TIMEOUT_S, f"the engine in {host} does not end")

    def _spawn_engine(self, host: str) -> None:
        if self.has_engines():
            directory = self.directory / host
            command = engine.command(directory / "docker", self._group(host))
            self._run_in_background(host, command, directory / "engine.log", "engine.json", "a Docker Engine")

    def _provide_images(self, host: str) -> None:
        if not self.has_engines():
            return
        socket_path = f"/proc/{self._pid(host)}/root{engine.SOCKET}"

        def ready() -> bool:
            if self.engine_pid(host) is None:
                log = self.directory / host / "engine.log"
                raise LabError(f"the Docker Engine does not come up in {host}: {_last_line(log)}")
            return _answers(socket_path)

        _until(ready, engine.START_TIMEOUT_S, f"the Docker Engine in {host} does not answer")
        _or_lab_error(lambda: engine.provide_images(socket_path, self.directory))

    # --- the way in -------------------------------------------------------------------------------------------------

    def _enter(self, host: str) -> list[str]:
        known = (*self.hosts(), CLIENT)
        if host not in known:
            raise LabMissingError(f'lab "{self.name}" has no host "{host}": there are {", ".join(known)}')
        pid = self._pid(host)
        if pid is None:
            raise LabError(f"{host} is off: {self._hint(f'start {host}')}")
        return ["nsenter", "-t", str(pid), "-n", "-m", "-u", "-i", "-p", "--"]

    def _net(self, name: str, *argv: str, script: str = "") -> None:
        """Run a command of the machine in a host's network namespace."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._pid(name) or ""), "-n", "--", *argv],
            capture_output=True, text=True, check=False, input=script, timeout=BOOT_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode:
            raise LabError(f"cannot wire {name}: {done.stderr.strip()}")

    def _ip(self, name: str, *lines: str) -> None:
        self._net(name, "ip", "-batch", "-", script="\n".join(lines) + "\n")

    def _check(self, host: str) -> None:
        _need_root()
        hosts = self.hosts()
        if host not in hosts:
            raise LabMissingError(f'lab "{self.name}" has no host "{host}": there are {", ".join(hosts)}')

    def _hint(self, verb: str) -> str:
        return f"mesh lab {verb}" if self.name == "lab" else f"mesh lab --name {self.name} {verb}"


def _or_lab_error(act: Callable[[], None]) -> None:
    try:
        act()
    except engine.LabEngineError as error:
        raise LabError(str(error)) from error


def _need_root() -> None:
    if os.geteuid() != 0:
        raise LabRefusedError("a lab needs root: it makes namespaces and enters them")


def _environment() -> dict[str, str]:
    """The caller's, but for what configures a daemon or the `mesh` command of the machine itself."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("MESH", "NOTIFY", "WATCHDOG"))}
    return keep | {"PATH": f"{_BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def _until(condition: Callable[[], bool], timeout_s: float, complaint: str) -> None:
    """Return when the condition holds. Raises LabError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(complaint)
        time.sleep(POLL_S)


def _answers(path: str) -> bool:
    """Whether somebody listens on a UNIX socket; its file may outlive who did."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _last_line(log: Path) -> str:
    """What a daemon said last."""
    with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        return file.read().decode(errors="replace").strip().rpartition("\n")[2] or "it says nothing"
    return "it says nothing"


def _remove_groups(group: str) -> None:
    """Remove a host's control groups, whose processes have been killed."""
    hierarchies = [GROUPS, *(path for path in GROUPS.iterdir() if path.is_dir())] if GROUPS.is_dir() else []
    for top in [hierarchy / group for hierarchy in hierarchies]:
        for directory, _, _ in os.walk(top, topdown=False):
            _until(functools.partial(_removed, directory), KILL_TIMEOUT_S, f"control group {directory} is in use")


def _removed(group: str) -> bool:
    try:
        os.rmdir(group)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:  # the last process has not quite gone
            raise LabError(f"cannot remove control group {group}: {error.strerror}") from error
        return False
    return True
