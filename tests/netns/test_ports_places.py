"""Where published ports answer, and what must not reach a task by them, on a real kernel."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from overlay import names
from tests.netns.vip_lab import Lab, arrived, ask, default_nets, listening, tcp
from tests.netns.world import OUTSIDE, inside

pytestmark = pytest.mark.root

PORT = 8080


def test_a_port_published_on_one_address_answers_there_only(lab: Lab) -> None:
    host, web = lab.hosts[0], lab.nets["web"]
    inside(host.netns, "ip", "addr", "add", "10.66.0.99/24", "dev", "eth0")
    try:
        web.at = (IPv4Address("10.66.0.99"),)
        lab.apply()
        assert ask(lab.outside, "10.66.0.99", PORT).client == OUTSIDE
        assert ask(host.netns, "10.66.0.99", PORT)
        for netns, address in ((lab.outside, host.address), (host.netns, "127.0.0.1"), (lab.outside, "10.66.0.12")):
            with pytest.raises(ConnectionRefusedError):
                ask(netns, address, PORT)
    finally:
        inside(host.netns, "ip", "addr", "del", "10.66.0.99/24", "dev", "eth0")


def test_a_port_published_on_localhost_answers_on_the_host_only(lab: Lab) -> None:
    lab.nets["web"].at = (IPv4Address("127.0.0.1"),)
    lab.apply()
    for host in lab.hosts:
        assert ask(host.netns, "127.0.0.1", PORT)
        for netns in (lab.outside, host.netns):
            with pytest.raises(ConnectionRefusedError):
                ask(netns, host.address, PORT)


def test_one_port_on_two_addresses_can_belong_to_two_networks(lab: Lab) -> None:
    host = lab.hosts[0]
    lab.nets["web"].at = (host.address,)
    lab.nets["red"].ports = {("tcp", PORT): 80}
    lab.nets["red"].at = (IPv4Address("127.0.0.1"),)
    lab.apply()
    assert ask(lab.outside, host.address, PORT).task in {"web1", "web2"}
    assert ask(host.netns, "127.0.0.1", PORT).task == "red1"


def test_a_packet_from_an_unknown_router_does_not_reach_a_task(lab: Lab) -> None:
    """Its answers would leave by the wrong door. Here host 2 no longer knows host 3."""
    lab.nets["web"].backends = {lab.address("web2"): 1}
    lab.apply()
    host = lab.hosts[1]
    plan = lab.plan(host)
    routers = tuple(
        replace(r, return_paths=tuple(p for p in r.return_paths if p.node_number != 3)) for r in plan.routers
    )
    assert lab.kernels[host.number].apply(replace(plan, routers=routers)).errors == []
    with listening(lab.netns("web2")) as task:
        for entry, arrives in ((lab.hosts[2], False), (lab.hosts[0], True)):
            with tcp(lab.outside) as client, contextlib.suppress(TimeoutError):
                client.settimeout(0.3)
                client.connect((str(entry.address), PORT))
            sources = {socket.inet_ntoa(packet[12:16]) for packet in arrived(task)}
            assert (OUTSIDE in sources) == arrives


def test_ports_on_chosen_addresses_can_be_seen(lab: Lab) -> None:
    host, web = lab.hosts[0], lab.nets["web"]
    router = names.uplink(web.vni).router_address
    web.at = (host.address,)
    lab.apply()
    seen = lab.kernels[host.number].observe()
    assert seen.published_at == {(host.address, "tcp", PORT): router, (host.address, "udp", PORT): router}
    assert ("tcp", PORT) not in seen.published
    assert seen.published["tcp", 8081] == names.uplink(lab.nets["red"].vni).router_address
    assert seen.published6 == {}


def test_a_port_in_host_mode_answers_only_where_a_task_runs_and_by_that_task_only(lab: Lab) -> None:
    """As the agent plans it: the port is in the plans of hosts with a task, with the host's own tasks behind it."""
    for host, own in zip(lab.hosts, ("web1", "web2", None), strict=True):
        web = lab.nets["web"] = default_nets()["web"]
        if own is None:
            web.ports = {}
        else:
            web.backends = {lab.address(own): 1}
        assert lab.kernels[host.number].apply(lab.plan(host)).errors == []
    for host, own in zip(lab.hosts[:2], ("web1", "web2"), strict=True):
        seen = [ask(lab.outside, host.address, PORT) for _ in range(4)]
        assert {(one.task, one.client) for one in seen} == {(own, OUTSIDE)}
        assert ask(host.netns, "127.0.0.1", PORT).task == own
    with pytest.raises(ConnectionRefusedError):
        ask(lab.outside, lab.hosts[2].address, PORT)
