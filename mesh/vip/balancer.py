"""The seam between the node's plan and what spreads connections in a router, and the nftables side of it.

Everything around the balancing (refusals, masquerade, return paths, published ports) is the same for all back ends and
lives in the router's nftables table; a back end adds its own part to that table, or programs something else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mesh.vip import flowtable, ingress, maps, rules, stale
from mesh.vip.book import Book, Change, longest_idle_s
from mesh.vip.maps import Group, ServiceKey
from mesh.vip.namespace import Namespace
from mesh.vip.nft import Nft, Reservation, VipError
from mesh.vip.plan import DEFAULT_IDLE_S, ObservedService, RouterPlan
from mesh.vip.rules import Edit, Held, Table
from mesh.vip.tables import Tables

# How long a TCP connection may be silent before it is forgotten, in the namespace of the running thread.
_IDLE = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")

# Backends that answer connections, as numbers. None: all there are.
Answerers = frozenset[int] | None
NOBODY: frozenset[int] = frozenset()
# So many the kernel is asked for one by one: each question walks its table, and to read all of a router's connections
# takes as long as a few such walks when they are some thousands.
_MAX_ASKED = 4


class Balancer(Protocol):
    """A back end. It is called inside the router's namespace; errors are OSError or VipError."""

    name: str

    def sync(self, namespace: Namespace, router: RouterPlan) -> Counter[str]:
        """Make the router's table and its virtual services as planned, and end connections to backends that are gone.

        Established connections to backends that are there live through it. Returns what it changed, by kind.
        """

    def settled(self, path: str) -> bool:
        """Whether nothing of what was done to a router is to be looked at once more."""

    def observe(self, namespace: Namespace) -> tuple[ObservedService, ...]:
        """The virtual services as the kernel has them."""

    def remove(self, path: str, namespace: Namespace) -> Counter[str]:
        """Remove all of it. Returns what it changed."""

    def forget(self, path: str) -> None:
        """The router of that path is no longer ours to look after: remember nothing of it."""


@dataclass(slots=True)
class _Router:
    """What was last made of a router. `chains` counts the groups that use each; some have none (`with_spares`)."""

    book: Book
    groups: dict[ServiceKey, Group]
    chains: Counter[str]
    devices: tuple[str, ...] | None = None  # that its flowtable was given, those of them that were there


@dataclass(frozen=True, slots=True)
class _Step:
    """Groups before and after, of the services concerned, and all chains then in use."""

    before: dict[ServiceKey, Group]
    after: dict[ServiceKey, Group]
    chains: Counter[str]


