"""The benchmark's part in the virtual machine: paths from a client to five servers, the same load on each.

One processor, and time that is the number of instructions run: what is compared is the work of the kernel (and of the
load program, the same for all). Prints one JSON object per measurement into /run/results/bench.jsonl.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from mesh.vip.ipvs import Door, probe
from mesh.vip.ipvs_plan import AF_INET, Destination, PutBackend, PutService, Service, ServiceId
from mesh.vip.kernel import Kernel
from mesh.vip.namespace import visit
from mesh.vip.plan import Backend, ReturnPath, RouterPlan, VipPlan, VirtualService
from overlay import names
from tests.netns.world import World, hosts_on_a_switch, inside, run

LOAD = "/run/results/vm_load"
PORT = 8000
BACKENDS = 5
CONCURRENT = 16
VIP = IPv4Address("10.1.0.200")
TASKS = [IPv4Address("10.1.0.11") + number for number in range(BACKENDS)]
VNI = 4096


def main() -> None:
    """Arguments: connections per measurement, rounds, and the numbers of services."""
    connections, rounds, counts = int(sys.argv[1]), int(sys.argv[2]), [int(one) for one in sys.argv[3:]]
    Path("/proc/sys/net/core/somaxconn").write_text("4096")
    paths: list[tuple[str, int, Callable[[], tuple[str, str]]]] = []
    with (
        Plain("plain", conntrack=False) as direct,
        Plain("tracked", conntrack=True) as tracked,
        Swarm() as swarm,
        hosts_on_a_switch(1, Path("/tmp/bench")) as world,
    ):
        Path("/proc/sys/net/netfilter/nf_conntrack_max").write_text("400000")
        ours = Ours(world)
        paths += [
            ("direct", 1, lambda: direct.target),
            ("routed with connection tracking", 1, lambda: tracked.target),
        ]
        for count in counts:
            # With a port last: once a namespace had a rule for routing, its look-ups take longer for ever.
            paths += [
                ("ours, IPVS", count, lambda count=count: ours.prepare("ipvs", count)),
                (
                    "ours, nftables, without a flowtable",
                    count,
                    lambda count=count: ours.prepare("nftables", count, fast=False),
                ),
                ("ours, nftables", count, lambda count=count: ours.prepare("nftables", count)),
                (
                    "ours, nftables, with a published port",
                    count,
                    lambda count=count: ours.prepare("nftables", count, True),
                ),
                (
                    "ours, nftables, without a flowtable, with a published port",
                    count,
                    lambda count=count: ours.prepare("nftables", count, True, fast=False),
                ),
                ("ours, IPVS, with a published port", count, lambda count=count: ours.prepare("ipvs", count, True)),
                ("IPVS with source NAT, as Swarm", count, lambda count=count: swarm.prepare(count)),
            ]
        for name, count, prepare in paths:
            netns, address = prepare()
            ask(netns, address, connections // 10)
            found = [ask(netns, address, connections) for _ in range(rounds)]
            tell({"path": name, "services": count, **medians(found)})
        for count in counts:
            for balancer in ("ipvs", "nftables"):
                tell({"balancer": balancer, "services": count, **ours.program(balancer, count)})


def tell(what: dict[str, object]) -> None:
    print(f"bench: {what}", flush=True)
    with open("/run/results/bench.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(what) + "\n")


def medians(rounds: list[dict[str, float]]) -> dict[str, object]:
    return {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}


def ask(netns: str, address: str, connections: int) -> dict[str, float]:
    out = inside(netns, LOAD, "ask", address, str(PORT), str(connections), str(CONCURRENT), timeout_s=600)
    found: dict[str, float] = json.loads(out)
    return found


class Bed:
    """Namespaces and servers that go with the block."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._servers: list[subprocess.Popen[bytes]] = []
        self._namespaces: list[str] = []

    def namespace(self, name: str) -> str:
        made = f"{self.name}-{name}"
        run("ip", "netns", "add", made)
        self._namespaces.append(made)
        path = f"/run/netns/{made}"
        inside(path, "ip", "link", "set", "lo", "up")
        inside(path, "sysctl", "-qw", "net.ipv4.tcp_timestamps=2", "net.ipv4.conf.all.rp_filter=0",
               "net.ipv4.conf.default.rp_filter=0")  # fmt: skip
        return path

    def serve(self, netns: str) -> None:
        self._servers.append(subprocess.Popen(["nsenter", f"--net={netns}", LOAD, "serve", str(PORT)]))

    def __exit__(self, *_: object) -> None:
        for one in self._servers:
            one.terminate()
            one.wait(10)
        for name in self._namespaces:
            run("ip", "netns", "del", name)


