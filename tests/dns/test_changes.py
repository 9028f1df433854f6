"""Thousands of names that change while they are asked for: each answer must be right at the time it was given."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path

import dnslib

from dns.plan import DnsPlan, Listener, NetworkNames, ServiceNames, TaskNames
from dns.service import NameServer
from tests.ports import free_port

SERVICES = 10_000
CHANGES = 400
WEB = "n1"


def service(number: int, version: int) -> ServiceNames:
    """A service whose only ready task has the version in its address; every third version has none ready."""
    address = IPv4Address(0x0A000000 + (number << 8) + version)
    task = TaskNames(f"t{number}", 1, f"s{number}.1", (), (address,), version % 3 != 2, True)
    return ServiceNames(f"s{number}", (f"alias{number}",), (), (task,))


@dataclass
class History:
    """Which versions of a service were to be served when. Versions are applied one after the other."""

    begun_s: dict[int, list[float]] = field(default_factory=dict)  # when `apply` of each version began
    ended_s: dict[int, list[float]] = field(default_factory=dict)  # when it had returned

    def possible(self, number: int, asked_s: float, answered_s: float) -> set[int]:
        """The versions that an answer in this time may show."""
        begun, ended = self.begun_s[number], self.ended_s[number]
        newest = max(v for v, at in enumerate(begun) if at <= answered_s)
        oldest = max(v for v, at in enumerate(ended) if at <= asked_s)
        return set(range(oldest, newest + 1))


def ask_until(stop: threading.Event, port: int, history: History, wrong: list[str], asked: list[int]) -> None:
    rng = random.Random(asked[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", port))
        while not stop.is_set():
            number = rng.randrange(40)  # the ones that change
            name = rng.choice(
                (f"s{number}", f"tasks.s{number}", f"alias{number}.web.mesh", f"t{number}", f"1.s{number}")
            )
            question = dnslib.DNSRecord.question(name)
            asked_s = time.monotonic()
            sock.send(bytes(question.pack()))
            answer = dnslib.DNSRecord.parse(sock.recv(2048))
            possible = history.possible(number, asked_s, time.monotonic())
            assert answer.header.id == question.header.id
            got = [int(IPv4Address(str(rr.rdata))) & 0xFF for rr in answer.rr]
            right = answer.header.rcode == 0 and any(got == ([] if v % 3 == 2 else [v]) for v in possible)
            if not right:
                wrong.append(f"{name}: rcode {answer.header.rcode}, {got}, not one of {possible}")
            asked[0] += 1


async def test_every_answer_is_right_at_its_time() -> None:
    port = free_port()
    services = [service(i, 0) for i in range(SERVICES)]
    history, wrong, counts = History(), [], [[1], [2]]
    listener = Listener(None, IPv4Address("127.0.0.1"), port, WEB)
    network = NetworkNames(WEB, "web", IPv4Address("10.0.0.1"), ())
    server, stop = NameServer(resolv_conf="/dev/null"), threading.Event()

    async def apply() -> None:
        await server.apply(DnsPlan((listener,), (replace(network, services=tuple(services)),)))

    async with asyncio.TaskGroup() as group:
        running = group.create_task(server.run())
        await asyncio.sleep(0)
        await apply()
        history.begun_s = {i: [0.0] for i in range(SERVICES)}
        history.ended_s = {i: [0.0] for i in range(SERVICES)}
        async with asyncio.timeout(20):  # all are loaded when the last answers
            await asyncio.to_thread(_wait_for, f"s{SERVICES - 1}", port)
        threads = [threading.Thread(target=ask_until, args=(stop, port, history, wrong, count)) for count in counts]
        for thread in threads:
            thread.start()
        for turn in range(CHANGES):
            number = turn % 40
            version = turn // 40 + 1
            services[number] = service(number, version)
            history.begun_s[number].append(time.monotonic())
            await apply()
            async with asyncio.timeout(20):  # longer than `apply` waits, on a busy machine
                while not server.status().current:
                    await asyncio.sleep(0.01)
            history.ended_s[number].append(time.monotonic())
            await asyncio.sleep(0.005)
        pid = server.status().pid
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        stop.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        running.cancel()
    assert wrong == []
    assert sum(count[0] for count in counts) > 500
    assert resident < 200 * 1024 * 1024


def _wait_for(name: str, port: int) -> None:
    answer = None
    while answer is None or not answer.rr:
        answer = dnslib.DNSRecord.parse(dnslib.DNSRecord.question(name).send("127.0.0.1", port, timeout=5))
