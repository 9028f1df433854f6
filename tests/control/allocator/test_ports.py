"""Published ports: who gets which, who keeps which, and what is said to who gets none."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from control.allocator.pools import FIRST_AUTOMATIC_PORT, LAST_AUTOMATIC_PORT
from control.allocator.ports import PortError, Ports
from control.lifecycle import TaskState
from control.model import PortSpec, Service
from control.store.tables import event
from tests.control.cluster import World, network, node, service

S = TaskState


def made_of(name: str, *ports: PortSpec, has: tuple[PortSpec, ...] = ()) -> Service:
    return replace(service(name, ports=ports), ports=has)


def given(target: Service, *others: Service) -> list[int]:
    return [p.published for p in Ports([target, *others]).give(target)]


def test_automatic_ports_are_the_lowest_that_nobody_has_or_asks_for() -> None:
    asks = made_of("b", PortSpec(target=1, published=FIRST_AUTOMATIC_PORT))
    has = made_of("c", has=(PortSpec(target=1, published=FIRST_AUTOMATIC_PORT + 1, mode="host"),))
    auto = made_of("a", PortSpec(target=80), PortSpec(target=81), PortSpec(target=80, protocol="udp"))
    assert given(auto, asks, has) == [FIRST_AUTOMATIC_PORT + 2, FIRST_AUTOMATIC_PORT + 3, FIRST_AUTOMATIC_PORT]


def test_automatic_ports_are_kept_each_by_one() -> None:
    has = tuple(PortSpec(target=80, published=FIRST_AUTOMATIC_PORT + n) for n in (7, 3))
    auto = made_of("a", PortSpec(target=80), PortSpec(target=80), PortSpec(target=80), has=has)
    assert given(auto) == [FIRST_AUTOMATIC_PORT + 7, FIRST_AUTOMATIC_PORT + 3, FIRST_AUTOMATIC_PORT]


def test_a_fixed_port_that_becomes_automatic_is_given_up() -> None:
    auto = made_of("a", PortSpec(target=80), has=(PortSpec(target=80, published=8080),))
    assert given(auto) == [FIRST_AUTOMATIC_PORT]


def test_ports_in_host_mode_can_be_automatic_too() -> None:
    assert given(made_of("a", PortSpec(target=80, mode="host"))) == [FIRST_AUTOMATIC_PORT]


@pytest.mark.parametrize(
    ("mine", "theirs", "clash"),
    [("ingress", "ingress", True), ("ingress", "host", True), ("host", "ingress", True), ("host", "host", False)],
)
def test_two_services_share_a_port_only_in_host_mode(mine: str, theirs: str, clash: bool) -> None:
    other = made_of("b", has=(PortSpec(target=1, published=8080, mode=theirs),))  # type: ignore[arg-type]
    asks = made_of("a", PortSpec(target=1, published=8080, mode=mine))  # type: ignore[arg-type]
    if not clash:
        assert given(asks, other) == [8080]
        return
    with pytest.raises(PortError, match=r'^cannot publish port 8080 of service "a": already used by "b"$'):
        given(asks, other)


def test_protocols_do_not_clash_and_are_named() -> None:
    udp = PortSpec(target=53, published=53, protocol="udp")
    assert given(made_of("a", udp), made_of("b", has=(replace(udp, protocol="tcp"),))) == [53]
    with pytest.raises(PortError, match="port 53/udp of"):
        given(made_of("a", udp), made_of("b", has=(udp,)))


def test_who_has_a_port_keeps_it_and_of_two_that_ask_the_first_gets_it() -> None:
    port = PortSpec(target=80, published=8080)
    first, second = made_of("a", port), made_of("b", port)
    holder = made_of("c", port, has=(port,))
    ports = Ports([first, second])
    assert ports.give(first) == (port,)
    with pytest.raises(PortError, match='already used by "a"'):
        ports.give(second)
    assert given(holder, made_of("d", has=(port,))) == [8080], "a mistake of the past does not stop both"


def test_when_all_automatic_ports_are_used_that_is_said() -> None:
    everything = tuple(PortSpec(target=1, published=p) for p in range(FIRST_AUTOMATIC_PORT, LAST_AUTOMATIC_PORT + 1))
    with pytest.raises(PortError, match=r"all automatic ports \(30000 to 32767/tcp\) are in use"):
        given(made_of("a", PortSpec(target=80)), made_of("b", has=everything))


def test_a_service_waits_for_its_port_with_the_reason_on_its_tasks_until_the_other_goes() -> None:
    made = World()
    port = PortSpec(target=80, published=8080)
    made.put(node("n1"), network(), service("web", replicas=1, networks=["web"], ports=(port,)))
    made.settle()
    rival = service("api", replicas=1, networks=["web"], ports=(port,))
    rival = replace(rival, meta=replace(rival.meta, version=made.snapshot.version + 1))
    # The API and the store refuse this; only what an older version wrote can look so.
    made.snapshot = made.snapshot.apply(made.snapshot.version + 1, [event(None, rival)])
    made.decide()
    (waiting,) = made.tasks()
    assert waiting.status.state is S.NEW
    assert waiting.status.error == 'cannot publish port 8080 of service "api": already used by "web"'
    made.delete(Service, "s-web")
    made.settle()
    assert [t.status.error for t in made.running()] == [""]
