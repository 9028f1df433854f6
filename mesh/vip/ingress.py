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

- A network over which no port is published, on no node, has none of that (`meshed`): each base chain costs every packet
  some 500 instructions. What comes from outside is refused where only the first packets of connections pass.

- *The host* speaks to services like a task (docs/decisions/0023): what comes by the uplink is for a published port, or
  from the host itself. Other machines that send their packets for our networks to the host are refused.

In the host: a published port is handed to a router, for connections from outside, from the host itself and from
containers. As in Docker, a published port wins over a process of the host that listens on it: such a process is not
asked and not harmed, it hears of no new connection while the port is published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from mesh.vip import flowtable
from mesh.vip.maps import PROTOCOL_NAME, PROTOCOL_NUMBER, as_address, is_ipv6
from mesh.vip.plan import Address, Observed, ObservedService, Protocol, PublishedPort, RouterPlan, VipPlan
from mesh.vip.rules import Chain, Elements, Hook, Key, Kind, Map, Table

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

_ICMP, _TCP, _ICMP6, _SCTP = 1, 6, 58, 132
LOOPBACK_INDEX = 1  # lo is the first device of every namespace

_ADDRESSES = Map("addresses", "type ipv4_addr", (Kind.ADDRESS,))
_ADDRESSES6 = Map("v6addresses", "type ipv6_addr", (Kind.ADDRESS6,))
_HAIRPIN = Map("hairpin", "type ipv4_addr . ipv4_addr", (Kind.ADDRESS, Kind.ADDRESS))
_HAIRPIN6 = Map("v6hairpin", "type ipv6_addr . ipv6_addr", (Kind.ADDRESS6, Kind.ADDRESS6))
_PEERS = Map("peers", "type ether_addr : mark", (Kind.MAC,), (Kind.MARK,))
_ZONES = Map("zones", "typeof ether saddr : ct zone", (Kind.MAC,), (Kind.ZONE,))
_ROUTERS = Map("routers", "type ipv4_addr", (Kind.ADDRESS,))
_ROUTERS6 = Map("v6routers", "type ipv6_addr", (Kind.ADDRESS6,))
PORTS = Map("ports", "type inet_proto . inet_service : ipv4_addr", (Kind.PROTOCOL, Kind.PORT), (Kind.ADDRESS,))
PORTS6 = Map("v6ports", "type inet_proto . inet_service : ipv6_addr", (Kind.PROTOCOL, Kind.PORT), (Kind.ADDRESS6,))
# Ports that are published on one address of the host.
PORTS_AT = Map(
    "ports_at",
    "type ipv4_addr . inet_proto . inet_service : ipv4_addr",
    (Kind.ADDRESS, Kind.PROTOCOL, Kind.PORT),
    (Kind.ADDRESS,),
)
PORTS_AT6 = Map(
    "v6ports_at",
    "type ipv6_addr . inet_proto . inet_service : ipv6_addr",
    (Kind.ADDRESS6, Kind.PROTOCOL, Kind.PORT),
    (Kind.ADDRESS6,),
)

ROUTER_MAPS = (_ADDRESSES, _ADDRESSES6, _HAIRPIN, _HAIRPIN6, _PEERS, _ZONES)
PORT_MAPS = (PORTS, PORTS6, PORTS_AT, PORTS_AT6)
# Every table of ours has it, also that of the version before IPv6.
SET_OF_ALL = _HAIRPIN.name
HOST_MAPS = (_HAIRPIN, _HAIRPIN6, _ROUTERS, _ROUTERS6, *PORT_MAPS)

_REFUSED = Chain(
    "refused",
    (
        f"meta l4proto {_TCP} reject with tcp reset",
        # SCTP ends an association by nothing else, and tries for minutes. ICMPv6 has no like of it.
        f"meta nfproto ipv4 meta l4proto {_SCTP} reject with icmp type prot-unreachable",
        "reject with icmpx type port-unreachable",
    ),
)

# What the kernel takes as a device name and nft as a plain string; the names come from our own derivation.
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


# Addresses as elements of a set, those of IPv4 and those of IPv6.
Served = tuple[Mapping[Key, Key], Mapping[Key, Key]]


def uplink_addresses(router: RouterPlan) -> frozenset[int]:
    """The router's own addresses towards the host."""
    return frozenset(int(one) for one in (router.uplink_address, router.uplink_address6) if one is not None)


def service_addresses(router: RouterPlan) -> frozenset[int]:
    """Addresses, as numbers, at which the router itself serves nobody."""
    return uplink_addresses(router) | {int(s.address) for s in router.services}


def as_served(addresses: Iterable[int]) -> tuple[dict[Key, Key], dict[Key, Key]]:
    """Addresses as elements."""
    found: tuple[dict[Key, Key], dict[Key, Key]] = ({}, {})
    for address in addresses:
        found[is_ipv6(address)][address,] = ()
    return found


