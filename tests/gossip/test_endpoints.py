"""Endpoint state among nodes: over a network that loses, doubles and reorders, all come to know the newest."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.endpoints import (
    DIGEST_INTERVAL_S,
    HIDDEN_FOR_S,
    MESSAGE_MAX,
    TASKS_MAX,
    EndpointError,
    EndpointTable,
    Health,
    TaskState,
    task_key,
)

STEP_S = 0.1
UP = TaskState()
DOWN = TaskState(Health.UNHEALTHY, 0)


@dataclass
class Net:
    """Tables in virtual time. `cut` are pairs that cannot speak."""

    seed: int
    loss: float = 0.0
    now: float = 0.0
    tables: dict[str, EndpointTable] = field(default_factory=dict)
    cut: set[frozenset[str]] = field(default_factory=set)
    sent: int = 0

    def __post_init__(self) -> None:
        self.source = random.Random(self.seed)
        self.flying: list[tuple[float, str, bytes]] = []

    def start(self, name: str, epoch: int = 1) -> EndpointTable:
        self.tables[name] = EndpointTable(name, epoch, random.Random(self.source.random()), self.now)
        self.meet()
        return self.tables[name]

    def stop(self, name: str) -> None:
        del self.tables[name]
        self.meet()

    def meet(self) -> None:
        for name, table in self.tables.items():
            table.set_peers([n for n in self.tables if frozenset((n, name)) not in self.cut], self.now)

    def part(self, some: set[str]) -> None:
        self.cut = {frozenset((a, b)) for a in some for b in set(self.tables) - some}
        self.meet()

    def heal(self) -> None:
        self.cut = set()
        self.meet()

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_S
            for name, table in self.tables.items():
                if table.deadline() <= self.now:
                    table.wake(self.now)
                self._send(name, table)
            due = [f for f in self.flying if f[0] <= self.now]
            self.flying = [f for f in self.flying if f[0] > self.now]
            self.source.shuffle(due)
            for _, to, message in due:
                if to in self.tables:
                    self.tables[to].receive(message, self.now)

    def _send(self, name: str, table: EndpointTable) -> None:
        for send in table.drain()[0]:
            assert len(send.message) <= MESSAGE_MAX
            assert send.to != name
            self.sent += 1
            if frozenset((name, send.to)) in self.cut or self.source.random() < self.loss:
                continue
            for _ in range(1 + (self.source.random() < 0.1)):
                self.flying.append((self.now + self.source.random(), send.to, send.message))

    def equal(self) -> bool:
        views = [{n: (s.number, s.tasks) for n, s in t.visible().items()} for t in self.tables.values()]
        return all(view == views[0] for view in views) and set(views[0]) == set(self.tables)


def tasks(*ids: object, state: TaskState = UP) -> dict[str, TaskState]:
    return {str(i): state for i in ids}


def test_a_change_reaches_all_at_once_and_by_little() -> None:
    net = Net(1)
    for n in range(10):
        net.start(f"n{n}")
    net.run(25)
    net.sent = 0
    assert net.tables["n0"].set_local(tasks(1, 2))
    net.run(3)
    assert net.equal()
    assert net.tables["n9"].get("n0").state_of("1") == TaskState()  # type: ignore[union-attr]
    assert net.sent < 10 * 14 + 60


def test_what_did_not_change_is_no_news() -> None:
    table = EndpointTable("a", 1, random.Random(1), 0.0)
    assert table.set_local(tasks(1))
    assert not table.set_local(tasks(1))
    assert table.get("a").number == (1, 1)  # type: ignore[union-attr]
    with pytest.raises(EndpointError, match=f"at most {TASKS_MAX}"):
        table.set_local(tasks(*range(TASKS_MAX + 1)))


def test_absence_means_gone_and_a_delta_says_so() -> None:
    net = Net(2)
    a, b = net.start("a"), net.start("b")
    a.set_local(tasks(*range(50)))
    net.run(3)
    a.set_local(tasks(*range(1, 50)) | tasks(7, state=DOWN))
    net.run(3)
    seen = b.get("a")
    assert seen is not None
    assert seen.state_of("0") is None
    assert seen.state_of("7") == DOWN
    assert len(seen.tasks) == 49


def test_a_snapshot_of_many_parts_arrives_whole() -> None:
    net = Net(3, loss=0.05)
    a, b = net.start("a"), net.start("b")
    a.set_local(tasks(*range(1500)))
    net.run(90)
    assert len(b.get("a").tasks) == 1500  # type: ignore[union-attr]


def test_two_who_know_the_same_hardly_speak() -> None:
    net = Net(4)
    net.start("a").set_local(tasks(1))
    net.start("b").set_local(tasks(2))
    net.run(30)
    net.sent = 0
    net.run(10 * DIGEST_INTERVAL_S)
    assert net.sent <= 44, "each asks ten times, and is told that nothing differs"


@pytest.mark.parametrize("seed", range(20))
def test_what_was_told_to_nobody_is_found_in_spite_of_losses(seed: int) -> None:
    net = Net(seed, loss=0.25)
    a, b = net.start("a"), net.start("b")
    net.run(20)
    a.set_local(tasks(1))
    a._pushes.clear()
    net.run(3 * DIGEST_INTERVAL_S)  # without repeating what was not answered it took up to 56 s
    assert b.get("a").tasks.keys() == {task_key("1")}  # type: ignore[union-attr]


def test_who_does_not_answer_is_not_asked_for_ever() -> None:
    net = Net(1, loss=1.0)
    net.start("a")
    net.start("b")
    net.run(1)
    net.sent = 0
    net.run(160)
    assert 60 <= net.sent <= 88, "four times in 16 s each"


def test_a_node_that_restarts_replaces_what_it_said_before() -> None:
    net = Net(5)
    b = net.start("b")
    for _ in range(1):
        net.start("a", epoch=10).set_local(tasks(1, 2, 3))
    net.run(3)
    net.stop("a")
    assert b.get("a") is None, "hidden while it is not there"
    net.run(1)
    net.start("a", epoch=11).set_local(tasks(4))
    net.run(3)
    assert b.get("a").tasks.keys() == {task_key("4")}  # type: ignore[union-attr]


def test_a_node_whose_clock_went_back_goes_past_what_others_remember() -> None:
    net = Net(6)
    net.start("b")
    net.start("a", epoch=100).set_local(tasks(1))
    net.run(3)
    net.stop("a")
    net.run(1)
    net.start("a", epoch=50).set_local(tasks(2))
    net.run(30)
    seen = net.tables["b"].get("a")
    assert seen is not None
    assert seen.number == (101, 1)
    assert seen.tasks.keys() == {task_key("2")}


def test_a27_a_late_joiner_learns_of_an_owner_that_left_and_came_back() -> None:
    net = Net(7)
    net.start("a").set_local(tasks(1))
    net.start("b")
    net.run(2)
    net.stop("a")
    net.run(2)
    net.start("a", epoch=2).set_local(tasks(1, 2))
    net.run(2)
    late = net.start("late")
    net.run(DIGEST_INTERVAL_S * 3)
    assert len(late.get("a").tasks) == 2  # type: ignore[union-attr]


def test_a28_a_failed_owner_is_hidden_remembered_and_forgotten() -> None:
    net = Net(8)
    a, b = net.start("a"), net.start("b")
    a.set_local(tasks(1))
    net.run(3)
    before = b.get("a")
    stale = [m.message for m in _all_messages(a)]
    net.stop("a")
    assert b.get("a") is None
    for message in stale:  # relayed by others, long after
        b.receive(message, net.now)
    assert b.get("a") is None
    b.set_peers(["a"], net.now)
    assert b.get("a") == before, "there at once when it comes back unchanged"
    b.set_peers([], net.now)
    net.run(HIDDEN_FOR_S + 2 * DIGEST_INTERVAL_S)
    assert b.stats()["owners"] == 1


def _all_messages(table: EndpointTable) -> list[object]:  # type: ignore[type-arg]
    table.drain()
    table.receive(bytes((0xE2,)) + b"\x01b" + b"\x01a", 0.0)
    return list(table.drain()[0])


@pytest.mark.parametrize("number", [(1 << 63, 1), (1, 1 << 63)])
def test_numbers_that_nobody_could_pass_are_refused(number: tuple[int, int]) -> None:
    liar = EndpointTable("a", number[0], random.Random(1), 0.0)
    liar.set_peers(["b"], 0.0)
    liar._advance(*number, {})
    b = EndpointTable("b", 1, random.Random(1), 0.0)
    for message in _all_messages(liar):
        b.receive(message.message, 0.0)  # type: ignore[attr-defined]
    assert b.stats()["owners"] == 1
    assert b.counts["bad_messages"] == 1


def test_a_large_table_is_learnt_in_a_few_rounds() -> None:
    """500 owners: the numbers of one digest take many packets, of which each side answers a bounded part."""
    full, fresh = (EndpointTable(n, 1, random.Random(n), 0.0) for n in ("full", "fresh"))
    full.set_peers(["fresh"], 0.0)
    fresh.set_peers(["full"], 0.0)
    for n in range(500):
        owner = EndpointTable(f"o{n}", 1, random.Random(n), 0.0)
        owner.set_peers(["b"], 0.0)
        owner.set_local(tasks(*range(42)))
        for message in owner_messages(owner, f"o{n}"):
            full.receive(message, 0.0)
    tables = {"full": full, "fresh": fresh}
    rounds = 0
    while fresh.stats()["owners"] < 502 and rounds < 100:
        rounds += 1
        fresh.wake(rounds * DIGEST_INTERVAL_S)
        for _ in range(4):
            for name, table in tables.items():
                for send in table.drain()[0]:
                    tables[send.to].receive(send.message, rounds * DIGEST_INTERVAL_S)
                assert name
    assert rounds < 60, rounds


def owner_messages(owner: EndpointTable, name: str) -> list[bytes]:
    owner.drain()
    encoded = name.encode()
    owner.receive(bytes((0xE2,)) + b"\x01b" + bytes((len(encoded),)) + encoded, 0.0)
    return [send.message for send in owner.drain()[0]]


@given(st.binary(max_size=200), st.integers(0xE0, 0xE5))
@settings(max_examples=100, deadline=None)
def test_junk_is_counted_and_changes_nothing(data: bytes, kind: int) -> None:
    table = EndpointTable("a", 1, random.Random(1), 0.0)
    table.set_peers(["b"], 0.0)
    table.receive(bytes((kind,)) + data, 0.0)
    assert table.get("a").number == (1, 0)  # type: ignore[union-attr]
    assert len(table.drain()[0]) <= 20


@given(st.integers(0, 1 << 32), st.integers(2, 25), st.sampled_from((0.0, 0.1, 0.3)))
@settings(max_examples=25, deadline=None)
def test_a26_all_views_become_equal_whatever_happens(seed: int, nodes: int, loss: float) -> None:
    net = Net(seed, loss=loss)
    source, boots = random.Random(seed), 1
    for n in range(nodes):
        net.start(f"n{n}")
    for _ in range(25):
        name = f"n{source.randrange(nodes)}"
        match source.randrange(6):
            case 0 if name in net.tables and len(net.tables) > 1:
                net.stop(name)
            case 1 if name not in net.tables:
                boots += 1
                net.start(name, epoch=boots)
            case 2:
                net.part({n for n in net.tables if source.random() < 0.5})
            case 3:
                net.heal()
            case _ if name in net.tables:
                chosen = source.sample(range(60), source.randrange(40))
                net.tables[name].set_local(tasks(*chosen, state=TaskState(Health.READY, source.randrange(100))))
        net.run(source.random() * 3)
    net.heal()
    waited = 0
    while not net.equal() and waited < 40:
        net.run(5)
        waited += 1
    assert net.equal(), f"{waited * 5} s after the last change"
