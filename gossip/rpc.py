"""Serf's RPC as bytes and values: headers, bodies, records of streams, filters. Pure; shared by server and client.

A request is a msgpack map {Command, Seq}, followed by a body for the commands that have one; a reply is {Error, Seq},
followed by a body or not. Streams send further replies under the Seq of the request that opened them. Unlike gossip
this speaks msgpack's new dialect: text is text and bytes are bytes (serf/cmd/serf/command/agent/ipc.go).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]  # ships no types
import msgspec

from gossip.coordinates import Coordinate
from gossip.serf.keys import KeyResult
from gossip.serf.pattern import Pattern, PatternError, compile_pattern
from gossip.serf.ports import QuerySeen, UserEventSeen
from gossip.serf.roster import Kind, MemberChange, SerfMember

VERSION = 1
DEFAULT_PORT = 7373
# One object of a client: the largest is a query with its filters; a page of join addresses is less.
OBJECT_MAX = 1 << 20
ENTRIES_MAX = 1 << 16
SEQ_MAX = (1 << 64) - 1
FILTERS_MAX = 64  # of one stream

# Commands, and whether a body follows their header.
COMMANDS: Mapping[str, bool] = {
    "handshake": True,
    "auth": True,
    "event": True,
    "force-leave": True,
    "join": True,
    "members": False,
    "members-filtered": True,
    "stream": True,
    "stop": True,
    "monitor": True,
    "leave": False,
    "install-key": True,
    "use-key": True,
    "remove-key": True,
    "list-keys": False,
    "tags": True,
    "query": True,
    "respond": True,
    "stats": False,
    "get-coordinate": True,
}
# Errors, in Serf's words: clients compare them.
UNSUPPORTED_COMMAND = "Unsupported command"
UNSUPPORTED_VERSION = "Unsupported IPC version"
DUPLICATE_HANDSHAKE = "Handshake already performed"
HANDSHAKE_REQUIRED = "Handshake required"
MONITOR_EXISTS = "Monitor already exists"
INVALID_FILTER = "Invalid event filter"
STREAM_EXISTS = "Stream with given sequence exists"
INVALID_QUERY = "No pending queries matching ID"
AUTH_REQUIRED = "Authentication required"
INVALID_TOKEN = "Invalid authentication token"
TOO_MANY_STREAMS = "Too many streams on this connection"


class RpcError(Exception):
    """The other side sent what cannot be understood; the connection is of no more use."""


class Request(NamedTuple):
    """One command. `body` is empty for those that have none."""

    command: str
    seq: int
    body: dict[str, Any]


class Objects:
    """Cuts a stream of bytes into objects. Bounded by OBJECT_MAX."""

    def __init__(self, object_max: int = OBJECT_MAX) -> None:
        self._unpacker = msgpack.Unpacker(
            raw=False,
            unicode_errors="surrogateescape",
            strict_map_key=True,
            max_buffer_size=object_max,
            max_array_len=ENTRIES_MAX,
            max_map_len=ENTRIES_MAX,
        )

    def feed(self, data: bytes) -> None:
        """More bytes came. Raises RpcError."""
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull as error:
            raise RpcError("an object is too large") from error

    def next(self) -> dict[str, Any] | None:
        """The next object, or None until more bytes come. Raises RpcError."""
        try:
            value = self._unpacker.unpack()
        except msgpack.OutOfData:
            return None
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
            raise RpcError(f"not msgpack: {error}") from error
        if not isinstance(value, dict):
            raise RpcError("a map was expected")
        return value


class Requests:
    """Cuts a client's bytes into requests."""

    def __init__(self) -> None:
        self._objects = Objects()
        self._head: tuple[str, int] | None = None

    def feed(self, data: bytes) -> None:
        """More bytes came. Raises RpcError."""
        self._objects.feed(data)

    def next(self) -> Request | None:
        """The next request, or None until more bytes come; the body of an unknown command is not read."""
        if self._head is None:
            head = self._objects.next()
            if head is None:
                return None
            command, seq = text(head, "Command"), number(head, "Seq", SEQ_MAX)
            if not COMMANDS.get(command, False):
                return Request(command, seq, {})
            self._head = (command, seq)
        body = self._objects.next()
        if body is None:
            return None
        request = Request(*self._head, body)
        self._head = None
        return request


def encode(*objects: object) -> bytes:
    """Objects, one after the other."""
    parts: Iterable[bytes] = (
        msgpack.packb(item, use_bin_type=True, unicode_errors="surrogateescape") for item in objects
    )
    return b"".join(parts)


def reply(seq: int, error: str = "", body: object = None) -> bytes:
    """A reply; with a body also when it is an error, where Serf does so."""
    head = {"Error": error, "Seq": seq}
    return encode(head) if body is None else encode(head, body)


# Fields of bodies, absent ones as zero. They raise RpcError.


def text(body: Mapping[str, Any], name: str) -> str:
    """A text; bytes are taken as one."""
    value = body.get(name)
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise RpcError(f"{name} must be a text")
    return value


def data(body: Mapping[str, Any], name: str) -> bytes:
    """Bytes; a text is taken as them."""
    value = body.get(name)
    if value is None:
        return b""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if not isinstance(value, bytes):
        raise RpcError(f"{name} must be bytes")
    return value


