"""What a router and its host need around the balancing: refusals, masquerade, return paths, published ports. Pure.

In the router, beside the balancer's own part (`maps`):

- *Refusals.* What is balanced to nobody reaches the router itself at an address of a service, and is refused there: a
  reset, or "port unreachable". By a rule and not by the lack of a listener: so no server in the router ever answers on
  a service's address, and a refused UDP flow leaves no connection behind that would keep it from a backend later.
- *The world.* Tasks leave by the uplink with the router's own uplink address, or, on internal networks, are refused.
  From the host come only connections to published ports.
- *Hairpin.* A task balanced to itself sees the gateway as its client, or it would answer itself directly. Nothing else
  is source-translated between tasks.
- *Return path.* A connection from outside the subnet that came from another node's router carries that node's number
  as its mark; its answers leave by that node (`ip rule` to a table per node, see `routing`). An internal network has no
  way out but for such answers: those to connections that came from the host have a number of their own, HOST_NUMBER.
  A client may use one port of its own through several nodes at once, as balancers in front of a cluster do; at one task
  these would be one connection. So what comes through each node is tracked in a zone of its own, and the router gives
  the second of them another source port (the address stays).

In the host: a published port is handed to a router, for connections from outside, from the host itself and from
containers. As in Docker, a published port wins over a process of the host that listens on it: such a process is not
asked and not harmed, it hears of no new connection while the port is published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from mesh.vip.maps import PROTOCOL_NUMBER
from mesh.vip.plan import Address, PublishedPort, RouterPlan, VipPlan
from mesh.vip.rules import Chain, Hook, Key, Kind, Map, Table

# Routes and rules of ours carry this protocol number (rtnetlink(7)); `overlay` has the one before.
ROUTE_PROTOCOL = 110
# The table of the way back to node n is this plus n: out of the way of the 255 small numbers that people use.
RETURN_TABLES = 110_000
# Stands for the host among the node numbers, which end one below.
HOST_NUMBER = 32767
# Packets without a mark pass the rules of all nodes in one step; those with one walk them (some 5 ns each).
SKIP_PRIORITY = 1000
RETURN_PRIORITY = 1001
MAIN_RULE_PRIORITY = 32766  # of the rule for the main table, which the kernel makes

_ICMP, _TCP = 1, 6

_ADDRESSES = Map("addresses", "type ipv4_addr", (Kind.ADDRESS,))
_HAIRPIN = Map("hairpin", "type ipv4_addr . ipv4_addr", (Kind.ADDRESS, Kind.ADDRESS))
_PEERS = Map("peers", "type ether_addr : mark", (Kind.MAC,), (Kind.MARK,))
_ZONES = Map("zones", "typeof ether saddr : ct zone", (Kind.MAC,), (Kind.ZONE,))
_ROUTERS = Map("routers", "type ipv4_addr", (Kind.ADDRESS,))
PORTS = Map("ports", "type inet_proto . inet_service : ipv4_addr", (Kind.PROTOCOL, Kind.PORT), (Kind.ADDRESS,))

ROUTER_MAPS = (_ADDRESSES, _HAIRPIN, _PEERS, _ZONES)
HOST_MAPS = (_HAIRPIN, _ROUTERS, PORTS)

_REFUSED = Chain(
    "refused",
    (
        f"meta l4proto {_TCP} reject with tcp reset",
        "reject with icmp type port-unreachable",
    ),
)

# What the kernel takes as a device name and nft as a plain string; the names come from our own derivation.
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


def service_addresses(router: RouterPlan) -> frozenset[Address]:
    """Addresses at which the router itself serves nobody."""
    return frozenset({router.uplink_address, *(s.address for s in router.services)})


def vips(router: RouterPlan) -> frozenset[Address]:
    """The addresses that must be routed to the router itself; the uplink address is one without our doing."""
    return service_addresses(router) - {router.uplink_address}


def router_table(router: RouterPlan) -> Table:
    """The router's table but for the balancing."""
    up, vxlan = _device(router.uplink_device), _device(router.vxlan_device)
    from_outside = f'iifname "{vxlan}" ip saddr != {router.subnet}'
    apart = Chain(
        "apart",
        (f"{from_outside} ct original zone set ether saddr map @{_ZONES.name}",),
        Hook("filter", "prerouting", -300),
    )
    note = Chain(
        "note",
        (
            f"{from_outside} ct state new ct mark set ether saddr map @{_PEERS.name}",
            f"{from_outside} ct state new ct mark 0 drop",  # of no node of ours: answers would leave by the wrong door
            *([] if router.masquerade else [f'iifname "{up}" ct state new ct mark set {HOST_NUMBER}']),
            "ct direction reply ct mark != 0 meta mark set ct mark",
        ),
        Hook("filter", "prerouting", -150),
    )
    guard = Chain(
        "guard",
        (
            "ct state established,related accept",
            f"ip protocol {_ICMP} accept",
            f"ip daddr @{_ADDRESSES.name} goto {_REFUSED.name}",
        ),
        Hook("filter", "input", 0),
    )
    leave = Chain(
        "leave",
        (
            f"ip saddr . ip daddr @{_HAIRPIN.name} snat to {router.gateway}",
            *([f'oifname "{up}" snat to {router.uplink_address}'] if router.masquerade else []),
        ),
        Hook("nat", "postrouting", 100),
    )
    elements: dict[str, dict[Key, Key]] = {
        _ADDRESSES.name: {(int(address),): () for address in service_addresses(router)},
        _HAIRPIN.name: {(int(address), int(address)): () for address in router.local_tasks},
        _PEERS.name: {(path.router_mac,): (path.node_number,) for path in router.return_paths},
        _ZONES.name: {(path.router_mac,): (path.node_number,) for path in router.return_paths},
    }
    chains = (_REFUSED, apart, note, guard, _forward(router, up, vxlan), leave)
    return Table(ROUTER_MAPS, chains, elements)


