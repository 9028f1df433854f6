"""One connection, from the socket to the welcome, on either side. Every wait has an end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from control.transport.seam import Identity, Tls
from control.transport.wire import (
    LIMITS,
    PREAMBLE_BYTES,
    Answer,
    Frames,
    Hello,
    Kind,
    Lane,
    Preamble,
    Welcome,
    decode,
    encode,
    frame,
    preamble,
    seed_of,
)

# From the first packet to the welcome: TLS takes three round trips.
HANDSHAKE_S = 5.0
# A connection on which nothing can be written for so long is broken: many round trips, and several heartbeats.
STALL_S = 10.0
# The rest of a frame that has begun. The largest takes a second on the slowest link that Raft is of use on.
FRAME_S = 30.0
READ_BYTES = 256 * 1024
# What may wait in the kernel's and asyncio's buffers; the rest waits in the lane, where it can be dropped.
_WRITE_BUFFER_BYTES = 256 * 1024
# A peer whose machine is gone says nothing. Linux: seconds until the first probe, between probes, and how many.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
# What was sent and is not acknowledged for so long (ms): broken. The pauses between the kernel's attempts double, so
# after a cut of a minute the connection would lie there for another one; a new one is there in a second or two.
_USER_TIMEOUT = (socket.TCP_USER_TIMEOUT, 4_000)


class Unwelcome(Exception):
    """The other side cannot be used: one sentence."""


_REASONS = {
    Answer.OTHER_CLUSTER: "it belongs to another cluster",
    Answer.OTHER_EPOCH: "it is of another epoch: one of the two was left behind by a recovery",
    Answer.OTHER_NODE: "another node answers at this address",
    Answer.NOT_YOU: "it sees the certificate of another node",
    Answer.REMOVED: "it says that this node is no manager any more",
    Answer.FULL: "it has too many connections",
}


@dataclass(slots=True)
class Connection:
    """Both streams, after the welcome."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    frames: Frames
    seed: int
    _complete: int = 0  # frames, when the one that is awaited began
    _due_s: float | None = None  # when it must be there

    def write(self, kind: Kind, payload: bytes) -> None:
        """Put a frame into the buffer."""
        self.writer.write(frame(kind, payload, self.seed))

    async def drain(self) -> None:
        """Wait until the buffer has room. Raises OSError, TimeoutError."""
        if self.writer.transport.get_write_buffer_size() == 0:
            return  # the kernel has taken it; a time-out costs 7 us
        async with asyncio.timeout(STALL_S):
            await self.writer.drain()

    async def read(self, timeout_s: float | None = None) -> Iterator[tuple[Kind, bytes]]:
        """The next frames, perhaps none. Raises EOFError at the end, BadBytes, OSError, TimeoutError."""
        now_s = asyncio.get_running_loop().time()
        if self.frames.complete != self._complete or not self.frames.partial:
            self._complete, self._due_s = self.frames.complete, None
        if self.frames.partial and self._due_s is None:
            self._due_s = now_s + FRAME_S
        until_s = self._due_s if self._due_s is not None or timeout_s is None else now_s + timeout_s
        if until_s is None:
            data = await self.reader.read(READ_BYTES)
        else:
            async with asyncio.timeout_at(until_s):
                data = await self.reader.read(READ_BYTES)
        if not data:
            raise EOFError("the connection was closed")
        return self.frames.feed(data)

    def close(self) -> None:
        """At once: what matters was acknowledged by Raft, not by TCP."""
        self.writer.transport.abort()


async def open_connection(
    address: str, lane: Lane, peer: str, me: Identity, listens: str, tls: Tls | None
) -> Connection:
    """Call a peer. Raises Unwelcome, BadBytes, EOFError, OSError, TimeoutError."""
    host, port = split_address(address)
    async with asyncio.timeout(HANDSHAKE_S):
        reader, writer = await asyncio.open_connection(
            host,
            port,
            limit=READ_BYTES,
            ssl=tls.client if tls is not None else None,
            server_hostname=peer if tls is not None else None,
        )
        try:
            tune(writer)
            if tls is not None and authenticated(writer, tls) != peer:
                raise Unwelcome("the certificate is of another node")
            hello = encode(Hello(me.cluster_id, me.epoch, me.node_id, peer, lane, listens))
            writer.write(preamble(hello))
            await writer.drain()
            welcome = decode(Welcome, await read_preamble(reader))
            if welcome.answer != Answer.WELCOME:
                raise Unwelcome(_reason(welcome.answer))
            if welcome.node_id != peer or welcome.epoch != me.epoch:
                raise Unwelcome("another node answers at this address")
        except BaseException:
            writer.transport.abort()
            raise
    seed = seed_of(hello)
    return Connection(reader, writer, Frames(seed, LIMITS[lane]), seed)


def _reason(number: int) -> str:
    try:
        return _REASONS[Answer(number)]
    except (ValueError, KeyError):
        return "it refuses"


async def streams_of(sock: socket.socket, tls: Tls | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An accepted socket, TLS done. Raises OSError."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=READ_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol,
        sock,
        ssl=tls.server if tls is not None else None,
        ssl_handshake_timeout=HANDSHAKE_S if tls is not None else None,
    )
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    tune(writer)
    return reader, writer


async def read_preamble(reader: asyncio.StreamReader) -> bytes:
    """The body of a hello or a welcome. Raises BadBytes, EOFError."""
    fixed = Preamble.parse(await reader.readexactly(PREAMBLE_BYTES))
    body = await reader.readexactly(fixed.length)
    fixed.check(body)
    return body


def tune(writer: asyncio.StreamWriter) -> None:
    """No waiting for more to send, small buffers, and a sign of life."""
    writer.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (*_KEEPALIVE, _USER_TIMEOUT):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def authenticated(writer: asyncio.StreamWriter, tls: Tls) -> str | None:
    """Whose certificate the other side has shown."""
    ssl_object = writer.get_extra_info("ssl_object")
    return tls.node_of(ssl_object) if isinstance(ssl_object, ssl.SSLObject) else None


def split_address(address: str) -> tuple[str, int]:
    """Host and port. Raises Unwelcome."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise Unwelcome(f'"{address[:80]}" is no address')
    return host.removeprefix("[").removesuffix("]"), int(port)
