"""IPv6 addresses of networks with both families: made of the IPv4 ones, so that there is one allocation, not two. Pure.

A network's prefix is unique local (RFC 4193): fd, 32 bits of the cluster's id, 24 bits of the network's VXLAN id make
a /64 that is unique in the cluster and as good as unique among clusters. Whatever has the IPv4 address a.b.c.d on the
network has that prefix with a.b.c.d as its last 32 bits (as in RFC 6052, section 2.2). So uniqueness, rest after use
and the search for a holder follow from IPv4.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv6Address, IPv6Network

PREFIX_LENGTH = 64
LONGEST = 96  # the last 32 bits are the IPv4 address


def subnet6(cluster_id: str, vni: int) -> IPv6Network:
    """The prefix of a network whose user asked for none. `vni` is 1 to 2**24 - 1."""
    cluster = int.from_bytes(hashlib.sha256(cluster_id.encode()).digest()[:4])
    return IPv6Network(((0xFD << 120) | (cluster << 88) | (vni << 64), PREFIX_LENGTH))


def embedded(subnet: IPv6Network, address: IPv4Address) -> IPv6Address:
    """The IPv6 address, on a network of that prefix, of what has the IPv4 address `address` there."""
    return subnet.network_address + int(address)
