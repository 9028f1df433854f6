"""Sets of addresses as ranges of numbers, so that one of many prefixes is found at once. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Prefix = IPv4Network | IPv6Network | IPv4Address | IPv6Address


class Ranges:
    """The addresses of some prefixes."""

    def __init__(self, prefixes: Iterable[Prefix] = ()) -> None:
        self._first: dict[int, list[int]] = {4: [], 6: []}
        self._last: dict[int, list[int]] = {4: [], 6: []}
        networks = {ip_network(one) for one in prefixes}
        for one in sorted(networks, key=lambda n: (int(n.network_address), n.prefixlen)):
            first, last = self._first[one.version], self._last[one.version]
            begin, end = int(one.network_address), int(one.broadcast_address)
            if last and end <= last[-1]:
                continue  # within the one before: prefixes never overlap by half
            first.append(begin)
            last.append(end)

    def meets(self, version: int, address: int, prefix_length: int) -> bool:
        """Whether a prefix has an address in common with these."""
        size = 1 << ((32 if version == 4 else 128) - prefix_length)
        begin = address & ~(size - 1)
        at = bisect_right(self._first[version], begin + size - 1) - 1
        return at >= 0 and self._last[version][at] >= begin
