"""What tasks of this node print, sent to the manager that asks for it (control/server/logs.py).

Reading a log blocks, and may go on for days: it is done by a process of its own for each log (mesh.executor.logs),
whose output is pumped into one call. A manager that does not take it slows that process, and nobody else.

Tasks: one per log that is sent, in the TaskGroup of `run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import LogsStub
from control.server.edge import Edge

log = logging.getLogger(__name__)

Call = grpc.aio.StreamUnaryCall[pb.PushedLog, pb.PushedLogEnd]

# Logs sent at a time: each is a process of 12 MiB, and of a container's 40. Others wait, or are refused if they are to
# be followed, which has no end.
SENT_MAX = 16
FOLLOWED_MAX = 12
WAITING_MAX = 1024  # a service of so many tasks on one node is read task by task
PIECE_BYTES = 64 << 10
ERROR_BYTES = 1000
# A process that was killed is gone by then.
KILL_TIMEOUT_S = 5.0


class _Over(Exception):
    """The call has ended."""


class LogSender:
    """See the module. `manager` says which one this node is connected to."""

    def __init__(self, state_dir: Path, edge: Edge, manager: Callable[[], str]) -> None:
        self._state_dir, self._edge, self._manager = state_dir, edge, manager
        self._waiting: deque[pb.LogDemand] = deque(maxlen=WAITING_MAX)
        self._news = asyncio.Event()
        self._room = asyncio.Semaphore(SENT_MAX)
        self._followed = 0

    def send(self, demands: Iterable[pb.LogDemand]) -> None:
        """A manager wants these."""
        self._waiting.extend(demands)
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    await self._room.acquire()
                    group.create_task(self._serve(self._waiting.popleft()))

    async def _serve(self, demand: pb.LogDemand) -> None:
        self._followed += demand.follow
        try:
            async with self._edge.channel(self._manager()) as channel:
                await self._push(LogsStub(channel).Push(), demand)
        finally:
            self._followed -= demand.follow
            self._room.release()

    async def _push(self, call: Call, demand: pb.LogDemand) -> None:
        """One log, until it has ended or the manager does not want it any more."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_until_ended(call))
                await call.write(pb.PushedLog(demand=demand.demand))
                if self._followed > FOLLOWED_MAX:
                    await call.write(pb.PushedLog(error=f"its node sends {FOLLOWED_MAX} logs already"))
                else:
                    await self._pump(call, demand)
                await call.done_writing()
                await call
                raise _Over
        except* _Over:
            pass
        except* (grpc.aio.AioRpcError, asyncio.InvalidStateError, OSError) as errors:
            reason = str(errors.exceptions[0])
            log.info("a log is not sent any further", extra={"task": demand.task_id, "reason": reason})

    async def _pump(self, call: Call, demand: pb.LogDemand) -> None:
        tail = str(demand.tail) if demand.HasField("tail") else "all"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mesh.executor.logs", str(self._state_dir), demand.task_id, tail,
            "1" if demand.follow else "0",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            while data := await process.stdout.read(PIECE_BYTES):
                await call.write(pb.PushedLog(data=data))
            if said := await process.stderr.read(ERROR_BYTES):
                await call.write(pb.PushedLog(error=said.decode(errors="replace").strip()))
        finally:
            await _end(process)


async def _until_ended(call: Call) -> None:
    """The manager, or the way to it, may end the call while there is nothing to write."""
    await call.code()
    raise _Over


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILL_TIMEOUT_S):
            await process.wait()
