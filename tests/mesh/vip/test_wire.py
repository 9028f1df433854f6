"""Netlink messages, compared with bytes written down by hand after the kernel's headers, and with themselves."""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.vip import maps, wire
from mesh.vip.ingress import HostRoute, LocalRoute, ReturnRoute, ReturnRule, RouteOrRule, SkipRule
from mesh.vip.rules import Edit, HeldChain, Hook, Key, Kind, Map, Shape
from mesh.vip.wire import Nf, attribute

NFGEN = bytes([2, 0, 0, 0])
be32 = struct.Struct(">I").pack


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | 0x8000, b"".join(parts))


def test_several_messages_come_in_one_datagram() -> None:
    data = wire.message(16, 1, 7, b"abcde")
    data += bytes(-len(data) % 4) + wire.message(3, 2, 8, b"")
    assert [(m.type, m.flags, m.sequence, m.payload) for m in wire.messages(data)] == [
        (16, 1, 7, b"abcde"),
        (3, 2, 8, b""),
    ]


@given(data=st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_torn_messages_and_attributes_end_the_reading(data: bytes) -> None:
    list(wire.messages(data))
    wire.attributes(data)


def test_an_error_is_a_negative_errno() -> None:
    assert wire.error_number(struct.pack("=i", -17) + bytes(16)) == 17


def test_the_generation_is_a_number_in_network_order() -> None:
    assert wire.generation(NFGEN + attribute(1, be32(258)) + attribute(2, be32(9))) == 258


def test_chains_have_a_hook_or_none() -> None:
    hook = nested(4, attribute(1, be32(4)), attribute(2, struct.pack(">i", -150)))
    base = NFGEN + attribute(3, b"leave\0") + hook + attribute(5, be32(1)) + attribute(7, b"nat\0")
    assert wire.chain(base) == ("leave", HeldChain(Hook("nat", "postrouting", -150), True, ()))
    assert wire.chain(NFGEN + attribute(3, b"any1\0")) == ("any1", HeldChain(None, True, ()))
    assert not wire.chain(base.replace(attribute(5, be32(1)), attribute(5, be32(0))))[1].accepts


def test_the_tag_of_a_rule_is_its_comment() -> None:
    comment = b"\x09\x02xx\x00\x06m:abc\x00"
    assert wire.rule(NFGEN + attribute(2, b"pass\0") + attribute(7, comment)) == ("pass", "m:abc")
    assert wire.rule(NFGEN + attribute(2, b"pass\0")) == ("pass", "")


def test_shapes_of_maps_sets_and_verdict_maps() -> None:
    def one(*more: bytes) -> bytes:
        return NFGEN + attribute(2, b"m\0") + attribute(5, be32(16)) + b"".join(more)

    assert wire.shape(one()) == ("m", Shape(16, 0, verdict=False))
    assert wire.shape(one(attribute(6, be32(1)), attribute(7, be32(8)))) == ("m", Shape(16, 8, verdict=False))
    verdict = one(attribute(6, be32(0xFFFFFF00)), attribute(7, be32(16)))
    assert wire.shape(verdict) == ("m", Shape(16, 0, verdict=True))


def test_a_flowtable_is_read_with_its_devices_as_they_are_written() -> None:
    devices = nested(3, attribute(1, b"vx4096\0"), attribute(1, b"up0\0"))
    hook = nested(3, attribute(1, be32(0)), attribute(2, be32(0)), devices)
    told = bytes([1, 0, 0, 0]) + attribute(1, b"mesh\0") + attribute(2, b"known\0") + hook
    assert wire.of_flowtable_with("known", ["vx4096", "up0"]) == told
    assert wire.flowtable(told + attribute(5, bytes(8))) == ("known", {"vx4096", "up0"})
    assert wire.flowtable(NFGEN + attribute(2, b"known\0")) == ("known", frozenset())


def test_elements_of_concatenated_keys_are_padded_field_by_field() -> None:
    key = bytes([169, 254, 0, 2]) + b"\x06\0\0\0" + b"\x1f\x90\0\0" + (258).to_bytes(4, sys.byteorder)
    value = bytes([10, 1, 0, 7])
    element = nested(1, nested(1, attribute(1, key)), nested(2, attribute(1, value)))
    payload = NFGEN + attribute(1, b"mesh\0") + nested(3, element, element)
    uplink, task = int(IPv4Address("169.254.0.2")), int(IPv4Address("10.1.0.7"))
    assert list(wire.elements(maps.PORT.slots, payload)) == [((uplink, 6, 8080, 258), (task,))] * 2


def test_elements_of_verdict_maps_and_of_macs() -> None:
    goto = nested(2, nested(2, attribute(1, be32(0xFFFFFFFC)), attribute(2, b"any3_1\0")))
    element = nested(1, nested(1, attribute(1, bytes([10, 0, 0, 1]))), goto)
    assert list(wire.elements(maps.ANY.service, NFGEN + nested(3, element))) == [((0x0A000001,), ("any3_1",))]
    for kind, length in ((Kind.MARK, 4), (Kind.ZONE, 2)):
        peers = Map("peers", "", (Kind.MAC,), (kind,))
        number = nested(2, attribute(1, (258).to_bytes(length, sys.byteorder)))
        element = nested(1, nested(1, attribute(1, bytes.fromhex("026d73680002"))), number)
        assert list(wire.elements(peers, NFGEN + nested(3, element))) == [(("02:6d:73:68:00:02",), (258,))]


def test_elements_are_written_as_they_are_read() -> None:
    task, far = int(IPv4Address("10.1.0.7")), int(IPv6Address("fd00::7"))
    macs = Map("macs", "", (Kind.MAC,), (Kind.ZONE,))
    some: list[tuple[Map, Key, Key]] = [
        (maps.PORT.slots, (int(IPv4Address("169.254.0.2")), 6, 8080, 258), (task,)),
        (maps.PORT6.slots, (far, 17, 53, 0), (far,)),
        (maps.ANY.service, (task,), ("any3_1",)),
        (maps.PORT.service, (task, 6, 80), ("port1",)),
        (macs, ("02:6d:73:68:00:02",), (258,)),
        (Map("names", "", (Kind.ADDRESS, Kind.PORT)), (task, 80), ()),
    ]
    for of, key, value in some:
        edits = [Edit(of, frozenset({key}), {key: value})]
        (delete, gone), (add, come) = wire.element_changes(edits)
        assert (delete, add) == (Nf.DELETE_ELEMENT, Nf.NEW_ELEMENT)
        assert list(wire.elements(of, come)) == [(key, value)]
        assert list(wire.elements(Map(of.name, "", of.key), gone)) == [(key, ())]


def test_many_elements_go_into_several_messages_what_is_deleted_first() -> None:
    numbers = Map("numbers", "", (Kind.ADDRESS,), (Kind.MARK,))
    made: dict[Key, Key] = {(n,): (n,) for n in range(600)}
    messages = list(
        wire.element_changes([Edit(numbers, frozenset(made), made), Edit(numbers, frozenset({(700,)}), {})])
    )
    assert [kind for kind, _ in messages] == [Nf.DELETE_ELEMENT] * 4 + [Nf.NEW_ELEMENT] * 3
    assert dict(one for kind, data in messages[4:] for one in wire.elements(numbers, data)) == made


def test_a_connection_tells_what_was_addressed_and_who_answers() -> None:
    def tuple_of(kind: int, source: str, to: str, source_port: int, port: int) -> bytes:
        addresses = nested(1, attribute(1, IPv4Address(source).packed), attribute(2, IPv4Address(to).packed))
        ports = attribute(1, b"\x11") + attribute(2, struct.pack(">H", source_port))
        return nested(kind, addresses, nested(2, ports, attribute(3, struct.pack(">H", port))))

    original = tuple_of(1, "10.1.0.9", "10.1.0.200", 4000, 53)
    number = attribute(12, be32(99))
    one = wire.connection(NFGEN + original + tuple_of(2, "10.1.0.7", "10.1.0.9", 5353, 4000) + number)
    assert (one.protocol, one.destination_port, one.answerer_port) == (17, 53, 5353)
    assert (IPv4Address(one.destination), IPv4Address(one.answerer)) == (
        IPv4Address("10.1.0.200"),
        IPv4Address("10.1.0.7"),
    )
    assert one.handle == original + number


ROUTING: list[RouteOrRule] = [
    LocalRoute(int(IPv4Address("10.1.0.200"))),
    LocalRoute(int(IPv6Address("fd00:1::200"))),
    LocalRoute(1, 12),
    ReturnRoute(7, IPv4Address("169.254.128.7"), 12),
    ReturnRoute(7, IPv6Address("fd6d:6573:69::7"), 12),
    HostRoute(IPv4Network("10.1.0.0/24"), IPv4Address("169.254.0.2")),
    HostRoute(IPv6Network("fd00:1::/64"), IPv6Address("fd6d:6573:68::2")),
    ReturnRule(7),
    ReturnRule(7, 6),
    SkipRule(),
    SkipRule(6),
]


@pytest.mark.parametrize("one", ROUTING, ids=str)
def test_routes_and_rules_are_read_as_they_were_written(one: RouteOrRule) -> None:
    is_rule, payload = wire.encode(one)
    assert is_rule == isinstance(one, ReturnRule | SkipRule)
    assert (wire.routing_rule if is_rule else wire.route)(payload) == one


def test_routes_and_rules_of_others_are_nothing_to_us() -> None:
    _, route = wire.encode(ROUTING[0])
    assert wire.route(route[:5] + b"\x02" + route[6:]) is None  # protocol "kernel"
    _, rule = wire.encode(ReturnRule(7))
    assert wire.routing_rule(rule.replace(attribute(21, bytes([110])), attribute(21, bytes([2])))) is None
    default = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 110, 0, 1, 0) + attribute(5, bytes([10, 0, 0, 1]))
    assert wire.route(default) is None  # of the main table
