"""A follower: takes what its leader says. Learners, and members not yet or no more in the configuration, are such."""

from __future__ import annotations

from control.raft import election
from control.raft.configuration import decode_configuration
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
)
from control.raft.ready import Inconsistent, Role
from control.raft.state import State


def step(s: State, m: Message) -> None:
    """A message of this term to a follower."""
    match m:
        case Heartbeat():
            hear(s, m.sender)
            # What is beyond was acknowledged by this member: if it is not here, it is lost (`Log.commit_to`).
            s.log.commit_to(m.commit)
            s.send(HeartbeatReply(s.id, m.sender, s.term, m.round, s.reluctant))
        case Append():
            hear(s, m.sender)
            on_append(s, m)
        case InstallSnapshot():
            hear(s, m.sender)
            on_snapshot(s, m)
        case TimeoutNow():
            if m.sender == s.leader and election.may_campaign(s):
                election.become_candidate(s, transfer=True)
        case ReadReply():
            s.reads.answer(m.read_id, m.index)
        case (
            PreVote()
            | PreVoteReply()
            | Vote()
            | VoteReply()
            | TermOver()
            | AppendReply()
            | AppendRefusal()
            | HeartbeatReply()
            | ReadRequest()
        ):
            pass  # answers to a role that is over; votes are dealt with before


def hear(s: State, leader: str) -> None:
    """The leader of this term lives."""
    if s.leader not in ("", leader):
        raise Inconsistent(f"both {s.leader} and {leader} lead in term {s.term}")
    if s.leader != leader or s.role is not Role.FOLLOWER:
        s.follow(s.term, leader)
    else:
        s.elapsed = 0


def on_append(s: State, m: Append) -> None:
    """Take the entries if they follow one that is here; otherwise say where the logs may meet."""
    log = s.log
    if m.prev_index < log.commit:
        s.send(AppendReply(s.id, m.sender, s.term, log.commit))  # what is committed is the same everywhere
        return
    if log.term(m.prev_index) != m.prev_term:
        hint_index, hint_term = log.meeting(m.prev_index, m.prev_term)
        s.send(AppendRefusal(s.id, m.sender, s.term, m.prev_index, hint_index, hint_term))
        return
    log.merge(m.entries)
    last = m.prev_index + len(m.entries)
    log.commit_to(min(m.commit, last))  # beyond that, what is here may not be the leader's
    s.send(AppendReply(s.id, m.sender, s.term, last))


def on_snapshot(s: State, m: InstallSnapshot) -> None:
    """Begin anew with it, unless the log has that and more; it is acknowledged either way (case 19)."""
    meta = m.snapshot
    if meta.index > s.log.commit:
        if s.log.term(meta.index) == meta.term:
            s.log.commit_to(meta.index)
        else:
            s.log.restore(meta)
            s.configure(decode_configuration(meta.data))
    s.send(AppendReply(s.id, m.sender, s.term, s.log.commit))
