"""Messages of the Serf layer: values and their bytes. Pure.

The first byte is the type (serf/messages.go); then a msgpack map whose fields are written in the order of their names,
because Go does so. `decode` raises BadMessage for anything that is not exactly one message.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv6Address, ip_address

import msgspec

from gossip.coordinates import Coordinate
from gossip.delegate import Address
from gossip.serf.pack import BadMessage, Fields, as_bytes, as_text, pack, unpack, unpack_first

TAG_MAGIC = 0xFF  # first byte of a member's meta when it holds tags; otherwise the meta is the bare value of "role"
PING_VERSION = 1  # first byte of the payload of an ack
FLAG_ACK = 1
FLAG_NO_BROADCAST = 2
# Filters of one query; each costs every node of the cluster a match.
FILTERS_MAX = 32
# Events of one Lamport time in a push/pull: more than one only where two nodes sent at once.
EVENTS_OF_A_TIME_MAX = 1024


class Type(enum.IntEnum):
    """First byte of a user message."""

    LEAVE = 0
    JOIN = 1
    PUSH_PULL = 2
    USER_EVENT = 3
    QUERY = 4
    QUERY_RESPONSE = 5
    CONFLICT_RESPONSE = 6
    KEY_REQUEST = 7
    KEY_RESPONSE = 8
    RELAY = 9


class Message(msgspec.Struct, frozen=True, gc=False):
    """Common to all: compared by value."""


class Leave(Message, frozen=True):
    """`node` means to leave, or somebody forces it to."""

    ltime: int
    node: str
    prune: bool = False


class Join(Message, frozen=True):
    """`node` means to stay."""

    ltime: int
    node: str


class UserEvent(Message, frozen=True):
    """An event of operators or applications, delivered once to everybody."""

    ltime: int
    name: str
    payload: bytes
    coalesce: bool = False


class Query(Message, frozen=True):
    """A question to all who pass the filters; they answer to `source` directly."""

    ltime: int
    id: int
    source: Address
    source_node: str
    filters: tuple[bytes, ...]
    flags: int
    relay_factor: int
    timeout_ns: int
    name: str
    payload: bytes

    @property
    def wants_ack(self) -> bool:
        return bool(self.flags & FLAG_ACK)


class QueryResponse(Message, frozen=True):
    """An answer, or with FLAG_ACK the word that the query has come."""

    ltime: int
    id: int
    node: str
    flags: int
    payload: bytes


class Relay(Message, frozen=True):
    """A message to be handed on to somebody else."""

    to: Address
    to_name: str
    message: bytes


class PushPull(Message, frozen=True):
    """State of one node's Serf layer; `events` are those of recent Lamport times: (ltime, ((name, payload), ...))."""

    ltime: int
    status_ltimes: Mapping[str, int]
    left: tuple[str, ...]
    event_ltime: int
    events: tuple[tuple[int, tuple[tuple[str, bytes], ...]], ...]
    query_ltime: int


class KeyRequest(Message, frozen=True):
    """The key to install, use or remove."""

    key: bytes


class KeyResponse(Message, frozen=True):
    """What a node did about keys."""

    ok: bool
    message: str = ""
    keys: tuple[str, ...] = ()  # base64
    primary: str = ""


class Vote(Message, frozen=True):
    """Where a node believes the owner of a name to be."""

    name: str
    address: Address | None


class NodeFilter(Message, frozen=True):
    """Meant are the nodes of these names."""

    names: frozenset[str]


class TagFilter(Message, frozen=True):
    """Meant are the nodes whose tag matches the expression somewhere."""

    tag: str
    expression: str


AnyMessage = Leave | Join | UserEvent | Query | QueryResponse | Relay | PushPull | KeyRequest | KeyResponse | Vote


def encode(message: AnyMessage) -> bytes:
    """The bytes of a message."""
    match message:
        case Leave(ltime, node, prune):
            return _typed(Type.LEAVE, {"LTime": ltime, "Node": node, "Prune": prune})
        case Join(ltime, node):
            return _typed(Type.JOIN, {"LTime": ltime, "Node": node})
        case UserEvent(ltime, name, payload, coalesce):
            return _typed(Type.USER_EVENT, {"CC": coalesce, "LTime": ltime, "Name": name, "Payload": payload or None})
        case Query():
            return _typed(Type.QUERY, _query_map(message))
        case QueryResponse(ltime, id_, node, flags, payload):
            fields = {"Flags": flags, "From": node, "ID": id_, "LTime": ltime, "Payload": payload or None}
            return _typed(Type.QUERY_RESPONSE, fields)
        case Relay(to, to_name, inner):
            place_of = {"IP": ip16(to.host), "Port": to.port, "Zone": ""}
            return _typed(Type.RELAY, {"DestAddr": place_of, "DestName": to_name}) + inner
        case PushPull():
            return _typed(Type.PUSH_PULL, _push_pull_map(message))
        case KeyRequest(key):
            return _typed(Type.KEY_REQUEST, {"Key": key or None})
        case KeyResponse(ok, text, keys, primary):
            fields = {"Keys": list(keys) or None, "Message": text, "PrimaryKey": primary, "Result": ok}
            return _typed(Type.KEY_RESPONSE, fields)
        case Vote(name, address):
            place = None if address is None else {"Addr": ip16(address.host), "Name": name, "Port": address.port}
            return _typed(Type.CONFLICT_RESPONSE, place)


