"""The doors to WireGuard: the kernel's own, and the program `wireguard-go` where a kernel has none.

Devices are made in the host's namespace, where their UDP socket stays, and moved to the namespace of encryption (see
docs/decisions/0015). Of the program there is one process per device; it outlives this one, is found again by its
control socket, and ends when that socket's name or its device is removed. Blocking; errors are OSError or
NetlinkError.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Protocol

from overlay import names, wgwire
from overlay.keys import OwnKey, public_of
from overlay.rtnl import Link, Namespace, inode, inside
from overlay.tunnels import WgChange, WgDevice

PROGRAM = "wireguard-go"
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin"
_SOCKETS = Path("/var/run/wireguard")  # compiled into the program
_TUN = Path("/dev/net/tun")
# The program answers within milliseconds, and the kernel at once; what hangs must not hang the daemon.
_TIMEOUT_S = 5.0
_NETLINK_BYTES = 1 << 16
_ANSWER_BYTES = 1 << 16
_NETLINK_GENERIC, _ERROR, _DONE = 16, 2, 3  # netlink(7)
_ALIAS = f"{names.PREFIX}:wireguard"


class WireGuard(Protocol):
    """A way to have WireGuard devices in `inner`, whose packets travel by the host."""

    name: str

    def make(self, host: Namespace, inner: Namespace, slot: int, mtu: int) -> None:
        """A device for a slot; what is left of an earlier one goes."""

    def observe(self, inner: Namespace, slot: int) -> WgDevice | None:
        """What the device of a slot holds; None when there is none that works."""

    def configure(self, inner: Namespace, slot: int, key: OwnKey, port: int) -> None:
        """Set key and port."""

    def change(self, inner: Namespace, slot: int, change: WgChange) -> None:
        """Add or change a peer."""

    def end_peer(self, inner: Namespace, slot: int, public: str) -> None:
        """Remove a peer."""

    def remove(self, inner: Namespace, slot: int) -> None:
        """Remove the device of a slot, and what serves it."""


def find(host_netns: str | None = None, netns_dir: str = "/run/netns") -> WireGuard:
    """The kernel's, else the program's. Raises OSError with a sentence when neither is there."""
    reason = kernel_lacks(host_netns)
    if not reason:
        return InKernel()
    program = shutil.which(PROGRAM, path=_PATH)
    if program is None or not _TUN.exists():
        missing = f"{PROGRAM} is not installed" if program is None else f"there is no {_TUN}"
        raise OSError(errno.EOPNOTSUPP, f"this machine has no WireGuard: not in its kernel ({reason}), and {missing}")
    return InProgram(program, f"{inode(host_netns)}{netns_dir}")


def kernel_lacks(host_netns: str | None = None) -> str:
    """Why the kernel has no WireGuard; "" when it has. Loads its module if need be."""
    try:
        inside(host_netns, _family)
    except OSError as error:
        return error.strerror or str(error)
    return ""


# --- the kernel's -------------------------------------------------------------------------------------------------


class InKernel:
    """The kernel's WireGuard, by generic netlink."""

    name = "kernel"

    def make(self, host: Namespace, inner: Namespace, slot: int, mtu: int) -> None:
        """See `WireGuard`."""
        device = names.wireguard_device(slot)
        for where in (host, inner):
            _delete(where, device)
        host.add_link(device, "wireguard", mtu)
        host.move_link(host.links()[device].index, str(inner.path), _ALIAS)

    def observe(self, inner: Namespace, slot: int) -> WgDevice | None:
        """See `WireGuard`."""
        device = inner.links().get(names.wireguard_device(slot))
        if device is None or device.kind != "wireguard":
            return None
        answers = self._ask(inner, lambda family: wgwire.ask_device(family, 1, device.name))
        return wgwire.device_of(answers)

    def configure(self, inner: Namespace, slot: int, key: OwnKey, port: int) -> None:
        """See `WireGuard`."""
        device = names.wireguard_device(slot)
        self._ask(inner, lambda family: wgwire.set_device(family, 1, device, key.private, port))

    def change(self, inner: Namespace, slot: int, change: WgChange) -> None:
        """See `WireGuard`."""
        self._ask(inner, lambda family: wgwire.set_peer(family, 1, names.wireguard_device(slot), change))

    def end_peer(self, inner: Namespace, slot: int, public: str) -> None:
        """See `WireGuard`."""
        self._ask(inner, lambda family: wgwire.remove_peer(family, 1, names.wireguard_device(slot), public))

    def remove(self, inner: Namespace, slot: int) -> None:
        """See `WireGuard`."""
        _delete(inner, names.wireguard_device(slot))

    def _ask(self, inner: Namespace, request: wgwire.Request) -> list[bytes]:
        def ask() -> list[bytes]:
            family = _family()
            with _generic() as sock:
                return _transact(sock, request(family))

        return inside(inner.path, ask)


