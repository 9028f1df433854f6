"""The executor "process": a task is a command in namespaces of its own, with a shim that outlives this daemon.

`<state_dir>/tasks/<task id>/` holds a task's files: `launch.json`, resolv.conf, hosts, hostname, the log, and what the
shim writes (`shim.json`, `started.json`, `exit.json`). The network namespace is `<netns_dir>/mesh-t-<task id>`. The
presence of these is the state: every call looks at what is there and does what is missing, so each may be repeated
after a crash of either side. Blocking work runs in threads; waiting is by pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from pyroute2 import netns

from control.model import ProcessSpec
from mesh.executor import cgroup, namespaces
from mesh.executor.protocol import Adopted, ExecutorError, Exit, Launch, Sandbox

# A shim says within this time that the command runs, or why not; it makes a few mounts and forks twice.
START_TIMEOUT_S = 15.0
# After SIGKILL the kernel needs a moment to take the whole PID namespace down.
KILL_TIMEOUT_S = 10.0
LOST = Exit(137, "its shim vanished: the machine was restarted or the task was killed from outside")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHIM = Path(__file__).with_name("shim.py")


class ProcessExecutor:
    """See the module and `mesh.executor.protocol.Executor`."""

    name = "process"

    def __init__(self, state_dir: Path, netns_dir: str = "/run/netns") -> None:
        self._tasks = state_dir / "tasks"
        self._netns_dir = netns_dir

    async def adopt(self) -> list[Adopted]:
        """All tasks whose directory is complete; what a crash left half prepared is prepared again."""
        return await asyncio.to_thread(self._adopt)

    async def prepare(self, launch: Launch) -> Sandbox:
        """Make the task's directory and its network namespace."""
        return await asyncio.to_thread(self._prepare, launch)

    async def start(self, launch: Launch) -> int:
        """Start the shim, unless it runs already."""
        return await asyncio.to_thread(self._start, launch)

    async def wait(self, task_id: str) -> Exit:
        """Wait for the shim to end, then read what it wrote."""
        shim = self._shim(task_id)
        if shim is not None:
            await _process_end(shim)
        return self._exit(task_id) or LOST

    async def stop(self, task_id: str, signal_name: str, grace_s: float) -> None:
        """Signal the task; kill its whole PID namespace after `grace_s`."""
        shim, init = self._shim(task_id), self._running(task_id, "started.json")
        if shim is None:
            return
        if init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, _signal(signal_name))
        if not await _ends_within(shim, grace_s):
            for pid in (init, None if init is not None else shim):
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if not await _ends_within(shim, KILL_TIMEOUT_S):
                raise ExecutorError(f"task {task_id} does not end after SIGKILL")

    async def remove(self, task_id: str) -> None:
        """Remove directory, namespace and groups."""
        await asyncio.to_thread(self._remove, task_id)

    # --- blocking parts ---------------------------------------------------------------------------------------------

    def _adopt(self) -> list[Adopted]:
        found = []
        for directory in sorted(self._tasks.iterdir()) if self._tasks.is_dir() else ():
            task_id = directory.name
            prepared = (directory / "launch.json").exists() and _is_namespace(self._netns(task_id))
            if not prepared and not self._was_started(task_id):
                continue
            ended = self._exit(task_id)
            pid = self._running(task_id, "started.json") or self._shim(task_id)
            if ended is None and pid is None and self._was_started(task_id):
                ended = LOST
            found.append(Adopted(task_id, Sandbox(task_id, self._netns(task_id)), pid, ended))
        return found

    def _was_started(self, task_id: str) -> bool:
        return (self._tasks / task_id / "shim.json").exists()

    def _prepare(self, launch: Launch) -> Sandbox:
        spec = self._spec(launch)
        if spec.rootfs and not Path(spec.rootfs).is_dir():
            raise ExecutorError(f"root file system {spec.rootfs} does not exist on this node")
        if not spec.rootfs and shutil.which(spec.command[0], path=_path(spec)) is None:
            raise ExecutorError(f'command "{spec.command[0]}" not found on this node')
        directory = self._tasks / launch.task_id
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o750)
            for name, text in _files(launch).items():
                (directory / name).write_text(text)
            if not _is_namespace(self._netns(launch.task_id)):
                Path(self._netns(launch.task_id)).unlink(missing_ok=True)
                netns.create(self._netns(launch.task_id))
            (directory / "launch.json").write_text(json.dumps(self._input(launch, spec)))
        except OSError as error:
            raise ExecutorError(f"cannot prepare {launch.hostname}: {error}") from error
        return Sandbox(launch.task_id, self._netns(launch.task_id))

    def _input(self, launch: Launch, spec: ProcessSpec) -> dict[str, Any]:
        directory = self._tasks / launch.task_id
        return {
            "command": list(spec.command),
            "env": {"PATH": DEFAULT_PATH, "HOSTNAME": launch.hostname, "HOME": "/", **spec.env},
            "workdir": spec.workdir,
            "user": spec.user,
            "hostname": launch.hostname,
            "rootfs": spec.rootfs.rstrip("/"),
            "netns": self._netns(launch.task_id),
            "files": {name: str(directory / name) for name in _files(launch)},
            "cgroups": [],
        }

    def _start(self, launch: Launch) -> int:
        running = self._running(launch.task_id, "started.json")
        if running is not None:
            return running
        directory = self._tasks / launch.task_id
        task = self._input(launch, self._spec(launch))
        try:
            task["cgroups"] = cgroup.place(launch.task_id, launch.spec.resources.limits)
            (directory / "shim-input.json").write_text(json.dumps(task))
            (directory / "exit.json").unlink(missing_ok=True)
        except OSError as error:
            raise ExecutorError(f"cannot start {launch.hostname}: {error}") from error
        return _run_shim(directory, launch.hostname)

    def _remove(self, task_id: str) -> None:
        directory, namespace = self._tasks / task_id, Path(self._netns(task_id))
        try:
            if _is_namespace(str(namespace)):
                netns.remove(str(namespace))
            namespace.unlink(missing_ok=True)
            cgroup.remove(task_id)
            if directory.exists():
                shutil.rmtree(directory)
        except OSError as error:
            raise ExecutorError(f"cannot remove what is left of task {task_id}: {error}") from error

    # --- what is there ----------------------------------------------------------------------------------------------

    def _netns(self, task_id: str) -> str:
        return f"{self._netns_dir}/mesh-t-{task_id}"

    def _spec(self, launch: Launch) -> ProcessSpec:
        if launch.spec.process is None:
            raise ExecutorError(f"{launch.hostname} is a container, and this node runs only processes")
        return launch.spec.process

    def _shim(self, task_id: str) -> int | None:
        """The shim's pid while it lives."""
        return self._running(task_id, "shim.json")

    def _running(self, task_id: str, file: str) -> int | None:
        """The pid in one of the shim's files, while that very process lives."""
        written = _read_json(self._tasks / task_id / file)
        if written is None:
            return None
        try:
            return int(written["pid"]) if namespaces.start_time(written["pid"]) == written["start"] else None
        except OSError:
            return None

    def _exit(self, task_id: str) -> Exit | None:
        written = _read_json(self._tasks / task_id / "exit.json")
        return Exit(int(written["code"]), str(written["message"])) if written is not None else None


