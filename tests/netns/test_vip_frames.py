"""What the wire between hosts carries: frames captured beside the hosts and decoded by scapy; and much of it, whole."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from mesh.vip.namespace import visit
from overlay import names
from tests.netns.vip_lab import Lab, arrived, ask, ask_udp, connected, default_nets, listening
from tests.netns.world import OUTSIDE, Host

pytestmark = pytest.mark.root

_ETH_P_ALL = 3
MUCH_BYTES, MUCH_PORT, PUBLISHED = 10_000_000, 8765, 8092


@pytest.fixture
def lab(hosts: Lab) -> Lab:
    """The hosts as they were at the beginning, with one backend, on host 2."""
    hosts.nets = default_nets()
    hosts.nets["web"].backends = {hosts.address("web2"): 1}
    hosts.nets["web"].ports["tcp", PUBLISHED] = MUCH_PORT
    hosts.apply()
    return hosts


@contextlib.contextmanager
def tapped(lab: Lab, host: Host) -> Iterator[list[tuple[str, str, int, str, str, str, str]]]:
    """VXLAN frames that pass the switch's port of a host, filled in at the end of the block.

    (outer source and destination, VNI, inner MACs, inner source and destination)
    """
    found: list[tuple[str, str, int, str, str, str, str]] = []
    kind = socket.SOCK_RAW
    with visit(lab.world.switch, lambda _: socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_ALL))) as tap:
        tap.bind((f"h{host.number}", _ETH_P_ALL))
        tap.settimeout(0.3)
        yield found
        for frame in map(Ether, arrived(tap)):
            if VXLAN in frame:
                inner = frame[VXLAN].payload
                outer = frame[IP].src, frame[IP].dst, frame[VXLAN].vni
                found.append((*outer, inner.src, inner.dst, inner[IP].src, inner[IP].dst))


def way(one: Host, other: Host, vni: int, source: object, destination: object) -> set[tuple[object, ...]]:
    """A question and its answer, as frames between two hosts."""
    hosts = (str(one.address), str(other.address)), (names.router_mac(one.number), names.router_mac(other.number))
    ends = str(source), str(destination)
    there = (*hosts[0], vni, *hosts[1], *ends)
    return {there, (*hosts[0][::-1], vni, *hosts[1][::-1], *ends[::-1])}


def test_between_hosts_a_connection_through_a_vip_has_the_addresses_of_client_and_task(lab: Lab) -> None:
    one, two, _ = lab.hosts
    for question in (ask, ask_udp):
        with tapped(lab, one) as frames:
            assert question(lab.netns("client1"), lab.nets["web"].vip).task == "web2"
        assert set(frames) == way(one, two, 4096, lab.address("client1"), lab.address("web2"))


def test_between_hosts_a_connection_from_outside_has_the_address_of_the_client_outside(lab: Lab) -> None:
    _, two, three = lab.hosts
    for question in (ask, ask_udp):
        with tapped(lab, three) as frames:
            assert question(lab.outside, three.address, 8080).task == "web2"
        assert set(frames) == way(three, two, 4096, OUTSIDE, lab.address("web2"))


def test_no_frame_of_one_network_comes_to_another_with_the_same_addresses(lab: Lab) -> None:
    one, two, _ = lab.hosts
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(listening(lab.router(host, "red"))) for host in lab.hosts]
        strangers.append(stack.enter_context(listening(lab.netns("red1"))))
        with tapped(lab, one) as frames:
            assert ask(lab.netns("blueclient"), lab.nets["blue"].vip).task == "blue1"
        assert [arrived(stranger) for stranger in strangers] == [[], [], [], []]
    assert set(frames) == way(one, two, 4098, "10.2.0.101", lab.address("blue1"))


def serve_once(server: socket.socket, seen: list[bytes]) -> None:
    """Read a lot, and send it back."""
    connection, _ = server.accept()
    with connection:
        connection.settimeout(30)
        while sum(map(len, seen)) < MUCH_BYTES:
            seen.append(connection.recv(1 << 20))
            assert seen[-1]
        connection.sendall(b"".join(seen))


@pytest.mark.parametrize("entry", ["the VIP", "a published port"])
def test_ten_megabytes_arrive_whole_over_another_host_and_come_back(lab: Lab, entry: str) -> None:
    three = lab.hosts[2]
    netns, address, port = {
        "the VIP": (lab.netns("client1"), lab.nets["web"].vip, MUCH_PORT),
        "a published port": (lab.outside, three.address, PUBLISHED),
    }[entry]
    much, seen, back = os.urandom(MUCH_BYTES), list[bytes](), bytearray()
    with visit(lab.netns("web2"), lambda _: socket.create_server(("0.0.0.0", MUCH_PORT))) as server:
        server.settimeout(30)
        task = threading.Thread(target=serve_once, args=(server, seen))
        task.start()
        with connected(netns, address, port) as connection:
            connection.settimeout(30)
            connection.sendall(much)
            while len(back) < MUCH_BYTES:
                back += connection.recv(1 << 20) or pytest.fail("cut off")
        task.join()
    assert bytes(back) == much