def router_table(router: RouterPlan, served: Served | None = None, fast: bool = False) -> Table:
    """The router's table but for the balancing. `served` are the addresses of its services, where they are known.

    `fast`: established connections pass by a flowtable.
    """
    up, vxlan = _device(router.uplink_device), _device(router.vxlan_device)
    outside = [f'iifname "{vxlan}" ip saddr != {router.subnet}']
    leaving = [(f"ip saddr . ip daddr @{_HAIRPIN.name} snat ip to {router.gateway}", True)]
    leaving.append((f'oifname "{up}" snat ip to {router.uplink_address}', router.masquerade))
    if router.subnet6 is not None:
        outside.append(f'iifname "{vxlan}" ip6 saddr != {router.subnet6}')
        leaving.append((f"ip6 saddr . ip6 daddr @{_HAIRPIN6.name} snat ip6 to {router.gateway6}", True))
        leaving.append((f'oifname "{up}" snat ip6 to {router.uplink_address6}', router.masquerade))
    apart = Chain(
        "apart",
        tuple(f"{one} ct original zone set ether saddr map @{_ZONES.name}" for one in outside),
        Hook("filter", "prerouting", -300),
    )
    # The kernel lets the router's own addresses pass, and need not look the way back of each packet up (accept_local).
    impostors = (f"ip saddr {router.gateway} drop", f"ip saddr @{_ADDRESSES.name} drop")
    refuse_strangers = [f'iifname "{up}" {one} goto {_REFUSED.name}' for one in _strangers(router)]
    note = Chain(
        "note",
        (
            "ct state established,related ct mark 0 accept",  # most packets: they pass one rule
            "ct direction reply ct mark != 0 meta mark set ct mark",
            *(f"{one} ct state new ct mark set ether saddr map @{_PEERS.name}" for one in outside),
            # Of no node of ours: answers would leave by the wrong door.
            *(f"{one} ct state new ct mark 0 drop" for one in outside),
            *refuse_strangers,
            *impostors,
            *([] if router.masquerade else [f'iifname "{up}" ct state new ct mark set {HOST_NUMBER}']),
        ),
        Hook("filter", "prerouting", -150),
    )
    # Of the type "nat", which sees the first packet of each connection only.
    begins = (*(f"{one} drop" for one in outside), *refuse_strangers, *impostors)
    enter = Chain("enter", begins, Hook("nat", "prerouting", -110))
    guard = Chain(
        "guard",
        (
            "ct state established,related accept",
            f"meta l4proto {_ICMP} accept",
            f"meta l4proto {_ICMP6} accept",
            f"ip daddr @{_ADDRESSES.name} goto {_REFUSED.name}",
            f"ip6 daddr @{_ADDRESSES6.name} goto {_REFUSED.name}",
        ),
        Hook("filter", "input", 0),
    )
    leave = Chain("leave", tuple(rule for rule, wanted in leaving if wanted), Hook("nat", "postrouting", 100))
    arriving = (apart, note) if router.meshed else (enter,)
    chains = (_REFUSED, *arriving, guard, _forward(router, up, vxlan, fast), leave)
    flowtables = frozenset({flowtable.NAME} if fast else ())
    return Table(ROUTER_MAPS, chains, _elements(router, served), flowtables)


def _elements(router: RouterPlan, served: Served | None) -> dict[str, dict[Key, Key]]:
    """What is in the router's maps."""
    four, six = as_served(service_addresses(router) if served is None else uplink_addresses(router))
    tasks = [int(address) for address in router.local_tasks]
    return {
        _ADDRESSES.name: four if served is None else {**served[0], **four},
        _ADDRESSES6.name: six if served is None else {**served[1], **six},
        _HAIRPIN.name: {(address, address): () for address in tasks if not is_ipv6(address)},
        _HAIRPIN6.name: {(address, address): () for address in tasks if is_ipv6(address)},
        _PEERS.name: {(path.router_mac,): (path.node_number,) for path in router.return_paths},
        _ZONES.name: {(path.router_mac,): (path.node_number,) for path in router.return_paths},
    }


def _strangers(router: RouterPlan) -> Iterator[str]:
    """What comes from others than the host and is not for the router itself, by which ports are published."""
    yield f"ip daddr != {router.uplink_address} ip saddr != {_host_end(router.uplink_address)}"
    if router.uplink_address6 is not None:
        host = _host_end(router.uplink_address6)
        link = "ip6 daddr != fe80::/10 ip6 daddr != ff00::/8"  # finding neighbours
        yield f"ip6 daddr != {router.uplink_address6} {link} ip6 saddr != {host}"


