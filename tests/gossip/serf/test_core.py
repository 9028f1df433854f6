"""The Serf layer as a node lives it: intents, events, queries, keys, conflicts; the A-cases of the reference."""

from __future__ import annotations

import base64
import random

import pytest

from gossip.coordinates import Coordinate
from gossip.delegate import Address, Change
from gossip.serf.clock import RING_SIZE
from gossip.serf.core import CONFLICT
from gossip.serf.keys import KeyCommand
from gossip.serf.messages import (
    FLAG_ACK,
    Join,
    KeyResponse,
    Leave,
    PushPull,
    Query,
    QueryResponse,
    Relay,
    UserEvent,
    Vote,
    decode,
    encode,
    encode_coordinate,
    encode_filters,
)
from gossip.serf.ports import ConflictOver, KeyDone, QuerySeen, Refused, UserEventSeen
from gossip.serf.queries import QueryAnswer, QueryDone
from gossip.serf.roster import Kind, MemberChange, Status
from tests.gossip.serf.membership import change, core, join, member

ASKER = Address("127.0.0.9", 9)


def query(ltime: int = 5, **changed: object) -> Query:
    fields: dict[str, object] = {
        "ltime": ltime,
        "id": 1,
        "source": ASKER,
        "source_node": "asker",
        "filters": (),
        "flags": 0,
        "relay_factor": 0,
        "timeout_ns": 10**10,
        "name": "q",
        "payload": b"",
    }
    return Query(**(fields | changed))  # type: ignore[arg-type]


def test_a17_two_leaves_out_of_order_are_not_passed_on_for_ever() -> None:
    made, below = core()
    join(made, below, "a")
    change(made, "a", Change.FAILED)
    for ltime, passed_on in ((10, 1), (11, 1), (10, 0), (11, 0)):
        made.intents.clear()
        made.user_message(encode(Leave(ltime, "a")), 0.0)
        assert len(made.intents) == passed_on, ltime
    found = made.roster.get("a")
    assert found is not None
    assert found.status is Status.LEFT


def test_a18_intents_for_unknown_nodes_are_kept_and_passed_on_once() -> None:
    made, below = core()
    made.user_message(encode(Leave(10, "a")), 0.0)
    assert len(made.intents) == 1
    made.intents.clear()
    made.user_message(encode(Leave(10, "a")), 0.0)
    assert len(made.intents) == 0
    join(made, below, "a")
    found = made.roster.get("a")
    assert found is not None
    assert (found.status, found.status_ltime) == (Status.LEAVING, 10)
    made.user_message(encode(Join(11, "a")), 0.0)
    found = made.roster.get("a")
    assert found is not None
    assert (found.status, found.status_ltime) == (Status.ALIVE, 11)


def test_a18_a_join_intent_that_came_early() -> None:
    made, below = core()
    made.user_message(encode(Join(10, "a")), 0.0)
    join(made, below, "a")
    made.user_message(encode(Leave(9, "a")), 0.0)
    found = made.roster.get("a")
    assert found is not None
    assert (found.status, found.status_ltime) == (Status.ALIVE, 10)


def test_a_leave_about_us_is_contradicted_unless_we_leave() -> None:
    made, _ = core()
    made.user_message(encode(Leave(10, "me")), 0.0)
    (said,) = made.broadcasts(2, 1400)
    assert decode(said) == Join(11, "me")
    assert made.roster.get("me").status is Status.ALIVE  # type: ignore[union-attr]
    made.leave_begins(0.0)
    made.user_message(encode(Leave(90, "me")), 0.0)
    assert made.roster.get("me").status is Status.LEAVING  # type: ignore[union-attr]


def test_a19_events_of_the_same_time_are_all_told_and_each_once() -> None:
    made, _ = core()
    for name, payload in (("a", b"1"), ("a", b"2"), ("b", b"1"), ("a", b"1")):
        made.user_message(encode(UserEvent(7, name, payload)), 0.0)
    told = [(e.name, e.payload) for e in made.drain() if isinstance(e, UserEventSeen)]
    assert told == [("a", b"1"), ("a", b"2"), ("b", b"1")]
    assert len(made.events) == 3


