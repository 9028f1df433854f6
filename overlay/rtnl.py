"""One network namespace seen through rtnetlink: dumps as plain values, and the few writes the overlay makes.

The only place of this package that knows pyroute2 (0.9.7). Its traps are handled here: `fdb("replace")` leaves the
tunnel address as it is, so FDB entries are deleted and added; its synchronous classes must not run on a thread with a
running event loop, so callers are on a worker thread. Blocking; errors are OSError or NetlinkError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from overlay import routewire
from overlay.routewire import Dumped, Way

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)
_OWN = "/proc/thread-self/ns/net"
_IPV4, _IPV6 = 2, 10  # AF_INET, AF_INET6
_NO_NUMBER = 0xFFFFFFFF  # NETNSA_NSID_NOT_ASSIGNED, as pyroute2 reads it
_FAMILIES = (_IPV4, _IPV6)
_NODAD = 0x02  # IFA_F_NODAD: in use at once; nobody else is given our addresses
_MAIN_TABLE = 254
_IFF_UP = 1
_SOL_NETLINK, _GET_STRICT_CHECK = 270, 12
# The kernel answers at once or never; never must not hang the daemon.
_ANSWER_TIMEOUT = struct.pack("@ll", 5, 0)  # struct timeval
_RECEIVE_BYTES = 65536  # twice what the kernel puts into one datagram of a dump
_DUMP_ATTEMPTS = 5
# Changes in one datagram; their answers fit the socket's buffer, at 1.3 KB of memory each.
_BATCH = 64
# What the kernel says when something is to be removed that is not there.
_GONE = (errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL)
_NUD_PERMANENT, _NTF_SELF = 0x80, 0x02
_ROUTE_TYPES = {1: "unicast", 2: "local", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
_ROUTE_NUMBERS = {name: number for number, name in _ROUTE_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Link:
    """A network device."""

    index: int
    name: str
    kind: str  # "veth", "vxlan", "" for lo and hardware
    mac: str
    mtu: int
    up: bool
    alias: str
    vni: int  # VXLAN devices, else 0
    local: str  # VXLAN devices: their tunnel address
    port: int  # VXLAN devices: UDP port
    home: int | None = None  # the namespace it was made in, if another: its number in this one (`number_of`)


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table. `device` "" and `via` "" where the type needs none."""

    destination: str  # "10.0.1.7/32"; the default routes are "0.0.0.0/0" and "::/0"
    type: str
    device: str = ""
    via: str = ""  # next hop, reached on the link whatever its prefix
    source: str = ""  # preferred source address


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """Where a VXLAN device sends frames for a MAC."""

    mac: str
    tunnel: str


