"""Three hosts with real routers, tasks that serve, and the balancers of each host, for the tests of `mesh.vip`.

Servers and clients are sockets of this process in the namespaces of the tasks: no process is started.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from mesh.vip.kernel import Kernel
from mesh.vip.namespace import visit
from mesh.vip.plan import (
    Address,
    Backend,
    Protocol,
    PublishedPort,
    ReturnPath,
    RouterPlan,
    Scheduler,
    VipPlan,
    VirtualService,
)
from overlay import names
from tests.netns.world import Host, Task, World, hosts_on_a_switch

# Every wait in these tests that is meant to end ends long before this, in an emulated machine beside other work, too.
PATIENCE_S = 20.0 if "MESH_VM" in os.environ else 3.0
_ETH_P_IP = 0x0800
TCP_PORT, OTHER_TCP_PORT, UDP_PORT = 80, 9999, 53


@dataclass(frozen=True)
class Answer:
    """Which task answered, and which client it saw."""

    task: str
    client: str


def _family(address: object) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in str(address) else socket.AF_INET


def tcp(netns: str, to: object = "") -> socket.socket:
    """A TCP socket in a namespace, of the family of an address."""
    made = visit(netns, lambda _: socket.socket(_family(to), socket.SOCK_STREAM))
    made.settimeout(PATIENCE_S)
    return made


def udp(netns: str, to: object = "") -> socket.socket:
    """A UDP socket in a namespace, of the family of an address."""
    made = visit(netns, lambda _: socket.socket(_family(to), socket.SOCK_DGRAM))
    made.settimeout(PATIENCE_S)
    return made


def talk(connection: socket.socket) -> Answer:
    """One question and its answer on a connected socket."""
    connection.send(b"?\n")
    answer = connection.recv(500).decode()
    if not answer:
        raise ConnectionResetError(errno.ECONNRESET, "closed")
    return Answer(*answer.split())


@contextlib.contextmanager
def connected(netns: str, address: object, port: int = TCP_PORT) -> Iterator[socket.socket]:
    """A TCP connection from a namespace."""
    with tcp(netns, address) as connection:
        connection.connect((str(address), port))
        yield connection


def ask(netns: str, address: object, port: int = TCP_PORT) -> Answer:
    """One answer over a TCP connection of its own."""
    with connected(netns, address, port) as connection:
        return talk(connection)


def ask_udp(netns: str, address: object, port: int = UDP_PORT) -> Answer:
    """One answer over a UDP socket of its own."""
    with udp(netns, address) as flow:
        flow.connect((str(address), port))
        return talk(flow)


@contextlib.contextmanager
def listening(netns: str) -> Iterator[socket.socket]:
    """All IPv4 packets that come into a namespace (and leave it)."""
    with visit(netns, lambda _: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))) as made:
        made.settimeout(0.5)
        yield made


def arrived(at: socket.socket) -> list[bytes]:
    """The packets that have come, and come until it is silent."""
    found = []
    with contextlib.suppress(TimeoutError):
        while True:
            found.append(at.recv(2000))
    return found


def _server(address: str, port: int) -> socket.socket:
    return socket.create_server((address, port), family=_family(address))


def _only_its_family(one: socket.socket) -> None:
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


class Servers:
    """Answers every question on TCP and UDP with the task's name and the client's address; one thread for all."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._open: list[socket.socket] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="servers")
        self._thread.start()

    def add(self, name: str, netns: str) -> None:
        """Serve in a namespace as `name`."""
        for anywhere in ("0.0.0.0", "::"):
            for port in (TCP_PORT, OTHER_TCP_PORT):
                self._watch(visit(netns, lambda _, at=(anywhere, port): _server(*at)), name, "accept")
            flow = udp(netns, anywhere)
            _only_its_family(flow)
            flow.bind((anywhere, UDP_PORT))
            self._watch(flow, name, "answer")

    def _watch(self, what: socket.socket, name: str, role: str) -> None:
        what.setblocking(False)
        self._open.append(what)
        self._selector.register(what, selectors.EVENT_READ, (name, role))

    def _serve(self) -> None:
        while not self._stop.is_set():
            for key, _ in self._selector.select(timeout=0.02):
                name, role = key.data
                assert isinstance(key.fileobj, socket.socket)
                with contextlib.suppress(OSError):
                    self._turn(key.fileobj, name, role)

    def _turn(self, one: socket.socket, name: str, role: str) -> None:
        if role == "accept":
            self._watch(one.accept()[0], name, "talk")
        elif role == "answer":
            _, client = one.recvfrom(500)
            one.sendto(f"{name} {client[0]}".encode(), client)
        else:
            try:
                question = one.recv(500)
            except OSError:
                question = b""
            if question:
                one.send(f"{name} {one.getpeername()[0]}".encode())
            else:
                self._selector.unregister(one)
                self._open.remove(one)
                one.close()

    def close(self) -> None:
        """End the thread and close everything."""
        self._stop.set()
        self._thread.join()
        for one in self._open:
            one.close()
        self._selector.close()


