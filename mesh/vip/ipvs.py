"""The balancer that is the kernel's IPVS: one table of virtual services per router, changed by differences.

The table is read from the kernel at first sight, whenever the services to be there are those of the last call (so each
periodic repetition repairs what others broke), and when a change fails. Otherwise a change is computed from what was
left: it costs the same with one service and with ten thousand.

Order: services, backends and weights, then the rules that send connections to them, then what is no longer there.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from mesh.vip import ipvs_plan, ipvs_wire, maps, stale
from mesh.vip.balancer import end_connections
from mesh.vip.ipvs_plan import Operation, Service, ServiceId, Services
from mesh.vip.ipvs_wire import Command
from mesh.vip.namespace import Namespace, Netlink, visit
from mesh.vip.nft import VipError
from mesh.vip.plan import Backend, ObservedService, RouterPlan, VirtualService
from mesh.vip.rules import Edit, Held, Table
from mesh.vip.tables import Tables

_NETLINK_GENERIC = 16
_SYSCTLS_AT = Path("/proc/sys/net/ipv4/vs")
# Per namespace; the kernel's defaults are those of a machine that only balances (reference: behaviour matrix).
SYSCTLS = {
    "conntrack": "1",  # what IPVS balances is tracked: masquerade for hairpins, marks for the way back, refusals
    "expire_nodest_conn": "1",  # connections to a deleted backend end, and do not hang
    "expire_quiescent_template": "1",  # a drained backend gets no new connections from clients bound to it
    "conn_reuse_mode": "1",  # a client port that is used again may go to another backend
    "sloppy_tcp": "0",  # what is in the middle of a connection that is not known is refused
}


@dataclass(frozen=True, slots=True)
class _Known:
    cookie: tuple[int, int]
    wanted: tuple[VirtualService, ...]
    held: Services


class Ipvs:
    """Balancing by IPVS (see `ipvs_plan`)."""

    name = "ipvs"

    def __init__(self, tables: Tables, family: int) -> None:
        """`family` is the number of IPVS among the kernel's generic netlink families (see `probe`)."""
        self._tables = tables
        self._family = family
        self._known: dict[str, _Known] = {}
        # Routers whose stale connections are still to be ended, because the last attempt failed.
        self._recheck: set[str] = set()

    def sync(self, namespace: Namespace, router: RouterPlan) -> Counter[str]:
        """See `Balancer`."""
        path = router.netns
        services = maps.merged(router.services)
        # All nodes but this one: a number that differs from node to node by one.
        turn = sum(back.node_number for back in router.return_paths)
        table = ipvs_plan.table(router, services.values())

        def wanted(_held: Held | None, _news: bool) -> tuple[Table, list[Edit]]:
            return table, []

        with _Door(self._family) as door:
            changes = door.tune(ipvs_plan.idle_s(services.values()))
            for fresh in (False, True):
                held = self._look(namespace, router, door, fresh)
                target, errors = ipvs_plan.services(services.values(), held, turn)
                difference = ipvs_plan.difference(held, target)
                self._known.pop(path, None)
                try:
                    door.do(difference.before)
                    synced = self._tables.sync(path, namespace, table.maps, wanted)
                    door.do(difference.after)
                except OSError:
                    if fresh:
                        raise
                    continue  # it was not as it was left: read it
                break
        self._known[path] = _Known(namespace.cookie, router.services, target)
        changes += Counter({"vip service": len(difference.before) + len(difference.after)}) + synced.changes
        if synced.news or difference.after or path in self._recheck:
            self._recheck.add(path)
            ended = end_connections(namespace, stale.in_router(services), translated_only=False)
            self._recheck.discard(path)
            changes += Counter({"vip connection": ended})
        if errors:
            raise VipError("; ".join(errors))
        return changes

    def _look(self, namespace: Namespace, router: RouterPlan, door: _Door, fresh: bool) -> Services:
        """The services that are there."""
        known = self._known.get(router.netns)
        if fresh or known is None or known.cookie != namespace.cookie:
            return door.read()
        if known.wanted != router.services:
            return known.held
        found = door.read()
        return {id_: known.held[id_] if known.held.get(id_) == one else one for id_, one in found.items()}

    def observe(self, namespace: Namespace) -> tuple[ObservedService, ...]:
        """See `Balancer`."""
        held = namespace.table((ipvs_plan.MARKS,))
        if held is None:
            return ()
        vips = {int(mark): address for (address,), (mark,) in held.elements.get(ipvs_plan.MARKS.name, {}).items()}
        with _Door(self._family) as door:
            found = door.read()
        seen = []
        for id_, service in found.items():
            slots = maps.shares(Backend(_address(one.address), weight) for one, weight in service.weights.items())
            if not slots or (id_.mark and id_.mark not in vips):
                continue
            counts = {IPv4Address(address): count for address, count in slots.items()}
            if id_.mark:
                seen.append(ObservedService(IPv4Address(vips[id_.mark]), None, None, counts))
            else:
                protocol = maps.PROTOCOL_NAME[id_.protocol]
                seen.append(ObservedService(_address(id_.address), protocol, id_.port, counts))
        return tuple(seen)

    def remove(self, path: str, namespace: Namespace) -> Counter[str]:
        """See `Balancer`."""
        self.forget(path)
        changes = self._tables.remove(path, namespace)
        with _Door(self._family) as door:
            return changes + door.empty()

    def forget(self, path: str) -> None:
        """See `Balancer`."""
        self._known.pop(path, None)
        self._recheck.discard(path)
        self._tables.forget(path)