class Nftables:
    """Balancing by maps in the router's table (see `maps`)."""

    name = "nftables"

    def __init__(self, tables: Tables, nft: Nft, fast: bool = False) -> None:
        """`fast`: the kernel has flowtables (see `flowtable`)."""
        self._tables = tables
        self._nft = nft
        self._fast = fast
        self._routers: dict[str, _Router] = {}
        # Backends whose connections are to be looked at once more, by router: a packet may have slipped through to one
        # while its connections were ended, or the look failed.
        self._recheck: dict[str, Answerers] = {}

    def sync(self, namespace: Namespace, router: RouterPlan) -> Counter[str]:
        """See `Balancer`. Raises Reservation when all is done, but by another scheduler than asked for."""
        path = router.netns
        whole = path not in self._routers  # also when something else failed the last time
        known = self._routers.pop(path, None) or _Router(Book(), {}, Counter())
        change = known.book.update(router.services)
        # All nodes but this one: a number that differs from node to node by one.
        turn = sum(back.node_number for back in router.return_paths)
        step = _Step({}, {}, Counter())
        fast = self._fast and flowtable.allows(longest_idle_s(known.book, DEFAULT_IDLE_S))

        def wanted(held: Held | None, news: bool) -> tuple[Table, list[Edit]]:
            nonlocal step, whole
            if whole := whole or news:
                step = _from_what_is_held(held, known, turn)
            else:
                step = _by_change(known, change, turn)
            around = ingress.router_table(router, known.book.elements, fast)
            return around + maps.table(step.chains), maps.edits(step.before, step.after)

        synced = self._tables.sync(path, namespace, (*ingress.ROUTER_MAPS, *maps.MAPS), wanted)
        _take_over(known, step, whole)
        self._routers[path] = known
        changes = synced.changes + self._tune(known.book) + self._end(namespace, path, known, step, whole)
        sentences = maps.complaints(router.services) if known.book.schedulers.keys() & {"lc", "wlc"} else []
        try:
            changes += self._hasten(namespace, router, known, fast, look=whole or not change.keys)
        except OSError as error:
            sentences.append(f"cannot name devices in the flowtable of {path}: {error.strerror}")
        if sentences:
            raise Reservation(sentences, changes)
        return changes

    def _hasten(self, namespace: Namespace, router: RouterPlan, known: _Router, fast: bool, look: bool) -> Counter[str]:
        """Name the router's devices in its flowtable; `look`: also if they are the same ones as before."""
        wanted = flowtable.devices(router) if fast else None
        if wanted is None or (wanted == known.devices and not look):
            known.devices = wanted
            return Counter()
        known.devices = None  # until it is done
        held = namespace.devices_of(flowtable.NAME)
        add, delete = flowtable.difference(wanted, held)
        add = [one for one in add if namespace.has_device(one)]
        transactions = namespace.change_devices(flowtable.NAME, add, delete)
        self._tables.changed_by_us(router.netns, namespace, transactions)
        known.devices = wanted
        return +Counter({"vip device": len(add) + len(delete)})

    def _end(self, namespace: Namespace, path: str, router: _Router, step: _Step, news: bool) -> Counter[str]:
        """End connections to backends that are gone, and send their clients elsewhere."""
        lost = None if news else _lost_backends(step.before, step.after)
        changes: Counter[str] = Counter()
        if silent := _silenced(step.before, step.after):
            changes["vip connection"] = move_unanswered(namespace, silent)
        if news or any(group.keep is not None for group in (*step.before.values(), *step.after.values())):
            changes["vip client"] = self._forget_clients(namespace, path, router.groups)
        again = lost == NOBODY and not step.before and not step.after  # a repetition, which is in no hurry
        if lost != NOBODY:
            self._recheck[path] = both(lost, self._recheck.get(path, NOBODY))
        elif not again or path not in self._recheck:
            return +changes
        is_stale = stale.in_router(router.book.service)
        ended = end_connections(namespace, is_stale, not news, self._recheck[path])
        if again and not ended:
            del self._recheck[path]
        changes["vip connection"] += ended
        return changes

    def _forget_clients(self, namespace: Namespace, path: str, groups: Mapping[ServiceKey, Group]) -> int:
        """Let clients go whose backend takes none any more; returns how many. Elements expire while we look."""
        count = 0
        for clients in maps.CLIENTS:
            for last in (False, True):
                gone = maps.forgotten(namespace.elements(clients), groups)
                if not gone:
                    break
                edit = Edit(clients, frozenset(gone), {})
                try:
                    self._nft.run(rules.emptied(clients) if last else rules.edited([edit]))
                except VipError:
                    if last:
                        raise
                    continue
                self._tables.changed_by_us(path, namespace, 1)
                count += len(gone)
                break
        return count

    def _tune(self, book: Book) -> Counter[str]:
        """Connections of the router may be silent as long as its most patient service says."""
        wanted = str(math.ceil(longest_idle_s(book, DEFAULT_IDLE_S)))
        if _IDLE.read_text().strip() == wanted:
            return Counter()
        _IDLE.write_text(wanted)
        return Counter({"vip sysctl": 1})

    def settled(self, path: str) -> bool:
        """See `Balancer`."""
        return path not in self._recheck

    def observe(self, namespace: Namespace) -> tuple[ObservedService, ...]:
        """See `Balancer`."""
        held = namespace.table(maps.MAPS)
        if held is None:
            return ()
        return tuple(_observed(key, slots) for key, slots in maps.targets(maps.read(held.elements)).items())

    def remove(self, path: str, namespace: Namespace) -> Counter[str]:
        """See `Balancer`."""
        self.forget(path)
        return self._tables.remove(path, namespace)

    def forget(self, path: str) -> None:
        """See `Balancer`."""
        self._routers.pop(path, None)
        self._recheck.pop(path, None)
        self._tables.forget(path)


