"""The serving process in a thread, with real sockets on loopback: hostile clients, and servers that misbehave."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import dnslib
import pytest

from dns import kernel, stream, wire
from dns.plan import DnsPlan, NetworkNames, ServiceNames, TaskNames
from dns.server import Server
from dns.upstreams import Upstream

WEB = "n1"
API = ServiceNames("api", (), (IPv4Address("10.0.0.2"),), (TaskNames("t1", 1, "h", (), (IPv4Address("10.0.0.9"),), True, True),))  # fmt: skip  # noqa: E501
PLAN = DnsPlan(networks=(NetworkNames(WEB, "web", IPv4Address("10.0.0.1"), (API,)),))


class Running:
    """A server in a thread of its own, and a client's view of it."""

    def __init__(self, server: Server, port: int) -> None:
        self.server, self.port = server, port

    def udp(self, data: bytes, timeout_s: float = 5.0) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(timeout_s)
            sock.sendto(data, ("127.0.0.1", self.port))
            return sock.recv(65535)

    def tcp(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def ask(self, name: str, kind: str = "A") -> dnslib.DNSRecord:
        return dnslib.DNSRecord.parse(self.udp(question(name, kind)))

    def stat(self, name: str) -> int:
        stats = self.server.stats()
        return {**stats.counters, **stats.levels}.get(name, 0)


def listening(host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """A pair on some port. The one that UDP gets may be taken for TCP: then another."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            return kernel.listening(host, 0)
    raise AssertionError("no port is free")


@contextlib.contextmanager
def serving(*upstreams: Upstream, plan: DnsPlan = PLAN) -> Iterator[Running]:
    server = Server(time.monotonic, random.SystemRandom().getrandbits)
    server.set_upstreams(upstreams)
    server.resolver.load(plan)
    udp, tcp = listening()
    server.add_listener(1, udp, tcp, WEB)
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                server.turn(0.02)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield Running(server, udp.getsockname()[1])
    finally:
        stop.set()
        thread.join()
        server.drop_listener(1)
        assert not failures


def question(name: str, kind: str = "A") -> bytes:
    return bytes(dnslib.DNSRecord.question(name, kind).pack())


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def read_framed(sock: socket.socket) -> bytes:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = sock.recv(count - len(data))
            assert piece, "closed"
            data += piece
        return data

    return exactly(int.from_bytes(exactly(2), "big"))


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- clients ------------------------------------------------------------------------------------------------------


def test_bursts_are_answered_each_with_its_own() -> None:
    with serving() as running, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        names = ["api", "nobody", "tasks.api", "1.api", "aPi.WEB.mesh"]
        wanted: dict[int, str] = {}
        for i in range(300):
            record = dnslib.DNSRecord.question(names[i % len(names)])
            record.header.id = i
            wanted[i] = str(record.q.qname)
            sock.sendto(bytes(record.pack()) if i % 7 else b"\0", ("127.0.0.1", running.port))
        for i in range(0, 300, 7):
            del wanted[i]
        while wanted:
            answer = dnslib.DNSRecord.parse(sock.recv(2048))
            assert str(answer.q.qname) == wanted.pop(answer.header.id)
            assert (answer.header.rcode == 3) == ("nobody" in str(answer.q.qname))
        assert running.stat("dropped_short") == 43


def test_both_families_side_by_side() -> None:
    with serving() as running:
        udp, tcp = listening("::1")
        running.server.add_listener(2, udp, tcp, WEB)
        port = udp.getsockname()[1]
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            for i in range(200):
                sock.sendto(question("api" if i % 2 else "nobody"), ("::1", port))
                assert running.ask("1.api").header.rcode == 0
                assert sock.recv(512)[3] & 15 == (0 if i % 2 else 3)
        with socket.create_connection(("::1", port), timeout=5) as stream_sock:
            stream_sock.sendall(framed(question("api")))
            assert read_framed(stream_sock)[3] & 15 == 0
        running.server.drop_listener(2)


def test_datagrams_of_every_size() -> None:
    with serving() as running, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for size in (0, 1, 11, 12, 512, 1279, 1280, 1281, 9000, 60_000):
            sock.sendto(question("api")[:12].ljust(size, b"\x01")[:size], ("127.0.0.1", running.port))
        assert [str(rr.rdata) for rr in running.ask("api").rr] == ["10.0.0.2"]
        assert running.stat("dropped_short") == 3
        assert running.stat("dropped_too_long") == 4


def test_mutated_packets_over_the_socket() -> None:
    rng = random.Random(5)
    with serving() as running, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(2000):
            data = bytearray(question("tasks.api", "ANY"))
            for _ in range(rng.randint(1, 5)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            sock.sendto(data, ("127.0.0.1", running.port))
        assert running.ask("api").header.rcode == 0


# Asks for another name each time, as fast as it can, for at most half a minute.
STORM = r"""
import itertools, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.2", 0))
sock.connect(("127.0.0.1", int(sys.argv[1])))
sock.setblocking(False)
end = time.monotonic() + 30
for number in itertools.count():
    try:
        sock.send(b"\0\7\1\0\0\1\0\0\0\0\0\0\x09%09d\0\0\1\0\1" % number)
    except OSError:
        pass
    if number % 1000 == 0 and time.monotonic() > end:
        break
"""


def test_a_storm_of_one_client_does_not_starve_another() -> None:
    with serving() as running, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.3", 0))
        sock.settimeout(1)
        command = [sys.executable, "-I", "-c", STORM, str(running.port)]
        with subprocess.Popen(command) as storm:
            try:
                until(lambda: running.stat("over_share") > 10_000)
                for _ in range(20):
                    assert answered(sock, running.port, attempts=3)
                assert storm.poll() is None
            finally:
                storm.kill()
        assert running.ask("api").header.rcode == 0


def answered(sock: socket.socket, port: int, attempts: int) -> bool:
    """Ask as libc does: again after a second."""
    for _ in range(attempts):
        sock.sendto(question("api"), ("127.0.0.1", port))
        with contextlib.suppress(TimeoutError):
            return sock.recv(512)[3] & 15 == 0
    return False


def test_several_questions_on_one_connection() -> None:
    with serving() as running, running.tcp() as sock:
        sock.sendall(b"".join(framed(question(name)) for name in ("api", "nobody", "tasks.api")))
        answers = [dnslib.DNSRecord.parse(read_framed(sock)) for _ in range(3)]
        assert [a.header.rcode for a in answers] == [0, 3, 0]
        data = framed(question("1.api"))
        for i in range(len(data)):
            sock.sendall(data[i : i + 1])
        assert [str(rr.rdata) for rr in dnslib.DNSRecord.parse(read_framed(sock)).rr] == ["10.0.0.9"]
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_more_questions_than_may_wait() -> None:
    with serving() as running, running.tcp() as sock:
        sock.sendall(framed(question("api")) * 500)
        assert {read_framed(sock)[3] & 15 for _ in range(500)} == {0}


def test_a_client_that_never_reads_does_not_grow_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MESSAGE_S", 0.3)
    tasks = tuple(replace(API.tasks[0], id=f"t{i}", addresses=(IPv4Address(f"10.0.{i >> 8}.{i & 255}"),)) for i in range(2000))  # fmt: skip  # noqa: E501
    plan = DnsPlan(networks=(replace(PLAN.networks[0], services=(replace(API, tasks=tasks),)),))
    with serving(plan=plan) as running, running.tcp() as sock:
        sock.settimeout(0.2)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(5000):
                sock.sendall(framed(question("tasks.api")))
        until(lambda: running.stat("connections_timed_out") == 1)
        assert running.stat("queries_tcp") < 1000
        assert running.ask("api").header.rcode == 0


def test_slow_loris(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MESSAGE_S", 0.3)
    with serving() as running, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(running.tcp()) for _ in range(40)]
        for sock in slow:
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"\0")
        until(lambda: running.stat("connections_refused") == 8)  # 32 of one client
        assert running.ask("api").header.rcode == 0
        until(lambda: running.stat("connections") == 0)
        with running.tcp() as sock:
            sock.sendall(framed(question("api")))
            assert read_framed(sock)[3] & 15 == 0


def test_what_the_kernel_had_no_room_for_is_known() -> None:
    udp, tcp = listening()
    with udp, tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        assert kernel.buffered(udp) == kernel.Buffered(0.0, 0)
        for _ in range(2000):
            sock.sendto(question("api"), udp.getsockname())
        assert kernel.buffered(udp).part > 0.9
        assert 1000 < kernel.buffered(udp).lost < 2000


# --- other servers ------------------------------------------------------------------------------------------------

Behaviour = Callable[[dnslib.DNSRecord], "bytes | None"]


@contextlib.contextmanager
def fake(behaviour: Behaviour, tcp: Behaviour | None = None) -> Iterator[Upstream]:
    """A name server on loopback that does what it is told."""
    udp, listener = listening()
    stop = threading.Event()

    def serve_udp() -> None:
        udp.settimeout(0.05)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                data, client = udp.recvfrom(4096)
                answer = behaviour(dnslib.DNSRecord.parse(data))
                if answer is not None:
                    udp.sendto(answer, client)

    def serve_tcp() -> None:
        listener.settimeout(0.05)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError), listener.accept()[0] as sock:
                sock.settimeout(5)
                answer = tcp(dnslib.DNSRecord.parse(read_framed(sock))) if tcp else None
                if answer is not None:
                    sock.sendall(framed(answer))

    threads = [threading.Thread(target=t) for t in (serve_udp, serve_tcp)]
    for thread in threads:
        thread.start()
    try:
        yield Upstream("127.0.0.1", udp.getsockname()[1])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        udp.close()
        listener.close()


def good(asked: dnslib.DNSRecord, address: str = "192.0.2.80", ttl: int = 60) -> bytes:
    record = asked.reply()
    record.add_answer(dnslib.RR(asked.q.qname, dnslib.QTYPE.A, rdata=dnslib.A(address), ttl=ttl))
    return bytes(record.pack())


def silent(_asked: dnslib.DNSRecord) -> None:
    return None


def failing(asked: dnslib.DNSRecord) -> bytes:
    record = asked.reply()
    record.header.rcode = dnslib.RCODE.SERVFAIL
    return bytes(record.pack())


def lying(asked: dnslib.DNSRecord) -> bytes:
    data = good(asked, "203.0.113.66")
    return struct.pack("!H", (asked.header.id + 1) & 0xFFFF) + data[2:]


@pytest.mark.parametrize("first", [silent, failing, lying, lambda _: b"\xff" * 30])
def test_a_bad_server_before_a_good_one(first: Behaviour) -> None:
    with fake(first) as bad, fake(good) as fine, serving(bad, fine) as running:
        assert [str(rr.rdata) for rr in running.ask("www.example.com").rr] == ["192.0.2.80"]


def test_a_dead_server_before_a_good_one() -> None:
    with fake(good) as fine:
        dead = Upstream("127.0.0.1", 1)
        with serving(dead, fine) as running:
            assert [str(rr.rdata) for rr in running.ask("www.example.com").rr] == ["192.0.2.80"]


def test_dead_servers_only() -> None:
    with serving(Upstream("127.0.0.1", 1), Upstream("127.0.0.1", 2)) as running:
        assert running.ask("www.example.com").header.rcode == wire.SERVFAIL


def test_a_long_answer_of_another_server_is_fetched_over_tcp() -> None:
    def cut(asked: dnslib.DNSRecord) -> bytes:
        record = asked.reply()
        record.header.tc = 1
        return bytes(record.pack())

    def whole(asked: dnslib.DNSRecord) -> bytes:
        record = asked.reply()
        for i in range(100):
            record.add_answer(dnslib.RR(asked.q.qname, dnslib.QTYPE.A, rdata=dnslib.A(f"192.0.2.{i}"), ttl=60))
        return bytes(record.pack())

    with fake(cut, whole) as upstream, serving(upstream) as running:
        assert running.ask("www.example.com").header.tc
        with running.tcp() as sock:
            sock.sendall(framed(question("www.example.com")))
            assert len(dnslib.DNSRecord.parse(read_framed(sock)).rr) == 100


def test_a_server_that_dies_leaves_its_last_answer() -> None:
    alive = threading.Event()
    alive.set()

    def mortal(asked: dnslib.DNSRecord) -> bytes | None:
        return good(asked, ttl=1) if alive.is_set() else failing(asked)

    with fake(mortal) as upstream, serving(upstream) as running:
        assert running.ask("www.example.com").header.rcode == 0
        alive.clear()
        time.sleep(1.1)
        answer = running.ask("www.example.com")
        assert [(str(rr.rdata), rr.ttl) for rr in answer.rr] == [("192.0.2.80", 1)]
        assert running.stat("served_stale") == 1


def test_single_labels_never_leave() -> None:
    seen: list[str] = []

    def spy(asked: dnslib.DNSRecord) -> bytes:
        seen.append(str(asked.q.qname))
        return good(asked)

    with fake(spy) as upstream, serving(upstream) as running:
        for name in ("nobody", "nobody.web.mesh", "x.mesh", "9.api", "localhost"):
            running.ask(name)
        running.ask("www.example.com")
        assert seen == ["www.example.com."]


def test_questions_under_way_do_not_keep_sockets() -> None:
    with fake(silent) as upstream, serving(upstream) as running, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for i in range(300):
            s.sendto(question(f"n{i}.example.com"), ("127.0.0.1", running.port))
        until(lambda: running.stat("forward_refused") > 0)  # one client's share
        assert running.ask("api").header.rcode == 0
        until(lambda: 0 < running.stat("forwarded") == running.stat("forward_failed"))
        until(lambda: len(running.server._sockets) == 0)