class _Door:
    """The IPVS table of the namespace of the running thread."""

    def __init__(self, family: int) -> None:
        self._family = family
        self._netlink = Netlink(_NETLINK_GENERIC)

    def __enter__(self) -> _Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def read(self) -> dict[ServiceId, Service]:
        """All services with their backends. Raises OSError."""
        found = {}
        for payload in self._netlink.dump(self._family, ipvs_wire.command(Command.GET_SERVICE)):
            id_, service = ipvs_wire.service(payload)
            backends = self._netlink.dump(self._family, ipvs_wire.of_backends(id_))
            weights = dict(ipvs_wire.backend(id_.family, one) for one in backends)
            found[id_] = Service(service.scheduler, service.flags, service.affinity_s, weights)
        return found

    def do(self, operations: list[Operation]) -> None:
        """Make changes in their order. Raises OSError for the first that failed, when all have been tried."""
        results = self._netlink.change([(self._family, 0, ipvs_wire.encode(one)) for one in operations])
        for number, operation in zip(results, operations, strict=True):
            if number:
                raise OSError(number, f"IPVS refuses {operation}: {os.strerror(number)}")

    def empty(self) -> Counter[str]:
        """Remove all services; returns how many there were."""
        count = len(self._netlink.dump(self._family, ipvs_wire.command(Command.GET_SERVICE)))
        if count:
            self._netlink.change([(self._family, 0, ipvs_wire.command(Command.FLUSH))])
        return +Counter({"vip service": count})

    def tune(self, idle_s: int | None) -> Counter[str]:
        """Set the namespace's switches and its time-out; returns how many were otherwise."""
        changed = 0
        for name, value in SYSCTLS.items():
            file = _SYSCTLS_AT / name
            if file.read_text().strip() != value:
                file.write_text(value)
                changed += 1
        if idle_s is not None:
            now = ipvs_wire.tcp_timeout(self._netlink.ask(self._family, ipvs_wire.command(Command.GET_CONFIG)))
            if now != idle_s:
                (number,) = self._netlink.change([(self._family, 0, ipvs_wire.set_tcp_timeout(idle_s))])
                if number:
                    raise OSError(number, f"cannot set the idle time-out of IPVS: {os.strerror(number)}")
                changed += 1
        return +Counter({"vip sysctl": changed})


def _address(packed: bytes) -> IPv4Address | IPv6Address:
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def probe(host_netns: str | None) -> int:
    """The number of the kernel's IPVS family; its module is loaded if need be. Raises VipError with the reason."""

    def look(_: Namespace) -> int:
        netlink = Netlink(_NETLINK_GENERIC)
        try:
            number = ipvs_wire.family_number(netlink.ask(ipvs_wire.CONTROLLER, ipvs_wire.ask_family(ipvs_wire.FAMILY)))
        finally:
            netlink.close()
        missing = [name for name in SYSCTLS if not (_SYSCTLS_AT / name).exists()]
        if missing:
            raise VipError(f"the kernel's IPVS has no {missing[0]} (net.ipv4.vs.{missing[0]})")
        return number

    try:
        return visit(host_netns, look)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise VipError("the kernel has no IPVS (module ip_vs)") from error
        raise VipError(f"the kernel's IPVS does not answer: {error.strerror}") from error
