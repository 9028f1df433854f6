"""The serving process: listening sockets of all networks, the zone, the cache, one loop. A shell around the cores.

A process of its own, so that it shares no interpreter lock with the control plane. The daemon (`service`) starts it,
hands it listening sockets and the plan over a socket pair, and starts it anew when it dies. It has no tasks and no
threads: `Server.run` turns one epoll loop until the daemon's end of the pair is closed. Nothing that comes over the
network can end it, block it, or make it grow without bound; it runs without privileges where it can give them up.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from dns import feed, kernel
from dns.loop import READ, WRITE, Loop
from dns.plan import Address
from dns.recursor import Fetched, Recursor, Waiting
from dns.resolver import Resolver
from dns.server_ask import Sockets
from dns.server_tcp import Connections, Place, TcpListener
from dns.server_udp import Datagram, UdpCounters, UdpListener
from dns.upstreams import Upstream, choose
from dns.wire import Query

# Counters, and a sign of life, go to the daemon this often.
STATS_S = 2.0
# Kept answers of other servers count their times-to-live down in steps of this.
TICK_S = 1.0
# The longest turn without anything to do.
IDLE_TURN_S = 0.5
# Messages of the daemon taken in one turn: a plan of 100,000 names must not hold up answers.
MESSAGES_PER_TURN = 50
# Descriptors: listeners of a few thousand networks, flights, connections.
FILES_MAX = 65_536
_NOBODY = 65_534
_READ_SIZE = 256 * 1024
_FDS_PER_MESSAGE = 2


@dataclass(slots=True)
class _Listener:
    udp: UdpListener
    tcp: TcpListener


class Server:
    """Everything of the process but how it is fed."""

    def __init__(self, clock: Callable[[], float], bits: Callable[[int], int]) -> None:
        """`bits(n)` gives n bits nobody can guess."""
        self.resolver = Resolver(random.Random(bits(64)))
        self.recursor = Recursor(bits)
        self.loop = Loop()
        self.clock = clock
        self.serving = True  # False: sockets are held, but not read, until the zone is complete
        self._upstreams: tuple[Upstream, ...] = ()
        self._own: dict[int, tuple[Address, int]] = {}  # by listener: addresses on the host
        self._tick_s = 0.0
        self._dropped: dict[str, int] = {}
        self._udp_counters = UdpCounters()
        self._sockets = Sockets(self.loop, self.recursor.forwarder, clock)
        self._connections = Connections(self.loop, self.resolver, self._ask, clock, self._dropped)
        self._batches = {socket.AF_INET: kernel.Batch(), socket.AF_INET6: kernel.Batch()}
        self._listeners: dict[int, _Listener] = {}

    # --- listeners --------------------------------------------------------------------------------------------------

    def add_listener(self, number: int, udp: socket.socket, tcp: socket.socket, network_id: str | None) -> None:
        """Serve a network's view on these sockets."""
        for sock in (udp, tcp):
            sock.setblocking(False)
        batch = self._batches[udp.family]  # two families, and no other is opened
        listener = _Listener(
            UdpListener(
                udp, network_id, batch, self.resolver, self._ask, self.clock, self._udp_counters, self._dropped
            ),
            TcpListener(tcp, network_id, self._connections),
        )
        self._listeners[number] = listener
        if self.serving:
            self._watch(listener)

    def set_upstreams(self, upstreams: tuple[Upstream, ...]) -> None:
        """Ask these for names of others, ourselves left out."""
        self._upstreams = upstreams
        self._choose()

    def _choose(self) -> None:
        self.recursor.forwarder.set_upstreams(choose(self._upstreams, self._own.values()))

    def add_own(self, number: int, address: Address, port: int) -> None:
        """A listener's address is the host's: the host may be set to ask us."""
        self._own[number] = address, port
        self._choose()

    def drop_listener(self, number: int) -> None:
        """Stop serving there."""
        if self._own.pop(number, None) is not None:
            self._choose()
        listener = self._listeners.pop(number, None)
        if listener is not None:
            self.loop.forget(listener.udp.sock.fileno())
            self.loop.forget(listener.tcp.sock.fileno())
            listener.udp.close()
            listener.tcp.close()

    def start(self) -> None:
        """The zone is complete: begin to answer."""
        if not self.serving:
            self.serving = True
            for listener in self._listeners.values():
                self._watch(listener)

    def _watch(self, listener: _Listener) -> None:
        self.loop.watch(listener.udp.sock.fileno(), READ, listener.udp.readable)
        self.loop.watch(listener.tcp.sock.fileno(), READ, listener.tcp.readable)

    def refresh(self) -> None:
        """Networks, or who is on several, changed."""
        for listener in self._listeners.values():
            listener.udp.refresh()
            listener.tcp.refresh()

    # --- the loop ---------------------------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether there is any socket to answer on."""
        return bool(self._listeners)

    def turn(self, timeout_s: float = IDLE_TURN_S) -> None:
        """Wait for something and do it, then what is due."""
        now_s = self.clock()
        deadline_s = self.recursor.forwarder.deadline()
        if deadline_s is not None:
            timeout_s = min(timeout_s, max(0.0, deadline_s - now_s))
        self.loop.turn(timeout_s)
        now_s = self.clock()
        if now_s >= self._tick_s:
            self._tick_s = now_s + TICK_S
            self.resolver.tick()
        deadline_s = self.recursor.forwarder.deadline()
        if deadline_s is not None and deadline_s <= now_s:
            self.recursor.forwarder.wake(now_s)
        self._perform()
        self._connections.sweep(now_s)

    def _ask(self, query: Query, limit: int, where: Datagram | Place, client: bytes) -> Fetched | None:
        return self.recursor.begin(Waiting(query, limit, where), client, self.clock())

    def _perform(self) -> None:
        """Do what the recursor wants; what fails at once makes it want more."""
        while self.recursor.forwarder.pending:
            sockets, answers = self.recursor.take(self.clock())
            for action in sockets:
                self._sockets.perform(action)
            for waiting, answer in answers:
                match waiting.reply_to:
                    case Datagram(listener, sender):
                        listener.answer_late(sender, answer)
                    case Place(connection):
                        connection.answer_late(answer)
                    case _:
                        raise AssertionError(waiting)

    def stats(self) -> feed.Stats:
        """What was done since the start, and what there is."""
        forwarder, cache, tcp = self.recursor.forwarder, self.recursor.cache, self._connections.counters
        sockets = [listener.udp for listener in self._listeners.values()]
        counters = {
            "queries_udp": self._udp_counters.queries,
            "queries_hot": self._udp_counters.hot,
            "queries_tcp": tcp.queries,
            "unsent": self._udp_counters.unsent,
            "lost": sum(kernel.buffered(udp.sock).lost for udp in sockets),
            "over_share": sum(udp.over_share for udp in sockets),
            "connections_accepted": tcp.accepted,
            "connections_refused": tcp.turned_away,
            "connections_timed_out": tcp.timed_out,
            "forwarded": forwarder.counters.asked,
            "forward_failed": forwarder.counters.failed,
            "forward_forged": forwarder.counters.forged,
            "forward_refused": forwarder.counters.refused,
            "served_stale": self.recursor.served_stale,
        }
        counters |= {f"dropped_{reason.replace(' ', '_')}": count for reason, count in self._dropped.items()}
        levels = {
            "connections": len(self._connections),
            "forwarding": len(forwarder),
            "cache_entries": len(cache),
            "cache_bytes": cache.size,
            "names": sum(len(network) for network in self.resolver.zone.networks.values()),
            "listeners": len(self._listeners),
        }
        return feed.Stats(counters, levels, tuple(map(str, forwarder.upstreams)))