class Namespace:
    """A handle on one namespace; `path` None is the one this process is in. Close it after use."""

    def __init__(self, path: str | None) -> None:
        """Raises OSError when the namespace is not there."""
        self.path = path
        self.inode = inode(path)
        # pyroute2's own way into a namespace is a fork, which a process with gRPC's threads must not do.
        opened, self._dumps = inside(path, lambda: (_netlink(), _netlink()))
        self._route = IPRoute(fileno=opened.detach())
        self._dumps.setsockopt(_SOL_NETLINK, _GET_STRICT_CHECK, 1)
        self._dumps.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIMEOUT)
        self._sequence = 0

    def close(self) -> None:
        """Close the netlink sockets."""
        self._route.close()
        self._dumps.close()

    def alive(self) -> bool:
        """Whether the path still names the namespace that this handle speaks to."""
        try:
            return inode(self.path) == self.inode
        except OSError:
            return False

    # --- dumps ------------------------------------------------------------------------------------------------------

    def links(self) -> dict[str, Link]:
        """All devices by name."""
        return {link.name: link for link in map(_link, self._route.get_links())}

    def index_of(self, name: str) -> int:
        """The number of a device. Raises OSError when it is not there."""
        self._sequence += 1
        self._dumps.send(routewire.request_device(name, self._sequence))
        found = routewire.read_device(self._dumps.recv(_RECEIVE_BYTES), self._sequence)
        if found is None:
            raise OSError(errno.ENODEV, f"there is no device {name}")
        return found

    def number_of(self, other: Namespace) -> int | None:
        """The number by which this namespace knows another; None when it knows it not."""
        with _opened(other.path if other.path is not None else _OWN) as descriptor:
            found: int = self._route.get_netnsid(fd=descriptor)["nsid"]
        return None if found in (-1, _NO_NUMBER) else found

    def addresses(self) -> set[tuple[int, str]]:
        """All addresses of both families as (device index, "address/prefix length")."""
        found = [a for family in _FAMILIES for a in self._route.get_addr(family=family)]
        return {(a["index"], f"{a.get_attr('IFA_LOCAL') or a.get_attr('IFA_ADDRESS')}/{a['prefixlen']}") for a in found}

    def routes(self, protocol: int) -> set[Route]:
        """The routes of the main table, of both families, that carry `protocol`."""
        names = {link.index: link.name for link in self.links().values()}
        return {_route(one, names) for family in _FAMILIES for one in self._dump_routes(family, protocol)}

    def way_to(self, address: IPv4Address | IPv6Address) -> Way | None:
        """How packets to an address leave; None: not at all."""
        self._sequence += 1
        self._dumps.send(routewire.request_way(address, self._sequence))
        return routewire.read_way(self._dumps.recv(_RECEIVE_BYTES), self._sequence)

    def _dump_routes(self, family: int, protocol: int) -> list[Dumped]:
        """Repeated when something changed meanwhile; if that never ends, the last is as good as any."""
        found: list[Dumped] = []
        for _ in range(_DUMP_ATTEMPTS):
            self._sequence += 1
            self._dumps.send(routewire.request(family, _MAIN_TABLE, protocol, self._sequence))
            found, whole, ended = [], True, False
            while not ended:
                data = self._dumps.recv(_RECEIVE_BYTES)
                whole = whole and not routewire.is_interrupted(data)
                for one in routewire.read(data, self._sequence, protocol):
                    if isinstance(one, Dumped):
                        found.append(one)
                        continue
                    if one.error not in (0, errno.ENOENT):  # ENOENT: there is no such table yet
                        raise OSError(one.error, os.strerror(one.error))
                    ended = True
            if whole:
                break
        return found

    def neighbours(self, index: int) -> dict[str, str]:
        """The permanent neighbours on a device: address -> MAC."""
        found = [n for family in _FAMILIES for n in self._route.get_neighbours(family=family, ifindex=index)]
        return {
            n.get_attr("NDA_DST"): n.get_attr("NDA_LLADDR")
            for n in found
            if n["ifindex"] == index and n["state"] & _NUD_PERMANENT
        }

    def fdb(self, index: int) -> set[FdbEntry]:
        """The unicast forwarding entries of a VXLAN device."""
        found = self._route.fdb("dump", ifindex=index)
        return {
            FdbEntry(e.get_attr("NDA_LLADDR"), e.get_attr("NDA_DST"))
            for e in found
            if e["ifindex"] == index and e.get_attr("NDA_DST")
        }

    # --- writes -----------------------------------------------------------------------------------------------------

    def add_link(self, name: str, kind: str, mtu: int) -> None:
        """A device that needs nothing but its kind."""
        self._route.link("add", ifname=name, kind=kind, mtu=mtu)

    def add_vxlan(self, name: str, vni: int, local: str, port: int, mtu: int) -> None:
        """A VXLAN device that learns nothing and floods nowhere. `local` "": over IPv4, from what the route says."""
        own = {"vxlan_local6" if ":" in local else "vxlan_local": local} if local else {}
        self._route.link(
            "add", ifname=name, kind="vxlan", vxlan_id=vni, vxlan_port=port, vxlan_learning=False, mtu=mtu, **own
        )

    def add_veth(self, name: str, peer: str, peer_netns: str, mtu: int) -> None:
        """A veth pair whose other end, `peer`, is in another namespace."""
        with _opened(peer_netns) as descriptor:
            self._route.link(
                "add", ifname=name, kind="veth", mtu=mtu, peer={"ifname": peer, "net_ns_fd": descriptor, "mtu": mtu}
            )

    def move_link(self, index: int, target_netns: str, alias: str) -> None:
        """Hand a device to another namespace."""
        with _opened(target_netns) as descriptor:
            self._route.link("set", index=index, net_ns_fd=descriptor, ifalias=alias)

    def set_link(self, index: int, **attributes: Any) -> None:
        """Change a device: `state`, `mtu`, `address`, `ifalias`."""
        self._route.link("set", index=index, **attributes)

    # What is to be removed may go by itself meanwhile (a veth with the namespace of its other end): removing what is
    # not there is no error.

    def delete_link(self, index: int) -> None:
        """Remove a device, and with a veth its other end."""
        with _unless_gone():
            self._route.link("del", index=index)

    def add_address(self, index: int, address: str) -> None:
        """Give a device an address ("10.0.1.7/24")."""
        host, _, length = address.partition("/")
        flags = {"flags": _NODAD} if ":" in host else {}
        self._route.addr("add", index=index, address=host, prefixlen=int(length), **flags)

    def delete_address(self, index: int, address: str) -> None:
        """Take an address from a device."""
        host, _, length = address.partition("/")
        with _unless_gone():
            self._route.addr("del", index=index, address=host, prefixlen=int(length))

    def replace_routes(self, routes: Iterable[tuple[Route, int | None]], protocol: int) -> dict[Route, int]:
        """Add routes, each with its device's number, or replace those to the same destinations.

        Returns the errno of each, 0 for success.
        """
        found: dict[Route, int] = {}
        left = list(routes)
        while left:
            batch, left = left[:_BATCH], left[_BATCH:]
            found |= self._replace(batch, protocol)
        return found

    def replace_route(self, route: Route, protocol: int, index: int) -> None:
        """The same with one. Raises OSError."""
        if error := self.replace_routes([(route, index)], protocol)[route]:
            raise OSError(error, os.strerror(error))

    def _replace(self, routes: list[tuple[Route, int | None]], protocol: int) -> dict[Route, int]:
        return self._change(routes, lambda one, number: routewire.replacement(one, _MAIN_TABLE, protocol, number))

    def _change(
        self, routes: list[tuple[Route, int | None]], message: Callable[[Dumped, int], bytes]
    ) -> dict[Route, int]:
        asked: dict[int, Route] = {}
        data = b""
        for route, index in routes:
            self._sequence += 1
            asked[self._sequence] = route
            one = Dumped(route.destination, _ROUTE_NUMBERS[route.type], index or 0, route.via, route.source)
            data += message(one, self._sequence)
        self._dumps.send(data)
        found: dict[Route, int] = {}
        while len(found) < len(asked):
            for number, error in routewire.read_errors(self._dumps.recv(_RECEIVE_BYTES)):
                if number in asked:
                    found[asked[number]] = error
        return found

    def delete_route(self, route: Route, protocol: int) -> None:
        """Remove a route. Raises OSError."""
        errors = self._change(
            [(route, None)], lambda one, number: routewire.removal(one, _MAIN_TABLE, protocol, number)
        )
        if (error := errors[route]) not in (0, *_GONE):
            raise OSError(error, os.strerror(error))

    def set_neighbour(self, index: int, address: str, mac: str) -> None:
        """A permanent neighbour."""
        self._route.neigh("replace", dst=address, lladdr=mac, ifindex=index, state="permanent")

    def delete_neighbour(self, index: int, address: str) -> None:
        """Remove a neighbour."""
        with _unless_gone():
            self._route.neigh("del", dst=address, ifindex=index)

    def add_fdb(self, index: int, entry: FdbEntry) -> None:
        """A permanent forwarding entry. The MAC must have none: the kernel acknowledges and ignores a second."""
        self._route.fdb("add", ifindex=index, lladdr=entry.mac, dst=entry.tunnel)

    def replace_fdb(self, index: int, entry: FdbEntry) -> None:
        """Send a MAC elsewhere, from one frame to the next. With the flags that pyroute2 leaves out."""
        self._route.fdb(
            "replace", ifindex=index, lladdr=entry.mac, dst=entry.tunnel, flags=_NTF_SELF, state=_NUD_PERMANENT
        )

    def delete_fdb(self, index: int, entry: FdbEntry) -> None:
        """Remove a forwarding entry. Its tunnel address must be right: the kernel ignores another."""
        with _unless_gone():
            self._route.fdb("del", ifindex=index, lladdr=entry.mac, dst=entry.tunnel)

    # --- sysctl -----------------------------------------------------------------------------------------------------

    def sysctls_that(self, pattern: str, value: str) -> list[str]:
        """The paths below /proc/sys/net that match `pattern` and hold `value`."""

        def read() -> list[str]:
            root = Path("/proc/sys/net")
            return [str(f.relative_to(root)) for f in sorted(root.glob(pattern)) if f.read_text().strip() == value]

        return inside(self.path, read)

    def set_sysctls(self, wanted: dict[str, str]) -> list[str]:
        """Set what differs (paths below /proc/sys/net); returns the paths that were changed."""

        def write() -> list[str]:
            changed = []
            for name, value in wanted.items():
                file = Path("/proc/sys/net") / name
                if file.read_text().strip() != value:
                    file.write_text(value)
                    changed.append(name)
            return changed

        return inside(self.path, write)


