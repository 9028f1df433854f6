"""The table: order of probes, choice at random, what is forgotten, and encoded entries."""

from __future__ import annotations

import random

from msgspec.structs import replace

from gossip.delegate import Address, Member, State
from gossip.members import EncodedMembers, Members
from gossip.wire import encode_node_state
from tests.sim.gossip.cluster import member


def _table(count: int) -> Members:
    table = Members(member("me"), random.Random(1))
    for number in range(count):
        table.put(member(f"n{number}", 8000 + number))
    return table


def _never(gone: Member) -> bool:
    return False


def _any(one: Member) -> bool:
    return True


def test_each_round_probes_everybody_once_in_another_order() -> None:
    table = _table(20)
    rounds = []
    for _ in range(3):
        names = [probed.name for _ in range(20) if (probed := table.next_probe(_never)[0]) is not None]
        assert sorted(names) == sorted(f"n{number}" for number in range(20))
        rounds.append(names)
    assert rounds[1] != rounds[2]


def test_nobody_to_probe_alone_or_among_the_dead() -> None:
    table = _table(0)
    assert table.next_probe(_any) == (None, [])
    table.put(member("dead", state=State.DEAD))
    assert table.next_probe(_never) == (None, [])


def test_the_dead_are_forgotten_when_a_round_ends_and_only_they() -> None:
    table = _table(3)
    table.put(member("old", state=State.DEAD))
    table.put(member("gone", state=State.LEFT))
    forgotten: list[str] = []
    for _ in range(8):
        forgotten += [reaped.name for reaped in table.next_probe(lambda m: m.name == "old")[1]]
    assert forgotten == ["old"]
    assert table.get("old") is None
    assert table.get("gone") is not None
    assert table.alive_count == 4


def test_counts_follow_states() -> None:
    table = _table(2)
    one = member("n0", 8000)
    for state, count in ((State.SUSPECT, 3), (State.DEAD, 2), (State.LEFT, 2), (State.ALIVE, 3)):
        table.put(replace(one, state=state))
        assert table.alive_count == count
    table.put(replace(table.me, state=State.LEFT))
    assert table.alive_count == 2


def test_choosing_finds_the_only_one_that_fits_and_never_this_node() -> None:
    for count in (5, 500):
        table = _table(count)
        assert [found.name for found in table.some(3, lambda m: m.name == "n3")] == ["n3"]
        chosen = table.some(3, _any)
        assert len({one.name for one in chosen}) == 3
        assert all("me" not in {one.name for one in table.some(3, _any)} for _ in range(50))


def test_choosing_is_fair() -> None:
    for count in (10, 200):
        table = _table(count)
        chosen = [one.name for _ in range(50 * count) for one in table.some(1, _any)]
        often = [chosen.count(f"n{number}") for number in range(count)]
        assert min(often) > 20
        assert max(often) < 100


def test_entries_are_encoded_once_and_follow_changes() -> None:
    shared = EncodedMembers()
    table = Members(member("me"), random.Random(1), shared)
    one = member("n", meta=b"old")
    table.put(one)
    first = table.encoded()
    assert first[1] is table.encoded()[1]
    table.put(replace(one, meta=b"new"))
    assert table.encoded() == [encode_node_state(member("me")), encode_node_state(replace(one, meta=b"new"))]


def test_who_answers_at_an_address() -> None:
    table = _table(1)
    table.put(member("dead", 9000, state=State.DEAD))
    assert table.answers_at(Address("10.1.0.1", 8000))
    assert not table.answers_at(Address("10.1.0.1", 9000))


def test_who_is_told_is_somebody_told_long_ago() -> None:
    for count in (3, 8, 19, 40, 200):
        table = _table(count)
        told = [one.name for _ in range(100) for one in table.in_turn(3, _any)]
        assert len(told) == 300
        last: dict[str, int] = {}
        for at, name in enumerate(told):
            assert at - last.get(name, -count) > count // 2, f"{name} again among {count} at {at}"
            last[name] = at


def test_who_is_told_fits_and_all_who_fit_are_found() -> None:
    table = _table(300)
    fitting = {"n7", "n250"}
    for _ in range(50):
        assert {one.name for one in table.in_turn(3, lambda m: m.name in fitting)} == fitting
    assert table.in_turn(3, _never) == []
    assert _table(0).in_turn(3, _any) == []
