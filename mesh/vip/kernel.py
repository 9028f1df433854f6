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
from collections.abc import Callable
from ipaddress import IPv4Address

from mesh.vip import ingress, maps, stale
from mesh.vip.balancer import Balancer, Nftables, end_connections
from mesh.vip.ipvs import Ipvs, probe
from mesh.vip.namespace import Namespace, visit
from mesh.vip.nft import Nft, VipError, find
from mesh.vip.plan import Observed, ObservedService, Protocol, Report, RouterPlan, VipPlan
from mesh.vip.rules import Edit, Elements, Held, Key, Table
from mesh.vip.tables import Tables

_FAILURES = (OSError, VipError)
# Overrides the choice of the balancer, for trials and tests.
BALANCER_VARIABLE = "MESH_BALANCER"


class Kernel:
    """The balancers of one host. Holds nothing open between calls: a deleted namespace is gone at once."""

    def __init__(self, host_netns: str | None = None, nft: Nft | None = None, balancer: str | None = None) -> None:
        """`host_netns` is the path of the host's namespace; None: the one this process is in.

        `nft` runs the transactions; None: what the machine has. `balancer` is "ipvs", "nftables" or "auto" (IPVS where
        the kernel has it); None: what MESH_BALANCER says, or "auto". `balancer_reason` tells what came of it, for
        people. Raises VipError when nftables is not installed, or a demanded IPVS is not there.
        """
        self._host = host_netns
        self._nft = nft if nft is not None else find()
        self._tables = Tables(self._nft)
        demanded = balancer if balancer is not None else os.environ.get(BALANCER_VARIABLE, "")
        self.balancer, self.balancer_reason = _choose(self._tables, host_netns, demanded)
        self._routers: set[str] = set()
        self._ports: Elements | None = None  # as last applied; None: not yet

    def apply(self, plan: VipPlan) -> Report:
        """Make every router and the host as planned. What cannot be done is told, the rest is done."""
        report = Report()
        for router in plan.routers:
            self._attempt(report, f"balance in the router {router.netns}", self._router, router, report)
        if (table := ingress.host_table(plan)) is not None:
            report.errors += ingress.published(plan.published)[1]
            self._attempt(report, "publish ports", self._publish, table)
        self._nft.release()
        return report

    def prune(self, plan: VipPlan) -> Report:
        """Remove what is ours from routers that the plan no longer has, and from the host when it has none."""
        report = Report()
        for path in sorted(self._routers - {router.netns for router in plan.routers}):
            if os.path.exists(path):
                self._attempt(report, f"remove the balancer from {path}", self._empty, path)
            self._routers.discard(path)
            self.balancer.forget(path)
        if ingress.host_table(plan) is None:
            self._attempt(report, "remove the published ports", self._unpublish)
        self._nft.release()
        return report

    def observe(self) -> Observed:
        """What the kernel holds of the routers that were applied, and of the host. Raises OSError."""
        services: dict[str, tuple[ObservedService, ...]] = {}
        for path in sorted(self._routers):
            services[path] = visit(path, self.balancer.observe)
        held = visit(self._host, lambda namespace: namespace.table((ingress.PORTS,)))
        ports = held.elements.get(ingress.PORTS.name, {}) if held is not None else {}
        return Observed(services, dict(_published(*pair) for pair in ports.items()))

    def close(self) -> None:
        """Forget everything. What is in the kernel stays."""
        for path in (*self._routers, self._host):
            self._tables.forget(path)
        self._routers.clear()
        self._ports = None

    # --- routers ----------------------------------------------------------------------------------------------------

    def _router(self, router: RouterPlan, report: Report) -> Counter[str]:
        return visit(router.netns, lambda namespace: self._in_router(namespace, router, report))

    def _in_router(self, namespace: Namespace, router: RouterPlan, report: Report) -> Counter[str]:
        self._routers.add(router.netns)
        vxlan, uplink = map(namespace.device_index, (router.vxlan_device, router.uplink_device))
        wanted, held = ingress.routing(router, vxlan, uplink), namespace.routing()
        try:
            namespace.add_routing(ingress.in_order(wanted - held))
        except OSError as error:
            report.errors.append(f"cannot route in the router {router.netns}: {_reason(error)}")
        changes = self.balancer.sync(namespace, router)
        namespace.delete_routing(ingress.in_order(held - wanted))
        return changes + Counter({"vip route": len(wanted ^ held)})

    def _empty(self, path: str) -> Counter[str]:
        return visit(path, lambda namespace: self._in_unwanted_router(path, namespace))

    def _in_unwanted_router(self, path: str, namespace: Namespace) -> Counter[str]:
        changes = self.balancer.remove(path, namespace)
        held = namespace.routing()
        namespace.delete_routing(ingress.in_order(held))
        return changes + Counter({"vip route": len(held)})

    # --- the host ---------------------------------------------------------------------------------------------------

    def _publish(self, table: Table) -> Counter[str]:
        return visit(self._host, lambda namespace: self._in_host(namespace, table))

    def _in_host(self, namespace: Namespace, table: Table) -> Counter[str]:
        ports = table.elements[ingress.PORTS.name]

        def wanted(_held: Held | None, _news: bool) -> tuple[Table, list[Edit]]:
            return table, []

        synced = self._tables.sync(self._host, namespace, ingress.HOST_MAPS, wanted)
        changes = synced.changes
        if synced.news or ports != self._ports:
            self._ports = None  # until it is done
            changes = changes + self._end_in_host(namespace, ports)
            self._ports = ports
        return changes

    def _unpublish(self) -> Counter[str]:
        return visit(self._host, self._in_unwanted_host)

    def _in_unwanted_host(self, namespace: Namespace) -> Counter[str]:
        changes = self._tables.remove(self._host, namespace)
        self._ports = None
        return changes + (self._end_in_host(namespace, {}) if changes else Counter())

    def _end_in_host(self, namespace: Namespace, ports: Elements) -> Counter[str]:
        """A machine's own table of connections can be large: without UDP ports the translated ones are enough."""
        udp = any(key[0] == maps.PROTOCOL_NUMBER["udp"] for key in ports)
        is_stale = stale.in_host(ports, namespace.addresses() if udp else frozenset())
        return Counter({"vip connection": end_connections(namespace, is_stale, translated_only=not udp)})

    # --- both -------------------------------------------------------------------------------------------------------

    def _attempt(self, report: Report, what: str, work: Callable[..., Counter[str]], *arguments: object) -> None:
        try:
            report.changes += work(*arguments)
        except _FAILURES as error:
            report.errors.append(f"cannot {what}: {_reason(error)}")


def _choose(tables: Tables, host_netns: str | None, demanded: str) -> tuple[Balancer, str]:
    """The balancer, and why it is that one."""
    match demanded:
        case "nftables":
            return Nftables(tables), "nftables, as demanded"
        case "" | "auto" | "ipvs":
            pass
        case _:
            raise VipError(f'cannot balance by "{demanded}": use ipvs, nftables or auto')
    try:
        return Ipvs(tables, probe(host_netns)), "ipvs, which this kernel has"
    except VipError as error:
        if demanded == "ipvs":
            raise VipError(f"cannot balance by ipvs: {error}") from error
        return Nftables(tables), f"nftables: {error}"


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _published(key: Key, value: Key) -> tuple[tuple[Protocol, int], IPv4Address]:
    return (maps.PROTOCOL_NAME[int(key[0])], int(key[1])), IPv4Address(value[0])
