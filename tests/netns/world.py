"""Several hosts on one real kernel: namespaces joined by an underlay bridge, each with routers of its own.

A host here is only a network namespace with a directory for its named namespaces; the overlay and the balancers are
driven from the test's own process. Everything is named after the process and removed afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from overlay import names
from overlay.kernel import Kernel
from overlay.keys import KeyFile, told
from overlay.plan import LocalEndpoint, OverlayNetwork, OverlayPlan, Peer, PublicKey, RemoteEndpoint

_serial = itertools.count()
UNDERLAY = IPv4Network("10.66.0.0/24")
OUTSIDE = "198.51.100.2"


def run(*argv: str, check: bool = True, stdin: str | None = None, timeout_s: float = 20.0) -> str:
    """Run a command and return what it printed; a failure fails the test with its words."""
    done = subprocess.run(argv, capture_output=True, text=True, input=stdin, timeout=timeout_s, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout


def inside(netns: str, *argv: str, check: bool = True, timeout_s: float = 20.0) -> str:
    """Run a command in a network namespace (by path)."""
    return run("nsenter", f"--net={netns}", *argv, check=check, timeout_s=timeout_s)


@dataclass
class Task:
    """A namespace that stands for a running task."""

    id: str
    address: IPv4Address
    netns: str


@dataclass
class Host:
    """One machine: its namespace, its overlay, its tasks by network."""

    number: int
    netns: str
    directory: Path
    address: IPv4Address
    kernel: Kernel
    tasks: dict[str, list[Task]] = field(default_factory=dict)


@dataclass
class World:
    """All hosts and networks of a test."""

    prefix: str
    directory: Path
    hosts: list[Host]
    switch: str
    client: str
    networks: dict[str, tuple[int, IPv4Network]] = field(default_factory=dict)
    internal: set[str] = field(default_factory=set)
    encrypted: set[str] = field(default_factory=set)
    keys: dict[int, KeyFile] = field(default_factory=dict)  # by host number; a host without has told none
    subnets6: dict[str, IPv6Network] = field(default_factory=dict)  # networks of both families
    underlays: dict[int, IPv6Address] = field(default_factory=dict)  # by host number, instead of the IPv4 ones
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def task(self, host: Host, network: str, address: str, name: str | None = None) -> Task:
        """A task of a host; the same `name` again puts it on one more network."""
        task_id = name or f"t{next(_serial)}"
        netns = f"/run/netns/{self.prefix}-{task_id}"
        if not Path(netns).exists():
            run("ip", "netns", "add", Path(netns).name)
            self.stack.callback(run, "ip", "netns", "del", Path(netns).name, check=False)
        made = Task(task_id, IPv4Address(address), netns)
        host.tasks.setdefault(network, []).append(made)
        return made

    def plan(self, host: Host) -> OverlayPlan:
        """What a host's kernel should hold."""
        return OverlayPlan(
            node_number=host.number,
            underlay=self.underlays.get(host.number, host.address),
            vxlan_port=4789,
            peers=tuple(
                Peer(h.number, self.underlays.get(h.number, h.address), self.told(h))
                for h in self.hosts
                if h is not host
            ),
            networks=tuple(self._network(host, name) for name in sorted(self.networks)),
        )

    def told(self, host: Host) -> tuple[PublicKey, ...]:
        """The keys that a host has told."""
        return told(self.keys[host.number].load()) if host.number in self.keys else ()

    def _network(self, host: Host, name: str) -> OverlayNetwork:
        vni, subnet = self.networks[name]
        first = {t.id: min(n for n in self.networks if t.id in {x.id for x in host.tasks.get(n, [])})
                 for t in host.tasks.get(name, [])}  # fmt: skip
        return OverlayNetwork(
            id=name,
            vni=vni,
            subnet=subnet,
            gateway=subnet.network_address + 1,
            internal=name in self.internal,
            local=tuple(
                LocalEndpoint(
                    t.id,
                    t.address,
                    t.netns,
                    "eth0" if first[t.id] == name else "eth1",
                    first[t.id] == name,
                    self.address6(name, t),
                )
                for t in host.tasks.get(name, [])
            ),
            remote=tuple(
                RemoteEndpoint(address, h.number)
                for h in self.hosts
                if h is not host
                for t in h.tasks.get(name, [])
                for address in (t.address, self.address6(name, t))
                if address is not None
            ),
            subnet6=self.subnets6.get(name),
            gateway6=self._in(name, subnet.network_address + 1),
            encrypted=name in self.encrypted,
        )

    def address6(self, network: str, task: Task) -> IPv6Address | None:
        """The IPv6 address of a task, as control.ipv6 makes it."""
        return self._in(network, task.address)

    def _in(self, network: str, address: IPv4Address) -> IPv6Address | None:
        subnet6 = self.subnets6.get(network)
        return None if subnet6 is None else subnet6.network_address + int(address)

    def apply(self) -> None:
        """Make every host as planned; an error of any fails the test."""
        for host in self.hosts:
            report = host.kernel.apply(self.plan(host))
            assert report.errors == []
            report = host.kernel.prune(self.plan(host))
            assert report.errors == []

    def router(self, host: Host, network: str) -> str:
        """Path of a router's namespace."""
        return str(host.directory / names.router_netns(network))


