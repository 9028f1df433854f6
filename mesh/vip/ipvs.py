"""The balancer that is the kernel's IPVS: one table of virtual services per router, changed by differences.

The table is read from the kernel at first sight, whenever the services to be there are those of the last call (so each
periodic repetition repairs what others broke), and when a change fails. Otherwise a change is computed from what was
left: it costs the same with one service and with ten thousand.

Order: services, backends and weights, then the rules that send connections to them, then what is no longer there.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from mesh.vip import ingress, ipvs_plan, ipvs_wire, maps, rules, stale
from mesh.vip.balancer import NOBODY, Answerers, both, end_connections
from mesh.vip.book import Book, longest_idle_s
from mesh.vip.ipvs_plan import DeleteBackend, Difference, Operation, Service, ServiceId, Services, service_id
from mesh.vip.ipvs_wire import Command
from mesh.vip.maps import ServiceKey
from mesh.vip.namespace import Namespace, Netlink, visit
from mesh.vip.nft import Reservation, VipError
from mesh.vip.plan import DEFAULT_IDLE_S, ObservedService, RouterPlan, VirtualService
from mesh.vip.rules import Edit, Elements, Held, Table
from mesh.vip.tables import Synced, Tables

_NETLINK_GENERIC = 16
_SYSCTLS_AT = Path("/proc/sys/net/ipv4/vs")
_TABLE, _TABLE_HEADER_LINES = Path("/proc/thread-self/net/ip_vs"), 3
_EXPIRE = "expire_nodest_conn"
# Per namespace; the kernel's defaults are those of a machine that only balances (reference: behaviour matrix).
SYSCTLS = {
    "conntrack": "1",  # what IPVS balances is tracked: masquerade for hairpins, marks for the way back, refusals
    _EXPIRE: "1",  # connections to a deleted backend end, and do not hang
    "expire_quiescent_template": "1",  # a drained backend gets no new connections from clients bound to it
    "conn_reuse_mode": "1",  # a client port that is used again may go to another backend
    "sloppy_tcp": "0",  # what is in the middle of a connection that is not known is refused
}


@dataclass(slots=True)
class _Router:
    """What was last made of a router."""

    book: Book = field(default_factory=Book)
    cookie: tuple[int, int] = (0, 0)
    services: dict[ServiceId, Service] = field(default_factory=dict)


class Ipvs:
    """Balancing by IPVS (see `ipvs_plan`)."""

    name = "ipvs"

    def __init__(self, tables: Tables, family: int) -> None:
        """`family` is the number of IPVS among the kernel's generic netlink families (see `probe`)."""
        self._tables = tables
        self._family = family
        self._routers: dict[str, _Router] = {}
        # Backends whose connections are still to be ended, by router, because the last attempt failed.
        self._recheck: dict[str, Answerers] = {}

    def sync(self, namespace: Namespace, router: RouterPlan) -> Counter[str]:
        """See `Balancer`. Raises Reservation when all is done but for services whose marks meet."""
        path = router.netns
        known = self._routers.pop(path, None) or _Router()
        change = known.book.update(router.services)
        meeting = ipvs_plan.meeting(known.book.by_key) if router.subnet6 is not None else frozenset()
        fresh = bool(meeting) or known.cookie != namespace.cookie or not change.keys
        known.cookie = namespace.cookie
        with Door(self._family) as door:
            changes = door.tune(math.ceil(longest_idle_s(known.book, DEFAULT_IDLE_S)))
            try:
                synced, step, gone = self._step(namespace, router, known, door, None if fresh else change.keys)
            except OSError:
                if fresh:
                    raise
                # It was not as it was left: read it.
                synced, step, gone = self._step(namespace, router, known, door, None)
        self._routers[path] = known
        changes += Counter({"vip service": len(step.before) + len(step.after)}) + synced.changes
        lost = None if synced.news else gone
        if lost != NOBODY or path in self._recheck:
            self._recheck[path] = answerers = both(lost, self._recheck.get(path, NOBODY))
            ended = end_connections(namespace, stale.in_router(known.book.service), False, answerers)
            del self._recheck[path]
            changes += Counter({"vip connection": ended})
        if meeting:
            raise Reservation([_complaint(key) for key in sorted(meeting)], changes)
        return changes

    def _step(
        self, namespace: Namespace, router: RouterPlan, known: _Router, door: Door, keys: frozenset[ServiceKey] | None
    ) -> tuple[Synced, Difference, Answerers]:
        """Change what concerns the services of some keys; None: read what is there, and change whatever differs.

        Returns the backends that went, besides.
        """
        book, before = known.book, known.services
        # All nodes but this one: a number that differs from node to node by one.
        turn = sum(back.node_number for back in router.return_paths)
        some = _services(book, keys)
        wanted = {service_id(key): ipvs_plan.service(one, turn) for key, one in some.items()}
        held = door.read() if keys is None else {id_: before[id_] for id_ in map(service_id, keys) if id_ in before}
        step, gone = ipvs_plan.difference(held, wanted), _lost_backends(held, wanted)

        def table(there: Held | None, news: bool) -> tuple[Table, list[Edit]]:
            concerned = None if news else keys
            elements = ipvs_plan.elements((_services(book, None) if concerned is None else some).values())
            return ipvs_plan.table(router, book.elements), _edits(there, elements, concerned)

        with contextlib.ExitStack() as stack:
            if any(isinstance(one, DeleteBackend) for one in step.before):
                stack.enter_context(_connections_waiting())
            door.do(step.before)
        synced = self._tables.sync(router.netns, namespace, (*ingress.ROUTER_MAPS, *ipvs_plan.MAPS), table)
        door.do(step.after)
        if keys is None:
            known.services = wanted
        else:
            for id_ in held:
                del before[id_]
            before.update(wanted)
        return synced, step, gone

    def settled(self, path: str) -> bool:
        """See `Balancer`."""
        return path not in self._recheck

    def observe(self, namespace: Namespace) -> tuple[ObservedService, ...]:
        """See `Balancer`."""
        held = namespace.table((ipvs_plan.MARKS, ipvs_plan.MARKS6))
        if held is None:
            return ()
        addresses = {
            int(number): int(address)
            for of in (ipvs_plan.MARKS, ipvs_plan.MARKS6)
            for (address,), (number,) in held.elements.get(of.name, {}).items()
        }
        with Door(self._family) as door:
            found = door.read()
        seen = []
        for id_, service in found.items():
            slots = {ip_address(one.address): weight for one, weight in service.weights.items() if weight > 0}
            if not slots:
                continue
            if not id_.mark:
                protocol = maps.PROTOCOL_NAME[id_.protocol]
                seen.append(ObservedService(ip_address(id_.address), protocol, id_.port, slots))
            elif id_.mark in addresses:
                seen.append(ObservedService(maps.as_address(addresses[id_.mark]), None, None, slots))
        return tuple(seen)

    def remove(self, path: str, namespace: Namespace) -> Counter[str]:
        """See `Balancer`."""
        self.forget(path)
        changes = self._tables.remove(path, namespace)
        with Door(self._family) as door:
            return changes + door.empty()

    def forget(self, path: str) -> None:
        """See `Balancer`."""
        self._routers.pop(path, None)
        self._recheck.pop(path, None)
        self._tables.forget(path)