def test_a19_events_and_queries_that_are_too_old_are_not_told() -> None:
    made, _ = core()
    made.user_message(encode(UserEvent(RING_SIZE * 2, "new", b"")), 0.0)
    made.user_message(encode(UserEvent(3, "old", b"")), 0.0)
    made.user_message(encode(query(RING_SIZE * 2, name="new")), 0.0)
    made.user_message(encode(query(3, name="old")), 0.0)
    assert [e.name if isinstance(e, UserEventSeen) else e.query.name for e in made.drain()] == ["new", "new"]  # type: ignore[union-attr]


def test_a20_merge_gives_exact_clocks_and_buffered_intents() -> None:
    made, below = core()
    join(made, below, "gone", "here")
    change(made, "gone", Change.FAILED)
    made.drain()
    state = PushPull(42, {"gone": 20, "here": 15, "new": 12, "lost": 8}, ("gone", "lost"), 50, (), 100)
    made.merge_remote_state(encode(state), False, 0.0)
    assert (made.clock.time, made.event_clock.time, made.query_clock.time) == (42, 50, 100)
    times = made.roster.status_times()
    assert (times["here"], times["gone"]) == (15, 21)
    assert made.roster.get("gone").status is Status.LEFT  # type: ignore[union-attr]
    join(made, below, "new", "lost")
    assert made.roster.get("new").status_ltime == 12  # type: ignore[union-attr]
    assert made.roster.get("lost").status is Status.LEAVING  # type: ignore[union-attr]


def test_events_of_a_push_pull_are_told_but_for_those_before_a_join() -> None:
    state = encode(PushPull(1, {}, (), 9, ((8, (("x", b""),)),), 1))
    made, _ = core()
    made.merge_remote_state(state, False, 0.0)
    assert [type(e) for e in made.drain()] == [UserEventSeen]
    made, _ = core()
    made.merge_remote_state(state, True, 0.0)
    assert made.drain() == []
    made, _ = core()
    made.ignore_old_events = False
    made.merge_remote_state(state, True, 0.0)
    assert [type(e) for e in made.drain()] == [UserEventSeen]


def test_local_state_is_what_another_takes_over() -> None:
    made, below = core()
    join(made, below, "a")
    made.user_event("x", b"y", True, 0.0)
    other, _ = core("other")
    other.merge_remote_state(made.local_state(False), False, 0.0)
    assert other.event_clock.time == made.event_clock.time
    assert [e.name for e in other.drain() if isinstance(e, UserEventSeen)] == ["x"]


@pytest.mark.parametrize(("votes", "kept"), [((True, True, False), True), ((True, False, False), False), ((), False)])
def test_a21_name_conflict_is_voted_on(votes: tuple[bool, ...], kept: bool) -> None:
    made, below = core()
    join(made, below, "a", "b", "c")
    made.conflict(below.me, member("me", 999), 0.0)
    made.conflict(below.me, member("me", 999), 0.0)  # one vote at a time
    asked = [decode(m) for m in made.queries.take(2, 1400, 1)]
    assert len(asked) == 1
    assert isinstance(asked[0], Query)
    assert asked[0].name == CONFLICT
    for at, for_us in enumerate(votes):
        vote = encode(Vote("me", below.me.address if for_us else Address("127.0.0.1", 999)))
        made.user_message(encode(QueryResponse(asked[0].ltime, asked[0].id, f"n{at}", 0, vote)), 0.1)
    made.wake(60.0)
    assert ConflictOver(kept, sum(votes), len(votes)) in made.drain()


def test_votes_about_others_are_given_and_about_oneself_not() -> None:
    made, below = core()
    join(made, below, "a")
    made.user_message(encode(query(1, name=CONFLICT, payload=b"a")), 0.0)
    made.user_message(encode(query(2, name=CONFLICT, payload=b"me")), 0.0)
    (to, raw) = below.sent[0]
    answer = decode(raw)
    assert isinstance(answer, QueryResponse)
    assert to == ASKER
    assert len(below.sent) == 1
    assert decode(answer.payload) == Vote("a", Address("127.0.0.1", 8000))