@dataclass
class Net:
    """One network with one service: its VIP, its published ports (protocol, port on the hosts) -> target port."""

    vni: int
    subnet: IPv4Network
    vip: IPv4Address
    backends: dict[IPv4Address, int] = field(default_factory=dict)  # address -> weight
    ports: dict[tuple[Protocol, int], int] = field(default_factory=dict)
    internal: bool = False
    scheduler: Scheduler = "rr"
    affinity_s: float = 0.0
    at: tuple[Address, ...] = ()  # the addresses of hosts on which its ports are published
    silent: frozenset[IPv4Address] = frozenset()  # backends whose nodes are suspected


@dataclass
class Lab:
    """All hosts, networks, tasks and balancers of a test module."""

    world: World
    servers: Servers
    nets: dict[str, Net]
    kernels: dict[int, Kernel] = field(default_factory=dict)
    task_names: dict[str, Task] = field(default_factory=dict)

    @property
    def hosts(self) -> list[Host]:
        """The hosts, first one first."""
        return self.world.hosts

    @property
    def outside(self) -> str:
        """The namespace of the client outside."""
        return self.world.client

    def task(self, host: Host, network: str, address: str, name: str, serve: bool = False) -> Task:
        """A task on a host; with `serve` it answers, and is a backend of the network's service by default."""
        made = self.task_names[name] = self.world.task(host, network, address, name=name)
        if serve:
            self.servers.add(name, made.netns)
        return made

    def netns(self, name: str) -> str:
        """The namespace of a task."""
        return self.task_names[name].netns

    def address(self, name: str) -> IPv4Address:
        """The address of a task."""
        return self.task_names[name].address

    def router(self, host: Host, network: str = "web") -> str:
        """The namespace of a router."""
        return self.world.router(host, network)

    def plan(self, host: Host) -> VipPlan:
        """What the balancers of a host should hold."""
        routers = tuple(self._router(host, name, net) for name, net in sorted(self.nets.items()))
        ports = tuple(
            PublishedPort(
                protocol,
                port,
                names.uplink(net.vni).router_address,
                names.uplink(net.vni).host_device,
                addresses=net.at,
            )
            for net in self.nets.values()
            for protocol, port in net.ports
        )
        return VipPlan(routers, ports)

    def _router(self, host: Host, name: str, net: Net) -> RouterPlan:
        uplink = names.uplink(net.vni)
        backends = tuple(Backend(one, weight, one in net.silent) for one, weight in net.backends.items())
        published = (
            VirtualService(uplink.router_address, protocol, port, target, backends, net.scheduler, net.affinity_s)
            for (protocol, port), target in net.ports.items()
        )
        return RouterPlan(
            netns=self.router(host, name),
            subnet=net.subnet,
            gateway=net.subnet.network_address + 1,
            vxlan_device=names.vxlan_device(net.vni),
            uplink_device=uplink.router_device,
            uplink_address=uplink.router_address,
            masquerade=not net.internal,
            local_tasks=tuple(t.address for t in host.tasks.get(name, [])),
            return_paths=tuple(
                ReturnPath(h.number, names.router_mac(h.number), names.router_address(h.number))
                for h in self.hosts
                if h is not host
            ),
            services=(
                VirtualService(net.vip, None, None, None, backends, net.scheduler, net.affinity_s),
                *published,
            ),
            meshed=bool(net.ports),
            task_devices=tuple(names.veth_device(t.address) for t in host.tasks.get(name, [])),
        )

    def with_services(self, host: Host, services: tuple[VirtualService, ...]) -> VipPlan:
        """The plan of a host with more services on its "web" network."""
        plan = self.plan(host)
        routers = tuple(
            replace(r, services=(*r.services, *services)) if r.netns == self.router(host) else r for r in plan.routers
        )
        return replace(plan, routers=routers)

    def apply(self) -> None:
        """Make the balancers of all hosts as planned; an error fails the test."""
        for host in self.hosts:
            kernel = self.kernels.setdefault(host.number, Kernel(host_netns=host.netns))
            assert kernel.apply(self.plan(host)).errors == []
            assert kernel.prune(self.plan(host)).errors == []

    def close(self) -> None:
        """Empty all balancers."""
        for host in self.hosts:
            if host.number in self.kernels:
                assert self.kernels[host.number].prune(VipPlan((), ())).errors == []
        self.servers.close()


