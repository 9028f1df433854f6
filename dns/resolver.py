"""From the bytes of a request to the bytes of its answer. Pure: no sockets, no clock.

A *view* is what one client sees: the networks it is on, in order. Its bare names (`api`) are looked up in each of them
in that order; the host's view knows full names of all networks only. A request ends in one of three ways: `bytes` to
send, `Forward` for names that are others' to answer, or `Drop`.

What is never asked upstream: anything below `.mesh`, single labels (a mistyped service name must not leak, and must
fail at once), names whose last label is a number, slots and `tasks.` of known services, local host names, reverse
look-ups inside our subnets.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address

import msgspec

from dns import wire
from dns.hot import Hot
from dns.plan import DEFAULT_TTL_S, Address, DnsPlan, NetworkNames, ServiceNames
from dns.wire import Query, Unanswerable
from dns.zone import DOMAIN, NEGATIVE_TTL_S, NODE, TASKS, Changed, Data, Entry, NetworkZone, RecordSet, Share, Zone
from dns.zone import entry as make_entry

# Tasks on several networks are few; a plan that says otherwise cannot make views without end.
VIEWS_MAX = 4096
# Packed answers in another order each, for a name with several addresses. More would spread no better: clients take the
# first address, and with sixteen orders each of up to sixteen tasks comes first about as often.
ORDERS = 16
# Names with several orders, per view, and forms of a question (flags, EDNS) per name. At 16 orders of 1,232 bytes the
# worst is 160 MiB, when somebody asks for all forms of a thousand services of 76 tasks; 20 KiB a service is usual.
ROTATIONS_MAX = 1024
FORMS_MAX = 8

_ROOT = b"\0"
_LOCALHOST = b"\x09localhost"
_NEVER = (b"\x07invalid", b"\x05onion")  # RFC 6761, 7686
_ARPA = b"\x07in-addr\x04arpa"
_ARPA6 = b"\x03ip6\x04arpa"


class Forward(msgspec.Struct, frozen=True, gc=False):
    """Somebody else's to answer. `keep` (key, name): how the answer may be kept briefly."""

    query: Query
    keep: tuple[bytes, bytes] | None = None


class Drop(msgspec.Struct, frozen=True, gc=False):
    """Nothing to send. Counted by its reason."""

    reason: str


Outcome = bytes | Forward | Drop


@dataclass(frozen=True, slots=True)
class Found:
    """A name of ours. Without an entry, or without records of the type: NODATA."""

    entry: Entry
    network: str = ""  # the name of the network that had it


