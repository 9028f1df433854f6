"""SWIM on sockets: one UDP socket, one TCP socket that listens, and a timer, all as callbacks of the asyncio loop.

No task and no queue of its own: what comes in is given to the core at once, and what the core wants sent is sent before
the loop goes on. Errors of sending are the core's to judge; everything else that fails is counted and closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import math
import socket

from gossip.delegate import Address
from gossip.packet import RECEIVE_MAX, Envelope
from gossip.service_connection import Budget, Connection, failure_of
from gossip.stream import StreamMessage
from gossip.swim import Swim
from gossip.swim_ports import OpenStream, SendPacket, StreamFailure

# Packets taken in one turn of the loop; then timers and streams have theirs. 256 take about 5 ms.
BATCH_MAX = 256
# What the system keeps of packets while the loop is busy; its own limit is often 208 KiB, which root may exceed.
RECEIVE_BUFFER = 2 << 20
INBOUND_MAX = 64
ACCEPT_BATCH = 16
BACKLOG = 128
_BIND_TRIES = 16  # for a port that is free for both UDP and TCP


class Sockets:
    """The two, bound to the same address and port."""

    def __init__(self, udp: socket.socket, tcp: socket.socket) -> None:
        for sock in (udp, tcp):
            sock.setblocking(False)
        self.udp, self.tcp = udp, tcp

    @property
    def port(self) -> int:
        return int(self.udp.getsockname()[1])

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


def bind(address: Address) -> Sockets:
    """Open them; port 0 is any that is free. Raises OSError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    for tries_left in reversed(range(_BIND_TRIES)):
        tcp = socket.socket(family, socket.SOCK_STREAM)
        udp = socket.socket(family, socket.SOCK_DGRAM)
        try:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                for sock in (tcp, udp):
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not _any(address.host))
            tcp.bind((address.host, address.port))
            udp.bind((address.host, tcp.getsockname()[1]))
            tcp.listen(BACKLOG)
            _grow(udp)
            return Sockets(udp, tcp)
        except OSError as error:
            tcp.close()
            udp.close()
            if address.port or error.errno != errno.EADDRINUSE or not tries_left:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free for both UDP and TCP")


def _any(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified


def _grow(udp: socket.socket) -> None:
    """A larger buffer: past the system's limit if this process may, up to it if not."""
    try:
        udp.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), RECEIVE_BUFFER)
    except OSError:
        with contextlib.suppress(OSError):
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


