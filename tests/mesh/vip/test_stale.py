"""Which tracked connections are over, judged by the plan alone."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from mesh.vip import maps, stale
from mesh.vip.plan import Backend, VirtualService
from mesh.vip.wire import Connection

VIP, UPLINK, TASK, DRAINING, GONE, DOWN = (
    IPv4Address(a) for a in ("10.1.0.200", "169.254.0.2", "10.1.0.11", "10.1.0.12", "10.1.0.13", "10.1.0.201")
)
HOST, WORLD, OTHER_ROUTER = (IPv4Address(a) for a in ("192.0.2.1", "198.51.100.2", "169.254.0.6"))
BACKENDS = (Backend(TASK), Backend(DRAINING, 0))
SERVICES = maps.merged(
    [
        VirtualService(VIP, None, None, None, BACKENDS),
        VirtualService(UPLINK, "tcp", 8080, 80, BACKENDS),
        VirtualService(DOWN, None, None, None, (Backend(DRAINING, 0),)),
    ]
)
TCP, UDP, ICMP = 6, 17, 1


def connection(
    protocol: int, to: IPv4Address, port: int, answerer: IPv4Address, answer_port: int | None = None
) -> Connection:
    return Connection(protocol, int(to), port, int(answerer), port if answer_port is None else answer_port, b"")


@pytest.mark.parametrize(
    ("one", "over"),
    [
        (connection(TCP, VIP, 80, TASK), False),
        (connection(UDP, VIP, 53, TASK), False),
        (connection(TCP, VIP, 80, DRAINING), False),
        (connection(TCP, VIP, 80, GONE), True),
        (connection(UDP, VIP, 53, GONE), True),
        (connection(UDP, VIP, 53, VIP), True),  # from a time without a table: it misses the backends
        (connection(ICMP, VIP, 0, VIP), False),  # a ping
        (connection(TCP, DOWN, 80, DOWN), False),  # nobody to go to
        (connection(TCP, DOWN, 80, DRAINING), False),
        (connection(TCP, UPLINK, 8080, TASK, 80), False),
        (connection(TCP, UPLINK, 8080, TASK, 81), True),  # the target port has changed
        (connection(TCP, UPLINK, 8080, GONE, 80), True),
        (connection(TCP, UPLINK, 9090, TASK, 80), True),  # no longer published
        (connection(UDP, UPLINK, 8080, TASK, 80), True),  # not for this protocol
        (connection(TCP, IPv4Address("10.1.0.202"), 80, TASK), True),  # a service that is gone
        (connection(TCP, TASK, 80, TASK), False),  # from task to task
        (connection(TCP, WORLD, 443, WORLD), False),  # a task to the world
    ],
)
def test_in_a_router(one: Connection, over: bool) -> None:
    assert stale.in_router(SERVICES.get)(one) is over


@pytest.mark.parametrize(
    ("one", "over"),
    [
        (connection(TCP, HOST, 8080, UPLINK), False),
        (connection(TCP, HOST, 8080, OTHER_ROUTER), True),  # it moved to another network
        (connection(TCP, HOST, 9090, UPLINK), True),  # no longer published
        (connection(UDP, HOST, 5353, UPLINK), False),
        (connection(UDP, HOST, 5353, HOST), True),  # from before it was published
        (connection(TCP, HOST, 8080, HOST), False),  # of a process of the host
        (connection(UDP, WORLD, 5353, WORLD), False),  # passing through
        (connection(UDP, WORLD, 5353, IPv4Address("192.0.2.99")), False),  # translated by others
        (connection(UDP, UPLINK, 53, UPLINK), False),  # the host itself to a router
    ],
)
def test_in_the_host(one: Connection, over: bool) -> None:
    ports = {"ports": {(TCP, 8080): (int(UPLINK),), (UDP, 5353): (int(UPLINK),)}}
    assert stale.in_host(ports, frozenset({int(HOST)}))(one) is over