def decode(data: bytes) -> AnyMessage:
    """The message of these bytes. Raises BadMessage."""
    if not data:
        raise BadMessage("no bytes")
    read = _READERS.get(data[0])
    if read is None:
        raise BadMessage(f"type {data[0]}")
    return read(data[1:])


def _typed(kind: Type, value: object) -> bytes:
    return bytes((kind,)) + pack(value)


def _query_map(query: Query) -> dict[str, object]:
    return {
        "Addr": ip4(query.source.host),
        "Filters": list(query.filters) or None,
        "Flags": query.flags,
        "ID": query.id,
        "LTime": query.ltime,
        "Name": query.name,
        "Payload": query.payload or None,
        "Port": query.source.port,
        "RelayFactor": query.relay_factor,
        "SourceNode": query.source_node,
        "Timeout": query.timeout_ns,
    }


def _push_pull_map(state: PushPull) -> dict[str, object]:
    slots: list[object] = [
        {"Events": [{"Name": name, "Payload": payload or None} for name, payload in events], "LTime": ltime}
        for ltime, events in state.events
    ]
    return {
        "EventLTime": state.event_ltime,
        "Events": slots,
        "LTime": state.ltime,
        "LeftMembers": list(state.left),
        "QueryLTime": state.query_ltime,
        "StatusLTimes": dict(state.status_ltimes),
    }


def _read_leave(data: bytes) -> Leave:
    fields = Fields(unpack(data))
    return Leave(fields.number(b"LTime"), fields.text(b"Node"), fields.flag(b"Prune"))


def _read_join(data: bytes) -> Join:
    fields = Fields(unpack(data))
    return Join(fields.number(b"LTime"), fields.text(b"Node"))


def _read_event(data: bytes) -> UserEvent:
    fields = Fields(unpack(data))
    return UserEvent(fields.number(b"LTime"), fields.text(b"Name"), fields.data(b"Payload"), fields.flag(b"CC"))


def _read_query(data: bytes) -> Query:
    fields = Fields(unpack(data))
    filters = tuple(as_bytes(item) for item in fields.items(b"Filters"))
    if len(filters) > FILTERS_MAX or not all(filters):
        raise BadMessage("filters")
    return Query(
        ltime=fields.number(b"LTime"),
        id=fields.number(b"ID", 0xFFFFFFFF),
        source=Address(_host(fields.data(b"Addr")), fields.number(b"Port", 0xFFFF)),
        source_node=fields.text(b"SourceNode"),
        filters=filters,
        flags=fields.number(b"Flags", 0xFFFFFFFF),
        relay_factor=fields.number(b"RelayFactor", 0xFF),
        timeout_ns=fields.number(b"Timeout"),
        name=fields.text(b"Name"),
        payload=fields.data(b"Payload"),
    )


def _read_response(data: bytes) -> QueryResponse:
    fields = Fields(unpack(data))
    return QueryResponse(
        fields.number(b"LTime"),
        fields.number(b"ID", 0xFFFFFFFF),
        fields.text(b"From"),
        fields.number(b"Flags", 0xFFFFFFFF),
        fields.data(b"Payload"),
    )


def _read_relay(data: bytes) -> Relay:
    header, rest = unpack_first(data)
    fields = Fields(header)
    place = Fields(fields.table(b"DestAddr"))
    to = Address(_host(place.data(b"IP")), place.number(b"Port", 0xFFFF))
    if not rest or rest[0] != Type.QUERY_RESPONSE:  # nothing else is ever relayed; we are nobody's packet cannon
        raise BadMessage("relay of something else than a response")
    return Relay(to, fields.text(b"DestName"), rest)


def _read_push_pull(data: bytes) -> PushPull:
    fields = Fields(unpack(data))
    times: dict[str, int] = {}
    for name, ltime in fields.table(b"StatusLTimes").items():
        if type(ltime) is not int or ltime < 0:
            raise BadMessage("status time")
        times[as_text(name)] = ltime
    return PushPull(
        ltime=fields.number(b"LTime"),
        status_ltimes=times,
        left=tuple(as_text(name) for name in fields.items(b"LeftMembers")),
        event_ltime=fields.number(b"EventLTime"),
        events=tuple(_read_slot(slot) for slot in fields.items(b"Events") if slot is not None),
        query_ltime=fields.number(b"QueryLTime"),
    )


