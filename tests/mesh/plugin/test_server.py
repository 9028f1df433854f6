"""The plugin's socket: HTTP as engines speak it, bounds, sentences of refusals, and a socket that systemd gave."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mesh.plugin import server
from mesh.plugin.driver import DriverError
from mesh.plugin.server import activated, serve_plugin


async def call(method: str, body: bytes) -> Mapping[str, Any]:
    if method.endswith(".Join"):
        raise DriverError("no room")
    return {"method": method, "length": len(body)}


class Client(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("plugin", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))

    def ask(self, method: str, body: bytes = b"") -> tuple[int, Any]:
        self.request("POST", method, body)
        answer = self.getresponse()
        return answer.status, json.loads(answer.read())


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(serve_plugin(path, call))
        while not path.exists():
            await asyncio.sleep(0.01)
        yield
        task.cancel()


async def test_calls_are_answered_one_after_the_other_on_one_connection(tmp_path: Path) -> None:
    path = tmp_path / "plugins" / "mesh.sock"
    async with serving(path):
        client = Client(path)
        ask = lambda *words: asyncio.to_thread(client.ask, *words)  # noqa: E731
        assert await ask("/Plugin.Activate") == (200, {"method": "/Plugin.Activate", "length": 0})
        assert await ask("/IpamDriver.RequestPool", b"{}") == (200, {"method": "/IpamDriver.RequestPool", "length": 2})
        assert await ask("/NetworkDriver.Join", b"{}") == (500, {"Err": "no room"})
        assert (await ask("/Plugin.Activate"))[0] == 200, "a refusal ends no connection"
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "bad",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        b"POST " + b"x" * (2 * server.HEAD_MAX_BYTES),
    ],
)
async def test_what_no_engine_sends_ends_the_connection_and_nothing_else(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "mesh.sock"
    async with serving(path):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(bad)
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
        assert (await asyncio.to_thread(Client(path).ask, "/Plugin.Activate"))[0] == 200


async def test_a_request_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_TIMEOUT_S", 0.1)
    path = tmp_path / "mesh.sock"
    async with serving(path):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"POST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\n1")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


def test_a_socket_of_systemd_is_taken_if_it_is_ours(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "mesh.sock"))
    given = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": server.FD_NAME}
    saved = os.dup(server.FIRST_FD) if _is_open(server.FIRST_FD) else None
    try:
        os.dup2(listener.fileno(), server.FIRST_FD)
        found = activated(given, os.getpid())
        assert found is not None
        assert found.getsockname() == str(tmp_path / "mesh.sock")
        found.close()
        assert activated({**given, "LISTEN_FDNAMES": "other.socket"}, os.getpid()) is None
        assert activated({**given, "LISTEN_PID": "1"}, os.getpid()) is None
        assert activated({}, os.getpid()) is None
    finally:
        if saved is not None:
            os.dup2(saved, server.FIRST_FD)
            os.close(saved)
        else:
            os.close(server.FIRST_FD)
        listener.close()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
