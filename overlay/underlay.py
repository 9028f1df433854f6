"""How large the packets between nodes may be: the least of the devices, routes and paths that they take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from overlay.plan import Address
from overlay.rtnl import Namespace

# Without a device to measure (it is gone), what every Ethernet has.
DEFAULT_UNDERLAY_MTU = 1500
# What a router on the way has complained of is believed down to here, and no further: a forged complaint must not take
# IPv6 (1280 bytes inside VXLAN over IPv6, 70 bytes) from networks. Below it, IPv4 packets of VXLAN are fragmented.
LEARNED_MIN = 1350


def underlay_mtu(host: Namespace, underlay: Address, peers: Iterable[Address]) -> int:
    """The MTU between this node's underlay address and those of its peers. Raises OSError or NetlinkError."""
    mtus = {link.index: link.mtu for link in host.links().values()}
    own = {index for index, address in host.addresses() if address.partition("/")[0] == str(underlay)}
    return min(
        (*(mtus[index] for index in own if index in mtus), *_ways(host, mtus, peers)), default=DEFAULT_UNDERLAY_MTU
    )


def _ways(host: Namespace, mtus: dict[int, int], peers: Iterable[Address]) -> Iterator[int]:
    for peer in peers:
        way = host.way_to(peer)
        if way is None or way.device not in mtus:
            continue  # no way to it now; when it has one, the next look finds it
        yield mtus[way.device]
        if way.mtu:
            yield max(way.mtu, LEARNED_MIN) if way.learned else way.mtu
