"""What the kernel of one node should hold so that the addresses of its networks reach each other.

Pure: values in, values out. `names` derives every device name, MAC and link-local address from these values, and
`kernel` makes them true. Design: docs/decisions and ARCHITECTURE.md ("one router per network per node").
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address


_KEY_BYTES = 32
DEFAULT_WIREGUARD_PORT = 7947  # of slot 0; the next is of slot 1. Below those that programs get by chance


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A WireGuard key that a node has told, and its slot: which of its two devices takes it (docs/decisions/0015)."""

    slot: int
    key: str  # base64


def is_key(text: str) -> bool:
    """Whether a text is a key: 32 bytes of base64."""
    try:
        return len(base64.b64decode(text, validate=True)) == _KEY_BYTES
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node: its number in the cluster (1..32766) and its end of the VXLAN tunnel."""

    number: int
    underlay: Address
    keys: tuple[PublicKey, ...] = ()  # oldest first; none: it carries nothing of encrypted networks


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """An interface in the namespace of a task of this node. `id` is unique on the node for this network."""

    id: str
    address: IPv4Address
    netns: str  # path of the task's network namespace
    interface: str  # its name inside, "eth0"
    default_route: bool  # whether the task's default route goes through this network
    address6: IPv6Address | None = None
    handed: bool = False  # its end is made on the host, and an engine puts it into a namespace and gives it its address


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """The address of a task on another node."""

    address: Address
    node_number: int


@dataclass(frozen=True, slots=True)
class OverlayNetwork:
    """One network with a task or a published port here."""

    id: str
    vni: int
    subnet: IPv4Network
    gateway: IPv4Address
    internal: bool  # no way out to the world
    local: tuple[LocalEndpoint, ...]
    remote: tuple[RemoteEndpoint, ...]
    subnet6: IPv6Network | None = None  # with `gateway6`: the network speaks IPv6 as well
    gateway6: IPv6Address | None = None
    encrypted: bool = False  # between nodes, or not at all


@dataclass(frozen=True, slots=True)
class OverlayPlan:
    """Everything of the overlay on this node. An empty plan removes all that is ours."""

    node_number: int
    underlay: Address  # `local` address of the VXLAN devices
    vxlan_port: int
    peers: tuple[Peer, ...]
    networks: tuple[OverlayNetwork, ...]
    wireguard_port: int = DEFAULT_WIREGUARD_PORT
    name_server: IPv4Address | None = None  # an address of every router, and of the host