def _forward(router: RouterPlan, up: str, vxlan: str, fast: bool) -> Chain:
    refuse = f"goto {_REFUSED.name}"
    own = [f"ip daddr {router.subnet}", *([] if router.subnet6 is None else [f"ip6 daddr {router.subnet6}"])]
    return Chain(
        "pass",
        (
            *([flowtable.entrance(router.meshed)] if fast else []),
            "ct state established,related accept",
            f'iifname "{up}" ct status dnat accept',
            f'iifname "{up}" {refuse}',
            *(f'oifname "{up}" {one} {refuse}' for one in own),  # an address that nobody has
            f'oifname "{up}" iifname "{vxlan}" {refuse}',  # tasks of other nodes leave by their own
            *([] if router.masquerade else [f'oifname "{up}" {refuse}']),
        ),
        Hook("filter", "forward", 0),
    )


def host_table(plan: VipPlan) -> Table | None:
    """The host's table; None when there is no router."""
    if not plan.routers and not plan.published:
        return None
    # A port that is published on an address wins over one that is published on all.
    port = "meta l4proto . th dport"
    to_router = (
        f"fib daddr type local dnat ip to ip daddr . {port} map @{PORTS_AT.name}",
        f"fib daddr type local dnat ip to {port} map @{PORTS.name}",
        f"fib daddr type local dnat ip6 to ip6 daddr . {port} map @{PORTS_AT6.name}",
        f"fib daddr type local dnat ip6 to {port} map @{PORTS6.name}",
    )
    routers = (f"ip daddr @{_ROUTERS.name}", f"ip6 daddr @{_ROUTERS6.name}")
    cross = Chain(
        "pass",
        # A router is reached by published ports only, from wherever; networks do not meet in the host.
        tuple(f"{one} ct direction original ct status & dnat == 0 goto {_REFUSED.name}" for one in routers),
        Hook("filter", "forward", 0),
    )
    leave = Chain(
        "leave",
        (
            f"ip saddr . ip daddr @{_HAIRPIN.name} masquerade",  # a container to its own network's published port
            f"ip6 saddr . ip6 daddr @{_HAIRPIN6.name} masquerade",
            f"ip saddr 127.0.0.0/8 ip daddr @{_ROUTERS.name} masquerade",
            f"ip6 saddr ::1 ip6 daddr @{_ROUTERS6.name} masquerade",
            f"ip saddr @{_ROUTERS.name} ip daddr != @{_ROUTERS.name} masquerade",
            f"ip6 saddr @{_ROUTERS6.name} ip6 daddr != @{_ROUTERS6.name} masquerade",
        ),
        Hook("nat", "postrouting", 100),
    )
    arrive = Chain("arrive", to_router, Hook("nat", "prerouting", -100))
    start = Chain("start", to_router, Hook("nat", "output", -100))
    addresses = {address for router in plan.routers for address in uplink_addresses(router)}
    addresses |= {int(p.router_address) for p in plan.published}
    addresses |= {int(p.router_address6) for p in plan.published if p.router_address6 is not None}
    four, six = [a for a in addresses if not is_ipv6(a)], [a for a in addresses if is_ipv6(a)]
    elements: dict[str, dict[Key, Key]] = {
        _HAIRPIN.name: {(address, address): () for address in four},
        _HAIRPIN6.name: {(address, address): () for address in six},
        _ROUTERS.name: {(address,): () for address in four},
        _ROUTERS6.name: {(address,): () for address in six},
        **published(plan.published)[0],
    }
    return Table(HOST_MAPS, (_REFUSED, arrive, start, cross, leave), elements)


def published(ports: Iterable[PublishedPort]) -> tuple[dict[str, dict[Key, Key]], list[str]]:
    """The elements of the host's maps of ports, by map, and a sentence for each port that two networks want.

    The first one has it. A port on chosen addresses is no conflict with one on all: the address is more precise.
    """
    found: dict[str, dict[Key, Key]] = {one.name: {} for one in PORT_MAPS}
    errors = []
    for port in ports:
        clash = False
        for name, key, router in _entries(port):
            clash |= found[name].setdefault(key, router) != router
        if clash:
            errors.append(f"cannot publish port {port.port}/{port.protocol} for a second network of this node")
    return found, errors


def observed(services: Mapping[str, tuple[ObservedService, ...]], elements: Mapping[str, Elements]) -> Observed:
    """What the kernel holds, by the services of its routers and the elements of the host's maps of ports."""

    def found(of: Map) -> Iterator[tuple[Key, int]]:
        return ((key, int(router)) for key, (router,) in elements.get(of.name, {}).items())

    def where(key: Key) -> tuple[Protocol, int]:
        return PROTOCOL_NAME[int(key[-2])], int(key[-1])

    return Observed(
        services,
        {where(key): IPv4Address(router) for key, router in found(PORTS)},
        {where(key): IPv6Address(router) for key, router in found(PORTS6)},
        {
            (as_address(int(key[0])), *where(key)): as_address(router)
            for of in (PORTS_AT, PORTS_AT6)
            for key, router in found(of)
        },
    )


