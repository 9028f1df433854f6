"""Published ports: fixed ones as asked, automatic ones from a range, none twice. Pure.

A port that is published on every node (mode "ingress") belongs to one service alone. Several services may have the
same port in mode "host": the scheduler keeps their tasks on different nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from msgspec.structs import replace

from control.allocator.pools import FIRST_AUTOMATIC_PORT, LAST_AUTOMATIC_PORT, Numbers
from control.model import PortSpec, Protocol, Service


class PortError(Exception):
    """A service cannot have its ports. One sentence."""


class Ports:
    """The ports of all services, for one decision."""

    def __init__(self, services: Collection[Service]) -> None:
        self._holders: dict[tuple[Protocol, int], dict[str, PortSpec]] = defaultdict(dict)  # then by service id
        self._names = {service.id: service.spec.name for service in services}
        asked: dict[Protocol, set[int]] = defaultdict(set)
        for service in services:
            for port in service.ports:
                self._hold(service, port)
            for port in (*service.ports, *service.spec.ports):
                asked[port.protocol].add(port.published)
        self._asked = asked
        self._automatic: dict[Protocol, Numbers] = {}

    def give(self, service: Service) -> tuple[PortSpec, ...]:
        """All ports of a service, those it has already first of all. Raises PortError."""
        kept = _Kept(service.ports)
        given = tuple(self._one(service, port, kept) for port in service.spec.ports)
        for port in given:
            self._hold(service, port)
        return given

    def _one(self, service: Service, port: PortSpec, kept: _Kept) -> PortSpec:
        if port.published:
            owner = self._owner(service, port) if port not in service.ports else None
            if owner is not None:
                name = f"{port.published}" if port.protocol == "tcp" else f"{port.published}/{port.protocol}"
                raise PortError(
                    f'cannot publish port {name} of service "{service.spec.name}": already used by "{owner}"'
                )
            return port
        published = kept.automatic(port) or self._next(port.protocol)
        if published is None:
            raise PortError(
                f'cannot publish a port of service "{service.spec.name}": all automatic ports '
                f"({FIRST_AUTOMATIC_PORT} to {LAST_AUTOMATIC_PORT}/{port.protocol}) are in use"
            )
        return replace(port, published=published)

    def _hold(self, service: Service, port: PortSpec) -> None:
        self._holders[port.protocol, port.published][service.id] = port

    def _owner(self, service: Service, port: PortSpec) -> str | None:
        """Another service that has the port, and in such a mode that two cannot have it."""
        for holder, held in self._holders.get((port.protocol, port.published), {}).items():
            if holder != service.id and "ingress" in (port.mode, held.mode):
                return self._names[holder]
        return None

    def _next(self, protocol: Protocol) -> int | None:
        pool = self._automatic.get(protocol)
        if pool is None:
            pool = Numbers(FIRST_AUTOMATIC_PORT, LAST_AUTOMATIC_PORT, self._asked[protocol])
            self._automatic[protocol] = pool
        return pool.take()


class _Kept:
    """The automatic ports that a service has, each to be used once."""

    def __init__(self, ports: Iterable[PortSpec]) -> None:
        self._left: dict[tuple[Protocol, int, str], list[int]] = defaultdict(list)
        for port in ports:
            if FIRST_AUTOMATIC_PORT <= port.published <= LAST_AUTOMATIC_PORT:
                self._left[port.protocol, port.target, port.mode].append(port.published)

    def automatic(self, port: PortSpec) -> int | None:
        left = self._left.get((port.protocol, port.target, port.mode))
        return left.pop(0) if left else None
