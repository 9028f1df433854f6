"""What the balancers of one node should hold.

Pure values; `kernel` makes them true. A *router* is the namespace of one network on this node (made by `overlay`);
each has a balancer of its own. The host namespace holds the published ports and hands them to a router.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, NamedTuple

Protocol = Literal["tcp", "udp", "sctp"]
Address = IPv4Address | IPv6Address
# How a service's connections are spread: in turn (rr; wrr by weight), to the backend with the fewest (lc; wlc by
# weight), by a hash of the client's address (sh), by one that moves few clients when a backend changes (mh).
Scheduler = Literal["rr", "wrr", "lc", "wlc", "sh", "mh"]

# How long a connection may be silent and is still known: above the 7200 s after which Linux sends its first keepalive
# (net.ipv4.tcp_keepalive_time), plus its 9 probes of 75 s each, plus some. Swarm mode cuts at 900 s.
DEFAULT_IDLE_S = 8100.0


class Backend(NamedTuple):
    """A task behind a virtual service. Weight 0: established connections go on, new ones go elsewhere.

    A tuple, because plans are made and compared as a whole for each change: that takes half the time of a dataclass.
    """

    address: Address
    weight: int = 1
    silent: bool = False  # its node does not answer either: connections that it never answered go elsewhere too


@dataclass(frozen=True, slots=True)
class VirtualService:
    """An address whose connections are spread over backends.

    A service's VIP takes every protocol and port and keeps the port (`protocol`, `port`, `target_port` are None). A
    published port is one protocol and port on the router's uplink address, sent to `target_port`. Without a backend of
    positive weight, connections are refused at once. A service that has addresses of both families is two of these.
    """

    address: Address  # its backends are of the same family
    protocol: Protocol | None
    port: int | None
    target_port: int | None
    backends: tuple[Backend, ...]
    scheduler: Scheduler = "rr"
    affinity_s: float = 0.0  # how long a client without connections is remembered by its backend; 0: not at all
    idle_s: float = DEFAULT_IDLE_S


@dataclass(frozen=True, slots=True)
class ReturnPath:
    """A node that may send us connections from outside: answers go back through it (routing mesh)."""

    node_number: int  # also the connection mark
    router_mac: str  # its router's MAC on this network's VXLAN
    router_address: IPv4Address  # its router's address there
    router_address6: IPv6Address | None = None  # likewise; needed where the network has a `subnet6`


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """The balancer of one network on this node."""

    netns: str  # path of the router's namespace
    subnet: IPv4Network
    gateway: IPv4Address  # the router's own address in the subnet
    vxlan_device: str  # in the router, towards other nodes
    uplink_device: str  # in the router, towards the host
    uplink_address: IPv4Address  # the router's own address on the uplink
    masquerade: bool  # whether tasks may reach the world (not for internal networks)
    local_tasks: tuple[Address, ...]  # for hairpin connections
    return_paths: tuple[ReturnPath, ...]
    services: tuple[VirtualService, ...]
    subnet6: IPv6Network | None = None  # with the next two: the network speaks IPv6 as well
    gateway6: IPv6Address | None = None
    uplink_address6: IPv6Address | None = None
    meshed: bool = True  # whether connections from outside may come here, from the host or from other nodes
    task_devices: tuple[str, ...] = ()  # in the router, towards its tasks; some may not be there yet


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of this host, handed to a router's uplink address (same protocol and port there)."""

    protocol: Protocol
    port: int
    router_address: IPv4Address
    uplink_device: str  # in the host namespace
    router_address6: IPv6Address | None = None  # None: not published over IPv6
    addresses: tuple[Address, ...] = ()  # only on these addresses of the host; none: on all


@dataclass(frozen=True, slots=True)
class VipPlan:
    """Everything of balancing on this node. An empty plan removes all that is ours."""

    routers: tuple[RouterPlan, ...]
    published: tuple[PublishedPort, ...]


@dataclass(slots=True)
class Report:
    """What one call changed, counted by kind of thing, and sentences about what it could not."""

    changes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ObservedService:
    """A virtual service as a kernel has it: the share of new connections of each backend, in slots."""

    address: Address
    protocol: Protocol | None
    port: int | None
    slots: Mapping[Address, int]


@dataclass(frozen=True, slots=True)
class Observed:
    """What the kernel was found to hold: services by router, and the router of each published port."""

    services: Mapping[str, tuple[ObservedService, ...]]
    published: Mapping[tuple[Protocol, int], IPv4Address]
    published6: Mapping[tuple[Protocol, int], IPv6Address] = field(default_factory=dict)
    # Those that are published on one address of the host only.
    published_at: Mapping[tuple[Address, Protocol, int], Address] = field(default_factory=dict)
