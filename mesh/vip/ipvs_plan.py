"""Balancing by IPVS: what a router's IPVS table holds for its virtual services, and what leads there. Pure.

Two kinds of service, as IPVS has them:

- A published port is one by address, protocol and port.
- A VIP takes every port, which IPVS offers by *firewall mark* only (its port 0 would pin every client to one backend).
  The mark of a VIP is the VIP: an IPv4 address has the 32 bits of a mark. So nobody has to hand out numbers and to
  remember them, and after a crash, or a foreign flush of the rules, each service is recognised by its mark alone. Marks
  stay clear of the numbers of nodes (`ingress`), which are addresses of 0.0.0.0/17.

A rule in the router's table gives the first packet of a connection its mark. Only services with a backend that takes
new connections are in its map; for the others no packet reaches IPVS, and the router refuses it, as with `maps`.

A backend of weight 0 stays in IPVS until it is taken from the plan: its connections live, and IPVS ends those of a
backend that is deleted (`expire_nodest_conn`). So the table is changed by differences only, and never flushed.

Hashing schedulers go by the order of the backends, which is that of their arrival. So that all nodes send a client to
the same one, those that would come behind a newcomer are deleted and added again at once, in order. The kernel finds a
backend that was deleted a moment ago again, with its connections; meanwhile these must not be ended (`Ipvs`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as changed
from itertools import takewhile
from typing import Final

from mesh.vip import ingress
from mesh.vip.maps import ServiceKey, is_ipv6, service_key
from mesh.vip.plan import RouterPlan, VirtualService
from mesh.vip.rules import Chain, Hook, Key, Kind, Map, Table

AF_INET, AF_INET6 = 2, 10

# IP_VS_SVC_F_*: affinity; and for hashing schedulers, to go on to another backend when the hash meets a drained one.
FLAG_PERSISTENT, FLAG_FALLBACK = 0x1, 0x8
_HASHING = frozenset({"sh", "mh"})

# Marks of IPv6 VIPs: the last bits of the address under this one, so that fd00::7 is not the number of node 7.
_MARK6, _MARK6_BITS = 0x4000_0000, 30

MARKS = Map("marks", "type ipv4_addr : mark", (Kind.ADDRESS,), (Kind.MARK,))
MARKS6 = Map("v6marks", "type ipv6_addr : mark", (Kind.ADDRESS6,), (Kind.MARK,))
_PORT_TYPES = "inet_proto . inet_service"
IDLE = Map("idle", f"type ipv4_addr . {_PORT_TYPES}", (Kind.ADDRESS, Kind.PROTOCOL, Kind.PORT))
IDLE6 = Map("v6idle", f"type ipv6_addr . {_PORT_TYPES}", (Kind.ADDRESS6, Kind.PROTOCOL, Kind.PORT))
MAPS: Final = (MARKS, MARKS6, IDLE, IDLE6)

# The sets of `ingress` with all addresses of services.
_ADDRESSES, _ADDRESSES6 = "addresses", "v6addresses"
# Hooks of IPVS: it takes connections in at 98 and 99 of `input`, and answers at 100 of `forward` (ip_vs_core.c).
_BEHIND_IPVS, _BEFORE_IPVS = 101, 97
# Of a hidden answer, between the two: no number of a node, and no address.
_HIDDEN = 0x8000


@dataclass(frozen=True, slots=True)
class ServiceId:
    """Which service: by mark (then the rest is 0), or by protocol, address and port. Addresses as in a packet."""

    family: int
    mark: int = 0
    protocol: int = 0
    address: bytes = b""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Destination:
    """A backend. Port 0: the one that the client addressed."""

    address: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Service:
    """A virtual service. Weights of backends in the order in which they were, or are to be, added."""

    scheduler: str
    flags: int
    affinity_s: int
    weights: Mapping[Destination, int] = field(default_factory=dict)


Services = Mapping[ServiceId, Service]


@dataclass(frozen=True, slots=True)
class PutService:
    """Make a service, or set how it balances."""

    id: ServiceId
    service: Service
    new: bool


@dataclass(frozen=True, slots=True)
class DeleteService:
    """Remove a service with its backends."""

    id: ServiceId


@dataclass(frozen=True, slots=True)
class PutBackend:
    """Add a backend, or set its weight."""

    id: ServiceId
    destination: Destination
    weight: int
    new: bool


@dataclass(frozen=True, slots=True)
class DeleteBackend:
    """Remove a backend; its connections end, but for those of one that is added again at once."""

    id: ServiceId
    destination: Destination


Operation = PutService | DeleteService | PutBackend | DeleteBackend


@dataclass(frozen=True, slots=True)
class Difference:
    """What to do before the router's table sends connections here, and what after it no longer does."""

    before: list[Operation]
    after: list[Operation]


