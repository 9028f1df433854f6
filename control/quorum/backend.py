"""The backend of a cluster that is its own quorum: Raft's core, the journal and the transport, put together.

    seat = await found(directory, cluster_id, node_id, address=…)      a new cluster; once, offline (`seat`)
    backend = RaftBackend(directory, cluster_id, node_id, network=Network(sock, advertise=…, tls=…))
    store = Store(backend, now_ms); await store.open()                 see `control.store.backend`
    backend.set_peers({node_id: "host:port", …})                       at any time: hints, all of them

    joined = await backend.add_learner(node_id, address)               on the leader; what the newcomer gives to
    await enrol(directory, cluster_id, joined)                         `enrol`, and then opens as above
    await backend.promote(node_id) | demote | remove | readdress(node_id, address) | transfer(node_id="")

Learners are promoted by themselves once they have caught up, unless added with `standby`. Operations on members raise
NotLeader (ask `status().leader`), ChangeRefused with a sentence, or OutcomeUnknown. `quorum()` tells about all members,
and like `members` and `status` asks nobody. A manager that is removed fails with `Removed`.

**Single manager.** A store that was restored from a backup becomes a cluster of one at its first start. Without
`network` a manager can only be alone.

**Life.** `load` opens the journal and makes the state; an only voter is elected there, so that everything in its log is
loaded. `watch` starts the transport, the one task there is. `close` hands the leadership over, then ends it and the
journal. Between them everything happens in callbacks (`engine`).

**No space.** While the disk is nearly full nothing may be created, and the leadership goes to another manager, if one
can take it. A write that finds no space waits for it, and everything else is refused meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from control.quorum.engine import Engine
from control.quorum.members import PASSING, QuorumStatus, not_leading, quorum_status, refused
from control.quorum.peers import Peers
from control.quorum.pipeline import Pipeline
from control.quorum.seat import Seat, sit
from control.quorum.shipment import Wire, wire_codec
from control.quorum.snapshots import KEEP_ENTRIES, LOG_LIMIT_BYTES, Snapshots, for_core
from control.raft.configuration import (
    AddLearner,
    ConfChange,
    Configuration,
    Demote,
    Promote,
    Readdress,
    Remove,
    node_of,
)
from control.raft.configuration import Member as RaftMember
from control.raft.core import Core
from control.raft.ready import Accepted, Inconsistent, Options, Restored
from control.store.backend import Deliver, Guard, Image, Member, Proposal, Role, Status
from control.store.disk import Disk, RealDisk
from control.store.errors import (
    BackendFailed,
    ChangeRefused,
    Damaged,
    NotLeader,
    OutcomeUnknown,
    Refused,
    StoreClosed,
    StoreError,
)
from control.store.journal import Journal, Recovered
from control.store.record import SnapshotMeta
from control.store.sealing import KeyRing
from control.store.segments import SEGMENT_BYTES
from control.store.state import Ledger, encode_commit
from control.store.worker import Worker
from control.transport.seam import Identity, Tls
from control.transport.service import Transport
from control.transport.spool import Spool

log = logging.getLogger(__name__)

SPOOL_NAME = "incoming"  # the directory for snapshots of others, in that of the store
# Entries with so much data are applied in one turn of the loop: some 700 objects, which take a follower's store 10 ms.
OPTIONS = Options(apply_bytes=256 * 1024)
# A question to the leader is repeated until then: longer than an election takes.
BARRIER_S, BARRIER_PAUSE_S = 8.0, 0.05
# A change of the members waits so long for another one to be over.
CHANGE_S, CHANGE_PAUSE_S = 10.0, 0.05
# The leadership gets so long to be handed over, more than two election times; what is under way goes on meanwhile.
HAND_OVER_S = 4.0


@dataclass(frozen=True, slots=True)
class Network:
    """How a manager is reached, and reaches the others. `sock` is bound, listens, and is the backend's from now on.

    `advertise` is where the others find it, "host:port", or "" for this socket's port at the address they see.
    `welcome` says whether a node may call at all.
    """

    sock: socket.socket
    advertise: str = ""
    tls: Tls | None = None
    welcome: Callable[[str], bool] = lambda node_id: True


class RaftBackend:
    """Implements `control.store.backend.Backend`; see the module. `disk`, `threads` and the sizes are for tests."""

    def __init__(
        self,
        directory: Path,
        cluster_id: str,
        node_id: str,
        *,
        network: Network | None = None,
        peers: Mapping[str, str] | None = None,
        ring: KeyRing | None = None,
        keys_needed: Callable[[set[str]], None] | None = None,
        rng: random.Random | None = None,
        options: Options = OPTIONS,
        disk: Disk | None = None,
        threads: Callable[[], Worker] | None = None,
        log_limit_bytes: int = LOG_LIMIT_BYTES,
        keep_entries: int = KEEP_ENTRIES,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """`peers`: as for `set_peers`; `keys_needed` is told by `load`, in a thread, which keys files need."""
        self._directory, self._cluster_id, self._node_id = directory, cluster_id, node_id
        self._network, self._options = network, options
        self._rng = rng or random.Random()
        self._disk = disk or RealDisk(directory)
        self._ring, self._keys_needed = ring, keys_needed
        more = {"threads": threads} if threads is not None else {}
        self._open = partial(Journal.open, self._disk, cluster_id, ring, segment_bytes=segment_bytes, **more)
        self._log_limit_bytes, self._keep_entries = log_limit_bytes, keep_entries
        self._hints = dict(peers or {})
        self._journal: Journal | None = None
        self._engine: Engine | None = None  # once it is loaded
        self._peers: Peers | None = None
        self._seat = Seat("", 0)
        self._transport: Transport[Wire] | None = None
        self._root: asyncio.Task[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._error: StoreError | None = None  # of `load`
        self._message = ""  # of `load`

    # --- opening ------------------------------------------------------------------------------------------------------

    async def load(self) -> Image:
        """See `Backend`. Raises StateInUse, WrongCluster, Damaged or another BackendFailed, each with what to do."""
        try:
            self._journal, found = await self._open()
            self._seat = await sit(self._journal, self._disk, self._node_id)
            engine = await self._revive(self._journal, found)
            await self._catch_up(engine)
            await self._tend_keys(engine, self._journal)
        except BackendFailed as error:
            self._error = error
            if self._journal is not None:
                await self._journal.close()
            raise
        self._engine = engine
        self._message = found.message
        if found.cut_bytes:
            self._message = f"{found.cut_bytes} bytes of a write that a crash interrupted were cut from the log"
        return Image(engine.pipeline.ledger.version, engine.pipeline.ledger.freeze().rows.values())

    async def _revive(self, journal: Journal, found: Recovered) -> Engine:
        """The state of the newest snapshot, and a core with the log."""
        ledger, size = await asyncio.to_thread(_ledger_of, journal, found.snapshot, self._disk.path("."))
        log, snapshot = found.log, found.snapshot
        restored = Restored(
            log.hard_state,
            for_core(snapshot) if snapshot is not None else None,
            log.base_index,
            log.base_term,
            tuple(log.entries(log.base_index + 1, log.last_index + 1)),
        )
        now = asyncio.get_running_loop().time()
        try:
            core = Core(self._seat.member_id, restored, self._rng, now, self._options)
        except Inconsistent as error:
            raise Damaged(
                f"the store in {self._disk.path('.')} is damaged: {error}; remove this manager and join it anew,"
                " or restore a backup with meshd restore"
            ) from error
        pipeline = Pipeline(ledger)
        snapshots = Snapshots(core, journal, pipeline, self._log_limit_bytes, self._keep_entries)
        snapshots.loaded(size)
        self._peers = Peers(self._node_id, self._seat.peers)
        self._peers.hint(self._hints)
        return Engine(self._node_id, core, journal, pipeline, snapshots)

    async def _catch_up(self, engine: Engine) -> None:
        """Apply what is known to be agreed on; an only voter agrees with itself on the rest."""
        engine.kick()
        await engine.idle()
        if engine.core.status().configuration.voters == (self._seat.member_id,):
            with engine.inside:
                engine.core.campaign()
            engine.kick()
            while engine.error is None and not engine.leading:
                engine.turn.clear()
                await engine.turn.wait()
        if engine.error is not None:
            raise engine.error

    def watch(self, after: int, deliver: Deliver) -> None:
        """See `Backend`."""
        engine = self._engine
        assert engine is not None
        assert self._peers is not None
        assert after == engine.pipeline.ledger.version, "a store watches from what it has loaded"
        if self._network is not None and engine.error is None:
            network = self._network
            self._transport = Transport(
                Identity(self._cluster_id, self._seat.epoch, self._node_id),
                network.sock,
                wire_codec(),
                engine,
                Spool(self._directory / SPOOL_NAME),
                rng=self._rng,
                tls=network.tls,
                advertise=network.advertise,
                welcome=network.welcome,
            )
            # Not a bare task: `run` holds a TaskGroup, and `_ended` takes whatever it raises.
            self._root = asyncio.get_running_loop().create_task(self._transport.run(), name="raft transport")
            self._root.add_done_callback(self._ended)
        engine.start(deliver, self._peers, self._transport)

    # --- keys of the disk ---------------------------------------------------------------------------------------------

    async def renew_key(self) -> None:
        """What is written from now on is encrypted with the ring's current key. Raises as the store does."""
        engine, journal = self._open_engine(), self._journal
        assert journal is not None
        await self._go_on_with_key(engine, journal)

    async def _tend_keys(self, engine: Engine, journal: Journal) -> None:
        """Forget keys that no file needs, which is known only here, where nothing is being written; use the current."""
        forget = self._keys_needed
        try:
            if forget is not None:
                await asyncio.to_thread(lambda: forget(journal.keys_needed()))
        except OSError as error:
            raise BackendFailed(f"cannot look after the keys of this manager: {error.strerror}") from error
        if self._ring is not None and journal.key_id != self._ring.current().key_id:
            await self._go_on_with_key(engine, journal)

    async def _go_on_with_key(self, engine: Engine, journal: Journal) -> None:
        """A new segment, and a snapshot so that the old ones can go."""
        try:
            await journal.rotate()
        except Refused as error:  # no space: the next segment is under the new key anyway
            log.warning("the log goes on with its old key for now", extra={"reason": str(error)})
        else:
            engine.snapshots.save()

    def _ended(self, root: asyncio.Task[None]) -> None:
        failure = None if root.cancelled() else root.exception()
        if failure is not None and self._engine is not None:
            self._engine.fail(BackendFailed(f"the managers' transport failed: {failure!r}; meshd must stop"))

    # --- commits ------------------------------------------------------------------------------------------------------

    def commit(self, proposal: Proposal, guard: Guard) -> asyncio.Future[None]:
        """See `Backend`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        engine = self._engine
        refusal = self._why_not(proposal, guard)
        if refusal is not None or engine is None:
            future.set_exception(refusal or _closed())
            return future
        with engine.inside:
            outcome = engine.core.propose((encode_commit(proposal),))
            if isinstance(outcome, Accepted):
                engine.pipeline.put(outcome.index, outcome.term, proposal, future)
                engine.kick()
            elif guard.term != engine.core.status().soft.term:
                future.set_exception(not_leading(outcome.leader))
            else:
                future.set_exception(Refused(f"{outcome.why.value}: try again"))
        if engine.error is not None and not future.done():
            future.set_exception(engine.error)
        return future

    def _why_not(self, proposal: Proposal, guard: Guard) -> StoreError | None:
        engine = self._engine
        if (error := self._why_not_open()) is not None:
            return error
        assert engine is not None
        if not engine.leading or guard.term != engine.leading:
            return NotLeader(f"the leadership of term {guard.term} is over")
        if (misfit := engine.pipeline.why_not(proposal)) is not None:
            return misfit
        if engine.full:
            return Refused(engine.full)
        if engine.low and any(c.blob is not None and c.expected == 0 for c in proposal.changes):
            return Refused(engine.low)
        return None

    def _why_not_open(self) -> StoreError | None:
        engine = self._engine
        if self._error is not None or (engine is not None and engine.error is not None):
            return self._error or (engine.error if engine is not None else None)
        return _closed() if self._closing is not None or engine is None else None

    def _open_engine(self) -> Engine:
        """Raises StoreError if there is none that works."""
        if (error := self._why_not_open()) is not None:
            raise error
        assert self._engine is not None
        return self._engine

    async def barrier(self) -> int:
        """See `Backend`."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + BARRIER_S
        while True:
            engine = self._open_engine()
            if await engine.read() is not None:
                return engine.pipeline.ledger.version
            leader = self._open_engine().core.status().soft.leader
            if loop.time() >= end_s:
                if leader:
                    raise OutcomeUnknown(f"manager {node_of(leader)}, which leads the cluster, does not answer")
                raise NotLeader("no manager leads the cluster: a majority of them cannot reach each other")
            await asyncio.sleep(BARRIER_PAUSE_S)

    # --- members ------------------------------------------------------------------------------------------------------

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        """Where other managers are said to be, host:port by node id: all that is known, in place of what was before."""
        self._hints = dict(addresses)
        if self._peers is not None:
            self._peers.hint(self._hints)
        if self._engine is not None:
            self._engine.reconnect()

    def advertise(self, address: str) -> None:
        """This manager is found elsewhere from now on."""
        if self._transport is not None:
            self._transport.advertise(address)

    async def add_learner(self, node_id: str, address: str = "", *, standby: bool = False) -> Seat:
        """A node joins, or joins anew as another member than before; `standby`: it is not promoted by itself.

        The seat is for `enrol` on that node. Raises NotLeader, ChangeRefused, OutcomeUnknown, or as the store does.
        """
        await self._change(node_id, lambda _: AddLearner(node_id, address, standby))
        loop, engine = asyncio.get_running_loop(), self._open_engine()
        configuration = engine.core.status().configuration
        member = configuration.of_node(node_id)
        if member is None:
            raise OutcomeUnknown(f"node {node_id} was removed again meanwhile")
        known = self._peers.among(configuration, loop.time()) if self._peers is not None else {}
        if self._transport is not None and (mine := self._address(configuration)):
            known[self._node_id] = mine
        known.pop(node_id, None)
        return Seat(member.id, configuration.epoch, known)

    def _address(self, configuration: Configuration) -> str:
        said = self._network.advertise if self._network is not None else ""
        me = configuration.of_node(self._node_id)
        return said if said and not said.startswith(":") else (me.address if me is not None else "")

    async def promote(self, node_id: str) -> None:
        """A learner gets a vote. Raises as `add_learner` does."""
        await self._change(node_id, lambda member: Promote(member.id))

    async def demote(self, node_id: str) -> None:
        """A voter becomes a learner, and stays one. Not the leader: `transfer` first. Raises as `add_learner` does."""
        await self._change(node_id, lambda member: Demote(member.id))

    async def remove(self, node_id: str) -> None:
        """A manager leaves for good; see `demote`."""
        await self._change(node_id, lambda member: Remove(member.id))

    async def readdress(self, node_id: str, address: str) -> None:
        """Have all managers know where one listens. Raises as `add_learner` does."""
        await self._change(node_id, lambda member: Readdress(member.id, address))

    async def _change(self, node_id: str, change_of: Callable[[RaftMember], ConfChange]) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + CHANGE_S
        while True:
            engine = self._open_engine()
            status = engine.core.status()
            if not engine.leading:
                raise not_leading(status.soft.leader)
            member = status.configuration.of_node(node_id)
            change = change_of(member or RaftMember("", voter=False))
            if member is None and not isinstance(change, AddLearner):
                raise ChangeRefused(f"node {node_id} is no manager of this cluster")
            outcome = engine.core.propose_change(change)
            if isinstance(outcome, Accepted):
                engine.kick()
                await engine.changes.put(outcome)
                return
            if outcome.why not in PASSING or loop.time() >= end_s:
                raise refused(outcome, node_id)
            await asyncio.sleep(CHANGE_PAUSE_S)

    async def transfer(self, node_id: str = "") -> None:
        """Hand the leadership over, to the best one if none is named. Raises NotLeader or ChangeRefused."""
        engine = self._open_engine()
        status = engine.core.status()
        member = status.configuration.of_node(node_id) if node_id else None
        if node_id and member is None:
            raise ChangeRefused(f"node {node_id} is no manager of this cluster")
        if not engine.leading:
            raise not_leading(status.soft.leader)
        refusal = engine.core.transfer_leadership(member.id if member is not None else "")
        if refusal is not None:
            raise refused(refusal, node_id or self._node_id)
        engine.kick()
        if not await self._handed_over(engine):
            raise ChangeRefused("the leadership was not taken over in time: look at mesh quorum status, and try again")

    async def _handed_over(self, engine: Engine, *, insist: bool = False) -> bool:
        """Whether this manager does not lead any more, in time. The core gives up what takes too long; `insist`: try
        again then, perhaps with another one (the first may have just stopped, too)."""
        loop = asyncio.get_running_loop()
        end_s, patience_s = loop.time() + HAND_OVER_S, self._options.tick_s * self._options.election_ticks
        while engine.leading and loop.time() < end_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(patience_s, end_s - loop.time())):
                    while engine.leading:
                        engine.turn.clear()
                        await engine.turn.wait()
            if engine.leading and insist and engine.core.transfer_leadership() is not None:
                return False  # there is nobody
            engine.kick()
        return not engine.leading

    def members(self) -> tuple[Member, ...]:
        """See `Backend`."""
        if self._engine is None:
            return ()
        status = self._engine.core.status()
        leader = status.soft.leader
        return tuple(
            Member(node_of(member.id), member.voter, member.id == leader) for member in status.configuration.members
        )

    def quorum(self) -> QuorumStatus | None:
        """All there is to know without asking anybody; None before `load`."""
        engine = self._engine
        if engine is None:
            return None
        links = self._transport.status() if self._transport is not None else ()
        return quorum_status(engine.core.status(), self._options, links, self._node_id, self.status().message)

    def status(self) -> Status:
        """See `Backend`."""
        engine, journal = self._engine, self._journal
        size = journal.size_bytes if journal is not None else 0
        role: Role = "leader" if engine is not None and engine.leading else "follower"
        if self._error is not None or (engine is not None and engine.error is not None):
            role = "failed"
        elif self._closing is not None:
            role = "closed"
        if engine is None:
            return Status(role, 0, 0, "", size, str(self._error or ""))
        ledger, soft = engine.pipeline.ledger, engine.core.status().soft
        message = engine.full or engine.low or engine.message or engine.snapshots.message or self._message
        return Status(role, soft.term, ledger.version, node_of(soft.leader), size, message, digest=ledger.digest)

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> asyncio.Future[None]:
        """See `Backend`: a leader hands over first, and what is under way may be agreed on meanwhile."""
        if self._closing is None:
            loop = asyncio.get_running_loop()
            self._closing = loop.create_future()
            # Not a bare task: `_closing` takes what it raises.
            closing = loop.create_task(self._close(), name="raft closing")
            closing.add_done_callback(partial(_settle, self._closing))
        return self._closing

    async def _close(self) -> None:
        engine = self._engine
        if engine is not None and engine.error is None:
            engine.settle(_closed())
            if engine.leading and self._transport is not None and engine.core.transfer_leadership() is None:
                engine.kick()
                await self._handed_over(engine, insist=True)
        if self._root is not None:
            self._root.cancel()
            await asyncio.wait([self._root])
        if self._network is not None:
            self._network.sock.close()
        if self._journal is not None:
            await self._journal.close()
        if engine is not None:
            await engine.idle()  # what has just become durable is agreed on, if this is an only voter
            engine.stop(_closed())


def _settle(closing: asyncio.Future[None], done: asyncio.Task[None]) -> None:
    error = None if done.cancelled() else done.exception()
    if error is not None:
        closing.set_exception(error)
    else:
        closing.set_result(None)


def _ledger_of(journal: Journal, meta: SnapshotMeta | None, path: str) -> tuple[Ledger, int]:
    """The state in a snapshot, and how large that is. Raises Damaged. Blocks."""
    size = 0

    def measured(meta: SnapshotMeta) -> Iterator[bytes]:
        nonlocal size
        for chunk in journal.snapshot_chunks(meta):
            size += len(chunk)
            yield chunk

    try:
        return (Ledger.of(measured(meta)) if meta is not None else Ledger()), size
    except Damaged as error:
        raise Damaged(f"the store in {path} is damaged: {error}; restore a backup with meshd restore") from error


def _closed() -> StoreClosed:
    return StoreClosed("the store is closed: this manager is stopping")
