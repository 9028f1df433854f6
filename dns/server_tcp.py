"""Serving TCP: accepts connections, moves bytes, and cuts off who is slow. A shell around `stream`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from dns.loop import READ, WRITE, Loop
from dns.recursor import Fetched
from dns.resolver import Drop, Forward, Resolver, View
from dns.stream import Stream
from dns.wire import MESSAGE_MAX, Query

# Connections of the process, and of one client. TCP is for answers that do not fit a datagram; who holds more
# connections than this is broken or hostile, and the next one is closed at once.
CONNECTIONS_MAX = 512
CONNECTIONS_PER_CLIENT_MAX = 32
ACCEPTS_PER_TURN = 32
READ_SIZE = 16 * 1024
# Connections are looked at this often for deadlines.
SWEEP_S = 0.5

Ask = Callable[[Query, int, "Place", bytes], Fetched | None]


@dataclass(slots=True)
class TcpCounters:
    accepted: int = 0
    turned_away: int = 0
    timed_out: int = 0
    queries: int = 0


class Connections:
    """All connections of the process."""

    def __init__(
        self, loop: Loop, resolver: Resolver, ask: Ask, clock: Callable[[], float], dropped: dict[str, int]
    ) -> None:
        self._loop, self.resolver, self.ask, self.clock, self.dropped = loop, resolver, ask, clock, dropped
        self._open: set[Connection] = set()
        self._per_client: dict[bytes, int] = {}
        self._sweep_s = 0.0
        self.counters = TcpCounters()

    def __len__(self) -> int:
        return len(self._open)

    def accept(self, listener: TcpListener) -> None:
        """Take what waits at a listener."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, address = listener.sock.accept()
            except OSError:  # nothing more, the client gave up, or no descriptors left: those close by time
                return
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            client = socket.inet_pton(family, address[0].partition("%")[0])
            busy = self._per_client.get(client, 0)
            if len(self._open) >= CONNECTIONS_MAX or busy >= CONNECTIONS_PER_CLIENT_MAX:
                self.counters.turned_away += 1
                sock.close()
                continue
            self.counters.accepted += 1
            self._per_client[client] = busy + 1
            sock.setblocking(False)
            connection = Connection(self, self._loop, listener, sock, client)
            self._open.add(connection)

    def forget(self, connection: Connection) -> None:
        """A connection was closed."""
        self._open.discard(connection)
        left = self._per_client.get(connection.client, 1) - 1
        if left:
            self._per_client[connection.client] = left
        else:
            self._per_client.pop(connection.client, None)

    def sweep(self, now_s: float) -> None:
        """Close what is past its deadline, now and then."""
        if now_s < self._sweep_s:
            return
        self._sweep_s = now_s + SWEEP_S
        for connection in [c for c in self._open if c.stream.deadline_s() <= now_s]:
            self.counters.timed_out += 1
            connection.close()

    def close_of(self, listener: TcpListener) -> None:
        """Close the connections of a listener that goes."""
        for connection in [c for c in self._open if c.listener is listener]:
            connection.close()


class TcpListener:
    """One listening socket, and the view of its clients."""

    def __init__(self, sock: socket.socket, network_id: str | None, connections: Connections) -> None:
        self.sock, self.network_id, self._connections = sock, network_id, connections
        self.refresh()

    def refresh(self) -> None:
        """The networks, or who is on several of them, changed."""
        self._view = self._connections.resolver.view(self.network_id)
        self._special = self._connections.resolver.special(self.network_id)

    def readable(self, _events: int) -> None:
        """Connections wait."""
        self._connections.accept(self)

    def view(self, client: bytes) -> View:
        """What a client sees."""
        return self._special.get(client, self._view)

    def close(self) -> None:
        """Stop listening, and close what was accepted."""
        self._connections.close_of(self)
        self.sock.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a late answer goes."""

    connection: Connection


class Connection:
    """One accepted connection."""

    def __init__(
        self, owner: Connections, loop: Loop, listener: TcpListener, sock: socket.socket, client: bytes
    ) -> None:
        self._owner, self._loop, self.listener, self._sock, self.client = owner, loop, listener, sock, client
        self.stream = Stream(owner.clock())
        self.closed = False
        self._events = READ
        loop.watch(sock.fileno(), READ, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._write()
        if not self.closed and events & ~WRITE:
            self._read()
        self._settle()

    def _read(self) -> None:
        if not self.stream.readable:
            return
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
        else:
            self._answer(self.stream.receive(data, self._owner.clock()))

    def _answer(self, questions: list[bytes]) -> None:
        view = self.listener.view(self.client) if questions else None
        for data in questions:
            assert view is not None
            self._owner.counters.queries += 1
            outcome = self._owner.resolver.tcp(view, data)
            match outcome:
                case Drop(reason):
                    self._owner.dropped[reason] = self._owner.dropped.get(reason, 0) + 1
                    self.stream.answered(None, self._owner.clock())
                case Forward(query):
                    fetched = self._owner.ask(query, MESSAGE_MAX, Place(self), self.client)
                    if fetched is not None:
                        self.stream.answered(fetched.answer, self._owner.clock())
                case bytes(answer):
                    self.stream.answered(answer, self._owner.clock())

    def answer_late(self, answer: bytes) -> None:
        """An answer that had to be fetched."""
        if not self.closed:
            self.stream.answered(answer, self._owner.clock())
            self._settle()

    def _write(self) -> None:
        try:
            count = self._sock.send(self.stream.output)
        except BlockingIOError:
            return
        except OSError:
            self.close()
        else:
            self.stream.written(count, self._owner.clock())

    def _settle(self) -> None:
        """Write what can be written, go on with what had to wait, and watch for what is next."""
        if not self.closed and self.stream.output:
            self._write()
        if not self.closed:
            self._answer(self.stream.questions_ready(self._owner.clock()))
        if self.closed:
            return
        if self.stream.done:
            self.close()
            return
        wanted = (READ if self.stream.readable else 0) | (WRITE if self.stream.output else 0)
        if wanted != self._events:
            self._events = wanted
            self._loop.change(self._sock.fileno(), wanted)

    def close(self) -> None:
        """Close it; late answers for it are dropped."""
        if not self.closed:
            self.closed = True
            self._loop.forget(self._sock.fileno())
            self._sock.close()
            self._owner.forget(self)