# --- fed by the daemon --------------------------------------------------------------------------------------------


class Ended(Exception):
    """The daemon has closed its end."""


class Control:
    """The daemon's end of the socket pair."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server, self._sock = server, sock
        self._frames = feed.Frames()
        self._fds: list[int] = []
        self._output = bytearray()
        self._stats_s = 0.0
        self._stale_views = False
        sock.setblocking(False)
        server.loop.watch(sock.fileno(), READ, self._ready)

    def run(self) -> None:
        """Serve until the daemon is gone."""
        try:
            while True:
                busy = self._take()
                self._server.turn(0.0 if busy else IDLE_TURN_S)
                now_s = self._server.clock()
                if now_s >= self._stats_s:
                    self._stats_s = now_s + STATS_S
                    self._send(self._server.stats())
        except Ended:
            self._server.loop.forget(self._sock.fileno())
            self._sock.close()

    def run_on(self) -> None:
        """The daemon is gone: serve what it said last until this process is ended, if there is anything to serve."""
        ending: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _frame: ending.append(number))
        while self._server.serving and self._server.listening and not ending:
            self._server.turn(IDLE_TURN_S)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._write()
        if events & ~WRITE and len(self._frames) < feed.MESSAGE_MAX + _READ_SIZE:
            self._read()

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _READ_SIZE, 2 * _FDS_PER_MESSAGE)
        except BlockingIOError:
            return
        except ConnectionError:
            raise Ended from None
        if not data:
            raise Ended
        self._fds += fds
        self._frames.feed(data)

    def _take(self) -> bool:
        """Apply some messages. Whether there are more."""
        for _ in range(MESSAGES_PER_TURN):
            data = self._frames.next()
            if data is None:
                return False
            self._apply(feed.decode_to_server(data))
        return True

    def _apply(self, message: feed.ToServer) -> None:
        match message:
            case feed.SetUpstreams(servers):
                self._server.set_upstreams(tuple(Upstream(*server) for server in servers))
                self._stats_s = 0.0  # tell at once
            case feed.AddListener():
                self._add_listener(message)
            case feed.DropListener(number):
                self._server.drop_listener(number)
            case feed.Commit(number):
                self._commit(number)
            case _:
                self._change(message)
                if self._stale_views and self._server.serving:
                    self._refresh()

    def _change(self, message: feed.Change) -> None:
        resolver = self._server.resolver
        match message:
            case feed.SetNetwork():
                resolver.declare(feed.network_of(message))
                self._stale_views = True
            case feed.DropNetwork(network_id):
                resolver.drop_network(network_id)
                self._stale_views = True
            case feed.PutService():
                resolver.put_service(message.network_id, feed.service_of(message))
            case feed.DropService(network_id, name):
                resolver.drop_service(network_id, name)
            case feed.PutNodes(nodes):
                resolver.put_nodes({name: ip_address(address) for name, address in nodes.items()})
            case feed.DropNodes(names):
                resolver.drop_nodes(names)
            case feed.PutHomes(homes):
                resolver.put_homes({(network, ip_address(address)): ids for network, address, ids in homes})
                self._stale_views = True
            case feed.DropHomes(gone):
                resolver.drop_homes((network, ip_address(address)) for network, address in gone)
                self._stale_views = True

    def _refresh(self) -> None:
        self._stale_views = False
        self._server.refresh()

    def _add_listener(self, message: feed.AddListener) -> None:
        if len(self._fds) < _FDS_PER_MESSAGE:
            raise feed.FeedError("a listener without its sockets")
        udp, tcp = (socket.socket(fileno=fd) for fd in self._fds[:_FDS_PER_MESSAGE])
        del self._fds[:_FDS_PER_MESSAGE]
        self._server.add_listener(message.number, udp, tcp, message.network_id)
        if message.host:
            self._server.add_own(message.number, ip_address(message.address), message.port)

    def _commit(self, number: int) -> None:
        if not self._server.serving:
            self._refresh()
            self._server.start()
            gc.collect()
            gc.freeze()  # the zone as loaded is not looked through by every collection from now on
        self._send(feed.Applied(number))

    def _send(self, message: feed.FromServer) -> None:
        if len(self._output) < feed.MESSAGE_MAX:  # else the daemon does not read, and will start us anew
            self._output += feed.encode(message)
        self._write()

    def _write(self) -> None:
        try:
            while self._output:
                del self._output[: self._sock.send(self._output)]
        except BlockingIOError:
            pass
        except ConnectionError:
            raise Ended from None
        self._server.loop.change(self._sock.fileno(), READ | (WRITE if self._output else 0))


def give_up_privileges() -> None:
    """As root: become nobody. Reading questions of strangers needs no rights.

    In a container that may not even change its user, stay what we are.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = FILES_MAX if limit == resource.RLIM_INFINITY else min(FILES_MAX, limit)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limit))
    if os.geteuid() == 0:
        with contextlib.suppress(PermissionError):
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    kernel.no_new_privileges()


def main(arguments: list[str]) -> None:
    """`FD PARENT OUTLIVE`: serve what the process PARENT says over the socket FD; with OUTLIVE 1 also after its end."""
    fd, parent, outlive = map(int, arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # to a whole group: we end when the daemon does
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=fd)
    kernel.name_process("mesh-dns")
    give_up_privileges()
    if not outlive:
        kernel.die_with_parent(signal.SIGKILL)  # only after: a change of user takes it back
    if os.getppid() != parent:
        return
    server = Server(time.monotonic, random.SystemRandom().getrandbits)
    server.serving = False
    control = Control(server, sock)
    control.run()
    if outlive:
        control.run_on()


if __name__ == "__main__":
    main(sys.argv[1:])