def _forward(router: RouterPlan, up: str, vxlan: str) -> Chain:
    refuse = f"goto {_REFUSED.name}"
    return Chain(
        "pass",
        (
            "ct state established,related accept",
            f'iifname "{up}" ct status dnat accept',
            f'iifname "{up}" {refuse}',
            f'oifname "{up}" ip daddr {router.subnet} {refuse}',  # an address that nobody has
            f'oifname "{up}" iifname "{vxlan}" {refuse}',  # tasks of other nodes leave by their own
            *([] if router.masquerade else [f'oifname "{up}" {refuse}']),
        ),
        Hook("filter", "forward", 0),
    )


def host_table(plan: VipPlan) -> Table | None:
    """The host's table; None when there is no router."""
    if not plan.routers and not plan.published:
        return None
    to_router = f"fib daddr type local dnat ip to meta l4proto . th dport map @{PORTS.name}"
    routers = f"@{_ROUTERS.name}"
    cross = Chain(
        "pass",
        # A router is reached by published ports only, from wherever; networks do not meet in the host.
        (f"ip daddr {routers} ct direction original ct status & dnat == 0 goto {_REFUSED.name}",),
        Hook("filter", "forward", 0),
    )
    leave = Chain(
        "leave",
        (
            f"ip saddr . ip daddr @{_HAIRPIN.name} masquerade",  # a container to its own network's published port
            f"ip saddr 127.0.0.0/8 ip daddr {routers} masquerade",
            f"ip saddr {routers} ip daddr != {routers} masquerade",
        ),
        Hook("nat", "postrouting", 100),
    )
    arrive = Chain("arrive", (to_router,), Hook("nat", "prerouting", -100))
    start = Chain("start", (to_router,), Hook("nat", "output", -100))
    addresses = {int(r.uplink_address) for r in plan.routers} | {int(p.router_address) for p in plan.published}
    elements: dict[str, dict[Key, Key]] = {
        _HAIRPIN.name: {(address, address): () for address in addresses},
        _ROUTERS.name: {(address,): () for address in addresses},
        PORTS.name: published(plan.published)[0],
    }
    return Table(HOST_MAPS, (_REFUSED, arrive, start, cross, leave), elements)


def published(ports: Iterable[PublishedPort]) -> tuple[dict[Key, Key], list[str]]:
    """The elements of the host's map, and a sentence for each port that two networks want: the first one has it."""
    found: dict[Key, Key] = {}
    errors = []
    for port in ports:
        key, router = (PROTOCOL_NUMBER[port.protocol], port.port), (int(port.router_address),)
        if found.setdefault(key, router) != router:
            errors.append(f"cannot publish port {port.port}/{port.protocol} for a second network of this node")
    return found, errors


# --- routes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """`ip route add local ADDRESS dev lo`: the router answers ARP for it, and packets to it are taken in."""

    address: int  # as a number, there are many


@dataclass(frozen=True, slots=True)
class ReturnRoute:
    """The way back to a node: the default route of its table, by its router on the VXLAN device."""

    node_number: int
    via: IPv4Address
    device_index: int


@dataclass(frozen=True, slots=True)
class SkipRule:
    """The rule by which packets without a mark pass all return rules."""


@dataclass(frozen=True, slots=True)
class ReturnRule:
    """The rule that sends packets with a node's mark to its table."""

    node_number: int


RouteOrRule = LocalRoute | ReturnRoute | SkipRule | ReturnRule


def routing(router: RouterPlan, vxlan_index: int, uplink_index: int) -> frozenset[RouteOrRule]:
    """All routes and rules of ours that a router should have, given the indexes of its devices."""
    back = {p.node_number: ReturnRoute(p.node_number, p.router_address, vxlan_index) for p in router.return_paths}
    if not router.masquerade:
        back[HOST_NUMBER] = ReturnRoute(HOST_NUMBER, _host_end(router.uplink_address), uplink_index)
    wanted: set[RouteOrRule] = {LocalRoute(int(address)) for address in vips(router)}
    wanted |= set(back.values())
    wanted |= {ReturnRule(number) for number in back}
    if back:
        wanted.add(SkipRule())
    return frozenset(wanted)


def _host_end(uplink_address: IPv4Address) -> IPv4Address:
    """The other address of the uplink's /30."""
    return next(one for one in IPv4Network((uplink_address, 30), strict=False).hosts() if one != uplink_address)


def in_order(some: Iterable[RouteOrRule]) -> list[RouteOrRule]:
    """Routes before the rules that lead to them, otherwise as they come."""
    return sorted(some, key=lambda one: isinstance(one, SkipRule | ReturnRule))


def _device(name: str) -> str:
    assert _DEVICE.fullmatch(name), name
    return name
