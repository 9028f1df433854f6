"""Probing: acceptance cases A1 to A4, A6, local errors, and links that only detours lead over."""

from __future__ import annotations

import random

from msgspec.structs import replace

from gossip.delegate import Address, Change, Member, State
from gossip.profile import LAN
from gossip.stream import PushPull, UserStream
from gossip.swim_links import Links
from gossip.swim_ports import OpenStream, StreamFailure
from gossip.wire import Ack, Alive, IndirectPing, Message, Nack, Ping, Suspect
from tests.sim.gossip.bench import ME, START, Bench
from tests.sim.gossip.cluster import Cluster, member
from tests.sim.gossip.run import Teller

A, B, C, D = (member(name, 8000 + at) for at, name in enumerate("abcd"))
FROM = Address("10.7.7.7", 7)


def _of(kind: type, sent: list[tuple[Address, Message]]) -> list[tuple[Address, Message]]:
    return [(to, message) for to, message in sent if isinstance(message, kind)]


def _probing(*members: Member) -> tuple[Bench, Ping, Member]:
    """A core that has just begun a probe: its ping, and of whom."""
    bench = Bench(*members, start=True)
    while True:
        if pings := _of(Ping, bench.pass_time(0.05)):
            (_, ping), *_ = pings
            assert isinstance(ping, Ping)
            bench.now = bench.swim._prober._current.began_s  # type: ignore[union-attr]
            return bench, ping, bench.member(ping.node)


def test_a1_a_ping_for_another_name_is_not_answered() -> None:
    bench = Bench()
    assert bench.say(Ping(7, "somebody else", FROM, "a")) == []
    assert bench.say(Ping(7, "me", FROM, "a")) == [(FROM, Ack(7, b"payload"))]
    assert bench.say(Ping(8, "me"), source=B.address) == [(B.address, Ack(8, b"payload"))]
    assert bench.swim.counts["pings_astray"] == 1


def test_a2_an_indirect_ping_is_answered_with_the_number_of_who_asked() -> None:
    bench = Bench()
    sent = bench.say(IndirectPing(77, B.address, "b", True, FROM, "a"), source=C.address)
    ((to, ping),) = sent
    assert to == B.address
    assert isinstance(ping, Ping)
    assert (ping.node, ping.source, ping.source_node) == ("b", ME, "me")
    assert bench.say(Ack(ping.seq), source=B.address) == [(FROM, Ack(77))]
    assert bench.pass_time(2.0) == []  # and no nack follows


def test_a2_an_indirect_ping_without_an_answer_is_denied_if_that_is_wanted() -> None:
    for wanted in (True, False):
        bench = Bench()
        ((_, ping),) = bench.say(IndirectPing(77, B.address, "b", wanted, FROM, "a"))
        assert bench.pass_time(0.49) == []
        assert bench.pass_time(0.02) == [(FROM, Nack(77))] * wanted
        assert isinstance(ping, Ping)
        assert bench.say(Ack(ping.seq)) == []  # too late


def test_relays_are_bounded() -> None:
    bench = Bench()
    for number in range(2000):
        bench.say(IndirectPing(number, B.address, "b", True, FROM, "a"))
    assert bench.swim.counts["relays_refused"] == 2000 - 1024
    bench.pass_time(1.0)
    assert len(bench.say(IndirectPing(1, B.address, "b", True, FROM, "a"))) == 1


def test_a_good_probe_lowers_the_score_and_brings_the_payload() -> None:
    bench, ping, target = _probing(A)
    bench.swim.awareness.apply(2)
    bench.now += 0.1
    bench.say(Ack(ping.seq, b"coordinate"), source=target.address)
    assert bench.swim.awareness.score == 1
    assert [(name, round(rtt, 3)) for name, rtt in bench.seen.pings] == [("a", 0.1)]
    assert _of(Ping, bench.pass_time(0.35)) == []
    assert len(_of(Ping, bench.pass_time(0.1))) == 1  # the next one, half an interval after the last began


def test_a3_tcp_alone_keeps_a_member_alive() -> None:
    bench, ping, target = _probing(A, B, C, D)
    sent = bench.pass_time(0.51)
    helpers = _of(IndirectPing, sent)
    assert len(helpers) == LAN.indirect_checks
    assert all(isinstance(m, IndirectPing) and m.nack and m.seq == ping.seq for _, m in helpers)
    assert target.address not in [to for to, _ in helpers]
    (stream,) = bench.streams
    assert (stream.to, bench.read(stream)) == (target.address, ping)
    assert stream.timeout_s <= 0.5
    bench.swim.finish_stream(stream.token, Ack(ping.seq), None, bench.now)
    bench.pass_time(1.0)
    assert bench.member(target.name).state is State.ALIVE
    assert bench.swim.awareness.score == 0
    assert bench.swim.counts["probes_by_detour"] == 1


