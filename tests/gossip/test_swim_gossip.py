"""When news is told: at once when it is new, never when there is none, and to all soon even where packets are lost."""

from __future__ import annotations

import math
import statistics

import pytest

from gossip.broadcasts import Broadcasts
from gossip.profile import LAN
from gossip.wire import Ack, Alive, Ping
from tests.sim.gossip.bench import Bench
from tests.sim.gossip.cluster import Cluster, member
from tests.sim.gossip.run import Teller

A, B, C, D = (member(name, 8000 + at) for at, name in enumerate("abcd"))


def _telling(nodes: int, loss: float, seed: int = 1) -> tuple[Cluster, list[Teller]]:
    """A cluster whose members pass messages on, at rest."""
    cluster = Cluster(seed, loss=loss)
    tellers: list[Teller] = []
    for node in cluster.formed(nodes, Teller):
        assert isinstance(node.seen, Teller)
        node.seen.node = node
        node.swim._outbox.broadcasts.clear()
        tellers.append(node.seen)
    cluster.run_for(2.0)
    return cluster, tellers


def _tell(cluster: Cluster, teller: Teller, message: bytes) -> float:
    teller.user_message(message, cluster.now)
    assert teller.node is not None
    cluster.turn(teller.node)
    return cluster.now


def test_a_message_is_fresh_until_it_was_sent_once() -> None:
    queue = Broadcasts()
    assert not queue.fresh
    queue.queue(b"one", "a")
    assert queue.fresh
    queue.take(2, 100, 3)
    assert not queue.fresh
    assert len(queue) == 1
    queue.queue(b"two", "b")
    assert queue.fresh
    queue.forget("b")
    assert not queue.fresh


def test_who_has_nothing_to_tell_does_not_wake_up_to_gossip() -> None:
    bench = Bench(A, B, C, D)
    assert bench.swim.deadline() == math.inf
    bench = Bench(A, B, C, D, start=True)
    woken = 0
    while bench.now < 10.0:
        bench.pass_time(bench.swim.deadline() - bench.now)
        woken += 1
        current = bench.swim._prober._current
        if current is not None:
            bench.say(Ack(current.seq))
    # Two probes a second, a push/pull and a look for seeds; gossip alone would be five a second.
    assert woken < 25


def test_who_is_alone_is_in_no_hurry_to_tell() -> None:
    bench = Bench(start=True)
    bench.swim.update_meta(bench.now)
    woken = 0
    while bench.now < 10.0:
        bench.pass_time(max(0.0, bench.swim.deadline() - bench.now))
        woken += 1
    assert woken <= 10.0 / LAN.gossip_interval_s + 10.0 / LAN.probe_period_s + 10
    bench.say(Alive(7, A.name, A.address))
    assert any(isinstance(message, Alive) and to == A.address for to, message in bench.pass_time(0.5))


def test_news_is_told_at_once_but_not_more_often_than_that() -> None:
    cluster, tellers = _telling(8, 0.0)
    packets = cluster.counts["packets"]
    told_s = _tell(cluster, tellers[0], b"first")
    cluster.run_for(0.02)
    assert sum(b"first" in teller.heard for teller in tellers) == 8
    assert all(teller.heard[b"first"] - told_s < 0.02 for teller in tellers)
    assert cluster.counts["packets"] - packets <= 8 * LAN.gossip_nodes + 2
    for number in range(20):  # within one interval: one turn for all of them
        _tell(cluster, tellers[0], b"%d" % number)
        cluster.run_for(0.001)
    assert cluster.counts["packets"] - packets <= 8 * LAN.gossip_nodes + 4
    cluster.run_for(LAN.gossip_interval_s)
    assert all(b"%d" % number in teller.heard for teller in tellers for number in range(20))


@pytest.mark.parametrize(("nodes", "loss"), [(9, 0.25), (20, 0.25)])
def test_a_message_reaches_all_within_a_second_though_packets_are_lost(nodes: int, loss: float) -> None:
    cluster, tellers = _telling(nodes, loss)
    for number in range(40):
        message = b"%d" % number
        told_s = _tell(cluster, tellers[number % nodes], message)
        cluster.run_for(2.0)
        assert all(message in teller.heard for teller in tellers), f"message {number}"
        assert max(teller.heard[message] for teller in tellers) - told_s < 1.0


@pytest.mark.parametrize(("loss", "least", "most"), [(0.0, 12, 12), (0.1, 13, 14), (0.25, 15, 17), (1.0, 24, 24)])
def test_each_message_is_sent_more_often_where_more_packets_are_lost(loss: float, least: int, most: int) -> None:
    cluster, _ = _telling(10, loss)
    cluster.run_for(60.0)
    sends = [node.swim.retransmits for node in cluster.up()]
    assert least <= statistics.mean(sends) <= most
    assert max(sends) <= 24


def test_who_is_dead_is_no_sign_of_loss() -> None:
    cluster, tellers = _telling(10, 0.0)
    for teller in tellers[:4]:
        assert teller.node is not None
        cluster.kill(teller.node)
    cluster.run_for(60.0)
    assert all(node.swim.retransmits == 12 for node in cluster.up())


def test_a_ping_that_is_lost_is_sent_again_before_others_are_troubled() -> None:
    bench = Bench(A, B, C, D, start=True)
    while not (sent := [(to, m) for to, m in bench.pass_time(0.05) if isinstance(m, Ping)]):
        pass
    ((to, first),) = sent
    again = [(there, m) for there, m in bench.pass_time(LAN.probe_timeout_s - 0.06)]
    assert [there for there, _ in again] == [to, to]
    assert all(isinstance(m, Ping) and m.node == first.node and m.seq != first.seq for _, m in again)
    second = again[0][1]
    assert isinstance(second, Ping)
    bench.say(Ack(second.seq, b"place"))
    assert bench.swim.counts["probes_by_detour"] == 0
    # The round trip is counted from the ping that was answered
    ((name, rtt_s),) = bench.seen.pings
    assert name == first.node
    assert rtt_s < LAN.probe_timeout_s * 2 / 3
    assert not bench.streams
