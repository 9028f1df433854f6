"""The executor "process": a task is a command in namespaces of its own, with a shim that outlives this daemon.

`<state_dir>/tasks/<task id>/` holds a task's files: resolv.conf, hosts and hostname, `launch.json` (what the shim is to
do; written last, so its presence says "prepared"), and what the shim writes: `shim.json`, `started.json`, `exit.json`,
the log. The network namespace is `<netns_dir>/mesh-t-<task id>`. The presence of these is the state: every call looks
at what is there and does what is missing, so each may be repeated after a crash of either side. Blocking work runs in
threads; waiting is by pidfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from control.model import ProcessSpec
from mesh.executor import cgroup, netns, records
from mesh.executor.pidfd import ended, ends_within, send, signal_number
from mesh.executor.protocol import LOST, NEVER, Adopted, ExecutorError, Exit, Launch, Sandbox

# A shim says within this time that the command runs, or why not; it makes a few mounts and forks thrice.
START_TIMEOUT_S = 15.0
# After SIGKILL the kernel needs a moment to take the whole PID namespace down.
KILL_TIMEOUT_S = 10.0
POLL_S = 0.02
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHIM = Path(__file__).with_name("shim.py")


class ProcessExecutor:
    """See the module and `mesh.executor.protocol.Executor`."""

    name = "process"

    def __init__(self, state_dir: Path, netns_dir: str = "/run/netns") -> None:
        self._tasks = state_dir / "tasks"
        self._netns_dir = netns_dir

    async def adopt(self) -> list[Adopted]:
        """All prepared tasks; what a crash left half prepared or half removed is removed."""
        return await asyncio.to_thread(self._adopt)

    async def prepare(self, launch: Launch) -> Sandbox:
        """Make the task's directory, its network namespace and its groups."""
        return await asyncio.to_thread(self._prepare, launch)

    async def start(self, launch: Launch) -> int:
        """Start the task, once and for all; returns the pid of its init."""
        return await asyncio.to_thread(self._start, launch)

    async def wait(self, task_id: str) -> Exit:
        """Wait for the shim to end, then read what it wrote."""
        with self._open(task_id, "shim.json") as shim:
            if shim is not None:
                await ended(shim)
        return self._exit(task_id) or (LOST if self._was_started(task_id) else NEVER)

    async def stop(self, task_id: str, signal_name: str, grace_s: float) -> None:
        """Signal the task; kill its whole PID namespace after `grace_s`."""
        with self._open(task_id, "shim.json") as shim, self._open(task_id, "started.json") as init:
            if shim is None:
                return  # and the init ends with it
            if init is not None:
                send(init, signal_number(signal_name))
                if await ends_within(shim, grace_s):
                    return
            send(init if init is not None else shim, signal.SIGKILL)
            if not await ends_within(shim, KILL_TIMEOUT_S):
                raise ExecutorError(f"task {task_id} does not end after SIGKILL")

    async def remove(self, task_id: str) -> None:
        """Remove groups, namespace and directory; a task that still runs is killed."""
        await self.stop(task_id, "SIGKILL", 0)
        await asyncio.to_thread(self._remove, task_id)

    # --- blocking parts ---------------------------------------------------------------------------------------------

    def _adopt(self) -> list[Adopted]:
        found = []
        for task_id in sorted(os.listdir(self._tasks)) if self._tasks.is_dir() else ():
            sandbox = Sandbox(task_id, self._netns(task_id))
            if self._was_started(task_id):
                shim = self._living(task_id, "shim.json")
                ended = self._exit(task_id) or (None if shim is not None else LOST)
                found.append(Adopted(task_id, sandbox, self._living(task_id, "started.json") or shim, ended))
            elif self._is_prepared(task_id):
                found.append(Adopted(task_id, sandbox, None, None))
            else:
                with contextlib.suppress(ExecutorError):  # found again at the next start
                    self._remove(task_id)
        return found

    def _prepare(self, launch: Launch) -> Sandbox:
        sandbox = Sandbox(launch.task_id, self._netns(launch.task_id))
        if self._is_prepared(launch.task_id):
            return sandbox
        spec = _spec(launch)
        _check(launch, spec)
        directory = self._tasks / launch.task_id
        files = _files(launch)
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o750)
            for name, text in files.items():
                (directory / name).write_text(text)
            netns.create(sandbox.netns)
            task = {
                "command": list(spec.command),
                "env": {"PATH": DEFAULT_PATH, "HOSTNAME": launch.hostname, **spec.env},
                "workdir": spec.workdir,
                "user": spec.user,
                "hostname": launch.hostname,
                "rootfs": spec.rootfs and os.path.realpath(spec.rootfs),
                "netns": sandbox.netns,
                "files": {name: str(directory / name) for name in files},
                "cgroups": cgroup.place(launch.task_id, launch.spec.resources.limits),
            }
            records.write(str(directory / "launch.json"), task)
        except OSError as error:
            raise ExecutorError(f"task {launch.hostname}: cannot be prepared: {error}") from error
        return sandbox

    def _start(self, launch: Launch) -> int:
        started = self._read(launch.task_id, "started.json")
        if started is not None:
            return int(started["pid"])
        directory = self._tasks / launch.task_id
        try:
            answer = _run_shim(directory)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ExecutorError(f"task {launch.hostname}: cannot be started: {error}") from error
        if answer == "busy":  # with the shim of an earlier daemon, which was killed before it heard the answer
            answer = self._later_answer(launch.task_id)
        word, _, rest = answer.partition(" ")
        if word == "ok":
            return int(rest)
        if not rest:
            self._kill_shim(launch.task_id)
        raise ExecutorError(f"task {launch.hostname}: {rest or f'its shim failed, see {directory}/shim.log'}")

    def _later_answer(self, task_id: str) -> str:
        """What a shim that is at work already would have answered; "" if it does not come to that."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            started, ended = self._read(task_id, "started.json"), self._exit(task_id)
            if started is not None:
                return f"ok {started['pid']}"
            if ended is not None:
                return f"error {ended.message}"
            time.sleep(POLL_S)
        return ""

    def _kill_shim(self, task_id: str) -> None:
        with self._open(task_id, "shim.json") as shim:
            if shim is not None:
                send(shim, signal.SIGKILL)

    def _remove(self, task_id: str) -> None:
        directory = self._tasks / task_id
        try:
            (directory / "launch.json").unlink(missing_ok=True)  # from here on it is not prepared
            netns.remove(self._netns(task_id))
            cgroup.remove(task_id)
            if directory.exists():
                shutil.rmtree(directory)
        except OSError as error:
            raise ExecutorError(f"task {task_id}: cannot remove what is left of it: {error}") from error

    # --- what is there ----------------------------------------------------------------------------------------------

    def _netns(self, task_id: str) -> str:
        return f"{self._netns_dir}/mesh-t-{task_id}"

    def _read(self, task_id: str, file: str) -> dict[str, Any] | None:
        return records.read(str(self._tasks / task_id / file))

    def _living(self, task_id: str, file: str) -> int | None:
        """The pid in one of the shim's files, while that very process lives."""
        return records.living(self._read(task_id, file))

    @contextlib.contextmanager
    def _open(self, task_id: str, file: str) -> Iterator[int | None]:
        """A pidfd of the living process in one of the shim's files, or None."""
        record = self._read(task_id, file)
        pid = records.living(record)
        descriptor = None
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
        try:
            # Looked at again: now the descriptor keeps the pid from being given to another process.
            yield descriptor if records.living(record) is not None else None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _is_prepared(self, task_id: str) -> bool:
        return self._read(task_id, "launch.json") is not None and netns.exists(self._netns(task_id))

    def _was_started(self, task_id: str) -> bool:
        """A shim was seen, and the task is not half removed."""
        return self._read(task_id, "launch.json") is not None and self._read(task_id, "shim.json") is not None

    def _exit(self, task_id: str) -> Exit | None:
        written = self._read(task_id, "exit.json")
        return Exit(int(written["code"]), str(written["message"])) if written is not None else None


