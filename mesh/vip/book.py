"""The services of a router as they were last seen, and what a new list of them changes. Pure.

A plan comes as a whole, however small the change, and often with all its values made anew. So the values are
compared once (`recycled`, a microsecond per service), and from there on what is equal is the same object: what the old
and the new list have in common at both ends is passed over at once, and all further work is that of the change.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import compress, count
from operator import is_not
from typing import TypeVar

from mesh.vip import maps
from mesh.vip.maps import ServiceKey, is_ipv6
from mesh.vip.plan import Scheduler, VirtualService
from mesh.vip.rules import Key

T = TypeVar("T")
Services = tuple[VirtualService, ...]
# Of what is compared at once: so long that few are made, so short that the one that differs is soon found.
_SLICE = 256


@dataclass(frozen=True, slots=True)
class Change:
    """The keys whose services may have changed, and the addresses that came and went."""

    keys: frozenset[ServiceKey]
    came: frozenset[int]
    went: frozenset[int]


@dataclass(slots=True)
class Book:
    """What is known of the services of one router."""

    services: Services = ()
    by_key: dict[ServiceKey, Services] = field(default_factory=dict)
    addresses: Counter[int] = field(default_factory=Counter)  # never 0
    schedulers: Counter[Scheduler] = field(default_factory=Counter)
    idles_s: Counter[float] = field(default_factory=Counter)
    # `addresses` as elements of a set, those of IPv4 and those of IPv6.
    elements: tuple[dict[Key, Key], dict[Key, Key]] = field(default_factory=lambda: ({}, {}))

    def service(self, key: ServiceKey) -> VirtualService | None:
        """What the services of one key amount to."""
        found = self.by_key.get(key)
        return maps.merged(found)[key] if found is not None else None

    def merged(self) -> dict[ServiceKey, VirtualService]:
        """All services by their keys."""
        return maps.merged(self.services)

    def update(self, services: Services) -> Change:
        """Take over the new list."""
        gone, new = _difference(self.services, services)
        keys, before = set(), frozenset(int(one.address) for one in gone if int(one.address) in self.addresses)
        for one in gone:
            keys.add(self._remove(one))
        came = frozenset(int(one.address) for one in new) - self.addresses.keys() - before
        for one in new:
            keys.add(self._add(one))
        self.services = services
        return Change(frozenset(keys), came, frozenset(a for a in before if a not in self.addresses))

    def _remove(self, one: VirtualService) -> ServiceKey:
        key = maps.service_key(one)
        left = list(self.by_key[key])
        left.remove(one)
        if left:
            self.by_key[key] = tuple(left)
        else:
            del self.by_key[key]
        self._count(one, -1)
        return key

    def _add(self, one: VirtualService) -> ServiceKey:
        key = maps.service_key(one)
        self.by_key[key] = (*self.by_key.get(key, ()), one)
        self._count(one, 1)
        return key

    def _count(self, one: VirtualService, step: int) -> None:
        address = int(one.address)
        _step(self.addresses, address, step)
        elements = self.elements[is_ipv6(address)]
        if address in self.addresses:
            elements[address,] = ()
        else:
            del elements[address,]
        _step(self.schedulers, one.scheduler, step)
        _step(self.idles_s, one.idle_s, step)


def _step(of: Counter[T], what: T, step: int) -> None:
    of[what] += step
    if not of[what]:
        del of[what]


def recycled(old: Services, new: Services) -> Services:
    """The new list, with the old values where they are equal to the new ones."""
    if len(old) == len(new):
        others = [at for at in compress(count(), map(is_not, old, new)) if old[at] == new[at]]
        if not others:
            return new
        found = list(new)
        for at in others:
            found[at] = old[at]
        return tuple(found)
    known = {(int(one.address), one.protocol, one.port): one for one in old}
    before = (known.get((int(one.address), one.protocol, one.port)) for one in new)
    return tuple(was if was is not None and was == one else one for was, one in zip(before, new, strict=True))


def _difference(old: Services, new: Services) -> tuple[list[VirtualService], list[VirtualService]]:
    """(what is gone, what is new), each in its order."""
    start = _alike(old, new)
    old, new = old[start:], new[start:]
    end = _alike(old[::-1], new[::-1])
    gone, come = old[: len(old) - end], new[: len(new) - end]
    if len(gone) != len(come):
        return list(gone), list(come)
    pairs = [(before, after) for before, after in zip(gone, come, strict=True) if before is not after]
    pairs = [(before, after) for before, after in pairs if before != after]
    return [before for before, _ in pairs], [after for _, after in pairs]


def _alike(old: Services, new: Services) -> int:
    """How many are equal from the beginning; by slices, which are compared at the speed of memory."""
    at, most = 0, min(len(old), len(new))
    while at + _SLICE <= most and old[at : at + _SLICE] == new[at : at + _SLICE]:
        at += _SLICE
    while at < most and (old[at] is new[at] or old[at] == new[at]):
        at += 1
    return at


def longest_idle_s(book: Book, otherwise_s: float) -> float:
    """The longest time that a service of the router lets a connection be silent."""
    return max(book.idles_s, default=otherwise_s)
