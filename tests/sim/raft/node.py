"""One manager's process in the simulator: the shell around the core, a disk, a state machine of registers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from control.raft.configuration import AddLearner, decode_change, node_of
from control.raft.core import Core
from control.raft.messages import PreVoteReply, VoteReply
from control.raft.ready import Accepted, Inconsistent, Kind, Ready, Role
from control.store.record import Entry
from tests.sim.raft.disk import Disk, Frame
from tests.sim.raft.history import Operation

if TYPE_CHECKING:
    from tests.sim.raft.world import World


class Died(Exception):
    """The process was killed between two effects."""


class Violation(Exception):
    """An invariant does not hold: `name` says which."""

    def __init__(self, name: str, text: str = "") -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class Machine:
    """Registers, and a digest of everything that was ever applied."""

    __slots__ = ("applied", "digest", "registers")

    def __init__(self, applied: int = 0, digest: int = 0, registers: dict[int, int] | None = None) -> None:
        self.applied, self.digest, self.registers = applied, digest, dict(registers or {})

    def copy(self) -> Machine:
        return Machine(self.applied, self.digest, self.registers)

    def apply(self, entry: Entry, operations: list[Operation]) -> bool | None:
        """The result of the operation."""
        self.applied = entry.index
        self.digest = hash((self.digest, entry.index, entry.term, entry.kind, int.from_bytes(entry.data[:24], "big")))
        if entry.kind != Kind.DATA:
            return None
        op = operations[int.from_bytes(entry.data[:4], "big")]
        if op.kind == "cas":
            if self.registers.get(op.key, 0) != op.expected:
                return False
            self.registers[op.key] = op.value
            return True
        self.registers[op.key] = op.value
        return None


class Node:
    """See the module. `core` is None while it is down."""

    def __init__(self, world: World, member_id: str, disk: Disk) -> None:
        self.world, self.id, self.disk = world, member_id, disk
        self.core: Core | None = None
        self.lives = 0
        self.gone = False  # for ever: its disk is lost, or it was removed
        self.rate = 1.0 + world.rng.uniform(-1, 1) * world.drift  # of its clock
        self.paused_until = 0.0
        self.hang_until = 0.0  # the disk
        self.full_until = 0.0
        self.fuse: int | None = None
        self.reset()

    def reset(self) -> None:
        self.machine = Machine()
        self.incoming: dict[tuple[int, int], Machine] = {}
        self.waiting: dict[int, tuple[int, Operation]] = {}
        self.asked: dict[int, tuple[Operation, int]] = {}
        self.readers: list[tuple[int, Operation]] = []
        self.seen_commit = 0
        self.led_term = 0
        self.voters: tuple[str, ...] = ()
        self.watched = 0
        self.saving = False

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        world = self.world
        self.reset()
        self.lives += 1
        self.fuse = None
        disk = self.disk
        if disk.snapshot is not None:
            assert isinstance(disk.state, Machine)
            self.machine = disk.state.copy()
        self.watched = self.machine.applied
        rng = random.Random(world.rng.getrandbits(32))
        try:
            self.core = Core(self.id, disk.restored(), rng, world.now * self.rate, world.options)
        except (Inconsistent, AssertionError) as error:
            raise Violation("restart", str(error)) from error
        self.seen_commit = self.core._s.log.base_index
        self.schedule_tick()
        if self.full_until > world.now:
            self.core.set_reluctant(True)
        self.pump()

    def crash(self) -> None:
        """kill -9, or a power cut: the disk keeps what it will."""
        if self.core is None:
            return
        self.core = None
        self.disk.crash(self.world.rng)
        self.world.died(self)

    def schedule_tick(self) -> None:
        assert self.core is not None
        self.world.at(max(self.core.deadline() / self.rate, self.world.now), self.tick, self.lives)

    def tick(self, life: int) -> None:
        if life != self.lives or self.core is None:
            return
        if self.paused_until > self.world.now:
            self.world.at(self.paused_until, self.tick, life)
            return
        self.core.tick(self.world.now * self.rate + 1e-9)
        self.schedule_tick()
        self.pump()

    def deliver(self, message: object, state: Machine | None = None) -> bool:
        """Whether it was handed to the core."""
        if self.core is None:
            return False
        if self.paused_until > self.world.now:
            self.world.at(self.paused_until + self.world.rng.random() * 0.1, self.deliver, message, state)
            return True
        if state is not None:
            meta = message.snapshot  # type: ignore[attr-defined]
            self.incoming[meta.index, meta.term] = state
        dropped, removed = self.core._dropped, self.world.checks.removed(self, message.sender)  # type: ignore[attr-defined]
        self.core.step(message)  # type: ignore[arg-type]
        if removed and self.core._dropped == dropped:
            raise Violation("removed member", f"{self.id} listens to {message}")
        self.pump()
        return True

    # --- what the core wants ------------------------------------------------------------------------------------------

    def effect(self) -> None:
        """The process may die just before the next one."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                raise Died

    def pump(self) -> None:
        """Everything that is to be done now."""
        try:
            while self.core is not None:
                self.world.checks.look(self)
                ready = self.core.ready()
                if ready is None:
                    return
                self.world.checks.look(self)
                s = self.core._s
                self.voters = s.voters
                self.handle(ready)
                if s.log.applied >= s.log.commit and not s.flush:
                    return  # to ask would be in vain, mostly; a shell asks until there is nothing
        except Died:
            self.crash()

    def handle(self, ready: Ready) -> None:
        world = self.world
        for message in ready.messages:
            self.effect()
            world.send(self, message)
        for message in ready.messages_after:
            if isinstance(message, VoteReply | PreVoteReply) and message.granted:
                world.checks.decided(self, message)
        if ready.entries:
            world.checks.log_matching(self, ready.entries)
        if ready.snapshot is not None:
            self.machine = self.incoming.pop((ready.snapshot.index, ready.snapshot.term)).copy()
            self.incoming.clear()
            self.watched = self.machine.applied
        if ready.to_disk:
            self.effect()
            state = self.machine.copy() if ready.snapshot is not None else None
            self.write(
                Frame(ready.number, ready.hard_state, ready.entries, ready.snapshot, state, ready.messages_after)
            )
        if ready.committed:
            self.effect()
            self.apply(ready.committed)
        for read in ready.reads:
            self.read_answered(read.read_id, read.index)
        self.settle_reads()

    def apply(self, entries: tuple[Entry, ...]) -> None:
        world = self.world
        for entry in entries:
            if entry.index != self.machine.applied + 1:
                raise Violation("apply order", f"{self.id} {entry.index} after {self.machine.applied}")
            result = self.machine.apply(entry, world.operations)
            world.checks.applied(self, entry)
            self.watch(entry)
            if entry.kind == Kind.CHANGE:
                world.config_applied(self, entry)
            waiting = self.waiting.pop(entry.index, None)
            if waiting is not None:
                term, op = waiting
                if term == entry.term:
                    world.acknowledge(op, entry.index, result)
                else:
                    world.failed(op)
        assert self.core is not None
        if self.knows_its_removal():
            world.at(world.now, world.retire, self)
        if world.snapshot_every and self.machine.applied - self.core._s.log.base_index >= world.snapshot_every:
            self.save_snapshot()

    def watch(self, entry: Entry) -> None:
        """Someone who follows the store: gets each entry once, in order."""
        if entry.index != self.watched + 1:
            raise Violation("watch", f"{self.id} {entry.index} after {self.watched}")
        self.watched = entry.index

    # --- disk ---------------------------------------------------------------------------------------------------------

    def write(self, frame: Frame) -> None:
        self.disk.queue.append(frame)
        if not self.disk.syncing:
            self.begin_sync()

    def begin_sync(self) -> None:
        world = self.world
        self.disk.syncing = len(self.disk.queue)
        took = world.rng.expovariate(1 / world.sync_mean)
        end = max(world.now, self.hang_until, self.full_until) + took
        world.at(end, self.sync_ended, self.lives)

    def sync_ended(self, life: int) -> None:
        if life != self.lives or self.core is None:
            return
        if max(self.hang_until, self.full_until) > self.world.now:
            self.world.at(max(self.hang_until, self.full_until), self.sync_ended, life)
            return
        if self.world.chance(self.world.sync_fails):
            self.world.note("sync fails", self.id)
            self.crash()  # never tried again (rule 4)
            return
        try:
            self.effect()
            for frame in self.disk.synced():
                self.finish(frame)
        except Died:
            self.crash()
            return
        if self.core is not None and self.disk.queue and not self.disk.syncing:
            self.begin_sync()
        self.pump()

    def finish(self, frame: Frame) -> None:
        """A frame is durable."""
        assert self.core is not None
        for message in frame.messages:
            self.effect()
            self.world.send(self, message)
        self.effect()
        if frame.number:
            self.core.advance(frame.number)
        else:
            self.saving = False
            assert frame.snapshot is not None
            self.core.snapshot_saved(frame.snapshot)
            self.compact(frame.snapshot.index)

    def compact(self, index: int) -> None:
        assert self.core is not None
        index -= self.world.rng.choice((0, 0, 3, 10))
        if index > self.core._s.log.base_index:
            self.effect()
            self.core.compact(index)
            self.disk.compact(index)

    def save_snapshot(self) -> None:
        if self.saving or self.core is None:
            return
        meta = self.core.snapshot_meta()
        if self.disk.snapshot is not None and self.disk.snapshot.index >= meta.index:
            return
        self.saving = True
        self.world.at(
            self.world.now + self.world.rng.uniform(0, 2), self.snapshot_written, self.lives, meta, self.machine.copy()
        )

    def snapshot_written(self, life: int, meta: object, state: Machine) -> None:
        """The file is durable: only now the log speaks of it (rule 3)."""
        if life == self.lives and self.core is not None:
            self.write(Frame(0, snapshot=meta, state=state))  # type: ignore[arg-type]

    def disk_full(self, until: float) -> None:
        self.full_until = until
        if self.core is not None:
            self.core.set_reluctant(True)
            self.pump()

    def disk_free(self) -> None:
        if self.full_until <= self.world.now and self.core is not None:
            self.core.set_reluctant(False)
            self.pump()

    # --- clients ------------------------------------------------------------------------------------------------------

    def propose(self, op: Operation, number: int) -> bool:
        """Whether it was taken."""
        if self.core is None:
            return False
        outcome = self.core.propose([number.to_bytes(4, "big") + bytes(self.world.payload_bytes)])
        if not isinstance(outcome, Accepted):
            return False
        self.waiting[outcome.index] = (outcome.term, op)
        self.pump()
        return True

    def ask(self, op: Operation, floor: int) -> bool:
        """A linearizable read."""
        assert self.core is not None
        read_id = self.core.read_index()
        if not isinstance(read_id, int):
            return False
        self.asked[read_id] = (op, floor)
        self.pump()
        return True

    def read_answered(self, read_id: int, index: int | None) -> None:
        op, floor = self.asked.pop(read_id)
        if index is None:
            self.world.failed(op)
            return
        if index < floor:
            raise Violation(
                "stale read", f"{self.id} may read at {index}, but {floor} was acknowledged before it asked"
            )
        self.readers.append((index, op))

    def settle_reads(self) -> None:
        if not self.readers:
            return
        left = []
        for index, op in self.readers:
            if self.machine.applied >= index:
                self.world.read_done(op, self.machine.registers.get(op.key, 0))
            else:
                left.append((index, op))
        self.readers = left

    # --- looking ------------------------------------------------------------------------------------------------------

    def leads(self) -> bool:
        return self.core is not None and self.core._s.role is Role.LEADER

    def knows_its_removal(self) -> bool:
        return self.core is not None and self.core._s.configuration.removed(self.id)

    def __repr__(self) -> str:
        return self.id


def new_member(configuration_after: object, entry: Entry) -> str:
    """The id that an AddLearner gave."""
    change = decode_change(entry.data)
    assert isinstance(change, AddLearner)
    return next(m.id for m in configuration_after.members if node_of(m.id) == change.node_id)  # type: ignore[attr-defined]
