"""The sockets towards other name servers: one for each attempt, as `recursor` asks for them. A shell."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from dns.forward import AskTcp, AskUdp, Close, Forwarder, Token
from dns.loop import READ, WRITE, Loop
from dns.recursor import Socket
from dns.upstreams import Upstream
from dns.wire import MESSAGE_MAX

# Datagrams of one attempt read in one turn: a flood of forged ones must not hold up the loop.
READS_PER_TURN = 8


@dataclass(slots=True)
class _Tcp:
    """An exchange over TCP: its question with the length in front, then the answer's bytes."""

    output: bytes
    received: bytearray = field(default_factory=bytearray)


class Sockets:
    """All attempts' sockets, by token."""

    def __init__(self, loop: Loop, forwarder: Forwarder, clock: Callable[[], float]) -> None:
        self._loop, self._forwarder, self._clock = loop, forwarder, clock
        self._open: dict[Token, tuple[socket.socket, Upstream]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def perform(self, action: Socket) -> None:
        """Do what the core says. What fails at once is told to it."""
        match action:
            case AskUdp(token, upstream, data):
                self._udp(token, upstream, data)
            case AskTcp(token, upstream, data):
                self._tcp(token, upstream, data)
            case Close(token):
                self._close(token)

    def _udp(self, token: Token, upstream: Upstream, data: bytes) -> None:
        sock = self._made(token, upstream, socket.SOCK_DGRAM)
        if sock is None:
            return
        try:
            sock.connect(_address(upstream))  # the kernel chooses the port at random, and drops what others send
            sock.send(data)
        except OSError:
            self._forwarder.failed(token, self._clock())
        else:
            self._loop.watch(sock.fileno(), READ, lambda _events: self._receive(token, sock))

    def _receive(self, token: Token, sock: socket.socket) -> None:
        for _ in range(READS_PER_TURN):
            if token not in self._open:
                return
            try:
                data, source = sock.recvfrom(MESSAGE_MAX)
            except BlockingIOError:
                return
            except OSError:  # nobody listens there, or there is no way to it
                self._forwarder.failed(token, self._clock())
                return
            self._forwarder.receive(token, (source[0].partition("%")[0], source[1]), data, self._clock())
            if self._forwarder.pending:
                return  # the socket may have to be closed

    def _tcp(self, token: Token, upstream: Upstream, data: bytes) -> None:
        sock = self._made(token, upstream, socket.SOCK_STREAM)
        if sock is None:
            return
        exchange = _Tcp(len(data).to_bytes(2, "big") + data)
        if sock.connect_ex(_address(upstream)) not in (0, errno.EINPROGRESS):
            self._forwarder.failed(token, self._clock())
        else:
            self._loop.watch(sock.fileno(), READ | WRITE, lambda events: self._exchange(token, sock, exchange, events))

    def _exchange(self, token: Token, sock: socket.socket, exchange: _Tcp, events: int) -> None:
        try:
            if events & WRITE and exchange.output:
                exchange.output = exchange.output[sock.send(exchange.output) :]
                if not exchange.output:
                    self._loop.change(sock.fileno(), READ)
                return
            data = sock.recv(MESSAGE_MAX)
        except BlockingIOError:
            return
        except OSError:
            self._forwarder.failed(token, self._clock())
            return
        exchange.received += data
        got = exchange.received
        if len(got) >= 2 and len(got) >= 2 + (length := int.from_bytes(got[:2], "big")):
            _, upstream = self._open[token]
            source = (upstream.address, upstream.port)
            self._forwarder.receive(token, source, bytes(got[2 : 2 + length]), self._clock())
        elif not data:
            self._forwarder.failed(token, self._clock())

    def _made(self, token: Token, upstream: Upstream, kind: socket.SocketKind) -> socket.socket | None:
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in upstream.address else socket.AF_INET, kind)
        except OSError:  # no descriptors left
            self._forwarder.failed(token, self._clock())
            return None
        sock.setblocking(False)
        self._open[token] = sock, upstream
        return sock

    def _close(self, token: Token) -> None:
        known = self._open.pop(token, None)
        if known is not None:
            self._loop.forget(known[0].fileno())
            known[0].close()


def _address(upstream: Upstream) -> tuple[str, int]:
    return (f"{upstream.address}%{upstream.scope}" if upstream.scope else upstream.address), upstream.port
