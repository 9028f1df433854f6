"""Balancing on this machine's kernel, measured: `.venv/bin/python -m tests.bench.dataplane.run` (root, two minutes).

One client opens and closes connections to one server on the same host, through the router: to the task's own address
(routed, with connection tracking), and to a service's, balanced by our maps, by rules as kube-proxy writes them for
iptables, by haproxy, or by an eBPF program at connect time; and through a router that tracks nothing. Rounds of all
paths are interleaved; medians, and ratios to the routed path, of rates and of processor time (which other work on the
machine disturbs less). Then throughput, also between hosts, and what it takes to program.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from mesh.vip.plan import Backend, VirtualService
from tests.bench.dataplane.at_connect import translated
from tests.bench.dataplane.programming import programming
from tests.bench.dataplane.rivals import process, proxied, untracked
from tests.bench.dataplane.throughput import throughput
from tests.netns.vip_lab import Lab, three_hosts
from tests.netns.world import inside

ROUNDS, ROUND_S, PORT = 5, 0.6, 7000
_ASKED = IPv4Address("10.1.0.252")
_UNTRACKED = "routed, no connection tracking"
CLIENT = """
import json, socket, sys, time
address, seconds, took, used = (sys.argv[1], 7000), float(sys.argv[2]), [], time.process_time()
end = time.perf_counter() + seconds
while (began := time.perf_counter()) < end:
    one = socket.create_connection(address)
    took.append(time.perf_counter() - began)
    one.recv(1)
    one.close()
used = (time.process_time() - used) * 1e6
took.sort()
print(json.dumps([len(took), took[len(took) // 2] * 1e6, took[len(took) * 99 // 100] * 1e6, used]))
"""
# The server closes first: the client's ports are free again at once.
SERVER = """
import socket
listener = socket.create_server(("0.0.0.0", 7000), backlog=1024)
while True:
    listener.accept()[0].close()
"""


def services(count: int) -> tuple[VirtualService, ...]:
    """Services with 5 backends each; nobody asks for them."""
    backends = tuple(Backend(IPv4Address("10.1.0.10") + n) for n in range(5))
    return tuple(VirtualService(IPv4Address("10.200.0.0") + n, None, None, None, backends) for n in range(count))


def iptables(lab: Lab, count: int) -> None:
    """One rule per service and chain, as kube-proxy has them; the one that is asked for (10.1.0.250) comes last."""
    lines = ["*nat", ":SERVICES - [0:0]", ":S - [0:0]", "-A PREROUTING -j SERVICES"]
    for n in range(count - 1):
        address = IPv4Address("10.201.0.0") + n
        lines.append(f"-A SERVICES -d {address}/32 -p tcp --dport {PORT} -j S")
    lines.append(f"-A SERVICES -d 10.1.0.250/32 -p tcp --dport {PORT} -j S")
    lines.append(f"-A S -p tcp -j DNAT --to-destination {lab.address('web1')}:{PORT}")
    router = lab.router(lab.hosts[0])
    subprocess.run(
        ["nsenter", f"--net={router}", "iptables-restore"],
        input="\n".join([*lines, "COMMIT", ""]),
        text=True,
        check=True,
    )
    inside(router, "ip", "route", "replace", "local", "10.1.0.250", "dev", "lo")


def connect(client: str, to: str, servers: list[int], group: Path | None = None) -> list[float]:
    """[connections/s, median and 99th percentile of the time to connect (µs), processor time of both ends each (µs)]

    `servers` are the processes at the other end; `group` is the list of members of a cgroup, which the client joins.
    """
    argv = ["nsenter", f"--net={client}", sys.executable, "-c", CLIENT, to, str(ROUND_S)]
    if group is not None:
        argv = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(group), *argv]
    before = _processor_us(servers)
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    count, p50_us, p99_us, own_us = json.loads(done.stdout)
    return [count / ROUND_S, p50_us, p99_us, (own_us + _processor_us(servers) - before) / count]


def _processor_us(processes: list[int]) -> float:
    """Since they began. Packets are forwarded in the time of who sends them."""
    return sum(int(Path(f"/proc/{one}/schedstat").read_text().split()[0]) for one in processes) / 1e3


@contextlib.contextmanager
def at_connect(task: IPv4Address, count: int) -> Iterator[Path]:
    """A cgroup in which connections to so many services, one of them asked for, go to tasks from the start."""
    others = {(IPv4Address("10.202.0.0") + n, PORT): (IPv4Address("10.203.0.0") + n, PORT) for n in range(count - 1)}
    with translated({**others, (_ASKED, PORT): (task, PORT)}) as group:
        yield group


def connections(lab: Lab, directory: Path) -> None:
    """The table of connections."""
    host, task, vip = lab.hosts[0], str(lab.address("web1")), str(lab.nets["web"].vip)
    lab.nets["web"].backends = {lab.address("web1"): 1}
    kernel = lab.kernels[host.number]

    def ours(count: int) -> Callable[[], str]:
        def prepare() -> str:
            assert kernel.apply(lab.with_services(host, services(count - 1))).errors == []
            return vip

        return prepare

    def rules(count: int) -> Callable[[], str]:
        def prepare() -> str:
            iptables(lab, count)
            return "10.1.0.250"

        return prepare

    paths: dict[str, Callable[[], str]] = {"routed, connection tracking": lambda: task}
    paths |= {f"ours, {n} services": ours(n) for n in (1, 1000, 5000)}
    if shutil.which("iptables-restore"):
        paths |= {f"iptables, {n} services": rules(n) for n in (1, 1000, 5000)}
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(untracked())
        servers = [
            stack.enter_context(process(netns, sys.executable, "-c", SERVER))
            for netns in (lab.netns("web1"), plain.server)
        ]
        proxy, running = stack.enter_context(proxied(lab, directory))
        servers.append(running)
        paths["haproxy"] = lambda: proxy
        paths[_UNTRACKED] = lambda: plain.address
        groups: dict[str, Path] = {}
        for count in (1, 5000):
            name = f"eBPF at connect time, {count} services"
            groups[name] = stack.enter_context(at_connect(lab.address("web1"), count))
            paths[name] = lambda: str(_ASKED)
        found: dict[str, list[list[float]]] = {name: [] for name in paths}
        for _ in range(ROUNDS):
            for name, prepare in paths.items():
                to = prepare()
                client = plain.client if name == _UNTRACKED else lab.netns("client1")
                found[name].append(connect(client, to, servers, groups.get(name)))
                if name.startswith("iptables"):
                    inside(lab.router(host), "iptables", "-t", "nat", "-F")
    table = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    base = table["routed, connection tracking"]
    print(f"{'path':36} {'conn/s':>8} {'ratio':>6} {'p50 us':>7} {'p99 us':>7} {'cpu us':>7} {'ratio':>6}")
    for name, (rate, p50, p99, used) in table.items():
        print(
            f"{name:36} {rate:8.0f} {rate / base[0]:6.2f} {p50:7.0f} {p99:7.0f} {used:7.1f} {base[3] / used:6.2f}",
            flush=True,
        )


def main() -> None:
    """Run it all."""
    if os.geteuid() != 0:
        sys.exit("needs root")
    with tempfile.TemporaryDirectory() as directory, three_hosts(Path(directory)) as lab:
        connections(lab, Path(directory))
        throughput(lab)
        programming(lab)


if __name__ == "__main__":
    main()
