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
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as changed
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from mesh.vip import ingress, maps
from mesh.vip.maps import PROTOCOL_NUMBER, ServiceKey
from mesh.vip.plan import RouterPlan, VirtualService
from mesh.vip.rules import Chain, Hook, Key, Kind, Map, Table

AF_INET, AF_INET6 = 2, 10

# IP_VS_SVC_F_*: affinity; and for hashing schedulers, to go on to another backend when the hash meets a drained one.
FLAG_PERSISTENT, FLAG_FALLBACK = 0x1, 0x8
_HASHING = frozenset({"sh", "mh"})

# Marks of IPv6 VIPs: the last bits of the address under this one, so that fd00::7 is not the number of node 7.
_MARK6, _MARK6_BITS = 0x4000_0000, 30

MARKS = Map("marks", "type ipv4_addr : mark", (Kind.ADDRESS,), (Kind.MARK,))
IDLE = Map(
    "idle",
    "type ipv4_addr . inet_proto . inet_service",
    (Kind.ADDRESS, Kind.PROTOCOL, Kind.PORT),
)
MAPS: Final = (MARKS, IDLE)

# The set of `ingress` with all addresses of services.
_ADDRESSES = "addresses"
# Hooks of IPVS: it takes connections in at 98 and 99 of `input`, and answers at 100 of `forward` (ip_vs_core.c).
_BEHIND_IPVS, _BEFORE_IPVS = 101, 97


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
    """A virtual service. `made_of` is what it was computed from (None: it was read from the kernel)."""

    scheduler: str
    flags: int
    affinity_s: int
    weights: Mapping[Destination, int]
    made_of: VirtualService | None = field(default=None, compare=False)


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
    """Remove a backend; its connections end."""

    id: ServiceId
    destination: Destination


Operation = PutService | DeleteService | PutBackend | DeleteBackend


@dataclass(frozen=True, slots=True)
class Difference:
    """What to do before the router's table sends connections here, and what after it no longer does."""

    before: list[Operation]
    after: list[Operation]


# --- what is wanted ---------------------------------------------------------------------------------------------------


def mark(address: IPv4Address | IPv6Address) -> int:
    """The mark of a VIP."""
    number = int(address)
    return number if address.version == 4 else _MARK6 | number & ((1 << _MARK6_BITS) - 1)


def service_id(service: VirtualService) -> ServiceId:
    """Where a service stands in the IPVS table."""
    family = AF_INET if service.address.version == 4 else AF_INET6
    if service.protocol is None or service.port is None:
        return ServiceId(family, mark(service.address))
    return ServiceId(family, 0, PROTOCOL_NUMBER[service.protocol], service.address.packed, service.port)


def services(wanted: Iterable[VirtualService], held: Services, turn: int) -> tuple[dict[ServiceId, Service], list[str]]:
    """The services that IPVS should hold, and a sentence for each that it cannot. What has not changed is taken from
    `held`. Each key must be there once (see `maps.merged`).

    `turn` should differ from node to node: with it each begins at another backend.
    """
    found: dict[ServiceId, Service] = {}
    errors = []
    for one in wanted:
        id_ = service_id(one)
        if (other := found.get(id_)) is not None:
            assert other.made_of is not None
            errors.append(f"cannot balance {one.address}: its last bits are those of {other.made_of.address}")
            continue
        known = held.get(id_)
        same = known is not None and (known.made_of is one or known.made_of == one)
        found[id_] = known if known is not None and same else _service(one, turn)
    return found, errors


def _service(one: VirtualService, turn: int) -> Service:
    weights: dict[Destination, int] = {}
    for backend in one.backends:
        destination = Destination(backend.address.packed, one.target_port or 0)
        weights[destination] = weights.get(destination, 0) + backend.weight
    scheduler = _scheduler(one, weights)
    affinity_s = math.ceil(one.affinity_s)
    flags = (FLAG_PERSISTENT if affinity_s else 0) | (FLAG_FALLBACK if scheduler in _HASHING else 0)
    return Service(scheduler, flags, affinity_s, _in_turn(weights, 0 if scheduler in _HASHING else turn), one)


