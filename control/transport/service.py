"""The managers' transport: Raft messages and snapshots over connections of their own.

`Transport.run` owns everything: the listener, a link to each peer (`links`), and at most one snapshot on its way to
each. It ends when cancelled, at once: nothing here is worth waiting for, Raft sends it again. `send` never blocks, and
never calls back from within.

Lanes keep apart what must not wait for each other: heartbeats and votes have a connection of their own, appends
another, a snapshot a third. What a peer's appends may take of this loop is bounded by reading a quarter of a megabyte
at a time, and `hold_bulk` stops reading them while the disk is behind.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic

from control.transport.connection import Connection
from control.transport.incoming import Caller, Incoming
from control.transport.links import Broken, Link, said
from control.transport.seam import Codec, Counters, Handler, Identity, M, PeerStatus, Tls
from control.transport.snapshots import Receiving, Sending
from control.transport.spool import Source, Spool
from control.transport.wire import BadBytes, Kind, Lane, Offer

# An answer to an offer or to chunks: the receiver writes some megabytes, or reads all of the snapshot for its digest.
SNAPSHOT_STALL_S = 60.0
# Attempts in a row that bring nothing further. The pauses between them add up to a few seconds; then Raft decides.
SNAPSHOT_ATTEMPTS = 6


@dataclass(slots=True)
class _Peer(Generic[M]):
    link: Link[M]
    task: asyncio.Task[None] | None = None
    snapshot: asyncio.Task[None] | None = None


class Transport(Generic[M]):
    """See the module.

    `sock` is bound and listens. `advertise` is told to peers as where this manager listens: "host:port", or ":port" for
    the address that the connection comes from. `welcome` says whether a node may still come (removed ones may not).
    """

    def __init__(
        self,
        identity: Identity,
        sock: socket.socket,
        codec: Codec[M],
        handler: Handler[M],
        spool: Spool,
        *,
        rng: random.Random,
        tls: Tls | None = None,
        advertise: str = "",
        welcome: Callable[[str], bool] = lambda node_id: True,
    ) -> None:
        self.counters = Counters()
        self._me, self._codec, self._handler, self._spool = identity, codec, handler, spool
        self._tls, self._rng = tls, rng
        self._advertise = advertise or f":{sock.getsockname()[1]}"
        self._incoming = Incoming(sock, identity, tls, self.counters, welcome=welcome, met=self._met, serve=self._serve)
        self._peers: dict[str, _Peer[M]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.to_thread(self._spool.clear)
        async with asyncio.TaskGroup() as group:
            self._group = group
            for peer in self._peers.values():
                peer.task = group.create_task(peer.link.run())
            group.create_task(self._incoming.run())

    # --- peers --------------------------------------------------------------------------------------------------------

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """The other managers and where they are supposed to be, host:port. Those left out are let go."""
        for node_id in self._peers.keys() - peers.keys():
            gone = self._peers.pop(node_id)
            for task in (gone.task, gone.snapshot):
                if task is not None:
                    task.cancel()
        for node_id, address in peers.items():
            if node_id in self._peers:
                self._peers[node_id].link.configure(address)
            elif node_id != self._me.node_id:
                self._peers[node_id] = self._new(node_id, address)

    def _new(self, node_id: str, address: str) -> _Peer[M]:
        link = Link(
            node_id,
            address,
            self._me,
            lambda: self._advertise,
            self._codec,
            self._tls,
            self._rng,
            self.counters,
            self._handler.report_unreachable,
        )
        return _Peer(link, self._group.create_task(link.run()) if self._group is not None else None)

    def advertise(self, address: str) -> None:
        """This manager is found elsewhere from now on; peers hear of it when they are called next."""
        self._advertise = address

    def status(self) -> tuple[PeerStatus, ...]:
        """All peers."""
        return tuple(peer.link.status() for peer in self._peers.values())

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, to: str, message: M) -> bool:
        """Put a message on its way, or drop it (False) and report. Not for messages with a snapshot."""
        peer = self._peers.get(to)
        if peer is None:
            self.counters.dropped["no such peer"] += 1
            return False
        return peer.link.send(message)

    def hold_bulk(self, hold: bool) -> None:
        """Whether to stop reading appends: this manager is behind with those that it has."""
        if hold:
            self._flowing.clear()
        else:
            self._flowing.set()

    async def _serve(self, sender: str, lane: Lane, connection: Connection) -> None:
        if lane is Lane.SNAPSHOT:
            await self._receive_snapshot(sender, connection)
            return
        while True:
            if lane is Lane.BULK:
                await self._flowing.wait()
            for kind, payload in await connection.read():
                if kind is not Kind.MESSAGES:
                    raise BadBytes("frame kind")
                messages = self._decode(payload, sender)
                self.counters.received += len(messages)
                self._handler.received(sender, messages)

    def _decode(self, payload: bytes, sender: str) -> list[M]:
        try:
            return self._codec.decode(payload, sender, self._me.node_id)
        except ValueError as error:
            raise BadBytes("message") from error

    def _met(self, caller: Caller) -> None:
        peer = self._peers.get(caller.node_id)
        if caller.address and (peer is None or peer.link.learn(caller.address)):
            self._handler.address_learned(caller.node_id, caller.address)

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def send_snapshot(self, to: str, message: M, source: Source) -> bool:
        """Send a snapshot, and `message` with it. A later one takes the place of one that is under way.

        False: there is no such peer. Otherwise exactly one `report_snapshot` follows, unless another takes its place.
        """
        peer = self._peers.get(to)
        if peer is None or self._group is None:
            self.counters.dropped["no such peer"] += 1
            return False
        if peer.snapshot is not None:
            peer.snapshot.cancel()
        peer.snapshot = self._group.create_task(self._send_snapshot(peer, message, source))
        return True

    async def _send_snapshot(self, peer: _Peer[M], message: M, source: Source) -> None:
        offer = Offer(source.size_bytes, source.sha256, self._codec.encode([message]))
        reached, failures = 0, 0
        ok: bool | None = None
        while ok is None and failures < SNAPSHOT_ATTEMPTS:
            sending = Sending(offer)
            try:
                connection = await peer.link.open(Lane.SNAPSHOT)
                try:
                    ok = await self._move(connection, sending, source)
                finally:
                    connection.close()
            except Broken as error:
                self.counters.dropped[f"snapshot: {said(error)}"] += 1
            # Only progress counts: a link that breaks again and again, but brings some of it each time, will do.
            failures = 0 if sending.acknowledged > reached else failures + 1
            reached = max(reached, sending.acknowledged)
            if ok is None:
                await peer.link.pause(failures)
        peer.snapshot = None
        self._handler.report_snapshot(peer.link.node_id, bool(ok))

    async def _move(self, connection: Connection, sending: Sending, source: Source) -> bool | None:
        connection.write(*sending.begin())
        while sending.ok is None:
            while (wanted := sending.wanted()) is not None:
                data = await asyncio.to_thread(source.read, *wanted)
                if len(data) != wanted[1]:
                    raise BadBytes("the snapshot has changed")
                connection.write(*sending.chunk(data))
                await connection.drain()
            for kind, payload in await connection.read(SNAPSHOT_STALL_S):
                sending.receive(kind, payload)
        return sending.ok

    async def _receive_snapshot(self, sender: str, connection: Connection) -> None:
        receiving = Receiving()
        whole = False
        while not whole:
            for kind, payload in await connection.read(SNAPSHOT_STALL_S):
                match receiving.receive(kind, payload):
                    case Offer() as offer:
                        self._decode(offer.message, sender)
                        connection.write(*receiving.accept(await asyncio.to_thread(self._spool.begin, offer)))
                    case offset, data:
                        assert receiving.offer is not None
                        await asyncio.to_thread(self._spool.write, receiving.offer, offset, data)
                        connection.write(*receiving.written(len(data)))
                whole = receiving.complete()
            await connection.drain()
        assert receiving.offer is not None
        path = await asyncio.to_thread(self._spool.finish, receiving.offer)
        if path is not None:
            [message] = self._decode(receiving.offer.message, sender)
            self._handler.snapshot_received(sender, message, path)
        connection.write(*receiving.result(path is not None))
        await connection.drain()
        # The sender closes when it has read the result.
        for _ in await connection.read(SNAPSHOT_STALL_S):
            raise BadBytes("frame kind")


def listening(host: str, port: int) -> socket.socket:
    """A socket for `Transport`. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock
