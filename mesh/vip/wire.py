"""Netlink bytes <-> values: the few messages of nf_tables, conntrack and rtnetlink that the balancers need. Pure.

Reading the kernel through its own messages and not through `nft list` is ten times faster for large maps, does not
depend on the version of nft (1.0.6 crashes on some of its own output), and tells the generation of the rule set, by
which an unchanged table needs no reading at all. Layouts: linux/netlink.h, linux/netfilter/nf_tables.h,
linux/netfilter/nfnetlink_conntrack.h, linux/rtnetlink.h, linux/fib_rules.h.

The kernel is trusted to send well-formed messages; attributes that we do not know are passed over.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeVar

from mesh.vip.ingress import (
    LOOPBACK_INDEX,
    MAIN_RULE_PRIORITY,
    RETURN_PRIORITY,
    RETURN_TABLES,
    ROUTE_PROTOCOL,
    SKIP_PRIORITY,
    HostRoute,
    LocalRoute,
    ReturnRoute,
    ReturnRule,
    RouteOrRule,
    SkipRule,
)
from mesh.vip.maps import is_ipv6
from mesh.vip.plan import Address
from mesh.vip.rules import LENGTH_BYTES, TABLE, Atom, Edit, HeldChain, Hook, Key, Kind, Map, Shape, padded

T = TypeVar("T")

AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10
_NFPROTO_INET = 1
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTERRUPTED = 0x1, 0x4, 0x10
NLM_F_DUMP, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x300, 0x100, 0x200, 0x400

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF  # without the flags "nested" and "in network order"
_NESTED = 0x8000
_BE32, _BE16 = struct.Struct(">I"), struct.Struct(">H")
_NATIVE32 = struct.Struct("=I")


class Nf(IntEnum):
    """Message types: subsystem 10 is nf_tables, 1 is conntrack."""

    GET_TABLE = 10 << 8 | 1
    GET_CHAIN = 10 << 8 | 4
    GET_RULE = 10 << 8 | 7
    GET_SET = 10 << 8 | 10
    NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT = 10 << 8 | 12, 10 << 8 | 13, 10 << 8 | 14
    GET_GENERATION = 10 << 8 | 16
    NEW_FLOWTABLE, GET_FLOWTABLE, DELETE_FLOWTABLE = 10 << 8 | 22, 10 << 8 | 23, 10 << 8 | 24
    CT_GET = 1 << 8 | 1
    CT_DELETE = 1 << 8 | 2
    BATCH_BEGIN, BATCH_END = 16, 17


class Rt(IntEnum):
    """Message types of rtnetlink."""

    GET_ADDRESS = 22
    NEW_ROUTE, DELETE_ROUTE, GET_ROUTE = 24, 25, 26
    NEW_RULE, DELETE_RULE, GET_RULE = 32, 33, 34


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message without its header."""

    type: int
    flags: int
    sequence: int
    payload: bytes


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    """A message with its header, ready to be sent."""
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def messages(data: bytes) -> Iterator[Message]:
    """The messages of one datagram."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield Message(kind, flags, sequence, data[at + _HEADER.size : at + length])
        at += padded(length)


def error_number(payload: bytes) -> int:
    """The errno of an NLMSG_ERROR; 0 is an acknowledgement."""
    (code,) = struct.unpack_from("=i", payload)
    return -int(code)


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Attributes by type; of several of one type the last (see `_nested_list` for lists)."""
    return dict(_attribute_list(data, at))


def _attribute_list(data: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    end = len(data)
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield kind & _TYPE_MASK, data[at + 4 : at + length]
        at += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def _nul(text: str) -> bytes:
    return text.encode() + b"\0"


# --- nf_tables: what to ask, what comes back --------------------------------------------------------------------------

_NFGEN = struct.Struct(">BBH")  # family, version 0, resource 0
_NFGEN_BYTES = _NFGEN.size
_TABLE_DORMANT = 0x1
_VERDICT_TYPE = 0xFFFFFF00  # NFT_DATA_VERDICT
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT of libnftnl
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # NF_INET_*
_ACCEPT = 1


def nf_request(*attributes_: bytes, family: int = _NFPROTO_INET) -> bytes:
    """Payload of a request to nf_tables or conntrack."""
    return _NFGEN.pack(family, 0, 0) + b"".join(attributes_)


def of_our_table() -> bytes:
    """Payload that asks for the table itself, its chains (NFTA_*_TABLE is 1 everywhere), rules or sets."""
    return nf_request(attribute(1, _nul(TABLE)))


def of_set(name: str) -> bytes:
    """Payload that asks for the elements of a map or set of our table."""
    return nf_request(attribute(1, _nul(TABLE)), attribute(2, _nul(name)))


def of_former_set(name: str) -> bytes:
    """Payload that asks for a set of the table that we had before it was of both versions of IP."""
    return nf_request(attribute(1, _nul(TABLE)), attribute(2, _nul(name)), family=AF_INET)


def generation(payload: bytes) -> int:
    """The number of the rule set: every transaction of anybody in the namespace raises it."""
    return int(_BE32.unpack(attributes(payload, _NFGEN_BYTES)[1])[0])


def is_dormant(payload: bytes) -> bool:
    """Whether somebody switched the table off."""
    flags = attributes(payload, _NFGEN_BYTES).get(2)
    return flags is not None and bool(_BE32.unpack(flags)[0] & _TABLE_DORMANT)


def is_of_our_table(payload: bytes) -> bool:
    """Old kernels do not filter dumps by table."""
    return payload[0] == _NFPROTO_INET and _text(attributes(payload, _NFGEN_BYTES).get(1, b"")) == TABLE


def chain(payload: bytes) -> tuple[str, HeldChain]:
    """A chain by its name, without its rules."""
    found = attributes(payload, _NFGEN_BYTES)
    hook = None
    if 4 in found:  # NFTA_CHAIN_HOOK: number, priority
        place = attributes(found[4])
        number, (priority,) = _BE32.unpack(place[1])[0], struct.unpack(">i", place[2])
        hook = Hook(_text(found.get(7, b"")), _HOOKS[number], priority)
    policy = _BE32.unpack(found[5])[0] if 5 in found else _ACCEPT
    return _text(found[3]), HeldChain(hook, policy == _ACCEPT, ())


def rule(payload: bytes) -> tuple[str, str]:
    """(chain, tag) of a rule; the tag is "" when it has no comment."""
    found = attributes(payload, _NFGEN_BYTES)
    return _text(found[2]), _comment(found.get(7, b""))


def _comment(userdata: bytes) -> str:
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == _COMMENT:
            return _text(userdata[at + 2 : at + 2 + length])
        at += 2 + length
    return ""


def shape(payload: bytes) -> tuple[str, Shape]:
    """A map or set by its name."""
    found = attributes(payload, _NFGEN_BYTES)
    verdict = 6 in found and _BE32.unpack(found[6])[0] == _VERDICT_TYPE
    value_length = 0 if verdict or 7 not in found else int(_BE32.unpack(found[7])[0])
    return _text(found[2]), Shape(int(_BE32.unpack(found[5])[0]), value_length, verdict)


def elements(of: Map, payload: bytes) -> Iterator[tuple[Key, Key]]:
    """The elements in one message of a dump of `of`."""
    for _, element in _attribute_list(attributes(payload, _NFGEN_BYTES).get(3, b"")):
        found = attributes(element)
        key = _fields(of.key, attributes(found[1])[1])
        if not of.value:
            yield key, ()
            continue
        data = attributes(found[2])
        if of.value == (Kind.CHAIN,):
            yield key, (_text(attributes(data[2]).get(2, b"")),)
        else:
            yield key, _fields(of.value, data[1])


def flowtable(payload: bytes) -> tuple[str, frozenset[str]]:
    """A flowtable by its name: its devices."""
    found = attributes(payload, _NFGEN_BYTES)
    listed = attributes(found[3]).get(3, b"") if 3 in found else b""  # NFTA_FLOWTABLE_HOOK, its _DEVS
    return _text(found[2]), frozenset(_text(device) for _, device in _attribute_list(listed))


def of_flowtable_with(name: str, devices: Iterable[str]) -> bytes:
    """Payload that adds devices to a flowtable of our table, or takes them out. On ingress, with the priority 0."""
    listed = b"".join(attribute(1, _nul(device)) for device in devices)
    hook = attribute(1, _BE32.pack(0)) + attribute(2, _BE32.pack(0)) + attribute(3 | _NESTED, listed)
    return nf_request(attribute(1, _nul(TABLE)), attribute(2, _nul(name)), attribute(3 | _NESTED, hook))


# --- nf_tables: changes of elements -----------------------------------------------------------------------------------

_SUBSYSTEM = 10
_GOTO_VERDICT = struct.pack(">i", -4)  # NFT_GOTO
# A list is an attribute, whose length has 16 bits; an element with IPv6 addresses takes some 100 bytes.
_ELEMENTS_PER_MESSAGE = 256


def batch_begin(of_generation: int) -> bytes:
    """Payload that begins a transaction; it fails (ERESTART) when the rule set is of another generation."""
    return _NFGEN.pack(AF_UNSPEC, 0, _SUBSYSTEM) + attribute(1, _BE32.pack(of_generation))


def batch_end() -> bytes:
    """Payload that ends it."""
    return _NFGEN.pack(AF_UNSPEC, 0, _SUBSYSTEM)


def element_changes(edits: Iterable[Edit]) -> Iterator[tuple[Nf, bytes]]:
    """(type, payload) of the messages that make edits; what is deleted first, as a key may be in both."""
    edits = list(edits)
    for one in edits:
        for keys in _parts(list(one.delete)):
            yield Nf.DELETE_ELEMENT, _elements(one.map, [(key, ()) for key in keys])
    for one in edits:
        for pairs in _parts(list(one.add.items())):
            yield Nf.NEW_ELEMENT, _elements(one.map, pairs)


def _parts(whole: list[T]) -> Iterator[list[T]]:
    return (whole[at : at + _ELEMENTS_PER_MESSAGE] for at in range(0, len(whole), _ELEMENTS_PER_MESSAGE))


def _elements(of: Map, some: list[tuple[Key, Key]]) -> bytes:
    found = b"".join(attribute(1 | _NESTED, _element(of, key, value)) for key, value in some)
    return nf_request(attribute(1, _nul(TABLE)), attribute(2, _nul(of.name)), attribute(3 | _NESTED, found))


def _element(of: Map, key: Key, value: Key) -> bytes:
    told = attribute(1 | _NESTED, attribute(1, _written(of.key, key)))
    if not value:
        return told
    if of.value == (Kind.CHAIN,):
        verdict = attribute(1, _GOTO_VERDICT) + attribute(2, _nul(str(value[0])))
        return told + attribute(2 | _NESTED, attribute(2 | _NESTED, verdict))
    return told + attribute(2 | _NESTED, attribute(1, _written(of.value, value)))


def _written(kinds: tuple[Kind, ...], values: Key) -> bytes:
    """Fields that stand together begin at multiples of four bytes; one alone has its length."""
    fields = [_written_field(kind, value) for kind, value in zip(kinds, values, strict=True)]
    if len(fields) == 1:
        return fields[0]
    return b"".join(one + bytes(padded(len(one)) - len(one)) for one in fields)


def _written_field(kind: Kind, value: Atom) -> bytes:
    if isinstance(value, str):
        return bytes.fromhex(value.replace(":", ""))  # a MAC
    return value.to_bytes(LENGTH_BYTES[kind], sys.byteorder if kind in _NATIVE_KINDS else "big")


_NATIVE_KINDS = frozenset({Kind.SLOT, Kind.MARK, Kind.ZONE})


def _fields(kinds: tuple[Kind, ...], data: bytes) -> Key:
    values: list[Atom] = []
    at = 0
    for kind in kinds:
        length = LENGTH_BYTES[kind]
        values.append(_field(kind, data[at : at + length]))
        at += (length + 3) & ~3
    return tuple(values)


def _field(kind: Kind, data: bytes) -> Atom:
    if kind in _NATIVE_KINDS:
        return int.from_bytes(data, sys.byteorder)
    if kind is Kind.MAC:
        return data.hex(":")
    return int.from_bytes(data, "big")


# --- conntrack --------------------------------------------------------------------------------------------------------

STATUS_ANSWERED, STATUS_TRANSLATED = 1 << 1, 1 << 5  # IPS_SEEN_REPLY, IPS_DST_NAT
_CTA_IP_SRC, _CTA_IP_DST = {AF_INET: 1, AF_INET6: 3}, {AF_INET: 2, AF_INET6: 4}
_CTA_ORIGINAL, _CTA_REPLY, _CTA_STATUS, _CTA_ID, _CTA_STATUS_MASK = 1, 2, 3, 12, 26
_CTA_FILTER, _CTA_FILTER_REPLY, _FILTER_SOURCE, _CTA_TUPLE_IP = 25, 2, 1, 1


@dataclass(frozen=True, slots=True)
class Connection:
    """One tracked connection: what the client addressed, and who answers. Addresses as numbers: there may be many.

    `handle` is what the kernel needs to find it again.
    """

    protocol: int
    destination: int
    destination_port: int  # 0 where the protocol has none
    answerer: int  # source address of the replies: the backend, when translated
    answerer_port: int
    handle: bytes
    family: int = AF_INET
    answered: bool = True  # whether anything ever came back


def of_connections(translated_only: bool) -> bytes:
    """Payload that asks for all connections, or (on kernels that can filter) those with a translated destination."""
    if not translated_only:
        return nf_request(family=AF_UNSPEC)
    status = _BE32.pack(STATUS_TRANSLATED)
    return nf_request(attribute(_CTA_STATUS, status), attribute(_CTA_STATUS_MASK, status), family=AF_UNSPEC)


def of_connections_answered_by(address: int) -> bytes:
    """Payload that asks for the connections that an address answers (of older kernels than 5.8: all of its family)."""
    family = AF_INET6 if is_ipv6(address) else AF_INET
    source = attribute(_CTA_IP_SRC[family], address.to_bytes(16 if family == AF_INET6 else 4, "big"))
    return nf_request(
        attribute(_CTA_REPLY | _NESTED, attribute(_CTA_TUPLE_IP | _NESTED, source)),
        attribute(_CTA_FILTER | _NESTED, attribute(_CTA_FILTER_REPLY, struct.pack("=I", _FILTER_SOURCE))),
        family=family,
    )


def connection(payload: bytes) -> Connection:
    """One connection of a dump."""
    found, family = attributes(payload, _NFGEN_BYTES), payload[0]
    original, reply = attributes(found[_CTA_ORIGINAL]), attributes(found[_CTA_REPLY])
    to, transport = attributes(original[1]), attributes(original[2])
    answer, answer_transport = attributes(reply[1]), attributes(reply[2])
    handle = attribute(_CTA_ORIGINAL | _NESTED, found[_CTA_ORIGINAL])
    if _CTA_ID in found:
        handle += attribute(_CTA_ID, found[_CTA_ID])
    return Connection(
        protocol=transport[1][0],
        destination=int.from_bytes(to[_CTA_IP_DST[family]], "big"),
        destination_port=int.from_bytes(transport.get(3, b""), "big"),
        answerer=int.from_bytes(answer[_CTA_IP_SRC[family]], "big"),
        answerer_port=int.from_bytes(answer_transport.get(2, b""), "big"),
        handle=handle,
        family=family,
        answered=bool(_BE32.unpack(found[_CTA_STATUS])[0] & STATUS_ANSWERED) if _CTA_STATUS in found else True,
    )


# --- routes and rules -------------------------------------------------------------------------------------------------

_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_RULE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, 0, 0, action, flags
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, device index
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_TABLE_MAIN, _RTM_F_FIB_MATCH = 254, 0x2000
_TABLE_LOCAL, _SCOPE_UNIVERSE, _SCOPE_HOST, _UNICAST, _LOCAL, _ONLINK = 255, 0, 254, 1, 2, 4
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 5, 6, 15
# Metric of local routes on other devices than lo: the one on lo is better wherever both will do.
_BEHIND_LOOPBACK = 4096
# Metric of the host's routes to us: one of somebody else to the same place is better, and ours never replaces it.
_BEHIND_OTHERS = 28005
_FRA_GOTO, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 4, 6, 10, 15, 16, 21
_TO_TABLE, _GOTO = 1, 2


def of_addresses() -> bytes:
    """Payload that asks for all addresses of the namespace."""
    return _IFADDRMSG.pack(AF_UNSPEC, 0, 0, 0, 0)


def own_address(payload: bytes) -> int:
    """An address of the namespace, as a number."""
    found = attributes(payload, _IFADDRMSG.size)
    return int.from_bytes(found[_IFA_LOCAL] if _IFA_LOCAL in found else found[_IFA_ADDRESS], "big")


def of_our_routes(family: int) -> bytes:
    """Payload that asks for the routes with our protocol number (all routes, where the kernel does not filter)."""
    return _RTMSG.pack(family, 0, 0, 0, 0, ROUTE_PROTOCOL, 0, 0, 0)


def of_route_to(address: Address) -> bytes:
    """Payload that asks for the route that an address would take."""
    family, bits = (AF_INET6, 128) if address.version == 6 else (AF_INET, 32)
    head = _RTMSG.pack(family, bits, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    return head + attribute(_RTA_DST, address.packed)


def of_main_table(family: int) -> bytes:
    """Payload that asks for the routes of the main table."""
    return _RTMSG.pack(family, 0, 0, 0, _TABLE_MAIN, 0, 0, 0, 0)


def foreign_prefix(payload: bytes) -> tuple[int, int] | None:
    """(address, prefix length) of a route of the main table; None for the default route and for ours."""
    _, length, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(payload)
    if not length or table != _TABLE_MAIN or protocol == ROUTE_PROTOCOL:
        return None
    return int.from_bytes(attributes(payload, _RTMSG.size)[_RTA_DST], "big"), length


def prefix_length(payload: bytes) -> int:
    """Of a route: how many bits of an address it fixes."""
    return payload[1]


def of_rules(family: int) -> bytes:
    """Payload that asks for all routing rules."""
    return _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)


def route(payload: bytes) -> RouteOrRule | None:
    """A route of ours, or None."""
    family, length, _, _, _, protocol, _, kind, _ = _RTMSG.unpack_from(payload)
    if protocol != ROUTE_PROTOCOL or family not in (AF_INET, AF_INET6):
        return None
    found = attributes(payload, _RTMSG.size)
    if kind == _LOCAL and length == (32 if family == AF_INET else 128):
        return LocalRoute(int.from_bytes(found[_RTA_DST], "big"), _native(found, _RTA_OIF))
    table = _native(found, _RTA_TABLE)
    if kind == _UNICAST and length == 0 and table > RETURN_TABLES and _RTA_GATEWAY in found:
        via = found[_RTA_GATEWAY]
        gateway = IPv4Address(via) if family == AF_INET else IPv6Address(via)
        return ReturnRoute(table - RETURN_TABLES, gateway, _native(found, _RTA_OIF))
    if kind == _UNICAST and length and table == _TABLE_MAIN and _RTA_GATEWAY in found:
        return HostRoute(ip_network((found[_RTA_DST], length)), ip_address(found[_RTA_GATEWAY]))
    return None


def routing_rule(payload: bytes) -> RouteOrRule | None:
    """A routing rule of ours, or None."""
    found = attributes(payload, _RULE.size)
    if found.get(_FRA_PROTOCOL) != bytes([ROUTE_PROTOCOL]):
        return None
    mark, version = _native(found, _FRA_FWMARK), 6 if payload[0] == AF_INET6 else 4
    return ReturnRule(mark, version) if mark else SkipRule(version)


def _native(found: dict[int, bytes], kind: int) -> int:
    return int(_NATIVE32.unpack(found[kind])[0]) if kind in found else 0


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _NATIVE32.pack(value))