@dataclass(frozen=True, slots=True)
class NoName:
    """Ours to know, and there is no such name."""

    why: str


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Not ours."""


_EMPTY = Entry({}, ("there are names below it",))


class _Rotation:
    """Answers to one question in several orders: made one by one as they are asked for, then handed out in turn."""

    __slots__ = ("_answers", "_next")

    def __init__(self) -> None:
        self._answers: list[bytes] = []
        self._next = 0

    def add(self, answer: bytes) -> None:
        self._answers.append(answer)

    def turn(self) -> bytes | None:
        if len(self._answers) < ORDERS:
            return None
        self._next = (self._next + 1) % ORDERS
        return self._answers[self._next]


@dataclass(slots=True)
class View:
    """What the clients on the same networks see, with its packed answers."""

    networks: tuple[NetworkZone, ...]
    bare: bool  # whether names without `.mesh` are looked up, too
    subnets: tuple[IPv4Network | IPv6Network, ...] = ()
    hot: Hot = field(init=False)
    rotations: dict[bytes, dict[bytes, _Rotation]] = field(default_factory=dict)  # by name, then by key
    known: bool = False  # to the resolver: it hears of changes and of the time

    def __post_init__(self) -> None:
        self.hot = Hot(lambda: sum(map(len, self.networks)))

    @property
    def name(self) -> str:
        return ", ".join(network.name for network in self.networks) if self.bare else "host"

    def forget(self, name: bytes) -> None:
        """Throw away what is packed for a full name in lower case."""
        self.hot.forget(name)
        self.rotations.pop(name, None)

    def clear(self) -> None:
        self.hot.clear()
        self.rotations.clear()


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a question would be answered, and why. For people."""

    view: str
    outcome: str  # answer, no data, no such name, forwarded
    why: tuple[str, ...]
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One record of `mesh dns dump`. `name` is relative to the network; no `kind`: the name exists, without data."""

    network: str
    name: str
    kind: str
    data: str
    why: str


class Resolver:
    """The zone, and the views of it. One for the whole process."""

    def __init__(self, rng: random.Random) -> None:
        self.zone = Zone()
        self._rng = rng
        self._views: dict[tuple[str, ...] | None, View] = {}
        self._multihomed: dict[str, dict[bytes, tuple[str, ...]]] = {}
        self._subnets: dict[str, tuple[IPv4Network | IPv6Network, ...]] = {}
        self._localhost = make_entry([_localhost()])
        self._loopback_ptr = make_entry([Share("loopback", data=((wire.PTR, _LOCALHOST + _ROOT),), ttl_s=3600)])

    # --- changes ----------------------------------------------------------------------------------------------------

    def load(self, plan: DnsPlan) -> None:
        """Replace everything."""
        self.zone = Zone()
        self._subnets.clear()
        self._multihomed.clear()
        for network in plan.networks:
            self.set_network(network)
        self.put_nodes(plan.nodes)
        self.put_homes(plan.multihomed)

    def declare(self, network: NetworkNames) -> None:
        """Add a network, or change all of it but its services; under another name it is a new one."""
        known = self.zone.networks.get(network.id)
        if known is None or known.name != network.name:
            self.set_network(network)
        else:
            self._subnets[network.id] = network.subnets
            self._views.clear()

    def set_network(self, network: NetworkNames) -> None:
        """Add a network, or replace all of it."""
        self.zone.set_network(network)
        self._subnets[network.id] = network.subnets
        self._views.clear()

    def add_zone(self, network: NetworkZone) -> None:
        """Add a network made elsewhere."""
        self.zone.networks[network.id] = network
        self._views.clear()

    def drop_network(self, network_id: str) -> None:
        """Forget a network."""
        self.zone.networks.pop(network_id, None)
        self._subnets.pop(network_id, None)
        self._views.clear()

    def put_service(self, network_id: str, service: ServiceNames) -> None:
        """Add or replace a service on a network that is known."""
        if (network := self.zone.networks.get(network_id)) is not None:
            self._forget(network, network.put_service(service))

    def drop_service(self, network_id: str, name: str) -> None:
        """Forget a service on a network."""
        if (network := self.zone.networks.get(network_id)) is not None:
            self._forget(network, network.put(name, {}))

    def put_nodes(self, nodes: Mapping[str, Address]) -> None:
        """Add or replace names of nodes."""
        self.zone.put_nodes(nodes, DEFAULT_TTL_S)
        self._clear()

    def drop_nodes(self, names: Iterable[str]) -> None:
        """Forget names of nodes."""
        self.zone.drop_nodes(names)
        self._clear()

    def put_homes(self, multihomed: Mapping[tuple[str, Address], tuple[str, ...]]) -> None:
        """Add or replace clients on several networks."""
        for (network_id, address), networks in multihomed.items():
            self._multihomed.setdefault(network_id, {})[address.packed] = networks

    def drop_homes(self, homes: Iterable[tuple[str, Address]]) -> None:
        """These clients are on one network only, or gone."""
        for network_id, address in homes:
            self._multihomed.get(network_id, {}).pop(address.packed, None)

    def _clear(self) -> None:
        for view in self._views.values():
            view.clear()

    def _forget(self, network: NetworkZone, changed: Changed) -> None:
        suffixes = (_ROOT, network.label + _ROOT, network.label + DOMAIN + _ROOT)
        for view in self._views.values():
            if network not in view.networks:
                continue
            if changed.all_:
                view.clear()
                continue
            for name in changed.names:
                for suffix in suffixes:
                    view.forget(name + suffix)

    # --- views ------------------------------------------------------------------------------------------------------

    def view(self, network_id: str | None) -> View:
        """What clients of a listener see, those on several networks aside. Valid until a network comes or goes."""
        return self._view(None if network_id is None else (network_id,))

    def special(self, network_id: str | None) -> dict[bytes, View]:
        """By packed address: what the listener's clients on several networks see. Valid as long as `view`."""
        homes = self._multihomed.get(network_id, {}) if network_id is not None else {}
        return {address: self._view(networks) for address, networks in list(homes.items())[:VIEWS_MAX]}

    def _view(self, key: tuple[str, ...] | None) -> View:
        view = self._views.get(key)
        if view is None:
            ids = list(self.zone.networks) if key is None else [n for n in key if n in self.zone.networks]
            view = View(
                networks=tuple(self.zone.networks[n] for n in ids),
                bare=key is not None,
                subnets=tuple(subnet for n in ids for subnet in self._subnets.get(n, ())),
            )
            if len(self._views) < VIEWS_MAX:
                self._views[key] = view
                view.known = True
        return view

    def tick(self) -> None:
        """A second has gone by: answers of other servers are as much older."""
        for view in self._views.values():
            view.hot.tick()

    # --- answers ----------------------------------------------------------------------------------------------------

    def udp(self, view: View, data: bytes) -> Outcome:
        """Answer a datagram that `view.hot.answers` knows nothing of."""
        found = view.hot.find(data[2:])
        if found is not None:
            return data[:2] + found
        query = wire.parse_query(data)
        if isinstance(query, Unanswerable):
            return Drop(query.reason) if query.reply is None else query.reply
        name = query.name.lower()
        key = data[2:12] + name + data[12 + len(name) :]
        rotation = view.rotations.get(name, {}).get(key)
        if rotation is not None and (turned := rotation.turn()) is not None:
            return _spelled(data[:2] + turned, query)
        return self._answer(view, query, query.udp_limit, (key, name) if query.plain and view.known else None)

    def tcp(self, view: View, data: bytes) -> Outcome:
        """Answer a message that came over TCP."""
        query = wire.parse_query(data)
        if isinstance(query, Unanswerable):
            return Drop(query.reason) if query.reply is None else query.reply
        return self._answer(view, query, wire.MESSAGE_MAX, None)

    def _answer(self, view: View, query: Query, limit: int, keep: tuple[bytes, bytes] | None) -> Outcome:
        if query.edns_version:
            return wire.answer(query, wire.BADVERS, authoritative=False, limit=limit)
        if query.qclass not in (wire.IN, wire.CLASS_ANY) or query.qtype in (wire.AXFR, wire.IXFR):
            return wire.answer(query, wire.REFUSED, authoritative=False, limit=limit)
        name = query.name.lower()
        match self.lookup(view, name, query.starts):
            case Elsewhere():
                return Forward(query, keep)
            case NoName():
                soa = wire.soa(_zone_of(name, query.starts), NEGATIVE_TTL_S)
                packed = wire.answer(query, wire.NXDOMAIN, authority=soa, limit=limit)
            case Found(entry):
                records = entry.records.get(query.qtype)
                if records is not None:
                    return self._positive(view, query, records, limit, keep)
                packed = _no_data(query, name, limit)
        if keep is not None:
            view.hot.put(*keep, packed[2:])
        return packed

    def _positive(
        self, view: View, query: Query, records: RecordSet, limit: int, keep: tuple[bytes, bytes] | None
    ) -> bytes:
        ordered = self._shuffled(records) if records.mixed else records.near + records.far
        packed = wire.answer(query, wire.NOERROR, ordered, additional=records.additional, limit=limit)
        if keep is not None and records.mixed:
            _rotation(view, *keep).add(packed[2:])
        elif keep is not None:
            view.hot.put(*keep, packed[2:])
        return packed

    def _shuffled(self, records: RecordSet) -> tuple[bytes, ...]:
        near = self._rng.sample(records.near, len(records.near))
        return (*near, *self._rng.sample(records.far, len(records.far)))

    # --- names ------------------------------------------------------------------------------------------------------

    def lookup(self, view: View, name: bytes, starts: tuple[int, ...]) -> Found | NoName | Elsewhere:
        """What a name (lower case) is to the clients of a view. `starts`: where its labels begin."""
        if not starts:
            return Elsewhere()  # the root
        last = name[starts[-1] : -1]
        reverse = _is_reverse(name, starts)
        for network in view.networks if view.bare or reverse else ():
            if (entry := network.find(name[:-1])) is not None:
                return Found(entry, network.name)
        if last == DOMAIN:
            return self._below_mesh(view, name, starts)
        if last == _LOCALHOST:
            return Found(self._localhost)
        if reverse:
            return self._reverse(view, name)
        if view.bare and len(starts) > 1:
            for network in view.networks:
                if last == network.label and (entry := network.find(name[: starts[-1]])) is not None:
                    return Found(entry, network.name)
        return _refuse_to_leak(view, name, starts)

    def _below_mesh(self, view: View, name: bytes, starts: tuple[int, ...]) -> Found | NoName:
        if len(starts) == 1:
            return Found(_EMPTY)
        above = name[starts[-2] : starts[-1]]
        if above == NODE:
            if len(starts) == 2:
                return Found(_EMPTY)
            node = self.zone.nodes.get(name[: starts[-2]])
            return Found(node) if node is not None else NoName("no node has that name")
        for network in view.networks:
            if network.label == above:
                if len(starts) == 2:
                    return Found(_EMPTY, network.name)
                entry = network.find(name[: starts[-2]])
                if entry is not None:
                    return Found(entry, network.name)
                return NoName(f'nothing on network "{network.name}" has that name')
        return NoName("it is not a network that the client is on")

    def _reverse(self, view: View, name: bytes) -> Found | NoName | Elsewhere:
        address = _address_of(name)
        if address is None:
            return Elsewhere()
        if address.is_loopback:
            return Found(self._loopback_ptr)
        if any(address in subnet for subnet in view.subnets):
            return NoName("nothing on the client's networks has that address")
        return Elsewhere()

    # --- for people -------------------------------------------------------------------------------------------------

    def explain(self, name: str, qtype: int, network_id: str | None, client: Address | None = None) -> Explanation:
        """How `name` is answered to a client of a network's listener (None: the host's), and why. Raises WireError."""
        encoded = wire.to_wire(name)
        starts = tuple(wire.label_starts(encoded, 0)[0])
        special = self.special(network_id).get(client.packed) if client is not None else None
        view = special or self.view(network_id)
        match self.lookup(view, encoded, starts):
            case Elsewhere():
                return Explanation(view.name, "forwarded", ("it is not a name of the mesh",))
            case NoName(why):
                return Explanation(view.name, "no such name", (why,))
            case Found(entry, network):
                where = (f'found on network "{network}"',) if network else ()
                records = entry.records.get(qtype)
                if records is None:
                    return Explanation(view.name, "no data", (*where, *entry.why, f"it has no {_kind(qtype)} record"))
                shown = tuple(_show(qtype, record) for record in (*records.near, *records.far))
                return Explanation(view.name, "answer", (*where, *entry.why), shown)