def _family() -> int:
    """The number of WireGuard's family. Raises OSError when the kernel has none."""
    with _generic() as sock:
        answers = _transact(sock, wgwire.ask_family(1))
    found = [number for number in map(wgwire.family_of, answers) if number is not None]
    if not found:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return found[0]


def _generic() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
    sock.settimeout(_TIMEOUT_S)
    sock.bind((0, 0))
    return sock


def _transact(sock: socket.socket, request: bytes) -> list[bytes]:
    """The payloads of the answer, up to its acknowledgement. Raises OSError."""
    sock.send(request)
    payloads: list[bytes] = []
    while True:
        data = sock.recv(_NETLINK_BYTES)
        while len(data) >= wgwire.HEADER.size:
            length, kind, *_ = wgwire.HEADER.unpack_from(data)
            body, data = data[wgwire.HEADER.size : length], data[(length + 3) & ~3 :]
            if kind in (_ERROR, _DONE):
                code = -int.from_bytes(body[:4], "little", signed=True) if len(body) >= 4 else 0
                if code:
                    raise OSError(code, os.strerror(code))
                return payloads
            payloads.append(body)


# --- the program's ------------------------------------------------------------------------------------------------


class InProgram:
    """`wireguard-go`, by its control sockets."""

    name = PROGRAM

    def __init__(self, program: str, host: str) -> None:
        """`host` tells this host's processes from those of others that share our file system."""
        self._program = program
        self._host = hashlib.sha256(host.encode()).hexdigest()[:10]

    def make(self, host: Namespace, inner: Namespace, slot: int, mtu: int) -> None:
        """See `WireGuard`."""
        self.remove(inner, slot)
        started, device = self._started(slot), names.wireguard_device(slot)
        _delete(host, started)
        _SOCKETS.mkdir(mode=0o700, parents=True, exist_ok=True)
        inside(host.path, lambda: self._start(started))
        self._ask(slot, wgwire.GET)  # its second process looks for the device here, and ends if it is not
        link = host.links()[started]
        host.set_link(link.index, mtu=mtu)  # the program hears of it here only, and may have moved before
        host.move_link(link.index, str(inner.path), _ALIAS)
        moved = inner.links()[started]
        inner.set_link(moved.index, ifname=device)

    def observe(self, inner: Namespace, slot: int) -> WgDevice | None:
        """See `WireGuard`."""
        if names.wireguard_device(slot) not in inner.links():
            return None
        try:
            private, port, peers = wgwire.device_text(self._ask(slot, wgwire.GET))
        except OSError:
            return None
        return WgDevice(public_of(private) if private else "", port, peers)

    def configure(self, inner: Namespace, slot: int, key: OwnKey, port: int) -> None:
        """See `WireGuard`."""
        del inner
        self._ask(slot, wgwire.set_text(key.private, port))

    def change(self, inner: Namespace, slot: int, change: WgChange) -> None:
        """See `WireGuard`."""
        del inner
        self._ask(slot, wgwire.peer_text(change))

    def end_peer(self, inner: Namespace, slot: int, public: str) -> None:
        """See `WireGuard`."""
        del inner
        self._ask(slot, wgwire.removal_text(public))

    def remove(self, inner: Namespace, slot: int) -> None:
        """See `WireGuard`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_TIMEOUT_S)
            with contextlib.suppress(OSError):
                sock.connect(str(self._socket(slot)))
            _delete(inner, names.wireguard_device(slot))
            _delete(inner, self._started(slot))  # of a crash before it had its name
            self._socket(slot).unlink(missing_ok=True)
            # The process removes the name of its socket when it ends: not before that has another process that name.
            with contextlib.suppress(OSError):
                sock.recv(1)

    def _started(self, slot: int) -> str:
        """The name of a device before it is moved, and of its process's socket."""
        return f"mw{self._host}{slot}"

    def _socket(self, slot: int) -> Path:
        return _SOCKETS / f"{self._started(slot)}.sock"

    def _start(self, name: str) -> None:
        """It goes into the background when it can be spoken to."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WG_") and k != "LOG_LEVEL"}
        try:
            done = subprocess.run(
                [self._program, name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                start_new_session=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(errno.ETIMEDOUT, f"{PROGRAM} does not start") from error
        if done.returncode:
            raise OSError(errno.EIO, f"{PROGRAM} does not start: it ends with code {done.returncode}")

    def _ask(self, slot: int, request: str) -> str:
        """An answer, whole. Raises OSError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_TIMEOUT_S)
            sock.connect(str(self._socket(slot)))
            sock.sendall(request.encode())
            data = b""
            while not data.endswith(b"\n\n"):
                more = sock.recv(_ANSWER_BYTES)
                if not more:
                    raise OSError(errno.EPIPE, f"{PROGRAM} has hung up")
                data += more
        code = wgwire.error_of(data.decode())
        if code:
            raise OSError(code, os.strerror(code))
        return data.decode()


def _delete(where: Namespace, device: str) -> None:
    link: Link | None = where.links().get(device)
    if link is not None:
        where.delete_link(link.index)