def test_a_stream_that_answers_something_else_is_no_sign_of_life() -> None:
    bench, ping, target = _probing(A, B, C, D)
    bench.pass_time(0.51)
    (stream,) = bench.streams
    bench.swim.finish_stream(stream.token, Ack(ping.seq + 1), None, bench.now)
    bench.pass_time(0.6)
    assert bench.member(target.name).state is State.SUSPECT


def test_a4_missing_nacks_raise_the_score_and_nacks_do_not() -> None:
    for nacks in range(4):
        bench, ping, target = _probing(A, B, C, D)
        bench.pass_time(0.51)
        for _ in range(nacks):
            bench.say(Nack(ping.seq))
        bench.pass_time(0.5)
        assert bench.member(target.name).state is State.SUSPECT
        assert bench.swim.awareness.score == 3 - nacks


def test_a4_with_nobody_to_deny_it_a_failed_probe_raises_the_score_by_one() -> None:
    bench, _, target = _probing(A)
    bench.pass_time(1.1)
    assert bench.member(target.name).state is State.SUSPECT
    assert bench.swim.awareness.score == 1


def test_a_bad_score_gives_others_more_time() -> None:
    bench = Bench(A, start=True)
    bench.swim.awareness.apply(2)
    bench.pass_time(2.0)
    assert bench.member("a").state is State.ALIVE
    bench.pass_time(2.1)
    assert bench.member("a").state is State.SUSPECT


def test_a6_the_ping_of_a_suspect_brings_the_accusation() -> None:
    bench = Bench(A, start=True)
    bench.say(Suspect(1000, "a", "b"))
    bench.queued()
    sent = bench.pass_time(1.1)
    assert [m for to, m in sent if to == A.address][:2][1] == Suspect(1000, "a", "me")
    # and the other side: it refutes in the answer to that very packet
    accused = Bench(B)
    answer = accused.say(Ping(1, "me", FROM, "b"), Suspect(START, "me", "b"), source=FROM)
    assert [m for to, m in answer if to == FROM and isinstance(m, Alive) and m.incarnation == START + 1]


def test_a_suspect_that_udp_does_not_reach_hears_of_it_by_push_pull() -> None:
    bench = Bench(A, start=True)
    bench.say(Suspect(1000, "a", "b"))
    streams: list[OpenStream] = []
    while not streams:
        bench.pass_time(0.1)
        streams = bench.streams
    said = bench.read(streams[0])
    assert isinstance(said, PushPull)
    assert {node.name: node.state for node in said.nodes} == {"me": State.ALIVE, "a": State.SUSPECT}
    answer = PushPull(False, [replace(A, incarnation=1001)], b"")
    bench.swim.finish_stream(streams[0].token, answer, None, bench.now)
    assert bench.seen.of("a") == [Change.SUSPECTED, Change.REFUTED]
    bench.pass_time(0.6)
    assert bench.member("a").state is State.ALIVE


def test_what_this_node_could_not_send_is_no_sign_of_death() -> None:
    bench, _, target = _probing(A, B, C, D)
    bench.swim.send_failed(target.address, bench.now)
    for to, message in bench.pass_time(0.51):
        if isinstance(message, IndirectPing | Ping):
            bench.swim.send_failed(to, bench.now)
    bench.swim.finish_stream(bench.streams[0].token, None, StreamFailure.LOCAL, bench.now)
    bench.pass_time(0.5)
    assert bench.member(target.name).state is State.ALIVE
    assert bench.swim.awareness.score == 1
    assert bench.swim.counts["probes_unsent"] == 1


def test_a_process_that_stood_still_blames_itself() -> None:
    bench, _, target = _probing(A, B, C, D)
    bench.pass_time(0.51)
    bench.now += 5.0
    bench.swim.wake(bench.now)
    assert bench.member(target.name).state is State.ALIVE
    assert bench.swim.awareness.score == 1
    assert bench.swim.counts["probes_late"] == 1


def test_if_only_the_target_cannot_be_sent_to_the_helpers_decide() -> None:
    bench, _, target = _probing(A, B, C, D)
    bench.swim.send_failed(target.address, bench.now)
    bench.pass_time(1.1)
    assert bench.member(target.name).state is State.SUSPECT


def test_an_answer_through_a_helper_is_a_detour_and_a_later_one_of_its_own_is_not() -> None:
    for own in (False, True):
        bench, ping, target = _probing(A, B, C, D)
        helper = next(to for to, m in bench.pass_time(0.51) if isinstance(m, IndirectPing))
        bench.say(Ack(ping.seq), source=helper)
        if own:
            bench.say(Ack(ping.seq), source=target.address)
        bench.pass_time(0.55)
        assert bench.member(target.name).state is State.ALIVE
        assert bench.swim.counts["probes_by_detour"] == (not own)


