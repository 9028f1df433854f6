"""Makes a `VipPlan` true on this node: the nftables table and the routes of each router, and the host's table.

Level-triggered and idempotent: what the kernel holds is compared with the plan, and only what differs is changed, in
one transaction per namespace. A fresh process adopts what is right; what others broke (`nft flush ruleset`) is repaired
by the next apply. Established connections to backends that are in the plan live through all of it.

Order, so that traffic never meets a half-made path: routes and rules before the table that needs them, the table before
routes that it needs no longer, connections to removed backends last. Synchronous; all calls from one worker thread.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from mesh.vip import flowtable, ingress, maps, rules, stale
from mesh.vip.balancer import Balancer, Nftables, end_connections
from mesh.vip.book import Book, Services, recycled
from mesh.vip.ingress import HostRoute, RouteOrRule
from mesh.vip.ipvs import Ipvs, abandon, probe
from mesh.vip.namespace import Namespace, settle, visit, visit_new
from mesh.vip.nft import Nft, Reservation, VipError, find
from mesh.vip.plan import Observed, ObservedService, Report, RouterPlan, VipPlan
from mesh.vip.rules import Edit, Elements, Held, Table
from mesh.vip.tables import Tables

_FAILURES = (OSError, VipError)
# Overrides the choice of the balancer, for trials and tests.
BALANCER_VARIABLE = "MESH_BALANCER"


@dataclass(slots=True)
class _Ways:
    """The routes and rules of a router as they were left: `fixed`, and one route for each address of the book."""

    cookie: tuple[int, int]
    made_of: tuple[object, ...]  # what `fixed` follows from
    own: frozenset[int]  # the router's own addresses, which need none
    fixed: frozenset[RouteOrRule]
    book: Book


class Kernel:
    """The balancers of one host. Holds nothing open between calls: a deleted namespace is gone at once."""

    def __init__(
        self,
        host_netns: str | None = None,
        nft: Nft | None = None,
        balancer: str | None = None,
        fast: bool | None = None,
    ) -> None:
        """`host_netns` is the path of the host's namespace; None: the one this process is in.

        `nft` runs the transactions; None: what the machine has. `balancer` is "ipvs", "nftables" or "auto" (IPVS where
        the kernel has it); None: what MESH_BALANCER says, or "auto". `fast`: whether nftables uses a flowtable; None:
        where the kernel has it. `balancer_reason` tells what came of it, for people. Raises VipError when nftables is
        not installed, or a demanded IPVS is not there.
        """
        self._host = host_netns
        self._nft = nft if nft is not None else find()
        self._tables = Tables(self._nft)
        demanded = balancer if balancer is not None else os.environ.get(BALANCER_VARIABLE, "")
        self.balancer, self.balancer_reason = _choose(self._tables, self._nft, host_netns, demanded, fast)
        self._routers: set[str] = set()
        self._ways: dict[str, _Ways] = {}
        self._services: dict[str, Services] = {}  # of each router, as last seen
        self._ports: dict[str, Elements] | None = None  # as last applied; None: not yet
        self._upgraded: set[str | None] = set()  # where nothing of an earlier version is left
        self._made: dict[str, RouterPlan] = {}  # as they were applied without a failure
        self._hosted: tuple[object, ...] | None = None  # likewise, what the host's table and routes are made of

    def apply(self, plan: VipPlan, whole: bool = True) -> Report:
        """Make every router and the host as planned. What cannot be done is told, the rest is done.

        Unless it is to be done as a `whole`, what is planned as it was applied last is not looked at.
        """
        report = Report()
        for router in plan.routers:
            path = router.netns
            if not whole and self._made.get(path) == router and self.balancer.settled(path):
                continue
            self._made.pop(path, None)
            errors = len(report.errors)
            self._attempt(report, f"balance in the router {path}", self._router, router, report)
            if len(report.errors) == errors:
                self._made[path] = router
        hosted = _of_host(plan)
        if (whole or hosted != self._hosted) and (table := ingress.host_table(plan)) is not None:
            self._hosted = None
            clashes = ingress.published(plan.published)[1]
            report.errors += clashes
            done = self._attempt(report, "publish ports", self._publish, plan, table)
            self._hosted = hosted if done and not clashes else None
        return report

    def prune(self, plan: VipPlan, whole: bool = True) -> Report:
        """Remove what is ours from routers that the plan no longer has, and from the host when it has none."""
        report = Report()
        wanted = {router.netns for router in plan.routers}
        places: list[str | None] = [self._host, *sorted(wanted)]
        for place in places:
            if place not in self._upgraded:
                self._attempt(report, f"remove the table of an earlier version from {place}", self._upgrade, place)
        self._upgraded.intersection_update(places)
        for path in sorted(self._routers - wanted):
            if os.path.exists(path):
                self._attempt(report, f"remove the balancer from {path}", self._empty, path)
            self._routers.discard(path)
            self._ways.pop(path, None)
            self._services.pop(path, None)
            self._made.pop(path, None)
            self.balancer.forget(path)
        if (whole or self._hosted != _of_host(plan)) and ingress.host_table(plan) is None:
            self._hosted = None
            if self._attempt(report, "remove the published ports", self._unpublish):
                self._hosted = _of_host(plan)
        if report.changes:
            settle()  # the namespaces may be deleted next
        return report

    def observe(self) -> Observed:
        """What the kernel holds of the routers that were applied, and of the host. Raises OSError."""
        services: dict[str, tuple[ObservedService, ...]] = {}
        for path in sorted(self._routers):
            services[path] = visit(path, self.balancer.observe)
        held = visit(self._host, lambda namespace: namespace.table(ingress.PORT_MAPS))
        return ingress.observed(services, held.elements if held is not None else {})

    def close(self) -> None:
        """Forget everything. What is in the kernel stays."""
        for path in (*self._routers, self._host):
            self._tables.forget(path)
        self._routers.clear()
        self._ways.clear()
        self._services.clear()
        self._made.clear()
        self._ports = self._hosted = None

    # --- routers ----------------------------------------------------------------------------------------------------

    def _router(self, router: RouterPlan, report: Report) -> Counter[str]:
        return visit(router.netns, lambda namespace: self._in_router(namespace, router, report), self._nft.release)

    def _in_router(self, namespace: Namespace, router: RouterPlan, report: Report) -> Counter[str]:
        self._routers.add(router.netns)
        services = recycled(self._services.get(router.netns, ()), router.services)
        self._services[router.netns] = services
        router = replace(router, services=services)
        is_known = router.netns in self._ways
        ways, add, delete = self._difference(namespace, router)
        try:
            namespace.add_routing(ingress.in_order(add))
        except OSError as error:
            ways = None  # look again
            report.errors.append(f"cannot route in the router {router.netns}: {_reason(error)}")
        try:
            changes = self.balancer.sync(namespace, router)
        except Reservation as reservation:
            changes = reservation.changes
            report.errors += reservation.sentences
        if not is_known and not isinstance(self.balancer, Ipvs):
            changes += abandon()
        namespace.delete_routing(ingress.in_order(delete))
        if ways is not None:
            self._ways[router.netns] = ways
        return changes + Counter({"vip route": len(add) + len(delete)})

    def _difference(
        self, namespace: Namespace, router: RouterPlan
    ) -> tuple[_Ways | None, frozenset[RouteOrRule], frozenset[RouteOrRule]]:
        """(what there will be, routes and rules to add, those to delete).

        The kernel is read when there is nothing to do by what we know: so each repetition of a plan repairs what others
        broke, and a change costs the same with one service and with ten thousand.
        """
        vxlan, uplink = map(namespace.device_index, (router.vxlan_device, router.uplink_device))
        own = ingress.uplink_addresses(router)
        made_of = vxlan, uplink, replace(router, services=(), local_tasks=(), task_devices=())
        known = self._ways.pop(router.netns, None)
        if known is None or known.cookie != namespace.cookie or known.own != own:
            known = _Ways(namespace.cookie, (), own, frozenset(), Book())
        change, before = known.book.update(router.services), known.fixed
        is_known = bool(known.made_of)
        fixed = before if known.made_of == made_of else ingress.ways_back(router, vxlan, uplink)
        known.fixed, known.made_of = fixed, made_of
        if is_known and (change.came or change.went or change.keys or fixed != before):
            came, went = ({ingress.LocalRoute(a) for a in some - own} for some in (change.came, change.went))
            return known, (fixed - before) | came, (before - fixed) | went
        wanted = fixed | {ingress.LocalRoute(address) for address in known.book.addresses.keys() - own}
        held = namespace.routing()
        return known, wanted - held, held - wanted

    def _upgrade(self, place: str | None) -> Counter[str]:
        """By now our table is there; until then that of the earlier version balances on."""

        def look(namespace: Namespace) -> Counter[str]:
            if not namespace.has_former_table(ingress.SET_OF_ALL):
                return Counter()
            self._nft.run(rules.removal_of_former())
            return Counter({"vip table": 1})

        changes = visit(place, look, self._nft.release)
        self._upgraded.add(place)
        return changes

    def _empty(self, path: str) -> Counter[str]:
        return visit(path, lambda namespace: self._in_unwanted_router(path, namespace), self._nft.release)

    def _in_unwanted_router(self, path: str, namespace: Namespace) -> Counter[str]:
        changes = self.balancer.remove(path, namespace)
        held = namespace.routing()
        namespace.delete_routing(ingress.in_order(held))
        return changes + Counter({"vip route": len(held)})

    # --- the host ---------------------------------------------------------------------------------------------------

    def _publish(self, plan: VipPlan, table: Table) -> Counter[str]:
        return visit(self._host, lambda namespace: self._in_host(namespace, plan, table), self._nft.release)

    def _in_host(self, namespace: Namespace, plan: VipPlan, table: Table) -> Counter[str]:
        ports = {one.name: table.elements[one.name] for one in ingress.PORT_MAPS}

        def wanted(_held: Held | None, _news: bool) -> tuple[Table, list[Edit]]:
            return table, []

        devices = {p.uplink_device for p in plan.published if p.router_address6 is not None}
        held = namespace.routing()
        routes = ingress.host_routing(map(namespace.device_index, devices))
        ways = ingress.host_routes(plan.routers)
        taken = namespace.ways_of_others([way.subnet.network_address for way in ways])
        free = (way for way in ways if way.subnet.network_address not in taken)
        routes |= {way for way in free if way in held or self._is_free(namespace, way)}
        namespace.add_routing(ingress.in_order(routes - held))
        synced = self._tables.sync(self._host, namespace, ingress.HOST_MAPS, wanted)
        namespace.delete_routing(ingress.in_order(held - routes))
        changes = synced.changes + Counter({"vip route": len(routes ^ held)})
        if synced.news or ports != self._ports:
            self._ports = None  # until it is done
            changes = changes + self._end_in_host(namespace, ports)
            self._ports = ports
        return changes

    def _is_free(self, namespace: Namespace, route: HostRoute) -> bool:
        """Whether the host has no way of its own to the addresses of a network: theirs come first."""
        return namespace.prefix_to(route.subnet.network_address) == 0

    def _unpublish(self) -> Counter[str]:
        return visit(self._host, self._in_unwanted_host, self._nft.release)

    def _in_unwanted_host(self, namespace: Namespace) -> Counter[str]:
        changes = self._tables.remove(self._host, namespace)
        held = namespace.routing()
        namespace.delete_routing(ingress.in_order(held))
        self._ports = None
        changes += Counter({"vip route": len(held)})
        return changes + (self._end_in_host(namespace, {}) if changes else Counter())

    def _end_in_host(self, namespace: Namespace, ports: Mapping[str, Elements]) -> Counter[str]:
        """A machine's own table of connections can be large: without UDP ports the translated ones are enough."""
        udp = any(key[-2] == maps.PROTOCOL_NUMBER["udp"] for some in ports.values() for key in some)
        is_stale = stale.in_host(ports, namespace.addresses() if udp else frozenset())
        return Counter({"vip connection": end_connections(namespace, is_stale, translated_only=not udp)})

    # --- both -------------------------------------------------------------------------------------------------------

    def _attempt(self, report: Report, what: str, work: Callable[..., Counter[str]], *arguments: object) -> bool:
        try:
            report.changes += work(*arguments)
        except _FAILURES as error:
            report.errors.append(f"cannot {what}: {_reason(error)}")
            return False
        return True


