"""What goes out to one peer: a lane for what is urgent and one for appends, each a connection with a bounded queue.

Tasks: one per lane, and one for its connection, in the TaskGroup that `Link.run` owns; the connection has a reader
(which only waits for the end) and a writer. Raft sends everything again that does not arrive, so nothing is kept over
a break: what waits is dropped, and reported.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from control.transport.connection import Connection, Unwelcome, open_connection
from control.transport.seam import Codec, Counters, Identity, M, PeerStatus, Tls
from control.transport.wire import BadBytes, Kind, Lane

# What waits for a peer. Urgent: a few heartbeats and votes, but reads that wait for a heartbeat's answer may be many.
# Bulk: Raft itself has a window for each peer; this is above it.
QUEUE_MESSAGES = {Lane.URGENT: 1_024, Lane.BULK: 4_096}
QUEUE_BYTES = {Lane.URGENT: 512 * 1024, Lane.BULK: 32 * 1024 * 1024}
# In one frame: a checksum, a call and a wake-up for as many as are there. Little enough that it is written at once.
BATCH_MESSAGES = 512
BATCH_BYTES = {Lane.URGENT: 64 * 1024, Lane.BULK: 1024 * 1024}
# Between attempts to connect. A manager that restarts is back in a second; jitter keeps the others from coming at once.
RETRY_MIN_S, RETRY_DOUBLINGS = 0.05, 5
# Raft wants to know that messages are dropped, not how many. A break is always reported.
REPORT_S = 0.1

Broken = (OSError, EOFError, TimeoutError, BadBytes, Unwelcome, ssl.SSLError)


@dataclass(slots=True)
class Addresses:
    """Where a peer may be: as configured, and as it said itself. Whichever worked last is tried first."""

    known: list[str]

    def configure(self, address: str) -> None:
        """The configured one has changed: it is tried next."""
        self.known = [address, *(a for a in self.known[:1] if a != address)]

    def learn(self, address: str, *, connected: bool) -> bool:
        """One that it named itself, tried next unless there is a connection; whether it is new."""
        new = address not in self.known
        rest = [a for a in self.known if a != address][:1]
        self.known = [*rest, address] if connected else [address, *rest]
        return new

    def next(self) -> None:
        """The first did not work."""
        self.known.append(self.known.pop(0))


class LaneQueue(Generic[M]):
    """Messages that wait for the writer."""

    def __init__(self, lane: Lane, codec: Codec[M]) -> None:
        self._lane, self._codec = lane, codec
        self._messages: deque[tuple[int, M]] = deque()
        self._bytes = 0
        self.open = False  # connected, or about to be for the first time
        self.news = asyncio.Event()

    def put(self, message: M) -> str:
        """Why it is dropped, "" if it is not."""
        if not self.open:
            return "not connected"
        size = self._codec.size_bytes(message)
        full = len(self._messages) >= QUEUE_MESSAGES[self._lane]
        if full or (self._messages and self._bytes + size > QUEUE_BYTES[self._lane]):
            return "queue full"
        self._messages.append((size, message))
        self._bytes += size
        self.news.set()
        return ""

    def batch(self) -> list[M]:
        """The next messages for one frame."""
        size = 0
        messages: list[M] = []
        while self._messages and len(messages) < BATCH_MESSAGES:
            next_size, message = self._messages[0]
            if messages and size + next_size > BATCH_BYTES[self._lane]:
                break
            self._messages.popleft()
            size += next_size
            messages.append(message)
        self._bytes -= size
        return messages

    def clear(self) -> int:
        """Forget all; how many."""
        count = len(self._messages)
        self._messages.clear()
        self._bytes = 0
        return count


class Link(Generic[M]):
    """One peer. `unreachable` is called, not too often, when something was or may have been lost."""

    def __init__(
        self,
        node_id: str,
        address: str,
        me: Identity,
        listens: Callable[[], str],
        codec: Codec[M],
        tls: Tls | None,
        rng: random.Random,
        counters: Counters,
        unreachable: Callable[[str], None],
    ) -> None:
        self.node_id, self.addresses = node_id, Addresses([address])
        self._me, self._listens, self._codec, self._tls = me, listens, codec, tls
        self._rng, self._counters, self._unreachable = rng, counters, unreachable
        self._queues = {lane: LaneQueue(lane, codec) for lane in (Lane.URGENT, Lane.BULK)}
        self._moved = asyncio.Event()  # a new address: no need to wait
        self._reported_s = float("-inf")
        self._connected = False
        self._since_s = asyncio.get_running_loop().time()
        self._problem = "not connected yet"
        for queue in self._queues.values():
            queue.open = True

    # --- sending ------------------------------------------------------------------------------------------------------

    def send(self, message: M) -> bool:
        """Whether it was taken; a report follows otherwise."""
        lane = Lane.URGENT if self._codec.urgent(message) else Lane.BULK
        reason = self._queues[lane].put(message)
        if reason:
            self._counters.dropped[reason] += 1
            if asyncio.get_running_loop().time() - self._reported_s >= REPORT_S:
                self._report()
        return not reason

    def _report(self) -> None:
        loop = asyncio.get_running_loop()
        self._reported_s = loop.time()
        loop.call_soon(self._unreachable, self.node_id)

    def configure(self, address: str) -> None:
        """As `set_peers` says."""
        if address not in self.addresses.known:
            self.addresses.configure(address)
            self._moved.set()

    def learn(self, address: str) -> bool:
        """As the peer says; whether that is news."""
        new = self.addresses.learn(address, connected=self._connected)
        if not self._connected:
            self._moved.set()
        return new

    def status(self) -> PeerStatus:
        """See PeerStatus."""
        addresses = tuple(self.addresses.known)
        return PeerStatus(self.node_id, addresses, self._connected, self._since_s, self._problem)

    # --- connections --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep(group, Lane.URGENT))
            group.create_task(self._keep(group, Lane.BULK))

    async def open(self, lane: Lane) -> Connection:
        """A new connection. Raises one of `Broken`."""
        address = self.addresses.known[0]
        try:
            return await open_connection(address, lane, self.node_id, self._me, self._listens(), self._tls)
        except Broken as error:
            self._problem = f"cannot reach manager {self.node_id} at {address}: {said(error)}"
            if address == self.addresses.known[0]:
                self.addresses.next()
            raise

    async def pause(self, failures: int) -> None:
        """Before the next attempt."""
        self._moved.clear()
        pause_s = RETRY_MIN_S * 2 ** min(failures, RETRY_DOUBLINGS) * self._rng.uniform(0.5, 1)
        try:
            async with asyncio.timeout(pause_s):
                await self._moved.wait()
        except TimeoutError:
            return

    async def _keep(self, group: asyncio.TaskGroup, lane: Lane) -> None:
        """Stay connected."""
        queue, failures = self._queues[lane], 0
        while True:
            try:
                connection = await self.open(lane)
            except Broken:
                failures += 1
                self._lost(lane, queue)
                await self.pause(failures)
                continue
            failures = 0
            # In a task of its own: a task whose TaskGroup has failed counts as cancelled ever after in Python 3.11, and
            # its next time-out would end it.
            await asyncio.wait([group.create_task(self._use(connection, lane, queue))])
            await self.pause(failures)

    async def _use(self, connection: Connection, lane: Lane, queue: LaneQueue[M]) -> None:
        """Until it breaks."""
        queue.open = True
        self._turned(lane, connected=True)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(connection, queue))
                group.create_task(_until_closed(connection))
        except* Broken as errors:
            self._problem = f"the connection to manager {self.node_id} broke: {said(errors.exceptions[0])}"
        finally:
            connection.close()
            self._lost(lane, queue)

    async def _write(self, connection: Connection, queue: LaneQueue[M]) -> None:
        while True:
            while batch := queue.batch():
                connection.write(Kind.MESSAGES, self._codec.encode(batch))
                self._counters.sent += len(batch)
                await connection.drain()
            queue.news.clear()
            await queue.news.wait()

    def _lost(self, lane: Lane, queue: LaneQueue[M]) -> None:
        queue.open = False
        self._counters.dropped["connection lost"] += queue.clear()
        self._turned(lane, connected=False)
        self._report()

    def _turned(self, lane: Lane, *, connected: bool) -> None:
        if lane is Lane.URGENT and connected != self._connected:
            self._connected = connected
            self._since_s = asyncio.get_running_loop().time()
        if connected:
            self._problem = ""


async def _until_closed(connection: Connection) -> None:
    """The peer has nothing to say here."""
    while True:
        for _ in await connection.read():
            raise BadBytes("answer")


def said(error: BaseException) -> str:
    """What went wrong, for a sentence."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, BadBytes):
        return f"it sends something else ({error})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
