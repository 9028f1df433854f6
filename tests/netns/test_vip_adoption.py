"""A new process takes over what an old one left in the kernel: no packet is lost, and nothing depends on where it died.

Counted are the packets of steady flows, 1,000 a second each (300 in an emulated machine): between tasks, through a VIP,
through a published port.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from mesh.vip.kernel import Kernel
from mesh.vip.plan import VipPlan
from overlay.kernel import Kernel as Overlay
from tests.netns.crash import killed_after
from tests.netns.vip_lab import Lab, connected, default_nets, talk
from tests.netns.world import Host, inside

pytestmark = pytest.mark.root

EMULATED = "MESH_VM" in os.environ
# Packets a second, and how many of them may be under way.
RATE, WINDOW = 300 if EMULATED else 1000, 400
FLOW_PORT, PUBLISHED = 7007, 8090
# Each host's daemon is restarted so often: three takes some seconds in an emulated machine.
ROUNDS = 1 if EMULATED else 5
# More calls than any of these changes has: a process that is killed without end would be killed for ever.
MOST_CALLS = 60
LOOKS = """
nft list ruleset
ip route show table all proto 110
ip rule show
[ ! -e /proc/net/ip_vs ] || awk '{ print $1, $2, $3, $4 }' /proc/net/ip_vs  # without its counts
"""
ECHO = f"""
import socket
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE
one.bind(("0.0.0.0", {FLOW_PORT}))
print("there", flush=True)
while True:
    one.sendto(*one.recvfrom(100))
"""
# Sends until it is told to stop; prints how many packets it sent, and how many different ones came back. It waits while
# WINDOW are under way: in an emulated machine nobody is fast enough.
FLOW = f"""
import select, socket, sys, time
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)
one.connect((sys.argv[1], int(sys.argv[2])))
one.setblocking(False)
back, began, sent, last = set(), time.monotonic(), 0, None
print("there", flush=True)
while last is None or (len(back) < sent and time.monotonic() < last + 3):
    if last is None and time.monotonic() >= began + sent / {RATE} and sent - len(back) < {WINDOW}:
        one.send(str(sent).encode())
        sent += 1
    try:
        while True:
            back.add(one.recv(100))
    except BlockingIOError:
        if select.select([sys.stdin], [], [], 0.0005)[0] and last is None:
            last = time.monotonic()
print(sent, len(back))
"""


@pytest.fixture
def lab(hosts: Lab) -> Lab:
    """The hosts as they were at the beginning, with one port more."""
    hosts.nets = default_nets()
    hosts.nets["web"].ports["udp", PUBLISHED] = FLOW_PORT
    hosts.apply()
    return hosts


@contextlib.contextmanager
def program(netns: str, code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a namespace, once it says that it is there."""
    argv = ["nsenter", f"--net={netns}", sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "there\n"
            yield running
        finally:
            running.kill()


def restart(lab: Lab, host: Host) -> None:
    """What a daemon does that finds everything made."""
    overlay = Overlay(netns_dir=str(host.directory), host_netns=host.netns)
    balancers = Kernel(host_netns=host.netns)
    wanted, balanced = lab.world.plan(host), lab.plan(host)
    reports = [overlay.apply(wanted), balancers.apply(balanced), balancers.prune(balanced), overlay.prune(wanted)]
    overlay.close()
    for report in reports:
        assert (dict(report.changes), report.errors) == ({}, [])


def test_no_packet_is_lost_while_new_processes_adopt_what_is_there(lab: Lab) -> None:
    with contextlib.ExitStack() as stack:
        for name in ("web1", "web2"):
            stack.enter_context(program(lab.netns(name), ECHO))
        flows = [
            stack.enter_context(program(netns, FLOW, address, port))
            for netns, address, port in (
                (lab.netns("client1"), lab.address("web2"), FLOW_PORT),
                (lab.netns("client3"), lab.nets["web"].vip, FLOW_PORT),
                (lab.outside, lab.hosts[2].address, PUBLISHED),
            )
        ]
        for _ in range(ROUNDS):
            for host in lab.hosts:
                restart(lab, host)
        for flow in flows:
            sent, back = map(int, flow.communicate("stop\n")[0].split())
            assert sent == back > 100


def make(host: Host, plan: VipPlan) -> None:
    """What each process does, knowing nothing."""
    assert Kernel(host_netns=host.netns).apply(plan).errors == []


def state(lab: Lab, host: Host) -> list[str]:
    """All that a host and its routers hold, in words."""
    places = [host.netns, lab.router(host, "web"), lab.router(host, "red")]
    return [" ".join(sorted(inside(place, "sh", "-c", LOOKS).split())) for place in places]


def test_killed_after_each_call_of_the_kernel_the_next_process_ends_where_it_would(lab: Lab) -> None:
    """And on the way no connection ends but those to the backend that goes. Others, and ports, come and go as well."""
    host, web, red = lab.hosts[0], lab.nets["web"], lab.nets["red"]
    client, vip, before = lab.netns("client1"), web.vip, lab.plan(host)
    web.backends = {lab.address("web1"): 1, IPv4Address("10.1.0.77"): 1}
    del web.ports["tcp", 8080]
    red.ports["tcp", 8091] = 80
    after = lab.plan(host)
    make(host, after)
    wanted, was_killed, call = state(lab, host), True, 0
    while was_killed:
        make(host, before)
        with connected(client, vip) as one, connected(client, vip) as two:
            stays = {talk(each).task: each for each in (one, two)}["web1"]
            was_killed = killed_after(call, lambda: Kernel(host_netns=host.netns).apply(after))
            assert talk(stays).task == "web1"
            make(host, after)
            assert (call, state(lab, host)) == (call, wanted)
            assert talk(stays).task == "web1"
        call += 2 if EMULATED else 1  # there each takes three seconds
        assert call < MOST_CALLS
    assert call > 2
