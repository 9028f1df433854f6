"""What becomes of members by what is said of them: acceptance cases A7 to A9 and A11, and the holes that are closed."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gossip.delegate import Address, Change, State
from gossip.swim_ports import INCARNATION_MAX, JUMP_MAX, first_incarnation
from gossip.wire import U32_MAX, Alive, Dead, Message, Suspect, alive_of
from tests.sim.gossip.bench import ME, START, Bench
from tests.sim.gossip.cluster import member

ACCUSER = Address("10.1.0.1", 7946)


@pytest.mark.parametrize(
    "accusation",
    [
        Suspect(START + 5, "me", "a"),
        Dead(START + 5, "me", "a"),
        Dead(START + 5, "me", "me"),  # it has left in an earlier life
        Alive(START + 5, "me", ME, b"another meta"),
    ],
)
def test_a7_this_node_refutes_what_is_said_about_it(accusation: Message) -> None:
    bench = Bench(member("a"))
    sent = bench.say(accusation)
    me = bench.swim.me
    assert me.state is State.ALIVE
    assert me.incarnation == START + 6
    assert bench.queued() == [alive_of(me)]
    assert sent == [(ACCUSER, alive_of(me))]  # and the accuser hears of it at once
    assert bench.swim.awareness.score == 1


def test_a7_altered_meta_of_the_same_incarnation_is_refuted_and_the_same_is_not() -> None:
    bench = Bench()
    bench.say(alive_of(bench.swim.me))
    assert bench.swim.me.incarnation == START
    bench.say(Alive(START, "me", ME, b"meta of an earlier life"))
    assert bench.swim.me.incarnation == START + 1


def test_accusations_of_an_earlier_life_are_answered_but_not_more_than_once_a_second() -> None:
    bench = Bench(member("a"))
    for expected in (1, 0):
        sent = bench.say(Suspect(START - 7, "me", "a"))
        assert [message for _, message in sent] == [alive_of(bench.swim.me)] * expected
    bench.now = 1.5
    assert len(bench.say(Suspect(START - 7, "me", "a"))) == 1
    assert bench.swim.me.incarnation == START
    assert bench.swim.awareness.score == 0


def test_a8_a_replayed_alive_does_not_revive() -> None:
    one = member("a", incarnation=7)
    bench = Bench(one)
    bench.say(Dead(7, "a", "b"))
    bench.say(alive_of(one))
    assert bench.member("a").state is State.DEAD
    bench.say(alive_of(replace(one, incarnation=8)))
    assert bench.member("a").state is State.ALIVE
    assert bench.seen.of("a") == [Change.FAILED, Change.JOINED]


@pytest.mark.parametrize("accusation", [Suspect, Dead])
def test_what_is_stored_follows_higher_accusations_of_the_dead(accusation: type[Suspect] | type[Dead]) -> None:
    """Or an alive message that is older than the accusation would revive it."""
    bench = Bench(member("a", incarnation=5))
    bench.say(Dead(5, "a", "b"))
    bench.say(accusation(9, "a", "b"))
    bench.say(alive_of(member("a", incarnation=7)))
    assert bench.member("a").state is State.DEAD
    assert bench.member("a").incarnation == 9


def test_a_higher_suspicion_of_a_suspect_counts() -> None:
    bench = Bench(member("a", incarnation=5))
    bench.say(Suspect(5, "a", "b"))
    bench.say(Suspect(9, "a", "c"))
    bench.say(alive_of(member("a", incarnation=7)))
    assert bench.member("a").state is State.SUSPECT
    bench.say(alive_of(member("a", incarnation=10)))
    assert bench.seen.of("a") == [Change.SUSPECTED, Change.REFUTED]


def test_a9_who_says_it_of_itself_has_left() -> None:
    bench = Bench(member("a"), member("b"))
    bench.say(Dead(1000, "a", "a"), Dead(1000, "b", "a"))
    assert (bench.member("a").state, bench.member("b").state) == (State.LEFT, State.DEAD)
    assert bench.seen.of("a") == [Change.LEFT]
    assert bench.seen.of("b") == [Change.FAILED]
    assert bench.swim.alive_count == 1


def test_who_left_is_not_turned_into_one_who_failed_and_the_other_way_round_it_is() -> None:
    bench = Bench(member("a"), member("b"))
    bench.say(Dead(1000, "a", "a"), Dead(1001, "a", "b"))
    assert bench.member("a").state is State.LEFT
    bench.say(Dead(1000, "b", "a"))
    bench.swim.forget("b", 1.0)
    assert bench.member("b").state is State.LEFT
    assert Dead(1000, "b", "b") in bench.queued()


def test_a11_a_remote_dead_is_only_suspect_here() -> None:
    bench = Bench(member("a"), member("b"), member("c"))
    bench.push_pull(
        member("a", state=State.DEAD), member("b", state=State.LEFT), member("c", state=State.SUSPECT), member("d")
    )
    states = {name: bench.member(name).state for name in "abcd"}
    assert states == {"a": State.SUSPECT, "b": State.LEFT, "c": State.SUSPECT, "d": State.ALIVE}


def test_a_stale_alive_of_a_dead_member_is_answered_with_the_accusation() -> None:
    """Started anew with a low incarnation, it would stay dead until a push/pull (memberlist's issue 311)."""
    bench = Bench(member("a", incarnation=5000), start=True)
    bench.say(Dead(5000, "a", "b"))
    bench.pass_time(1.0)
    bench.queued()
    back = member("a", 9999, incarnation=1)
    for expected in (1, 0, 1):
        bench.say(alive_of(back))
        sent = [(to, m) for to, m in bench.pass_time(0.6) if isinstance(m, Dead) and to == back.address]
        assert sent == [(back.address, Dead(5000, "a", "me"))] * expected
    bench.say(alive_of(replace(back, incarnation=5001)))
    assert bench.member("a").address == back.address


def test_many_accusations_are_paced() -> None:
    members = [member(f"n{number}", number + 1) for number in range(200)]
    bench = Bench(*members, start=True)
    for one in members:
        bench.say(Dead(1000, one.name, "me"))
    bench.queued()
    for one in members:
        bench.say(alive_of(replace(one, incarnation=1)))
    sent = []
    for _ in range(5):
        sent.append(len([m for _, m in bench.pass_time(0.2) if isinstance(m, Dead)]))
        bench.queued()
    assert max(sent) == 50
    assert sum(sent) == 200


def test_a_name_at_another_address_is_a_conflict_while_it_lives() -> None:
    bench = Bench(member("a", 8000))
    bench.say(alive_of(member("a", 9000, incarnation=2000)))
    assert bench.member("a").address.port == 8000
    assert [existing.address.port for existing, _ in bench.seen.conflicts] == [8000]
    bench.say(Alive(START + 1, "me", Address("10.9.9.9", 1)))
    assert bench.seen.conflicts[1][0].name == "me"
    bench.say(Alive(START - 1, "me", Address("10.9.9.9", 1)))  # what this node was before
    assert len(bench.seen.conflicts) == 2


def test_incarnations_cannot_be_pushed_to_their_end() -> None:
    bench = Bench(member("a"))
    for message in (
        alive_of(member("a", incarnation=START + JUMP_MAX + 1)),
        alive_of(member("new", incarnation=INCARNATION_MAX // 2 + 1)),
        Suspect(START + JUMP_MAX + 1, "a", "b"),
        Dead(U32_MAX, "a", "b"),
        Dead(U32_MAX, "me", "b"),
        Suspect(START + JUMP_MAX + 1, "me", "b"),
    ):
        bench.say(message)
    assert bench.swim.counts["implausible"] == 6
    assert bench.member("a") == member("a")
    assert bench.swim.me.incarnation == START
    bench.say(alive_of(member("a", incarnation=START + JUMP_MAX)))
    assert bench.member("a").incarnation == START + JUMP_MAX


def test_a_member_of_low_incarnation_may_be_replaced_by_one_with_a_clock() -> None:
    bench = Bench(member("a", incarnation=3))
    bench.say(alive_of(member("a", incarnation=START + JUMP_MAX)))
    assert bench.member("a").incarnation == START + JUMP_MAX


def test_first_incarnations_are_minutes_of_this_era() -> None:
    assert first_incarnation(0) == 1
    assert first_incarnation(1767225600 + 3600) == 60
    assert first_incarnation(1e12) < INCARNATION_MAX


def test_a_leaving_node_does_not_refute_and_is_done_once_it_is_told() -> None:
    bench = Bench(member("a"), start=True)
    bench.swim.leave(0.0)
    assert not bench.swim.left
    bench.say(Suspect(START + 3, "me", "a"), Dead(START, "me", "me"), Alive(START + 9, "me", ME, b"other"))
    assert bench.swim.me.state is State.LEFT
    sent = [message for _, message in bench.pass_time(4.0)]
    assert Dead(START, "me", "me") in sent
    assert bench.swim.left


def test_leaving_alone_is_done_at_once() -> None:
    bench = Bench()
    bench.swim.leave(0.0)
    assert bench.swim.left


def test_changes_of_meta_are_told() -> None:
    bench = Bench(member("a"))
    bench.say(alive_of(member("a", incarnation=1001, meta=b"new")))
    assert bench.seen.of("a") == [Change.UPDATED]
    bench.say(alive_of(member("a", incarnation=1002, meta=b"new")))
    assert bench.seen.of("a") == [Change.UPDATED]
    bench.seen.meta = b"mine"
    bench.queued()
    bench.swim.update_meta(1.0)
    assert bench.queued() == [Alive(START + 1, "me", ME, b"mine")]


def test_a_meta_that_is_too_long_is_refused() -> None:
    bench = Bench()
    bench.seen.meta = bytes(513)
    with pytest.raises(ValueError, match="512"):
        bench.swim.update_meta(1.0)


def test_what_is_unknown_is_not_accused_and_wrong_versions_are_not_admitted() -> None:
    bench = Bench()
    bench.say(Suspect(5, "x", "a"), Dead(5, "x", "a"), Alive(5, "y", ACCUSER, b"", bytes(6)))
    assert [one.name for one in bench.swim.members()] == ["me"]
    assert bench.seen.events == []
