"""Balancers and the routing mesh on a real kernel, over real routers: who is reached, and which address a task sees."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from mesh.vip.namespace import visit
from mesh.vip.plan import VipPlan
from overlay import names
from tests.netns.vip_lab import (
    OTHER_TCP_PORT,
    TCP_PORT,
    Answer,
    Lab,
    ask,
    ask_udp,
    connected,
    default_nets,
    talk,
    tcp,
    udp,
)
from tests.netns.world import OUTSIDE, inside

pytestmark = pytest.mark.root


def vip(lab: Lab) -> IPv4Address:
    return lab.nets["web"].vip


# --- from containers ----------------------------------------------------------------------------------------------


def test_a_vip_reaches_tasks_on_this_and_other_hosts_which_see_the_clients_own_address(lab: Lab) -> None:
    for number in (1, 2, 3):
        source = f"client{number}"
        seen = [ask(lab.netns(source), vip(lab)) for _ in range(4)]
        assert {one.task for one in seen} == {"web1", "web2"}
        assert {one.client for one in seen} == {str(lab.address(source))}


def test_connections_go_round_the_backends_by_weight(lab: Lab) -> None:
    assert Counter(ask(lab.netns("client3"), vip(lab)).task for _ in range(12)) == {"web1": 6, "web2": 6}
    lab.nets["web"].backends[lab.address("web1")] = 3
    lab.nets["web"].scheduler = "wrr"
    lab.apply()
    assert Counter(ask(lab.netns("client3"), vip(lab)).task for _ in range(12)) == {"web1": 9, "web2": 3}


def test_the_first_connections_of_several_hosts_do_not_all_meet_at_one_backend(lab: Lab) -> None:
    lab.nets["web"].backends.clear()
    lab.apply()  # all turns begin anew
    lab.nets = default_nets()
    lab.apply()
    assert len({ask(lab.netns(f"client{number}"), vip(lab)).task for number in (1, 2)}) == 2


def test_a_vip_takes_every_port_and_keeps_it(lab: Lab) -> None:
    assert {ask(lab.netns("client3"), vip(lab), OTHER_TCP_PORT).task for _ in range(4)} == {"web1", "web2"}


def test_a_task_that_is_balanced_to_itself_gets_its_answer(lab: Lab) -> None:
    seen = [ask(lab.netns("web1"), vip(lab)) for _ in range(4)]
    assert {one.task for one in seen} == {"web1", "web2"}
    gateway = str(lab.nets["web"].subnet.network_address + 1)
    assert {one.client for one in seen if one.task == "web1"} == {gateway}
    assert {one.client for one in seen if one.task == "web2"} == {str(lab.address("web1"))}
    assert {ask_udp(lab.netns("web1"), vip(lab)).task for _ in range(4)} == {"web1", "web2"}


def test_datagrams_are_balanced_by_flow_and_show_the_clients_own_address(lab: Lab) -> None:
    seen = [ask_udp(lab.netns("client3"), vip(lab)) for _ in range(4)]
    assert {one.task for one in seen} == {"web1", "web2"}
    assert {one.client for one in seen} == {str(lab.address("client3"))}
    with udp(lab.netns("client3")) as flow:
        flow.connect((str(vip(lab)), 53))
        assert len({talk(flow).task for _ in range(4)}) == 1


def test_a_vip_answers_ping_with_and_without_backends(lab: Lab) -> None:
    assert " 0% packet loss" in inside(lab.netns("client3"), "ping", "-c1", "-W1", str(vip(lab)))
    lab.nets["web"].backends.clear()
    lab.apply()
    assert " 0% packet loss" in inside(lab.netns("client3"), "ping", "-c1", "-W1", str(vip(lab)))


def test_a_vip_and_a_task_of_it_are_reached_from_one_client_port(lab: Lab) -> None:
    """Both have the same answering tuple: the router gives one of them another source port."""
    lab.nets["web"].backends = {lab.address("web2"): 1}
    lab.apply()
    with tcp(lab.netns("client1")) as first, tcp(lab.netns("client1")) as second:
        for one, to in ((first, vip(lab)), (second, lab.address("web2"))):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((str(lab.address("client1")), 40001))
            one.connect((str(to), TCP_PORT))
            assert talk(one).task == "web2"


def test_networks_with_one_subnet_and_one_vip_do_not_meet(lab: Lab) -> None:
    assert lab.nets["red"].vip == lab.nets["blue"].vip
    for colour in ("red", "blue"):
        client = lab.netns(f"{colour}client")
        assert {ask(client, lab.nets[colour].vip).task for _ in range(3)} == {f"{colour}1"}
        assert {ask(lab.outside, lab.hosts[2].address, port).task for port in (8081,)} == {"red1"}
    assert ask(lab.outside, lab.hosts[2].address, 8082).task == "blue1"


# --- published ports ----------------------------------------------------------------------------------------------


def test_a_published_port_answers_on_every_host_and_the_task_sees_the_outside_client(lab: Lab) -> None:
    for host in lab.hosts:
        for question in (ask, ask_udp):
            seen = [question(lab.outside, host.address, 8080) for _ in range(4)]
            assert {one.task for one in seen} == {"web1", "web2"}, host.number
            assert {one.client for one in seen} == {OUTSIDE}, host.number


def test_a_published_port_answers_on_localhost_and_own_address_of_every_host(lab: Lab) -> None:
    for host in lab.hosts:
        for address in ("127.0.0.1", host.address):
            for question in (ask, ask_udp):
                seen = {question(host.netns, address, 8080).task for _ in range(4)}
                assert seen == {"web1", "web2"}, (host.number, address)


def test_a_published_port_answers_tasks_of_every_host_on_every_host(lab: Lab) -> None:
    for client in ("client1", "client3", "web1"):
        for host in lab.hosts:
            seen = {ask(lab.netns(client), host.address, 8080).task for _ in range(4)}
            assert seen == {"web1", "web2"}, (client, host.number)


def test_a_task_reaches_the_published_port_of_another_network_by_its_host(lab: Lab) -> None:
    for client in ("client1", "client2", "client3"):
        assert ask(lab.netns(client), lab.hosts[0].address, 8081).task == "red1"


def test_a_published_port_wins_over_a_process_of_the_host_and_gives_it_back(lab: Lab) -> None:
    host = lab.hosts[0]
    with visit(host.netns, lambda _: socket.create_server(("0.0.0.0", 8080))) as process:
        process.settimeout(0.1)
        assert ask(lab.outside, host.address, 8080).task in {"web1", "web2"}
        with pytest.raises(TimeoutError):
            process.accept()
        del lab.nets["web"].ports["tcp", 8080]
        lab.apply()
        with connected(lab.outside, host.address, 8080):
            process.settimeout(3)
            process.accept()[0].close()


def test_a_client_that_uses_one_port_through_several_hosts_is_answered_through_each(lab: Lab) -> None:
    lab.nets["web"].backends = {lab.address("web2"): 1}
    lab.apply()
    one, two, three = (str(host.address) for host in lab.hosts)
    with udp(lab.outside) as flow:
        for entry in (three, one, two, three, two, one):
            flow.sendto(b"?", (entry, 8080))
            answer, source = flow.recvfrom(500)
            assert (answer.decode(), source) == (f"web2 {OUTSIDE}", (entry, 8080))


def test_a_client_that_has_one_port_open_through_several_hosts_at_once_has_several_connections(lab: Lab) -> None:
    lab.nets["web"].backends = {lab.address("web2"): 1}
    lab.apply()
    with contextlib.ExitStack() as stack:
        opened = []
        for host in (lab.hosts[2], lab.hosts[0], lab.hosts[1]):
            one = stack.enter_context(tcp(lab.outside))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((OUTSIDE, 40002))
            one.connect((str(host.address), 8080))
            opened.append(one)
        for one in (*opened, *opened):
            assert talk(one) == Answer("web2", OUTSIDE)


# --- the world, and what must not be reached ----------------------------------------------------------------------


@contextlib.contextmanager
def listener(netns: str, port: int) -> Iterator[socket.socket]:
    with visit(netns, lambda _: socket.create_server(("0.0.0.0", port))) as made:
        made.settimeout(3)
        yield made


def test_tasks_reach_the_world_and_the_world_sees_their_host(lab: Lab) -> None:
    with listener(lab.outside, 9000) as world, connected(lab.netns("client2"), OUTSIDE, 9000):
        assert world.accept()[1][0] == str(lab.hosts[1].address)


def test_tasks_of_an_internal_network_are_refused_by_the_world_but_their_published_port_answers(lab: Lab) -> None:
    with listener(lab.outside, 9000), pytest.raises(OSError, match=r"refused|unreachable"):
        ask(lab.netns("quietclient"), OUTSIDE, 9000)
    assert ask(lab.netns("quietclient"), lab.nets["quiet"].vip).task == "quiet1"
    for host in lab.hosts:
        seen = ask(lab.outside, host.address, 8083)
        assert (seen.task, seen.client) == ("quiet1", OUTSIDE)


def test_tasks_do_not_reach_the_router_of_another_network_through_the_host(lab: Lab) -> None:
    red = names.uplink(lab.nets["red"].vni).router_address
    assert ask(lab.netns("redclient"), red, 8081).task == "red1"
    for client in ("client1", "blueclient"):
        with pytest.raises(ConnectionRefusedError):
            ask(lab.netns(client), red, 8081)


def test_a_host_reaches_services_by_their_vips_as_a_task_does(lab: Lab) -> None:
    for host in lab.hosts:
        for question in (ask, ask_udp):
            seen = {question(host.netns, vip(lab)) for _ in range(4)}
            assert {one.task for one in seen} == {"web1", "web2"}, host.number
            assert {one.client for one in seen} == {str(names.uplink(lab.nets["web"].vni).host_address)}
        assert ask(host.netns, lab.nets["quiet"].vip).task == "quiet1"
        assert " 0% packet loss" in inside(host.netns, "ping", "-c1", "-W1", str(vip(lab)))


def test_a_host_reaches_tasks_by_vips_and_published_ports_only(lab: Lab) -> None:
    for name in ("web1", "web2"):
        with pytest.raises(ConnectionRefusedError):
            ask(lab.hosts[0].netns, lab.address(name))


def test_a_machine_beside_a_host_does_not_reach_services_through_it(lab: Lab) -> None:
    host = lab.hosts[0]
    inside(lab.world.switch, "ip", "route", "add", "10.1.0.0/24", "via", str(host.address))
    try:
        for question in (ask, ask_udp):
            for address in (vip(lab), lab.address("web1")):
                with pytest.raises(ConnectionRefusedError):
                    question(lab.outside, address)
        assert ask(lab.outside, host.address, 8080).client == OUTSIDE
    finally:
        inside(lab.world.switch, "ip", "route", "del", "10.1.0.0/24")


def test_a_hosts_own_network_comes_before_ours(lab: Lab) -> None:
    host = lab.hosts[0]
    own = ("10.0.0.0/14", "via", "10.66.0.1")
    assert lab.kernels[host.number].prune(VipPlan((), ())).errors == []
    assert "proto 110" not in inside(host.netns, "ip", "route")
    inside(host.netns, "ip", "route", "add", *own)
    try:
        lab.apply()
        assert "proto 110" not in inside(host.netns, "ip", "route", "show", "10.1.0.0/24")
    finally:
        inside(host.netns, "ip", "route", "del", *own)
    lab.apply()
    assert ask(host.netns, vip(lab))
    inside(host.netns, "ip", "route", "add", *own)  # it comes later
    try:
        lab.apply()
        assert "proto 110" not in inside(host.netns, "ip", "route", "show", "10.1.0.0/24")
    finally:
        inside(host.netns, "ip", "route", "del", *own)
    lab.apply()
    assert ask(host.netns, vip(lab))


def test_no_server_in_the_router_answers_on_a_vip_or_on_the_uplink(lab: Lab) -> None:
    lab.nets["web"].backends.clear()
    lab.apply()
    router = lab.router(lab.hosts[0])
    uplink = names.uplink(lab.nets["web"].vni).router_address
    gateway = lab.nets["web"].subnet.network_address + 1
    with listener(router, TCP_PORT), visit(router, lambda _: socket.socket(type=socket.SOCK_DGRAM)) as flow:
        flow.bind(("0.0.0.0", 53))
        for address in (vip(lab), uplink):
            with pytest.raises(ConnectionRefusedError):
                ask(lab.netns("client1"), address)
            with pytest.raises(ConnectionRefusedError):
                ask_udp(lab.netns("client1"), address)
        with connected(lab.netns("client1"), gateway):
            pass  # servers on the gateway's address are reached
    with pytest.raises(ConnectionRefusedError):
        ask(lab.hosts[0].netns, uplink, 22)


def test_a_connection_from_an_unknown_router_is_dropped(lab: Lab) -> None:
    """Its answers would leave by the wrong door; here host 2 no longer knows host 3."""
    kernel = lab.kernels[lab.hosts[1].number]
    lab.nets["web"].backends = {lab.address("web2"): 1}
    lab.apply()
    plan = lab.plan(lab.hosts[1])
    router = next(r for r in plan.routers if r.netns == lab.router(lab.hosts[1]))
    known = tuple(path for path in router.return_paths if path.node_number != 3)
    routers = tuple(replace(r, return_paths=known) if r is router else r for r in plan.routers)
    assert kernel.apply(replace(plan, routers=routers)).errors == []
    with tcp(lab.outside) as client:
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.connect((str(lab.hosts[2].address), 8080))
    assert ask(lab.outside, lab.hosts[0].address, 8080).task == "web2"