def inside(path: str | None, action: Callable[[], T]) -> T:
    """Run `action` in a thread that has entered the namespace; the thread ends, so nothing has to be undone."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            if path is not None:
                netns.setns(path, flags=0)
            result.append(action())
        except (OSError, NetlinkError) as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def create_namespace(path: str) -> None:
    """Make a network namespace and bind it to `path`, a name that is not there. Raises OSError."""

    def make() -> None:
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"make a network namespace: {os.strerror(ctypes.get_errno())}")
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        if _libc.mount(source.encode(), path.encode(), None, ctypes.c_ulong(_MS_BIND), None):
            raise OSError(ctypes.get_errno(), f"name the namespace {path}: {os.strerror(ctypes.get_errno())}")

    Path(path).touch(mode=0o444, exist_ok=False)
    try:
        inside(None, make)
    except OSError:
        Path(path).unlink()
        raise


def remove_namespace(path: str) -> None:
    """Take the name from a namespace, which goes with its last process. What is not there is no error."""
    _libc.umount2(path.encode(), _MNT_DETACH)
    Path(path).unlink(missing_ok=True)


def inode(path: str | None) -> tuple[int, int]:
    """What tells one namespace from another. Raises OSError when the path names none."""
    status = os.stat(path if path is not None else _OWN)
    return status.st_dev, status.st_ino


def is_namespace(path: Path) -> bool:
    """Whether a path is a bound namespace, and not the empty file that an unmount leaves behind."""
    try:
        return inode(str(path))[0] != os.stat(path.parent).st_dev
    except OSError:
        return False


def reason(error: Exception) -> str:
    """The reason in words, with the kernel's name of the error."""
    if isinstance(error, NetlinkError):
        return f"{os.strerror(error.code)} (errno {error.code})"
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror
    return str(error)


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in _GONE:
            raise


class _opened:
    """An open descriptor of a namespace, for the time of a request."""

    def __init__(self, path: str) -> None:
        self._path, self._descriptor = path, -1

    def __enter__(self) -> int:
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else ""
    data = info.get_attr("IFLA_INFO_DATA") if kind == "vxlan" else None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=kind or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        alias=message.get_attr("IFLA_IFALIAS") or "",
        vni=data.get_attr("IFLA_VXLAN_ID") if data else 0,
        local=(data.get_attr("IFLA_VXLAN_LOCAL") or data.get_attr("IFLA_VXLAN_LOCAL6") or "") if data else "",
        port=data.get_attr("IFLA_VXLAN_PORT") if data else 0,
        home=message.get_attr("IFLA_LINK_NETNSID"),
    )


def _route(one: Dumped, names: dict[int, str]) -> Route:
    kind = _ROUTE_TYPES.get(one.type, str(one.type))
    device = names.get(one.device, "") if kind == "unicast" else ""
    return Route(one.destination, kind, device, one.via, one.source)


def _netlink() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
