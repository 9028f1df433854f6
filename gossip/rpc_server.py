"""Serf's RPC server: TCP and unix sockets, any number of requests and streams for each client, all bounded.

Tasks: one for each connection (asyncio's), which ends with the connection or with `RpcServer.close`. Streams have no
task: `dispatch` writes their records to the connection, and drops them, counted, when the client does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gossip import rpc
from gossip.coordinates import Coordinate
from gossip.serf.keys import KeyCommand, KeyResult
from gossip.serf.pattern import PatternError
from gossip.serf.ports import Event, QuerySeen, Refused, UserEventSeen
from gossip.serf.queries import TIMEOUT_MAX_S, QueryAnswer, QueryDone
from gossip.serf.roster import MemberChange, SerfMember

CLIENTS_MAX = 128
STREAMS_MAX = 32  # of one client
# Bytes that a client may leave unread before records for it are dropped: 512 events, Serf's queue, of a kilobyte each.
UNREAD_MAX = 512 << 10
# Queries that a client may still answer.
PENDING_MAX = 512
HANDSHAKE_TIMEOUT_S = 30.0
REPLY_TIMEOUT_S = 10.0  # in which a client must take a reply
CLOSE_TIMEOUT_S = 0.5  # for clients to take what was written
CLOSE_POLL_S = 0.01
AUTH_TRIES_MAX = 5
READ_BYTES = 64 << 10
LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERR")


class Backend(Protocol):
    """The agent, as clients command it. Methods raise Refused with a text for the client."""

    def members(self) -> Sequence[SerfMember]: ...

    def user_event(self, name: str, payload: bytes, coalesce: bool) -> None: ...

    def query(
        self,
        name: str,
        payload: bytes,
        *,
        nodes: Sequence[str],
        tags: Mapping[str, str],
        ack: bool,
        relay_factor: int,
        timeout_s: float,
    ) -> int: ...

    def respond(self, query: QuerySeen, payload: bytes) -> None: ...

    async def force_leave(self, node: str, prune: bool) -> None: ...

    async def join(self, existing: Sequence[str], replay: bool) -> tuple[int, str]:
        """How many were reached, and an error if it was none."""
        ...

    async def leave(self) -> None: ...

    def stop(self) -> None:
        """The agent is to end: it was told to leave."""
        ...

    async def key_command(self, command: KeyCommand, key: str) -> KeyResult: ...

    def tags(self) -> Mapping[str, str]: ...

    def set_tags(self, tags: Mapping[str, str]) -> None: ...

    def stats(self) -> Mapping[str, Mapping[str, str]]: ...

    def coordinate(self, node: str) -> Coordinate | None: ...

    def recent_logs(self) -> Iterable[tuple[str, str]]:
        """(level, line) of what was logged lately."""
        ...


@dataclass(eq=False)
class _Client:
    writer: asyncio.StreamWriter
    shaken: bool = False
    authenticated: bool = False
    tries: int = 0
    streams: dict[int, list[rpc.EventFilter]] = field(default_factory=dict)
    queries: dict[int, int] = field(default_factory=dict)  # query of the core -> seq
    pending: dict[int, QuerySeen] = field(default_factory=dict)
    monitor: tuple[int, int] | None = None  # seq, least level
    next_id: int = 0
    dropped: int = 0

    def push(self, seq: int, record: object) -> bool:
        """Send a record of a stream, unless the client is too far behind."""
        transport = self.writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > UNREAD_MAX:
            self.dropped += 1
            return False
        self.writer.write(rpc.reply(seq, "", record))
        return True


class _Close(Exception):
    """The connection is to be closed after what was written."""


class RpcServer:
    """Listens; `dispatch` and `log` are called by the agent with what happens."""

    def __init__(self, backend: Backend, auth_key: str = "", clock: Callable[[], float] | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._backend = backend
        self._auth_key = auth_key
        self._clock = clock or asyncio.get_running_loop().time
        self._clients: set[_Client] = set()
        self._servers: list[asyncio.Server] = []
        self._handlers: dict[str, Callable[[_Client, rpc.Request], Awaitable[None]]] = {
            "event": self._event,
            "force-leave": self._force_leave,
            "join": self._join,
            "members": self._members,
            "members-filtered": self._members,
            "stream": self._stream,
            "stop": self._stop,
            "monitor": self._monitor,
            "leave": self._leave,
            "install-key": self._key,
            "use-key": self._key,
            "remove-key": self._key,
            "list-keys": self._key,
            "tags": self._tags,
            "query": self._query,
            "respond": self._respond,
            "stats": self._stats,
            "get-coordinate": self._coordinate,
        }

    # Listening

    async def listen_tcp(self, host: str, port: int) -> int:
        """Listen; the port. Raises OSError."""
        server = await asyncio.start_server(self._serve, host, port)
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    async def listen_unix(self, path: Path) -> None:
        """Listen on a socket that only its owner may use. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(door.fileno(), 0o600)  # before it has a name: nobody else may ever connect
            door.bind(str(path))
            self._servers.append(await asyncio.start_unix_server(self._serve, sock=door))
        except OSError:
            door.close()
            raise

    async def close(self) -> None:
        """Stop listening and end all connections."""
        for server in self._servers:
            server.close()
        for client in list(self._clients):
            client.writer.close()
        until = self._clock() + CLOSE_TIMEOUT_S
        while any(client.writer.transport.get_write_buffer_size() for client in self._clients):
            if self._clock() >= until:
                break
            await asyncio.sleep(CLOSE_POLL_S)
        for client in list(self._clients):
            client.writer.transport.abort()
        self._servers.clear()

    # What happens, from the agent

    def dispatch(self, event: Event) -> None:
        """Tell the streams that want it."""
        match event:
            case MemberChange() | UserEventSeen() | QuerySeen():
                for client in self._clients:
                    self._stream_event(client, event)
            case QueryAnswer(query, ack, node, payload):
                self._to_asker(query, rpc.answer_record("ack" if ack else "response", node, payload), over=False)
            case QueryDone(query):
                self._to_asker(query, rpc.answer_record("done", "", b""), over=True)
            case _:
                pass

    def log(self, level: str, line: str) -> None:
        """Tell the monitors."""
        for client in self._clients:
            if client.monitor is not None and LEVELS.index(level) >= client.monitor[1]:
                client.push(client.monitor[0], {"Log": line})

    def _stream_event(self, client: _Client, event: MemberChange | UserEventSeen | QuerySeen) -> None:
        for seq, filters in client.streams.items():
            if not any(wanted.wants(event) for wanted in filters):
                continue
            match event:
                case MemberChange():
                    record = rpc.change_record(event)
                case UserEventSeen():
                    record = rpc.user_record(event)
                case QuerySeen():
                    record = rpc.query_record(event, self._remember(client, event))
            if not client.push(seq, record):
                self.counts["records_dropped"] += 1

    def _remember(self, client: _Client, event: QuerySeen) -> int:
        now = self._clock()
        client.pending = {i: seen for i, seen in client.pending.items() if seen.deadline_s > now}
        if len(client.pending) >= PENDING_MAX:
            client.pending.pop(next(iter(client.pending)))
        client.next_id += 1
        client.pending[client.next_id] = event
        return client.next_id

    def _to_asker(self, query: int, record: object, *, over: bool) -> None:
        for client in self._clients:
            if (seq := client.queries.get(query)) is not None:
                client.push(seq, record)
                if over:
                    del client.queries[query]

    # Connections

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            self.counts["clients_refused"] += 1
            writer.close()
            return
        client = _Client(writer)
        self._clients.add(client)
        self.counts["clients"] += 1
        try:
            await self._read(client, reader)
        except _Close:
            pass
        except (rpc.RpcError, OSError, TimeoutError):
            self.counts["clients_failed"] += 1
        finally:
            self._clients.discard(client)
            writer.close()

    async def _read(self, client: _Client, reader: asyncio.StreamReader) -> None:
        requests = rpc.Requests()
        while True:
            while (request := requests.next()) is not None:
                await self._handle(client, request)
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    await client.writer.drain()
            async with asyncio.timeout(None if client.shaken else HANDSHAKE_TIMEOUT_S):
                got = await reader.read(READ_BYTES)
            if not got:
                return
            requests.feed(got)

    async def _handle(self, client: _Client, request: rpc.Request) -> None:
        command, seq, body = request
        self.counts["commands"] += 1
        if command != "handshake" and not client.shaken:
            self._say(client, seq, rpc.HANDSHAKE_REQUIRED)
            raise _Close
        if command == "handshake":
            self._handshake(client, seq, body)
        elif command == "auth":
            self._auth(client, seq, body)
        elif self._auth_key and not client.authenticated:
            self._say(client, seq, rpc.AUTH_REQUIRED)
        elif (handler := self._handlers.get(command)) is None:
            self._say(client, seq, rpc.UNSUPPORTED_COMMAND)
            raise _Close
        else:
            try:
                await handler(client, request)
            except Refused as refusal:
                self._say(client, seq, str(refusal))

    def _say(self, client: _Client, seq: int, error: str = "", body: object = None) -> None:
        client.writer.write(rpc.reply(seq, error, body))

    def _handshake(self, client: _Client, seq: int, body: Mapping[str, object]) -> None:
        if body.get("Version") != rpc.VERSION:
            self._say(client, seq, rpc.UNSUPPORTED_VERSION)
        elif client.shaken:
            self._say(client, seq, rpc.DUPLICATE_HANDSHAKE)
        else:
            client.shaken = True
            self._say(client, seq)

    def _auth(self, client: _Client, seq: int, body: Mapping[str, object]) -> None:
        given = rpc.data(body, "AuthKey")
        if hmac.compare_digest(given, self._auth_key.encode("utf-8", "surrogateescape")):
            client.authenticated = True
            self._say(client, seq)
            return
        self.counts["auth_failed"] += 1
        client.tries += 1
        self._say(client, seq, rpc.INVALID_TOKEN)
        if client.tries >= AUTH_TRIES_MAX:
            raise _Close

    # Commands

    async def _event(self, client: _Client, request: rpc.Request) -> None:
        body = request.body
        self._backend.user_event(rpc.text(body, "Name"), rpc.data(body, "Payload"), rpc.flag(body, "Coalesce"))
        self._say(client, request.seq)

    async def _force_leave(self, client: _Client, request: rpc.Request) -> None:
        await self._backend.force_leave(rpc.text(request.body, "Node"), rpc.flag(request.body, "Prune"))
        self._say(client, request.seq)

    async def _join(self, client: _Client, request: rpc.Request) -> None:
        reached, error = await self._backend.join(rpc.texts(request.body, "Existing"), rpc.flag(request.body, "Replay"))
        self._say(client, request.seq, error, {"Num": reached})

    async def _members(self, client: _Client, request: rpc.Request) -> None:
        members, body = self._backend.members(), request.body
        if request.command == "members-filtered":
            try:
                members = rpc.filter_members(
                    members, rpc.pairs(body, "Tags"), rpc.text(body, "Status"), rpc.text(body, "Name")
                )
            except PatternError as error:
                # Serf closes the connection without a word; a client that gets an error reads no body after it.
                self._say(client, request.seq, str(error))
                raise _Close from error
        self._say(client, request.seq, "", rpc.members_body(members))

    async def _stream(self, client: _Client, request: rpc.Request) -> None:
        filters = rpc.parse_event_filters(rpc.text(request.body, "Type"))
        if filters is None:
            self._say(client, request.seq, rpc.INVALID_FILTER)
        elif request.seq in client.streams:
            self._say(client, request.seq, rpc.STREAM_EXISTS)
        elif len(client.streams) >= STREAMS_MAX:
            self._say(client, request.seq, rpc.TOO_MANY_STREAMS)
        else:
            self._say(client, request.seq)
            client.streams[request.seq] = filters

    async def _stop(self, client: _Client, request: rpc.Request) -> None:
        which = rpc.number(request.body, "Stop", rpc.SEQ_MAX)
        client.streams.pop(which, None)
        if client.monitor is not None and client.monitor[0] == which:
            client.monitor = None
        self._say(client, request.seq)

    async def _monitor(self, client: _Client, request: rpc.Request) -> None:
        level = rpc.text(request.body, "LogLevel").upper() or "INFO"
        if level not in LEVELS:
            self._say(client, request.seq, f"Unknown log level: {level}")
        elif client.monitor is not None:
            self._say(client, request.seq, rpc.MONITOR_EXISTS)
        else:
            self._say(client, request.seq)
            client.monitor = (request.seq, LEVELS.index(level))
            for written, line in self._backend.recent_logs():
                if LEVELS.index(written) >= LEVELS.index(level):
                    client.push(request.seq, {"Log": line})

    async def _leave(self, client: _Client, request: rpc.Request) -> None:
        try:
            await self._backend.leave()
        finally:
            self._backend.stop()
        self._say(client, request.seq)

    async def _key(self, client: _Client, request: rpc.Request) -> None:
        command = KeyCommand(request.command)
        try:
            result = await self._backend.key_command(command, rpc.text(request.body, "Key"))
        except Refused as refusal:
            empty = rpc.key_body(KeyResult({}, {}, {}, 0, 0, 0), with_keys=command is KeyCommand.LIST)
            self._say(client, request.seq, str(refusal), empty)
            return
        self._say(client, request.seq, result.error, rpc.key_body(result, with_keys=command is KeyCommand.LIST))

    async def _tags(self, client: _Client, request: rpc.Request) -> None:
        gone = set(rpc.texts(request.body, "DeleteTags"))
        kept = {tag: value for tag, value in self._backend.tags().items() if tag not in gone}
        self._backend.set_tags(kept | rpc.pairs(request.body, "Tags"))
        self._say(client, request.seq)

    async def _query(self, client: _Client, request: rpc.Request) -> None:
        body = request.body
        query = self._backend.query(
            rpc.text(body, "Name"),
            rpc.data(body, "Payload"),
            nodes=rpc.texts(body, "FilterNodes"),
            tags=rpc.pairs(body, "FilterTags"),
            ack=rpc.flag(body, "RequestAck"),
            relay_factor=rpc.number(body, "RelayFactor", 255),
            timeout_s=min(rpc.number(body, "Timeout", (1 << 63) - 1) / 1e9, TIMEOUT_MAX_S),
        )
        client.queries[query] = request.seq
        self._say(client, request.seq)

    async def _respond(self, client: _Client, request: rpc.Request) -> None:
        seen = client.pending.get(rpc.number(request.body, "ID", rpc.SEQ_MAX))
        if seen is None:
            raise Refused(rpc.INVALID_QUERY)
        self._backend.respond(seen, rpc.data(request.body, "Payload"))
        self._say(client, request.seq)

    async def _stats(self, client: _Client, request: rpc.Request) -> None:
        self._say(client, request.seq, "", self._backend.stats())

    async def _coordinate(self, client: _Client, request: rpc.Request) -> None:
        found = self._backend.coordinate(rpc.text(request.body, "Node"))
        self._say(client, request.seq, "", rpc.coordinate_body(found))
