"""Whole clusters in virtual time: whatever happens to nodes and links, soon after all views are equal."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.delegate import Address, Change, State
from gossip.keyring import KeyRing
from tests.sim.gossip.cluster import Cluster, Node, alive

KEY, OTHER_KEY = b"k" * 16, b"o" * 32


def _join(cluster: Cluster, node: Node, *to: Node) -> None:
    node.swim.join([other.address for other in to], cluster.now)
    cluster.turn(node)


def _leave(cluster: Cluster, node: Node) -> None:
    node.swim.leave(cluster.now)
    cluster.turn(node)
    cluster.until(lambda: node.swim.left, 5.0)
    cluster.run_for(1.0)
    cluster.kill(node)


def _falsely_failed(cluster: Cluster, since_s: float = 0.0) -> list[tuple[str, str]]:
    running = {node.name for node in cluster.up()}
    return [
        (node.name, name)
        for node in cluster.up()
        for at_s, change, name in node.seen.events
        if change is Change.FAILED and name in running and at_s >= since_s
    ]


def test_nodes_that_start_at_once_find_each_other() -> None:
    cluster = Cluster(1)
    first = cluster.start("first")
    for number in range(30):
        _join(cluster, cluster.start(f"n{number}"), first)
    assert cluster.until(cluster.agree, 5.0) < 2.0


def test_a_seed_that_starts_late_is_found() -> None:
    cluster = Cluster(2)
    late = Node("late", Address("10.8.0.1", 7946))
    early = cluster.start("early")
    _join(cluster, early, late)
    cluster.run_for(60.0)
    cluster.start("late", address=late.address)
    assert cluster.until(cluster.agree, 10.0) < 5.0


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.25])
def test_a_death_is_found_soon_and_nobody_else_dies_of_loss(loss: float) -> None:
    cluster = Cluster(3, loss=loss)
    nodes = cluster.formed(20)
    cluster.run_for(30.0)
    cluster.kill(nodes[7])
    took_s = cluster.until(lambda: all(node.swim.alive_count == 19 for node in cluster.up()), 30.0)
    assert took_s < 13.0
    cluster.run_for(60.0)
    assert _falsely_failed(cluster) == []
    assert all(node.seen.of("n7")[-1] in (Change.FAILED, Change.REAPED) for node in cluster.up())


def test_who_leaves_is_not_said_to_have_failed() -> None:
    cluster = Cluster(4)
    nodes = cluster.formed(15)
    cluster.run_for(2.0)
    _leave(cluster, nodes[3])
    cluster.run_for(20.0)
    assert all(node.seen.of("n3") == [Change.LEFT] for node in cluster.up())


def test_mass_restart_with_low_incarnations_heals() -> None:
    """Started anew as Serf does it, at 1: others remember them dead at a higher one (memberlist's issue 311)."""
    cluster = Cluster(5)
    nodes = cluster.formed(30)
    cluster.run_for(5.0)
    for node in nodes[10:]:
        cluster.kill(node)
    cluster.until(lambda: all(node.swim.alive_count == 10 for node in cluster.up()), 90.0)
    for node in nodes[10:]:
        cluster.start(node.name, incarnation=1)
        _join(cluster, node, nodes[0])
    assert cluster.until(cluster.agree, 10.0) < 6.0


def test_a_restart_within_the_suspicion_is_no_failure() -> None:
    cluster = Cluster(6)
    nodes = cluster.formed(10)
    cluster.run_for(70.0)
    cluster.kill(nodes[4])
    cluster.run_for(2.5)
    cluster.start("n4")
    _join(cluster, nodes[4], nodes[0], nodes[1])
    cluster.until(cluster.agree, 10.0)
    assert all(Change.FAILED not in node.seen.of("n4") for node in cluster.up())


def test_a_node_that_comes_back_at_another_address_is_taken_once_it_is_dead() -> None:
    cluster = Cluster(7)
    nodes = cluster.formed(10)
    cluster.run_for(61.0)
    cluster.kill(nodes[4])
    cluster.start("n4", address=Address("10.9.9.9", 7946))
    _join(cluster, nodes[4], nodes[0])

    def there() -> bool:
        return all((found := node.swim.member("n4")) is not None and found.address.host == "10.9.9.9" for node in nodes)

    assert cluster.until(lambda: cluster.agree() and there(), 60.0) < 30.0


@pytest.mark.parametrize("away_s", [20.0, 400.0, 3 * 24 * 3600.0])
def test_a_partition_heals_however_long_it_was(away_s: float) -> None:
    """Of days, by the seeds; the time in between is skipped (nothing but probes would happen)."""
    cluster = Cluster(8)
    nodes = cluster.formed(12)
    for node in nodes:
        node.swim.join([nodes[0].address, nodes[11].address], cluster.now)
    cluster.run_for(2.0)
    left = {node.name for node in nodes[:6]}
    cluster.cut = lambda a, b: (a.name in left) != (b.name in left)
    cluster.until(lambda: all(node.swim.alive_count == 6 for node in nodes), 60.0)
    if away_s > 1000:
        for node in nodes:
            node.swim._syncer._lost.clear()  # as after a day
        away_s = 60.0
    cluster.run_for(away_s)
    assert cluster.agree(nodes[:6])
    assert cluster.agree(nodes[6:])
    cluster.cut = lambda a, b: False
    assert cluster.until(cluster.agree, 120.0) < 100.0


def test_who_cannot_hear_is_found_dead_by_others_and_kills_nobody() -> None:
    """One whose packets and streams go out, and nothing comes back: its accusations are refuted."""
    cluster = Cluster(9)
    nodes = cluster.formed(15)
    cluster.run_for(2.0)
    cluster.cut = lambda a, b: b is nodes[3] and a is not b
    cluster.run_for(60.0)
    others = [node for node in nodes if node is not nodes[3]]
    assert all(alive(node) >= {n.name for n in others} for node in others)
    assert not [e for e in _falsely_failed(cluster) if e[1] != "n3" and e[0] != "n3"]


def test_a_node_without_a_network_accuses_nobody_by_its_own_errors() -> None:
    cluster = Cluster(10)
    nodes = cluster.formed(10)
    cluster.run_for(2.0)
    cluster.unsendable = lambda a: a is nodes[2]
    cluster.run_for(40.0)
    assert nodes[2].swim.awareness.score == 7
    assert not [e for e in nodes[2].seen.events if e[1] is Change.SUSPECTED]
    cluster.unsendable = lambda a: False
    cluster.until(cluster.agree, 60.0)


@pytest.mark.parametrize(("since_s", "reached"), [(20.0, True), (40.0, False)])
def test_a10_gossip_goes_to_the_dead_for_a_while(since_s: float, reached: bool) -> None:
    cluster = Cluster(11)
    nodes = cluster.formed(5)
    cluster.run_for(1.0)
    cluster.cut = lambda a, b: b is nodes[4]
    cluster.until(lambda: all(n.swim.member("n4").state is State.DEAD for n in nodes[:4]), 40.0)  # type: ignore[union-attr]
    cluster.run_for(since_s)
    cluster.cut = lambda a, b: a is nodes[4]
    for node in nodes[:4]:
        node.swim._syncer._lost.clear()
    before = nodes[4].swim.counts["packets_in"]
    nodes[0].swim.update_meta(cluster.now)
    cluster.run_for(3.0)
    assert (nodes[4].swim.counts["packets_in"] > before) == reached


def test_a15_wrong_keys_keep_out() -> None:
    cluster = Cluster(12, keys=[KEY])
    first = cluster.start("a")
    cluster.keys = [OTHER_KEY]
    stranger = cluster.start("b")
    _join(cluster, stranger, first)
    cluster.run_for(30.0)
    assert (first.swim.alive_count, stranger.swim.alive_count) == (1, 1)
    stranger.swim._outbox.envelope.keys.install(KEY)
    stranger.swim._outbox.envelope.keys.use(KEY)
    cluster.until(cluster.agree, 10.0)


def test_a16_encryption_is_turned_on_in_three_steps_without_losing_anybody() -> None:
    cluster = Cluster(13, keys=[])
    nodes = cluster.formed(6)
    envelopes = [node.swim._outbox.envelope for node in nodes]
    for envelope in envelopes:
        envelope.keys = KeyRing([], random.Random(1).randbytes)
        envelope.encrypt_outgoing = envelope.verify_incoming = False

    def step(change: str) -> None:
        for envelope in envelopes:
            if change == "key":
                envelope.keys.install(KEY)
            else:
                setattr(envelope, change, True)
            cluster.run_for(3.0)
            assert cluster.agree()

    for change in ("key", "encrypt_outgoing", "verify_incoming"):
        step(change)
    assert all(node.seen.events == [] for node in nodes)
    assert not any(node.swim.counts["packets_undecryptable"] for node in nodes)


STEPS = st.lists(
    st.sampled_from(["kill", "leave", "start", "restart", "part", "heal", "wait", "udp", "meta"]), max_size=14
)


@pytest.mark.timeout(400)  # a quarter of a minute where nothing else runs
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30), steps=STEPS, loss=st.sampled_from([0.0, 0.1, 0.25]), count=st.integers(2, 25))
def test_all_views_are_equal_soon_after_any_story(seed: int, steps: list[str], loss: float, count: int) -> None:
    """As A26 for members: nodes die, leave, start anew, links part and heal, without pauses in between."""
    cluster = Cluster(seed, loss=loss)
    story = random.Random(seed)
    nodes = cluster.formed(count)
    seeds = nodes[:2]
    for node in nodes:
        _join(cluster, node, *seeds)
    for step in steps:
        node = story.choice(nodes)
        match step:
            case "kill" if node not in seeds:
                cluster.kill(node)
            case "leave" if node not in seeds and node.up:
                node.swim.leave(cluster.now)
                cluster.turn(node)
                cluster.after(3.0, lambda node=node, life=node.life: cluster.kill(node) if node.life == life else None)  # type: ignore[misc]
            case "restart" | "start" if step == "restart" or not node.up:
                cluster.kill(node)
                cluster.start(node.name)
                _join(cluster, node, *seeds)
            case "part":
                side = {n.name for n in story.sample(nodes, story.randint(1, len(nodes)))}
                cluster.cut = lambda a, b, side=side: (a.name in side) != (b.name in side)  # type: ignore[misc]
            case "udp":
                cluster.cut_udp = lambda a, b, bad=node: bad in (a, b)  # type: ignore[misc]
            case "heal":
                cluster.cut = cluster.cut_udp = lambda a, b: False
            case "meta" if node.up:
                node.seen.meta = b"%d" % story.randrange(100)
                node.swim.update_meta(cluster.now)
            case _:
                pass
        cluster.run_for(story.choice([0.05, 1.0, 7.0, 40.0]))
    cluster.cut = cluster.cut_udp = lambda a, b: False
    cluster.run_for(5.0)
    healed_s = cluster.until(lambda: cluster.agree() and _same_metas(cluster), 240.0, step_s=0.5)
    assert healed_s < 200.0


def _same_metas(cluster: Cluster) -> bool:
    return all(
        (found := node.swim.member(other.name)) is not None and found.meta == other.seen.meta
        for node in cluster.up()
        for other in cluster.up()
    )
