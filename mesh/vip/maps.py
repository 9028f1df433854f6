"""Balancing by nftables maps: what the maps of a router hold for its virtual services. Pure.

The cost of a packet must not grow with the number of services, nor the cost of a change (chains per service, as
kube-proxy has them, load in 74 s where this takes 0.6 s). So there is no chain per service, but one per *number of
slots*, shared by services:

    map any       { VIP : goto any3_17, ... }                          a VIP, every protocol and port, the port kept
    map port      { address . protocol . port : goto port2_8, ... }    a published port
    map any_to    { VIP . slot : task, ... }                           slots 0..n-1 of each service
    map port_to   { address . protocol . port . slot : task, ... }
    map port_target { address . protocol . port : its tasks' port, ... }
    chain any3_17 { dnat to  (VIP . next number below 3) looked up in any_to; goto any1 }

and the same once more for IPv6, with names that begin with "v6". Addresses are numbers; those of IPv6 are all above
the 32 bits of IPv4.

A backend of weight w has w slots. A chain counts round its slots, so services that share one disturb each other's
turns; there are TURNS of each size, by the last bits of address or port, and services seldom meet. Every node begins
at another backend, or the first connections of all nodes would meet at one.

Going on to the chain of one slot (slot 0, which a service with a backend always has) saves the packet that was sent to
a slot by the old version of one map and looked up in the new version of the other while a transaction came between.

*Schedulers.* rr gives every backend one slot, wrr as many as its weight. sh and mh take the slot by a hash of the
client's address (chain anyh3), on every node the same: sh of as many slots as weights ask for, mh of MAGLEV_SLOTS by
Maglev's table (Eisenbud et al., NSDI 2016), where one backend more or less moves few clients. nftables cannot count
connections per backend: lc and wlc go round as rr and wrr, and `complaints` says so.

*Affinity.* A service with affinity goes to a chain that first looks the client up (anys3_17, then as any3_17), and its
new connections are noted on their way out, when their backend is known (chain anyk600: for 600 s), in a map that the
kernel fills itself and that is bounded. What it says of a backend that takes no new connections any more must be
removed (`forgotten`). IPv6 addresses are too long for such a map (nft 1.0.6 aborts): there affinity is mh.

ICMP is not balanced: the router itself answers pings of a VIP, as IPVS has it. A service without slots is in no map:
its connections reach the router itself, which refuses them (see `ingress`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from ipaddress import IPv4Address, IPv6Address
from math import gcd
from typing import Final

from mesh.vip.plan import Address, Backend, Protocol, Scheduler, VirtualService
from mesh.vip.rules import Atom, Chain, Edit, Elements, Hook, Key, Kind, Map, Table

PROTOCOL_NUMBER: Final[dict[Protocol, int]] = {"tcp": 6, "udp": 17, "sctp": 132}
PROTOCOL_NAME: Final[dict[int, Protocol]] = {number: name for name, number in PROTOCOL_NUMBER.items()}
_ICMP, _ICMP6 = 1, 58

# Slots of one service that weights may ask for. Finer proportions are rounded: a change of weights rewrites the slots.
MAX_WEIGHT_SLOTS = 256
# Slots of an mh service: prime, and a hundred times the backends that most services have (shares within 1 %). An
# element takes some 100 bytes of the kernel.
MAGLEV_SLOTS = 1021
# Chains of one size. More of them cost memory (some 1 KiB each, only when in use), and nothing per packet.
TURNS = 64
# Chains of a router that nobody uses; with one more of them all are removed. A kilobyte each.
MAX_SPARE_CHAINS = 256
# Clients remembered at once by a router, for all its services with affinity. The one more is not remembered.
MAX_CLIENTS = 65536
_LAST_IPV4 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Family:
    """The maps of one kind of service (VIP or published port) in one version of IP, and how its rules read."""

    name: str
    service: Map  # to the chain that balances
    slots: Map
    target: Map | None  # to the port of the backends
    keep: Map  # to the chain that notes the client's backend
    clients: Map | None  # client and service to backend, filled by the kernel
    ip: str  # "ip" or "ip6"
    key: str  # the service, in a packet that has not been translated
    original: str  # the service, in one that has


def _family(port: bool, v6: bool) -> Family:
    name, ip = f"{'v6' if v6 else ''}{'port' if port else 'any'}", "ip6" if v6 else "ip"
    address = Kind.ADDRESS6 if v6 else Kind.ADDRESS
    kinds = (address, Kind.PROTOCOL, Kind.PORT) if port else (address,)
    types = f"{'ipv6_addr' if v6 else 'ipv4_addr'}{' . inet_proto . inet_service' if port else ''}"
    key = f"{ip} daddr . meta l4proto . th dport" if port else f"{ip} daddr"
    clients = Map(
        f"{name}_clients",
        f"typeof {ip} saddr . {key} : {ip} daddr; flags dynamic,timeout; size {MAX_CLIENTS}",
        (address, *kinds),
        (address,),
    )
    # Ports apart from addresses: of both in one value nft 1.0.6 finds "conflicting protocols" in every later rule.
    target = Map(f"{name}_target", f"type {types} : inet_service", kinds, (Kind.PORT,))
    original = f"ct original {ip} daddr"
    return Family(
        name=name,
        service=Map(name, f"type {types} : verdict", kinds, (Kind.CHAIN,)),
        # "numgen inc mod 65536" only says that the last field is a 32-bit number (a jhash crashes `nft list` 1.0.6).
        slots=Map(f"{name}_to", f"typeof {key} . numgen inc mod 65536 : {ip} daddr", (*kinds, Kind.SLOT), (address,)),
        target=target if port else None,
        keep=Map(f"{name}_keep", f"type {types} : verdict", kinds, (Kind.CHAIN,)),
        clients=None if v6 else clients,
        ip=ip,
        key=key,
        original=f"{original} . meta l4proto . ct original proto-dst" if port else original,
    )


ANY, PORT, ANY6, PORT6 = _family(False, False), _family(True, False), _family(False, True), _family(True, True)
FAMILIES = {one.name: one for one in (ANY, PORT, ANY6, PORT6)}
CLIENTS = tuple(one.clients for one in FAMILIES.values() if one.clients is not None)
# Those whose elements are ours.
MAPS = tuple(m for one in FAMILIES.values() for m in (one.service, one.slots, one.target, one.keep) if m is not None)

# Key of a service in `any` (its address as a number) or `port` (address, protocol number, port).
ServiceKey = Key


@dataclass(frozen=True, slots=True)
class Group:
    """What the maps hold for one service: the chain it goes to, its slots, normally 0..n-1, and how it is kept.

    `made_of` is the service this was computed from; None: it was read from the kernel. It spares a service that has
    not changed all further work.
    """

    chain: str | None
    slots: Mapping[int, Key]
    made_of: VirtualService | None = None
    keep: str | None = None
    target: int | None = None  # the port of the backends


def service_key(service: VirtualService) -> ServiceKey:
    """Where a service stands in the maps."""
    if service.protocol is None or service.port is None:
        return (int(service.address),)
    return (int(service.address), PROTOCOL_NUMBER[service.protocol], service.port)


def is_ipv6(address: int) -> bool:
    """Whether a number is an IPv6 address: what is below is of no use to anybody (::/96)."""
    return address > _LAST_IPV4


def family(key: ServiceKey) -> Family:
    """The maps in which a service stands."""
    if is_ipv6(int(key[0])):
        return ANY6 if len(key) == 1 else PORT6
    return ANY if len(key) == 1 else PORT


def merged(services: Iterable[VirtualService]) -> dict[ServiceKey, VirtualService]:
    """Services by their keys; several on one key (an old and a new task with one host port) share their backends."""
    found: dict[ServiceKey, VirtualService] = {}
    for service in services:
        key = service_key(service)
        if (other := found.get(key)) is not None:
            service = replace(other, backends=other.backends + service.backends)  # noqa: PLW2901 - both from here on
        found[key] = service
    return found


def complaints(services: Iterable[VirtualService]) -> list[str]:
    """A sentence for each service that is balanced otherwise than it asks for."""
    return [
        f'cannot balance {service.address} by "{service.scheduler}" with nftables, which does not count the connections'
        f' of a backend: they go round by "{_counted(service.scheduler)}" (a kernel with IPVS can)'
        for service in services
        if _counted(service.scheduler) != service.scheduler
    ]


def _counted(scheduler: Scheduler) -> Scheduler:
    match scheduler:
        case "lc":
            return "rr"
        case "wlc":
            return "wrr"
        case "rr" | "wrr" | "sh" | "mh":
            return scheduler


# --- slots ------------------------------------------------------------------------------------------------------------


def shares(backends: Iterable[Backend], scheduler: Scheduler = "wrr") -> dict[int, int]:
    """How many slots each backend of positive weight gets: the smallest numbers in the weights' proportion."""
    weights: dict[int, int] = {}
    for backend in backends:
        if backend.weight > 0:
            address = int(backend.address)
            weights[address] = weights.get(address, 0) + backend.weight
    if _counted(scheduler) == "rr":
        return dict.fromkeys(weights, 1)
    divisor = reduce(gcd, weights.values(), 0)
    total = sum(weights.values())
    if total <= MAX_WEIGHT_SLOTS * divisor:
        return {address: weight // divisor for address, weight in weights.items()}
    return {address: max(1, weight * MAX_WEIGHT_SLOTS // total) for address, weight in weights.items()}


def arrange(service: VirtualService, held: Group | None, turn: int = 0) -> Group:
    """The slots of a service, by its scheduler.

    Where connections go round, any order of slots is as good: as few as possible of those it has are moved, new ones
    are spread evenly by weight and turned by `turn`. Where clients are hashed, all nodes must have the same.
    """
    way = _way(service)
    wanted: dict[Key, int] = {(address,): count for address, count in shares(service.backends, way).items()}
    match way:
        case "sh":
            slots = dict(enumerate(target for target, count in sorted(wanted.items()) for _ in range(count)))
        case "mh":
            slots = dict(enumerate(maglev(wanted)))
        case _:
            slots = _in_turn(wanted, held, turn)
    key = service_key(service)
    keep = None
    if slots and service.affinity_s > 0 and (of := family(key)).clients is not None:
        keep = f"{of.name}k{math.ceil(service.affinity_s)}"
    return Group(
        _chain_name(key, len(slots), way, keep is not None),
        slots,
        service,
        keep,
        service.target_port if slots else None,
    )


def _way(service: VirtualService) -> Scheduler:
    if service.affinity_s > 0 and is_ipv6(int(service.address)):
        return "mh"
    return _counted(service.scheduler)


def _in_turn(wanted: Mapping[Key, int], held: Group | None, turn: int) -> dict[int, Key]:
    size = sum(wanted.values())
    slots: dict[int, Key] = {}
    missing = dict(wanted)
    for slot, target in held.slots.items() if held is not None else ():
        if slot < size and missing.get(target, 0):
            slots[slot] = target
            missing[target] -= 1
    free = [slot for slot in range(size) if slot not in slots]
    places = sorted((_place(n, wanted[target]), target) for target, count in missing.items() for n in range(count))
    for index, (_, target) in enumerate(places):
        slots[free[(index + turn) % len(free)]] = target
    return slots


def _place(number: int, count: int) -> float:
    """Where the copies of one backend stand among all slots, from 0 to 1."""
    return (number + 0.5) / count


def maglev(weights: Mapping[Key, int]) -> list[Key]:
    """MAGLEV_SLOTS slots for these backends (none without): section 3.4 of the paper, with turns by weight."""
    if not weights:
        return []
    table: list[Key | None] = [None] * MAGLEV_SLOTS
    walks = [(target, _permutation(target), count) for target, count in sorted(weights.items())]
    left = MAGLEV_SLOTS
    while left:
        for target, walk, count in walks:
            for _ in range(min(count, left)):
                place = next(slot for slot in walk if table[slot] is None)
                table[place] = target
                left -= 1
    return [target for target in table if target is not None]


def _permutation(target: Key) -> Iterator[int]:
    digest = hashlib.blake2b(repr(target).encode(), digest_size=8).digest()
    offset = int.from_bytes(digest[:4], "big") % MAGLEV_SLOTS
    skip = int.from_bytes(digest[4:], "big") % (MAGLEV_SLOTS - 1) + 1
    return ((offset + number * skip) % MAGLEV_SLOTS for number in range(MAGLEV_SLOTS))


def groups(
    held: Mapping[ServiceKey, Group], services: Mapping[ServiceKey, VirtualService], turn: int
) -> dict[ServiceKey, Group]:
    """The wanted groups, as near to the held ones as can be. `turn` should differ from node to node."""
    wanted = {}
    for key, service in services.items():
        group = held.get(key)
        wanted[key] = group if group is not None and group.made_of == service else arrange(service, group, turn)
    return wanted


def read(elements: Mapping[str, Elements]) -> dict[ServiceKey, Group]:
    """The groups that the elements of a router's maps amount to, sound or not."""
    chains: dict[ServiceKey, str] = {}
    keeps: dict[ServiceKey, str] = {}
    ports: dict[ServiceKey, int] = {}
    slots: dict[ServiceKey, dict[int, Key]] = {}
    for one in FAMILIES.values():
        chains |= {key: str(value[0]) for key, value in elements.get(one.service.name, {}).items()}
        keeps |= {key: str(value[0]) for key, value in elements.get(one.keep.name, {}).items()}
        if one.target is not None:
            ports |= {key: int(value[0]) for key, value in elements.get(one.target.name, {}).items()}
        for key, target in elements.get(one.slots.name, {}).items():
            slot = key[-1]
            assert isinstance(slot, int)
            slots.setdefault(key[:-1], {})[slot] = target
    keys = chains.keys() | slots.keys() | keeps.keys() | ports.keys()
    return {key: Group(chains.get(key), slots.get(key, {}), None, keeps.get(key), ports.get(key)) for key in keys}


def forgotten(clients: Elements, wanted: Mapping[ServiceKey, Group]) -> list[Key]:
    """The remembered clients whose backend takes no new connections any more."""
    live: dict[ServiceKey, frozenset[Key]] = {}

    def targets_of(key: ServiceKey) -> frozenset[Key]:
        if key not in live:
            group = wanted.get(key)
            live[key] = frozenset(group.slots.values()) if group is not None and group.keep else frozenset()
        return live[key]

    return [key for key, target in clients.items() if target not in targets_of(key[1:])]


# --- the table --------------------------------------------------------------------------------------------------------


def edits(held: Mapping[ServiceKey, Group], wanted: Mapping[ServiceKey, Group]) -> list[Edit]:
    """What leads from the held groups to the wanted ones."""
    delete: dict[str, set[Key]] = {one.name: set() for one in MAPS}
    add: dict[str, dict[Key, Key]] = {one.name: {} for one in MAPS}
    nothing = Group(None, {})
    for key in held.keys() | wanted.keys():
        old, new = held.get(key, nothing), wanted.get(key, nothing)
        if old is new:
            continue
        of = family(key)
        singles: list[tuple[str, Atom | None, Atom | None]] = [
            (of.service.name, old.chain, new.chain),
            (of.keep.name, old.keep, new.keep),
        ]
        if of.target is not None:
            singles.append((of.target.name, old.target, new.target))
        for name, was, to in singles:
            if was != to and was is not None:
                delete[name].add(key)
            if was != to and to is not None:
                add[name][key] = (to,)
        slots = of.slots.name
        delete[slots] |= {(*key, slot) for slot, target in old.slots.items() if new.slots.get(slot) != target}
        add[slots] |= {(*key, slot): target for slot, target in new.slots.items() if old.slots.get(slot) != target}
    return [Edit(one, frozenset(delete[one.name]), add[one.name]) for one in MAPS]


def chain_names(some: Iterable[Group]) -> Iterator[str]:
    """The chains that these groups go to, one by one."""
    for group in some:
        if group.chain is not None:
            yield group.chain
        if group.keep is not None:
            yield group.keep


def with_spares(chains: Counter[str]) -> Counter[str]:
    """Of chains that are counted: those in use, and so many that balance for nobody just now.

    A service loses a backend and gets it back: a chain that stays costs nothing per packet, and spares the change nft,
    which reads all chains before it makes one.
    """
    idle = [name for name, count in chains.items() if count <= 0 and _BALANCING.fullmatch(name)]
    found = +chains
    if len(idle) <= MAX_SPARE_CHAINS:
        found.update(dict.fromkeys(idle, 0))
    return found


def table(chains: Iterable[str]) -> Table:
    """Maps, the chains of these names and those that they go on to, and the ones that look connections up.

    The elements come as `edits`.
    """
    return _table(frozenset(chains))


@lru_cache(maxsize=64)  # of the routers of a node: a change seldom needs another chain
def _table(chains: frozenset[str]) -> Table:
    found: dict[str, Chain] = {}
    waiting = list(chains)
    while waiting:
        if (name := waiting.pop()) not in found:
            found[name], more = _chain(name)
            waiting += more
    lookups = [
        f"{address} vmap @{one.service.name}"
        if one in (PORT, PORT6)
        else f"meta l4proto != {icmp} {address} vmap @{one.name}"
        for one, icmp in ((PORT, 0), (ANY, _ICMP), (PORT6, 0), (ANY6, _ICMP6))
        for address in (one.key,)
        if f"{one.name}1" in found  # on which all of its services' chains go; nobody looks into a map with nothing
    ]
    base = [Chain("balance", tuple(lookups), Hook("nat", "prerouting", -100))]
    if any(_KEEPING.fullmatch(name) for name in found):
        base.append(Chain("remember", tuple(_remembering()), Hook("filter", "forward", 5)))
    return Table((*MAPS, *CLIENTS), (*(found[name] for name in sorted(found)), *base))


def _remembering() -> Iterator[str]:
    yield f"ct state new {ANY.original} vmap @{ANY.keep.name}"
    for protocol in PROTOCOL_NUMBER:  # nft must know the protocol to know what a port is
        yield f"meta l4proto {protocol} ct state new {PORT.original} vmap @{PORT.keep.name}"


def _chain_name(key: ServiceKey, size: int, way: Scheduler, sticky: bool) -> str | None:
    name = f"{family(key).name}{'s' if sticky else ''}"
    if size == 0:
        return None
    if size == 1:
        return f"{name}1"
    return f"{name}h{size}" if way in {"sh", "mh"} else f"{name}{size}_{int(key[-1]) % TURNS}"


_BALANCING = re.compile(r"(?P<family>(?:v6)?(?:any|port))(?P<sticky>s?)(?P<rest>(?P<hash>h?)(?P<size>\d+)(?:_\d+)?)")
_KEEPING = re.compile(r"(?P<family>(?:v6)?(?:any|port))k(?P<seconds>\d+)")


@lru_cache(maxsize=4096)  # names are few: sizes times TURNS
def _chain(name: str) -> tuple[Chain, tuple[str, ...]]:
    """A chain by its name, and those that it goes on to."""
    if keeping := _KEEPING.fullmatch(name):
        return Chain(name, tuple(_keeping(FAMILIES[keeping["family"]], keeping["seconds"]))), ()
    parsed = _BALANCING.fullmatch(name)
    assert parsed is not None, name
    of, size, last = FAMILIES[parsed["family"]], int(parsed["size"]), f"{parsed['family']}1"
    if parsed["sticky"]:
        assert of.clients is not None
        onward = f"{of.name}{parsed['rest']}"
        return Chain(name, (f"dnat ip to ip saddr . {of.key} map @{of.clients.name}{_port(of)}", f"goto {onward}")), (
            onward,
        )
    number = f"jhash {of.ip} saddr mod {size} seed 0x6d657368" if parsed["hash"] else f"numgen inc mod {size}"
    rule = f"dnat {of.ip} to {of.key} . {number} map @{of.slots.name}{_port(of)}"
    return (Chain(name, (rule,)), ()) if size == 1 else (Chain(name, (rule, f"goto {last}")), (last,))


def _port(of: Family) -> str:
    return "" if of.target is None else f" : {of.key} map @{of.target.name}"


def _keeping(of: Family, seconds: str) -> Iterator[str]:
    assert of.clients is not None
    if of is ANY:
        yield f"update @{of.clients.name} {{ ip saddr . {of.original} timeout {seconds}s : ip daddr }}"
        return
    for protocol in PROTOCOL_NUMBER:
        element = f"ip saddr . {of.original} timeout {seconds}s : ip daddr"
        yield f"meta l4proto {protocol} update @{of.clients.name} {{ {element} }}"


def by_address(slots: Mapping[int, int]) -> dict[Address, int]:
    """Counts of slots by address instead of by number."""
    return {as_address(one): count for one, count in slots.items()}


def as_address(number: int) -> Address:
    """The address that a number stands for."""
    return IPv6Address(number) if is_ipv6(number) else IPv4Address(number)


def targets(wanted: Mapping[ServiceKey, Group]) -> dict[ServiceKey, dict[int, int]]:
    """How many slots each backend address has, by service: what `observe` tells."""
    found: dict[ServiceKey, dict[int, int]] = {}
    for key, group in wanted.items():
        if group.chain is None:
            continue
        counts = found.setdefault(key, {})
        for target in group.slots.values():
            address = int(target[0])
            counts[address] = counts.get(address, 0) + 1
    return found
