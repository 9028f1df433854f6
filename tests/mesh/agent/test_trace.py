"""Each way a connection can go, and each place where it can be lost."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any

import pytest
from msgspec.structs import replace as changed

from control.assignment import key_of
from control.model import TunnelKey
from dns.resolver import Explanation
from mesh.agent.compile import compile  # noqa: A004 - the architecture's name for it
from mesh.agent.look import counters
from mesh.agent.trace import Question, RouterState, Step, Way, trace
from mesh.agent.view import Assignments, View
from mesh.vip.plan import ObservedService
from overlay import names
from tests.mesh.agent.test_compile import API, DB, PEERS, SETTINGS, WEB, endpoint, own_task, running

A = IPv4Address
VIP = A("10.1.0.200")
FOUND = Explanation("web", "answer", ("service api",), ("10.1.0.200",))
QUESTION = Question("api.1", "web-id", A("10.1.0.11"), "api", 80, "tcp", FOUND)
LOCAL = Way("t0a01000b", up=True)
REMOTE = Way("vx4096", True, str(names.router_address(2)), names.router_mac(2), "10.66.0.12")
HEALTHY = RouterState(
    ways={A("10.1.0.11"): LOCAL, A("10.1.0.12"): REMOTE},
    services=(ObservedService(VIP, None, None, {A("10.1.0.11"): 1, A("10.1.0.12"): 1}),),
    counters={"vx4096": (7, 8, 0)},
)


def steps(question: Question = QUESTION, router: RouterState = HEALTHY, **records: Any) -> list[Step]:
    peers = records.get("peers", PEERS)
    endpoints = (endpoint(1, "n1"), endpoint(2, "n2"))
    held = {key_of(r): r for r in (SETTINGS, *peers, WEB, DB, API, *endpoints, own_task(1, "web-id"))}
    view = View("n1", "10.66.0.11", "/run/netns", Assignments(1, MappingProxyType(held)), running(1))
    return trace(view, compile(view), question, router)


def lost(found: list[Step]) -> list[tuple[str, str]]:
    return [(step.what, step.found) for step in found if step.lost]


def test_a_healthy_way_is_told_to_its_ends() -> None:
    assert [(step.what, step.found) for step in steps()] == [
        ("source", 'task api.1, 10.1.0.11 on network "web"'),
        ("name", "api is 10.1.0.200 (service api)"),
        ("address", "10.1.0.200 is the virtual address of api"),
        ("balancer", "rr over 2 of 2 tasks"),
        ("backend", "api.1 10.1.0.11 on this node, ready"),
        ("route", "t0a01000b (this node)"),
        ("backend", "api.2 10.1.0.12 on node h2, ready"),
        ("route", "via 169.254.128.2 on vx4096"),
        ("tunnel", "VXLAN to h2 (10.66.0.12)"),
        ("counters", "vx4096: 7 packets in, 8 out, 0 dropped"),
    ]
    assert lost(steps()) == []


def broken(**fields: Any) -> RouterState:
    return replace(HEALTHY, ways={**HEALTHY.ways, A("10.1.0.12"): replace(REMOTE, **fields)})


@pytest.mark.parametrize(
    ("router", "where"),
    [
        (RouterState(exists=False), "router"),
        (replace(HEALTHY, services=()), "balancer"),
        (replace(HEALTHY, ways={A("10.1.0.11"): LOCAL}), "route"),
        (broken(up=False), "route"),
        (broken(mac=""), "neighbour"),
        (broken(mac=names.router_mac(3)), "neighbour"),
        (broken(tunnel=""), "tunnel"),
        (broken(tunnel="10.66.0.13"), "tunnel"),
    ],
)
def test_what_the_kernel_lacks_is_where_packets_are_lost(router: RouterState, where: str) -> None:
    assert [what for what, _ in lost(steps(router=router))] == [where]


def test_a_kernel_that_differs_from_the_plan_is_said() -> None:
    stale = ObservedService(VIP, None, None, {A("10.1.0.11"): 1, A("10.1.0.99"): 1})
    found = [s.found for s in steps(router=replace(HEALTHY, services=(stale,)))]
    assert any("missing 10.1.0.12, too many 10.1.0.99" in sentence for sentence in found)


def test_a_node_that_is_down_loses_what_goes_there() -> None:
    peers = [changed(p, state="down") if p.number == 2 else p for p in PEERS]
    assert lost(steps(peers=peers)) == [("node", "h2 is down")]


@pytest.mark.parametrize(
    ("target", "explanation", "expected"),
    [
        ("api", Explanation("web", "no such name", ("nobody has it",)), ("name", "api: no such name (nobody has it)")),
        ("10.2.0.7", None, ("address", '10.2.0.7 is on a network the task is not on ("db")')),
        ("10.1.0.77", None, ("backend", "10.1.0.77 is no task's: the router refuses it")),
    ],
)
def test_targets_that_cannot_be_reached(
    target: str, explanation: Explanation | None, expected: tuple[str, str]
) -> None:
    assert lost(steps(replace(QUESTION, target=target, explanation=explanation))) == [expected]


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("192.0.2.1", "192.0.2.1 is outside the mesh: through up0, as this host"),
        ("10.1.0.1", "10.1.0.1 is the network's router on this node: it answers DNS only"),
    ],
)
def test_targets_that_are_no_tasks(target: str, sentence: str) -> None:
    found = steps(replace(QUESTION, target=target, explanation=None))
    assert lost(found) == []
    assert sentence in [step.found for step in found]


def test_counters_are_read_as_the_kernel_writes_them() -> None:
    head = "Inter-| Receive | Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n"
    idle = "    lo: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    busy = "vx4096: 1234 10 0 2 0 0 0 0 5678 20 0 3 0 0 0 0\n"
    assert counters(head + idle + busy) == {"vx4096": (10, 20, 5)}


# --- encrypted ------------------------------------------------------------------------------------------------------

KEYED = [changed(p, tunnel_keys=(TunnelKey(slot=1, key="A" * 43 + "="),)) for p in PEERS]
SECRET = changed(WEB, spec=changed(WEB.spec, encrypted=True))


def encrypted_steps(tunnel: str = "169.254.128.2", peers: Any = KEYED, **state: Any) -> list[Step]:
    held = {key_of(r): r for r in (SETTINGS, *peers, SECRET, DB, API, endpoint(1, "n1"), endpoint(2, "n2"))}
    view = View("n1", "10.66.0.11", "/run/netns", Assignments(1, MappingProxyType(held)), running(1))
    router = replace(broken(tunnel=tunnel), **state)
    return trace(view, compile(view), replace(QUESTION, target="10.1.0.12", explanation=None), router)


def test_a_tunnel_inside_wireguard_is_told_as_such() -> None:
    found = [(step.what, step.found) for step in encrypted_steps(met=frozenset({"169.254.128.2"}))]
    assert ("tunnel", "VXLAN inside WireGuard to h2 (10.66.0.12), keys have met") in found
    found = [(step.what, step.found) for step in encrypted_steps()]
    words = "no handshake yet: the first packet asks for one"
    assert ("tunnel", f"VXLAN inside WireGuard to h2 (10.66.0.12), {words}") in found
    assert lost(encrypted_steps()) == []


def test_an_encrypted_network_does_not_go_by_the_underlay() -> None:
    mac = names.router_mac(2)
    assert lost(encrypted_steps("10.66.0.12")) == [
        ("tunnel", f"{mac} should go to 169.254.128.2, goes to 10.66.0.12"),
    ]


def test_a_node_without_a_key_loses_what_is_encrypted() -> None:
    ways = {A("10.1.0.11"): LOCAL}
    expected = [("encryption", "h2 has told no WireGuard key: mesh doctor there says what helps")]
    assert lost(encrypted_steps(peers=PEERS, ways=ways)) == expected
