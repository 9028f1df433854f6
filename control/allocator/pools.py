"""Free numbers and addresses, found from what is taken. Pure.

Nothing is remembered between decisions: what is free follows from the store. The search for an address begins at a
place derived from the asker's id, so that an address that was just given back is rarely the next to be handed out; and
it rests besides (`RestingAddress`).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Network

FIRST_VNI = 4096
LAST_VNI = (1 << 24) - 1
FIRST_AUTOMATIC_PORT = 30000
LAST_AUTOMATIC_PORT = 32767


def free_vni(taken: Collection[int]) -> int | None:
    """The lowest VXLAN id that nobody has."""
    return next((vni for vni in range(FIRST_VNI, LAST_VNI + 1) if vni not in taken), None)


def free_port(taken: Collection[int]) -> int | None:
    """The lowest automatic port that nobody has."""
    return next((port for port in range(FIRST_AUTOMATIC_PORT, LAST_AUTOMATIC_PORT + 1) if port not in taken), None)


def free_subnet(pools: Iterable[str], length: int, avoid: Iterable[IPv4Network]) -> IPv4Network | None:
    """The first prefix of `length` bits in the pools that overlaps nothing in `avoid`."""
    avoided = sorted(avoid, key=lambda n: n.network_address)
    for text in pools:
        pool = IPv4Network(text)
        candidate = IPv4Network((pool.network_address, max(length, pool.prefixlen)))
        while candidate.subnet_of(pool):
            clash = next((n for n in avoided if n.overlaps(candidate)), None)
            if clash is None:
                return candidate
            after = int(max(clash.broadcast_address, candidate.broadcast_address)) + 1
            if after > int(pool.broadcast_address):
                break
            step = candidate.num_addresses
            candidate = IPv4Network((-(-after // step) * step, candidate.prefixlen))
    return None


def capacity(subnet: IPv4Network) -> int:
    """How many services and tasks a subnet can hold: all but network, gateway and broadcast addresses."""
    return max(0, subnet.num_addresses - 3)


def gateway(subnet: IPv4Network) -> IPv4Address:
    """The router's address: the first one."""
    return subnet.network_address + 1


def free_address(subnet: IPv4Network, taken: Collection[str], asker: str) -> str | None:
    """An address that is not taken, the search beginning at a place derived from the asker's id."""
    size = capacity(subnet)
    if len(taken) >= size + 1:  # the gateway is among the taken
        return _first_free(subnet, taken, 0, size)
    return _first_free(subnet, taken, zlib.crc32(asker.encode()) % size, size)


def _first_free(subnet: IPv4Network, taken: Collection[str], start: int, size: int) -> str | None:
    first = subnet.network_address + 2
    for i in range(size):
        address = str(first + (start + i) % size)
        if address not in taken:
            return address
    return None