# --- what is wanted ---------------------------------------------------------------------------------------------------


def mark(address: int) -> int:
    """The mark of a VIP, which is given as a number."""
    return _MARK6 | address & ((1 << _MARK6_BITS) - 1) if is_ipv6(address) else address


def service_id(key: ServiceKey) -> ServiceId:
    """Where a service stands in the IPVS table."""
    address = int(key[0])
    family = AF_INET6 if is_ipv6(address) else AF_INET
    if len(key) == 1:
        return ServiceId(family, mark(address))
    return ServiceId(family, 0, int(key[1]), address.to_bytes(16 if family == AF_INET6 else 4, "big"), int(key[2]))


def meeting(keys: Iterable[ServiceKey]) -> frozenset[ServiceKey]:
    """The VIPs that have the mark of another, and must give way to it. Only those of IPv6 can."""
    owners: dict[int, int] = {}
    vips = sorted(int(key[0]) for key in keys if len(key) == 1 and is_ipv6(int(key[0])))
    return frozenset((one,) for one in vips if owners.setdefault(mark(one), one) != one)


def service(wanted: VirtualService, turn: int) -> Service:
    """What IPVS should hold for a service. `turn` should differ from node to node: each begins at another backend."""
    weights: dict[Destination, int] = {}
    for backend in wanted.backends:
        destination = Destination(backend.address.packed, wanted.target_port or 0)
        weights[destination] = weights.get(destination, 0) + backend.weight
    hashing = wanted.scheduler in _HASHING
    affinity_s = math.ceil(wanted.affinity_s)
    flags = (FLAG_PERSISTENT if affinity_s else 0) | (FLAG_FALLBACK if hashing else 0)
    return Service(wanted.scheduler, flags, affinity_s, _in_turn(weights, 0 if hashing else turn))


def _in_turn(weights: Mapping[Destination, int], turn: int) -> dict[Destination, int]:
    """In the order in which they are added: the kernel begins at the last. All nodes hash in the same order."""
    ordered = sorted(weights.items(), key=lambda item: item[0].address)
    start = turn % len(ordered) if ordered else 0
    return dict(ordered[start:] + ordered[:start])


# --- from what is held ------------------------------------------------------------------------------------------------


def difference(held: Services, wanted: Services) -> Difference:
    """What leads from the held services to the wanted ones, in an order that leaves no service without backends."""
    before: list[Operation] = []
    after: list[Operation] = []
    for id_, one in wanted.items():
        known = held.get(id_)
        if known is None or not _balances_alike(known, one):
            before.append(PutService(id_, one, new=known is None))
        weights = known.weights if known is not None else {}
        moved = _out_of_order(known, one) if known is not None else frozenset()
        for destination, weight in one.weights.items():
            if destination in moved:
                before.append(DeleteBackend(id_, destination))
            if destination in moved or weights.get(destination) != weight:
                new = destination in moved or destination not in weights
                before.append(PutBackend(id_, destination, weight, new))
        after += [DeleteBackend(id_, each) for each in weights if each not in one.weights]
    after += [DeleteService(id_) for id_ in held if id_ not in wanted]
    return Difference(before, after)