class Plain(Bed):
    """A router between client and servers that balances nothing; with `conntrack` it counts connections."""

    def __init__(self, name: str, conntrack: bool) -> None:
        super().__init__(name)
        self._conntrack = conntrack
        self.target = ("", str(TASKS[0]))

    def __enter__(self) -> Plain:
        router, client = self.namespace("router"), self.namespace("client")
        inside(router, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.proxy_arp=1")
        attach(router, client, IPv4Address("10.1.0.100"))
        for task in TASKS:
            server = self.namespace(f"s{int(task) & 255}")
            attach(router, server, task)
            self.serve(server)
        if self._conntrack:
            inside(router, "nft", "add table ip t; add chain ip t c { type filter hook forward priority 0; };"
                                  " add rule ip t c ct state established,related accept")  # fmt: skip
        self.target = (client, str(TASKS[0]))
        return self


def attach(router: str, netns: str, address: IPv4Address) -> None:
    """A task as the overlay attaches it: a veth, a route to the one address."""
    device = f"v{int(address) & 255}"
    inside(router, "ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", Path(netns).name)
    inside(router, "ip", "link", "set", device, "up")
    inside(router, "ip", "route", "add", f"{address}/32", "dev", device)
    inside(netns, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
    inside(netns, "ip", "link", "set", "eth0", "up")
    inside(router, "sysctl", "-qw", f"net.ipv4.neigh.{device}.proxy_delay=0")
    inside(netns, "ip", "route", "add", "default", "via", "10.1.0.1", "onlink", "dev", "eth0")


class Swarm(Bed):
    """What Docker makes of a network on one node: a bridge, and a namespace on it with IPVS by mark and source NAT."""

    def __init__(self) -> None:
        super().__init__("swarm")
        self._client = self._balancer = ""
        self._made = 0

    def __enter__(self) -> Swarm:
        bridge, self._client, self._balancer = map(self.namespace, ("bridge", "client", "lb"))
        inside(bridge, "ip", "link", "add", "br0", "type", "bridge")
        inside(bridge, "ip", "link", "set", "br0", "up")
        for netns, address in (
            (self._client, "10.1.0.100"), (self._balancer, "10.1.0.2"), *((None, str(task)) for task in TASKS)
        ):  # fmt: skip
            end = netns or self.namespace(f"s{address.rpartition('.')[2]}")
            device = f"v{address.rpartition('.')[2]}"
            inside(bridge, "ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", Path(end).name)
            inside(bridge, "ip", "link", "set", device, "master", "br0", "up")
            inside(end, "ip", "addr", "add", f"{address}/16", "dev", "eth0")
            inside(end, "ip", "link", "set", "eth0", "up")
            if netns is None:
                self.serve(end)
        balancer = self._balancer
        probe(balancer)
        inside(balancer, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.vs.conntrack=1",
               "net.ipv4.vs.expire_nodest_conn=1", "net.ipv4.vs.conn_reuse_mode=0")  # fmt: skip
        inside(balancer, "ip", "addr", "add", f"{VIP}/32", "dev", "eth0")
        inside(balancer, "nft", "add table ip t; add map ip t m { type ipv4_addr : mark; };"
               " add chain ip t p { type filter hook prerouting priority -150; };"
               " add rule ip t p meta mark set ip daddr map @m;"
               " add chain ip t s { type nat hook postrouting priority 100; };"
               " add rule ip t s meta mark != 0 snat to 10.1.0.2")  # fmt: skip
        return self

    def prepare(self, count: int) -> tuple[str, str]:
        """More services, each by a mark of its own; the one that is asked is the first."""
        more = range(self._made, count)
        self._made = max(self._made, count)
        marks = {int(VIP) if n == 0 else int(IPv4Address("10.1.64.0")) + n: 256 + n for n in more}
        operations: list[PutService | PutBackend] = []
        for number in marks.values():
            id_ = ServiceId(AF_INET, mark=number)
            operations.append(PutService(id_, Service("rr", 0, 0), new=True))
            operations += [PutBackend(id_, Destination(task.packed, 0), 1, new=True) for task in TASKS]
        family = probe(self._balancer)

        def work(_: object) -> None:
            with Door(family) as door:
                door.do(list(operations))

        visit(self._balancer, work)
        if marks:
            elements = ", ".join(f"{IPv4Address(address)} : {mark}" for address, mark in marks.items())
            run("nsenter", f"--net={self._balancer}", "nft", "-f", "-", stdin=f"add element ip t m {{ {elements} }}\n",
                timeout_s=300)  # fmt: skip
        return self._client, str(VIP)


class Ours:
    """The product: the overlay's router, and the balancer in it."""

    def __init__(self, world: World) -> None:
        self._world, self._host = world, world.hosts[0]
        self._kernel: Kernel | None = None
        self._balancer: tuple[str, bool | None] = "", None
        world.networks["web"] = (VNI, IPv4Network("10.1.0.0/24"))
        self.client = world.task(self._host, "web", "10.1.0.100", name="client")
        self._servers = []
        for task in TASKS:
            made = world.task(self._host, "web", str(task))
            self._servers.append(subprocess.Popen(["nsenter", f"--net={made.netns}", LOAD, "serve", str(PORT)]))
        world.apply()
        world.stack.callback(self._close)

    def _close(self) -> None:
        for one in self._servers:
            one.terminate()
            one.wait(10)

    def plan(self, count: int, backends: int = BACKENDS, published: bool = False) -> VipPlan:
        """That many services; the last has `backends` backends. `published`: one more has a port, on three nodes."""
        uplink, tasks = names.uplink(VNI), tuple(map(Backend, TASKS))
        addresses = (VIP, *(IPv4Address("10.200.0.0") + n for n in range(1, count)))
        services = tuple(VirtualService(address, None, None, None, tasks) for address in addresses)
        last = replace(services[-1], backends=tasks[:backends])
        more = (VirtualService(uplink.router_address, "tcp", 8080, 80, tasks),) if published else ()
        others = (2, 3) if published else ()
        router = RouterPlan(
            netns=self._world.router(self._host, "web"),
            subnet=IPv4Network("10.1.0.0/24"),
            gateway=IPv4Address("10.1.0.1"),
            vxlan_device=names.vxlan_device(VNI),
            uplink_device=uplink.router_device,
            uplink_address=uplink.router_address,
            masquerade=True,
            local_tasks=tuple(TASKS),
            return_paths=tuple(ReturnPath(n, names.router_mac(n), names.router_address(n)) for n in others),
            meshed=published,  # as the agent has it
            task_devices=tuple(names.veth_device(one) for one in (self.client.address, *TASKS)),
            services=(*services[:-1], last, *more),
        )
        return VipPlan((router,), ())

    def _applied(self, plan: VipPlan) -> float:
        assert self._kernel is not None
        began = time.process_time()  # an apply also waits for the kernel, which keeps nobody from working
        report = self._kernel.apply(plan)
        took = time.process_time() - began
        assert report.errors == [], report.errors
        return took

    def _fresh(self, balancer: str, fast: bool | None = None) -> None:
        if self._kernel is not None:
            self._kernel.prune(VipPlan((), ()))
        self._kernel = Kernel(host_netns=self._host.netns, balancer=balancer, fast=fast)
        self._balancer = balancer, fast

    def prepare(self, balancer: str, count: int, published: bool = False, fast: bool | None = None) -> tuple[str, str]:
        """The client, and what it shall ask. `fast`: with a flowtable or without; None: as the kernel has it."""
        if (balancer, fast) != self._balancer:
            self._fresh(balancer, fast)
        self._applied(self.plan(count, published=published))
        return self.client.netns, str(VIP)

    def program(self, balancer: str, count: int) -> dict[str, object]:
        """Processor seconds to make all services from nothing, and to change one of them."""
        self._fresh(balancer)
        whole = self._applied(self.plan(count))
        plans = [self.plan(count, backends) for backends in (4, 5, 3, 5, 2)]
        return {"load_s": whole, "change_s": statistics.median(map(self._applied, plans))}


if __name__ == "__main__":
    main()
