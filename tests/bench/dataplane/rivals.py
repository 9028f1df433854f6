"""What ours is measured against: a proxy, and the same way without connection tracking, or without a router's rules."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.netns.vip_lab import Lab
from tests.netns.world import Host, inside, run

PROXY, PORT = "10.1.0.251", 7000
BRIDGED_VNI, BRIDGED_PORT = 7777, 4790


@dataclass(frozen=True)
class Pair:
    """Two namespaces, and the address of the second one."""

    client: str
    server: str
    address: str


@contextlib.contextmanager
def process(netns: str, *argv: str) -> Iterator[int]:
    """A program that runs in a namespace until the end, by its id."""
    with subprocess.Popen(["nsenter", f"--net={netns}", *argv], stdout=subprocess.DEVNULL) as running:
        time.sleep(0.3)  # it listens
        try:
            yield running.pid
        finally:
            running.kill()


@contextlib.contextmanager
def proxied(lab: Lab, directory: Path) -> Iterator[tuple[str, int]]:
    """The address at which haproxy, in the first host's router, takes connections for `web1`, and its process."""
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
    if program is None:
        raise SystemExit("haproxy is not installed: apt install haproxy")
    router, file = lab.router(lab.hosts[0]), directory / "haproxy.cfg"
    file.write_text(
        "global\n nbthread 1\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        f"listen all\n bind {PROXY}:{PORT}\n server one {lab.address('web1')}:{PORT}\n"
    )
    inside(router, "ip", "route", "replace", "local", PROXY, "dev", "lo")
    with process(router, program, "-db", "-f", str(file)) as running:
        yield PROXY, running


@contextlib.contextmanager
def namespaces(*names: str) -> Iterator[list[str]]:
    """Namespaces of our own, by path; removed at the end."""
    made = [f"mb{os.getpid()}-{name}" for name in names]
    with contextlib.ExitStack() as stack:
        for name in made:
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "del", name, check=False)
            inside(f"/run/netns/{name}", "ip", "link", "set", "lo", "up")
        yield [f"/run/netns/{name}" for name in made]


@contextlib.contextmanager
def untracked() -> Iterator[Pair]:
    """A client and a server with a plain router between them: no rules, no connection tracking."""
    with namespaces("c", "r", "s") as (client, router, server):
        inside(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        for number, netns in ((1, client), (2, server)):
            _veth(router, f"p{number}", netns)
            inside(router, "ip", "addr", "add", f"10.9.{number}.1/24", "dev", f"p{number}")
            inside(netns, "ip", "addr", "add", f"10.9.{number}.2/24", "dev", "eth0")
            inside(netns, "ip", "route", "add", "default", "via", f"10.9.{number}.1")
        yield Pair(client, server, "10.9.2.2")


def _veth(netns: str, name: str, peer: str) -> None:
    """A link of both, called "eth0" in the peer."""
    inside(netns, "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", Path(peer).name)
    inside(netns, "ip", "link", "set", name, "up")
    inside(peer, "ip", "link", "set", "eth0", "up")


@contextlib.contextmanager
def bridged(first: Host, second: Host) -> Iterator[Pair]:
    """Containers on two hosts as Docker's Swarm mode joins them: a bridge and a VXLAN device in a namespace of each."""
    with namespaces("b1", "b2", "c1", "c2") as made:
        for number, (host, peer) in enumerate(((first, second), (second, first))):
            bridge, container = made[number], made[number + 2]
            inside(
                host.netns, "ip", "link", "add", "mbvx", "type", "vxlan", "id", str(BRIDGED_VNI),
                "local", str(host.address), "remote", str(peer.address), "dstport", str(BRIDGED_PORT),
            )  # fmt: skip
            inside(host.netns, "ip", "link", "set", "mbvx", "netns", Path(bridge).name)
            inside(bridge, "ip", "link", "add", "br0", "type", "bridge")
            inside(bridge, "ip", "link", "set", "br0", "up")
            inside(bridge, "ip", "link", "set", "mbvx", "master", "br0", "up")
            _veth(bridge, "task", container)
            inside(bridge, "ip", "link", "set", "task", "master", "br0")
            inside(container, "ip", "link", "set", "eth0", "mtu", "1450")
            inside(container, "ip", "addr", "add", f"10.9.3.{number + 1}/24", "dev", "eth0")
        yield Pair(made[2], made[3], "10.9.3.2")