def _entries(port: PublishedPort) -> Iterator[tuple[str, Key, Key]]:
    key: Key = (PROTOCOL_NUMBER[port.protocol], port.port)
    routers = {4: port.router_address, 6: port.router_address6}
    if not port.addresses:
        yield PORTS.name, key, (int(port.router_address),)
        if port.router_address6 is not None:
            yield PORTS6.name, key, (int(port.router_address6),)
    for address in port.addresses:
        if (router := routers[address.version]) is not None:
            yield (PORTS_AT if address.version == 4 else PORTS_AT6).name, (int(address), *key), (int(router),)


# --- routes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """`ip route add local ADDRESS dev lo`: the router answers ARP for it, and packets to it are taken in.

    On another device it is for answers to [::1]: Linux takes a loopback address in on the device of its route only.
    """

    address: int  # as a number, there are many
    device_index: int = LOOPBACK_INDEX

    @property
    def version(self) -> int:
        """Of IP."""
        return 6 if is_ipv6(self.address) or self.device_index != LOOPBACK_INDEX else 4


@dataclass(frozen=True, slots=True)
class ReturnRoute:
    """The way back to a node: the default route of its table, by its router on the VXLAN device."""

    node_number: int
    via: Address
    device_index: int


@dataclass(frozen=True, slots=True)
class SkipRule:
    """The rule by which packets without a mark pass all return rules."""

    version: int = 4  # of IP


@dataclass(frozen=True, slots=True)
class ReturnRule:
    """The rule that sends packets with a node's mark to its table."""

    node_number: int
    version: int = 4


@dataclass(frozen=True, slots=True)
class HostRoute:
    """The host's way to the services of a network: through its router, which refuses everything else there."""

    subnet: IPv4Network | IPv6Network
    via: Address


RouteOrRule = LocalRoute | ReturnRoute | SkipRule | ReturnRule | HostRoute

_LOOPBACK6 = 1  # ::1


def vips(router: RouterPlan) -> frozenset[int]:
    """The addresses that must be routed to the router itself; the uplink addresses are without our doing."""
    return service_addresses(router) - uplink_addresses(router)


def routing(router: RouterPlan, vxlan_index: int, uplink_index: int) -> frozenset[RouteOrRule]:
    """All routes and rules of ours that a router should have, given the indexes of its devices."""
    return ways_back(router, vxlan_index, uplink_index) | {LocalRoute(address) for address in vips(router)}


def ways_back(router: RouterPlan, vxlan_index: int, uplink_index: int) -> frozenset[RouteOrRule]:
    """Those that do not depend on the services."""
    if not router.meshed:
        return frozenset()
    back = [ReturnRoute(p.node_number, p.router_address, vxlan_index) for p in router.return_paths]
    if router.subnet6 is not None:
        back += [
            ReturnRoute(p.node_number, p.router_address6, vxlan_index)
            for p in router.return_paths
            if p.router_address6 is not None
        ]
    if not router.masquerade:
        back.append(ReturnRoute(HOST_NUMBER, _host_end(router.uplink_address), uplink_index))
        if router.uplink_address6 is not None:
            back.append(ReturnRoute(HOST_NUMBER, _host_end(router.uplink_address6), uplink_index))
    wanted: set[RouteOrRule] = set(back)
    wanted |= {ReturnRule(one.node_number, one.via.version) for one in back}
    wanted |= {SkipRule(one.via.version) for one in back}
    return frozenset(wanted)


def host_routing(uplinks: Iterable[int]) -> frozenset[RouteOrRule]:
    """What the host needs so that [::1] answers for published ports, given its devices towards routers with IPv6."""
    return frozenset(LocalRoute(_LOOPBACK6, index) for index in uplinks)


def host_routes(routers: Iterable[RouterPlan]) -> frozenset[HostRoute]:
    """The host's ways to services. Of several networks with one subnet the first has it."""
    found: dict[IPv4Network | IPv6Network, Address] = {}
    for router in routers:
        found.setdefault(router.subnet, router.uplink_address)
        if router.subnet6 is not None and router.uplink_address6 is not None:
            found.setdefault(router.subnet6, router.uplink_address6)
    return frozenset(HostRoute(subnet, via) for subnet, via in found.items())


def _host_end(uplink_address: Address) -> Address:
    """The other address of the uplink: of its four addresses the two in the middle are in use."""
    return as_address(int(uplink_address) ^ 3)


def in_order(some: Iterable[RouteOrRule]) -> list[RouteOrRule]:
    """Routes before the rules that lead to them, otherwise as they come."""
    return sorted(some, key=lambda one: isinstance(one, SkipRule | ReturnRule))


def _device(name: str) -> str:
    assert _DEVICE.fullmatch(name), name
    return name
