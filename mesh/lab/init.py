"""The first process of a lab host: `python -I -S init.py PARENT DIRECTORY NAME GROUP [full]`.

Makes the host's namespaces and becomes its PID 1, which only reaps. Killing it is pulling the plug: the kernel ends
every process of the PID namespace, and the mounts and named namespaces inside vanish with the mount namespace. Before
anything is made, who it is stands in DIRECTORY/init.json, and no host is booted for a PARENT (a pid) that is dead:
whatever is interrupted when, `down` finds all there is.

`full` hosts have a private /run, their disk (DIRECTORY/disk) at /var/lib/meshd, control groups of their own (below
GROUP in each hierarchy), and no name servers; the others (switch, client) only processes and a network. Runs as a
script by path, light.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import NoReturn

sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from mesh.executor import namespaces as ns
from mesh.executor import records

STATE_DIR = "/var/lib/meshd"
SETTINGS_DIR = "/etc/meshd"  # the machine's own settings are not meant for its labs
GROUPS_DIR = "/sys/fs/cgroup"


def main() -> None:
    """Fork the host's PID 1, write down who it is, let it go on, and leave when the host is up."""
    parent, directory, name, group, *options = sys.argv[1:]
    ns.die_with_parent()
    if os.getppid() != int(parent):
        sys.exit("nobody waits for this host any more")
    go_ahead, go_ahead_end = os.pipe()
    answer, answer_end = os.pipe()
    ns.unshare(ns.CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        os.close(go_ahead_end)
        os.close(answer)
        os.setsid()
        if os.read(go_ahead, 1):  # else our parent died, and nobody knows us
            be_init(directory, name, group, "full" in options, answer_end)
        os._exit(1)
    os.close(answer_end)
    records.write(f"{directory}/init.json", records.identify(child))
    os.write(go_ahead_end, b"!")
    with os.fdopen(answer, "rb") as pipe:
        said = pipe.read().decode()
    if said != "ok":
        sys.exit(said or "its first process died")


def be_init(directory: str, name: str, group: str, full: bool, answer: int) -> NoReturn:
    """PID 1: set the stage, then reap for ever. It has no signal handlers: only SIGKILL from outside ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        set_stage(directory, name, group, full)
        os.write(answer, b"ok")
    except OSError as error:
        os.write(answer, (error.strerror or str(error)).encode())
        os._exit(1)
    os.close(answer)
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        signal.sigwaitinfo({signal.SIGCHLD})


def set_stage(directory: str, name: str, group: str, full: bool) -> None:
    """Namespaces, mounts and names of the host. Raises OSError."""
    ns.unshare(ns.CLONE_NEWNET | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC)
    ns.own_mounts()
    socket.sethostname(name)
    if not full:
        ns.own_proc()
        ns.own_sys(cgroups=False)
        return
    disk = os.open(f"{directory}/disk", os.O_PATH | os.O_DIRECTORY)
    ns.own_run()
    ns.own_proc()
    ns.own_sys(cgroups=True)
    own_groups(group)
    make_place(STATE_DIR)
    ns.mount(f"/proc/self/fd/{disk}", STATE_DIR, flags=ns.MS_BIND)
    os.close(disk)
    if os.path.isdir(SETTINGS_DIR):
        ns.mount("tmpfs", SETTINGS_DIR, "tmpfs", options="mode=755")
    others = "".join(f"10.66.0.{10 + number} h{number}\n" for number in range(1, 21))
    own_file("hostname", f"{name}\n")
    own_file("hosts", f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n{others}")
    own_file("resolv.conf", "# a lab host has no name server outside\n")


def own_groups(group: str) -> None:
    """See only a group of this host's own in each hierarchy, as if it were the root. Raises OSError."""
    unified = os.path.exists(f"{GROUPS_DIR}/cgroup.controllers")
    hierarchies = [GROUPS_DIR] if unified else [entry.path for entry in os.scandir(GROUPS_DIR) if is_hierarchy(entry)]
    for hierarchy in hierarchies:
        os.makedirs(f"{hierarchy}/{group}", exist_ok=True)
        ns.mount(f"{hierarchy}/{group}", hierarchy, flags=ns.MS_BIND)


def is_hierarchy(entry: os.DirEntry[str]) -> bool:
    """Of version 1; but not cpuset, whose new groups cannot hold a process, nor a second name of another."""
    return entry.name != "cpuset" and not entry.is_symlink() and os.path.exists(f"{entry.path}/cgroup.procs")


def make_place(path: str) -> None:
    """Have a directory to mount on. If the machine has none, its parent is shown with one more, and stays as it is."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    true = os.open(parent, os.O_PATH | os.O_DIRECTORY)
    ns.mount("tmpfs", parent, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=755")
    for entry in os.scandir(f"/proc/self/fd/{true}"):
        shown = f"{parent}/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), shown)
            continue
        if entry.is_dir():
            os.mkdir(shown)
        else:
            os.close(os.open(shown, os.O_CREAT | os.O_WRONLY))
        ns.mount(entry.path, shown, flags=ns.MS_BIND | ns.MS_REC)
    os.mkdir(path)
    os.close(true)


def own_file(name: str, text: str) -> None:
    """A file of the host's own at /etc/`name`, or at what that links to if it is in /run. Raises OSError."""
    with open(f"/run/{name}.lab", "w", encoding="ascii") as made:
        made.write(text)
    target = os.path.realpath(f"/etc/{name}")
    if target.startswith("/run/"):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "ab"):
            pass
    if os.path.exists(target):
        ns.mount(f"/run/{name}.lab", target, flags=ns.MS_BIND)


if __name__ == "__main__":
    main()
