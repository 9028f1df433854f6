"""Who has no key, an old packet, another label or a grudge: what it sends changes nothing for long. In virtual time."""

from __future__ import annotations

import random

import pytest

from gossip.delegate import Address, Change, State
from gossip.packet import PACKET_MAX, RECEIVE_MAX
from gossip.profile import LAN
from gossip.swim_ports import INCARNATION_MAX, JUMP_MAX, SendPacket
from gossip.wire import Alive, Dead, Message, Suspect, encode
from tests.sim.gossip.bench import SOMEBODY, Bench
from tests.sim.gossip.cluster import Cluster, Node, member

KEY = b"k" * 16


class Tapped(Cluster):
    """Somebody on the wire keeps all packets."""

    def __init__(self, seed: int, **how: object) -> None:
        super().__init__(seed, **how)  # type: ignore[arg-type]
        self.tape: list[tuple[Node, SendPacket]] = []

    def _packet(self, node: Node, output: SendPacket) -> None:
        self.tape.append((node, output))
        super()._packet(node, output)


@pytest.mark.parametrize("keys", [[], [KEY]], ids=["plain", "encrypted"])
def test_replayed_packets_change_nothing_for_long(keys: list[bytes]) -> None:
    """All packets of a time in which members died, left and came back are sent again, in any order, to anybody.

    They come back in a later minute: incarnations are minutes, and within one a replay is refuted, not ignored.
    """
    cluster = Tapped(1, keys=keys)
    nodes = cluster.formed(8)
    cluster.run_for(2.0)
    cluster.kill(nodes[7])
    nodes[6].swim.leave(cluster.now)
    cluster.turn(nodes[6])
    cluster.run_for(3.0)
    cluster.kill(nodes[6])
    cluster.run_for(60.0)
    for node in nodes[6:]:
        cluster.start(node.name)
        node.swim.join([nodes[0].address], cluster.now)
        cluster.turn(node)
    cluster.until(cluster.agree, 10.0)
    tape, chance = list(cluster.tape), random.Random(2)
    before_s = cluster.now
    for _ in range(10_000):
        _, old = chance.choice(tape)
        to = chance.choice(nodes)
        to.swim.receive(old.data, chance.choice(nodes).address, cluster.now)
        cluster.turn(to)
        cluster.run_for(0.003)
    assert cluster.until(cluster.agree, 30.0) < 10.0
    failed = [e for n in nodes for e in n.seen.events if e[0] > before_s and e[1] in (Change.FAILED, Change.LEFT)]
    assert failed == [], "an old death does not kill who lives"
    assert all(node.swim.me.incarnation < 1100 for node in nodes), "nor do they push each other up"


def test_two_clusters_with_other_labels_stay_two() -> None:
    cluster = Cluster(3)
    nodes = cluster.formed(4)
    for node in nodes:
        node.swim._outbox.envelope.label = b"blue"
    strangers = [cluster.start(f"red{number}") for number in range(4)]
    for node in strangers:
        node.swim._outbox.envelope.label = b"red"
        node.swim.join([one.address for one in nodes], cluster.now)
        cluster.turn(node)
    strangers[1].swim.join([strangers[0].address], cluster.now)
    cluster.turn(strangers[1])
    cluster.run_for(60.0)
    assert cluster.agree(nodes)
    assert cluster.agree(strangers[:2])
    assert sum(node.swim.counts["packets_bad"] for node in nodes) == 0, "streams were refused before any packet"


def _liar(kind: str, victim: Node, chance: random.Random, incarnation: int) -> Message:
    match kind:
        case "suspect":
            return Suspect(incarnation, victim.name, f"n{chance.randrange(8)}")
        case "dead":
            return Dead(incarnation, victim.name, "n1")
        case "left":
            return Dead(incarnation, victim.name, victim.name)
        case _:
            elsewhere = Address(victim.address.host, 1)
            return Alive(incarnation, victim.name, elsewhere, b"lies", victim.swim.me.versions)


@pytest.mark.parametrize("kind", ["suspect", "dead", "left", "alive elsewhere"])
def test_a_member_that_lies_about_another_is_refuted(kind: str) -> None:
    """Who has the key can say anything, each 0.3 s and with any incarnation: once it stops, soon all is as it is.

    A node that was lied to so often that the victim's incarnation is beyond JUMP_MAX for it forgets the victim after
    half a minute (`gossip_to_dead_s`), and meets it anew.
    """
    cluster = Cluster(4)
    nodes = cluster.formed(8)
    cluster.run_for(2.0)
    victim, chance = nodes[3], random.Random(5)
    for step in range(100):
        for node in nodes[4:]:
            known = node.swim.member(victim.name)
            assert known is not None
            higher = chance.choice((0, 1, 5, JUMP_MAX, JUMP_MAX + 5, 2**32 - 1 - known.incarnation))
            lie = _liar(kind, victim, chance, min(known.incarnation + higher, 2**32 - 1))
            node.swim._handle(lie, nodes[1].address, cluster.now)
            cluster.turn(node)
        cluster.run_for(0.3)
        assert victim.swim.me.state is State.ALIVE, step
    assert cluster.until(cluster.agree, 90.0) < LAN.gossip_to_dead_s + 15.0
    assert victim.swim.me.incarnation <= INCARNATION_MAX + JUMP_MAX
    cluster.run_for(60.0)
    assert cluster.agree()


def test_a_hundred_thousand_packets_of_junk_leave_nothing_behind() -> None:
    """What a node gets in a second of a flood: each packet is one count, and nothing is kept or sent."""
    bench = Bench(member("a"), keys=[KEY])
    chance = random.Random(6)
    kinds = [
        b"",
        chance.randbytes(RECEIVE_MAX),
        chance.randbytes(PACKET_MAX),
        b"\x07\xff" + b"\xff" * 600,
        b"\xf4\x05label" + chance.randbytes(60),
        encode(Suspect(2**32 - 1, "me", "a")),
        b"\x09\x82\xa4Algo\x00\xa3Buf\xda\xff\xff" + b"\0" * 900,
    ]
    before = bench.swim.counts.copy()
    for at in range(100_000):
        bench.swim.receive(kinds[at % len(kinds)], SOMEBODY, bench.now)
    gained = bench.swim.counts - before
    refused = gained["packets_bad"] + gained["packets_undecryptable"]
    assert gained["packets_in"] == refused == 100_000
    assert bench.sent() == []
    assert bench.swim.me.incarnation == 1000
    assert len(bench.swim.members()) == 2
