"""IPv6 addresses made of IPv4 ones."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from control.ipv6 import embedded, subnet6

UNIQUE_LOCAL = IPv6Network("fd00::/8")


def test_the_address_ends_in_the_ipv4_one() -> None:
    made = embedded(IPv6Network("fd00:20::/64"), IPv4Address("10.128.0.5"))
    assert made == IPv6Address("fd00:20::10.128.0.5")


@given(st.integers(1, (1 << 24) - 1), st.integers(1, (1 << 24) - 1))
def test_networks_of_a_cluster_do_not_overlap(one: int, other: int) -> None:
    first, second = subnet6("cluster", one), subnet6("cluster", other)
    assert first.prefixlen == 64
    assert first.subnet_of(UNIQUE_LOCAL)
    assert first.overlaps(second) == (one == other)


def test_two_clusters_have_different_prefixes() -> None:
    assert not subnet6("one", 4096).overlaps(subnet6("other", 4096))
