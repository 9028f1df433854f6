"""The Logs service of a manager: what tasks print, from their nodes to whoever reads it.

A reader (`Read`) is served by the manager that leads: it sends each node a *demand* for each log through the
dispatcher's stream, and the node answers with a call of its own (`Push`) that carries this one log. Between the two is
a short pipe, so a reader who is slow slows the node's reading, and nothing piles up. Nothing is kept: a reader that
loses its manager asks another.

Tasks: each call's own, in a TaskGroup of its handler.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc

from control.lifecycle import TaskState, is_terminal
from control.model import Node, Service, Task
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import LogsServicer
from control.server.api import answering
from control.server.references import find
from control.server.refusal import Refusal
from control.store.store import Commit, Store, Watcher
from control.store.tables import Snapshot

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Tell = Callable[[str, pb.ManagerMessage], bool]  # to a node, through the dispatcher; whether it has a session

# Readers at a time; each costs a pipe, and its nodes a process for each log.
READERS_MAX = 64
# Logs of one reader. A service with more tasks is read task by task.
LOGS_MAX = 1000
# Pieces in a pipe, each of at most 64 KiB (`mesh.agent.logs`).
PIECES_MAX = 16
# A node that is there begins to push at once; one that is stuck shall not hold up the reader for ever.
BEGIN_TIMEOUT_S = 10.0


class _Over(Exception):
    """One of two that work together has come to its end."""


@dataclass(slots=True)
class _Log:
    """One task's, as one reader reads it."""

    demand: str
    task: Task
    node: str  # its name
    due_s: float  # when it must have begun
    begun: bool = False

    def piece(self, data: bytes = b"", error: str = "") -> pb.LogPiece:
        name = f"{self.task.service_name}.{self.task.slot}" if self.task.slot else self.task.service_name
        return pb.LogPiece(task_id=self.task.id, task_name=name, node=self.node, data=data, error=error)


@dataclass(slots=True)
class _Reader:
    """What one caller of `Read` waits for."""

    request: pb.LogsRequest
    more: bool  # logs may still be added
    logs: dict[str, _Log] = field(default_factory=dict)  # by demand: those that have not ended
    asked: set[str] = field(default_factory=set)  # ids of tasks
    pieces: deque[pb.LogPiece] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)  # a piece, or the end of a log
    room: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(self, piece: pb.LogPiece) -> None:
        """Wait until there is room."""
        while len(self.pieces) >= PIECES_MAX:
            self.room.clear()
            await self.room.wait()
        self.say(piece)

    def say(self, piece: pb.LogPiece) -> None:
        """Without waiting: at most one for each log, that it cannot be read."""
        self.pieces.append(piece)
        self.news.set()

    def end(self, demand: str) -> None:
        """This log is over."""
        self.logs.pop(demand, None)
        self.news.set()

    def expire(self, now_s: float) -> None:
        """Give up logs whose nodes have not begun in time."""
        for late in [one for one in self.logs.values() if not one.begun and one.due_s <= now_s]:
            self.say(late.piece(error=f'node "{late.node}" does not send the log'))
            self.end(late.demand)

    def deadline_s(self) -> float | None:
        """When the next one is late."""
        return min((one.due_s for one in self.logs.values() if not one.begun), default=None)


