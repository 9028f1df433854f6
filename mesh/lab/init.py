"""The first process of a lab host: `python -I init.py NAME [full]`.

Makes the host's namespaces and becomes its PID 1, which only reaps. Killing it is pulling the plug: the kernel ends
every process of the PID namespace, and the mounts and named namespaces inside vanish with the mount namespace. `full`
hosts get a private /run; others (switch, client) only a network. Runs as a script, light.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import NoReturn

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "executor"))
import namespaces as ns  # type: ignore[import-not-found]


def main() -> None:
    """Fork the host's PID 1; print its pid and leave."""
    name, full = sys.argv[1], "full" in sys.argv[2:]
    ready, ready_end = os.pipe()
    ns.unshare(ns.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(ready)
        be_init(name, full, ready_end)
    os.close(ready_end)
    with os.fdopen(ready, "rb") as pipe:
        answer = pipe.read().decode()
    if answer != "ok":
        sys.exit(answer or "the host's first process died")
    print(child)  # noqa: T201 - the caller reads it


def be_init(name: str, full: bool, ready: int) -> NoReturn:
    """PID 1: set the stage, then reap for ever."""
    try:
        ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWNET | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC)
        ns.mount("none", "/", flags=ns.MS_REC | ns.MS_PRIVATE)
        socket.sethostname(name)
        if full:
            private_run(name)
        ns.mount("proc", "/proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
        os.write(ready, b"ok")
    except OSError as error:
        os.write(ready, str(error).encode())
        os._exit(1)
    os.close(ready)
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        with contextlib.suppress(ChildProcessError, InterruptedError):
            os.waitpid(-1, 0)
            continue
        signal.sigtimedwait({signal.SIGCHLD}, 1.0)


def private_run(name: str) -> None:
    """A /run of its own, and name files that lead nowhere outside."""
    ns.mount("tmpfs", "/run", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=755")
    files = {
        "resolv.conf": "# a lab host has no name server outside\n",
        "hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n",
        "hostname": f"{name}\n",
    }
    for file, text in files.items():
        with open(f"/run/{file}", "w", encoding="ascii") as made:
            made.write(text)
        target = os.path.realpath(f"/etc/{file}")
        if os.path.exists(target):
            ns.mount(f"/run/{file}", target, flags=ns.MS_BIND)


if __name__ == "__main__":
    main()
