"""Managers as they are, but for the network and the disk: Raft's core, the order of its writes, and the journal.

Everything happens in one order: a disk does its work at once, messages arrive in the order in which they were sent, and
time goes on when told. So the n-th operation of a disk is the same one in each run, and power can fail there.
"""

import asyncio
import random
from collections.abc import Iterator

from control.quorum.writes import Writes
from control.raft.configuration import Configuration, Member
from control.raft.core import Core
from control.raft.messages import InstallSnapshot, Message
from control.raft.ready import Accepted, Kind, Options, Ready, Restored, Role, bootstrap
from control.store.errors import BackendFailed
from control.store.journal import Journal
from control.store.record import SnapshotMeta
from tests.control.store.simdisk import Inline, PowerFailure, SimDisk

SEGMENT_BYTES = 4096
OPTIONS = Options(tick_s=1.0, heartbeat_ticks=1, election_ticks=4, append_bytes=2000, inflight_messages=4)
TURNS_MAX = 400  # of the loop, until there is nothing to do; some 20 are needed


class Applied:
    """The state machine: the names of all that was applied, in order."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names

    def chunks(self) -> Iterator[bytes]:
        for at in range(0, len(self.names), 8):
            yield "\n".join(self.names[at : at + 8]).encode()

    @staticmethod
    def of(chunks: list[bytes]) -> "Applied":
        return Applied(tuple(name for chunk in chunks for name in chunk.decode().split("\n")))


class _Writes(Writes):
    """Takes a power failure for what it is; on a real disk nothing comes after it."""

    def _end(self, error: BaseException) -> None:
        self.stop()
        self._failed(error)  # type: ignore[arg-type]


class Manager:
    """One process. `disk.dead`: nothing it does from then on has any effect."""

    def __init__(self, net: "Net", member_id: str, disk: SimDisk) -> None:
        self.net, self.id, self.disk = net, member_id, disk
        self.failed = False

    async def start(self) -> None:
        try:
            self.journal, found = await Journal.open(self.disk, "c1", segment_bytes=SEGMENT_BYTES, threads=Inline)
        except (PowerFailure, BackendFailed):
            assert self.disk.dead
            return
        log, snapshot = found.log, found.snapshot
        self.machine = Applied.of(list(self.journal.snapshot_chunks(snapshot))) if snapshot is not None else Applied()
        entries = tuple(log.entries(log.base_index + 1, log.last_index + 1))
        restored = Restored(log.hard_state, snapshot, log.base_index, log.base_term, entries)
        if log.last_index == 0:
            restored = bootstrap(self.net.first)  # nobody can have heard of this member yet
            self.journal.append(restored.hard_state, restored.entries).add_done_callback(lambda done: done.exception())
        # What it draws is its own affair: the same after each restart at the same place.
        self.core = Core(self.id, restored, random.Random(f"{self.id} {log.last_index}"), self.net.now, OPTIONS)
        self.writes = _Writes(self.journal, self.durable, self.end)
        self.incoming: Applied | None = None

    def end(self, error: BaseException) -> None:
        assert self.disk.dead, error
        self.failed = True

    @property
    def alive(self) -> bool:
        return not self.disk.dead and not self.failed

    def pump(self) -> None:
        while self.alive and (ready := self.core.ready()) is not None:
            self.handle(ready)

    def handle(self, ready: Ready) -> None:
        """As `control.raft.ready` says."""
        for message in ready.messages:
            self.net.send(self, message)
        state = None
        if ready.snapshot is not None:
            assert self.incoming is not None
            state = self.machine = self.incoming
            self.net.installed += 1
        if ready.to_disk:
            self.writes.put(ready, state)  # type: ignore[arg-type]  # only its chunks are looked at
        for entry in ready.committed:
            if self.disk.dead:
                return
            if entry.kind == Kind.DATA:
                self.machine = Applied((*self.machine.names, entry.data.decode().strip()))
            self.net.applied(self, entry)
        self.writes.settle()

    def durable(self, ready: Ready) -> None:
        if not self.alive:
            return
        for message in ready.messages_after:
            self.net.send(self, message)
        self.core.advance(ready.number)
        self.pump()

    def receive(self, message: Message, state: Applied | None) -> None:
        if self.alive:
            self.incoming = state or self.incoming
            self.core.step(message)
            self.pump()

    def save(self, keep: int) -> None:
        """A snapshot of its own; the log keeps some of what is in it."""
        meta = self.core.snapshot_meta()

        def saved(done: asyncio.Future[None]) -> None:
            if done.exception() is None and self.alive:
                self.core.snapshot_saved(meta)
                index = meta.index - keep
                if index >= self.core.first_index:
                    self.core.compact(index)
                    self.journal.compact(index)

        self.journal.save_snapshot(meta, self.machine.chunks()).add_done_callback(saved)

    @property
    def idle(self) -> bool:
        journal = self.journal
        return not (self.writes._queue or journal._writing or journal._helping or journal._queue)

    async def close(self) -> None:
        if hasattr(self, "journal"):
            self.writes.stop()
            await self.journal.close()


class Net:
    """The managers and what is between them."""

    def __init__(self, size: int) -> None:
        self.first = Configuration(tuple(Member(f"n{i}.{i}", voter=True) for i in range(1, size + 1)), joined=size)
        self.now = 0.0
        self.managers: dict[str, Manager] = {}
        self.wire: list[tuple[Message, Applied | None]] = []
        self.cut: set[str] = set()  # who neither hears nor is heard
        self.proposed: dict[tuple[int, int], str] = {}  # index, term -> name
        self.names: list[str] = []  # all that were proposed
        self.acknowledged: list[str] = []
        self.installed = 0  # snapshots of another that a manager begins anew with

    def after(self) -> "Net":
        """The same history, and nobody there yet."""
        net = Net(len(self.first.members))
        net.now, net.proposed = self.now, dict(self.proposed)
        net.names, net.acknowledged = list(self.names), list(self.acknowledged)
        return net

    async def start(self, member_id: str, disk: SimDisk) -> None:
        self.managers[member_id] = manager = Manager(self, member_id, disk)
        await manager.start()
        if not disk.dead:
            manager.pump()
        await self.settle()

    def send(self, sender: Manager, message: Message) -> None:
        if sender.disk.dead or {message.sender, message.receiver} & self.cut:
            return
        state = None
        if isinstance(message, InstallSnapshot):
            state = Applied.of(list(sender.journal.snapshot_chunks(message.snapshot)))
        self.wire.append((message, state))

    def applied(self, manager: Manager, entry) -> None:
        """Who proposed it is told now, by the one that took it."""
        name = self.proposed.get((entry.index, entry.term))
        if name is not None and name not in self.acknowledged and manager.core._s.role is Role.LEADER:
            self.acknowledged.append(name)

    def deliver(self, message: Message, state: Applied | None) -> None:
        receiver, sender = self.managers.get(message.receiver), self.managers[message.sender]
        arrived = receiver is not None and receiver.alive and not {message.sender, message.receiver} & self.cut
        if receiver is not None and arrived:
            receiver.receive(message, state)
        if isinstance(message, InstallSnapshot) and sender.alive:
            sender.core.report_snapshot(message.receiver, ok=arrived)
            sender.pump()

    async def settle(self) -> None:
        """Until nothing is under way."""
        for _ in range(TURNS_MAX):
            await asyncio.sleep(0)
            wire, self.wire = self.wire, []
            for message, state in wire:
                self.deliver(message, state)
            if not self.wire and all(m.idle for m in self.managers.values() if m.alive):
                return
        raise AssertionError("it never gets quiet")

    async def tick(self, count: int = 1) -> None:
        for _ in range(count):
            self.now += 1.0
            for manager in self.managers.values():
                if manager.alive:
                    manager.core.tick(self.now)
                    manager.pump()
            await self.settle()

    def leader(self) -> Manager | None:
        leaders = [m for m in self.managers.values() if m.alive and m.core.status().soft.leading]
        return max(leaders, key=lambda m: m.core.status().soft.term, default=None)

    async def elect(self) -> Manager | None:
        """Wait for a leader. None: there are not enough managers left."""
        for _ in range(60):
            if 2 * sum(manager.alive for manager in self.managers.values()) <= len(self.managers):
                return None
            if (leader := self.leader()) is not None and not self.cut & {leader.id}:
                return leader
            await self.tick()
        raise AssertionError("nobody leads")

    def propose(self, leader: Manager | None, count: int, size_bytes: int) -> None:
        """Several, one by one: some will go to the disk together."""
        for _ in range(count):
            if leader is None or not leader.alive:
                return
            name = f"p{len(self.names)}"
            self.names.append(name)
            outcome = leader.core.propose([name.encode().ljust(size_bytes)])
            if isinstance(outcome, Accepted):
                self.proposed[outcome.index, outcome.term] = name
            leader.pump()

    async def close(self) -> None:
        for manager in self.managers.values():
            await manager.close()


def meta_of(manager: Manager) -> SnapshotMeta | None:
    """The newest snapshot that its journal speaks of."""
    return manager.journal.snapshot
