"""Connections that others open: admitted, judged, served.

Tasks: one that accepts, one per connection, all in the TaskGroup of the transport. Whoever has not said a good hello
yet counts against HANDSHAKES_MAX, and the oldest of them gives way to the newest: a flood of half-open connections
costs each honest one a retry at worst, and nobody any memory to speak of.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from control.transport.connection import (
    HANDSHAKE_S,
    Connection,
    authenticated,
    read_preamble,
    streams_of,
)
from control.transport.seam import Counters, Identity, Tls
from control.transport.wire import (
    LIMITS,
    Answer,
    BadBytes,
    Frames,
    Hello,
    Lane,
    Welcome,
    decode,
    encode,
    preamble,
    seed_of,
)

HANDSHAKES_MAX = 64
# Three lanes from each of the managers, of which there are seven at most, and from some that come or go.
CONNECTIONS_MAX = 64
# Out of descriptors: others may give some back.
ACCEPT_PAUSE_S = 0.2

_LANES = frozenset(map(int, Lane))

Serve = Callable[[str, Lane, Connection], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has said a good hello. `address` is where it listens, "" if it does not say."""

    node_id: str
    lane: Lane
    address: str


class Incoming:
    """See the module. `welcome` says whether a node may come; `met` is called for each that did."""

    def __init__(
        self,
        sock: socket.socket,
        me: Identity,
        tls: Tls | None,
        counters: Counters,
        *,
        welcome: Callable[[str], bool],
        met: Callable[[Caller], None],
        serve: Serve,
    ) -> None:
        self._socket, self._me, self._tls, self._counters = sock, me, tls, counters
        self._welcome, self._met, self._serve = welcome, met, serve
        self._handshakes: dict[asyncio.Task[None], None] = {}  # in the order of arrival
        self._open: dict[tuple[str, Lane], asyncio.Task[None]] = {}

    @property
    def handshakes(self) -> int:
        """Connections without a hello."""
        return len(self._handshakes)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    sock, _ = await loop.sock_accept(self._socket)
                except OSError as error:
                    self._counters.refused[f"accept: {error.strerror}"] += 1
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                self._admit(group, sock)

    def _admit(self, group: asyncio.TaskGroup, sock: socket.socket) -> None:
        if len(self._handshakes) >= HANDSHAKES_MAX:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
            self._counters.refused["handshakes full"] += 1
        task = group.create_task(self._connection(sock))
        self._handshakes[task] = None
        task.add_done_callback(partial(self._ended, sock))

    def _ended(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        """Also of one that was cancelled before it began."""
        self._handshakes.pop(task, None)
        sock.close()

    async def _connection(self, sock: socket.socket) -> None:
        writer = None
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                reader, writer = await streams_of(sock, self._tls)
                hello = await read_preamble(reader)
                caller, answer = self._judge(decode(Hello, hello), writer)
                writer.write(preamble(encode(Welcome(answer, self._me.node_id, self._me.epoch))))
                await writer.drain()
            if answer is not Answer.WELCOME:
                self._counters.refused[answer.name.lower().replace("_", " ")] += 1
                await self._linger(writer)
                return
            seed = seed_of(hello)
            connection = Connection(reader, writer, Frames(seed, LIMITS[caller.lane]), seed)
            await self._welcomed(caller, connection)
        except TimeoutError:
            self._counters.refused["too slow"] += 1
        except BadBytes as error:
            self._counters.refused[f"bad {error}"] += 1
        except (ssl.SSLError, ssl.CertificateError):
            self._counters.refused["TLS"] += 1
        except (OSError, EOFError):
            self._counters.refused["closed"] += 1
        finally:
            if writer is not None:
                writer.transport.abort()

    async def _linger(self, writer: asyncio.StreamWriter) -> None:
        """Let the reason arrive."""
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(HANDSHAKE_S):
                await writer.wait_closed()

    def _judge(self, hello: Hello, writer: asyncio.StreamWriter) -> tuple[Caller, Answer]:
        """Raises BadBytes."""
        if hello.lane not in _LANES or not hello.sender:
            raise BadBytes("hello")
        caller = Caller(hello.sender, Lane(hello.lane), _address(hello.address, writer))
        if hello.cluster_id != self._me.cluster_id:
            return caller, Answer.OTHER_CLUSTER
        if self._tls is not None and authenticated(writer, self._tls) != hello.sender:
            return caller, Answer.NOT_YOU
        if hello.epoch != self._me.epoch:
            return caller, Answer.OTHER_EPOCH
        if hello.receiver != self._me.node_id or hello.sender == self._me.node_id:
            return caller, Answer.OTHER_NODE
        if not self._welcome(hello.sender):
            return caller, Answer.REMOVED
        if len(self._open) >= CONNECTIONS_MAX and (caller.node_id, caller.lane) not in self._open:
            return caller, Answer.FULL
        return caller, Answer.WELCOME

    async def _welcomed(self, caller: Caller, connection: Connection) -> None:
        """Serve it; the same lane of the same node has one connection, the newest."""
        task = asyncio.current_task()
        assert task is not None
        self._handshakes.pop(task, None)
        key = caller.node_id, caller.lane
        earlier = self._open.pop(key, None)
        if earlier is not None:
            earlier.cancel()
        self._open[key] = task
        self._counters.connections += 1
        self._met(caller)
        try:
            await self._serve(caller.node_id, caller.lane, connection)
        finally:
            if self._open.get(key) is task:
                del self._open[key]


def _address(said: str, writer: asyncio.StreamWriter) -> str:
    """Where a caller listens: without a host, at the address it comes from. Raises BadBytes."""
    if not said:
        return ""
    host, _, port = said.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise BadBytes("hello")
    if host:
        return said
    peer = writer.get_extra_info("peername")[0]
    return f"[{peer}]:{port}" if ":" in peer else f"{peer}:{port}"
