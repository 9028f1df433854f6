"""The small parent of one process task, which outlives the daemon: `python -I -S shim.py TASK_DIRECTORY STATUS_FD`.

Three processes. This shim keeps the task's output in a bounded log, waits, and writes down how the task ended. The
task's init is PID 1 inside: it makes the namespaces, forwards signals and reaps; it dies with the shim, so that no task
runs unwatched. The command is its child: with PID 1's exemption from signals it could not be ended by SIGTERM.

Reads `launch.json`; writes `shim.json` and `started.json` (who the shim and the init are, see `records.identify`),
`log`, and `exit.json`. On STATUS_FD one line is written: "ok PID" (of the init, seen from here), "error SENTENCE", or
"busy" when the task has a shim already. Runs as a script by path, so that it needs neither the product installed nor
its libraries: it starts in 25 ms.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import signal
import socket
import sys
from typing import Any, NoReturn

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from mesh.executor import namespaces as ns
from mesh.executor import records

LOG_MAX_BYTES = 10 << 20  # of the current file; one older file of the same size is kept
READ_BYTES = 64 << 10
# Those that are not the kernel's verdict on what this very process did, and can be caught.
FORWARDED = signal.valid_signals() - {
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL,
    signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT, signal.SIGPIPE, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP,
}  # fmt: skip
# What a container has: any user may listen on low ports, and ping.
SYSCTLS = {"ip_unprivileged_port_start": "0", "ping_group_range": "0 2147483647"}


class Refusal(Exception):
    """The task cannot be started. The sentence is for the user."""


def main() -> None:
    """Detach from the daemon, then run the task to its end."""
    directory, status = sys.argv[1], int(sys.argv[2])
    if os.fork():
        os._exit(0)
    os.setsid()
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)  # held until this shim and its init have ended
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell(status, "busy")
        return
    started = records.read(f"{directory}/started.json")
    if started is not None:  # never twice, whatever became of the first time
        tell(status, f"ok {started['pid']}")
        return
    records.write(f"{directory}/shim.json", records.identify(os.getpid()))
    task = records.read(f"{directory}/launch.json")
    assert task is not None, "the executor writes it before it starts a shim"
    output, init, refusal = launch(task, status)
    if refusal:
        os.waitpid(init, 0)
        records.write(f"{directory}/exit.json", {"code": 127, "message": refusal}, durable=True)
        tell(status, f"error {refusal}")
        return
    records.write(f"{directory}/started.json", records.identify(init))
    tell(status, f"ok {init}")
    keep_output(output, f"{directory}/log")
    _, ended = os.waitpid(init, 0)
    code = os.waitstatus_to_exitcode(ended)
    code = 128 - code if code < 0 else code
    message = "it used more memory than its limit" if code == 128 + signal.SIGKILL and out_of_memory(task) else ""
    records.write(f"{directory}/exit.json", {"code": code, "message": message}, durable=True)


def tell(status: int, line: str) -> None:
    """Answer the daemon, which may be gone."""
    with contextlib.suppress(OSError):
        os.write(status, f"{line}\n".encode())
    os.close(status)


def launch(task: dict[str, Any], status: int) -> tuple[int, int, str]:
    """Start the task's init. Returns (its output, its pid, why it cannot start the command or "")."""
    output, output_end = os.pipe()
    failure, failure_end = os.pipe()
    ns.unshare(ns.CLONE_NEWPID)  # for the next child; the shim itself keeps its view of the machine
    init = os.fork()
    if init == 0:
        os.close(status)
        os.close(failure)
        os.dup2(output_end, 1)
        os.dup2(output_end, 2)
        be_init(task, failure_end)
    os.close(output_end)
    os.close(failure_end)

    def pass_on(number: int, _: object) -> None:  # the machine is being shut down
        with contextlib.suppress(ProcessLookupError):
            os.kill(init, number)

    signal.signal(signal.SIGTERM, pass_on)
    with os.fdopen(failure, "rb") as pipe:
        return output, init, pipe.read().decode()


