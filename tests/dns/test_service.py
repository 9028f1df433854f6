"""The name server as the daemon runs it: its process, its sockets in namespaces, what clients see."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import dnslib
import pytest

from dns.legacy import Legacy
from dns.plan import DnsPlan, Listener, NetworkNames, ServiceNames, TaskNames
from dns.service import NameServer
from tests.ports import free_port

GATEWAY = IPv4Address("10.91.0.1")
WEB = "n-web"


def task(number: int, *, ready: bool = True) -> TaskNames:
    address = IPv4Address(f"10.91.{number // 200}.{number % 200 + 9}")
    return TaskNames(f"task{number}", number, f"api.{number}", (), (address,), ready, True)


def api(*tasks: TaskNames) -> ServiceNames:
    return ServiceNames("api", ("backend",), (IPv4Address("10.91.0.2"),), tasks)


def plan(port: int, *services: ServiceNames, netns: str | None = None, address: str = "127.0.0.1") -> DnsPlan:
    return DnsPlan(
        listeners=(Listener(netns, IPv4Address(address), port, WEB),),
        networks=(NetworkNames(WEB, "web", GATEWAY, services),),
        nodes={"h1": IPv4Address("192.0.2.1")},
    )


@contextlib.asynccontextmanager
async def running(server: NameServer) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.run())
        await asyncio.sleep(0)
        try:
            yield
        finally:
            serving.cancel()


async def ask(name: str, kind: str, port: int, *, tcp: bool = False) -> dnslib.DNSRecord:
    question = dnslib.DNSRecord.question(name, kind)
    return dnslib.DNSRecord.parse(await asyncio.to_thread(question.send, "127.0.0.1", port, tcp, 5.0))


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(happened):
            await asyncio.sleep(0.05)


def addresses(answer: dnslib.DNSRecord) -> set[str]:
    return {str(rr.rdata) for rr in answer.rr}


async def test_changes_are_served_when_apply_returns() -> None:
    port, server = free_port(), NameServer(resolv_conf="/dev/null")
    async with running(server):
        await server.apply(plan(port, api(task(1), task(2, ready=False))))
        assert addresses(await ask("api", "A", port)) == {"10.91.0.2"}
        assert addresses(await ask("tasks.api", "A", port)) == {"10.91.0.10"}
        await server.apply(plan(port, api(task(1), task(2))))
        assert addresses(await ask("tasks.api", "A", port)) == {"10.91.0.10", "10.91.0.11"}
        assert addresses(await ask("h1.node.mesh", "A", port)) == {"192.0.2.1"}
        await server.apply(plan(port))
        assert (await ask("api", "A", port)).header.rcode == dnslib.RCODE.NXDOMAIN
        assert server.status().problems == ()


async def test_a_name_that_flaps_is_never_nxdomain() -> None:
    port, server = free_port(), NameServer(resolv_conf="/dev/null")
    async with running(server):
        for turn in range(20):
            await server.apply(plan(port, api(task(1, ready=turn % 2 == 0))))
            answer = await ask("tasks.api", "A", port)
            assert answer.header.rcode == dnslib.RCODE.NOERROR
            assert len(answer.rr) == (turn + 1) % 2


async def test_a_killed_process_is_replaced_and_what_waited_is_answered() -> None:
    port, server = free_port(), NameServer(resolv_conf="/dev/null")
    async with running(server):
        await server.apply(plan(port, api(task(1))))
        pid = server.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert addresses(await ask("api", "A", port)) == {"10.91.0.2"}  # one datagram, sent once
        assert server.status().restarts == server.status().counters["restarts"] == 1
        assert server.status().pid != pid


async def test_several_processes_share_the_port() -> None:
    port, server = free_port(), NameServer(resolv_conf="/dev/null", processes=3)
    async with running(server):
        await server.apply(plan(port, api(task(1))))
        for _ in range(30):  # from another port each time
            assert addresses(await ask("api", "A", port)) == {"10.91.0.2"}
        await server.apply(plan(port))
        for _ in range(30):
            assert (await ask("api", "A", port)).header.rcode == dnslib.RCODE.NXDOMAIN
        await until(lambda: server.status().counters.get("queries_udp") == 60)
        assert server.status().levels["listeners"] == 3
    with pytest.raises(ValueError, match="not 0"):
        NameServer(processes=0)


async def test_the_process_ends_with_its_daemon() -> None:
    port, server = free_port(), NameServer(resolv_conf="/dev/null")
    async with running(server):
        await server.apply(plan(port, api(task(1))))
        pid = server.status().pid
        assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_process_may_outlive_its_daemon_and_is_replaced_by_that_of_the_next(tmp_path: Path) -> None:
    port, first = free_port(), NameServer(resolv_conf="/dev/null", outlive=tmp_path)
    async with running(first):
        await first.apply(plan(port, api(task(1))))
        old = first.status().pid
        assert old is not None
    assert addresses(await ask("api", "A", port)) == {"10.91.0.2"}, "answered without a daemon"
    second = NameServer(resolv_conf="/dev/null", outlive=tmp_path)
    async with running(second):
        moved = replace(api(task(1)), vips=(IPv4Address("10.91.0.3"),))
        await second.apply(plan(port, moved))
        await until(lambda: not Path(f"/proc/{old}/cmdline").read_bytes())
        for _ in range(20):
            assert addresses(await ask("api", "A", port)) == {"10.91.0.3"}
        new = second.status().pid
        await second.apply(DnsPlan())
        await until(lambda: second.status().current)
    await until(lambda: not Path(f"/proc/{new}/cmdline").read_bytes())


def test_a_process_that_has_a_noted_number_by_chance_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        (tmp_path / "mesh-dns-0").write_text(f"{bystander.pid} 12345\n")
        legacy = Legacy(tmp_path)
        legacy.find()
        legacy.end()
        assert bystander.poll() is None
        legacy.note(0, bystander.pid)
        legacy.find()
        legacy.end()
        assert bystander.wait(5) == -signal.SIGTERM


async def test_an_address_in_use_is_reported_and_taken_when_it_is_free() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        server = NameServer(resolv_conf="/dev/null")
        async with running(server):
            await server.apply(plan(port, api(task(1))))
            assert server.status().problems == (f"cannot listen on 127.0.0.1 port {port}: Address already in use",)
            taken.close()
            await until(lambda: not server.status().problems)
            assert addresses(await ask("api", "A", port)) == {"10.91.0.2"}


async def test_a_large_answer_is_truncated_and_whole_over_tcp() -> None:
    port, server = free_port(), NameServer(resolv_conf="/dev/null")
    async with running(server):
        await server.apply(plan(port, api(*(task(n) for n in range(1, 301)))))
        short = await ask("tasks.api", "A", port)
        assert short.header.tc
        assert 0 < len(short.rr) < 40
        whole = await ask("tasks.api", "A", port, tcp=True)
        assert not whole.header.tc
        assert len(addresses(whole)) == 300


async def test_names_of_others_go_to_the_servers_of_resolv_conf(tmp_path: Path) -> None:
    upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    upstream.bind(("127.0.0.1", 0))
    upstream.settimeout(10)

    def answer_once() -> None:
        data, client = upstream.recvfrom(2048)
        record = dnslib.DNSRecord.parse(data)
        reply = record.reply()
        reply.add_answer(*dnslib.RR.fromZone("example.com 60 A 192.0.2.80"))
        upstream.sendto(reply.pack(), client)

    thread = threading.Thread(target=answer_once)
    thread.start()
    port = free_port()
    server = NameServer(upstreams=(f"127.0.0.1:{upstream.getsockname()[1]}",))
    async with running(server):
        await server.apply(plan(port, api(task(1))))
        assert addresses(await ask("example.com", "A", port)) == {"192.0.2.80"}
        assert addresses(await ask("EXAMPLE.com", "A", port)) == {"192.0.2.80"}  # from the cache: nobody answers twice
    thread.join()
    upstream.close()


async def test_a_new_resolv_conf_is_noticed(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    port, server = free_port(), NameServer(resolv_conf=str(conf))
    async with running(server):
        await server.apply(plan(port, api(task(1))))
        assert (await ask("www.example.com", "A", port)).header.rcode == dnslib.RCODE.SERVFAIL
        (tmp_path / "new").write_text("nameserver 192.0.2.7\nnameserver 192.0.2.8\n")
        (tmp_path / "new").rename(conf)
        await until(lambda: server.status().upstreams == ("192.0.2.7:53", "192.0.2.8:53"))


async def test_we_do_not_ask_ourselves() -> None:
    port = free_port()
    server = NameServer(upstreams=(f"127.0.0.1:{port}", "192.0.2.9"))
    async with running(server):
        await server.apply(plan(port, api(task(1))))
        await until(lambda: server.status().upstreams == ("192.0.2.9:53",))


# --- in namespaces ------------------------------------------------------------------------------------------------


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def attempt(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"dns-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.mark.root
async def test_clients_in_a_namespace(netns: str, tmp_path: Path) -> None:
    path = f"/run/netns/{netns}"
    server = NameServer(resolv_conf="/dev/null")
    async with running(server):
        # The address comes after the socket: the order in which a network is made does not matter.
        await server.apply(plan(53, api(task(1), task(2)), netns=path, address=str(GATEWAY)))
        assert server.status().problems == ()
        run("ip", "-n", netns, "addr", "add", f"{GATEWAY}/32", "dev", "lo")
        conf = tmp_path / "resolv.conf"
        conf.write_text(f"nameserver {GATEWAY}\nsearch web.mesh\noptions ndots:1\n")
        # ip netns exec mounts /etc/netns/NAME; a mount namespace of our own leaves nothing behind.
        bind = f"mount --bind {conf} /etc/resolv.conf && exec"

        async def inside(command: str) -> str:
            script = ("unshare", "-m", "sh", "-c", f"{bind} {command}")
            return await asyncio.to_thread(run, "nsenter", f"--net={path}", *script)

        assert (await inside("dig +short api")).split() == ["10.91.0.2"]
        assert (await inside("dig +short +search api")).split() == ["10.91.0.2"]
        assert (await inside("dig +short -x 10.91.0.10")).split() == ["1.api.web.mesh."]
        for name in ("api", "api.web.mesh", "backend", "tasks.backend", "1.api", "api.1", "task1"):
            assert "10.91.0." in await inside(f"getent ahostsv4 {name}"), name
        assert "10.91.0.2" in await inside("busybox nslookup api")
        with pytest.raises(AssertionError):
            await inside("timeout 3 getent ahosts no-such-service")


@pytest.mark.root
async def test_a_namespace_made_anew_gets_new_sockets(netns: str) -> None:
    path = f"/run/netns/{netns}"
    server = NameServer(resolv_conf="/dev/null")
    ask_inside = ("nsenter", f"--net={path}", "dig", "+short", "+time=1", "+tries=1", "@127.0.0.1", "api")
    async with running(server):
        await server.apply(plan(53, api(task(1)), netns=path))
        assert (await asyncio.to_thread(run, *ask_inside)).split() == ["10.91.0.2"]
        run("ip", "netns", "del", netns)
        run("ip", "netns", "add", netns)
        run("ip", "-n", netns, "link", "set", "lo", "up")
        await until(lambda: attempt(*ask_inside).split() == ["10.91.0.2"])
        await server.apply(replace(plan(53), listeners=()))
        await until(lambda: server.status().listeners == 0)
