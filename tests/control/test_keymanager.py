"""The ring of gossip's keys: three, each known for a period before it is used, changed once when it is late."""

from __future__ import annotations

import itertools

import pytest

from control.keymanager import KEY_BYTES, PERIOD_S, decide, new_key, new_ring, rotated
from control.model import Cluster, Meta
from control.store.tables import Snapshot
from control.store.txn import Put

PERIOD_MS = int(PERIOD_S * 1000)
NOW = 1_800_000_000_000


class _Store:
    def __init__(self, *clusters: Cluster) -> None:
        self.clusters = clusters

    def all(self, cls: type[Cluster]) -> tuple[Cluster, ...]:
        return self.clusters


_numbers = itertools.count(1)


def draw(length: int) -> bytes:
    return next(_numbers).to_bytes(length, "big")


def a_cluster(*keys: str, at_ms: int = NOW) -> Cluster:
    return Cluster(id="c1", meta=Meta(version=1), gossip_keys=keys, gossip_keys_ms=at_ms)


def after(cluster: Cluster, now_ms: int) -> tuple[Cluster, int | None]:
    snapshot: Snapshot = _Store(cluster)  # type: ignore[assignment]
    decision = decide(snapshot, now_ms, draw)
    for _, change in decision.changes:
        assert isinstance(change, Put)
        assert isinstance(change.obj, Cluster)
        cluster = change.obj
    return cluster, decision.wake_at_ms


def test_a_new_cluster_has_three_keys() -> None:
    assert len(set(new_ring(draw))) == 3


def test_a_ring_of_one_gets_its_second_key_at_once_and_its_third_after_a_period() -> None:
    one = a_cluster(new_key(draw(KEY_BYTES)), at_ms=0)
    two, wake = after(one, NOW)
    assert two.gossip_keys[0] == one.gossip_keys[0]
    assert (len(two.gossip_keys), wake) == (2, NOW + PERIOD_MS)
    assert after(two, NOW + PERIOD_MS - 1) == (two, NOW + PERIOD_MS)
    three, _ = after(two, NOW + PERIOD_MS)
    assert three.gossip_keys[0] == two.gossip_keys[1]
    assert three.gossip_keys[2] == two.gossip_keys[0]
    assert len(set(three.gossip_keys)) == 3


def test_every_key_was_known_for_a_period_before_it_is_sent_with_and_for_one_after() -> None:
    cluster, history = a_cluster("a", "b", "c"), []
    for step in range(1, 20):
        before = cluster
        cluster, _ = after(cluster, NOW + step * PERIOD_MS)
        assert cluster.gossip_keys[0] in before.gossip_keys, "a node that missed this change understands it"
        assert before.gossip_keys[0] in cluster.gossip_keys, "and is understood"
        assert len(cluster.gossip_keys) == 3
        history.append(cluster.gossip_keys[0])
    assert len(set(history)) == len(history), "no key comes back"


@pytest.mark.parametrize("now_ms", [NOW + 100 * PERIOD_MS, NOW - 1])
def test_who_is_late_changes_it_once(now_ms: int) -> None:
    """Also a clock that was set back: the stamp would be ahead of it for ever."""
    cluster, _ = after(a_cluster("a", "b", "c"), now_ms)
    assert cluster.gossip_keys[0] == "b"
    assert after(cluster, now_ms + 1)[0] == cluster


def test_no_gossip_no_keys() -> None:
    nothing = a_cluster()
    assert after(nothing, NOW + 9 * PERIOD_MS) == (nothing, None)
    empty: Snapshot = _Store()  # type: ignore[assignment]
    assert decide(empty, NOW, draw).changes == ()
    assert rotated((), "k") == ("k",)
