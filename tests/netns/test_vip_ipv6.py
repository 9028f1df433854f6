"""Balancers and the routing mesh over IPv6, beside IPv4, on a real kernel."""

from __future__ import annotations

import errno
import select
import socket
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

import pytest

from mesh.vip.kernel import Kernel
from mesh.vip.namespace import visit
from tests.netns.vip_ipv6 import (
    GATEWAY6,
    OUTSIDE6,
    UPLINK_ROUTER6,
    VIP6,
    address6,
    apply6,
    host6,
    plan6,
    speak,
)
from tests.netns.vip_lab import PATIENCE_S, Lab, ask, ask_udp, connected, default_nets, talk, udp
from tests.netns.world import OUTSIDE, inside

pytestmark = pytest.mark.root

PORT = 8080
PACKET_TOO_BIG, LINK_MTU, HEADERS6_BYTES = 2, 1500, 48


@pytest.fixture(scope="module")
def speaking(hosts: Lab) -> Lab:
    """Hosts that have addresses of both families from now on."""
    speak(hosts)
    return hosts


@pytest.fixture
def lab(speaking: Lab) -> Lab:
    """The hosts as they were at the beginning, with balancers of both families."""
    speaking.nets = default_nets()
    apply6(speaking)
    return speaking


def talk_on(connection: socket.socket) -> None:
    """Ask until an answer to the first question had the time to come."""
    for _ in range(3):
        talk(connection)


def test_a_vip_reaches_tasks_on_this_and_other_hosts_which_see_the_clients_own_address(lab: Lab) -> None:
    for number in (1, 2, 3):
        source = f"client{number}"
        for question in (ask, ask_udp):
            seen = Counter(question(lab.netns(source), VIP6) for _ in range(4))
            assert {one.task for one in seen} == {"web1", "web2"}
            assert {one.client for one in seen} == {str(address6(lab, source))}


def test_ports_and_services_of_ipv6_can_be_seen(lab: Lab) -> None:
    host, web = lab.hosts[0], lab.nets["web"]
    web.at = (ip_address(host6(host)),)
    web.ports = {("tcp", PORT + 100): 80}
    plan = plan6(lab, host)
    everywhere = replace(plan.published[0], port=PORT, addresses=())
    kernel = lab.kernels[host.number]
    assert kernel.apply(replace(plan, published=(*plan.published, everywhere))).errors == []
    seen = kernel.observe()
    assert seen.published6 == {(everywhere.protocol, PORT): UPLINK_ROUTER6}
    assert seen.published_at[ip_address(host6(host)), "tcp", PORT + 100] == UPLINK_ROUTER6
    assert VIP6 in {one.address for one in seen.services[lab.router(host)]}


def test_both_families_answer_beside_each_other(lab: Lab) -> None:
    for host in lab.hosts:
        for address, client in ((host.address, OUTSIDE), (host6(host), str(OUTSIDE6))):
            assert {ask(lab.outside, address, PORT).client for _ in range(2)} == {client}


def test_a_published_port_answers_on_every_host_and_the_task_sees_the_outside_client(lab: Lab) -> None:
    for host in lab.hosts:
        for question in (ask, ask_udp):
            seen = [question(lab.outside, host6(host), PORT) for _ in range(4)]
            assert {one.task for one in seen} == {"web1", "web2"}, host.number
            assert {one.client for one in seen} == {str(OUTSIDE6)}, host.number


def test_a_published_port_answers_on_localhost_and_own_address_of_every_host(lab: Lab) -> None:
    for host in lab.hosts:
        for address in ("::1", host6(host)):
            for question in (ask, ask_udp):
                seen = {question(host.netns, address, PORT).task for _ in range(4)}
                assert seen == {"web1", "web2"}, (host.number, address, question)


def test_a_host_reaches_services_by_their_vips_as_a_task_does(lab: Lab) -> None:
    for host in lab.hosts:
        seen = {question(host.netns, VIP6).task for question in (ask, ask_udp) for _ in range(2)}
        assert seen == {"web1", "web2"}, host.number
    with pytest.raises(ConnectionRefusedError):
        ask(lab.hosts[0].netns, address6(lab, "web1"))


def test_a_published_port_answers_tasks_on_every_host(lab: Lab) -> None:
    for client in ("client1", "client3", "web1"):
        for host in lab.hosts:
            assert {ask(lab.netns(client), host6(host), PORT).task for _ in range(4)} == {"web1", "web2"}


def test_a_task_that_is_balanced_to_itself_gets_its_answer(lab: Lab) -> None:
    seen = [ask(lab.netns("web1"), VIP6) for _ in range(4)]
    assert {one.client for one in seen if one.task == "web1"} == {str(GATEWAY6)}
    assert {one.client for one in seen if one.task == "web2"} == {str(address6(lab, "web1"))}


