"""Elections: pre-vote, vote, and the answers to both (thesis 3.4, 9.6).

    FOLLOWER -- silence --> PRE_CANDIDATE -- a majority would --> CANDIDATE -- a majority has --> LEADER
    any of them -- a leader is heard, a later term is seen --> FOLLOWER      CANDIDATE -- refused --> FOLLOWER

A pre-vote changes nothing in anybody: a member that was cut off cannot raise the term of the others (case 5). A leader
that hands over has its successor skip it.
"""

from __future__ import annotations

from control.raft import leader, quorum
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
from control.raft.quorum import Tally
from control.raft.ready import Role
from control.raft.state import State


def may_campaign(s: State) -> bool:
    """A voter that has applied all changes of the configuration that it knows to be committed (case 13)."""
    if not s.promotable or s.role is Role.LEADER or s.log.installing is not None:
        return False
    return not s.log.has_change(s.log.applied, s.log.commit)


def campaign(s: State) -> None:
    """The leader was silent for too long."""
    if not may_campaign(s) or s.stalled():
        s.draw_timeout()
    elif s.voters == (s.id,):
        become_candidate(s, transfer=False)
    else:
        s.reads.abort()
        s.take_role(Role.PRE_CANDIDATE, "")
        s.votes[s.id] = True
        for voter in s.voters:
            if voter != s.id:
                s.send(PreVote(s.id, voter, s.term + 1, s.log.last_index, s.log.last_term))


def become_candidate(s: State, *, transfer: bool) -> None:
    """Ask for votes in a new term. The own one counts when it is durable: see `own_vote_durable`."""
    s.reads.abort()
    s.enter_term(s.term + 1)
    s.vote = s.id
    s.take_role(Role.CANDIDATE, "")
    for voter in s.voters:
        if voter != s.id:
            s.send(Vote(s.id, voter, s.term, s.log.last_index, s.log.last_term, transfer))


def own_vote_durable(s: State) -> None:
    """Until now this member could, after a crash, have voted for another in the same term; or, alone, have led it twice
    with different entries."""
    if s.role is Role.CANDIDATE and s.durable_vote == (s.term, s.id):
        s.votes[s.id] = True
        count(s)


def count(s: State) -> None:
    """Is the election decided?"""
    match quorum.tally(s.voters, s.votes):
        case Tally.WON if s.role is Role.PRE_CANDIDATE:
            become_candidate(s, transfer=False)
        case Tally.WON:
            leader.become_leader(s)
        case Tally.LOST:
            s.follow(s.term, "")
        case Tally.OPEN:
            pass


def step(s: State, m: Message) -> None:
    """A message of this term to a candidate; for a pre-candidate, also a grant for the next."""
    match m:
        case PreVoteReply(sender=sender, granted=granted):
            # A grant is for the next term: an older one was for another campaign.
            if s.role is Role.PRE_CANDIDATE and m.term == s.term + granted:
                s.votes.setdefault(sender, granted)
                count(s)
        case VoteReply(sender=sender, granted=granted):
            if s.role is Role.CANDIDATE:
                s.votes.setdefault(sender, granted)
                count(s)
        case TimeoutNow():
            if s.role is Role.PRE_CANDIDATE and may_campaign(s):
                become_candidate(s, transfer=True)
        case Append() | Heartbeat() | InstallSnapshot():
            raise AssertionError("a leader's messages are for followers: see core")
        case (
            PreVote()
            | Vote()
            | TermOver()
            | AppendReply()
            | AppendRefusal()
            | HeartbeatReply()
            | ReadRequest()
            | ReadReply()
        ):
            pass


# --- voters -----------------------------------------------------------------------------------------------------------


def up_to_date(s: State, last_index: int, last_term: int) -> bool:
    """Whether a log with that end has all that may be committed, as far as this member knows (thesis 3.6.1)."""
    return (last_term, last_index) >= (s.log.last_term, s.log.last_index)


def on_pre_vote(s: State, m: PreVote) -> None:
    """Also to one who believes to be a learner: it may not have heard of its promotion (case 11)."""
    granted = m.term > s.term and up_to_date(s, m.last_index, m.last_term)
    s.send(PreVoteReply(s.id, m.sender, m.term if granted else s.term, granted))


def on_vote(s: State, m: Vote) -> None:
    """In this member's term. Once per term; the same answer to the same question (case 3)."""
    free = s.vote == m.sender or (s.vote == "" and s.leader == "")
    granted = free and up_to_date(s, m.last_index, m.last_term)
    if granted:
        s.vote = m.sender
        s.draw_timeout()
    s.send(VoteReply(s.id, m.sender, s.term, granted))
