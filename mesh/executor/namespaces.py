"""The system calls on namespaces, mounts and processes that Python 3.11 lacks, through libc.

Light: the shim of every task and the first process of every lab host import this, and little else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces. Raises OSError."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "make namespaces")


def setns(path: str, flags: int) -> None:
    """Enter the namespace at `path`. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(flags)), f"enter {path}")
    finally:
        os.close(descriptor)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError naming the target."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _checked(result, f"mount {target}")


def unmount(target: str) -> None:
    """Detach what is mounted at `target`. Raises OSError."""
    _checked(_libc.umount2(target.encode(), ctypes.c_int(_MNT_DETACH)), f"unmount {target}")


def pivot_root(new_root: str, old_root: str) -> None:
    """pivot_root(2). Raises OSError."""
    _checked(_libc.pivot_root(new_root.encode(), old_root.encode()), f"change the root to {new_root}")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, however that happens. Raises OSError."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(9), 0, 0, 0), "tie the process to its parent")


# --- mounts of a new world ------------------------------------------------------------------------------------------


def own_mounts() -> None:
    """A mount namespace whose changes nobody else sees. Raises OSError."""
    unshare(CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def own_proc() -> None:
    """/proc of this process's PID namespace. Raises OSError."""
    os.makedirs("/proc", exist_ok=True)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def own_sys(*, cgroups: bool) -> None:
    """/sys of this process's network namespace; a new one hides the control groups, `cgroups` puts them back.

    Needs /proc. Raises OSError.
    """
    groups = -1
    if cgroups:
        with contextlib.suppress(FileNotFoundError):
            groups = os.open("/sys/fs/cgroup", os.O_PATH | os.O_DIRECTORY)
    os.makedirs("/sys", exist_ok=True)
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | (0 if cgroups else MS_RDONLY))
    if groups >= 0:
        mount(f"/proc/self/fd/{groups}", "/sys/fs/cgroup", flags=MS_BIND | MS_REC)
        os.close(groups)


def own_run(mode: str = "755") -> None:
    """An empty /run. What was mounted below the old one is let go first: a copy of a mount keeps its namespace alive.

    Raises OSError.
    """
    release("/run")
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")


def release(directory: str) -> None:
    """Detach all that is mounted below `directory`, for this mount namespace only."""
    for target in reversed(mount_points()):
        if target.startswith(f"{directory}/"):
            with contextlib.suppress(OSError):  # went with the mount that it was on
                unmount(target)


def mount_points() -> list[str]:
    """The mount points that this process sees, in the order in which they were made."""
    with open("/proc/self/mountinfo", "rb") as file:
        fields = [line.split(b" ", 5)[4] for line in file]
    return [os.fsdecode(field.decode("unicode_escape").encode("latin-1")) for field in fields]


# --- processes ------------------------------------------------------------------------------------------------------


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; with the pid it tells one from a later one.

    None when there is no such process, or it has ended and nobody has asked how (a zombie). One that was killed is a
    zombie with threads until the last of them is out of the kernel; until then its sockets are open.
    """
    return started(f"/proc/{pid}/stat")


def started(stat: str) -> int | None:
    """`start_time` from the process's stat file, which may be that of another PID namespace."""
    try:
        with open(stat, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    has_ended = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
    return None if has_ended else int(fields[19])