def test_tasks_reach_the_world(lab: Lab) -> None:
    assert " 0% packet loss" in inside(lab.netns("client2"), "ping", "-6", "-c1", "-W2", str(OUTSIDE6))


def test_a_vip_answers_ping(lab: Lab) -> None:
    assert " 0% packet loss" in inside(lab.netns("client3"), "ping", "-6", "-c1", "-W2", str(VIP6))


def test_a_packet_that_is_too_big_is_told_to_the_sender_through_the_translation(lab: Lab) -> None:
    """The VXLAN carries less than the client's link. (TCP does not come to that: its segments are clamped.)"""
    inside(lab.outside, "ip", "-6", "route", "flush", "cache")
    entry = host6(lab.hosts[2])
    lab.nets["web"].backends = {lab.address("web2"): 1}  # on another host
    apply6(lab)
    with (
        visit(lab.outside, lambda _: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)) as heard,
        udp(lab.outside, entry) as flow,
    ):
        heard.settimeout(PATIENCE_S)
        flow.connect((str(entry), PORT))
        assert talk(flow).task == "web2"
        flow.send(bytes(LINK_MTU - HEADERS6_BYTES))
        message = next(data for data in iter(lambda: heard.recv(2000), b"") if data[0] == PACKET_TOO_BIG)
        assert int.from_bytes(message[4:8], "big") < LINK_MTU
        # What it is about is the client's packet as the client sent it, and not as it was translated.
        assert message[32:48] == ip_address(str(entry)).packed
        # The sender took it as its own; the kernel tells the raw socket first.
        poll = select.poll()
        poll.register(flow, 0)
        assert poll.poll(PATIENCE_S * 1000)
        assert flow.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
        flow.send(bytes(LINK_MTU - HEADERS6_BYTES))  # now in fragments
        assert flow.recv(500).startswith(b"web2")


def test_much_is_sent_through_a_smaller_network_over_tcp(lab: Lab) -> None:
    with connected(lab.outside, host6(lab.hosts[2]), PORT) as connection:
        talk(connection)
        connection.sendall(b"x" * 20_000)
        assert connection.recv(100)


def test_without_a_backend_connections_are_refused_at_once(lab: Lab) -> None:
    lab.nets["web"].backends.clear()
    apply6(lab)
    for question in (ask, ask_udp):
        with pytest.raises(ConnectionRefusedError):
            question(lab.netns("client1"), VIP6)
        for host in lab.hosts:
            for netns, address in ((lab.outside, host6(host)), (host.netns, "::1")):
                with pytest.raises(ConnectionRefusedError):
                    question(netns, address, PORT)


def test_a_flow_moves_from_a_removed_backend_to_another(lab: Lab) -> None:
    with udp(lab.outside, OUTSIDE6) as flow:
        flow.connect((str(host6(lab.hosts[2])), PORT))
        task = talk(flow).task
        del lab.nets["web"].backends[lab.address(task)]
        apply6(lab)
        assert talk(flow).task != task


def test_a_connection_to_a_removed_backend_is_reset(lab: Lab) -> None:
    with connected(lab.netns("client3"), VIP6) as connection:
        del lab.nets["web"].backends[lab.address(talk(connection).task)]
        apply6(lab)
        with pytest.raises(ConnectionError):
            talk_on(connection)


def test_a_host_reaches_its_own_loopback_as_before(lab: Lab) -> None:
    assert " 0% packet loss" in inside(lab.hosts[0].netns, "ping", "-6", "-c1", "-W1", "::1")


def test_no_server_in_the_router_answers_on_the_uplink(lab: Lab) -> None:
    with pytest.raises(ConnectionRefusedError):
        ask(lab.hosts[0].netns, UPLINK_ROUTER6, 22)


def test_a_fresh_kernel_changes_nothing_and_open_connections_live(lab: Lab) -> None:
    with connected(lab.netns("client3"), VIP6) as inner, connected(lab.outside, host6(lab.hosts[2]), PORT) as outer:
        before = [talk(one).task for one in (inner, outer)]
        for host in lab.hosts:
            report = Kernel(host_netns=host.netns).apply(plan6(lab, host))
            assert (dict(report.changes), report.errors) == ({}, [])
        assert [talk(one).task for one in (inner, outer)] == before


def test_going_back_to_one_family_leaves_nothing_of_the_other(lab: Lab) -> None:
    lab.apply()
    host = lab.hosts[0]
    for netns in (host.netns, lab.router(host)):
        assert "proto 110" not in inside(netns, "ip", "-6", "route", "show", "table", "all")
        assert "110" not in inside(netns, "ip", "-6", "rule", "show")
    with pytest.raises(ConnectionRefusedError):
        ask(lab.outside, host6(host), PORT)