def _spec(launch: Launch) -> ProcessSpec:
    if launch.spec.process is None:
        raise ExecutorError(f"task {launch.hostname}: it is a container, and this node runs only processes")
    return launch.spec.process


def _check(launch: Launch, spec: ProcessSpec) -> None:
    """Say early what the shim would find out at start. Raises ExecutorError."""
    if spec.rootfs:
        if not os.path.isdir(spec.rootfs):
            raise ExecutorError(f"task {launch.hostname}: root file system {spec.rootfs} does not exist on this node")
        return
    name = spec.command[0]
    search = spec.env.get("PATH", DEFAULT_PATH)
    if (os.path.isabs(name) or "/" not in name) and shutil.which(name, path=search) is None:
        missing = "not found" if not os.path.exists(name) or "/" not in name else "cannot be executed"
        raise ExecutorError(f'task {launch.hostname}: command "{name}" {missing} on this node')


def _files(launch: Launch) -> dict[str, str]:
    """The task's own files in /etc. Its own name is left to the name server, which knows its address."""
    resolver = "".join(f"nameserver {address}\n" for address in launch.nameservers)
    if launch.search:
        resolver += f"search {' '.join(launch.search)}\noptions ndots:1\n"
    return {
        "resolv.conf": resolver,
        "hostname": f"{launch.hostname}\n",
        "hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    }


def _run_shim(directory: Path) -> str:
    """Start a shim and hear how it went: its line, or "" if it says none. Raises OSError, TimeoutExpired."""
    status, status_end = os.pipe()
    with os.fdopen(status, "rb") as answer:
        try:
            command = [sys.executable, "-I", "-S", str(_SHIM), str(directory), str(status_end)]
            with open(directory / "shim.log", "ab") as log:
                subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(status_end,), check=False,
                    timeout=START_TIMEOUT_S, cwd="/",
                )  # fmt: skip
        finally:
            os.close(status_end)
        # One line, written at once and shorter than a pipe's buffer.
        poll = select.poll()  # select(2) knows descriptors below 1,024 only
        poll.register(answer, select.POLLIN)
        ready = poll.poll(START_TIMEOUT_S * 1000)
        return answer.readline().decode(errors="replace").strip() if ready else ""