class LogsService(LogsServicer):
    """See the module. `new_id` makes the secret numbers of demands."""

    def __init__(self, store: Store, tell: Tell, new_id: Callable[[], str]) -> None:
        self._store, self._tell, self._new_id = store, tell, new_id
        self._readers: dict[int, _Reader] = {}
        self._demands: dict[str, _Reader] = {}

    # --- the reader's side --------------------------------------------------------------------------------------------

    async def Read(self, request: pb.LogsRequest, context: Context) -> None:  # type: ignore[override]  # no generator: it owns a TaskGroup
        async with answering(context, timeout_s=None):
            if len(self._readers) >= READERS_MAX:
                raise Refusal("UNAVAILABLE", f"this manager hands on {READERS_MAX} logs already: try again later")
            view = self._store.view()
            service, tasks = _wanted(view, request)
            watcher = self._store.watch(view.version)
            reader = _Reader(request, more=request.follow and service is not None)
            self._readers[id(reader)] = reader
            try:
                for task in tasks:
                    self._ask(reader, view, task)
                await self._hand_on(reader, service, watcher, context)
            finally:
                watcher.close()
                self._forget(reader)

    async def _hand_on(self, reader: _Reader, service: Service | None, watcher: Watcher, context: Context) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                if service is not None and reader.more:
                    group.create_task(self._follow(reader, service, watcher))
                await _write(reader, context)
                raise _Over
        except* _Over:
            pass

    async def _follow(self, reader: _Reader, service: Service, watcher: Watcher) -> None:
        """Ask for the logs of tasks as they come, until the service is removed."""
        async for item in watcher:
            view = self._store.view()
            events = item.events if isinstance(item, Commit) else ()
            changed = [event.after for event in events if isinstance(event.after, Task)]
            for task in changed if isinstance(item, Commit) else view.tasks_of_service(service.id):
                if task.service_id == service.id and _prints(task):
                    self._ask(reader, view, task, whole=True)
            if view.get(Service, service.id) is None:
                reader.more = False
                reader.news.set()
                return

    def _ask(self, reader: _Reader, view: Snapshot, task: Task, *, whole: bool = False) -> None:
        """Demand one log from the node that has it; `whole`: the reader was there first."""
        if task.id in reader.asked or len(reader.asked) >= LOGS_MAX:
            return
        reader.asked.add(task.id)
        node = view.get(Node, task.node_id)
        name = (node.description.hostname or node.id) if node is not None else task.node_id
        one = _Log(self._new_id(), task, name, _now() + BEGIN_TIMEOUT_S)
        reader.logs[one.demand] = one
        self._demands[one.demand] = reader
        asked = pb.LogDemand(demand=one.demand, task_id=task.id, follow=reader.request.follow)
        if reader.request.HasField("tail") and not whole:
            asked.tail = reader.request.tail
        if not self._tell(task.node_id, pb.ManagerMessage(log_demand=asked)):
            if not is_terminal(task.status.state):  # of what has ended there is nothing on a node that is gone
                reader.say(one.piece(error=f'node "{name}" is away: its logs cannot be read'))
            reader.end(one.demand)
            del self._demands[one.demand]

    def _forget(self, reader: _Reader) -> None:
        del self._readers[id(reader)]
        self._demands = {demand: one for demand, one in self._demands.items() if one is not reader}
        reader.closed.set()

    # --- the node's side ----------------------------------------------------------------------------------------------

    async def Push(self, request_iterator: Any, context: Context) -> pb.PushedLogEnd:
        async with asyncio.timeout(BEGIN_TIMEOUT_S):
            first = await context.read()
        demand = first.demand if isinstance(first, pb.PushedLog) else ""
        reader = self._demands.pop(demand, None)
        one = reader.logs.get(demand) if reader is not None else None
        if reader is None or one is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "nobody waits for this log (any more)")
            raise AssertionError
        one.begun = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_until(reader.closed))
                await _pump(reader, one, context)
                raise _Over
        except* _Over:
            pass
        finally:
            reader.end(demand)
        return pb.PushedLogEnd()


def _wanted(view: Snapshot, request: pb.LogsRequest) -> tuple[Service | None, Iterable[Task]]:
    """The service, if it is one that is asked for, and its tasks that have printed something. Raises Refusal."""
    if request.service:
        service = find(view, Service, request.service)
        tasks = [task for task in view.tasks_of_service(service.id) if _prints(task)]
        if len(tasks) > LOGS_MAX:
            raise Refusal("FAILED_PRECONDITION", f'service "{service.spec.name}" has too many tasks: name one of them')
        return service, tasks
    task = find(view, Task, request.task)
    if not task.node_id:
        raise Refusal("FAILED_PRECONDITION", f'task "{request.task[:80]}" is on no node yet')
    return None, [task]


def _prints(task: Task) -> bool:
    """Whether it has been started, and its node may have something of it."""
    return bool(task.node_id) and TaskState.STARTING <= task.status.state < TaskState.REJECTED


async def _write(reader: _Reader, context: Context) -> None:
    """Hand pieces to the caller until nothing more can come."""
    while True:
        reader.expire(_now())
        while reader.pieces:
            await context.write(reader.pieces.popleft())
            reader.room.set()
        if not reader.logs and not reader.more:
            return
        reader.news.clear()
        if reader.pieces:
            continue
        deadline_s = reader.deadline_s()
        try:
            async with asyncio.timeout_at(deadline_s):
                await reader.news.wait()
        except TimeoutError:
            pass


async def _pump(reader: _Reader, one: _Log, context: Context) -> None:
    while True:
        pushed = await context.read()
        if not isinstance(pushed, pb.PushedLog):  # grpc.aio.EOF
            return
        if pushed.data or pushed.error:
            await reader.put(one.piece(pushed.data, pushed.error))


async def _until(closed: asyncio.Event) -> None:
    await closed.wait()
    raise _Over


def _now() -> float:
    return asyncio.get_running_loop().time()