def test_a23_rogue_coordinates_change_nothing() -> None:
    made, below = core()
    join(made, below, "a")
    before = made.vivaldi.coordinate
    for rogue in (
        encode_coordinate(Coordinate(vec=(float("nan"),) * 8)),
        encode_coordinate(Coordinate(vec=(0.0,) * 2)),
        b"\x02junk",
        b"\x01\xc1",
    ):
        made.ping_complete(member("a"), 0.01, rogue, 0.0)
    assert made.vivaldi.coordinate == before
    assert made.counts["bad_coordinates"] == 4
    assert made.roster.get("a").status is Status.ALIVE  # type: ignore[union-attr]
    made.ping_complete(member("a"), 0.01, encode_coordinate(Coordinate()), 0.0)
    assert made.vivaldi.coordinate != before
    assert set(made.coordinates) == {"a", "me"}


def test_a24_a_list_of_many_keys_is_cut_with_notice() -> None:
    made, below = core(keys=[bytes((n,)) * 32 for n in range(40)])
    made.user_message(encode(query(1, name=KeyCommand.LIST.query, payload=b"\x07\x80")), 0.0)
    raw = below.sent[0][1]
    assert len(raw) <= 1024
    answer = decode(raw)
    assert isinstance(answer, QueryResponse)
    keys = decode(answer.payload)
    assert isinstance(keys, KeyResponse)
    assert keys.ok
    assert 0 < len(keys.keys) < 40
    assert keys.message == f"truncated key list response, showing first {len(keys.keys)} of 40 keys"


def test_a25_key_commands_without_encryption_fail_for_each_node() -> None:
    made, below = core()
    join(made, below, "a")
    number = made.key_query(KeyCommand.INSTALL, base64.b64encode(b"k" * 32).decode(), 0.0)
    answer = encode(KeyResponse(False, "No keyring to modify (encryption not enabled)"))
    asked = next(decode(m) for m in made.queries.take(2, 1400, 1))
    assert isinstance(asked, Query)
    made.user_message(encode(QueryResponse(asked.ltime, asked.id, "a", 0, answer)), 0.0)
    (done,) = [e for e in made.drain() if isinstance(e, KeyDone)]
    assert done.query == number
    assert done.result.error == "2/2 nodes reported failure"
    assert set(done.result.messages) == {"me", "a"}


def test_keys_are_installed_used_and_removed() -> None:
    first, second = b"a" * 32, b"b" * 32
    made, _ = core(keys=[first])
    for command, ring in (
        (KeyCommand.INSTALL, (first, second)),
        (KeyCommand.USE, (second, first)),
    ):
        made.key_query(command, base64.b64encode(second).decode(), 0.0)
        assert made.ring.keys == ring
        assert made.ring_changed
    made.key_query(KeyCommand.REMOVE, base64.b64encode(first).decode(), 0.0)
    assert made.ring.keys == (second,)
    made.key_query(KeyCommand.REMOVE, base64.b64encode(second).decode(), 0.0)
    results = [e.result for e in made.drain() if isinstance(e, KeyDone)]
    assert [r.errors for r in results] == [0, 0, 0, 1], "the primary key stays"
    with pytest.raises(Refused, match="base64"):
        made.key_query(KeyCommand.INSTALL, "?", 0.0)


def test_queries_are_acknowledged_answered_and_relayed() -> None:
    made, below = core()
    join(made, below, "a", "b", "c")
    made.user_message(encode(query(flags=FLAG_ACK, relay_factor=2)), 0.0)
    (seen,) = made.drain()
    assert isinstance(seen, QuerySeen)
    kinds = [decode(raw) for _, raw in below.sent]
    assert [type(k) for k in kinds] == [QueryResponse, Relay, Relay]
    assert all(k.to == ASKER for k in kinds if isinstance(k, Relay))
    made.respond(seen, b"42", 1.0)
    assert decode(below.sent[3][1]) == QueryResponse(5, 1, "me", 0, b"42")
    with pytest.raises(Refused, match="limit of 1024"):
        made.respond(seen, b"x" * 1024, 1.0)
    with pytest.raises(Refused, match="deadline"):
        made.respond(seen, b"", 11.0)


@pytest.mark.parametrize(
    ("nodes", "tags", "meant"),
    [
        (["me"], {}, True),
        (["you"], {}, False),
        ([], {"role": "^w.b$"}, True),
        ([], {"role": "e"}, True),
        ([], {"role": "^e"}, False),
        ([], {"role": "("}, False),
        ([], {"none": "^$"}, True),
        (["me"], {"role": "db"}, False),
    ],
)
def test_filters(nodes: list[str], tags: dict[str, str], meant: bool) -> None:
    made, _ = core()
    made.user_message(encode(query(filters=encode_filters(nodes, tags))), 0.0)
    assert bool(made.drain()) == meant
    assert len(made.queries) == 1, "passed on all the same"