def dump(zone: Zone) -> Iterator[Line]:
    """All names of all networks, in order, each with its records; a name without any has one line without data."""
    for network in sorted(zone.networks.values(), key=lambda n: n.name):
        for text, name in sorted((wire.to_text(name), name) for name in network.names()):
            entry = network.find(name)
            assert entry is not None
            why = "; ".join(entry.why)
            if not entry.records:
                yield Line(network.name, text, "", "", why)
            for qtype, records in entry.records.items():
                for record in (*records.near, *records.far):
                    yield Line(network.name, text, _kind(qtype), _show(qtype, record), why)


def _rotation(view: View, key: bytes, name: bytes) -> _Rotation:
    """Where the orders of one question are kept, emptied when full."""
    if len(view.rotations) >= ROTATIONS_MAX:
        view.rotations.clear()
    forms = view.rotations.setdefault(name, {})
    if len(forms) >= FORMS_MAX and key not in forms:
        forms.clear()
    return forms.setdefault(key, _Rotation())


def _kind(qtype: int) -> str:
    return wire.TYPE_NAMES.get(qtype, f"TYPE{qtype}")


def _no_data(query: Query, name: bytes, limit: int) -> bytes:
    soa = wire.soa(_zone_of(name, query.starts), NEGATIVE_TTL_S)
    if query.qtype == wire.SOA and soa.startswith(name):
        return wire.answer(query, wire.NOERROR, (soa,), limit=limit)
    return wire.answer(query, wire.NOERROR, authority=soa, limit=limit)