def _services(book: Book, keys: Collection[ServiceKey] | None) -> dict[ServiceKey, VirtualService]:
    """The services of some keys, or all that IPVS can hold."""
    if keys is None:
        meeting = ipvs_plan.meeting(book.by_key)
        return {key: one for key, one in book.merged().items() if key not in meeting}
    found = ((key, book.service(key)) for key in keys)
    return {key: one for key, one in found if one is not None}


def _lost_backends(held: Services, wanted: Services) -> Answerers:
    """The backends that are no longer there, not even to drain."""
    lost: Answerers = NOBODY
    for id_, one in held.items():
        left = wanted[id_].weights if id_ in wanted else {}
        gone = frozenset(int.from_bytes(each.address, "big") for each in one.weights if each not in left)
        lost = both(lost, gone)
    return lost


@contextlib.contextmanager
def _connections_waiting() -> Iterator[None]:
    """Connections to a backend that is deleted wait until it is there again, and are not ended."""
    switch = _SYSCTLS_AT / _EXPIRE
    switch.write_text("0")
    try:
        yield
    finally:
        switch.write_text(SYSCTLS[_EXPIRE])


def _complaint(key: ServiceKey) -> str:
    return (
        f"cannot balance {maps.as_address(int(key[0]))} by ipvs: another address of the network ends with the same bits"
    )