class Service:
    """One core on its sockets, from `start` to `close`."""

    def __init__(self, swim: Swim, envelope: Envelope, sockets: Sockets, loop: asyncio.AbstractEventLoop) -> None:
        self.swim = swim
        self._envelope, self._sockets, self._loop = envelope, sockets, loop
        self._six = sockets.udp.family == socket.AF_INET6
        self._buffer = bytearray(RECEIVE_MAX + 1)
        self._view = memoryview(self._buffer)
        self._budget = Budget()
        self._inbound: set[Connection] = set()
        self._outbound: dict[int, Connection] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        self._open = False
        self._turning = False

    def start(self) -> None:
        """Begin to listen and to speak."""
        self._open = True
        self.swim.start(self._loop.time())
        self._loop.add_reader(self._sockets.udp, self._packets)
        self._loop.add_reader(self._sockets.tcp, self._streams)
        self.turn()

    def close(self) -> None:
        """Stop at once, without a word."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sockets.udp)
            self._loop.remove_reader(self._sockets.tcp)
        if self._timer is not None:
            self._timer.cancel()
        for connection in (*self._inbound, *self._outbound.values()):
            connection.close()
        self._inbound.clear()
        self._outbound.clear()
        self._sockets.close()

    def turn(self) -> None:
        """Send what the core wants sent, and set the timer; to be called after each call of the core."""
        if self._turning:  # from within: whoever is at it goes on until nothing is left
            return
        self._turning = True
        try:
            while self._open and (outputs := self.swim.drain()):
                for output in outputs:
                    match output:
                        case SendPacket(to, data):
                            self._send(to, data)
                        case OpenStream():
                            self._connect(output)
        finally:
            self._turning = False
        if self._open:
            self._arm()

    def _arm(self) -> None:
        due_s = self.swim.deadline()
        if self._timer is not None:
            if self._timer_s <= due_s:  # it will look again
                return
            self._timer.cancel()
        self._timer_s = due_s
        self._timer = self._loop.call_at(due_s, self._wake) if due_s < math.inf else None

    def _wake(self) -> None:
        self._timer = None
        self.swim.wake(self._loop.time())
        self.turn()

    # Packets

    def _packets(self) -> None:
        now = self._loop.time()
        for _ in range(BATCH_MAX):
            if not self._open:
                return
            try:
                size, source = self._sockets.udp.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError:  # what an earlier packet met on its way
                continue
            if size <= RECEIVE_MAX:
                self.swim.receive(bytes(self._view[:size]), _address(source), now)
        self.turn()

    def _send(self, to: Address, data: bytes) -> None:
        try:
            self._sockets.udp.sendto(data, self._sockaddr(to))
        except BlockingIOError:
            self.swim.counts["packets_dropped"] += 1
        except OSError:
            self.swim.send_failed(to, self._loop.time())

    def _sockaddr(self, to: Address) -> tuple[str, int]:
        return (f"::ffff:{to.host}" if self._six and ":" not in to.host else to.host), to.port

    # Streams others open

    def _streams(self) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                sock, peer = self._sockets.tcp.accept()
            except OSError:  # none is left, or no descriptor is
                return
            if len(self._inbound) >= INBOUND_MAX:
                self.swim.counts["streams_in_refused"] += 1
                sock.close()
                continue
            sock.setblocking(False)
            self._accepted(sock, _address(peer))

    def _accepted(self, sock: socket.socket, peer: Address) -> None:
        def over(_: StreamFailure) -> None:
            self.swim.counts["streams_in_failed"] += 1
            self._inbound.discard(connection)

        def end() -> None:
            connection.close()
            self._inbound.discard(connection)

        def got(message: StreamMessage) -> None:
            answer = self.swim.accept_stream(message, peer, self._loop.time())
            if answer is None:
                end()
            else:
                connection.send(answer, end)
            self.turn()

        timeout_s = self.swim.config.profile.stream_timeout_s
        connection = Connection(self._loop, sock, timeout_s, self._budget, over)
        self._inbound.add(connection)
        connection.receive(self._envelope, got)

    # Streams the core opens

    def _connect(self, wanted: OpenStream) -> None:
        def failed(failure: StreamFailure) -> None:  # not at once: the core may be in the middle of asking for it
            self._loop.call_soon(self._finish, wanted.token, None, failure)

        try:
            sock = socket.socket(self._sockets.tcp.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            failed(failure_of(error))
            return

        def sent() -> None:
            if wanted.reply:
                connection.receive(self._envelope, got)
            else:
                connection.close()
                self._finish(wanted.token, None, None)

        def got(message: StreamMessage) -> None:
            connection.close()
            self._finish(wanted.token, message, None)

        connection = Connection(self._loop, sock, wanted.timeout_s, self._budget, failed)
        self._outbound[wanted.token] = connection
        connection.connect(self._sockaddr(wanted.to), lambda: connection.send(wanted.data, sent))

    def _finish(self, token: int, message: StreamMessage | None, failure: StreamFailure | None) -> None:
        self._outbound.pop(token, None)
        if self._open:
            self.swim.finish_stream(token, message, failure, self._loop.time())
            self.turn()


def _address(source: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """Of a packet or a stream; an IPv4 address that came in IPv6's form is the IPv4 address."""
    return Address(source[0].removeprefix("::ffff:"), source[1])
