"""The shell around Raft's core: what the core wants is done here, in the order that `control.raft.ready` asks for.

Calls of the core only see to it that `_pump` comes, which does what one Ready asks for and, if there was more to be
applied, comes again in the next turn of the loop: so what is proposed in one turn goes out together, and a heartbeat
gets in between two large ones. There is one timer, for the core's next tick. Everything else are callbacks: the
journal's (`writes`), the transport's (this is its `Handler`), and those of threads that pack and unpack snapshots. An
error in any of them is the end (`fail`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from control.quorum.compare import Digests
from control.quorum.members import Changes
from control.quorum.peers import Peers
from control.quorum.pipeline import Pipeline
from control.quorum.shipment import Comparison, Shipment, Whereabouts, Wire
from control.quorum.snapshots import Snapshots
from control.quorum.writes import HOLD_BYTES, Writes
from control.raft.configuration import node_of
from control.raft.core import Core
from control.raft.messages import Append, InstallSnapshot
from control.raft.ready import Inconsistent, Kind, Ready, SoftState
from control.store.backend import Committed, Deliver, Delivery, Failed, Following, Image, Leading, Replaced
from control.store.errors import BackendFailed, OutcomeUnknown, Removed, StoreError
from control.store.journal import DiskLow, DiskRecovered, Event, Journal, JournalFailed
from control.store.record import Entry
from control.store.state import FrozenRows, Ledger
from control.transport.service import Transport

log = logging.getLogger(__name__)

# Managers tell each other where the others are, every other second.
EXCHANGE_TICKS = 20
# That something was agreed on is told with the next entries, or after this at the latest: who commits one thing after
# the other has the next ready in less, and a follower wakes up once for each of them, not twice.
TELL_S = 0.002


class _Inside:
    """Around every call of the core and all that follows from it: what goes wrong there is the end of the engine."""

    __slots__ = ("_engine",)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        known = isinstance(error, StoreError | Inconsistent)
        if isinstance(error, Inconsistent):
            why = f"the managers' logs contradict each other: {error}; meshd must stop, report this"
            self._engine.fail(BackendFailed(why))
        elif isinstance(error, StoreError):
            self._engine.fail(error)
        else:  # a bug of ours: without this, everybody would wait for ever
            self._engine.fail(BackendFailed(f"the store failed: {error!r}; meshd must stop"))
        return known


class Engine:
    """One run of one manager; see the module. `start` lets it hear and be heard; before, it only works on its log."""

    def __init__(self, node_id: str, core: Core, journal: Journal, pipeline: Pipeline, snapshots: Snapshots) -> None:
        self.core, self.journal, self.pipeline, self.snapshots = core, journal, pipeline, snapshots
        self.inside = _Inside(self)
        self.changes = Changes()
        self.soft: SoftState = core.status().soft
        self.leading = 0  # the term in which this manager leads, 0 if it does not
        self.error: StoreError | None = None
        self.low = ""  # why nothing may be created
        self.message = ""
        self.turn = asyncio.Event()  # set when who leads has changed, when there is nothing to do, and at the end
        self._node_id = node_id
        self._writes = Writes(journal, self._durable, self.fail)
        self._digests = Digests()
        self._reads: dict[int, asyncio.Future[int | None]] = {}
        self._readers: list[tuple[int, asyncio.Future[int | None]]] = []
        self._transport: Transport[Wire] | None = None
        self._peers: Peers | None = None
        self._deliver: Deliver | None = None
        self._leader: str | None = None  # as delivered
        self._untold: dict[str, Append] = {}  # by receiver: appends without entries that wait for better ones
        self._timer: asyncio.TimerHandle | None = None
        self._pumping = False  # a turn is on its way
        self._ticks = 0
        self._arrived: tuple[InstallSnapshot, Ledger] | None = None
        self._cut_off_error: StoreError | None = None
        self._stopped = False
        journal.listen(self._heard)

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self, deliver: Deliver, peers: Peers, transport: Transport[Wire] | None) -> None:
        """From the next turn on: tell what happens, take part in the agreement."""
        self._deliver, self._peers, self._transport = deliver, peers, transport
        self.snapshots.transport = transport
        asyncio.get_running_loop().call_soon(self._announce)

    def _announce(self) -> None:
        if self.error is not None:
            self._tell_failure(self.error)
            return
        if self._stopped:
            return
        if self.leading:
            self._tell(Leading(self.leading))
        else:
            self._tell_following()
        self.reconnect()
        with self.inside:
            self._look_for_removal()
            self._tick()

    def settle(self, error: StoreError) -> None:
        """No new commits are taken: those that are cut off from now on fail with this."""
        self._cut_off_error = error

    def stop(self, error: StoreError) -> None:
        """Deliver nothing any more; fail what is open."""
        self._stopped = True
        self._deliver = None
        self._writes.stop()
        self.snapshots.stop()
        if self._timer is not None:
            self._timer.cancel()
        self.leading = 0
        self.pipeline.fail(error)
        self.changes.fail(error)
        self._fail_reads()
        self.turn.set()

    def fail(self, error: StoreError) -> None:
        """The end of this manager's part."""
        if self.error is not None or self._stopped:
            return
        log.error("the store has failed", extra={"error": str(error)})
        self.error, self.message = error, str(error)
        self._tell_failure(error)
        self.stop(error)

    def _tell_failure(self, error: StoreError) -> None:
        self._tell(Failed(error))
        self._deliver = None

    async def idle(self) -> None:
        """Until there is nothing to be done now."""
        while self._pumping and not self._stopped:
            self.turn.clear()
            await self.turn.wait()

    # --- time ---------------------------------------------------------------------------------------------------------

    def _ring(self) -> None:
        """Messages that have come already are read in this turn of the loop: tick after them (`Core.tick`)."""
        if not self._stopped:
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        with self.inside:
            self.core.tick(loop.time())
            self._timer = loop.call_at(self.core.deadline(), self._ring)
            self._ticks += 1
            if self._ticks % EXCHANGE_TICKS == 0:
                self._exchange_addresses()
        self.kick()

    # --- doing what the core wants ------------------------------------------------------------------------------------

    def kick(self) -> None:
        """See to it that `_pump` comes."""
        if not self._pumping and not self._stopped:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._stopped:
            return
        with self.inside:
            ready = self.core.ready()
            if ready is not None:
                self._handle(ready)
                if self.core.unapplied:
                    self.kick()
        if not self._pumping:
            self.turn.set()

    def _handle(self, ready: Ready) -> None:
        for message in ready.messages:
            if isinstance(message, InstallSnapshot):
                self.snapshots.send(message)
            else:
                self._send(message)
        state = self._install(ready) if ready.snapshot is not None else None
        if ready.to_disk:
            self._writes.put(ready, state)
        if ready.committed:
            self._apply(ready.committed, ready.soft_state)
        for read in ready.reads:
            self._answered(read.read_id, read.index)
        if ready.soft_state is not None:
            self._turned(ready.soft_state)
        self._writes.settle()
        self._hold()

    def _send(self, message: Wire) -> None:
        if self._transport is None:
            return
        if isinstance(message, Append):
            if not message.entries:
                self._tell_later(message)
                return
            self._untold.pop(message.receiver, None)
        self._transport.send(node_of(message.receiver), message)

    def _tell_later(self, message: Append) -> None:
        """The next append to this receiver says all that this one does. (To Raft one of them was slow, or lost.)"""
        if not self._untold:
            asyncio.get_running_loop().call_later(TELL_S, self._tell_now)
        self._untold[message.receiver] = message

    def _tell_now(self) -> None:
        untold, self._untold = self._untold, {}
        if self._transport is not None and not self._stopped:
            for message in untold.values():
                self._transport.send(node_of(message.receiver), message)

    def _durable(self, ready: Ready) -> None:
        """It, and all before it."""
        with self.inside:
            for message in ready.messages_after:
                self._send(message)
            self.core.advance(ready.number)
        self._hold()
        self.kick()

    def _hold(self) -> None:
        if self._transport is not None:
            size = self._writes.size_bytes
            if size >= HOLD_BYTES or size <= HOLD_BYTES // 2:
                self._transport.hold_bulk(size >= HOLD_BYTES)

    # --- the state machine --------------------------------------------------------------------------------------------

    def _apply(self, entries: Sequence[Entry], soft: SoftState | None) -> None:
        for entry in entries:
            match entry.kind:
                case Kind.DATA:
                    if self.leading and not self.pipeline.owns(entry):
                        self._deposed(soft)  # another leader's: what is under way here is cut off before
                    self._committed(entry)
                case Kind.CHANGE:
                    self.changes.applied(entry)
                    self.reconnect()
                    self._look_for_removal()
                case _:
                    pass
        self.snapshots.applied(entries)
        self._settle_readers()

    def _committed(self, entry: Entry) -> None:
        proposal, future = self.pipeline.apply(entry)
        self._tell(Committed(proposal.version, proposal.changes))
        if future is not None and not future.done():
            future.set_result(None)
        ledger = self.pipeline.ledger
        if self._digests.due(ledger.version):
            self._say_differs(self._digests.take(ledger.version, ledger.digest))
            if self.leading:
                self._send_digest(ledger)

    def _install(self, ready: Ready) -> FrozenRows:
        """The state of a snapshot takes the place of this manager's."""
        assert self._arrived is not None
        message, ledger = self._arrived
        assert message.snapshot == ready.snapshot, "the core knows of it because it has come"
        if self.leading:
            self._deposed(ready.soft_state)
        self.pipeline.replace(ledger)
        state = ledger.freeze()
        self.snapshots.replaced()
        self._tell(Replaced(Image(state.version, state.rows.values())))
        self.reconnect()
        self._settle_readers()
        return state

    def _look_for_removal(self) -> None:
        status = self.core.status()
        if status.configuration.removed(status.id):
            raise Removed(f"node {self._node_id} is no manager of the cluster any more: it was removed, or joined anew")

    # --- who leads ----------------------------------------------------------------------------------------------------

    def _turned(self, soft: SoftState) -> None:
        leading = soft.term if soft.leading else 0
        if self.leading and leading != self.leading:
            self._deposed(soft)
        self.soft = soft
        if leading and not self.leading:
            self.leading, self._leader = leading, None
            self._tell(Leading(leading))
        elif not leading and self._other_leader() != self._leader:
            self._tell_following()
        self.turn.set()

    def _deposed(self, soft: SoftState | None) -> None:
        """First everybody is told, then what is under way fails (`Backend`: Following)."""
        self.leading = 0
        self.soft = soft or self.soft
        self._tell_following()
        error = self._cut_off_error or OutcomeUnknown(
            "the leadership was lost meanwhile: it may or may not come to pass"
        )
        self.pipeline.fail(error)
        self.changes.cut_off()
        self.turn.set()

    def _other_leader(self) -> str:
        """Node id; not this one: until it has applied everything of before it does not lead for others."""
        leader = node_of(self.soft.leader)
        return leader if leader != self._node_id else ""

    def _tell_following(self) -> None:
        self._leader = self._other_leader()
        self._tell(Following(self._leader))

    def _tell(self, delivery: Delivery) -> None:
        if self._deliver is not None:
            self._deliver(delivery)

    # --- what the transport says --------------------------------------------------------------------------------------

    def received(self, sender: str, messages: Sequence[Wire]) -> None:
        """See `control.transport.seam.Handler`."""
        if self._stopped:
            return
        with self.inside:
            for message in messages:
                match message:
                    case Comparison(version=version, digest=digest):
                        self._say_differs(self._digests.hear(version, digest))
                    case Whereabouts():
                        self._told_addresses(message)
                    case Shipment() | InstallSnapshot():
                        pass  # these come with their snapshot only
                    case _:
                        self.core.step(message)
        self.kick()

    def report_unreachable(self, node_id: str) -> None:
        """See Handler."""
        self._report(node_id, self.core.report_unreachable)

    def report_snapshot(self, node_id: str, ok: bool) -> None:
        """See Handler."""
        self._report(node_id, partial(self._snapshot_sent, ok=ok))

    def _snapshot_sent(self, member_id: str, *, ok: bool) -> None:
        self.core.report_snapshot(member_id, ok=ok)

    def _report(self, node_id: str, tell: Callable[[str], None]) -> None:
        member = self.core.status().configuration.of_node(node_id)
        if member is not None and not self._stopped:
            with self.inside:
                tell(member.id)
            self.kick()

    def snapshot_received(self, sender: str, message: Wire, snapshot: Path) -> None:
        """See Handler."""
        self.snapshots.receive(message, snapshot, self._unpacked)

    def _unpacked(self, message: InstallSnapshot, ledger: Ledger) -> None:
        """Now the core may hear of it. If it does not want it, because it has more, nobody does."""
        if self._stopped:
            return
        with self.inside:
            self._arrived = message, ledger
            self.core.step(message)
            ready = self.core.ready()
            if ready is not None:
                self._handle(ready)
            self._arrived = None
        self.kick()

    def address_learned(self, node_id: str, address: str) -> None:
        """See Handler."""
        if self._peers is not None:
            self._peers.learn(node_id, address)
            self.reconnect()

    def reconnect(self) -> None:
        """Members or addresses have changed."""
        if self._transport is not None and self._peers is not None:
            now = asyncio.get_running_loop().time()
            self._transport.set_peers(self._peers.among(self.core.status().configuration, now))

    def _exchange_addresses(self) -> None:
        """Tell everybody where the others are."""
        if self._transport is None:
            return
        self.reconnect()
        status = self.core.status()
        links = {link.node_id: link.addresses[0] for link in self._transport.status() if link.connected}
        for member in status.configuration.members:
            known = {node: address for node, address in links.items() if node != node_of(member.id)}
            if known and node_of(member.id) in links:
                self._send(Whereabouts(status.id, member.id, status.soft.term, known))

    def _told_addresses(self, message: Whereabouts) -> None:
        if self._peers is not None and self._transport is not None:
            connected = {link.node_id for link in self._transport.status() if link.connected}
            if self._peers.told(message.addresses, connected):
                self.reconnect()

    def _send_digest(self, ledger: Ledger) -> None:
        status = self.core.status()
        for member in status.configuration.members:
            if member.id != status.id:
                self._send(Comparison(status.id, member.id, status.soft.term, ledger.version, ledger.digest))

    def _say_differs(self, version: int | None) -> None:
        """Not the end: it would take all followers of a leader that is wrong. People have to look."""
        if version is not None:
            self.message = (
                f"the state of this manager is not that of the leader at commit {version}: remove the wrong one"
            )
            log.error("the managers' states differ", extra={"version": version})

    # --- reads --------------------------------------------------------------------------------------------------------

    def read(self) -> asyncio.Future[int | None]:
        """The index that was agreed on when somebody confirmed who leads, once it is applied here; None: ask again."""
        future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        with self.inside:
            read_id = self.core.read_index()
            if isinstance(read_id, int):
                self._reads[read_id] = future
                self.kick()
                return future
        future.set_result(None)
        return future

    def _answered(self, read_id: int, index: int | None) -> None:
        future = self._reads.pop(read_id)
        if index is not None and index > self.core.applied:
            self._readers.append((index, future))
        elif not future.done():
            future.set_result(index)

    def _settle_readers(self) -> None:
        if not self._readers:
            return
        applied = self.core.applied
        for index, future in self._readers:
            if index <= applied and not future.done():
                future.set_result(index)
        self._readers = [reader for reader in self._readers if reader[0] > applied]

    def _fail_reads(self) -> None:
        for future in (*self._reads.values(), *(future for _, future in self._readers)):
            if not future.done():
                future.set_result(None)
        self._reads.clear()
        self._readers.clear()

    # --- what the journal says ----------------------------------------------------------------------------------------

    @property
    def full(self) -> str:
        """Why nothing at all can be taken: a write waits for space. "" if it does not."""
        return self._writes.message

    def _heard(self, event: Event) -> None:
        match event:
            case DiskLow():
                self.low = str(event)
            case DiskRecovered():
                self.low = ""
            case JournalFailed(error):
                self.fail(error)
                return
        with self.inside:
            self.core.set_reluctant(bool(self.low))
        self.kick()
