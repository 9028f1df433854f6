"""Free numbers, prefixes and addresses, found from what is taken. Pure.

A pool lives for one decision: it is filled with what the store says is taken, and hands out the rest. Taking n things
costs a time proportional to n and to what is taken, never to the size of the pool: a network may be a /8.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

FIRST_VNI = 4096
LAST_VNI = (1 << 24) - 1
FIRST_AUTOMATIC_PORT = 30000
LAST_AUTOMATIC_PORT = 32767

# Network, gateway and broadcast address: nobody can have them.
_RESERVED = 3
# A node is leased 16 addresses at a time: enough for the containers of a Compose file, few enough for 100 nodes on a
# /20. Of small networks a node gets a thirty-second part.
_LEASE_BITS = 4
_LEASES_MIN_BITS = 5


class Numbers:
    """Hands out the lowest free numbers of a range."""

    def __init__(self, first: int, last: int, taken: Iterable[int]) -> None:
        self._last = last
        self._taken = set(taken)
        self._next = first  # everything below has been handed out or is taken

    def take(self) -> int | None:
        """The lowest number that nobody has; None when there is none."""
        while self._next <= self._last:
            number = self._next
            self._next += 1
            if number not in self._taken:
                return number
        return None


class Subnets:
    """Hands out prefixes of one length from the pools, the lowest of the first pool first."""

    def __init__(self, pools: Iterable[str], length: int, avoid: Iterable[IPv4Network]) -> None:
        """`avoid`: what the new prefixes may not overlap."""
        self._pools = [IPv4Network(text) for text in pools]
        self._length = length
        spans = sorted((int(n.network_address), int(n.broadcast_address)) for n in avoid)
        self._starts, self._ends = _merged(spans)
        self._pool = 0
        self._next = int(self._pools[0].network_address) if self._pools else 0

    def take(self) -> IPv4Network | None:
        """The next free prefix; None when the pools are used up."""
        while self._pool < len(self._pools):
            pool = self._pools[self._pool]
            length = max(self._length, pool.prefixlen)
            size = 1 << (32 - length)
            while self._next + size - 1 <= int(pool.broadcast_address):
                candidate = self._next
                clash_end = self._clash(candidate, candidate + size - 1)
                if clash_end is None:
                    self._next = candidate + size
                    return IPv4Network((candidate, length))
                self._next = -(-(clash_end + 1) // size) * size  # the first aligned address after it
            self._pool += 1
            if self._pool < len(self._pools):
                self._next = int(self._pools[self._pool].network_address)
        return None

    def _clash(self, first: int, last: int) -> int | None:
        """The end of the last avoided span that overlaps first..last."""
        at = bisect_right(self._starts, last) - 1
        return self._ends[at] if at >= 0 and self._ends[at] >= first else None


def _merged(spans: Iterable[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Sorted spans as disjoint ones: their starts, and their ends."""
    starts: list[int] = []
    ends: list[int] = []
    for start, end in spans:
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return starts, ends


class Addresses:
    """Hands out the addresses of one subnet, going on after the one that was handed out last.

    So an address that was given back is the last to be used again, as long as there are others.
    """

    def __init__(self, subnet: IPv4Network, taken: Iterable[str], last: str = "") -> None:
        """`taken`: all that are in use or at rest. `last`: the latest one that was handed out, if it is known."""
        self._first = int(subnet.network_address) + 2
        self._size = capacity(subnet)
        offsets = (number(address) - self._first for address in taken)
        self._taken = {offset for offset in offsets if 0 <= offset < self._size}
        after = number(last) + 1 - self._first if last else 0
        self._next = after if 0 <= after < self._size else 0
        self._blocks = 0  # taken here

    def take(self) -> str | None:
        """The next free address; None when there is none."""
        if len(self._taken) >= self._size:
            return None
        while self._next in self._taken:
            self._next = (self._next + 1) % self._size
        offset = self._next
        self._taken.add(offset)
        self._next = (offset + 1) % self._size
        return text(self._first + offset)

    def take_block(self, length: int, leased: int) -> str | None:
        """The highest free block with a prefix of that length, of which `leased` addresses are in such blocks already.

        None when there is none, or half of the addresses would be leased.
        """
        size, network = 1 << (32 - length), self._first - 2
        for offset in range(self._size + _RESERVED - 2 * size, 0, -size):
            if leased + self._blocks * size + size > self._size // 2:
                return None
            wanted = range(offset - 2, offset - 2 + size)
            if self._taken.isdisjoint(wanted):
                self._taken.update(wanted)
                self._blocks += 1
                return f"{text(network + offset)}/{length}"
        return None

    def give_back(self, address: str) -> None:
        """It was not needed after all."""
        self._taken.discard(number(address) - self._first)

    def block(self, address: str) -> None:
        """It may not be handed out."""
        offset = number(address) - self._first
        if 0 <= offset < self._size:
            self._taken.add(offset)


def capacity(subnet: IPv4Network) -> int:
    """How many services and tasks a subnet can hold."""
    return max(0, subnet.num_addresses - _RESERVED)


def block_length(subnet: IPv4Network) -> int:
    """The prefix length of what is leased to a node at a time."""
    return min(32, max(32 - _LEASE_BITS, subnet.prefixlen + _LEASES_MIN_BITS))


def gateway(subnet: IPv4Network) -> IPv4Address:
    """The router's address: the first one."""
    return subnet.network_address + 1


def number(address: str) -> int:
    """A canonical IPv4 address as a number. (`ipaddress` does it too, ten times slower.)"""
    a, b, c, d = address.split(".")
    return (int(a) << 24) | (int(b) << 16) | (int(c) << 8) | int(d)


def text(address: int) -> str:
    """Inverse of `number`."""
    return f"{address >> 24}.{address >> 16 & 255}.{address >> 8 & 255}.{address & 255}"