def _files(launch: Launch) -> dict[str, str]:
    """The task's own files in /etc."""
    resolver = "".join(f"nameserver {address}\n" for address in launch.nameservers)
    if launch.search:
        resolver += f"search {' '.join(launch.search)}\noptions ndots:1\n"
    return {
        "resolv.conf": resolver,
        "hostname": f"{launch.hostname}\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
    }


def _run_shim(directory: Path, name: str) -> int:
    """Start a shim and hear how it went. Raises ExecutorError with its sentence."""
    status, status_end = os.pipe()
    try:
        command = [sys.executable, "-I", str(_SHIM), str(directory), str(status_end)]
        with open(directory / "shim.log", "ab") as log:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(status_end,), check=False,
                timeout=START_TIMEOUT_S, cwd="/",
            )  # fmt: skip
        os.close(status_end)
        status_end = -1
        answer = _read_line(status, START_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExecutorError(f"cannot start {name}: {error}") from error
    finally:
        os.close(status)
        if status_end >= 0:
            os.close(status_end)
    word, _, rest = answer.partition(" ")
    if word == "ok":
        return int(rest)
    raise ExecutorError(f"cannot start {name}: {rest or f'its shim failed, see {directory}/shim.log'}")


def _read_line(descriptor: int, timeout_s: float) -> str:
    """One line from a pipe, "" at its end or after `timeout_s`."""
    data = b""
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], timeout_s)
        part = os.read(descriptor, 4096) if ready else b""
        if not part:
            break
        data += part
    return data.decode(errors="replace").strip()


async def _process_end(pid: int) -> None:
    """Return when a process, ours or not, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _ends_within(pid: int, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await _process_end(pid)
    except TimeoutError:
        return False
    return True


def _signal(name: str) -> signal.Signals:
    full = name if name.startswith("SIG") else f"SIG{name}"
    return signal.Signals[full] if full in signal.Signals.__members__ else signal.SIGTERM


def _path(spec: ProcessSpec) -> str:
    return spec.env.get("PATH", DEFAULT_PATH)


def _is_namespace(path: str) -> bool:
    """Whether a path is a bound namespace, not the empty file that an unmount or a reboot leaves behind."""
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except OSError:
        return False


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value
