"""What a transcript cannot show: messages nobody would send, and writes that overtake each other."""

import random
from itertools import pairwise

import msgspec
import pytest

from control.raft import leader, messages
from control.raft.configuration import Configuration, Member
from control.raft.core import Core
from control.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    PreVote,
    Vote,
    VoteReply,
    ends,
    size_bytes,
    urgent,
)
from control.raft.ready import Inconsistent, Kind, Options, Restored, Role, bootstrap
from control.store.record import Entry, HardState
from control.transport.codec import StructCodec

A, B, C = "a.1", "b.2", "c.3"
OPTIONS = Options(tick_s=1.0, heartbeat_ticks=1, election_ticks=10)


def core(terms: list[int], term: int, *, commit: int = 1, vote: str = "") -> Core:
    configuration = Configuration(tuple(Member(one, voter=True) for one in (A, B, C)), joined=3)
    [first] = bootstrap(configuration).entries
    log = [first, *(entry(i, t) for i, t in enumerate(terms[1:], 2))]
    made = Core(C, Restored(HardState(term, vote, commit), entries=log), random.Random(1), 0.0, OPTIONS)
    made.ready()
    return made


def entry(index: int, term: int) -> Entry:
    return Entry(index, term, Kind.DATA, b"%d of %d" % (index, term))


def append(sender: str, term: int, prev: tuple[int, int], *entries: Entry, commit: int = 1) -> Append:
    return Append(sender, C, term, *prev, commit, entries)


def test_only_what_an_append_proves_is_committed():
    # Entry 4 is of another leader; that 4 is committed says nothing about it.
    c = core([1, 2, 2, 2], 3)
    c.step(append(A, 4, (2, 2), entry(3, 2), commit=4))
    assert c.status().commit == 3


def test_the_end_of_an_overtaken_write_counts_nothing():
    """Case 22: entry 2 of term 2 is being written; a leader of term 3 replaces it; that of term 4 has it again."""
    c = core([1], 2)
    c.step(append(A, 2, (1, 1), entry(2, 2)))
    first = c.ready()
    c.step(append(B, 3, (1, 1), entry(2, 3)))
    second = c.ready()
    c.step(append(A, 4, (1, 1), entry(2, 2), commit=2))
    third = c.ready()
    assert first.entries == third.entries
    assert not third.committed
    c.advance(first.number)
    assert c.ready() is None, "the disk will replace it by that of term 3: it is not durable"
    c.advance(second.number)
    assert c.ready() is None
    c.advance(third.number)
    assert [e.index for e in c.ready().committed] == [2]


def test_a_leader_counts_its_own_write_only_when_it_has_ended():
    c = core([1], 2)
    c.campaign()
    c.ready()
    c.step(messages.PreVoteReply(A, C, 3, True))
    campaign = c.ready()
    c.advance(campaign.number)
    c.step(VoteReply(A, C, 3, True))
    lead = c.ready()
    assert [e.kind for e in lead.entries] == [Kind.NOOP]
    c.step(AppendReply(A, C, 3, 1))
    assert c.status().commit == 1
    c.step(AppendReply(A, C, 3, 2))
    assert c.status().commit == 1, "a has it, and this member not yet: one of three"
    c.advance(lead.number)
    assert c.status().commit == 2


def test_what_is_committed_is_never_replaced():
    c = core([1, 2, 2], 2, commit=3)
    with pytest.raises(Inconsistent, match="would replace entry 3"):
        c._s.log.merge([entry(3, 5)])


def test_two_leaders_of_a_term():
    c = core([1], 2)
    c.step(Heartbeat(A, C, 3, 0, 1))
    with pytest.raises(Inconsistent, match=r"both .* lead in term 3"):
        c.step(Heartbeat(B, C, 3, 0, 1))


def test_a_log_that_is_shorter_than_what_is_committed_is_refused():
    with pytest.raises(Inconsistent, match="entries are lost"):
        core([1, 1], 2, commit=5)


