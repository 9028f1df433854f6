"""The seam between the node's plan and what spreads connections in a router, and the nftables side of it.

Everything around the balancing (refusals, masquerade, return paths, published ports) is the same for all back ends and
lives in the router's nftables table; a back end adds its own part to that table, or programs something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Protocol

from mesh.vip import ingress, maps, stale
from mesh.vip.maps import Group, ServiceKey
from mesh.vip.namespace import Namespace
from mesh.vip.plan import ObservedService, RouterPlan
from mesh.vip.rules import Atom, Edit, Held, Table
from mesh.vip.tables import Tables


class Balancer(Protocol):
    """A back end. It is called inside the router's namespace; errors are OSError or VipError."""

    name: str

    def sync(self, namespace: Namespace, router: RouterPlan) -> Counter[str]:
        """Make the router's table and its virtual services as planned, and end connections to backends that are gone.

        Established connections to backends that are there live through it. Returns what it changed, by kind.
        """

    def observe(self, namespace: Namespace) -> tuple[ObservedService, ...]:
        """The virtual services as the kernel has them."""

    def remove(self, path: str, namespace: Namespace) -> Counter[str]:
        """Remove all of it. Returns what it changed."""

    def forget(self, path: str) -> None:
        """The router of that path is no longer ours to look after: remember nothing of it."""


class Nftables:
    """Balancing by maps in the router's table (see `maps`)."""

    name = "nftables"

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._groups: dict[str, dict[ServiceKey, Group]] = {}
        # Routers to look at once more: a packet may have slipped through to a removed backend while its connections
        # were ended, or the look failed.
        self._recheck: set[str] = set()

    def sync(self, namespace: Namespace, router: RouterPlan) -> Counter[str]:
        """See `Balancer`."""
        path = router.netns
        services = maps.merged(router.services)
        # All nodes but this one: a number that differs from node to node by one.
        turn = sum(back.node_number for back in router.return_paths)
        before: dict[ServiceKey, Group] = {}
        after: dict[ServiceKey, Group] = {}

        def wanted(held: Held | None, news: bool) -> tuple[Table, list[Edit]]:
            nonlocal before, after
            known = None if news else self._groups.get(path)
            if known is None:
                known = maps.read(held.elements) if held is not None else {}
            before, after = known, maps.groups(known, services, turn)
            return ingress.router_table(router) + maps.table(after), maps.edits(before, after)

        synced = self._tables.sync(path, namespace, (*ingress.ROUTER_MAPS, *maps.MAPS), wanted)
        self._groups[path] = after
        lost = synced.news or _lost_a_backend(before, after)
        if not lost and path not in self._recheck:
            return synced.changes
        self._recheck.add(path)
        ended = end_connections(namespace, stale.in_router(services), translated_only=not synced.news)
        if not lost and not ended:
            self._recheck.discard(path)
        return synced.changes + Counter({"vip connection": ended})

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
        self._groups.pop(path, None)
        self._recheck.discard(path)
        self._tables.forget(path)


def end_connections(namespace: Namespace, is_stale: stale.Judge, translated_only: bool) -> int:
    """Stop tracking what is stale; returns how many there were."""
    return namespace.forget([one for one in namespace.connections(translated_only) if is_stale(one)])


def _lost_a_backend(before: Mapping[ServiceKey, Group], after: Mapping[ServiceKey, Group]) -> bool:
    """Whether a backend is no longer there, not even to drain."""
    return any(
        _members(old) - (_members(after[key]) if key in after else frozenset())
        for key, old in before.items()
        if old is not after.get(key)
    )


def _members(group: Group) -> frozenset[tuple[int, int | None]]:
    service = group.made_of
    if service is None:
        return frozenset()
    return frozenset((int(backend.address), service.target_port) for backend in service.backends)


def _observed(key: ServiceKey, slots: Mapping[Atom, int]) -> ObservedService:
    addresses = maps.by_address(slots)
    if len(key) == 1:
        return ObservedService(IPv4Address(key[0]), None, None, addresses)
    address, protocol, port = key
    return ObservedService(IPv4Address(address), maps.PROTOCOL_NAME[int(protocol)], int(port), addresses)