def number(body: Mapping[str, Any], name: str, limit: int) -> int:
    """An integer from 0 to `limit`."""
    value = body.get(name)
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= limit:
        raise RpcError(f"{name} must be a number from 0 to {limit}")
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A truth value."""
    return bool(body.get(name))


def texts(body: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RpcError(f"{name} must be a list")
    return [text({name: item}, name) for item in value]


def maps(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of maps."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RpcError(f"{name} must be a list of maps")
    return value


def pairs(body: Mapping[str, Any], name: str) -> dict[str, str]:
    """A map from texts to texts."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RpcError(f"{name} must be a map")
    return {text({name: key}, name): text({name: item}, name) for key, item in value.items()}


# Bodies of replies and records of streams: fields in the order of their names, as Go writes them


def member_body(member: SerfMember) -> dict[str, object]:
    """A member as clients see it."""
    low, high, current, delegate_low, delegate_high, delegate_current = member.versions.ljust(6, b"\0")[:6]
    return {
        "Addr": ip_address(member.address.host).packed,
        "DelegateCur": delegate_current,
        "DelegateMax": delegate_high,
        "DelegateMin": delegate_low,
        "Name": member.name,
        "Port": member.address.port,
        "ProtocolCur": current,
        "ProtocolMax": high,
        "ProtocolMin": low,
        "Status": member.status.value,
        "Tags": member.tags,
    }


def members_body(members: Iterable[SerfMember]) -> dict[str, object]:
    """The body of `members`."""
    return {"Members": [member_body(member) for member in members]}


def key_body(result: KeyResult, *, with_keys: bool) -> dict[str, object]:
    """The body of the key commands."""
    return {
        "Keys": result.keys if with_keys else None,
        "Messages": result.messages,
        "NumErr": result.errors,
        "NumNodes": result.nodes,
        "NumResp": result.responses,
    }


def coordinate_body(coordinate: Coordinate | None) -> dict[str, object]:
    """The body of `get-coordinate`."""
    shown = coordinate or Coordinate((), 0.0, 0.0, 0.0)
    place = {
        "Adjustment": shown.adjustment,
        "Error": shown.error,
        "Height": shown.height,
        "Vec": list(shown.vec) if coordinate else None,
    }
    return {"Coord": place, "Ok": coordinate is not None}


def change_record(change: MemberChange) -> dict[str, object]:
    """A member event of a stream."""
    return {"Event": change.kind.value, "Members": [member_body(change.member)]}


def user_record(event: UserEventSeen) -> dict[str, object]:
    """A user event of a stream."""
    return {
        "Coalesce": event.coalesce,
        "Event": "user",
        "LTime": event.ltime,
        "Name": event.name,
        "Payload": event.payload,
    }


def query_record(seen: QuerySeen, query_id: int) -> dict[str, object]:
    """A query of a stream; `query_id` is what `respond` is to name."""
    query = seen.query
    return {
        "Event": "query",
        "ID": query_id,
        "LTime": query.ltime,
        "Name": query.name,
        "Payload": query.payload,
    }


def answer_record(kind: str, node: str, payload: bytes) -> dict[str, object]:
    """A record of `query`: "ack", "response" or "done"."""
    return {"From": node, "Payload": payload, "Type": kind}


class EventFilter(msgspec.Struct, frozen=True):
    """What a stream wants: events of this type; of user events and queries those of this name, or all."""

    event: str
    name: str = ""

    def wants(self, event: MemberChange | UserEventSeen | QuerySeen) -> bool:
        """Whether this event is meant."""
        if self.event == "*":
            return not isinstance(event, MemberChange) or event.kind not in OURS
        match event:
            case MemberChange(kind, _):
                return self.event == kind.value
            case UserEventSeen():
                return self.event == "user" and self.name in ("", event.name)
            case QuerySeen(query, _):
                return self.event == "query" and self.name in ("", query.name)


# Serf knows nothing of suspicion: whoever asks for everything is not told of it, who asks for it by name is.
OURS = frozenset({Kind.SUSPECT, Kind.REFUTE})
_EVENTS = frozenset(kind.value for kind in Kind) | {"user", "query", "*"}


def parse_event_filters(written: str) -> list[EventFilter] | None:
    """ "member-join,user:deploy,*"; nothing means everything. None: one of them is not known, or there are too many."""
    filters: list[EventFilter] = []
    for item in (written or "*").split(","):
        event, colon, name = item.strip().partition(":")
        if event not in _EVENTS or (colon and event not in ("user", "query")):
            return None
        filters.append(EventFilter(event, name))
    return filters if len(filters) <= FILTERS_MAX else None


def filter_members(members: Sequence[SerfMember], tags: Mapping[str, str], status: str, name: str) -> list[SerfMember]:
    """The members that match all expressions wholly; an empty one matches all. Raises PatternError."""
    wanted: list[tuple[Callable[[SerfMember], str], Pattern]] = []
    for tag, expression in tags.items():
        wanted.append((_tag(tag), _whole(expression)))
    if status:
        wanted.append((lambda member: member.status.value, _whole(status)))
    if name:
        wanted.append((lambda member: member.name, _whole(name)))
    return [member for member in members if all(p.fullmatch(value(member)) for value, p in wanted)]


def _tag(tag: str) -> Callable[[SerfMember], str]:
    return lambda member: member.tags.get(tag, "")


def _whole(expression: str) -> Pattern:
    try:
        return compile_pattern(expression)
    except PatternError as error:
        raise PatternError(f"Failed to compile regex: {error}") from error
