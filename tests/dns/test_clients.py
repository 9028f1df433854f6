"""Real clients, as containers have them: glibc, musl, busybox, Python, curl, dig; one network with both families."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from dns.plan import DnsPlan, Listener, NetworkNames, ServiceNames, TaskNames
from dns.service import NameServer
from tests.dns.test_service import run, running

GATEWAY = IPv4Address("10.92.0.1")
WEB, BACK = "n-web", "n-back"
pytestmark = pytest.mark.root

# What every program built with musl does: both families are asked at once, over the search domains.
LOOKUP = r"""
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(int argc, char **argv) {
    struct addrinfo hints, *found, *one;
    char text[64];
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    int failed = getaddrinfo(argv[argc - 1], "80", &hints, &found);
    if (failed) { printf("%s\n", gai_strerror(failed)); return 2; }
    for (one = found; one; one = one->ai_next) {
        void *at = one->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
                                             : (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
        printf("%s\n", inet_ntop(one->ai_family, at, text, sizeof text));
    }
    return 0;
}
"""
PYTHON = "import socket,sys; print(*sorted({a[4][0] for a in socket.getaddrinfo(sys.argv[1], 80)}), sep='\\n')"

Inside = Callable[[str], Awaitable[str]]


def task(number: int, *, ready: bool = True) -> TaskNames:
    addresses = (IPv4Address(f"10.92.{1 + number // 200}.{number % 200 + 1}"), IPv6Address(f"fd00:92::{number:x}"))
    return TaskNames(f"task{number}", number, f"big.{number}", (), addresses, ready, True)


SERVICES = (
    ServiceNames("api", ("backend",), (IPv4Address("10.92.0.2"), IPv6Address("fd00:92::2")), (task(1),)),
    ServiceNames("old", (), (IPv4Address("10.92.0.3"),), ()),
    ServiceNames("big", (), (), tuple(task(n) for n in range(1, 301))),
    ServiceNames("asleep", (), (), (task(1, ready=False),)),
)


@pytest.fixture(scope="module")
def musl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("musl")
    (directory / "lookup.c").write_text(LOOKUP)
    compiler = shutil.which("musl-gcc")
    assert compiler is not None, "install musl-tools (make test does)"
    run(compiler, "-static", "-o", str(directory / "lookup"), str(directory / "lookup.c"))
    return directory / "lookup"


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"dnsc-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "addr", "add", f"{GATEWAY}/32", "dev", "lo")
        for service in SERVICES[:2]:
            for vip in service.vips:
                run("ip", "-n", name, "addr", "add", str(vip), "dev", "lo")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.fixture
async def inside(netns: str, tmp_path: Path) -> AsyncIterator[Inside]:
    """Runs a command line in a namespace whose resolver is ours, as a container's is."""
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {GATEWAY}\nsearch web.mesh back.mesh\noptions ndots:1\n")
    path = f"/run/netns/{netns}"
    plan = DnsPlan(
        listeners=(Listener(path, GATEWAY, 53, WEB),),
        networks=(NetworkNames(WEB, "web", GATEWAY, SERVICES), NetworkNames(BACK, "back", GATEWAY, ())),
    )

    async def execute(command: str) -> str:
        script = f"mount --bind {conf} /etc/resolv.conf && {command}"
        whole = ("nsenter", f"--net={path}", "unshare", "-m", "sh", "-c", script)
        done = await asyncio.to_thread(subprocess.run, whole, capture_output=True, text=True, timeout=30, check=False)
        return f"{done.stdout}{done.stderr}"

    server = NameServer(resolv_conf="/dev/null")
    async with running(server):
        await server.apply(plan)
        assert server.status().problems == ()
        yield execute


BOTH = {"10.92.0.2", "fd00:92::2"}


@pytest.mark.parametrize("name", ["api", "backend", "api.web.mesh", "api.web.mesh.", "API", "Api.Web.Mesh"])
async def test_getaddrinfo_of_glibc_and_musl_find_both_families(inside: Inside, musl: Path, name: str) -> None:
    glibc = await inside(f'python3 -c "{PYTHON}" {name}')
    assert set(glibc.split()) == BOTH
    assert set((await inside(f"{musl} {name}")).split()) == BOTH


async def test_a_service_of_one_family_costs_no_wait_for_the_other(inside: Inside, musl: Path) -> None:
    assert (await inside(f"{musl} old")).split() == ["10.92.0.3"]
    assert (await inside(f'python3 -c "{PYTHON}" old')).split() == ["10.92.0.3"]
    assert "10.92.0.3" in await inside("busybox nslookup old")


async def test_three_hundred_tasks_reach_every_client(inside: Inside, musl: Path) -> None:
    truncated = await inside("dig +notcp +ignore +bufsize=512 +noall +comments tasks.big")
    assert " tc" in next(line for line in truncated.splitlines() if "flags:" in line)
    assert len((await inside("dig +short tasks.big")).split()) == 300, "dig asks again over TCP"
    assert len(set((await inside(f'python3 -c "{PYTHON}" big')).split())) == 600, "glibc asks again over TCP"
    # musl 1.2.3 knows no TCP: it takes what fits into a datagram (and 48 addresses at most).
    found = (await inside(f"{musl} big")).split()
    assert 20 <= len(found) <= 48
    assert len(set(found)) == len(found)


async def test_a_name_without_ready_tasks_is_known_and_has_no_address(inside: Inside, musl: Path) -> None:
    assert "status: NOERROR" in await inside("dig asleep")
    assert "status: NXDOMAIN" in await inside("dig no-such-service")
    # EAI_NODATA and EAI_NONAME: programs that ask again after a while do so after the first.
    assert "No address" in await inside(
        "getent ahosts asleep; python3 -c \"import socket; socket.getaddrinfo('asleep', 80)\""
    )
    for name in ("asleep", "no-such-service"):  # musl 1.2.3 has one code for both
        assert "Name does not resolve" in await inside(f"{musl} {name}")


async def test_curl_reaches_a_service_by_name(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("hello")
    server = f"python3 -m http.server -d {tmp_path} -b 10.92.0.2 8080 >/dev/null 2>&1 & sleep 0.1"
    wait = "for i in 1 2 3 4 5 6 7 8 9 10; do curl -sf -4 http://api:8080/index.html && break; sleep 0.3; done"
    assert await inside(f"{server}; {wait}; kill $!") == "hello"


async def test_the_case_of_a_question_is_kept_in_the_answer(inside: Inside) -> None:
    """0x20: a client that mixes cases to detect forgeries compares them."""
    rng = random.Random(7)
    for _ in range(5):
        name = "".join(rng.choice((c.upper(), c.lower())) for c in "api.web.mesh")
        answer = await inside(f"dig +noall +question +answer {name}")
        assert answer.count(f"{name}.") == 2, answer


async def test_what_is_no_question_of_ours_gets_the_right_code(inside: Inside) -> None:
    assert "status: NOTIMP" in await inside("dig +opcode=2 api")
    assert "status: REFUSED" in await inside("dig -c CH -t TXT version.bind")
    for kind in ("TXT", "ANY", "MX", "HTTPS", "NS"):
        answer = await inside(f"dig +noall +comments +authority api.web.mesh {kind}")
        assert "status: NOERROR" in answer, kind
        assert "SOA" in answer, kind


async def test_ndots_and_search_domains_as_kubernetes_users_set_them(inside: Inside) -> None:
    glibc = f'python3 -c "{PYTHON}" api'
    assert set((await inside(f"RES_OPTIONS=ndots:5 {glibc}")).split()) == BOTH
    assert set((await inside(f"RES_OPTIONS=ndots:5 {glibc}.web.mesh")).split()) == BOTH, "tried as it is, at last"
