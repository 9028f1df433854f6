"""Notices when others change what is ours in the kernel: netlink notifications, and names of namespaces. asyncio.

What exactly changed is not told: `changed` is called soon after, and the reconciler looks at everything. The changes
that it makes itself are not noticed: it says when it begins and ends (`quiet`). A foreign change in that very time
waits for the reconciler's next look. Notifications that did not fit the socket's buffer count as a change, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator

from overlay import names
from overlay.ranges import Prefix, Ranges
from overlay.rtnl import inode, inside

# A burst of changes (a flush, a restart of a firewall) is one change.
DEBOUNCE_S = 0.1
# Messages read in one turn of the loop; the rest comes with the next.
READS_MAX = 64
_BUFFER_BYTES = 1 << 20
_READ_BYTES = 64 << 10

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NETFILTER = 12
_NFTABLES_GROUP = 7
# Groups of rtnetlink(7) by number: links, addresses, netconf (forwarding, filters), then neighbours, routes, rules.
_LINK, _ADDRESS4, _ADDRESS6, _NETCONF4, _NETCONF6 = 1, 5, 9, 24, 25
_NEIGHBOUR, _ROUTE4, _RULE4, _ROUTE6, _RULE6 = 3, 7, 8, 11, 19
_HOST_GROUPS = (_LINK, _ADDRESS4, _ADDRESS6, _NETCONF4, _ROUTE4, _ROUTE6)
_ROUTER_GROUPS = (*_HOST_GROUPS, _NETCONF6, _NEIGHBOUR, _RULE4, _RULE6)

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port (netlink(7))
_ATTRIBUTE = struct.Struct("=HH")
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWNEIGH, _DELNEIGH, _NEWNETCONF = 16, 17, 20, 21, 28, 29, 80
_IFNAME, _IFLA_MTU, _NDA_DST, _NETCONF_IFINDEX = 3, 4, 1, 1
_SIOCGIFMTU = 0x8921
_IFREQ = struct.Struct("=16si20x")
_INDEX = struct.Struct("=i")
_INDEX_AT = _HEADER.size + 4  # of ifinfomsg
_BODY_BYTES = {
    _NEWLINK: 16,
    _DELLINK: 16,
    _DELNEIGH: 12,
    _NEWNETCONF: 4,
    24: 12,
    25: 12,
}  # of the messages whose attributes are read
_NEWROUTE, _DELROUTE, _RTA_DST, _AF_INET6 = 24, 25, 1, 10
_LENGTH_AT, _TABLE_AT, _PROTOCOL_AT = _HEADER.size + 1, _HEADER.size + 4, _HEADER.size + 5  # of rtmsg
_BY_KERNEL, _TABLE_MAIN = 2, 254
_LINK_LOCAL = b"\xfe\x80"
_SCOPE_AT, _SCOPE_LINK = _HEADER.size + 3, 253
_AF_BRIDGE = 7

_IN_DELETE, _IN_CREATE = 0x200, 0x100
_INOTIFY_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """Watches a host and the routers that `follow` names. All methods are for the loop's thread."""

    def __init__(
        self, changed: Callable[[], None], netns_dir: str = "/run/netns", host_netns: str | None = None
    ) -> None:
        self._changed, self._dir, self._host = changed, netns_dir, host_netns
        self._open: dict[str | None, tuple[tuple[int, int], list[socket.socket]]] = {}
        self._names = -1  # of inotify
        self._timer: asyncio.TimerHandle | None = None
        self._busy = False
        self._mtus: dict[int, int] = {}  # of the host's devices, by index
        self._ways = Ranges()
        self.noticed = 0

    async def follow(self, routers: Iterable[str], ways: Iterable[Prefix] = ()) -> None:
        """Watch the host and these routers (paths), and no others. A router that is not there is left out.

        Of the host's routes those matter that concern `ways`: the networks' subnets, and the nodes' addresses.
        """
        self._ways = Ranges(ways)
        wanted: list[str | None] = [self._host, *routers]
        for path in [p for p, (held, _) in self._open.items() if p not in wanted or _inode(p) != held]:
            self._close(path)
        missing = [path for path in wanted if path not in self._open]
        if missing:
            opened = await asyncio.to_thread(lambda: [_sockets(path, path == self._host) for path in missing])
            for path, found in zip(missing, opened, strict=True):
                if found is not None:
                    self._register(path, found)
            if self._host in missing:
                self._mtus = await asyncio.to_thread(_mtus, self._host)
        if self._names < 0:
            self._watch_names()

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """What happens within is our own doing."""
        self._busy = True
        try:
            yield
        finally:
            for path in list(self._open):
                for sock in self._open[path][1]:
                    _drain(sock, lambda _: False)
            self._read_names()
            self._busy = False

    def close(self) -> None:
        """Stop watching."""
        for path in list(self._open):
            self._close(path)
        if self._names >= 0:
            asyncio.get_running_loop().remove_reader(self._names)
            os.close(self._names)
            self._names = -1
        if self._timer is not None:
            self._timer.cancel()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _register(self, path: str | None, sockets: list[socket.socket]) -> None:
        loop, relevant = asyncio.get_running_loop(), self._in_host if path == self._host else in_router
        self._open[path] = (inode(path), sockets)
        for sock in sockets:
            loop.add_reader(sock, self._readable, sock, relevant)

    def _close(self, path: str | None) -> None:
        loop = asyncio.get_running_loop()
        for sock in self._open.pop(path)[1]:
            loop.remove_reader(sock)
            sock.close()

    def _in_host(self, message: bytes) -> bool:
        """Whether a notification of the host matters."""
        kind = _HEADER.unpack_from(message)[1]
        if kind in (_NEWROUTE, _DELROUTE):
            return is_way(message, self._ways)
        if kind == _NEWLINK and (mtu := _attribute(message, _IFLA_MTU)):
            (index,) = _INDEX.unpack_from(message, _INDEX_AT)
            before, self._mtus[index] = self._mtus.get(index), int.from_bytes(mtu, sys.byteorder)
            if before not in (None, self._mtus[index]):
                return True
        elif kind == _DELLINK:
            self._mtus.pop(_INDEX.unpack_from(message, _INDEX_AT)[0], None)
        return in_host(message)

    def _readable(self, sock: socket.socket, relevant: Callable[[bytes], bool]) -> None:
        if _drain(sock, relevant):
            self._notice()

    def _notice(self) -> None:
        if self._busy:
            return
        self.noticed += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DEBOUNCE_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._changed()

    # --- names of namespaces (inotify(7)) ---------------------------------------------------------------------------

    def _watch_names(self) -> None:
        descriptor = _libc.inotify_init1(_INOTIFY_FLAGS)
        if descriptor < 0:
            return  # no more of them for this user: the reconciler's regular look remains
        if _libc.inotify_add_watch(descriptor, self._dir.encode(), _IN_DELETE | _IN_CREATE) < 0:
            os.close(descriptor)
            return
        self._names = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._name_changed)

    def _name_changed(self) -> None:
        if any(names.is_router_netns(name) or name == names.ENCRYPTION_NETNS for name in self._read_names()):
            self._notice()

    def _read_names(self) -> list[str]:
        try:
            data = os.read(self._names, _READ_BYTES) if self._names >= 0 else b""
        except BlockingIOError:
            return []
        found = []
        while len(data) >= 16:
            length = int.from_bytes(data[12:16], "little")
            found.append(data[16 : 16 + length].rstrip(b"\0").decode(errors="replace"))
            data = data[16 + length :]
        return found


