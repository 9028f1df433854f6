"""Prefixes that have an address in common with some others."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hypothesis import given, settings
from hypothesis import strategies as st

from overlay.ranges import Ranges

prefixes = st.builds(
    lambda address, bits: IPv4Network((address >> (32 - bits) << (32 - bits) if bits else 0, bits)),
    st.integers(0, (1 << 32) - 1).map(lambda n: n & 0x030F00FF),
    st.integers(0, 32),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(prefixes, max_size=8), prefixes)
def test_a_prefix_meets_those_it_overlaps(held: list[IPv4Network], one: IPv4Network) -> None:
    found = Ranges(held).meets(4, int(one.network_address), one.prefixlen)
    assert found == any(one.overlaps(other) for other in held)


def test_families_do_not_meet_and_addresses_are_prefixes() -> None:
    ranges = Ranges([IPv4Address("10.0.0.1"), IPv6Network("fd00::/64")])
    assert ranges.meets(4, int(IPv4Address("10.0.0.0")), 30)
    assert not ranges.meets(4, int(IPv4Address("10.0.0.2")), 32)
    assert ranges.meets(6, 0, 0)
    assert not ranges.meets(6, 10 << 24, 32)
    assert not Ranges().meets(4, 0, 0)