def _read_slot(slot: object) -> tuple[int, tuple[tuple[str, bytes], ...]]:
    fields = Fields(slot)
    items = [Fields(item) for item in fields.items(b"Events")]
    if len(items) > EVENTS_OF_A_TIME_MAX:
        raise BadMessage("too many events of one time")
    return fields.number(b"LTime"), tuple((item.text(b"Name"), item.data(b"Payload")) for item in items)


def _read_key_request(data: bytes) -> KeyRequest:
    return KeyRequest(Fields(unpack(data)).data(b"Key"))


def _read_key_response(data: bytes) -> KeyResponse:
    fields = Fields(unpack(data))
    keys = tuple(as_text(key) for key in fields.items(b"Keys"))
    return KeyResponse(fields.flag(b"Result"), fields.text(b"Message"), keys, fields.text(b"PrimaryKey"))


def _read_vote(data: bytes) -> Vote:
    value = unpack(data)
    if value is None:  # a node that does not know the name
        return Vote("", None)
    fields = Fields(value)
    return Vote(fields.text(b"Name"), Address(_host(fields.data(b"Addr")), fields.number(b"Port", 0xFFFF)))


_READERS: Mapping[int, Callable[[bytes], AnyMessage]] = {
    Type.LEAVE: _read_leave,
    Type.JOIN: _read_join,
    Type.PUSH_PULL: _read_push_pull,
    Type.USER_EVENT: _read_event,
    Type.QUERY: _read_query,
    Type.QUERY_RESPONSE: _read_response,
    Type.CONFLICT_RESPONSE: _read_vote,
    Type.KEY_REQUEST: _read_key_request,
    Type.KEY_RESPONSE: _read_key_response,
    Type.RELAY: _read_relay,
}


def encode_tags(tags: Mapping[str, str]) -> bytes:
    """A member's meta."""
    return bytes((TAG_MAGIC,)) + pack(dict(sorted(tags.items())))


def decode_tags(meta: bytes) -> dict[str, str]:
    """The tags in a member's meta; those of bytes that mean nothing are none."""
    if not meta or meta[0] != TAG_MAGIC:
        return {"role": meta.decode("utf-8", "surrogateescape")} if meta else {}
    try:
        value = unpack(meta[1:])
        return {as_text(key): as_text(item) for key, item in value.items()} if isinstance(value, dict) else {}
    except BadMessage:
        return {}


def encode_coordinate(coordinate: Coordinate) -> bytes:
    """The payload of an ack."""
    fields = {
        "Adjustment": coordinate.adjustment,
        "Error": coordinate.error,
        "Height": coordinate.height,
        "Vec": list(coordinate.vec),
    }
    return bytes((PING_VERSION,)) + pack(fields)


def decode_coordinate(payload: bytes) -> Coordinate:
    """A peer's coordinate, of any dimension and with any numbers. Raises BadMessage."""
    if not payload or payload[0] != PING_VERSION:
        raise BadMessage("version of a ping")
    fields = Fields(unpack(payload[1:]))
    vec = fields.items(b"Vec")
    if not all(type(item) in (int, float) for item in vec):
        raise BadMessage("coordinate")
    numbers = tuple(float(item) if abs(item) < 1e300 else math.inf for item in vec)
    return Coordinate(numbers, fields.real(b"Error"), fields.real(b"Adjustment"), fields.real(b"Height"))


def encode_filters(nodes: Sequence[str], tags: Mapping[str, str]) -> tuple[bytes, ...]:
    """Filters of a query: node names, and for each tag the expression that it must match somewhere."""
    filters = [b"\x00" + pack(list(nodes))] if nodes else []
    filters += [b"\x01" + pack({"Expr": expression, "Tag": tag}) for tag, expression in tags.items()]
    return tuple(filters)


def decode_filter(data: bytes) -> NodeFilter | TagFilter:
    """One filter of a query. Raises BadMessage."""
    if not data:
        raise BadMessage("empty filter")
    match data[0]:
        case 0:
            names = unpack(data[1:])
            if not isinstance(names, list):
                raise BadMessage("filter by name")
            return NodeFilter(frozenset(as_text(name) for name in names))
        case 1:
            fields = Fields(unpack(data[1:]))
            return TagFilter(fields.text(b"Tag"), fields.text(b"Expr"))
        case other:
            raise BadMessage(f"filter of type {other}")


def ip4(host: str) -> bytes:
    """4 or 16 bytes of an address."""
    return ip_address(host).packed


def ip16(host: str) -> bytes:
    """16 bytes of an address, IPv4 mapped into IPv6, as Go keeps addresses."""
    address = ip_address(host)
    return address.packed if isinstance(address, IPv6Address) else b"\0" * 10 + b"\xff\xff" + address.packed


def _host(packed: bytes) -> str:
    if len(packed) not in (4, 16):
        raise BadMessage("address")
    address = ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
