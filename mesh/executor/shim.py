"""The small parent of one process task, which outlives the daemon: `python -I shim.py TASK_DIRECTORY STATUS_FD`.

Reads `shim-input.json`, enters the task's network namespace, makes the others, starts the command, keeps its output in
a bounded log, waits, and writes `exit.json`. Three processes: this shim, the task's init (PID 1 inside: forwards
signals, reaps), and the command. On STATUS_FD one line is written: "ok PID" (of the init, seen from here), or
"error SENTENCE". Runs as a script by path, without the product's other modules: it must start fast and stay small.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import select
import signal
import socket
import sys
from typing import Any, NoReturn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import namespaces as ns  # type: ignore[import-not-found]

LOG_MAX_BYTES = 10 << 20  # of the current file; one older file of the same size is kept
READ_BYTES = 64 << 10
FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip


def main() -> None:
    """Detach from the daemon, then run the task to its end."""
    directory, status = sys.argv[1], int(sys.argv[2])
    if os.fork():
        os._exit(0)
    os.setsid()
    write_json(directory, "shim.json", {"pid": os.getpid(), "start": ns.start_time(os.getpid())})
    with open(os.path.join(directory, "shim-input.json"), encoding="utf-8") as file:
        task = json.load(file)
    try:
        output, init, failure = launch(task, status)
    except OSError as error:
        refuse(directory, status, f"{error.strerror or error}")
    with os.fdopen(failure, "rb") as pipe:
        refusal = pipe.read().decode()
    if refusal:
        os.waitpid(init, 0)
        refuse(directory, status, refusal)
    write_json(directory, "started.json", {"pid": init, "start": ns.start_time(init)})
    os.write(status, f"ok {init}\n".encode())
    os.close(status)
    keep_output(output, os.path.join(directory, "log"))
    _, code = os.waitpid(init, 0)
    finish(directory, code)


def launch(task: dict[str, Any], status: int) -> tuple[int, int, int]:
    """Start the task's init. Returns (its output, its pid, a pipe with the reason if it cannot start the command)."""
    for path in task["cgroups"]:
        with open(path, "w", encoding="ascii") as file:
            file.write("0")
    ns.setns(task["netns"], ns.CLONE_NEWNET)
    ns.unshare(ns.CLONE_NEWPID)  # for the next child; the shim itself keeps its view of the machine
    output, output_end = os.pipe()
    failure, failure_end = os.pipe()
    init = os.fork()
    if init == 0:
        os.close(status)
        os.dup2(output_end, 1)
        os.dup2(output_end, 2)
        be_init(task, failure_end)
    os.close(output_end)
    os.close(failure_end)
    return output, init, failure


def be_init(task: dict[str, Any], failure: int) -> NoReturn:
    """PID 1 of the task: set the stage, start the command, forward signals, reap, and end as the command ends."""
    try:
        set_stage(task)
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        command = os.fork()
        if command == 0:
            be_command(task, failure)
    except OSError as error:
        fail(failure, f"{error.strerror or error}")
    os.close(failure)
    for number in FORWARDED:
        signal.signal(number, lambda received, _: os.kill(command, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    while True:
        with contextlib.suppress(InterruptedError):
            pid, code = os.wait()
            if pid == command:
                os._exit(exit_code(code))


def set_stage(task: dict[str, Any]) -> None:
    """Mounts, host name and root of the task."""
    ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC)
    ns.mount("none", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
    socket.sethostname(task["hostname"])
    root = task["rootfs"]
    if root:
        ns.mount(root, root, flags=ns.MS_BIND | ns.MS_REC)
    for name, source in task["files"].items():
        target = f"{root}/etc/{name}"
        if not os.path.lexists(target) and root:
            os.makedirs(f"{root}/etc", exist_ok=True)
            with open(target, "w", encoding="ascii"):
                pass
        if os.path.exists(target):
            ns.mount(source, os.path.realpath(target), flags=ns.MS_BIND)
    if root:
        os.makedirs(f"{root}/proc", exist_ok=True)
        os.makedirs(f"{root}/dev", exist_ok=True)
        ns.mount("/dev", f"{root}/dev", flags=ns.MS_BIND | ns.MS_REC)
        os.chdir(root)
        ns.pivot_root(".", ".")
        ns.unmount(".")
        os.chdir("/")
    ns.mount("proc", "/proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)


def be_command(task: dict[str, Any], failure: int) -> NoReturn:
    """Become the command."""
    try:
        os.setsid()
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.chdir(task["workdir"] or "/")
        become(task["user"])
        for number in FORWARDED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.set_inheritable(failure, False)
        os.execvpe(task["command"][0], task["command"], task["env"])
    except FileNotFoundError:
        fail(failure, f'command "{task["command"][0]}" not found')
    except (OSError, KeyError) as error:
        fail(failure, f'cannot run "{task["command"][0]}": {error}')


def become(user: str) -> None:
    """Drop to a user ("name", "uid", "name:group", "uid:gid"). Raises KeyError for one that does not exist."""
    if not user:
        return
    name, _, group = user.partition(":")
    entry = None if name.isdigit() else pwd.getpwnam(name)
    uid = int(name) if entry is None else entry.pw_uid
    gid = entry.pw_gid if entry is not None else uid
    if group:
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    os.setgroups(os.getgrouplist(name, gid) if entry is not None else [gid])
    os.setgid(gid)
    os.setuid(uid)


def keep_output(source: int, path: str) -> None:
    """Copy the task's output into a log of bounded size until the last writer is gone."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    size = os.fstat(log).st_size
    while True:
        select.select([source], [], [])
        try:
            data = os.read(source, READ_BYTES)
        except InterruptedError:
            continue
        if not data:
            os.close(log)
            return
        if size + len(data) > LOG_MAX_BYTES:
            os.close(log)
            os.replace(path, f"{path}.1")
            log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
            size = 0
        with contextlib.suppress(OSError):  # a full disk loses output, it does not stop the task
            size += os.write(log, data)


def exit_code(status: int) -> int:
    """A wait status as shells show it: the exit code, or 128 + the signal."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def finish(directory: str, status: int) -> None:
    """Write down how the task ended."""
    write_json(directory, "exit.json", {"code": exit_code(status), "message": ""})


def refuse(directory: str, status: int, sentence: str) -> NoReturn:
    """The task cannot be started."""
    write_json(directory, "exit.json", {"code": 127, "message": sentence})
    with contextlib.suppress(OSError):
        os.write(status, f"error {sentence}\n".encode())
    os._exit(1)


def fail(pipe: int, sentence: str) -> NoReturn:
    """Tell the shim why the command cannot run."""
    with contextlib.suppress(OSError):
        os.write(pipe, sentence.encode())
    os._exit(127)


def write_json(directory: str, name: str, value: dict[str, Any]) -> None:
    """Write a file whole: a reader sees all of it or none."""
    path = os.path.join(directory, name)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError:
        sys.exit("the task's directory was removed: nothing is left to tell")
