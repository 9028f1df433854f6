"""A leader: replication, commitment, changes of the members, reads, handing over.

What is to be sent to followers is not sent call by call: `flush`, once for each Ready, sends every member what it
lacks, so entries proposed one by one go out together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from control.raft import quorum
from control.raft.configuration import ConfChange, Demote, Promote, Remove, decode_change, encode, unseats
from control.raft.messages import (
    Append,
    AppendRefusal,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    PreVote,
    PreVoteReply,
    ReadReply,
    ReadRequest,
    TermOver,
    TimeoutNow,
    Vote,
    VoteReply,
    entries_bytes,
)
from control.raft.progress import Flow, Progress
from control.raft.reads import Question
from control.raft.ready import Accepted, Inconsistent, Kind, Refusal, Role, Why
from control.raft.state import State
from control.store.record import Entry

# A leader that ought not to lead and found nobody to take over goes on working for so many election times before it
# tries again: while it hands over it takes no proposals, and deletions may be what frees its disk.
HAND_OVER_PAUSE = 4


def become_leader(s: State) -> None:
    """Begin with an entry of this term: only with it anything before it can be committed (case 1).

    A leader whose log holds its own removal, by an earlier leader, commits nothing and takes nothing (`outgoing`): it
    hands over. It would have to stop before anybody else knew that the removal is committed, and they might need the
    vote of a member that is gone (case 14).
    """
    assert s.role is not Role.LEADER
    assert s.id in s.voters
    s.take_role(Role.LEADER, s.id)
    s.progress = {
        member.id: Progress(member.id, s.log.last_index, s.ticks, voter=member.voter)
        for member in s.configuration.members
        if member.id != s.id
    }
    s.transfer_began = s.ticks  # two whose disks are full must not pass the leadership to each other all the time
    for progress in s.progress.values():
        progress.heard = s.ticks  # each has an election time to answer before the quorum is missed
    # Somebody's change may be in the log, not applied yet (case 13).
    s.pending_change = s.log.last_index
    s.changes = [index for index, _ in _pending(s)]
    s.outgoing = any(unseats(change, s.id) for _, change in _pending(s))
    s.promoting = {change.member_id: index for index, change in _pending(s) if isinstance(change, Promote)}
    append(s, Kind.NOOP, b"")
    s.noop_index = s.log.last_index


def _pending(s: State) -> Iterator[tuple[int, ConfChange]]:
    """Changes in the log that are not applied, with their indexes: at most one, but for those of earlier leaders that
    came to nothing."""
    log = s.log
    for entry in log.entries[log.applied - log.base_index :]:
        if entry.kind == Kind.CHANGE:
            yield entry.index, decode_change(entry.data)


def append(s: State, kind: Kind, data: bytes) -> None:
    """An entry of this leader."""
    s.log.append(Entry(s.log.last_index + 1, s.term, int(kind), data))
    s.flush = True


def step_down(s: State) -> None:
    """Lead no more, in the same term."""
    s.follow(s.term, "")


# --- time -------------------------------------------------------------------------------------------------------------


def tick(s: State) -> None:
    """One tick of a leader."""
    options = s.options
    if s.ticks % options.heartbeat_ticks == 0:
        heartbeat(s)
    if not has_quorum(s):
        step_down(s)
        return
    if s.transferee and s.ticks - s.transfer_began >= options.election_ticks:
        s.transferee = ""  # it did not come to pass: take proposals again (case 12)
    elif s.transferee and s.ticks % options.heartbeat_ticks == 0:
        invite(s, s.progress[s.transferee])  # what was lost, or came before it knew that it may vote
    if (s.outgoing or s.reluctant or s.stalled()) and not s.transferee:
        pause = 0 if s.outgoing else HAND_OVER_PAUSE * options.election_ticks
        if s.ticks - s.transfer_began >= pause:
            hand_over(s)
    if s.ticks % options.heartbeat_ticks == 0:
        promote_learners(s)


def has_quorum(s: State) -> bool:
    """Whether a majority of the voters was heard within an election time (case 9)."""
    return _heard(s, s.voters) >= quorum.majority(len(s.voters))


def _heard(s: State, voters: Sequence[str]) -> int:
    horizon = s.ticks - s.options.election_ticks
    return sum(1 for voter in voters if voter == s.id or s.progress[voter].heard >= horizon)


def heartbeat(s: State) -> None:
    """To all. It may carry no commit beyond what a member has: it could have something else there."""
    number = s.reads.next_round()
    for progress in s.progress.values():
        s.send(Heartbeat(s.id, progress.id, s.term, min(progress.match, _told(s, progress)), number))


def _told(s: State, progress: Progress) -> int:
    """What a member may know to be committed.

    One that has lost its vote may stop, or at least campaigns no more, as soon as it knows. Those who stay must not
    need its vote then, as they would while they know no better than that the change is in the log (etcd's doc.go on
    removal from a cluster of two). So it is told only when a majority of them has, durably, an entry of this leader
    from after the change: with that came that the change is committed. Likewise at the beginning of a term, for changes
    of before.
    """
    log = s.log
    if not progress.voter and log.commit < s.noop_index:
        return 0
    if s.pending_change > log.applied and progress.id == s.withheld:
        return min(log.commit, s.withheld_from - 1)
    # The first that is not applied here: whom it concerns is not decided yet.
    return min(log.commit, s.changes[0] - 1) if s.changes else log.commit


def _end_for(s: State, progress: Progress, told: int) -> int:
    """The last entry that a member may be sent.

    One that gets a vote gets nothing after that change but together with the news that it is committed. Those who know
    that need its vote; with a log longer than theirs, and no idea that it may campaign itself, it would refuse it.
    """
    end = s.promoting.get(progress.id, 0)
    return end if told < end else s.log.last_index


# --- replication ------------------------------------------------------------------------------------------------------


def flush(s: State) -> None:
    """Send each member what it lacks, as far as it may be sent."""
    s.flush = False
    for progress in s.progress.values():
        send_appends(s, progress)
    if s.reads.dirty:
        heartbeat(s)
        confirm_reads(s)


def send_appends(s: State, progress: Progress, *, empty: bool = False) -> None:
    """Entries, a snapshot, or only news of what is committed. `empty`: send at least something."""
    told = _told(s, progress)
    end = _end_for(s, progress, told)
    while progress.may_send(s.options):
        has_more = progress.next <= end
        is_news = progress.flow is Flow.REPLICATE and progress.sent_commit < told
        if not (has_more or empty or is_news):
            return
        if not send_append(s, progress, told, end):
            return
        progress.sent_commit = told
        empty = False


def send_append(s: State, progress: Progress, told: int, end: int) -> bool:
    """One message, of entries up to `end`, with what the member may know to be committed. False if there is nothing to
    be sent in its place."""
    log, prev = s.log, progress.next - 1
    prev_term = log.term(prev)
    if prev_term is None or prev < log.base_index:
        return send_snapshot(s, progress, told)
    entries = log.between(progress.next, end, s.options.append_bytes)
    s.send(Append(s.id, progress.id, s.term, prev, prev_term, told, entries))
    if entries or progress.flow is Flow.PROBE:
        progress.sent(prev + len(entries), entries_bytes(entries))
    return True


def send_snapshot(s: State, progress: Progress, told: int) -> bool:
    """In place of entries that are gone; only to one that is there to take it."""
    if s.ticks - progress.heard > s.options.election_ticks:
        return False
    assert s.snapshot is not None, "entries are only forgotten when a snapshot holds them"
    if s.snapshot.index > told:
        return False
    progress.snapshot(s.snapshot.index)
    s.send(InstallSnapshot(s.id, progress.id, s.term, s.snapshot))
    return False


def commit(s: State) -> None:
    """Count what a majority has durably; this member only what its own disk has (rules 1 and 2).

    Only an entry of this term is committed by counting (case 1): one of an earlier term could still be replaced by a
    leader that has a later one (thesis 3.6.2).
    """
    if s.outgoing:
        return  # see `become_leader`
    index = quorum.agreed([s.log.durable if voter == s.id else s.progress[voter].match for voter in s.voters])
    if index <= s.log.commit or s.log.term(index) != s.term:
        return
    first = s.log.commit < s.noop_index
    s.log.commit_to(index)
    if first:
        s.reads.release(index)
    while s.dismissed and s.dismissed[0][0] <= index:
        _tell_removed(s, s.dismissed.pop(0)[1])
    s.flush = True


def on_append_reply(s: State, m: AppendReply) -> None:
    """It has more, or is heard again."""
    progress = s.progress.get(m.sender)
    if progress is None:
        return
    progress.heard = s.ticks
    if m.index > s.log.last_index:
        return  # of an entry that never was: somebody else's doing
    news = progress.acknowledged(m.index)
    if progress.flow is Flow.PROBE and (news or m.index == progress.match):
        progress.replicate()
    elif progress.flow is Flow.SNAPSHOT and progress.match >= s.log.base_index:
        progress.replicate()  # it has caught up: by the snapshot, an earlier one, or another leader's entries (case 19)
    if news:
        commit(s)
        if s.transferee == m.sender:
            invite(s, progress)
    s.flush = True


def on_append_refusal(s: State, m: AppendRefusal) -> None:
    """The logs part before `prev_index`: go to where they may meet, a term at a time (case 16)."""
    progress = s.progress.get(m.sender)
    if progress is None:
        return
    progress.heard = s.ticks
    meeting, _ = s.log.meeting(m.hint_index, m.hint_term)
    if progress.refused(m.prev_index, meeting):
        send_appends(s, progress)


def on_heartbeat_reply(s: State, m: HeartbeatReply) -> None:
    """It lives, and knows no later term: the round counts. Whatever it lacks may have got lost on the way."""
    progress = s.progress.get(m.sender)
    if progress is None:
        return
    progress.heard = s.ticks
    progress.paused = False
    if m.round >= progress.round:
        progress.reluctant = m.reluctant
    if progress.flow is Flow.REPLICATE and progress.full(s.options):
        progress.free_one()
    if progress.match < s.log.last_index or progress.flow is Flow.PROBE:
        send_appends(s, progress, empty=True)
    if m.round > progress.round:
        progress.round = m.round
        confirm_reads(s)


def on_unreachable(s: State, member_id: str) -> None:
    """What is under way to it is lost, probably."""
    progress = s.progress.get(member_id)
    if progress is not None and progress.flow is Flow.REPLICATE:
        progress.probe()


def on_snapshot_report(s: State, member_id: str, *, ok: bool) -> None:
    """The snapshot has arrived, or will not: find out by an append when it is heard next."""
    progress = s.progress.get(member_id)
    if progress is None or progress.flow is not Flow.SNAPSHOT:
        return
    if not ok:
        progress.snapshot_index = 0
    progress.probe()
    progress.paused = True


# --- reads ------------------------------------------------------------------------------------------------------------


def ask(s: State, question: Question) -> bool:
    """A question for a read index. False if there are too many."""
    if s.reads.count() >= s.options.reads_max:
        return False
    if s.log.term(s.log.commit) != s.term:
        s.reads.held.append(question)
    else:
        s.reads.enter(question, s.log.commit)
        s.flush = True
    return True


def confirm_reads(s: State) -> None:
    """Answer what a majority has confirmed. Learners have no part in it (case 11)."""
    reads = s.reads
    if not reads.open:
        return
    up_to = quorum.agreed([reads.round if voter == s.id else s.progress[voter].round for voter in s.voters])
    for index, question in reads.confirmed(up_to):
        if question.asker == s.id:
            reads.answer(question.read_id, index)
        else:
            s.send(ReadReply(s.id, question.asker, s.term, question.read_id, index))


# --- proposals --------------------------------------------------------------------------------------------------------


def propose(s: State, data: Sequence[bytes]) -> Accepted | Refusal:
    """Entries, if there is room for them; a single large one always finds room in an empty log."""
    if s.transferee or s.outgoing:
        return Refusal(Why.TRANSFERRING, s.id)
    size = sum(len(one) for one in data)
    if s.log.uncommitted_bytes and s.log.uncommitted_bytes + size > s.options.uncommitted_bytes:
        return Refusal(Why.TOO_MUCH, s.id)
    for one in data:
        append(s, Kind.DATA, one)
    return Accepted(s.log.last_index, s.term)


def propose_change(s: State, change: ConfChange, mistake: str) -> Accepted | Refusal:
    """One at a time, and none before this term has committed something.

    Without the latter two leaders could each make a change of the same configuration, and their majorities need not
    meet (Ongaro, raft-dev 2015). An unapplied one is looked for by index, those of earlier terms included.
    """
    if s.transferee:
        return Refusal(Why.TRANSFERRING, s.id)
    if s.log.term(s.log.commit) != s.term:
        return Refusal(Why.NOT_YET, s.id)
    if s.pending_change > s.log.applied:
        return Refusal(Why.CHANGE_PENDING, s.id)
    if mistake:
        return Refusal(Why.MISTAKE, s.id, mistake)
    if unseats(change, s.id):
        return Refusal(Why.LEADS, s.id)
    if isinstance(change, Promote) and not _is_ready(s, change.member_id):
        return Refusal(Why.NOT_CAUGHT_UP, s.id)
    if isinstance(change, Demote | Remove) and not _survives_without(s, change.member_id):
        return Refusal(Why.QUORUM, s.id)
    append(s, Kind.CHANGE, encode(change))
    s.pending_change, s.withheld = s.log.last_index, ""
    s.changes.append(s.log.last_index)
    if isinstance(change, Promote):
        s.promoting[change.member_id] = s.log.last_index
    return Accepted(s.log.last_index, s.term)


def _is_ready(s: State, member_id: str) -> bool:
    """Whether a voter more would not hold up anything: it has what is committed, and was heard just now."""
    progress = s.progress[member_id]
    return progress.match >= s.log.commit and s.ticks - progress.heard <= s.options.election_ticks


def _survives_without(s: State, member_id: str) -> bool:
    """Whether those who are left, and were heard just now, can agree."""
    left = [voter for voter in s.voters if voter != member_id]
    if len(left) == len(s.voters):
        return True
    return _heard(s, left) >= quorum.majority(len(left))


def promote_learners(s: State) -> None:
    """Those that have caught up, one after the other."""
    for member in s.configuration.members:
        if member.voter or member.standby:
            continue
        progress = s.progress[member.id]
        if not progress.caught_up(s.log.last_index, s.ticks, s.options.election_ticks):
            continue
        if isinstance(propose_change(s, Promote(member.id), ""), Accepted):
            return


def changed(s: State, index: int) -> None:
    """The change at `index` is in force."""
    assert s.promotable, "a leader does not commit what takes its own vote"
    assert s.changes[0] == index
    del s.changes[0]
    for member in s.configuration.members:
        if member.id == s.id:
            continue
        progress = s.progress.get(member.id)
        if progress is None:
            progress = s.progress[member.id] = Progress(member.id, s.log.last_index, s.ticks, voter=member.voter)
            progress.heard = s.ticks
        else:
            _take_vote(s, index, progress, voter=member.voter)
    for member_id in [one for one in s.progress if s.configuration.find(one) is None]:
        progress = s.progress.pop(member_id)
        if progress.voter:
            _take_vote(s, index, progress, voter=False)
            s.dismissed.append((s.pending_change, progress))
        else:
            _tell_removed(s, progress)
    s.promoting = {one: at for one, at in s.promoting.items() if at > index}
    if s.transferee and s.transferee not in s.voters:
        s.transferee = ""
    commit(s)  # a smaller majority may have been reached already
    confirm_reads(s)
    s.flush = True


def _take_vote(s: State, index: int, progress: Progress, *, voter: bool) -> None:
    """If it has lost its vote, an entry follows that has to be committed before it is told, and before the next
    change: see `_told`."""
    if progress.voter and not voter:
        append(s, Kind.NOOP, b"")
        s.pending_change = s.log.last_index
        s.withheld, s.withheld_from = progress.id, index
    progress.voter = voter


def _tell_removed(s: State, progress: Progress) -> None:
    """Once; if that is lost, nobody answers it any more."""
    if progress.flow is not Flow.SNAPSHOT and s.log.term(progress.next - 1) is not None:
        send_append(s, progress, s.log.commit, s.log.last_index)


# --- handing over -----------------------------------------------------------------------------------------------------


def transfer(s: State, to: str) -> Refusal | None:
    """Hand the leadership over, once `to` has everything. Meanwhile, or for an election time, nothing is taken (case
    12)."""
    if to == s.id or to not in s.voters or any(unseats(change, to) for _, change in _pending(s)):
        return Refusal(Why.MISTAKE, s.id, f"manager {to} cannot take over: it leads already, or is no voter")
    s.transferee, s.transfer_began = to, s.ticks
    if not invite(s, s.progress[to]):
        send_appends(s, s.progress[to], empty=True)
    return None


def invite(s: State, progress: Progress) -> bool:
    """Ask the transferee to campaign, if it has everything."""
    if progress.match != s.log.last_index:
        return False
    s.send(TimeoutNow(s.id, progress.id, s.term))
    return True


def hand_over(s: State) -> None:
    """To the best there is, because this one's disk is nearly full or hangs (case 26).

    If it is only nearly full, not to one that is no better: where all are, the leadership would go round for ever, and
    each time nothing is taken for a while.
    """
    best = successor(s)
    if best and (s.outgoing or s.stalled() or not s.progress[best].reluctant):
        transfer(s, best)


def successor(s: State) -> str:
    """The voter that has most and was heard within an election time, a reluctant one last; "" if there is none."""
    horizon = s.ticks - s.options.election_ticks
    pending = [change for _, change in _pending(s)]
    fit = [
        p
        for p in s.progress.values()
        if p.voter and p.heard >= horizon and p.match > 0 and not any(unseats(change, p.id) for change in pending)
    ]
    return max(fit, key=lambda p: (not p.reluctant, p.match, p.heard, p.id)).id if fit else ""


def step(s: State, m: Message) -> None:
    """A message of this term to a leader."""
    match m:
        case AppendReply():
            on_append_reply(s, m)
        case HeartbeatReply():
            on_heartbeat_reply(s, m)
        case AppendRefusal():
            on_append_refusal(s, m)
        case ReadRequest():
            ask(s, Question(m.sender, m.read_id))  # if there are too many, it will ask again
        case Append() | Heartbeat() | InstallSnapshot():
            raise Inconsistent(f"both this manager and {m.sender} lead in term {m.term}")
        case PreVote() | PreVoteReply() | Vote() | VoteReply() | TermOver() | TimeoutNow() | ReadReply():
            pass  # late answers, and elections that this leader has won