def default_nets() -> dict[str, Net]:
    """`web` with a task on the first two hosts; `red` and `blue` with one subnet and one VIP; `quiet` is internal."""
    twins = IPv4Network("10.2.0.0/24"), IPv4Address("10.2.0.200")
    return {
        "web": Net(
            4096,
            IPv4Network("10.1.0.0/24"),
            IPv4Address("10.1.0.200"),
            {IPv4Address("10.1.0.11"): 1, IPv4Address("10.1.0.12"): 1},
            {("tcp", 8080): TCP_PORT, ("udp", 8080): UDP_PORT},
        ),
        "red": Net(4097, *twins, {IPv4Address("10.2.0.11"): 1}, {("tcp", 8081): TCP_PORT}),
        "blue": Net(4098, *twins, {IPv4Address("10.2.0.11"): 1}, {("tcp", 8082): TCP_PORT}),
        "quiet": Net(
            4099,
            IPv4Network("10.4.0.0/24"),
            IPv4Address("10.4.0.200"),
            {IPv4Address("10.4.0.11"): 1},
            {("tcp", 8083): TCP_PORT},
            internal=True,
        ),
    }


@contextlib.contextmanager
def three_hosts(directory: Path) -> Iterator[Lab]:
    """The lab: `web1` and `web2` serve on hosts 1 and 2, `client1..3` ask from every host; the rest on host 1."""
    with hosts_on_a_switch(3, directory) as world:
        lab = Lab(world, Servers(), default_nets())
        with contextlib.closing(lab):
            for name, net in lab.nets.items():
                world.networks[name] = (net.vni, net.subnet)
            world.internal.add("quiet")
            one, two, _three = world.hosts
            for host in world.hosts:
                lab.task(host, "web", f"10.1.0.{100 + host.number}", f"client{host.number}")
            lab.task(one, "web", "10.1.0.11", "web1", serve=True)
            lab.task(two, "web", "10.1.0.12", "web2", serve=True)
            lab.task(one, "red", "10.2.0.11", "red1", serve=True)
            lab.task(two, "blue", "10.2.0.11", "blue1", serve=True)
            lab.task(one, "red", "10.2.0.101", "redclient")
            lab.task(one, "blue", "10.2.0.101", "blueclient")
            lab.task(two, "quiet", "10.4.0.11", "quiet1", serve=True)
            lab.task(one, "quiet", "10.4.0.101", "quietclient")
            world.apply()
            lab.apply()
            yield lab