def _out_of_order(held: Service, wanted: Service) -> frozenset[Destination]:
    """The backends that must be added once more, each behind the one before it, where clients are hashed.

    All nodes must see the backends in one order; the order of another scheduler's is not remembered. The first ones
    that are in order stay, so somebody is always there, but for weights.
    """
    if wanted.scheduler not in _HASHING:
        return frozenset()
    there = [each for each in held.weights if each in wanted.weights]
    is_known = held.scheduler in _HASHING or len(there) == 1
    pairs = zip(there if is_known else (), wanted.weights, strict=False)
    in_order = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return frozenset(there[in_order:])


def _balances_alike(one: Service, other: Service) -> bool:
    return (one.scheduler, one.flags, one.affinity_s) == (other.scheduler, other.flags, other.affinity_s)


# --- the router's table -----------------------------------------------------------------------------------------------


def elements(wanted: Iterable[VirtualService]) -> dict[str, dict[Key, Key]]:
    """What the maps hold for some services, by map."""
    found: dict[str, dict[Key, Key]] = {one.name: {} for one in MAPS}
    for one in wanted:
        key = service_key(one)
        v6, live = is_ipv6(int(key[0])), any(backend.weight > 0 for backend in one.backends)
        if len(key) == 1 and live:
            found[(MARKS6 if v6 else MARKS).name][key] = (mark(int(key[0])),)
        elif len(key) > 1 and not live:
            found[(IDLE6 if v6 else IDLE).name][key] = ()
    return found


def table(router: RouterPlan, served: ingress.Served) -> Table:
    """The router's table with what leads connections to IPVS. The elements of MAPS come as edits.

    A base chain costs each packet more than a rule, so ours go into those that are there where they can.
    """
    own = ingress.router_table(router, served)
    begins = []
    for ip, _, marks, idle, _ in _families(router):
        begins.append(f"{ip} daddr . meta l4proto . th dport @{idle.name} goto refused")
        begins.append(f"meta mark set {ip} daddr map @{marks.name}")
    rest = []
    for chain in own.chains:
        hook = chain.hook
        if hook is not None and chain.name == "guard":
            # It refuses what reaches the router itself: that must come after IPVS has taken its part.
            rest.append(changed(chain, hook=changed(hook, priority=_BEHIND_IPVS)))
        elif hook is not None and chain.name == "pass":
            rules = (*_hide(router), *chain.rules)
            rest.append(changed(chain, hook=changed(hook, priority=_BEFORE_IPVS), rules=rules))
        else:
            rest.append(chain)
    chains = (
        *rest,
        # Of the type "nat", which sees the first packet of a connection only: the next ones are known to IPVS.
        Chain("begin", tuple(begins), Hook("nat", "prerouting", -100)),
        Chain("show", tuple(_show(router)), Hook("filter", "forward", _BEHIND_IPVS)),
    )
    return Table(own.maps + MAPS, chains, own.elements)


def _hide(router: RouterPlan) -> Iterator[str]:
    """Rules that hide answers from IPVS which it has no part in.

    A connection that IPVS did not make can have the same answering tuple as one that it did (one client port, to a
    VIP and to its task): IPVS would translate the answers of both. So those of the others show another source address
    while they pass it, and carry a mark by which they are found again.
    """
    known = "ct state established,related "
    yield f"{known}ct direction original accept"
    for ip, ours, _, _, _ in _families(router):
        yield f"{known}ct original {ip} daddr @{ours} accept"
    for ip, _, _, _, bit in _families(router):
        yield f"ct direction reply {ip} saddr set {ip} saddr ^ {bit} meta mark set {_HIDDEN}"


def _show(router: RouterPlan) -> Iterator[str]:
    """Rules that show them again."""
    yield f"meta mark != {_HIDDEN} accept"
    for ip, _, _, _, bit in _families(router):
        yield f"{ip} saddr set {ip} saddr ^ {bit} meta mark set 0"


def _families(router: RouterPlan) -> Iterator[tuple[str, str, Map, Map, str]]:
    """(name in rules, set of our addresses, marks, idle ports, a bit that no address in use has) of the network's."""
    yield "ip", _ADDRESSES, MARKS, IDLE, "128.0.0.0"
    if router.subnet6 is not None:
        yield "ip6", _ADDRESSES6, MARKS6, IDLE6, "8000::"