def test_links_are_degraded_after_three_detours_and_good_after_one_direct_answer() -> None:
    links = Links()
    for _ in range(3):
        assert links.degraded == []
        links.detour("a")
    assert links.degraded == ["a"]
    assert not links.blocked(others=1)  # may still be loss
    links.detour("a")
    links.detour("a")
    assert links.blocked(others=1)
    assert not links.blocked(others=5)  # only one member: it may be that one
    links.detour("b")
    links.detour("c")
    assert links.blocked(others=5)
    links.direct("b")
    assert not links.blocked(others=5)
    assert links.degraded == ["a"]
    links.direct("a")
    assert links.degraded == []


def test_without_udp_messages_go_over_streams_and_it_is_said() -> None:
    """Serf's cluster stays "alive" without UDP, and no event reaches anybody (reference/gossip-wire.md, 6.13)."""
    cluster = Cluster(7)
    nodes = cluster.formed(5)
    cluster.run_for(5.0)
    cluster.cut_udp = lambda a, b: True
    cluster.until(lambda: all(node.swim.udp_blocked for node in nodes), 30.0)
    nodes[0].seen.to_all = [b"event %d" % number for number in range(8)]
    cluster.run_for(2.0)
    got = [message for node in nodes for message in node.seen.messages]
    assert sorted(got) == [b"event %d" % number for number in range(8)]
    nodes[1].seen.meta = b"new"
    nodes[1].swim.update_meta(cluster.now)
    cluster.until(lambda: all(_meta(node.swim.member("n1")) == b"new" for node in nodes), 20.0)
    assert all(cluster.agree([node]) or len(node.swim.members()) == 5 for node in nodes)
    cluster.until(lambda: all(len(node.swim.degraded) == 4 for node in nodes), 60.0)
    cluster.cut_udp = lambda a, b: False
    cluster.until(lambda: not any(node.swim.udp_blocked or node.swim.degraded for node in nodes), 30.0)
    assert not any(change is Change.FAILED for node in nodes for _, change, _ in node.seen.events)


def test_two_halves_that_only_tcp_joins_tell_each_other_everything() -> None:
    """Each node has some that UDP reaches, so most of the time only its links to the others are degraded."""
    cluster = Cluster(11)
    nodes = cluster.formed(6)
    left = {node.name for node in nodes[:3]}
    cluster.cut_udp = lambda a, b: (a.name in left) != (b.name in left)
    cluster.until(lambda: all(len(node.swim.degraded) == 3 for node in nodes), 120.0)
    cluster.until(lambda: not nodes[0].swim.udp_blocked, 10.0)
    nodes[1].seen.meta = b"new"
    nodes[1].swim.update_meta(cluster.now)
    for number in range(24):  # this layer tells each only once, by whatever goes out first
        nodes[0].seen.to_all = [b"event %d" % number]
        cluster.run_for(0.2)
    across = sum(len(node.seen.messages) for node in nodes[3:])
    assert across > 0
    cluster.until(lambda: all(_meta(node.swim.member("n1")) == b"new" for node in nodes), 20.0)
    before = cluster.counts["streams"]
    assert nodes[0].swim.send_user(nodes[5].address, b"to you", cluster.now)
    cluster.turn(nodes[0])
    cluster.run_for(0.1)
    assert cluster.counts["streams"] > before
    assert b"to you" in nodes[5].seen.messages
    assert not any(change is Change.FAILED for node in nodes for _, change, _ in node.seen.events)


def test_an_event_crosses_from_half_to_half_as_fast_as_by_udp() -> None:
    cluster = Cluster(12)
    nodes = cluster.formed(8, Teller)
    for node in nodes:
        node.seen.node = node  # type: ignore[attr-defined]
    left = {node.name for node in nodes[:4]}
    cluster.cut_udp = lambda a, b: (a.name in left) != (b.name in left)
    cluster.until(lambda: all(len(node.swim.degraded) == 4 for node in nodes), 120.0)
    for number in range(10):
        message = b"event %d" % number
        nodes[number % 8].seen.user_message(message, cluster.now)
        took_s = cluster.until(lambda: all(message in n.seen.heard for n in nodes), 10.0)  # type: ignore[attr-defined] # noqa: B023
        assert took_s < 2.0


def _meta(one: Member | None) -> bytes:
    return one.meta if one is not None else b""


def test_nodes_started_together_do_not_probe_together() -> None:
    firsts = set()
    for seed in range(10):
        bench = Bench(A)
        bench.swim._prober._random = random.Random(seed)
        bench.swim._prober.start(0.0)
        firsts.add(round(bench.swim.deadline(), 2))
    assert len(firsts) > 5


def test_a_message_on_a_stream_is_the_delegates() -> None:
    bench = Bench()
    assert bench.swim.accept_stream(UserStream(b"hello"), FROM, 0.0) is None
    assert bench.swim.accept_stream(Ping(1, "other"), FROM, 0.0) is None
    answer = bench.swim.accept_stream(Ping(1, "me"), FROM, 0.0)
    assert answer is not None
    assert bench.read(OpenStream(0, FROM, answer, 1.0, False)) == Ack(1)
    assert bench.seen.messages == [b"hello"]
