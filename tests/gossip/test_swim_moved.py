"""Nodes that come back at another address: they know where they were before, and nobody has to miss them first."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from gossip.delegate import Address, Change, State
from gossip.snapshot import address_before
from gossip.swim import Swim
from gossip.swim_ports import JUMP_MAX
from gossip.swim_rules import FORMER_S
from gossip.wire import Alive, Dead, alive_of
from tests.sim.gossip.bench import ME, START, Bench
from tests.sim.gossip.cluster import Cluster, Node, Recorder, member

BEFORE = Address("10.1.0.77", 7946)


class Moving(Cluster):
    """Machines that remember where they were."""

    def move(self, node: Node, host: str, incarnation: int | None = None) -> None:
        self.former = node.address
        self.start(node.name, address=Address(host, 7946), incarnation=incarnation)
        del self.former

    def _make(self, node: Node, incarnation: int) -> None:
        super()._make(node, incarnation)
        before = node.swim
        config = replace(before.config, former=getattr(self, "former", None))
        node.swim = Swim(config, node.seen, random.Random(self.random.random()), before._outbox.envelope, self.now)


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("incarnation", [990, 1000, 1001, 1002])  # those of before are at 1000, or a little later
@pytest.mark.parametrize("away_s", [0.2, 1.7, 4.0, 9.0])
def test_those_who_move_all_at_once_find_each_other_through_one_who_stays(
    away_s: float, incarnation: int, loss: float
) -> None:
    """However soon: while they are thought to live, when they are suspected, and when they have failed."""
    cluster = Moving(11, loss=loss)
    nodes = cluster.formed(3)
    nodes[1].swim.update_meta(0.0)
    cluster.run_for(20.0)
    for node in nodes[:2]:
        cluster.kill(node)
    cluster.run_for(away_s)
    for number, node in enumerate(nodes[:2]):
        cluster.move(node, f"10.9.9.{number}", incarnation)
        node.swim.join([nodes[2].address, nodes[1 - number].address], cluster.now)
        cluster.turn(node)

    def there() -> bool:
        known = {one.name: one.address for one in nodes[2].swim.members()}
        return cluster.agree() and known == {node.name: node.address for node in nodes}

    took_s = cluster.until(there, 60.0)
    assert took_s < (2.0 if not loss else 15.0)
    for node in nodes[:2]:
        assert all(existing.name != node.name for existing, _ in node.seen.conflicts), "it fights for its name"


def _moved(*others: str) -> Bench:
    bench = Bench()
    bench.swim = Swim(replace(bench.swim.config, former=BEFORE), bench.seen, random.Random(3), bench.envelope)
    for other in others:
        bench.say(alive_of(member(other)))
    bench.queued()
    return bench


@pytest.mark.parametrize("incarnation", [START - 3, START, START + 3])
@pytest.mark.parametrize("state", [State.ALIVE, State.SUSPECT, State.DEAD])
def test_what_it_was_before_has_left(incarnation: int, state: State) -> None:
    bench = _moved("a")
    bench.push_pull(replace(member("me", incarnation=incarnation), address=BEFORE, state=state))
    me = bench.swim.me
    assert me.incarnation == max(START, incarnation + 1)
    assert sorted(bench.queued(), key=repr) == [alive_of(me), Dead(incarnation, "me", "me")]
    assert bench.seen.conflicts == []
    assert bench.swim.awareness.score == 0, "nobody was wrong about a node that is slow"


def test_others_take_the_name_to_another_address_at_once() -> None:
    bench = Bench(replace(member("a"), address=BEFORE))
    there = Alive(START + 1, "a", ME)
    bench.say(there)
    bench.say(Dead(START, "a", "a"))
    bench.say(there)
    assert bench.member("a").address == ME
    assert bench.seen.of("a") == [Change.LEFT, Change.JOINED]


def test_a_copy_of_a_machine_does_not_take_its_name() -> None:
    """It has the snapshot of the other one, which answers where the copy believes to have been."""
    cluster = Moving(12)
    nodes = cluster.formed(6)
    cluster.run_for(20.0)
    copied, place = nodes[0], nodes[0].address
    copy = Node("n0", Address("10.9.9.9", 7946))
    cluster.nodes["copy"] = cluster.at[copy.address] = copy
    copy.up, copy.seen = True, Recorder()
    cluster.former = place
    cluster._make(copy, 1000)
    copy.swim.start(cluster.now)
    copy.swim.join([nodes[5].address], cluster.now)
    cluster.turn(copy)
    cluster.run_for(20.0)
    assert {existing.name for existing, _ in copy.seen.conflicts} == {"n0"}  # and loses the vote

    def theirs() -> bool:
        known = [node.swim.member("n0") for node in nodes[1:]]
        return all(one is not None and one.address == place and one.state is State.ALIVE for one in known)

    cluster.until(theirs, 15.0)
    assert copied.swim.me.incarnation < 1000 + 20


def test_a_copy_of_this_machine_is_still_a_conflict() -> None:
    """It is there for longer than it takes to tell everybody."""
    bench = _moved("a")
    bench.now = FORMER_S
    bench.say(Alive(START + 1, "me", BEFORE))
    assert [other.address for _, other in bench.seen.conflicts] == [BEFORE]


def test_an_incarnation_out_of_reach_is_not_followed() -> None:
    bench = _moved("a")
    bench.push_pull(replace(member("me", incarnation=START + JUMP_MAX + 1), address=BEFORE, state=State.SUSPECT))
    bench.say(Alive(START + JUMP_MAX + 1, "me", BEFORE))
    assert bench.swim.me.incarnation == START
    assert bench.queued() == []


def test_where_a_node_was_is_in_its_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "gossip"
    assert address_before(path, "h1") is None
    path.write_text("alive: h1 10.0.0.1:7946\nalive: h2 10.0.0.2:7946\nclock: 7\nalive: h1 10.0.0.3:7946\nalive: h1 to")
    assert address_before(path, "h1") == Address("10.0.0.3", 7946)
    assert address_before(path, "h9") is None
    assert address_before(tmp_path, "h1") is None
