"""Raft for one member: a core without clock, socket, disk or threads; the same inputs give the same outputs.

    step(message)  tick(now)  propose  propose_change  read_index  transfer_leadership     in
    ready() -> Ready          what is to be done outside, and in which order: `control.raft.ready`
    advance(number)           what a Ready asked of the disk is durable, and so is what every earlier one did

`ready` may be called again before `advance`: writes may be under way while the next ones are made (group commit).
`Inconsistent`, out of any call, is the end of the process. Addresses, chunks of snapshots, timeouts of connections are
the shell's.

Sources: Ongaro, "Consensus: Bridging Theory and Practice" (the thesis); the cases and rules by number are those of
shared/reference/raft-and-store.md, sections 3.4 and 2.2.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from control.raft import election, follower, leader
from control.raft.configuration import (
    ConfChange,
    apply_change,
    decode_change,
    encode,
    mistake,
)
from control.raft.messages import (
    Append,
    Heartbeat,
    InstallSnapshot,
    Message,
    PreVote,
    PreVoteReply,
    ReadRequest,
    TermOver,
    Vote,
)
from control.raft.reads import Question
from control.raft.ready import (
    Accepted,
    Kind,
    Options,
    PeerStatus,
    Ready,
    Refusal,
    Restored,
    Role,
    SoftState,
    Status,
    Why,
)
from control.raft.state import State, Write
from control.store.record import Entry, HardState, SnapshotMeta

DEFAULT_OPTIONS = Options()


class Core:
    """See the module."""

    def __init__(
        self, member_id: str, restored: Restored, rng: random.Random, now: float, options: Options = DEFAULT_OPTIONS
    ) -> None:
        """`restored` is what the disk holds, the state machine that of its snapshot. Raises Inconsistent.

        `rng` for election timeouts and ids of reads; `now` in seconds, of a clock that never goes back.
        """
        self._s = State(member_id, restored, options, rng)
        self._next_tick = now + options.tick_s
        self._number = 0
        self._hard = restored.hard_state
        self._soft = SoftState(Role.FOLLOWER, 0, "", False)
        self._late_ticks = 0
        self._dropped = 0
        self._recall_commit(restored.entries)

    def _recall_commit(self, entries: Sequence[Entry]) -> None:
        """A second change in the log proves that the one before it is committed: its leader had applied that. With an
        older configuration in force this member could win an election by a majority that does not count any more."""
        changes = [entry.index for entry in entries if entry.kind == Kind.CHANGE]
        if len(changes) > 1:
            self._s.log.commit_to(changes[-2])

    # --- in: messages -------------------------------------------------------------------------------------------------

    def step(self, m: Message) -> None:
        """A message has come. Those that are not for this member, or from one that was removed, are dropped."""
        s = self._s
        if m.receiver != s.id or (m.sender not in s.members and s.configuration.removed(m.sender)):
            self._dropped += 1
            return
        if m.term != s.term and not self._settle_term(m):
            return
        match m:
            case PreVote():
                election.on_pre_vote(s, m)
                return
            case Vote():
                election.on_vote(s, m)
                return
            case _:
                pass
        match s.role:
            case Role.FOLLOWER:
                follower.step(s, m)
            case Role.LEADER:
                leader.step(s, m)
            case Role.CANDIDATE | Role.PRE_CANDIDATE:
                if isinstance(m, Append | Heartbeat | InstallSnapshot):
                    follower.step(s, m)  # somebody else has won this term
                else:
                    election.step(s, m)

    def _settle_term(self, m: Message) -> bool:
        """The message is of another term. Whether it is to be looked at further."""
        return self._is_later(m) if m.term > self._s.term else self._is_earlier(m)

    def _is_later(self, m: Message) -> bool:
        s = self._s
        match m:
            case Vote(transfer=False) | PreVote() if s.in_lease():
                return False  # a leader lives: a member that does not hear it shall not depose it (case 6)
            case PreVote() | PreVoteReply(granted=True):
                return True  # nobody has entered that term
            case Append() | Heartbeat() | InstallSnapshot():
                s.follow(m.term, m.sender)
            case _:
                s.follow(m.term, "")
        return True

    def _is_earlier(self, m: Message) -> bool:
        s = self._s
        match m:
            case Append() | Heartbeat():
                # Its leader must learn of this term, else a member in it is held off for ever (case 8).
                s.send(TermOver(s.id, m.sender, s.term))
            case PreVote():
                s.send(PreVoteReply(s.id, m.sender, s.term, False))  # so that it catches up with the term (case 7)
            case _:
                pass
        return False

    # --- in: time -----------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """When to call `tick` next."""
        return self._next_tick

    def tick(self, now: float) -> None:
        """Time has passed. After all messages that have come: a process that was held up shall not mistake its own
        delay for a silent leader. For the same reason only so many missed ticks are made up as pass between two
        heartbeats, at most one of which was not to be read yet; others are only counted. (If none were, processes that
        are held up again and again would take several times as long to find a leader: decision 0030.)"""
        if now < self._next_tick:
            return
        interval = self._s.options.tick_s
        missed = int((now - self._next_tick) / interval)
        made_up = min(missed, self._s.options.heartbeat_ticks)
        self._late_ticks += missed - made_up
        self._next_tick += interval * (missed + 1)
        for _ in range(1 + made_up):
            self._tick()

    def _tick(self) -> None:
        s = self._s
        s.ticks += 1
        s.elapsed += 1
        if s.ticks % s.options.heartbeat_ticks == 0:
            s.reads.expire(s.ticks - s.options.election_ticks)
        if s.role is Role.LEADER:
            leader.tick(s)
        elif s.elapsed >= s.timeout:
            election.campaign(s)

    # --- in: wishes ---------------------------------------------------------------------------------------------------

    def propose(self, data: Sequence[bytes]) -> Accepted | Refusal:
        """Entries for the log, all or none. Their indexes are known now: the last ones up to `Accepted.index`."""
        if self._s.role is not Role.LEADER:
            return Refusal(Why.NOT_LEADER, self._s.leader)
        return leader.propose(self._s, data)

    def propose_change(self, change: ConfChange) -> Accepted | Refusal:
        """A change of the configuration; it is in force for a member when that applies it."""
        if self._s.role is not Role.LEADER:
            return Refusal(Why.NOT_LEADER, self._s.leader)
        return leader.propose_change(self._s, change, mistake(self._s.configuration, change))

    def read_index(self) -> int | Refusal:
        """Ask from which index on a read is linearizable. The id returned comes back in `Ready.reads`, once."""
        s = self._s
        if not s.leader or len(s.reads.asked) >= s.options.reads_max:
            return Refusal(Why.TOO_MUCH if s.leader else Why.NOT_LEADER, s.leader)
        read_id = s.reads.new(s.ticks)
        if s.role is Role.LEADER:
            leader.ask(s, Question(s.id, read_id))
        else:
            s.send(ReadRequest(s.id, s.leader, s.term, read_id))
        return read_id

    def transfer_leadership(self, to: str = "") -> Refusal | None:
        """Begin to hand over, to the best one if none is named; `Ready.soft_state` says whether it came to pass."""
        s = self._s
        if s.role is not Role.LEADER:
            return Refusal(Why.NOT_LEADER, s.leader)
        to = to or leader.successor(s)
        if not to:
            return Refusal(Why.MISTAKE, s.id, "no other manager could take over just now")
        return leader.transfer(s, to)

    def campaign(self) -> None:
        """Do not wait for the timeout: for a cluster of one, and tests."""
        if self._s.role is not Role.LEADER:
            election.campaign(self._s)

    def set_reluctant(self, reluctant: bool) -> None:
        """Whether this member had better not lead: its disk is nearly full."""
        self._s.reluctant = reluctant
        if self._s.role is not Role.LEADER:
            self._s.draw_timeout()

    def report_unreachable(self, member_id: str) -> None:
        """The transport could not deliver something."""
        if self._s.role is Role.LEADER:
            leader.on_unreachable(self._s, member_id)

    def report_snapshot(self, member_id: str, *, ok: bool) -> None:
        """The snapshot of an InstallSnapshot has arrived whole and the message was handed over, or will not be."""
        if self._s.role is Role.LEADER:
            leader.on_snapshot_report(self._s, member_id, ok=ok)

    # --- snapshots of this member -------------------------------------------------------------------------------------

    def snapshot_meta(self) -> SnapshotMeta:
        """What a snapshot of the state machine, as it is now, has to be called."""
        s = self._s
        term = s.log.term(s.log.applied)
        assert term is not None
        return SnapshotMeta(s.log.applied, term, encode(s.configuration))

    def snapshot_saved(self, meta: SnapshotMeta) -> None:
        """It is durable, and the log speaks of it."""
        s = self._s
        if s.snapshot is None or s.snapshot.index < meta.index:
            s.snapshot = meta

    def compact(self, index: int) -> None:
        """Forget entries up to `index`, at most that of the newest durable snapshot. Keep some for slow members."""
        s = self._s
        assert s.snapshot is not None
        assert index <= s.snapshot.index
        s.log.compact(index)

    # --- out ----------------------------------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        """What is to be done now; None if nothing."""
        s, log = self._s, self._s.log
        committed = self._apply() if self.unapplied else ()
        if s.flush and s.role is Role.LEADER:
            leader.flush(s)
        known, seen = self._hard, self._soft
        promised = s.term != known.term or s.vote != known.vote
        hard = HardState(s.term, s.vote, log.commit) if promised or log.commit != known.commit else None
        same = s.role is seen.role and s.term == seen.term and s.leader == seen.leader and s.leads() == seen.leading
        soft = None if same else s.soft_state()
        has_entries = log.handed < log.last_index or log.installing is not None
        if not (has_entries or hard or soft or committed or s.early or s.late or s.reads.answers):
            return None
        must_sync = has_entries or promised
        self._hard, self._soft = hard or self._hard, soft or self._soft
        return self._hand_out(hard, soft, committed, must_sync=must_sync)

    def _hand_out(
        self, hard: HardState | None, soft: SoftState | None, committed: tuple[Entry, ...], *, must_sync: bool
    ) -> Ready:
        s = self._s
        self._number += 1
        entries = s.log.hand_over()
        snapshot, s.log.installing = s.log.installing, None
        to_disk = must_sync or hard is not None or bool(s.late)
        if to_disk:
            write = Write(self._number, s.log.last_index, self._hard.term, self._hard.vote, s.ticks, snapshot)
            s.log.in_flight.append(write)
        ready = Ready(
            self._number,
            to_disk,
            hard,
            entries,
            snapshot,
            must_sync,
            tuple(s.early),
            tuple(s.late),
            committed,
            tuple(s.reads.answers),
            soft,
        )
        s.early.clear()
        s.late.clear()
        s.reads.answers.clear()
        return ready

    def _apply(self) -> tuple[Entry, ...]:
        """Entries to be applied; changes of the configuration come into force here."""
        s = self._s
        committed = s.log.applicable(s.options.apply_bytes)
        for entry in committed:
            if entry.kind == Kind.CHANGE:
                s.configure(apply_change(s.configuration, decode_change(entry.data)))
                if s.role is Role.LEADER:
                    leader.changed(s, entry.index)
        return committed

    def advance(self, number: int) -> None:
        """All that Ready `number` asked of the disk is durable; called for each with `to_disk`, in order."""
        s = self._s
        write = s.log.in_flight[0]
        assert isinstance(write, Write)
        assert write.number == number, "the disk ends its writes in the order in which they were given to it"
        s.log.written()
        s.durable_vote = (write.term, write.vote)
        if write.snapshot is not None:
            self.snapshot_saved(write.snapshot)
        if s.role is Role.LEADER:
            leader.commit(s)
        elif s.role is Role.CANDIDATE:
            election.own_vote_durable(s)

    # --- looking ------------------------------------------------------------------------------------------------------

    @property
    def applied(self) -> int:
        """Index of the last entry that was given out."""
        return self._s.log.applied

    @property
    def unapplied(self) -> bool:
        """Whether there is more to be given out than the last `ready` did."""
        log = self._s.log
        return log.applied < min(log.commit, log.durable)

    @property
    def first_index(self) -> int:
        """Of the entries that are there."""
        return self._s.log.base_index + 1

    def status(self) -> Status:
        """For people and tests."""
        s = self._s
        peers = tuple(PeerStatus(p.id, p.flow.value, p.match, s.ticks - p.heard) for p in s.progress.values())
        return Status(
            s.id,
            s.soft_state(),
            s.vote,
            s.log.commit,
            s.log.applied,
            s.log.last_index,
            self.first_index,
            s.configuration,
            peers,
            self._late_ticks,
            self._dropped,
        )