def _scheduler(one: VirtualService, weights: Mapping[Destination, int]) -> str:
    """Round robin goes by weight where there are weights, as with `maps`; the kernel's `rr` knows none."""
    uneven = len({weight for weight in weights.values() if weight}) > 1
    return "wrr" if one.scheduler == "rr" and uneven else one.scheduler


def _in_turn(weights: Mapping[Destination, int], turn: int) -> dict[Destination, int]:
    """In the order in which they are added: the kernel begins at the last. All nodes hash in the same order."""
    ordered = sorted(weights.items(), key=lambda item: item[0].address)
    start = turn % len(ordered) if ordered else 0
    return dict(ordered[start:] + ordered[:start])


def idle_s(wanted: Iterable[VirtualService]) -> int | None:
    """The idle time-out of TCP connections in a router: IPVS has one for all, so the longest. None: no service."""
    return max((math.ceil(one.idle_s) for one in wanted), default=None)


# --- from what is held ------------------------------------------------------------------------------------------------


def difference(held: Services, wanted: Services) -> Difference:
    """What leads from the held services to the wanted ones, in an order that leaves no service without backends."""
    before: list[Operation] = []
    after: list[Operation] = []
    for id_, service in wanted.items():
        known = held.get(id_)
        if known is service:
            continue
        if known is None or not _balances_alike(known, service):
            before.append(PutService(id_, service, new=known is None))
        weights = known.weights if known is not None else {}
        for destination, weight in service.weights.items():
            if weights.get(destination) != weight:
                before.append(PutBackend(id_, destination, weight, new=destination not in weights))
        after += [DeleteBackend(id_, one) for one in weights if one not in service.weights]
    after += [DeleteService(id_) for id_ in held if id_ not in wanted]
    return Difference(before, after)


def _balances_alike(one: Service, other: Service) -> bool:
    return (one.scheduler, one.flags, one.affinity_s) == (other.scheduler, other.flags, other.affinity_s)


# --- the router's table -----------------------------------------------------------------------------------------------


def table(router: RouterPlan, wanted: Iterable[VirtualService]) -> Table:
    """The router's table with what leads connections to IPVS."""
    own = ingress.router_table(router)
    guard = _guard(own)
    # A connection that IPVS did not make can have the same answering tuple as one that it did (one client port, to a
    # VIP and to its task): IPVS would translate the answers of both. So those of the others show another source
    # address while they pass it.
    foreign = f"ct direction reply ct original ip daddr != @{_ADDRESSES}"
    flip = "ip saddr set ip saddr ^ 128.0.0.0"
    chains = (
        *(changed(c, hook=changed(guard, priority=_BEHIND_IPVS)) if c.hook == guard else c for c in own.chains),
        Chain("send", (f"ct state new meta mark set ip daddr map @{MARKS.name}",), Hook("filter", "prerouting", -140)),
        Chain(
            "spare",
            (f"ct state new ip daddr . ip protocol . th dport @{IDLE.name} goto refused",),
            Hook("filter", "input", 0),
        ),
        Chain("hide", (f"{foreign} {flip}",), Hook("filter", "forward", _BEFORE_IPVS)),
        Chain("show", (f"{foreign} {flip}",), Hook("filter", "forward", _BEHIND_IPVS)),
    )
    marks: dict[Key, Key] = {}
    idle: dict[Key, Key] = {}
    for one in wanted:
        key: ServiceKey = maps.service_key(one)
        live = any(backend.weight > 0 for backend in one.backends)
        if len(key) == 1 and live:
            marks[key] = (mark(one.address),)
        elif len(key) > 1 and not live:
            idle[key] = ()
    return Table(own.maps + MAPS, chains, {**own.elements, MARKS.name: marks, IDLE.name: idle})


def _guard(own: Table) -> Hook:
    """Where the router refuses what reaches it: that must come after IPVS has taken its part."""
    (hook,) = (chain.hook for chain in own.chains if chain.name == "guard" and chain.hook is not None)
    return hook