def _spelled(packed: bytes, query: Query) -> bytes:
    """The answer with the question spelled as it was asked."""
    return packed[: wire.HEADER_LEN] + query.name + packed[wire.HEADER_LEN + len(query.name) :]


def _zone_of(name: bytes, starts: tuple[int, ...]) -> bytes:
    """The owner of the SOA record: `mesh`, or the root for bare names, which we serve as if they were top level."""
    return DOMAIN + _ROOT if starts and name[starts[-1] : -1] == DOMAIN else _ROOT


def _refuse_to_leak(view: View, name: bytes, starts: tuple[int, ...]) -> NoName | Elsewhere:
    last = name[starts[-1] : -1]
    if len(starts) == 1:
        return NoName("single labels are not asked for upstream")
    if last[1:].isdigit():
        return NoName("names that end in a number are not asked for upstream")
    if last in _NEVER:
        return NoName("a name that by its definition does not exist")
    first = name[starts[0] : starts[1]]
    below = first == TASKS or first[1:].isdigit() or first[1:2] == b"_"
    if view.bare and below and any(TASKS + last in network for network in view.networks):
        return NoName(f'service "{wire.to_text(last)}" has no such slot, task or port')
    return Elsewhere()


def _is_reverse(name: bytes, starts: tuple[int, ...]) -> bool:
    return len(starts) > 2 and name[starts[-2] : -1] in (_ARPA, _ARPA6)


def _address_of(name: bytes) -> Address | None:
    labels = wire.to_text(name).split(".")
    digits = labels[-3::-1]
    try:
        if labels[-2] == "in-addr":
            return ip_address(".".join(digits)) if len(digits) == 4 else None
        return ip_address(int("".join(digits), 16).to_bytes(16, "big")) if len(digits) == 32 else None
    except ValueError:
        return None


def _localhost() -> Share:
    data: tuple[Data, ...] = tuple((kind, ip_address(text).packed) for kind, text in ((1, "127.0.0.1"), (28, "::1")))
    return Share("local host", ttl_s=3600, data=data)


def _show(qtype: int, record: bytes) -> str:
    data = record[12:]
    match qtype:
        case wire.A | wire.AAAA:
            return str(ip_address(data))
        case wire.PTR:
            return wire.to_text(data)
        case wire.SRV:
            priority, weight, port = (int.from_bytes(data[i : i + 2], "big") for i in (0, 2, 4))
            return f"{priority} {weight} {port} {wire.to_text(data[6:])}"
        case _:
            return data.hex()