def _from_what_is_held(held: Held | None, router: _Router, turn: int) -> _Step:
    before = maps.read(held.elements) if held is not None else {}
    after = maps.groups(before, router.book.merged(), turn)
    chains = Counter(dict.fromkeys((*router.chains, *(held.chains if held is not None else ())), 0))
    chains.update(maps.chain_names(after.values()))
    return _Step(before, after, maps.with_spares(chains))


def _by_change(router: _Router, change: Change, turn: int) -> _Step:
    before = {key: router.groups[key] for key in change.keys if key in router.groups}
    found = ((key, router.book.service(key)) for key in change.keys)
    after = maps.groups(before, {key: service for key, service in found if service is not None}, turn)
    chains = router.chains.copy()
    chains.subtract(maps.chain_names(before.values()))
    chains.update(maps.chain_names(after.values()))
    return _Step(before, after, maps.with_spares(chains))


def _take_over(router: _Router, step: _Step, whole: bool) -> None:
    if whole:
        router.groups = step.after
    else:
        for key in step.before.keys() - step.after.keys():
            del router.groups[key]
        router.groups.update(step.after)
    router.chains = step.chains


def end_connections(
    namespace: Namespace, is_stale: stale.Judge, translated_only: bool, answerers: Answerers = None
) -> int:
    """Stop tracking what is stale, among what `answerers` answer; returns how many there were."""
    return namespace.forget([one for one in namespace.connections(translated_only, answerers) if is_stale(one)])


def move_unanswered(namespace: Namespace, silent: frozenset[int]) -> int:
    """Stop tracking what these were asked and never answered; returns how many there were.

    A client that tries again does so from the same port, which is the same connection: it would be sent to who cannot
    answer until that one is given up.
    """
    asked = silent if len(silent) <= _MAX_ASKED else None
    found = namespace.connections(translated_only=True, answerers=asked)
    return namespace.forget([one for one in found if not one.answered and one.answerer in silent])


def both(some: Answerers, more: Answerers) -> Answerers:
    """All of both."""
    if some is None or more is None or len(some | more) > _MAX_ASKED:
        return None
    return some | more


def _lost_backends(before: Mapping[ServiceKey, Group], after: Mapping[ServiceKey, Group]) -> Answerers:
    """The backends that are no longer there, not even to drain."""
    lost: Answerers = NOBODY
    for key, old in before.items():
        if old is not after.get(key):
            gone = _members(old) - (_members(after[key]) if key in after else frozenset())
            lost = both(lost, frozenset(address for address, _ in gone))
    return lost


def _silenced(before: Mapping[ServiceKey, Group], after: Mapping[ServiceKey, Group]) -> frozenset[int]:
    """The backends whose nodes have just fallen silent."""
    found: set[int] = set()
    for key, new in after.items():
        if new is not (old := before.get(key)):
            found |= _silent(new) - (_silent(old) if old is not None else frozenset())
    return frozenset(found)


def _silent(group: Group) -> frozenset[int]:
    service = group.made_of
    return frozenset(int(one.address) for one in service.backends if one.silent) if service is not None else NOBODY


def _members(group: Group) -> frozenset[tuple[int, int | None]]:
    service = group.made_of
    if service is None:
        return frozenset()
    return frozenset((int(backend.address), service.target_port) for backend in service.backends)


def _observed(key: ServiceKey, slots: Mapping[int, int]) -> ObservedService:
    address, addresses = maps.as_address(int(key[0])), maps.by_address(slots)
    if len(key) == 1:
        return ObservedService(address, None, None, addresses)
    return ObservedService(address, maps.PROTOCOL_NAME[int(key[1])], int(key[2]), addresses)