def _edits(there: Held | None, wanted: Mapping[str, Elements], keys: Collection[ServiceKey] | None) -> list[Edit]:
    """What leads to the wanted elements; only those of `keys` matter, where they are given."""
    edits = []
    for of in ipvs_plan.MAPS:
        held = there.elements.get(of.name, {}) if there is not None else {}
        if keys is not None:
            held = {key: held[key] for key in keys if key in held}
        edits.append(rules.edit(of, held, wanted[of.name]))
    return edits


class Door:
    """The IPVS table of the namespace of the running thread. Close it before leaving."""

    def __init__(self, family: int) -> None:
        """`family` as `probe` found it. Raises OSError."""
        self._family = family
        self._netlink = Netlink(_NETLINK_GENERIC)

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def read(self) -> dict[ServiceId, Service]:
        """All services with their backends. Raises OSError."""
        found = {}
        for payload in self._netlink.dump(self._family, ipvs_wire.command(Command.GET_SERVICE)):
            id_, service = ipvs_wire.service(payload)
            backends = self._netlink.dump(self._family, ipvs_wire.of_backends(id_))
            # The kernel tells the last one first.
            weights = dict(ipvs_wire.backend(id_.family, one) for one in reversed(backends))
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

    def idle_s(self) -> int:
        """After how long an idle TCP connection ends."""
        return ipvs_wire.tcp_timeout(self._netlink.ask(self._family, ipvs_wire.command(Command.GET_CONFIG)))

    def tune(self, idle_s: int) -> Counter[str]:
        """Set the namespace's switches and its time-out; returns how many were otherwise."""
        changed = 0
        for name, value in SYSCTLS.items():
            file = _SYSCTLS_AT / name
            if file.read_text().strip() != value:
                file.write_text(value)
                changed += 1
        if self.idle_s() != idle_s:
            (number,) = self._netlink.change([(self._family, 0, ipvs_wire.set_tcp_timeout(idle_s))])
            if number:
                raise OSError(number, f"cannot set the idle time-out of IPVS: {os.strerror(number)}")
            changed += 1
        return +Counter({"vip sysctl": changed})


def abandon() -> Counter[str]:
    """Remove what IPVS holds in the namespace of the running thread, where another balancer takes over.

    Its connections end. Costs nothing where there is nothing. Raises OSError.
    """
    try:
        if len(_TABLE.read_text().splitlines()) <= _TABLE_HEADER_LINES:
            return Counter()
    except FileNotFoundError:
        return Counter()
    with Door(_family()) as door:
        return door.empty()


def _family() -> int:
    netlink = Netlink(_NETLINK_GENERIC)
    try:
        return ipvs_wire.family_number(netlink.ask(ipvs_wire.CONTROLLER, ipvs_wire.ask_family(ipvs_wire.FAMILY)))
    finally:
        netlink.close()


def probe(host_netns: str | None) -> int:
    """The number of the kernel's IPVS family; its module is loaded if need be. Raises VipError with the reason."""

    def look(_: Namespace) -> int:
        number = _family()
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
