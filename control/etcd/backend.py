"""The backend over an etcd that somebody else runs (`meshd --store etcd://…`).

`wire` says which keys there are. One watch over all of them is the only source of what is delivered: commits, ours
too, and who leads, in one order. Leadership is a lease and a key that lives as long as it does; its creation revision
is the term, and every write compares it, so a manager whose lease has run out can write nothing, whatever it believes.
It stops believing before that: its lease counts from when the last renewal was *sent*.

Tasks, all in the TaskGroup of `_run`: one watches, one renews the lease, one writes (one transaction under way, all
that wait go together in the next), one measures. `_run` itself is started by `watch`, and ends by `close` or by a
failure, which is delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

from control.etcd import etcd_pb2 as pb
from control.etcd import txns
from control.etcd.client import CALL_S, WRITE_S, Client, Compacted, EtcdError, LeaseGone, Unavailable
from control.etcd.listing import claim, read_all, read_head
from control.etcd.mirror import Gap, KeyChange, Mirror
from control.etcd.sealed import BlobSeal
from control.etcd.url import EtcdOptions, parse_url
from control.etcd.wire import TXN_BYTES, Commit, Keys, RowKey, decode_head, decode_meta
from control.store import errors
from control.store.backend import (
    Committed,
    Deliver,
    Delivery,
    Failed,
    Following,
    Guard,
    Image,
    Leading,
    Member,
    Proposal,
    Replaced,
    Role,
    Status,
)
from control.store.errors import BackendFailed, NotLeader, OutcomeUnknown, StoreClosed, StoreError
from control.store.sealing import KeyRing, PlainRing

log = logging.getLogger(__name__)

# The first contact: whoever starts etcd and meshd together gets this long, then a sentence.
CONNECT_S = 15.0
# A leader steps down this long before its lease can end: what its loops have begun must be over by then.
LEASE_MARGIN_S = 0.5
LEASE_BEATS = 4  # renewals in the life of a lease: three may fail
# What is under way when the backend is closed gets this long, giving up leadership too.
CLOSE_S, REVOKE_S = 2.0, 1.0
MEASURE_S = 30.0


def from_url(url: str, *, cluster_id: str, node_id: str, ring: KeyRing | None = None) -> EtcdBackend:
    """The backend of `meshd --store URL`. Raises BadStoreUrl, a sentence; nothing is connected before `load`."""
    return EtcdBackend(parse_url(url), cluster_id, node_id, ring=ring or PlainRing())


async def cluster_of(options: EtcdOptions) -> str | None:
    """Id of the cluster whose store is there, None if there is none. Raises BackendFailed."""
    client, keys = Client(options, random.Random()), Keys(options.prefix)
    try:
        async with asyncio.timeout(CONNECT_S):
            found = await client.range(pb.RangeRequest(key=keys.meta), CALL_S)
    except (EtcdError, TimeoutError) as error:
        raise BackendFailed(_unreachable(options, str(error))) from error
    finally:
        await client.close()
    return decode_meta(found.kvs[0].value).cluster_id if found.kvs else None


@dataclass(frozen=True, slots=True, eq=False)
class _Queued:
    proposal: Proposal
    future: asyncio.Future[None]


class _Closed(Exception):
    """`close` was called: ends the TaskGroup."""


class EtcdBackend:
    """Implements `control.store.backend.Backend`; see the module."""

    def __init__(
        self,
        options: EtcdOptions,
        cluster_id: str,
        node_id: str,
        *,
        ring: KeyRing = PlainRing(),  # noqa: B008 - it has no state
        rng: random.Random | None = None,
    ) -> None:
        self._options, self._cluster_id, self._node_id = options, cluster_id, node_id
        self._keys = Keys(options.prefix)
        self._client = Client(options, rng or random.Random())
        self._seal = BlobSeal(ring, cluster_id)
        self._mirror = Mirror(self._keys, self._seal)
        self._term = 0  # in which this manager leads, 0 if it does not
        self._last_term = 0
        self._leader: str | None = None  # as delivered
        self._lease = 0
        self._lease_end_s = 0.0  # by the loop's clock
        self._takes_over = True  # from an earlier process of this node, once
        self._lease_ttl_s = 0
        self._stood_revision: float = math.inf  # in which our key was made
        self._give_up = asyncio.Event()  # the lease is to be given up
        self._tip = 0
        self._staged: dict[RowKey, tuple[int, int]] = {}  # (commit, row version after it) of rows under way
        self._queue: deque[_Queued] = deque()
        self._sent: deque[_Queued] = deque()  # in a transaction that the watch has not shown yet
        self._work = asyncio.Event()  # there is something to write
        self._turn = asyncio.Event()  # the watch has shown something, or the term is over
        self._deliver: Deliver | None = None
        self._root: asyncio.Task[None] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._stop = asyncio.Event()
        self._error: StoreError | None = None
        self._size_bytes = 0

    # --- opening ----------------------------------------------------------------------------------------------------

    async def load(self) -> Image:
        """See `Backend`. Raises WrongCluster, or another BackendFailed if no member answers within CONNECT_S."""
        try:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await self._client.insisting(self._claim)
                    image = await self._client.insisting(self._read_all)
                    self._size_bytes = await self._client.insisting(lambda: self._client.size_bytes(CALL_S))
            except (EtcdError, TimeoutError) as error:
                reason = str(error) or self._client.message or "no answer"
                raise BackendFailed(_unreachable(self._options, reason)) from error
        except BackendFailed as error:
            self._error = error
            await self._client.close()
            raise
        return image

    async def _claim(self) -> None:
        await claim(self._client, self._keys, self._options.prefix, self._cluster_id)

    async def _read_all(self) -> Image:
        return await read_all(self._client, self._keys, self._mirror)

    def watch(self, after: int, deliver: Deliver) -> None:
        """See `Backend`."""
        assert after == self._mirror.version, "a store watches from what it has loaded"
        self._deliver = deliver
        # Not a bare task: `_run` holds a TaskGroup, and `_ended` takes whatever it raises.
        self._root = asyncio.get_running_loop().create_task(self._run(), name="etcd")
        self._root.add_done_callback(self._ended)

    # --- commits ----------------------------------------------------------------------------------------------------

    def commit(self, proposal: Proposal, guard: Guard) -> asyncio.Future[None]:
        """See `Backend`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        refusal = self._why_not(proposal, guard)
        if refusal is not None:
            future.set_exception(refusal)
            return future
        self._tip = proposal.version
        for change in proposal.changes:
            after = proposal.version if change.blob is not None else 0
            self._staged[change.kind, change.id] = proposal.version, after
        self._queue.append(_Queued(proposal, future))
        self._work.set()
        return future

    def _why_not(self, proposal: Proposal, guard: Guard) -> StoreError | None:
        if self._error is not None:
            return self._error
        if self._closing is not None:
            return _closed()
        if guard.term != self._term:
            return NotLeader(f"the leadership of term {guard.term} is over")
        if proposal.version != self._tip + 1:
            return errors.Refused("a commit before this one failed: try again")
        for change in proposal.changes:
            key = change.kind, change.id
            staged = self._staged.get(key)
            if (staged[1] if staged is not None else self._mirror.row_version(key)) != change.expected:
                return errors.Refused(f"{change.kind} {change.id} is not at version {change.expected}: try again")
        return None

    async def _writing(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._queue and self._term:
                waiting = [_commit_of(queued) for queued in islice(self._queue, txns.GROUP_CHANGES)]
                group = [self._queue.popleft() for _ in range(txns.group_size(waiting, TXN_BYTES))]
                self._sent += group
                await self._write(waiting[: len(group)])

    async def _write(self, commits: Sequence[Commit]) -> None:
        """One group, until the watch has shown it or the term is over."""
        fence = txns.Fence(self._lease, self._term, self._mirror.head_revision)
        write = txns.write(self._keys, self._seal, commits, fence, self._mirror.index)
        version = commits[-1].version
        # What is there now belongs to commits that were refused, or to leaders that were cut off while they wrote.
        sweep = txns.sweep(self._keys, fence, self._mirror.orphans())
        for request in (*sweep, *write.parts, write.commit):
            if not await self._send(request, fence, version):
                return
        while self._term == fence.term and self._mirror.version < version:
            self._turn.clear()
            await self._turn.wait()

    async def _send(self, request: pb.TxnRequest, fence: txns.Fence, version: int) -> bool:
        """Until it is done (True); False if it is not, or nobody can tell, and everybody has been told."""
        unclear = False
        while self._term == fence.term and self._mirror.version < version:
            try:
                response = await self._client.attempt(lambda: self._client.txn(request, WRITE_S))
            except Unavailable:
                unclear = True  # trying again is safe: the head is compared
                continue
            except EtcdError as error:
                self._client.message = str(error)
                if unclear:
                    # An earlier attempt may still come to pass; only the end of the term makes sure that none does.
                    self._resign()
                else:
                    self._cut_off(errors.Refused(f"{error}; try again"))
                return False
            if not response.succeeded:
                return self._ran_into(response, fence, version)
            return True
        return self._mirror.version >= version

    def _ran_into(self, response: pb.TxnResponse, fence: txns.Fence, version: int) -> bool:
        """The fence did not hold: because an earlier attempt was done (True), or the leadership is over."""
        run, head = (answer.response_range.kvs for answer in response.responses)
        if head:
            found = decode_head(head[0].value)
            if (found.term, found.version) == (fence.term, version):
                return True
        if run and run[0].create_revision == fence.term:
            raise BackendFailed(
                f"the key {self._keys.head.decode()} in etcd was changed by something that is not the leader: stop it"
            )
        self._resign()
        return False

    def _cut_off(self, error: StoreError) -> None:
        """What is under way fails, and all that was to go on top of it."""
        cut = (*self._sent, *self._queue)
        self._forget_staged()
        for queued in cut:
            queued.future.set_exception(error)

    def _forget_staged(self) -> None:
        self._sent.clear()
        self._queue.clear()
        self._staged.clear()
        self._tip = self._mirror.version

    # --- what the watch says ----------------------------------------------------------------------------------------

    async def _watching(self) -> None:
        while True:
            try:
                await self._client.attempt(partial(read_head, self._client, self._keys, self._mirror))
                await self._client.attempt(self._watch_once)
            except (Gap, Compacted):
                await self._client.insisting(self._reload)
            except EtcdError as error:
                self._client.message = str(error)

    async def _watch_once(self) -> None:
        events: list[pb.Event] = []
        self._judge()
        async with contextlib.aclosing(self._client.watch(self._keys.root, self._mirror.revision + 1)) as watch:
            async for response in watch:
                self._client.answered()
                events += response.events
                # A transaction can be split over several answers; all but the newest is complete.
                newest = events[-1].kv.mod_revision if response.fragment and events else 0
                complete = [event for event in events if event.kv.mod_revision != newest]
                events = [event for event in events if event.kv.mod_revision == newest]
                self._take(complete)

    def _take(self, events: Iterable[pb.Event]) -> None:
        for revision, group in groupby(events, key=lambda event: event.kv.mod_revision):
            changes = [
                KeyChange(e.kv.key, e.kv.value if e.type == pb.Event.PUT else None, e.kv.create_revision) for e in group
            ]
            for commit in self._mirror.apply(revision, changes):
                self._committed(commit)
            self._judge()
        self._turn.set()

    def _committed(self, commit: Commit) -> None:
        """Ours, or another's."""
        for change in commit.changes:
            staged = self._staged.get((change.kind, change.id))
            if staged is not None and staged[0] == commit.version:
                del self._staged[change.kind, change.id]
        if not self._sent:
            self._tell(Committed(commit.version, commit.changes))
            return
        queued = self._sent.popleft()
        if queued.proposal.version != commit.version:
            raise BackendFailed(f"commit {commit.version} in etcd is not of the leader: something else writes there")
        self._tell(Committed(commit.version, queued.proposal.changes))
        queued.future.set_result(None)

    async def _reload(self) -> None:
        """The watch cannot go on: all of it anew. Commits of ours that are in it have happened."""
        before = self._mirror.version
        image = await self._read_all()
        own = deque(queued for queued in self._sent if queued.proposal.version <= image.version)
        if own and self._term == self._mirror.term and own[-1].proposal.version == image.version:
            for queued in own:
                self._committed(_commit_of(queued))
        elif image.version != before:
            self._tell(Replaced(image))
        self._judge()
        self._turn.set()

    # --- who leads --------------------------------------------------------------------------------------------------

    def _judge(self) -> None:
        """Tell if it has changed."""
        if self._lease and self._lease not in self._mirror.runs and self._mirror.revision >= self._stood_revision:
            self._lease_end_s = 0.0  # somebody has removed our key, or the lease has ended
            self._give_up.set()
        run = self._mirror.leader()
        valid = asyncio.get_running_loop().time() < self._lease_end_s
        if run is not None and self._lease and run.lease == self._lease and valid:
            if not self._term:
                self._term = self._last_term = run.create_revision
                self._leader = self._node_id
                self._tip = self._mirror.version
                self._tell(Leading(self._term))
            return
        leader = run.node_id if run is not None and run.node_id != self._node_id else ""
        if self._term or leader != self._leader:
            self._follow(leader)

    def _follow(self, leader: str) -> None:
        sent, queue = tuple(self._sent), tuple(self._queue)
        term, self._term = self._term, 0
        self._leader = leader
        self._forget_staged()
        self._tell(Following(leader))
        self._turn.set()
        for queued in sent:
            queued.future.set_exception(OutcomeUnknown("the leadership was lost while the commit was under way"))
        for queued in queue:
            queued.future.set_exception(NotLeader(f"the leadership of term {term} is over"))

    def _resign(self) -> None:
        """Lead no more with this lease."""
        self._lease_end_s = 0.0
        self._give_up.set()
        self._judge()

    async def _campaigning(self) -> None:
        while True:
            try:
                await self._client.attempt(self._stand)
            except EtcdError as error:
                self._client.message = str(error)
                continue
            await self._hold()
            lease, self._lease, self._lease_end_s = self._lease, 0, 0.0
            self._judge()
            with contextlib.suppress(EtcdError):
                await self._client.revoke(lease, REVOKE_S)

    async def _stand(self) -> None:
        """Get a lease, and stand for leader."""
        if self._takes_over:
            # Two processes of one node are a mistake, but for the moment after a crash. Terms fence either case.
            for run in tuple(self._mirror.runs.values()):
                if run.node_id == self._node_id:
                    await self._client.revoke(run.lease, CALL_S)
            self._takes_over = False
        if self._lease:
            # An attempt whose answer never came: it may have left our name at the head of the queue.
            await self._client.revoke(self._lease, CALL_S)
            self._lease = 0
        sent_s = asyncio.get_running_loop().time()
        granted = await self._client.grant(self._options.ttl_s, CALL_S)
        self._lease, self._lease_ttl_s = granted.ID, granted.TTL
        self._lease_end_s = sent_s + granted.TTL - LEASE_MARGIN_S
        self._give_up.clear()
        self._stood_revision = math.inf
        stood = await self._client.txn(txns.candidacy(self._keys, granted.ID, self._node_id), CALL_S)
        self._stood_revision = stood.header.revision
        self._judge()  # the watch may have been faster than this answer

    async def _hold(self) -> None:
        """Renew the lease for as long as it can be."""
        now_s = asyncio.get_running_loop().time
        beat_s = self._lease_ttl_s / LEASE_BEATS
        while (left_s := self._lease_end_s - now_s()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(beat_s, left_s)):
                    await self._give_up.wait()
            left_s = self._lease_end_s - now_s()
            if left_s <= 0:
                return
            sent_s = now_s()
            try:
                # The pause after a failure counts, too: nobody leads for longer than the lease.
                async with asyncio.timeout(left_s):
                    ttl_s = await self._client.attempt(partial(self._client.keep_alive, self._lease, beat_s))
            except (LeaseGone, TimeoutError):
                return
            except EtcdError:
                continue
            if not self._give_up.is_set():
                self._lease_end_s = sent_s + ttl_s - LEASE_MARGIN_S

    async def _measuring(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_S)
            with contextlib.suppress(EtcdError):
                self._size_bytes = await self._client.size_bytes(CALL_S)

    # --- the rest of the contract -----------------------------------------------------------------------------------

    async def barrier(self) -> int:
        """See `Backend`: a linearizable read of the head."""
        if self._error is not None:
            raise self._error
        try:
            async with asyncio.timeout(CALL_S * len(self._options.endpoints)):
                request = pb.RangeRequest(key=self._keys.head)
                found = await self._client.insisting(lambda: self._client.range(request, CALL_S))
        except (EtcdError, TimeoutError) as error:
            raise OutcomeUnknown(_unreachable(self._options, str(error) or self._client.message)) from error
        return decode_head(found.kvs[0].value).version if found.kvs else 0

    def members(self) -> tuple[Member, ...]:
        """See `Backend`: the managers that stand for leader now."""
        nodes = sorted({run.node_id for run in self._mirror.runs.values()})
        leader = self._mirror.leader()
        return tuple(Member(node, voter=True, leader=leader is not None and node == leader.node_id) for node in nodes)

    def status(self) -> Status:
        """See `Backend`. The size is that of etcd's whole database, which others may use, too."""
        role: Role = "leader" if self._term else "follower"
        if self._error is not None:
            role = "failed"
        elif self._closing is not None:
            role = "closed"
        message = str(self._error) if self._error is not None else self._client.message
        return Status(role, self._last_term, self._mirror.version, self._leader or "", self._size_bytes, message)

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for task in (self._watching, self._campaigning, self._writing, self._measuring, self._until_closed):
                    group.create_task(task())
        except* _Closed:
            pass
        finally:
            with contextlib.suppress(EtcdError):
                if self._lease:
                    await self._client.revoke(self._lease, REVOKE_S)
            await self._client.close()

    async def _until_closed(self) -> None:
        await self._stop.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while self._sent:
                    self._turn.clear()
                    await self._turn.wait()
        raise _Closed

    def _ended(self, root: asyncio.Task[None]) -> None:
        failure = None if root.cancelled() else root.exception()
        if failure is not None:
            self._fail(failure)
        self._deliver = None
        self._term = 0
        self._cut_off(self._error or _closed())
        if self._closing is not None and not self._closing.done():
            self._closing.set_result(None)

    def _fail(self, failure: BaseException) -> None:
        reason = failure
        while isinstance(reason, BaseExceptionGroup):
            reason = reason.exceptions[0]
        if not isinstance(reason, StoreError):
            log.error("a bug in the etcd backend", exc_info=failure)
            reason = BackendFailed(f"the store in etcd failed: {reason!r}; meshd must stop")
        self._error = reason
        self._tell(Failed(reason))

    def close(self) -> asyncio.Future[None]:
        """See `Backend`: gives up the leadership, so that another manager has it at once."""
        if self._closing is None:
            loop = asyncio.get_running_loop()
            self._closing = loop.create_future()
            waiting = tuple(self._queue)
            self._queue.clear()
            for queued in waiting:
                queued.future.set_exception(_closed())
            self._stop.set()
            if self._root is None:
                # Never watched: there is only a channel, if that.
                self._root = loop.create_task(self._client.close(), name="etcd closing")
                self._root.add_done_callback(self._ended)
            elif self._root.done():
                self._closing.set_result(None)
        return self._closing

    def _tell(self, delivery: Delivery) -> None:
        if self._deliver is not None:
            self._deliver(delivery)


def _commit_of(queued: _Queued) -> Commit:
    return Commit(queued.proposal.version, queued.proposal.changes)


def _closed() -> StoreClosed:
    return StoreClosed("the store is closed: this manager is stopping")


def _unreachable(options: EtcdOptions, reason: str) -> str:
    return f"cannot use etcd at {', '.join(options.endpoints)}: {reason or 'no answer'}"
