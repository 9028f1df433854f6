"""Docker's plugin protocol on a unix socket: HTTP/1.1, POST, JSON. The asyncio shell around a driver.

A hundred lines instead of an HTTP library: one client, the engine of this machine, which keeps its connections open.
The socket may come from systemd (meshd-docker.socket): then an engine that boots first waits, and loses no containers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mesh.plugin import wire
from mesh.plugin.driver import DriverError
from mesh.plugin.wire import WireError

log = logging.getLogger(__name__)

HEAD_MAX_BYTES = 16384
BODY_MAX_BYTES = 1 << 20  # a container that publishes thousands of ports
# An engine has some connections open, one per call under way: of each container that starts.
CLIENTS_MAX = 256
# From the first byte of a request to its last; a connection may be silent for ever before that.
READ_TIMEOUT_S = 10.0
FIRST_FD = 3  # sd_listen_fds(3)
FD_NAME = "meshd-docker.socket"

Call = Callable[[str, bytes], Awaitable[Mapping[str, Any]]]
CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"


async def serve_plugin(path: Path, call: Call) -> None:
    """Serve until cancelled. Raises OSError when the socket cannot be had."""
    given = activated(os.environ, os.getpid())
    if given is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        given = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        given.bind(str(path))
        os.chmod(path, 0o600)
    places = asyncio.Semaphore(CLIENTS_MAX)

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with places:
                while await _answer_one(reader, writer, call):
                    pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, _BadRequest) as error:
            log.debug("an engine's connection ended", extra={"why": str(error)})
        finally:
            writer.close()

    server = await asyncio.start_unix_server(client, sock=given, limit=HEAD_MAX_BYTES, backlog=CLIENTS_MAX)
    async with server:
        await server.serve_forever()


def activated(environment: Mapping[str, str], pid: int) -> socket.socket | None:
    """The socket that systemd has made for us, if it has."""
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(pid) or not count.isdigit():
        return None
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    for offset in range(int(count)):
        if offset < len(names) and names[offset] not in ("", "unknown", FD_NAME):
            continue
        found = socket.socket(fileno=os.dup(FIRST_FD + offset))
        if found.family == socket.AF_UNIX:
            found.set_inheritable(False)
            return found
        found.close()
    return None


class _BadRequest(Exception):
    """Nothing that an engine sends."""


async def _answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, call: Call) -> bool:
    """One request; whether the connection goes on."""
    first = await reader.read(1)
    if not first:
        return False
    async with asyncio.timeout(READ_TIMEOUT_S):
        method, headers = _head(first + await reader.readuntil(b"\r\n\r\n"))
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY_MAX_BYTES or "transfer-encoding" in headers:
            raise _BadRequest(f"a body of {length[:20]} bytes, or in pieces")
        body = await reader.readexactly(int(length))
    writer.write(await _response(method, body, call))
    await writer.drain()
    return headers.get("connection", "").lower() != "close"


def _head(data: bytes) -> tuple[str, dict[str, str]]:
    lines = data.decode("latin-1").split("\r\n")
    words = lines[0].split()
    if len(words) != 3 or words[0] != "POST":
        raise _BadRequest("only POST is here")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return words[1], {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _response(method: str, body: bytes, call: Call) -> bytes:
    try:
        status, answer = "200 OK", msgspec.json.encode(await call(method, body))
    except (DriverError, WireError) as error:
        log.info("refused the engine's call", extra={"call": method[:80], "why": str(error)})
        status, answer = "500 Internal Server Error", wire.failure(method, str(error))
    head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(answer)}\r\n\r\n"
    return head.encode() + answer
