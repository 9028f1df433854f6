"""Routes on the wire: what is asked, and what of an answer is understood."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from overlay import routewire
from overlay.routewire import Dumped, End, Way


def message(kind: int, body: bytes, sequence: int = 7, flags: int = 2) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def route(family: int, bits: int, *attributes: bytes, protocol: int = 109, kind: int = 1) -> bytes:
    return struct.pack("=BBBBBBBBI", family, bits, 0, 0, 254, protocol, 0, kind, 0) + b"".join(attributes)


ONE = route(
    2, 32, attribute(1, bytes((10, 1, 0, 7))), attribute(4, struct.pack("=I", 5)), attribute(5, bytes((169, 254, 0, 2)))
)


def test_a_dump_is_read_to_its_end_and_what_is_not_asked_is_passed_over() -> None:
    data = message(24, ONE) + message(24, ONE, sequence=6) + message(24, route(2, 0, protocol=4))
    data += message(24, route(10, 0, attribute(7, IPv6Address("fd00::1").packed), kind=7)) + message(3, bytes(4))
    assert list(routewire.read(data, 7, 109)) == [
        Dumped("10.1.0.7/32", 1, 5, "169.254.0.2", ""),
        Dumped("::/0", 7, 0, "", "fd00::1"),
        End(0),
    ]
    assert list(routewire.read(message(2, struct.pack("=i", -2) + bytes(16)), 7, 109)) == [End(2)]
    assert routewire.is_interrupted(message(24, ONE, flags=0x12))
    assert not routewire.is_interrupted(data)


def test_the_way_to_an_address_has_its_device_and_the_mtu_of_its_route() -> None:
    metrics = attribute(8, attribute(1, bytes(4)) + attribute(2, struct.pack("=I", 1400)))
    device = attribute(4, struct.pack("=I", 3))
    fresh, expiring = (attribute(12, struct.pack("=IIiIIIII", 0, 0, s, 0, 0, 0, 0, 0)) for s in (0, 500))
    assert routewire.read_way(message(24, route(2, 32, device, metrics, fresh)), 7) == Way(3, 1400, False)
    assert routewire.read_way(message(24, route(2, 32, device, metrics, expiring)), 7) == Way(3, 1400, True)
    assert routewire.read_way(message(24, route(2, 32, device)), 7) == Way(3, 0, False)
    assert routewire.read_way(message(2, struct.pack("=i", -101) + bytes(16)), 7) is None


def test_an_address_of_either_family_is_asked_for() -> None:
    assert IPv4Address("10.66.0.12").packed in routewire.request_way(IPv4Address("10.66.0.12"), 1)
    assert IPv6Address("fd00::1").packed in routewire.request_way(IPv6Address("fd00::1"), 1)


@given(st.binary(min_size=16, max_size=200))
def test_any_bytes_are_read_without_failing_but_by_the_shape_of_a_structure(data: bytes) -> None:
    try:
        list(routewire.read(data, 0, 0))
        routewire.read_way(data, 0)
    except struct.error:
        pass


def test_a_route_is_asked_for_as_it_is_told() -> None:
    for one in (
        Dumped("10.1.0.7/32", 1, 5, "169.254.0.2", "10.1.0.1"),
        Dumped("fd00::7/128", 1, 5, "fe80::1", ""),
        Dumped("0.0.0.0/0", 1, 5, "169.254.0.1", ""),
        Dumped("10.1.0.0/24", 7, 0, "", ""),
    ):
        assert list(routewire.read(routewire.replacement(one, 254, 109, 7), 7, 109)) == [one]


def test_acknowledgements_are_read_with_the_number_of_what_they_answer() -> None:
    data = message(2, struct.pack("=i", 0) + bytes(16)) + message(2, struct.pack("=i", -113) + bytes(16), sequence=8)
    assert list(routewire.read_errors(data)) == [(7, 0), (8, 113)]


def test_a_route_is_removed_by_its_destination_and_type_on_whatever_device() -> None:
    data = routewire.removal(Dumped("10.1.0.7/32", 1, 0, "169.254.0.2", ""), 254, 109, 3)
    assert data[:16] == struct.pack("=IHHII", len(data), 25, 5, 3, 0)
    assert data[16:] == struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 109, 255, 1, 0) + attribute(1, bytes((10, 1, 0, 7)))
    assert routewire.removal(Dumped("::/0", 7, 0, "", ""), 254, 109, 3)[16:18] == bytes((10, 0))


def test_a_device_is_asked_for_by_its_name() -> None:
    data = routewire.request_device("vx4096", 3)
    assert data[:16] == struct.pack("=IHHII", len(data), 18, 1, 3, 0)
    assert data[32:] == attribute(3, b"vx4096\0")
    link = struct.pack("=BxHiII", 0, 1, 12, 0, 0) + attribute(3, b"vx4096\0")
    assert routewire.read_device(message(16, link), 7) == 12
    assert routewire.read_device(message(2, struct.pack("=i", -19) + bytes(16)), 7) is None