def _of_host(plan: VipPlan) -> tuple[object, ...]:
    """All that the host's table and routes are made of: the ports, and of each router its networks and its uplink."""
    ways = ((r.netns, r.subnet, r.uplink_device, r.uplink_address, r.subnet6, r.uplink_address6) for r in plan.routers)
    return plan.published, *ways


def _choose(tables: Tables, nft: Nft, host_netns: str | None, demanded: str, fast: bool | None) -> tuple[Balancer, str]:
    """The balancer, and why it is that one."""
    match demanded:
        case "nftables":
            return _nftables(tables, nft, fast, "nftables, as demanded")
        case "" | "auto" | "ipvs":
            pass
        case _:
            raise VipError(f'cannot balance by "{demanded}": use ipvs, nftables or auto')
    try:
        return Ipvs(tables, probe(host_netns)), "ipvs, which this kernel has"
    except VipError as error:
        if demanded == "ipvs":
            raise VipError(f"cannot balance by ipvs: {error}") from error
        return _nftables(tables, nft, fast, f"nftables: {error}")


def _nftables(tables: Tables, nft: Nft, fast: bool | None, reason: str) -> tuple[Nftables, str]:
    if fast is None:
        lack = flowtable_lack()
        fast, reason = not lack, f"{reason}; {lack or 'established connections pass by a flowtable'}"
    return Nftables(tables, nft, fast), reason


@cache
def flowtable_lack() -> str:
    """Why this kernel has no flowtable; "" when it has. It is tried, once, in a namespace that is gone afterwards."""

    def attempt() -> None:
        for text in flowtable.TRIALS:
            nft.run(text)

    try:
        nft = find()
        visit_new(attempt, nft.release)
    except _FAILURES as error:
        return f"without a flowtable, which this kernel does not make ({_reason(error)})"
    return ""


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
