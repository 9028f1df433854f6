"""Which tracked connections go to a backend or a port that is no longer there. Pure.

A connection keeps its translation as long as it is tracked: for UDP as long as the client sends, so a flow would stick
to a dead task for ever. A connection that is no longer tracked is balanced anew by its next packet: a UDP flow moves to
another backend, a TCP client meets a backend that does not know it and is reset, or is refused when there is none.
Draining backends (weight 0) keep theirs.

What is stale is read from the connections and the plan alone, not from what changed: so a process that was away while a
backend died finds its connections too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from mesh.vip.ingress import PORTS, PORTS6, PORTS_AT, PORTS_AT6
from mesh.vip.maps import PROTOCOL_NUMBER, ServiceKey, is_ipv6
from mesh.vip.plan import VirtualService
from mesh.vip.rules import Elements
from mesh.vip.wire import Connection

_ICMP, _UDP = frozenset({1, 58}), PROTOCOL_NUMBER["udp"]
# Where the uplinks of all routers lie, also of those that are gone (`overlay.names` hands them out).
UPLINKS = IPv4Network("169.254.0.0/17")
UPLINKS6 = IPv6Network("fd6d:6573:68::/48")

Judge = Callable[[Connection], bool]


@dataclass(frozen=True, slots=True)
class _Live:
    """Where connections to one service may be: (address, port), the port 0 where it is kept."""

    answerers: frozenset[tuple[int, int]]
    has_backend: bool  # for new connections


def in_router(service_of: Callable[[ServiceKey], VirtualService | None]) -> Judge:
    """Whether a connection tracked in a router is stale; `service_of` tells the service of a key."""
    known: dict[tuple[int, int, int], _Live | None] = {}  # for destinations that were met: there may be many services

    def live(to: tuple[int, int, int]) -> _Live | None:
        if to not in known:
            known[to] = _live(service_of(to) or service_of(to[:1]))
        return known[to]

    def judge(connection: Connection) -> bool:
        service = live((connection.destination, connection.protocol, connection.destination_port))
        if connection.answerer == connection.destination:
            # Balanced to nobody, at a time when there was nobody or no table: its flow must not miss the backends.
            return service is not None and service.has_backend and connection.protocol not in _ICMP
        if service is None:
            return True  # the balancer is the only one that translates destinations in a router
        answerer = connection.answerer
        return not {(answerer, connection.answerer_port), (answerer, 0)} & service.answerers

    return judge


def _live(service: VirtualService | None) -> _Live | None:
    if service is None:
        return None
    port = service.target_port or 0
    return _Live(
        frozenset((int(backend.address), port) for backend in service.backends),
        any(backend.weight > 0 for backend in service.backends),
    )


def in_host(ports: Mapping[str, Elements], own_addresses: Collection[int]) -> Judge:
    """Whether a connection tracked in the host is stale. `ports` are the elements of the host's maps of ports.

    A UDP flow to a port that was not published yet goes on to the host itself: it is stale as well. Such a TCP
    connection is not: a process of the host serves it.
    """
    everywhere = {4: ports.get(PORTS.name, {}), 6: ports.get(PORTS6.name, {})}
    at_address = {4: ports.get(PORTS_AT.name, {}), 6: ports.get(PORTS_AT6.name, {})}
    uplinks = [(int(net.network_address), int(net.broadcast_address)) for net in (UPLINKS, UPLINKS6)]

    def judge(connection: Connection) -> bool:
        version = 6 if is_ipv6(connection.answerer) else 4
        key = (connection.protocol, connection.destination_port)
        router = at_address[version].get((connection.destination, *key)) or everywhere[version].get(key)
        translated = connection.answerer != connection.destination
        if translated and any(first <= connection.answerer <= last for first, last in uplinks):
            return (connection.answerer,) != router
        return (
            router is not None
            and connection.protocol == _UDP
            and not translated
            and connection.destination in own_addresses
        )

    return judge