def test_our_own_query() -> None:
    made, _ = core()
    number = made.query("q", b"", 0.0, ack=True, timeout_s=1.0)
    first = made.drain()
    assert [type(e) for e in first] == [QueryAnswer, QuerySeen]
    seen = first[1]
    assert isinstance(seen, QuerySeen)
    made.respond(seen, b"r", 0.5)
    made.user_message(encode(QueryResponse(number, seen.query.id, "me", 0, b"again")), 0.5)
    made.user_message(encode(QueryResponse(number, 12345, "x", 0, b"wrong id")), 0.5)
    assert made.drain() == [QueryAnswer(number, False, "me", b"r")]
    assert made.deadline() == 1.0
    made.wake(1.0)
    assert made.drain() == [QueryDone(number)]


def test_limits_are_told_in_a_sentence() -> None:
    made, below = core()
    with pytest.raises(Refused, match="limit of 512 bytes before"):
        made.user_event("x" * 500, b"y" * 13, False, 0.0)
    with pytest.raises(Refused, match="limit of 512 bytes after"):
        made.user_event("x" * 500, b"y" * 12, False, 0.0)
    with pytest.raises(Refused, match="limit of 1024"):
        made.query("q", b"x" * 1024, 0.0)
    with pytest.raises(Refused, match="limit of 512 bytes"):
        made.set_tags({"x": "y" * 512}, 0.0)
    assert below.updates == 0
    assert made.drain() == []


def test_a_member_fails_is_forced_out_and_pruned() -> None:
    made, below = core()
    join(made, below, "a", "b")
    change(made, "a", Change.SUSPECTED)
    change(made, "a", Change.FAILED)
    made.force_leave("a", True, 1.0)
    kinds = [e.kind for e in made.drain() if isinstance(e, MemberChange)]
    assert kinds == [Kind.SUSPECT, Kind.FAILED, Kind.LEAVE, Kind.REAP]
    assert made.roster.get("a") is None
    assert below.forgotten == ["a"]
    assert decode(made.broadcasts(2, 1400)[0]) == Leave(1, "a", True)


def test_a_leaving_member_is_pruned_later_without_waiting() -> None:
    made, below = core()
    join(made, below, "a")
    made.user_message(encode(Leave(5, "a", True)), 0.0)
    assert made.deadline() == 6.0
    change(made, "a", Change.LEFT, 1.0)
    made.wake(6.0)
    assert [e.kind for e in made.drain() if isinstance(e, MemberChange)] == [Kind.LEAVE, Kind.REAP]


def test_gone_members_are_reaped_after_a_day() -> None:
    made, below = core()
    join(made, below, "failed", "left")
    change(made, "failed", Change.FAILED)
    change(made, "left", Change.LEFT)
    assert (made.roster.failed_count, made.roster.left_count) == (1, 1)
    made.wake(24 * 3600.0)
    assert len(made.roster) == 3
    made.wake(24 * 3600.0 + 16)
    assert len(made.roster) == 1
    assert (made.roster.failed_count, made.roster.left_count) == (0, 0)


def test_a_clock_that_nobody_can_have_is_not_believed() -> None:
    made, _ = core()
    made.user_message(encode(UserEvent((1 << 64) - 1, "x", b"")), 0.0)
    made.user_message(encode(Leave((1 << 64) - 1, "me")), 0.0)
    assert made.event_clock.time == 1
    assert made.clock.time == 1
    assert made.counts["clock_jumps"] == 2


def test_many_intents_about_strangers_do_not_pile_up() -> None:
    made, _ = core()
    source = random.Random(2)
    for ltime in range(10_000):
        made.user_message(encode(Join(ltime, f"{source.random()}")), 0.0)
    assert len(made.intents) <= 4096
    assert made.stats()["members"] == "1"
    made.wake(400.0)


def test_packets_are_filled_within_the_limit_and_each_message_sent_often_enough() -> None:
    made, _ = core()
    for at in range(20):
        made.user_event(f"e{at}", b"x" * 100, False, 0.0)
    sent = 0
    while taken := made.broadcasts(2, 1000):
        assert sum(len(m) + 2 for m in taken) <= 1000
        sent += len(taken)
    assert sent == 20 * 12