@contextlib.contextmanager
def hosts_on_a_switch(count: int, tmp_path: Path) -> Iterator[World]:
    """`count` hosts, a switch and an outside client in a network of its own; all of it removed at the end."""
    prefix = f"mt{os.getpid()}x{next(_serial)}"
    with contextlib.ExitStack() as stack:
        made = World(prefix, tmp_path, [], f"/run/netns/{prefix}-sw", f"/run/netns/{prefix}-out", stack=stack)

        def namespace(name: str) -> str:
            run("ip", "netns", "add", f"{prefix}-{name}")
            stack.callback(run, "ip", "netns", "del", f"{prefix}-{name}", check=False)
            inside(f"/run/netns/{prefix}-{name}", "ip", "link", "set", "lo", "up")
            return f"/run/netns/{prefix}-{name}"

        switch, client = namespace("sw"), namespace("out")
        inside(switch, "ip", "link", "add", "br0", "type", "bridge")
        inside(switch, "ip", "addr", "add", "10.66.0.1/24", "dev", "br0")
        inside(switch, "ip", "link", "set", "br0", "up")
        inside(switch, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        inside(switch, "ip", "link", "add", "out", "type", "veth", "peer", "name", "eth0", "netns", Path(client).name)
        inside(switch, "ip", "addr", "add", "198.51.100.1/24", "dev", "out")
        inside(switch, "ip", "link", "set", "out", "up")
        inside(client, "ip", "addr", "add", f"{OUTSIDE}/24", "dev", "eth0")
        inside(client, "ip", "link", "set", "eth0", "up")
        inside(client, "ip", "route", "add", "default", "via", "198.51.100.1")
        for number in range(1, count + 1):
            netns = namespace(f"h{number}")
            address = UNDERLAY.network_address + 10 + number
            inside(switch, "ip", "link", "add", f"h{number}", "type", "veth", "peer", "name", "eth0",
                   "netns", Path(netns).name)  # fmt: skip
            inside(switch, "ip", "link", "set", f"h{number}", "master", "br0", "up")
            inside(netns, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
            inside(netns, "ip", "link", "set", "eth0", "up")
            inside(netns, "ip", "route", "add", "default", "via", "10.66.0.1")
            directory = tmp_path / f"h{number}"
            kernel = Kernel(netns_dir=str(directory), host_netns=netns)
            host = Host(number, netns, directory, address, kernel)
            made.hosts.append(host)
            stack.callback(_clean, made, host)
        yield made


def _clean(world: World, host: Host) -> None:
    empty = OverlayPlan(host.number, host.address, 4789, (), ())
    assert host.kernel.prune(empty).errors == []
    host.kernel.close()
    assert list(host.directory.glob("*")) == [], "a router is left over"
    run("umount", str(host.directory), check=False)  # a directory of named namespaces is a mount of its own
