"""What can be seen of a machine, as values. Pure; `look` fills them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True, slots=True)
class Socket:
    """Something that listens. `program` is "" when it cannot be told."""

    protocol: str
    address: IPv4Address | IPv6Address
    port: int
    program: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain of nftables (also iptables-nft's) that drops what no rule of it accepts."""

    family: str
    table: str
    name: str
    hook: str


@dataclass(frozen=True, slots=True)
class Tunnel:
    """A VXLAN device in the host's namespace."""

    name: str
    vni: int
    port: int


@dataclass(frozen=True, slots=True)
class Interface:
    """An address of this machine."""

    address: IPv4Address | IPv6Address
    device: str
    mtu: int


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine. Empty values where something could not be seen."""

    root: bool = True
    python: tuple[int, int] = (3, 11)
    kernel: str = ""
    kernel_can: Mapping[str, str] = field(default_factory=dict)  # of mesh.doctor.probe: "" or why not
    programs: Mapping[str, bool] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    sockets: tuple[Socket, ...] = ()
    addresses: tuple[Interface, ...] = ()
    dropping: tuple[Chain, ...] = ()
    tunnels: tuple[Tunnel, ...] = ()
    clock_synchronised: bool | None = None
    disk_free_bytes: int | None = None
