"""Named network namespaces: a file that a namespace is mounted on. Blocking; errors are OSError.

Made by a thread that lives only for it: unshare(2) moves the calling thread, and the threads of a pool must stay where
they are. A fork, as pyroute2 does it, is wrong in a daemon with the threads of gRPC.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import threading

from mesh.executor import namespaces

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def exists(path: str) -> bool:
    """Whether a namespace is mounted there: not the empty file that a crash or a reboot leaves behind."""
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except OSError:
        return False


def create(path: str) -> None:
    """Make a network namespace with `lo` up in it, unless it is there already."""
    if exists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "ab"):
        pass
    failures: list[OSError] = []

    def make() -> None:
        try:
            namespaces.unshare(namespaces.CLONE_NEWNET)
            _loopback_up()
            namespaces.mount("/proc/thread-self/ns/net", path, flags=namespaces.MS_BIND)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=make, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def remove(path: str) -> None:
    """Take the name away; the namespace goes with its last process. Unlinking ends copies in other mount namespaces."""
    while True:
        try:
            namespaces.unmount(path)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
            break
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH22x", b"lo", 0))
        flags = struct.unpack("16sH22x", answer)[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))
