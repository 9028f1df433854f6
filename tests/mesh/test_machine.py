"""What a machine says of itself, and which of its addresses is taken."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from mesh.machine import AddressError, HostAddress, choose_address, parse_memory, parse_routes

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100420A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0000420A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
mesh4096\t0000FEA9\t00000000\t0001\t0\t0\t0\tFCFFFFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
short line
"""
ONE = HostAddress(IPv4Address("10.66.0.11"), "eth0", 1500)
TWO = HostAddress(IPv4Address("192.168.1.5"), "eth1", 1500)


def test_routes_are_prefixes_without_the_default_and_our_own_uplinks() -> None:
    assert parse_routes(ROUTES) == ("10.66.0.0/24", "172.17.0.0/16")


def test_memory_is_in_bytes() -> None:
    assert parse_memory("MemFree: 1 kB\nMemTotal:       2048 kB\n") == 2 << 20
    assert parse_memory("") == 0


def test_the_only_address_is_taken_and_a_choice_is_asked_for_otherwise() -> None:
    assert choose_address("", [ONE]) == ONE.address
    assert choose_address("eth1", [ONE, TWO]) == TWO.address
    assert choose_address("10.66.0.11", [ONE, TWO]) == ONE.address
    with pytest.raises(AddressError, match=r"10\.66\.0\.11 \(eth0\), 192\.168\.1\.5 \(eth1\).*--advertise-addr"):
        choose_address("", [ONE, TWO])
    with pytest.raises(AddressError, match='"eth9" is no address or device'):
        choose_address("eth9", [ONE])
    with pytest.raises(AddressError, match="no address to be reached at"):
        choose_address("", [])