def in_router(message: bytes) -> bool:
    """Whether a notification matters in a router: all there is ours, but neighbours come and go by themselves."""
    kind = _HEADER.unpack_from(message)[1]
    if kind == _NEWNEIGH:
        return False
    if kind == _DELNEIGH:
        is_fdb = message[_HEADER.size] == _AF_BRIDGE
        return is_fdb or names.is_router_address(_attribute(message, _NDA_DST))
    return _matters_anywhere(kind, message)


def in_host(message: bytes) -> bool:
    """Whether a notification matters in the host: of devices only ours, the rest rarely changes."""
    kind = _HEADER.unpack_from(message)[1]
    if kind in (_NEWLINK, _DELLINK):
        return names.is_uplink(_attribute(message, _IFNAME).rstrip(b"\0").decode(errors="replace"))
    return _matters_anywhere(kind, message)


def is_way(message: bytes, ways: Ranges) -> bool:
    """Whether a route of the host's main table concerns some addresses."""
    if message[_TABLE_AT] != _TABLE_MAIN:
        return False
    version = 6 if message[_HEADER.size] == _AF_INET6 else 4
    return ways.meets(version, int.from_bytes(_attribute(message, _RTA_DST), "big"), message[_LENGTH_AT])


def _mtus(path: str | None) -> dict[int, int]:
    """The MTU of each device of a namespace, by index; none when it is not there. Blocking."""

    def look() -> dict[int, int]:
        found = {}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for index, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # it has just gone
                    answer = fcntl.ioctl(sock, _SIOCGIFMTU, _IFREQ.pack(name.encode(), 0))
                    found[index] = _IFREQ.unpack(answer)[1]
        return found

    try:
        return inside(path, look)
    except OSError:
        return {}


