"""Where published ports answer, and what must not reach a task by them, on a real kernel."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP
from scapy.layers.sctp import SCTP, SCTPChunkInit

from mesh.vip.namespace import visit
from tests.netns.vip_lab import Lab, ask, default_nets, tcp, three_hosts
from tests.netns.world import OUTSIDE, inside

pytestmark = pytest.mark.root

PORT = 8080
_ETH_P_IP = 0x0800


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with three_hosts(tmp_path_factory.mktemp("vip")) as lab:
        yield lab


@pytest.fixture
def lab(hosts: Lab) -> Lab:
    """The hosts as they were at the beginning."""
    hosts.nets = default_nets()
    hosts.apply()
    return hosts


@contextlib.contextmanager
def listening(netns: str) -> Iterator[socket.socket]:
    """All IPv4 packets that come into a task."""
    with visit(netns, lambda _: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))) as made:
        made.settimeout(0.5)
        yield made


def packets(of: socket.socket) -> list[IP]:
    """Those that have come, and come until it is silent."""
    found = []
    with contextlib.suppress(TimeoutError):
        while True:
            found.append(IP(of.recv(2000)))
    return found


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
            assert (OUTSIDE in {one.src for one in packets(task)}) == arrives


@pytest.mark.parametrize("entry", [1, 2, 3])
def test_sctp_is_carried_to_a_task_from_every_host_with_the_clients_address(lab: Lab, entry: int) -> None:
    """By its first packet: this machine has no SCTP sockets, only the kernel's translation."""
    web = lab.nets["web"]
    web.backends, web.ports = {lab.address("web2"): 1}, {("sctp", PORT): 2905}
    lab.apply()
    init = SCTP(sport=5000, dport=PORT, tag=0) / SCTPChunkInit(init_tag=7, n_out_streams=1, n_in_streams=1, init_tsn=1)
    packet = bytes(IP(src=OUTSIDE, dst=str(lab.hosts[entry - 1].address)) / init)
    with (
        listening(lab.netns("web2")) as task,
        visit(lab.outside, lambda _: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as raw,
    ):
        raw.sendto(packet, (str(lab.hosts[entry - 1].address), 0))
        seen = [(one.src, one[SCTP].dport) for one in packets(task) if SCTP in one]
    assert (OUTSIDE, 2905) in seen