def encode(what: RouteOrRule) -> tuple[bool, bytes]:
    """(whether it is a rule, payload) to make or delete a route or rule."""
    match what:
        case LocalRoute(address, device_index):
            family, length = (AF_INET6, 16) if what.version == 6 else (AF_INET, 4)
            head = _RTMSG.pack(family, length * 8, 0, 0, _TABLE_LOCAL, ROUTE_PROTOCOL, _SCOPE_HOST, _LOCAL, 0)
            body = attribute(_RTA_DST, address.to_bytes(length, "big")) + _number(_RTA_OIF, device_index)
            if device_index != LOOPBACK_INDEX:
                body += _number(_RTA_PRIORITY, _BEHIND_LOOPBACK)
            return False, head + body
        case ReturnRoute(node_number, via, device_index):
            family = AF_INET6 if via.version == 6 else AF_INET
            head = _RTMSG.pack(family, 0, 0, 0, 0, ROUTE_PROTOCOL, _SCOPE_UNIVERSE, _UNICAST, _ONLINK)
            table = _number(_RTA_TABLE, RETURN_TABLES + node_number)
            return False, head + table + attribute(_RTA_GATEWAY, via.packed) + _number(_RTA_OIF, device_index)
        case HostRoute(subnet, via):
            family = AF_INET6 if via.version == 6 else AF_INET
            head = _RTMSG.pack(
                family, subnet.prefixlen, 0, 0, _TABLE_MAIN, ROUTE_PROTOCOL, _SCOPE_UNIVERSE, _UNICAST, 0
            )
            body = attribute(_RTA_DST, subnet.network_address.packed) + attribute(_RTA_GATEWAY, via.packed)
            return False, head + body + _number(_RTA_TABLE, _TABLE_MAIN) + _number(_RTA_PRIORITY, _BEHIND_OTHERS)
        case SkipRule(version):
            body = _number(_FRA_PRIORITY, SKIP_PRIORITY) + _number(_FRA_GOTO, MAIN_RULE_PRIORITY)
            mark = _number(_FRA_FWMARK, 0) + _number(_FRA_FWMASK, 0xFFFFFFFF)
            return True, _rule_head(version, _GOTO) + body + mark + attribute(_FRA_PROTOCOL, bytes([ROUTE_PROTOCOL]))
        case ReturnRule(node_number, version):
            body = _number(_FRA_PRIORITY, RETURN_PRIORITY) + _number(_FRA_TABLE, RETURN_TABLES + node_number)
            body += _number(_FRA_FWMARK, node_number)
            return True, _rule_head(version, _TO_TABLE) + body + attribute(_FRA_PROTOCOL, bytes([ROUTE_PROTOCOL]))
    raise AssertionError(what)


def _rule_head(version: int, action: int) -> bytes:
    return _RULE.pack(AF_INET6 if version == 6 else AF_INET, 0, 0, 0, 0, 0, 0, action, 0)
