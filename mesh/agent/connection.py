"""The shell around `session`: one gRPC stream to a manager, opened again for ever.

Tasks: a reader and a writer per stream, in one TaskGroup; either's end ends the other. Cancelling `run` closes all.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import cast

import grpc

from control.ca.contexts import Locked
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import DispatcherStub
from control.server.edge import Edge
from control.server.hop import leader_said
from mesh.agent.session import FIRST_WORD_S, ProtocolError, Session

log = logging.getLogger(__name__)

# Pauses between attempts: soon at first, since a restarting manager is back in a second; then rarely enough that
# thousands of nodes do not drown it.
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0
# A write that takes longer than this goes to a dead peer.
WRITE_TIMEOUT_S = 10.0


class _StreamEnded(Exception):
    """The stream is over; the text says why."""


class Connection:
    """Keeps `session` in touch with one of the managers."""

    def __init__(
        self,
        session: Session,
        managers: tuple[str, ...],
        changed: Callable[[], None],
        random_source: random.Random,
        edge: Edge,
        hints: Callable[[], tuple[str, ...]] = lambda: (),
    ) -> None:
        """`changed` is called after each message that changed the assignments; `hints`: where else managers may be."""
        self._hints = hints
        self._edge = edge
        self._leader = ""  # where the last manager that was asked has sent us
        self._untried: list[str] = []  # of this round through the managers
        self.told = asyncio.Event()  # set when the managers, or the role of this node, are others than before
        self._session, self._managers, self._changed, self._random = session, managers, changed, random_source
        self._kick = asyncio.Event()
        self._reopen = False
        self.address = ""  # of the manager that was tried last
        self.error = ""  # why there is no stream, if there is none

    def kick(self) -> None:
        """The session has something to say."""
        self._kick.set()

    def reopen(self) -> None:
        """End the stream; the next one begins with what the session then says of this node."""
        self._reopen = True
        self._kick.set()

    @property
    def renew(self) -> bool:
        """Whether the managers want this node to ask for another certificate."""
        return self._session.renew

    @property
    def role(self) -> str:
        """What this node is to be, as a manager said last; "" if none has yet."""
        return self._session.role

    @property
    def managers(self) -> tuple[str, ...]:
        """Where managers are thought to be: those last named by one, else those of the join."""
        return self._session.managers or self._managers

    async def run(self) -> None:
        """Connect, talk, and connect again."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            address, sent = self._next(), bool(self._leader)
            self._leader = ""
            reason = await self._talk(address)
            if self._session.connected:
                backoff_s = BACKOFF_FIRST_S
                self._untried = []
            self._session.close()
            if self._leader and not sent:
                continue  # a manager knows who leads: at once, but only once in a row
            if reason != self.error:
                log.warning("lost the manager", extra={"manager": address, "reason": reason})
            self.error = reason
            await asyncio.sleep(backoff_s * self._random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    def _next(self) -> str:
        """Whom to try: the leader if somebody has named it, else each of the managers once, in any order."""
        if self._leader:
            return self._leader
        places = dict.fromkeys((*self.managers, *self._hints()))
        self._untried = [address for address in self._untried if address in places]
        if not self._untried:
            self._untried = list(places)
            self._random.shuffle(self._untried)
        return self._untried.pop()

    async def _talk(self, address: str) -> str:
        """One stream, from Hello to its end; returns why it ended."""
        reason, self.address = "closed", address
        try:
            async with self._edge.channel(address) as channel:
                call = DispatcherStub(channel).Session()
                self._reopen = False
                self._session.open(_now())
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._read(call))
                    group.create_task(self._write(call))
        except* grpc.aio.AioRpcError as errors:
            reason = f"{address}: {_details(errors)}"
            self._leader = _leader(errors)
        except* (_StreamEnded, ProtocolError, asyncio.InvalidStateError, Locked) as errors:
            reason = f"{address}: {errors.exceptions[0]}"
        return reason

    async def _read(self, call: grpc.aio.StreamStreamCall[pb.NodeMessage, pb.ManagerMessage]) -> None:
        async for message in cast("AsyncIterator[pb.ManagerMessage]", call):
            before = self._session.managers, self._session.role
            changed = self._session.receive(message, _now())
            if (self._session.managers, self._session.role) != before or self._session.renew:
                self.told.set()
            if changed:
                if self.error:
                    log.info("a manager is back")
                self.error = ""
                self._changed()
            self._kick.set()
        raise _StreamEnded("the manager closed the stream")

    async def _write(self, call: grpc.aio.StreamStreamCall[pb.NodeMessage, pb.ManagerMessage]) -> None:
        while True:
            if self._reopen:
                raise _StreamEnded("this node has news of itself")
            self._session.wake(_now())
            for message in self._session.drain():
                try:
                    async with asyncio.timeout(WRITE_TIMEOUT_S if self._session.connected else FIRST_WORD_S):
                        await call.write(message)
                except TimeoutError as error:
                    raise _StreamEnded("the manager does not read") from error
            if self._session.silent(_now()):
                raise _StreamEnded("the manager is silent")
            try:
                async with asyncio.timeout(max(0.0, self._session.deadline() - _now())):
                    await self._kick.wait()
            except TimeoutError:
                pass
            self._kick.clear()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _details(errors: BaseExceptionGroup[grpc.aio.AioRpcError]) -> str:
    first = errors.exceptions[0]
    return first.details() or first.code().name if isinstance(first, grpc.aio.AioRpcError) else str(first)


def _leader(errors: BaseExceptionGroup[grpc.aio.AioRpcError]) -> str:
    """Where the leader is, if a manager has refused because it is not."""
    found = (leader_said(error) for error in errors.exceptions if isinstance(error, grpc.aio.AioRpcError))
    return next((address for address in found if address), "")
