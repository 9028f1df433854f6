"""Memberlist's messages as bytes: one type byte, then a map of MessagePack in Go's old dialect. Pure and bounded.

The dialect (msgpack's old specification): strings and byte slices are both "raw", never str8 or bin; keys of a map are
sorted; unknown keys are skipped, missing ones are zero; a nil slice is nil. Values are checked here once: who has a
message object may rely on what its fields say. How messages are put together into packets is `packet`'s.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]  # it has no type information
import msgspec

from gossip.delegate import META_MAX, Address, Member, State

NAME_MAX = 255  # bytes of a member's name; Serf allows 128
PORT_MAX = 0xFFFF
U32_MAX = 0xFFFFFFFF
VERSIONS_LEN = 6
# What Serf's agent says: protocol 1 to 5, current 2; delegate 2 to 5, current 5. Every node checks that all of these
# overlap, and one wrong value keeps everybody from joining: so it is fixed.
VERSIONS = bytes((1, 5, 2, 2, 5, 5))
_FIELDS_MAX = 16  # keys of one message; the most any has is seven
_ERROR_MAX = 1024  # bytes of an error's text that are kept


class Kind(enum.IntEnum):
    """The type byte."""

    PING = 0
    INDIRECT_PING = 1
    ACK = 2
    SUSPECT = 3
    ALIVE = 4
    DEAD = 5
    PUSH_PULL = 6
    COMPOUND = 7
    USER = 8
    COMPRESS = 9
    ENCRYPT = 10
    NACK = 11
    CRC = 12
    ERROR = 13
    LABEL = 244


class WireError(ValueError):
    """Bytes that are not what they should be."""


class Ping(msgspec.Struct, frozen=True, gc=False):
    """Are you `node`? `source` is empty in what old nodes send."""

    seq: int
    node: str
    source: Address | None = None
    source_node: str = ""


class IndirectPing(msgspec.Struct, frozen=True, gc=False):
    """Ping `target` for me; `nack`: and say so if it does not answer."""

    seq: int
    target: Address
    node: str
    nack: bool
    source: Address | None = None
    source_node: str = ""


class Ack(msgspec.Struct, frozen=True, gc=False):
    seq: int
    payload: bytes = b""


class Nack(msgspec.Struct, frozen=True, gc=False):
    seq: int


class Suspect(msgspec.Struct, frozen=True, gc=False):
    """`by` thinks that `node` has failed."""

    incarnation: int
    node: str
    by: str


class Alive(msgspec.Struct, frozen=True, gc=False):
    incarnation: int
    node: str
    address: Address
    meta: bytes = b""
    versions: bytes = VERSIONS


class Dead(msgspec.Struct, frozen=True, gc=False):
    """`by` has given `node` up; a node that says so of itself has left."""

    incarnation: int
    node: str
    by: str


class User(msgspec.Struct, frozen=True, gc=False):
    """A message of the layer above."""

    message: bytes


Message = Ping | IndirectPing | Ack | Nack | Suspect | Alive | Dead | User
Fields = dict[bytes, Any]


# --- MessagePack in the old dialect -------------------------------------------------------------------------------


def pack(fields: dict[str, Any]) -> bytes:
    """A map; `fields` in the order of their names."""
    packed: bytes = msgpack.packb(fields, use_bin_type=False)
    return packed


def unpack(data: bytes) -> Fields:
    """A map and nothing after it. Raises WireError."""
    try:
        value = msgpack.unpackb(
            data, raw=True, strict_map_key=False, max_array_len=0, max_map_len=_FIELDS_MAX, max_ext_len=0
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise WireError("not MessagePack") from error
    if type(value) is not dict:
        raise WireError("not a map")
    return value


def number(fields: Fields, key: bytes, limit: int = U32_MAX) -> int:
    value = fields.get(key, 0)
    if type(value) is not int or not 0 <= value <= limit:
        raise WireError("a number is out of range")
    return value


def raw(fields: Fields, key: bytes, limit: int) -> bytes:
    """Bytes; nil and missing ones are empty."""
    value = fields.get(key)
    if value is None:
        return b""
    if type(value) is not bytes or len(value) > limit:
        raise WireError("bytes are too long, or none")
    return value


def flag(fields: Fields, key: bytes) -> bool:
    value = fields.get(key, False)
    if type(value) is not bool:
        raise WireError("not true or false")
    return value


def name(fields: Fields, key: bytes) -> str:
    """A member's name; bytes that are no UTF-8 survive the way there and back."""
    value = raw(fields, key, NAME_MAX)
    if not value:
        raise WireError("a name is empty")
    return value.decode("utf-8", "surrogateescape")


@lru_cache(maxsize=4096)  # each message names an address, and there are few
def pack_host(host: str) -> bytes:
    return ipaddress.ip_address(host).packed


@lru_cache(maxsize=4096)
def unpack_host(packed: bytes) -> str:
    """Raises WireError. An IPv4 address in IPv6's form, which Go sends at times, is the IPv4 address."""
    if len(packed) == 4:
        return str(ipaddress.IPv4Address(packed))
    if len(packed) == 16:
        address = ipaddress.IPv6Address(packed)
        return str(address.ipv4_mapped or address)
    raise WireError("not an address")