def test_a_second_change_proves_the_first():
    configuration = Configuration((Member(A, voter=True),), joined=1)
    [first] = bootstrap(configuration).entries
    changes = (first, Entry(2, 1, Kind.CHANGE, first.data), Entry(3, 1, Kind.CHANGE, first.data))
    c = Core(A, Restored(HardState(1, "", 1), entries=changes), random.Random(1), 0.0)
    assert c.status().commit == 2


def test_a_long_hold_up_is_counted_and_not_made_up_but_for_a_heartbeats_time():
    c = core([1], 1)
    c.tick(1.0)
    c.tick(50.5)
    assert c._s.ticks == 3
    assert c.status().late_ticks == 47
    assert c.deadline() == 51.0
    assert c.ready() is None, "no campaign: the silence was this member's own"


def test_short_hold_ups_do_not_stretch_an_election():
    """One tick of two is missed all the time: the silence of the leader is as long as the clock says."""
    c = core([1], 1)
    now = 1.0
    c.tick(now)
    while c.status().soft.role is Role.FOLLOWER:
        now += 2.0
        c.tick(now)
    assert c._s.ticks == now
    assert c.status().late_ticks == 0
    assert now <= 2 * c._s.options.election_ticks + 1


def test_an_election_that_is_not_decided_is_tried_again_soon():
    c = core([1], 1)
    now, campaigns = 0.0, []
    while len(campaigns) < 30:
        now += 1.0
        c.tick(now)
        ready = c.ready()
        if ready is not None and any(isinstance(m, PreVote) for m in ready.messages):
            campaigns.append(now)
    span = c._s.options.election_ticks
    assert span <= campaigns[0] < 2 * span
    pauses = [b - a for a, b in pairwise(campaigns)]
    assert min(pauses) >= span // 3
    assert max(pauses) < span // 3 + span
    assert len(set(pauses)) > 3, "drawn anew each time"


def test_messages_to_others_and_of_the_removed_are_dropped():
    c = core([1], 1)
    c.step(Vote(A, "c.9", 9, 9, 9))
    c.step(Vote("d.2", C, 9, 9, 9))
    assert c.status().dropped == 2
    assert c.ready() is None
    c.step(Vote("d.4", C, 9, 9, 9))  # this member may not have heard of it yet
    assert c.ready() is not None


def test_answers_wait_for_the_disk_within_bounds():
    c = core([1], 2)
    c.step(append(A, 2, (1, 1), entry(2, 2)))
    assert c.ready().to_disk
    for _ in range(5000):
        c.step(append(A, 2, (1, 1), entry(2, 2)))
        c.ready()
    assert len(c._s.log.in_flight) <= 1024


def test_the_transport_takes_every_message():
    codec = StructCodec(messages.Message, ends=ends, size_bytes=size_bytes, urgent=urgent)
    sent = [append(A, 3, (1, 1), entry(2, 2)), Heartbeat(A, C, 3, 1, 7), Vote(A, C, 3, 1, 1, True)]
    payload = codec.encode(sent)
    assert codec.decode(payload, "a", "c") == sent
    with pytest.raises(ValueError, match="somebody else"):
        codec.decode(payload, "b", "c")
    assert [codec.urgent(one) for one in sent] == [False, True, True]
    assert all(codec.size_bytes(one) > 0 for one in sent)


def test_a_version_that_knows_nothing_of_reluctance_is_understood_and_understands():
    class Before(messages.Head, frozen=True, array_like=True, gc=False, tag=9):
        round: int

    now = messages.HeartbeatReply("a.1", "c.3", 4, 7, True)
    before = Before("a.1", "c.3", 4, 7)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(now), type=Before) == before
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(before), type=messages.Message)
    assert read == messages.HeartbeatReply("a.1", "c.3", 4, 7, False)


def test_a_late_answer_does_not_say_how_a_member_is_now():
    c = core([1], 1)
    c.campaign()
    c._s.role, c._s.term = Role.CANDIDATE, 2
    leader.become_leader(c._s)
    c.step(HeartbeatReply(A, C, 2, 2, reluctant=False))
    c.step(HeartbeatReply(A, C, 2, 1, reluctant=True))
    assert not c._s.progress[A].reluctant
