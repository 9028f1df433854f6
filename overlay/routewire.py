"""Routes on the wire of rtnetlink (rtnetlink(7)): their dump, their replacement, and the way to an address. Pure.

A network has a route for each task on another node: 25,000 of them are read twice in every look at the whole, and made
at the start. This takes a twentieth of the time that pyroute2 does.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # family, device type, index, flags, changed flags
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")
_GET_ROUTE, _NEW_ROUTE, _DELETE_ROUTE, _DONE, _ERROR = 26, 24, 25, 3, 2
_NEW_LINK, _GET_LINK, _NAME = 16, 18, 3
_REQUEST, _ACKNOWLEDGE, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10
_REPLACE, _CREATE = 0x100, 0x400
_SCOPE_LINK, _ON_LINK = 253, 4
_ANY_SCOPE = 255  # else, of routes to a link, none is found
_TO, _DEVICE, _GATEWAY, _SOURCE, _METRICS, _CACHE_INFO = 1, 4, 5, 7, 8, 12
_MTU = 2  # of the metrics
_EXPIRES_AT = 8  # in what the kernel tells of a route that it has made for one address
_ANY = {2: "0.0.0.0", 10: "::"}  # by address family


@dataclass(frozen=True, slots=True)
class Dumped:
    """A route as the kernel tells it; "" and 0 for what it does not say."""

    destination: str
    type: int
    device: int
    via: str
    source: str


@dataclass(frozen=True, slots=True)
class End:
    """The last message of a dump: an errno, 0 for success."""

    error: int


def request(family: int, table: int, protocol: int, sequence: int) -> bytes:
    """Ask for the routes of a table that carry a protocol number (the kernel filters: NETLINK_GET_STRICT_CHECK)."""
    body = _ROUTE.pack(family, 0, 0, 0, table, protocol, 0, 0, 0)
    return _HEADER.pack(_HEADER.size + len(body), _GET_ROUTE, _REQUEST | _DUMP, sequence, 0) + body


@dataclass(frozen=True, slots=True)
class Way:
    """How packets to an address leave. `mtu` 0: the route says none. `learned`: a router complained, a while ago."""

    device: int
    mtu: int
    learned: bool


def request_way(address: IPv4Address | IPv6Address, sequence: int) -> bytes:
    """Ask for the way to an address."""
    family, bits = (2, 32) if address.version == 4 else (10, 128)
    body = _ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, 0) + _ATTRIBUTE.pack(4 + bits // 8, _TO) + address.packed
    return _HEADER.pack(_HEADER.size + len(body), _GET_ROUTE, _REQUEST, sequence, 0) + body


def read_way(data: bytes, sequence: int) -> Way | None:
    """The answer; None when there is no way."""
    length, kind, _, number, _ = _HEADER.unpack_from(data)
    if kind != _NEW_ROUTE or number != sequence:
        return None
    found = dict(_attributes(data, _HEADER.size + _ROUTE.size, min(length, len(data))))
    metrics = found.get(_METRICS, b"")
    mtu = dict(_attributes(metrics, 0, len(metrics))).get(_MTU, b"")
    expires = found.get(_CACHE_INFO, b"")[_EXPIRES_AT : _EXPIRES_AT + 4]
    return Way(_native(found.get(_DEVICE, b"")), _native(mtu), bool(_native(expires)))


def replacement(one: Dumped, table: int, protocol: int, sequence: int) -> bytes:
    """Make a route, in place of another to the same destination; to be acknowledged.

    A next hop is reached on the link, whatever its prefix.
    """
    to, _, bits = one.destination.partition("/")
    family = 10 if ":" in to else 2
    scope = _SCOPE_LINK if family == 2 and one.device and not one.via else 0
    body = _ROUTE.pack(family, int(bits), 0, 0, table, protocol, scope, one.type, _ON_LINK if one.via else 0)
    for kind, address in ((_TO, to if int(bits) else ""), (_GATEWAY, one.via), (_SOURCE, one.source)):
        if address:
            body += _attribute(kind, ip_address(address).packed)
    if one.device:
        body += _attribute(_DEVICE, one.device.to_bytes(4, sys.byteorder))
    flags = _REQUEST | _ACKNOWLEDGE | _CREATE | _REPLACE
    return _HEADER.pack(_HEADER.size + len(body), _NEW_ROUTE, flags, sequence, 0) + body


def removal(one: Dumped, table: int, protocol: int, sequence: int) -> bytes:
    """Remove the route to a destination, whatever its device; to be acknowledged."""
    to, _, bits = one.destination.partition("/")
    body = _ROUTE.pack(10 if ":" in to else 2, int(bits), 0, 0, table, protocol, _ANY_SCOPE, one.type, 0)
    if int(bits):
        body += _attribute(_TO, ip_address(to).packed)
    return _HEADER.pack(_HEADER.size + len(body), _DELETE_ROUTE, _REQUEST | _ACKNOWLEDGE, sequence, 0) + body


def request_device(name: str, sequence: int) -> bytes:
    """Ask for a device by its name."""
    text = name.encode() + b"\0"
    body = _LINK.pack(0, 0, 0, 0, 0) + _attribute(_NAME, text) + bytes(-len(text) % 4)
    return _HEADER.pack(_HEADER.size + len(body), _GET_LINK, _REQUEST, sequence, 0) + body


def read_device(data: bytes, sequence: int) -> int | None:
    """The number of the device; None when there is none of that name."""
    _, kind, _, number, _ = _HEADER.unpack_from(data)
    if kind != _NEW_LINK or number != sequence:
        return None
    return int(_LINK.unpack_from(data, _HEADER.size)[2])


def read_errors(data: bytes) -> Iterator[tuple[int, int]]:
    """(sequence, errno; 0 for success) of the acknowledgements in a datagram."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        if kind == _ERROR:
            yield number, -struct.unpack_from("=i", data, at + _HEADER.size)[0]
        at += (length + 3) & ~3


def read(data: bytes, sequence: int, protocol: int) -> Iterator[Dumped | End]:
    """What a datagram says; messages of other requests, and routes of other protocols, are passed over."""
    at, size = 0, len(data)
    while at + _HEADER.size <= size:
        length, kind, _, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > size:
            return
        if number == sequence:
            if kind == _DONE:
                yield End(0)
            elif kind == _ERROR:
                yield End(-struct.unpack_from("=i", data, at + _HEADER.size)[0])
            elif kind == _NEW_ROUTE:
                found = _route(data, at + _HEADER.size, at + length, protocol)
                if found is not None:
                    yield found
        at += (length + 3) & ~3


def is_interrupted(data: bytes) -> bool:
    """Whether a datagram says that what it walked changed under it."""
    return bool(_HEADER.unpack_from(data)[2] & _INTERRUPTED)


def _route(data: bytes, at: int, end: int, protocol: int) -> Dumped | None:
    family, length, _, _, _, by, _, kind, _ = _ROUTE.unpack_from(data, at)
    if by != protocol or family not in _ANY:
        return None
    to, via, source, device = _ANY[family], "", "", 0
    for what, value in _attributes(data, at + _ROUTE.size, end):
        if what == _TO:
            to = _text(value)
        elif what == _GATEWAY:
            via = _text(value)
        elif what == _SOURCE:
            source = _text(value)
        elif what == _DEVICE:
            device = _native(value)
    return Dumped(f"{to}/{length}", kind, device, via, source)


def _attributes(data: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= end:
        size, what = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            break
        yield what, data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value  # addresses and numbers end on four bytes


def _native(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _text(address: bytes) -> str:
    return ".".join(map(str, address)) if len(address) == 4 else str(IPv6Address(address))
