"""The Dispatcher service of a manager: the asyncio and gRPC shell around `control.dispatcher.sessions`.

`run` serves one term of leadership. Tasks: one follows the store, one keeps the core's timer, one writes what the core
wants written; all in one TaskGroup that `run` owns. Each stream has a reader and a writer of its own, in a TaskGroup
that its gRPC handler owns; gRPC cancels the handler when the node is gone.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from control import access
from control.dispatcher.attaching import attachment_changes, network_changes
from control.dispatcher.events import (
    Close,
    Closed,
    Committed,
    Event,
    Heard,
    Opened,
    Resynced,
    Rumoured,
    Send,
    Sent,
    Status,
    Written,
)
from control.dispatcher.patience import Rumour
from control.dispatcher.sessions import Sessions
from control.dispatcher.writes import Write, node_changes, report_changes
from control.lifecycle import Writer
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import DispatcherServicer
from control.server.caller import caller
from control.server.hop import LEADER, peer_address
from control.server.transact import insist
from control.store.errors import StoreClosed
from control.store.store import Commit, Resync, Store
from control.store.tables import Snapshot
from control.store.txn import Put

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


# The status of a stream goes behind what was written to it; a node that does not read never gets it.
ABORT_TIMEOUT_S = 1.0


_SESSION = "Dispatcher/Session"


class _StreamEnd(Exception):
    """A stream is over. Without a code: the node hung up."""

    def __init__(self, code: str = "", sentence: str = "", leader: str | None = None) -> None:
        """`leader`: where the node should go instead, "" if that is not known."""
        super().__init__(sentence)
        self.code, self.sentence, self.leader = code, sentence, leader


class _Outbox:
    """What waits to be written to one stream; the core bounds it (UNREAD_MAX)."""

    def __init__(self) -> None:
        self.messages: deque[pb.ManagerMessage] = deque()
        self.news = asyncio.Event()
        self._end: _StreamEnd | None = None
        self._has_ended = asyncio.Event()

    def put(self, message: pb.ManagerMessage) -> None:
        self.messages.append(message)
        self.news.set()

    def close(self, end: _StreamEnd) -> None:
        self.messages.clear()
        self._end = end
        self._has_ended.set()

    async def ended(self) -> None:
        """Raises the end when it has come, also while the writer is stuck with a node that does not read."""
        await self._has_ended.wait()
        assert self._end is not None
        raise self._end


class DispatcherService(DispatcherServicer):
    """See the module."""

    def __init__(
        self,
        store: Store,
        wall_ms: Callable[[], int],
        random_source: random.Random,
        leader: Callable[[], str] = lambda: "",
    ) -> None:
        """`leader`: where another manager that leads is, "" if none is known."""
        self._store, self._wall_ms, self._random, self._leader = store, wall_ms, random_source, leader
        self._core: Sessions | None = None  # while this manager leads
        self._rumours: Mapping[str, Rumour] = {}
        self._numbers = itertools.count(1)
        self._outboxes: dict[int, _Outbox] = {}
        self._kick = asyncio.Event()
        self._armed = 0.0
        self._writes: asyncio.Queue[Write] = asyncio.Queue(1)  # the core has at most one under way

    async def run(self, term: int) -> None:
        """Serve while this manager leads in `term`; ends by cancellation or with a StoreError."""
        view = self._store.view()
        watcher = self._store.watch(view.version)
        self._writes = asyncio.Queue(1)
        self._core = Sessions(view, _now(), self._random)
        self._core.receive(Rumoured(self._rumours), _now())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_time())
                group.create_task(self._write(term))
                async for item in watcher:
                    match item:
                        case Commit(version, events):
                            self._feed(Committed(self._store.view(), version, events))
                        case Resync(view=view):
                            self._feed(Resynced(view))
                raise StoreClosed("the store is closed: this manager is stopping")
        finally:
            self._core = None
            for outbox in self._outboxes.values():
                outbox.close(self._elsewhere("this manager does not lead the cluster any more"))

    def status(self) -> Status | None:
        """What is going on; None while this manager does not lead."""
        return self._core.status() if self._core is not None else None

    @property
    def open_streams(self) -> int:
        """Streams that have a handler, also those that the core has given up already."""
        return len(self._outboxes)

    def rumour(self, nodes: Mapping[str, Rumour]) -> None:
        """What gossip says of the nodes, from now on; also for the next time that this manager leads."""
        if nodes != self._rumours:
            self._rumours = nodes
            self._feed(Rumoured(nodes))

    def caught_up(self, node_id: str, version: int) -> bool:
        """Whether a node's kernel holds all that concerns it up to a store version."""
        return self._core is not None and self._core.caught_up(node_id, version)

    def tell(self, node_id: str, message: pb.ManagerMessage) -> bool:
        """Send a node something besides its assignments; whether it has a session with this manager."""
        if self._core is None:
            return False
        told = self._core.tell(node_id, message)
        self._perform(self._core)
        return told

    # --- streams ----------------------------------------------------------------------------------------------------

    async def Session(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]  # no generator: it reads while it writes
        stream, outbox = next(self._numbers), _Outbox()
        self._outboxes[stream] = outbox
        if self._core is None:
            outbox.close(self._elsewhere("this manager does not lead the cluster"))
        ends: list[_StreamEnd] = []
        self._feed(Opened(stream, peer_address(context)))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_stream(stream, context))
                group.create_task(self._write_stream(stream, outbox, context))
                group.create_task(outbox.ended())
        except* _StreamEnd as errors:
            ends = [error for error in errors.exceptions if isinstance(error, _StreamEnd)]
        finally:
            del self._outboxes[stream]
            self._feed(Closed(stream))
        for end in ends:
            if end.code:
                await self._abort(context, end)

    def _elsewhere(self, sentence: str) -> _StreamEnd:
        address = self._leader()
        return _StreamEnd("UNAVAILABLE", sentence + f": {address} does" * bool(address), address)

    async def _abort(self, context: Context, end: _StreamEnd) -> None:
        trailing = ((LEADER, end.leader),) if end.leader is not None else ()
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                await context.abort(grpc.StatusCode[end.code], end.sentence, trailing_metadata=trailing)
        except TimeoutError:  # gRPC keeps the stream, with one message, until the node's connection ends
            log.warning("a node does not read its stream", extra={"peer": context.peer(), "reason": end.sentence})

    async def _read_stream(self, stream: int, context: Context) -> None:
        while True:
            try:
                message = await context.read()
            except DecodeError as error:
                raise _StreamEnd("INVALID_ARGUMENT", "the node sent something that cannot be read") from error
            if not isinstance(message, pb.NodeMessage):  # grpc.aio.EOF
                raise _StreamEnd
            who = caller()
            if who is not None and message.HasField("hello") and access.refusal(_SESSION, who, message.hello.node_id):
                raise _StreamEnd("PERMISSION_DENIED", f"{who} may not speak for node {message.hello.node_id[:40]}")
            self._feed(Heard(stream, message))

    async def _write_stream(self, stream: int, outbox: _Outbox, context: Context) -> None:
        while True:
            await outbox.news.wait()
            outbox.news.clear()
            while outbox.messages:
                await context.write(outbox.messages.popleft())
                self._feed(Sent(stream))

    # --- feeding the core -------------------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        if self._core is None:
            return
        self._core.receive(event, _now())
        self._perform(self._core)
        if self._core.deadline() < self._armed:
            self._kick.set()

    def _perform(self, core: Sessions) -> None:
        for output in core.drain():
            match output:
                case Send(stream, message):
                    self._outboxes[stream].put(message)
                case Close(stream, code, sentence):
                    self._outboxes[stream].close(_StreamEnd(code, sentence))
                case Write():
                    self._writes.put_nowait(output)

    async def _keep_time(self) -> None:
        while self._core is not None:
            self._core.wake(_now())
            self._perform(self._core)
            self._armed = self._core.deadline()
            try:
                async with asyncio.timeout_at(self._armed):
                    await self._kick.wait()
            except TimeoutError:
                pass
            self._kick.clear()

    async def _write(self, term: int) -> None:
        while True:
            write = await self._writes.get()

            def reports(view: Snapshot, write: Write = write) -> Iterable[Put]:
                return report_changes(write, view)

            def updates(view: Snapshot, write: Write = write) -> Iterable[Put]:
                return node_changes(write, view, self._wall_ms())

            await insist(self._store, reports, Writer.AGENT, term)
            await insist(self._store, updates, Writer.DISPATCHER, term)
            for node_id, report in write.attached.items():
                told = functools.partial(attachment_changes, node_id, report)
                await insist(self._store, told, Writer.DISPATCHER, term)
                made = functools.partial(network_changes, node_id, report)
                while made(self._store.view()):
                    await insist(self._store, made, Writer.DISPATCHER, term)
            self._feed(Written(write.number))


def _now() -> float:
    return asyncio.get_running_loop().time()
