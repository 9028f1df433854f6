"""Balancing by nftables maps: what the maps of a router hold for its virtual services. Pure.

The cost of a packet must not grow with the number of services, nor the cost of a change (chains per service, as
kube-proxy has them, load in 74 s where this takes 0.6 s). So there is no chain per service, but one per *number of
slots*, shared by services:

    map any       { VIP : goto any3_17, ... }                          a VIP, every protocol and port, the port kept
    map port      { address . protocol . port : goto port2_8, ... }    a published port
    map any_to    { VIP . slot : task, ... }                           slots 0..n-1 of each service
    map port_to   { address . protocol . port . slot : task . port, ... }
    chain any3_17 { dnat to  (VIP . next number below 3) looked up in any_to; goto any1 }

A backend of weight w has w slots. A chain counts round its slots, so services that share one disturb each other's
turns; there are TURNS of each size, by the last bits of address or port, and services seldom meet. Every node begins
at another backend, or the first connections of all nodes would meet at one.

Going on to the chain of one slot (slot 0, which a service with a backend always has) saves the packet that was sent to
a slot by the old version of one map and looked up in the new version of the other while a transaction came between.

ICMP is not balanced: the router itself answers pings of a VIP, as IPVS has it. A service without slots is in no map:
its connections reach the router itself, which refuses them (see `ingress`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from ipaddress import IPv4Address
from math import gcd
from typing import Final

from mesh.vip.plan import Address, Backend, Protocol, VirtualService
from mesh.vip.rules import Atom, Chain, Edit, Elements, Hook, Key, Kind, Map, Table

PROTOCOL_NUMBER: Final[dict[Protocol, int]] = {"tcp": 6, "udp": 17, "sctp": 132}
PROTOCOL_NAME: Final[dict[int, Protocol]] = {number: name for name, number in PROTOCOL_NUMBER.items()}
_ICMP = 1

# Slots of one service that weights may ask for. Finer proportions are rounded: a change of weights rewrites the slots.
MAX_WEIGHT_SLOTS = 256
# Chains of one size. More of them cost memory (some 1 KiB each, only when in use), and nothing per packet.
TURNS = 64

ANY = Map("any", "type ipv4_addr : verdict", (Kind.ADDRESS,), (Kind.CHAIN,))
PORT = Map(
    "port",
    "type ipv4_addr . inet_proto . inet_service : verdict",
    (Kind.ADDRESS, Kind.PROTOCOL, Kind.PORT),
    (Kind.CHAIN,),
)
# "numgen inc mod 65536" only says that the last field is a 32-bit number (a jhash there crashes `nft list` 1.0.6).
ANY_TO = Map(
    "any_to",
    "typeof ip daddr . numgen inc mod 65536 : ip daddr",
    (Kind.ADDRESS, Kind.SLOT),
    (Kind.ADDRESS,),
)
PORT_TO = Map(
    "port_to",
    "typeof ip daddr . ip protocol . th dport . numgen inc mod 65536 : ip daddr . th dport",
    (Kind.ADDRESS, Kind.PROTOCOL, Kind.PORT, Kind.SLOT),
    (Kind.ADDRESS, Kind.PORT),
)
MAPS = (ANY, PORT, ANY_TO, PORT_TO)

# Key of a service in `any` (its address as a number) or `port` (address, protocol number, port).
ServiceKey = Key


@dataclass(frozen=True, slots=True)
class Group:
    """What the maps hold for one service: the chain it goes to and its slots, normally 0..n-1.

    `made_of` is the service this was computed from; None: it was read from the kernel. It spares a service that has
    not changed all further work.
    """

    chain: str | None
    slots: Mapping[int, Key]
    made_of: VirtualService | None = None


def service_key(service: VirtualService) -> ServiceKey:
    """Where a service stands in the maps."""
    if service.protocol is None or service.port is None:
        return (int(service.address),)
    return (int(service.address), PROTOCOL_NUMBER[service.protocol], service.port)


def merged(services: Iterable[VirtualService]) -> dict[ServiceKey, VirtualService]:
    """Services by their keys; several on one key (an old and a new task with one host port) share their backends."""
    found: dict[ServiceKey, VirtualService] = {}
    for service in services:
        key = service_key(service)
        if (other := found.get(key)) is not None:
            service = VirtualService(  # noqa: PLW2901 - it stands for both from here on
                other.address, other.protocol, other.port, other.target_port, other.backends + service.backends
            )
        found[key] = service
    return found


# --- slots ------------------------------------------------------------------------------------------------------------


def shares(backends: Iterable[Backend]) -> dict[int, int]:
    """How many slots each backend of positive weight gets: the smallest numbers in the weights' proportion."""
    weights: dict[int, int] = {}
    for backend in backends:
        if backend.weight > 0:
            address = int(backend.address)
            weights[address] = weights.get(address, 0) + backend.weight
    divisor = reduce(gcd, weights.values(), 0)
    total = sum(weights.values())
    if total <= MAX_WEIGHT_SLOTS * divisor:
        return {address: weight // divisor for address, weight in weights.items()}
    return {address: max(1, weight * MAX_WEIGHT_SLOTS // total) for address, weight in weights.items()}


def arrange(service: VirtualService, held: Group | None, turn: int = 0) -> Group:
    """The slots of a service, moving as few as possible of those it has: any order of slots is as good.

    New ones are spread evenly by weight, and turned by `turn`.
    """
    port = () if service.target_port is None else (service.target_port,)
    wanted: dict[Key, int] = {(address, *port): count for address, count in shares(service.backends).items()}
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
    return Group(_chain_name(service_key(service), size), slots, service)


def _place(number: int, count: int) -> float:
    """Where the copies of one backend stand among all slots, from 0 to 1."""
    return (number + 0.5) / count


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
    slots: dict[ServiceKey, dict[int, Key]] = {}
    for name in (ANY.name, PORT.name):
        chains |= {key: str(value[0]) for key, value in elements.get(name, {}).items()}
    for name in (ANY_TO.name, PORT_TO.name):
        for key, target in elements.get(name, {}).items():
            slot = key[-1]
            assert isinstance(slot, int)
            slots.setdefault(key[:-1], {})[slot] = target
    return {key: Group(chains.get(key), slots.get(key, {})) for key in chains.keys() | slots.keys()}


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
        service, slots = (ANY.name, ANY_TO.name) if len(key) == 1 else (PORT.name, PORT_TO.name)
        if old.chain != new.chain:
            if old.chain is not None:
                delete[service].add(key)
            if new.chain is not None:
                add[service][key] = (new.chain,)
        delete[slots] |= {(*key, slot) for slot, target in old.slots.items() if new.slots.get(slot) != target}
        add[slots] |= {(*key, slot): target for slot, target in new.slots.items() if old.slots.get(slot) != target}
    return [Edit(one, frozenset(delete[one.name]), add[one.name]) for one in MAPS]


def table(wanted: Mapping[ServiceKey, Group]) -> Table:
    """Maps, the chains they need, and the one that looks connections up. The elements come as `edits`."""
    users = {group.chain: (key, len(group.slots)) for key, group in wanted.items() if group.chain is not None}
    chains = {name: Chain(name, _translations(key, size)) for name, (key, size) in users.items()}
    for key, _ in users.values():
        first = f"{_family(key).name}1"
        chains.setdefault(first, Chain(first, _translations(key, 1)))
    balance = Chain(
        "balance",
        (
            f"ip daddr . ip protocol . th dport vmap @{PORT.name}",
            f"ip protocol != {_ICMP} ip daddr vmap @{ANY.name}",
        ),
        Hook("nat", "prerouting", -100),
    )
    return Table(MAPS, (*(chains[name] for name in sorted(chains)), balance))


def _family(key: ServiceKey) -> Map:
    return ANY if len(key) == 1 else PORT


def _chain_name(key: ServiceKey, size: int) -> str | None:
    match size:
        case 0:
            return None
        case 1:
            return f"{_family(key).name}1"
        case _:
            return f"{_family(key).name}{size}_{int(key[-1]) % TURNS}"


def _translations(key: ServiceKey, size: int) -> tuple[str, ...]:
    fields, slots = ("ip daddr", ANY_TO) if len(key) == 1 else ("ip daddr . ip protocol . th dport", PORT_TO)
    rule = f"dnat ip to {fields} . numgen inc mod {size} map @{slots.name}"
    return (rule,) if size == 1 else (rule, f"goto {_family(key).name}1")


def by_address(slots: Mapping[Atom, int]) -> dict[Address, int]:
    """Counts of slots by address instead of by number."""
    return {IPv4Address(one): count for one, count in slots.items()}


def targets(wanted: Mapping[ServiceKey, Group]) -> dict[ServiceKey, dict[Atom, int]]:
    """How many slots each backend address has, by service: what `observe` tells."""
    found: dict[ServiceKey, dict[Atom, int]] = {}
    for key, group in wanted.items():
        if group.chain is None:
            continue
        counts = found.setdefault(key, {})
        for target in group.slots.values():
            counts[target[0]] = counts.get(target[0], 0) + 1
    return found