def be_init(task: dict[str, Any], failure: int) -> NoReturn:
    """PID 1 of the task: set the stage, start the command, forward signals, reap, and end as the command ends."""
    try:
        ns.die_with_parent()
        set_stage(task)
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        command = os.fork()
        if command == 0:
            be_command(task, failure)
    except Refusal as refusal:
        fail(failure, str(refusal))
    except OSError as error:
        fail(failure, error.strerror or str(error))

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(command, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    os.close(failure)
    while True:
        pid, ended = os.wait()
        if pid == command:
            code = os.waitstatus_to_exitcode(ended)
            os._exit(128 - code if code < 0 else code)


# --- the stage ------------------------------------------------------------------------------------------------------


def set_stage(task: dict[str, Any]) -> None:
    """Groups, namespaces, mounts, host name and root of the task. Raises OSError."""
    for path in task["cgroups"]:
        with open(path, "w", encoding="ascii") as file:
            file.write("0")
    ns.setns(task["netns"], ns.CLONE_NEWNET)
    ns.unshare(ns.CLONE_NEWUTS | ns.CLONE_NEWIPC)
    ns.own_mounts()
    socket.sethostname(task["hostname"])
    # A bind mount's source must be in this mount namespace, and reachable when /run or the root is another one.
    sources = {name: os.open(path, os.O_RDONLY) for name, path in task["files"].items()}
    old_root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    if task["rootfs"]:
        enter_root(task["rootfs"])
    else:
        ns.release(os.path.dirname(task["netns"]))
        ns.own_run()
    ns.own_proc()
    ns.own_sys(cgroups=not task["rootfs"])
    with contextlib.suppress(FileNotFoundError):
        ns.mount("tmpfs", "/dev/shm", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=1777")
    for name, source in sources.items():
        place_file(name, source, may_create=bool(task["rootfs"]))
    for name, value in SYSCTLS.items():
        with contextlib.suppress(OSError), open(f"/proc/sys/net/ipv4/{name}", "w", encoding="ascii") as file:
            file.write(value)
    if task["rootfs"]:
        os.fchdir(old_root)
        ns.unmount(".")
        os.chdir("/")


def enter_root(root: str) -> None:
    """Make `root` the root, with the machine's devices; the old one lies above it, out of sight. Raises OSError."""
    ns.mount(root, root, flags=ns.MS_BIND | ns.MS_REC)
    os.makedirs(f"{root}/dev", exist_ok=True)
    ns.mount("/dev", f"{root}/dev", flags=ns.MS_BIND | ns.MS_REC)
    os.chdir(root)
    ns.pivot_root(".", ".")
    os.chdir("/")


def place_file(name: str, source: int, *, may_create: bool) -> None:
    """Mount a file of the task's own at /etc/`name`, or at what that links to. Raises OSError.

    Where nothing is there, a place is made in the task's own root or /run; the machine's /etc is left as it is.
    """
    target = os.path.realpath(f"/etc/{name}")
    if not os.path.exists(target):
        if not may_create and not target.startswith("/run/"):
            print(f"the machine has no /etc/{name}: the task goes without its own", file=sys.stderr)  # noqa: T201
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "ab"):
            pass
    ns.mount(f"/proc/self/fd/{source}", target, flags=ns.MS_BIND)


# --- the command ----------------------------------------------------------------------------------------------------


def be_command(task: dict[str, Any], failure: int) -> NoReturn:
    """Become the command."""
    name = task["command"][0]
    try:
        os.setsid()
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        home = become(task["user"])
        enter_directory(task["workdir"] or "/")
        os.umask(0o022)
        for number in (*FORWARDED, signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores the last two
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(name, task["command"], {"HOME": home, **task["env"]})
    except Refusal as refusal:
        fail(failure, str(refusal))
    except FileNotFoundError:
        fail(
            failure, f'the interpreter of "{name}" not found' if os.path.exists(name) else f'command "{name}" not found'
        )
    except OSError as error:
        reason = "it is no program" if error.errno == errno.ENOEXEC else error.strerror
        fail(failure, f'cannot run "{name}": {reason}')


def become(user: str) -> str:
    """Drop to a user ("name", "uid", "name:group", "uid:gid"); returns the home directory. Raises Refusal, OSError."""
    if not user:
        return "/root" if os.path.isdir("/root") else "/"
    name, _, group = user.partition(":")
    entry = _user(name)
    uid = int(name) if entry is None else entry.pw_uid
    gid = entry.pw_gid if entry is not None else uid
    if group:
        gid = _group(group)
    os.setgroups(os.getgrouplist(entry.pw_name, gid) if entry is not None and not group else [gid])
    os.setgid(gid)
    os.setuid(uid)
    return entry.pw_dir if entry is not None else "/"


def _user(name: str) -> pwd.struct_passwd | None:
    """The entry of a user; None for a number that has none."""
    try:
        return pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError as error:
        if name.isdigit():
            return None
        raise Refusal(f'user "{name}" does not exist') from error


def _group(name: str) -> int:
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise Refusal(f'group "{name}" does not exist') from error


def enter_directory(path: str) -> None:
    """Change to the working directory. Raises Refusal."""
    try:
        os.chdir(path)
    except FileNotFoundError as error:
        raise Refusal(f"working directory {path} does not exist") from error
    except OSError as error:
        raise Refusal(f"cannot enter working directory {path}: {error.strerror}") from error


# --- the shim's part ------------------------------------------------------------------------------------------------


def keep_output(source: int, path: str) -> None:
    """Copy the task's output into a log of bounded size until the last writer is gone."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    log = os.open(path, flags, 0o640)
    size = os.fstat(log).st_size
    while data := os.read(source, READ_BYTES):
        with contextlib.suppress(OSError):  # a full disk loses output, it does not stop the task
            if size + len(data) > LOG_MAX_BYTES:
                os.replace(path, f"{path}.1")
                full, log, size = log, os.open(path, flags, 0o640), 0
                os.close(full)
            size += os.write(log, data)
    os.close(log)


def out_of_memory(task: dict[str, Any]) -> bool:
    """Whether the kernel has killed a process of the task for its memory limit."""
    for procs in task["cgroups"]:
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError), open(os.path.join(os.path.dirname(procs), name), "rb") as file:
                counts = dict(line.split(b" ", 1) for line in file.read().splitlines())
                if int(counts.get(b"oom_kill", 0)) > 0:
                    return True
    return False


def fail(pipe: int, sentence: str) -> NoReturn:
    """Tell the shim why the command cannot run."""
    with contextlib.suppress(OSError):
        os.write(pipe, sentence.encode())
    os._exit(127)


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:
        sys.exit(f"the task's directory was removed: nothing is left to tell ({error})")