def _matters_anywhere(kind: int, message: bytes) -> bool:
    """Devices that come and go bring link-local addresses, routes to them, and settings of their own."""
    if kind in (_NEWADDR, _DELADDR):
        return message[_SCOPE_AT] != _SCOPE_LINK
    if kind in (_NEWROUTE, _DELROUTE) and message[_HEADER.size] == _AF_INET6 and message[_PROTOCOL_AT] == _BY_KERNEL:
        return not _attribute(message, _RTA_DST).startswith(_LINK_LOCAL)
    if kind == _NEWNETCONF:
        return int.from_bytes(_attribute(message, _NETCONF_IFINDEX), "little", signed=True) < 0  # "all", "default"
    return True


def _attribute(message: bytes, wanted: int) -> bytes:
    """An attribute of a notification; b"" when it is not there."""
    length, kind, *_ = _HEADER.unpack_from(message)
    at, end = _HEADER.size + _BODY_BYTES[kind], min(length, len(message))
    while at + _ATTRIBUTE.size <= end:
        size, found = _ATTRIBUTE.unpack_from(message, at)
        if size < _ATTRIBUTE.size:
            break
        if found == wanted:
            return message[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3
    return b""


def _drain(sock: socket.socket, relevant: Callable[[bytes], bool]) -> bool:
    """Read what is there. Whether any of it matters; more than fitted the buffer always does."""
    found = False
    for _ in range(READS_MAX):
        try:
            data = sock.recv(_READ_BYTES)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            found = True
            continue
        found = found or any(map(relevant, _messages(data)))
    return found


def _messages(data: bytes) -> Iterator[bytes]:
    while len(data) >= _HEADER.size:
        length = _HEADER.unpack_from(data)[0]
        if length < _HEADER.size:
            return
        yield data[:length]
        data = data[(length + 3) & ~3 :]


def _sockets(path: str | None, is_host: bool) -> list[socket.socket] | None:
    """Sockets that hear of routes and of nftables in a namespace; None when it is not there. Blocking."""
    made: list[socket.socket] = []
    try:
        for family, groups in (
            (socket.NETLINK_ROUTE, _HOST_GROUPS if is_host else _ROUTER_GROUPS),
            (_NETFILTER, (_NFTABLES_GROUP,)),
        ):
            made.append(inside(path, lambda family=family: _listening(family)))  # type: ignore[misc]
            for group in groups:
                made[-1].setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError:
        for sock in made:
            sock.close()
        return None
    return made


def _listening(family: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    sock.bind((0, 0))
    return sock


def _inode(path: str | None) -> tuple[int, int] | None:
    try:
        return inode(path)
    except OSError:
        return None
