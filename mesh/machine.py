"""What this machine is: its size, its addresses, its routes. Read once at start and again at each new session."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

import mesh
from control.model import NodeDescription

RT_SCOPE_UNIVERSE = 0
# Prefixes that every machine has, or that are ours; no network of a user can clash with them.
_OWN_PREFIXES = (IPv4Network("127.0.0.0/8"), IPv4Network("169.254.0.0/16"))


class AddressError(Exception):
    """No address, or no single one, to be reached at. One sentence for the user."""


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An IPv4 address of this machine."""

    address: IPv4Address
    device: str
    mtu: int


def addresses() -> list[HostAddress]:
    """The global IPv4 addresses of this machine's devices, ours excepted. Blocking; raises OSError."""
    with _as_os_error(), IPRoute() as route:
        links = {link["index"]: link for link in route.get_links()}
        found = []
        for record in route.get_addr(family=2):
            address = IPv4Address(record.get_attr("IFA_ADDRESS") if record["prefixlen"] == 32 else _local(record))
            if record["scope"] == RT_SCOPE_UNIVERSE and not any(address in own for own in _OWN_PREFIXES):
                link = links.get(record["index"])
                if link is None:
                    continue  # it has come since they were listed
                found.append(HostAddress(address, link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU")))
        return found


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, f"cannot list addresses: {error}") from error


def _local(record: object) -> str:
    return str(record.get_attr("IFA_LOCAL"))  # type: ignore[attr-defined]


def choose_address(asked: str, found: list[HostAddress]) -> IPv4Address:
    """The address to use: an address or device that was asked for, else the only one. Raises AddressError."""
    listed = ", ".join(f"{a.address} ({a.device})" for a in found) or "none"
    if asked:
        for candidate in found:
            if asked in (str(candidate.address), candidate.device):
                return candidate.address
        raise AddressError(f'"{asked}" is no address or device of this machine; it has: {listed}')
    if not found:
        raise AddressError("this machine has no address to be reached at; configure one first")
    if len(found) > 1:
        raise AddressError(f"this machine has several addresses ({listed}): say which with --advertise-addr")
    return found[0].address


def group_id(name: str) -> int:
    """Of a group of this machine; root's if there is none of that name."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return 0


def source_address(peer: str) -> str:
    """The address this machine would speak to `peer` (host:port) from; "" when there is no way. Sends nothing."""
    host, _, port = peer.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host or peer, int(port) if port.isdigit() else 1))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def parse_routes(text: str) -> tuple[str, ...]:
    """The prefixes in /proc/net/route, without the default route and our own, sorted."""
    prefixes = set()
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        destination, mask = (int.from_bytes(bytes.fromhex(fields[i]), "little") for i in (1, 7))
        prefix = IPv4Network((destination, bin(mask).count("1")), strict=False)
        if prefix.prefixlen and not any(prefix.subnet_of(own) for own in _OWN_PREFIXES):
            prefixes.add(prefix)
    return tuple(str(p) for p in sorted(prefixes))


def parse_memory(text: str) -> int:
    """MemTotal of /proc/meminfo in bytes; 0 when it is not there."""
    for line in text.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def describe(name: str, executors: tuple[str, ...], balancer: str, mtu: int) -> NodeDescription:
    """What this node says of itself. Blocking."""
    system = os.uname()
    return NodeDescription(
        hostname=name,
        os=system.sysname.lower(),
        architecture=system.machine,
        kernel=system.release,
        version=mesh.__version__,
        cpus=float(len(os.sched_getaffinity(0))),
        memory_bytes=parse_memory(Path("/proc/meminfo").read_text()),
        executors=executors,
        balancer=balancer,
        routes=parse_routes(Path("/proc/net/route").read_text()),
        mtu=mtu,
    )