def address(fields: Fields, host: bytes, port: bytes) -> Address:
    return Address(unpack_host(raw(fields, host, 16)), number(fields, port, PORT_MAX))


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# --- messages -> bytes --------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """With the type byte."""
    match message:
        case Ping(seq, node, source, source_node):
            return b"\x00" + pack({"Node": to_bytes(node), "SeqNo": seq} | _source(source, source_node))
        case IndirectPing(seq, target, node, nack, source, source_node):
            fields = {"Nack": nack, "Node": to_bytes(node), "Port": target.port, "SeqNo": seq}
            return b"\x01" + pack(fields | _source(source, source_node) | {"Target": pack_host(target.host)})
        case Ack(seq, payload):
            return b"\x02" + pack({"Payload": payload or None, "SeqNo": seq})
        case Nack(seq):
            return b"\x0b" + pack({"SeqNo": seq})
        case Suspect(incarnation, node, by):
            return b"\x03" + pack({"From": to_bytes(by), "Incarnation": incarnation, "Node": to_bytes(node)})
        case Dead(incarnation, node, by):
            return b"\x05" + pack({"From": to_bytes(by), "Incarnation": incarnation, "Node": to_bytes(node)})
        case Alive():
            return b"\x04" + _encode_alive(message)
        case User(content):
            return b"\x08" + content


def _source(source: Address | None, node: str) -> dict[str, Any]:
    if source is None:
        return {}
    return {"SourceAddr": pack_host(source.host), "SourceNode": to_bytes(node), "SourcePort": source.port}


def _encode_alive(alive: Alive) -> bytes:
    return pack(
        {
            "Addr": pack_host(alive.address.host),
            "Incarnation": alive.incarnation,
            "Meta": alive.meta,
            "Node": to_bytes(alive.node),
            "Port": alive.address.port,
            "Vsn": alive.versions,
        }
    )


def alive_of(member: Member) -> Alive:
    return Alive(member.incarnation, member.name, member.address, member.meta, member.versions)


# --- bytes -> messages --------------------------------------------------------------------------------------------


def decode(data: bytes) -> Message:
    """One message that is no wrapper. Raises WireError."""
    if not data:
        raise WireError("an empty message")
    kind = data[0]
    if kind == Kind.USER:
        return User(data[1:])
    decoder = _DECODERS.get(kind)
    if decoder is None:
        raise WireError("an unknown type of message")
    return decoder(unpack(data[1:]))


def _decode_ping(fields: Fields) -> Ping:
    return Ping(number(fields, b"SeqNo"), name(fields, b"Node"), *_decode_source(fields))


def _decode_source(fields: Fields) -> tuple[Address | None, str]:
    if not fields.get(b"SourceAddr") or not number(fields, b"SourcePort", PORT_MAX):
        return None, ""
    node = raw(fields, b"SourceNode", NAME_MAX).decode("utf-8", "surrogateescape")
    return address(fields, b"SourceAddr", b"SourcePort"), node


def _decode_indirect(fields: Fields) -> IndirectPing:
    target = address(fields, b"Target", b"Port")
    node, nack = name(fields, b"Node"), flag(fields, b"Nack")
    return IndirectPing(number(fields, b"SeqNo"), target, node, nack, *_decode_source(fields))


def _decode_ack(fields: Fields) -> Ack:
    return Ack(number(fields, b"SeqNo"), raw(fields, b"Payload", PORT_MAX))


def _decode_nack(fields: Fields) -> Nack:
    return Nack(number(fields, b"SeqNo"))


def _decode_suspect(fields: Fields) -> Suspect:
    return Suspect(number(fields, b"Incarnation"), name(fields, b"Node"), name(fields, b"From"))


def _decode_dead(fields: Fields) -> Dead:
    by = raw(fields, b"From", NAME_MAX).decode("utf-8", "surrogateescape")
    return Dead(number(fields, b"Incarnation"), name(fields, b"Node"), by)


def _decode_alive(fields: Fields) -> Alive:
    return Alive(
        number(fields, b"Incarnation"),
        name(fields, b"Node"),
        address(fields, b"Addr", b"Port"),
        raw(fields, b"Meta", META_MAX),
        decode_versions(fields),
    )


def decode_versions(fields: Fields) -> bytes:
    versions = raw(fields, b"Vsn", VERSIONS_LEN)
    if len(versions) not in (0, VERSIONS_LEN):
        raise WireError("not six versions")
    return versions or bytes(VERSIONS_LEN)


_DECODERS: Final[dict[int, Callable[[Fields], Message]]] = {
    0: _decode_ping,
    1: _decode_indirect,
    2: _decode_ack,
    3: _decode_suspect,
    4: _decode_alive,
    5: _decode_dead,
    11: _decode_nack,
}


# --- what streams carry -------------------------------------------------------------------------------------------


def encode_node_state(member: Member) -> bytes:
    """One member as in push/pull."""
    return pack(
        {
            "Addr": pack_host(member.address.host),
            "Incarnation": member.incarnation,
            "Meta": member.meta,
            "Name": to_bytes(member.name),
            "Port": member.address.port,
            "State": int(member.state),
            "Vsn": member.versions,
        }
    )


def decode_node_state(fields: Any) -> Member:
    """One member as in push/pull; when its state began is not said. Raises WireError."""
    if type(fields) is not dict:
        raise WireError("not a map")
    state = number(fields, b"State", len(State) - 1)
    meta, versions = raw(fields, b"Meta", META_MAX), decode_versions(fields)
    where = address(fields, b"Addr", b"Port")
    return Member(name(fields, b"Name"), where, meta, versions, number(fields, b"Incarnation"), State(state), 0.0)


def error_text(fields: Fields) -> str:
    return raw(fields, b"Error", PORT_MAX)[:_ERROR_MAX].decode("utf-8", "replace")
