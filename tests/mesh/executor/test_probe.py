"""Looks at real processes in a network namespace of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from control.model import HealthCheck
from mesh.executor.probe import probe

pytestmark = pytest.mark.root
SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/silent":
            import time; time.sleep(30)
        self.send_response(int(self.path[1:])); self.end_headers()
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""


@dataclass
class Place:
    netns: str
    pid: int

    async def probe(self, **check: object) -> str:
        return await probe(HealthCheck(timeout_s=1.0, **check), self.netns, "127.0.0.1", self.pid)  # type: ignore[arg-type]


@pytest.fixture
def place() -> Iterator[Place]:
    name = f"probe-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    path = f"/run/netns/{name}"
    process = subprocess.Popen(["nsenter", f"--net={path}", sys.executable, "-c", SERVER])
    try:
        yield Place(path, process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        subprocess.run(["ip", "netns", "del", name], check=True)


async def _up(place: Place) -> None:
    async with asyncio.timeout(10):
        while await place.probe(tcp=8080):
            await asyncio.sleep(0.05)


async def test_a_port_that_takes_connections_is_well_and_another_is_not(place: Place) -> None:
    await _up(place)
    assert await place.probe(tcp=8080) == ""
    assert await place.probe(tcp=8081) == "Connection refused"


async def test_what_an_http_server_answers_counts(place: Place) -> None:
    await _up(place)
    assert await place.probe(http=":8080/200") == ""
    assert await place.probe(http=":8080/302") == ""
    assert await place.probe(http=":8080/500") == "GET /500 was answered 500"
    assert await place.probe(http=":8080/silent") == "no answer within 1 s"


async def test_a_command_runs_in_the_task(place: Place) -> None:
    await _up(place)
    assert await place.probe(command=("/bin/sh", "-c", "ss -ltn | grep -q 127.0.0.1:8080")) == ""
    found = await place.probe(command=("/bin/sh", "-c", "echo so what; exit 3"))
    assert found == "echo so what; exit 3 ended with 3: so what"
    assert await place.probe(command=("/bin/sh", "-c", "sleep 30")) == "no answer within 1 s"
    assert await place.probe(command=("/bin/sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x")) == ""
    assert "failed to execute" in await place.probe(command=("/no/such/file",))
