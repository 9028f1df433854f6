"""What the name server of one node should answer, and where it should listen.

Pure values; `zone` turns them into answers, `server` serves them. Names are single labels in lower case, as the user
gave them; `zone` adds the forms with network and `mesh`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

DEFAULT_TTL_S = 5  # long enough to spare a loop of look-ups, short enough that nobody follows a stale answer for long


@dataclass(frozen=True, slots=True)
class TaskNames:
    """A task on one network. A task that is not ready is known (NODATA), but not handed out."""

    id: str
    slot: int  # 0: none (global services)
    hostname: str
    aliases: tuple[str, ...]
    addresses: tuple[Address, ...]
    ready: bool
    local: bool  # runs on this node


@dataclass(frozen=True, slots=True)
class ServiceNames:
    """A service on one network. With `vips` its name answers those, without it the ready tasks (dnsrr)."""

    name: str
    aliases: tuple[str, ...]
    vips: tuple[Address, ...]
    tasks: tuple[TaskNames, ...]
    ttl_s: int = DEFAULT_TTL_S
    ports: tuple[tuple[str, str, int], ...] = ()  # (name, protocol, target port), for SRV
    local_first: bool = False  # hand out the tasks of this node before the others


@dataclass(frozen=True, slots=True)
class NetworkNames:
    """All names of one network."""

    id: str
    name: str
    gateway: Address
    services: tuple[ServiceNames, ...]
    subnets: tuple[IPv4Network | IPv6Network, ...] = ()  # addresses in them are never asked for upstream (PTR)


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a network's view is served: an address in a namespace (its path; None: the host's own)."""

    netns: str | None
    address: Address
    port: int
    network_id: str | None  # None: the host's listener, which knows only names ending in .mesh


@dataclass(frozen=True, slots=True)
class DnsPlan:
    """Everything of the name server on this node."""

    listeners: tuple[Listener, ...] = ()
    networks: tuple[NetworkNames, ...] = ()
    nodes: Mapping[str, Address] = field(default_factory=dict)  # <node>.node.mesh
    # Tasks on several networks: (network they ask on, their address) -> all their network ids, first one first.
    multihomed: Mapping[tuple[str, Address], tuple[str, ...]] = field(default_factory=dict)
