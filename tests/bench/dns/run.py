"""Name servers side by side on this machine: `python tests/bench/dns/run.py [--names 1000] [--rounds 3] ...`.

Server pinned to one core, dnsperf to another; all servers take turns within each round, so that a busy machine hits
them alike. *CPU µs/query* is the server's own time on the CPU (user and system, all its threads, from schedstat) for
each question answered: the fair column, since dnsperf itself saturates. Latency is measured at a fixed rate that none
of them finds hard. Docker's
resolver needs root, the others only to install packages (`--install`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import embedded
import rivals

SERVER_CPU, LOAD_CPU = 1, 0
BASE_PORT = 5400
LATENCY_RATE, LATENCY_S = 10_000, 0.5
QUESTIONS = 20_000
START_S = 30.0
TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")
# Longer than it takes to ask for everything once.
WARM_S = 60.0
DOCKER = "docker"


@dataclass
class Result:
    """All rounds of one server in one scenario."""

    cpu_us: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    lost: int = 0
    p50_us: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    rss_mib: float = 0.0


@dataclass
class Server:
    """One that runs."""

    name: str
    port: int
    pid: int
    address: str = "127.0.0.1"
    inside: tuple[str, ...] = ()  # in front of a command that is to ask it


def cpu_ns(pid: int) -> int:
    """Time on the CPU of all threads of a process and its children, so far, those that have ended included."""
    total = 0
    with contextlib.suppress(OSError):  # ended meanwhile: then its parent says what it took
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
            for child in (task / "children").read_text().split():
                total += cpu_ns(int(child))
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[13:15])) * TICK_NS
    return total


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def wait_until_serving(port: int, name: str) -> None:
    """Ask until the answer has an address."""
    question = (
        b"\0\7\1\0\0\1\0\0\0\0\0\0" + b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0\0\1\0\1"
    )
    deadline = time.monotonic() + START_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.2)
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                sock.sendto(question, ("127.0.0.1", port))
                if sock.recv(4096)[7]:
                    return
                time.sleep(0.2)
    raise SystemExit(f"port {port} does not answer for {name}")


@contextlib.contextmanager
def running(name: str, port: int, count: int, upstream: int | None = None) -> Iterator[Server]:
    """Start a server, pinned; end it afterwards."""
    if name == DOCKER:
        with embedded.running([f"{label}.{rivals.ZONE}" for label, _ in rivals.records(count)], SERVER_CPU) as docker:
            yield Server(name, embedded.PORT, docker.pid, embedded.ADDRESS, docker.inside)
        return
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as directory:
        zone = rivals.records(count)
        command = rivals.RIVALS[name](Path(directory), port, zone, upstream)
        argv = ("taskset", "-c", str(SERVER_CPU), *command.argv)
        with subprocess.Popen(argv, cwd=command.cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                wait_until_serving(port, f"{zone[0][0]}.{rivals.ZONE}")
                yield Server(name, port, process.pid)
            finally:
                process.terminate()


@contextlib.contextmanager
def changing(port: int, count: int, rate: float) -> Iterator[Server]:
    """Our server fed by a daemon (on the load's core) with changes."""
    script = str(Path(__file__).with_name("changing.py"))
    argv = ("taskset", "-c", str(LOAD_CPU), sys.executable, script, str(port), str(count), str(rate))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            os.sched_setaffinity(pid, {SERVER_CPU})
            yield Server(f"ours, {rate:g} changes/s", port, pid)
        finally:
            process.terminate()


def dnsperf(server: Server, file: Path, seconds: float, *options: str) -> str:
    """Run the load and return what it printed. It gives up on a server that takes no connections: then nothing."""
    argv = (*server.inside, "taskset", "-c", str(LOAD_CPU), "dnsperf", "-s", server.address, "-p", str(server.port),
            "-d", str(file), "-l", str(seconds), "-T1", *options)  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{server.name}: {done.stderr.strip()[-200:]}", file=sys.stderr)
    return done.stdout if not done.returncode else ""


def number(pattern: str, text: str) -> float:
    """The number after a heading of dnsperf's."""
    found = re.search(pattern + r":\s+([0-9.]+)", text)
    return float(found[1]) if found else 0.0


def measure(server: Server, result: Result, file: Path, seconds: float, tcp: bool) -> None:
    """One round."""
    before = cpu_ns(server.pid)
    options = ("-m", "tcp", "-c4", "-q100") if tcp else ("-c4", "-q100")
    out = dnsperf(server, file, seconds, *options)
    if not (completed := number("Queries completed", out)):
        return
    result.cpu_us.append((cpu_ns(server.pid) - before) / 1000 / completed)
    result.rate.append(number("Queries per second", out))
    result.lost += int(number("Queries lost", out))
    result.rss_mib = max(result.rss_mib, rss_mib(server.pid))


def latency(server: Server, result: Result, file: Path) -> None:
    """Percentiles at a fixed rate, from dnsperf's line for each answer."""
    out = dnsperf(server, file, LATENCY_S, "-c4", "-Q", str(LATENCY_RATE), "-v")
    took = sorted(float(line.split()[-1]) * 1e6 for line in out.splitlines() if line.startswith("> NOERROR"))
    if took:
        result.p50_us.append(took[len(took) // 2])
        result.p99_us.append(took[len(took) * 99 // 100])


def questions(directory: Path, names: list[str]) -> Path:
    """A file of questions in random order."""
    rng = random.Random(1)
    file = directory / f"questions-{len(names)}"
    file.write_text("".join(f"{rng.choice(names)} A\n" for _ in range(max(QUESTIONS, 2 * len(names)))))
    return file


def table(title: str, results: dict[str, Result]) -> None:
    """Print a scenario's results, best first."""
    print(
        f"\n{title}\n{'server':<28}{'CPU µs/query':>14}{'q/s':>10}{'p50 µs':>9}{'p99 µs':>9}{'RSS MiB':>9}{'lost':>7}"
    )
    answered = {name: result for name, result in results.items() if result.cpu_us}
    for name, r in sorted(answered.items(), key=lambda item: statistics.median(item[1].cpu_us)):
        p50_us, p99_us = (f"{statistics.median(x):.0f}" if x else "-" for x in (r.p50_us, r.p99_us))
        print(
            f"{name:<28}{statistics.median(r.cpu_us):>14.2f}{statistics.median(r.rate):>10.0f}"
            f"{p50_us:>9}{p99_us:>9}{r.rss_mib:>9.0f}{r.lost:>7}",
            flush=True,
        )


def in_turns(args: argparse.Namespace, servers: list[Server], file: Path, *, tcp: bool = False) -> dict[str, Result]:
    """Rounds in which each server is measured once: what else the machine does hits them alike."""
    results = {server.name: Result() for server in servers}
    for server in servers:
        dnsperf(server, file, WARM_S, "-n1", "-c4", "-q100")  # all names once: what is kept is what is measured
    for _ in range(args.rounds):
        for server in servers:
            measure(server, results[server.name], file, args.seconds, tcp)
            latency(server, results[server.name], file)
    return results


def answering(args: argparse.Namespace, directory: Path, count: int, *, tcp: bool = False) -> dict[str, Result]:
    """All servers, their own names."""
    file = questions(directory, [f"{name}.{rivals.ZONE}" for name, _ in rivals.records(count)])
    absent = {"dnslib"} if tcp else {DOCKER} if count > embedded.NAMES_MAX else set()
    names = [name for name in args.servers if name not in absent]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(n, BASE_PORT + i, count)) for i, n in enumerate(names)]
        return in_turns(args, servers, file, tcp=tcp)


def while_changing(args: argparse.Namespace, directory: Path, count: int) -> dict[str, Result]:
    """Ours, as it is and while services change."""
    file = questions(directory, [f"svc{i}" for i in range(count)])
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(changing(BASE_PORT + 40 + i, count, rate)) for i, rate in enumerate((0.0, 100.0))
        ]
        return in_turns(args, servers, file)


def forwarding(args: argparse.Namespace, directory: Path, count: int) -> dict[str, Result]:
    """Names of others: in each round new ones (cold), then all of them again (warm). Upstream is ours, too."""
    names = [f"h{i}.example.com" for i in range(args.rounds * count)]
    upstream_zone, warm = directory / "upstream", questions(directory, names)
    upstream_zone.write_text("".join(f"{name} A 192.0.2.1\n" for name in names))
    upstream = BASE_PORT + 60
    call = f"serve_records({str(upstream_zone)!r}, '127.0.0.1', {upstream}, ttl_s=3600)"
    argv = ("taskset", "-c", str(LOAD_CPU), sys.executable, "-c", f"from dns.service import serve_records; {call}")
    with subprocess.Popen(argv, cwd=rivals.ROOT) as process, contextlib.ExitStack() as stack:
        try:
            wait_until_serving(upstream, names[0])
            servers = [
                stack.enter_context(running(name, BASE_PORT + 50 + i, 1, upstream))
                for i, name in enumerate(n for n in rivals.FORWARDERS if n in args.servers)
            ]
            results = {f"{server.name}, cold": Result() for server in servers}
            for number in range(args.rounds):
                cold = directory / f"cold-{number}"
                cold.write_text("".join(f"{name} A\n" for name in names[number * count : (number + 1) * count]))
                for server in servers:
                    asked_once(server, results[f"{server.name}, cold"], cold)
            return results | {f"{name}, warm": result for name, result in in_turns(args, servers, warm).items()}
        finally:
            process.terminate()


def asked_once(server: Server, result: Result, file: Path) -> None:
    """One round of questions each of which is new."""
    before = cpu_ns(server.pid)
    out = dnsperf(server, file, WARM_S, "-n1", "-c4", "-q50")
    result.cpu_us.append((cpu_ns(server.pid) - before) / 1000 / max(number("Queries completed", out), 1))
    result.rate.append(number("Queries per second", out))
    result.lost += int(number("Queries lost", out))
    result.rss_mib = max(result.rss_mib, rss_mib(server.pid))


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", nargs="+", default=[*rivals.RIVALS, DOCKER], choices=[*rivals.RIVALS, DOCKER])
    parser.add_argument("--names", nargs="+", type=int, default=[1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", nargs="+", default=["udp", "tcp", "changes", "forward"])
    parser.add_argument("--install", action="store_true", help="apt-get install what is measured")
    parser.add_argument("--json", help="write the numbers there, too")
    args = parser.parse_args()
    if args.install:
        subprocess.run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *rivals.PACKAGES], check=True)
    binaries = {"knot": "knotd", "bind9": "named", "ours": "python3", "dnslib": "python3",
                DOCKER: "dockerd"}  # fmt: skip
    args.servers = [n for n in args.servers if shutil.which(binaries.get(n, n)) or print(f"{n} is not installed")]
    kept: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-dns-") as name:
        directory = Path(name)
        scenarios = {
            "udp": lambda n: answering(args, directory, n),
            "tcp": lambda n: answering(args, directory, n, tcp=True),
            "changes": lambda n: while_changing(args, directory, n),
            "forward": lambda n: forwarding(args, directory, n),
        }
        for count in args.names:
            for scenario in args.only:
                results = scenarios[scenario](count)
                title = f"{scenario}, {count} names"
                table(title, results)
                kept[title] = {server: vars(result) for server, result in results.items()}
    if args.json:
        Path(args.json).write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
