"""Mixed clusters of real `serf agent`s and ours: they see, tell, ask and lose each other as one."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from gossip.serf_client import SerfClient, SerfConnectionError
from mesh.cli.gossip import gossip
from tests.interop.serf.cluster import Cluster, Kind, Node, until

pytestmark = pytest.mark.skipif("agent" not in gossip.commands, reason="there is no `mesh gossip agent` yet")
KEY = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
OTHER = "bm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm4="
FIVE_AND_FIVE: list[Kind] = ["serf", "mesh"] * 5
TWO_AND_TWO: list[Kind] = ["serf", "mesh"] * 2


def pair(cluster: Cluster) -> tuple[Node, Node]:
    """A stock agent and one of ours."""
    return cluster.nodes[2], cluster.nodes[3]


@pytest.mark.parametrize("flags", [[], [f"-encrypt={KEY}"]], ids=["plain", "encrypted"])
def test_five_and_five_through_a_day(tmp_path: Path, flags: list[str]) -> None:
    with Cluster(tmp_path, FIVE_AND_FIVE, flags) as cluster:
        cluster.full()
        stock, ours = pair(cluster)
        for node in (stock, ours):
            node.client.tags({"who": node.name})
        tagged = {node.name for node in (stock, ours)}
        until(
            lambda: all({m.name for m in n.client.members() if "who" in m.tags} == tagged for n in cluster.running()),
            10,
        )
        stock.kill()
        ours.kill()
        cluster.all_see({stock.name: "failed", ours.name: "failed"}, 30)
        healthy = {node.name: "alive" for node in cluster.running()}
        assert all(healthy.items() <= node.statuses().items() for node in cluster.running()), "nobody else fails"
        for node in (stock, ours):
            node.start(cluster.log)
            node.ready()
            node.client.join([cluster.nodes[0].address])
        cluster.full()
        for node in cluster.nodes[4:6]:
            node.client.leave()
            node.wait(20)
        cluster.all_see({node.name: "left" for node in cluster.nodes[4:6]}, 10)


def test_events_reach_all_from_both_kinds(tmp_path: Path) -> None:
    with Cluster(tmp_path, TWO_AND_TWO) as cluster:
        cluster.full()
        seen: dict[str, set[str]] = {node.name: set() for node in cluster.nodes}
        clients = [_listen(node, seen[node.name]) for node in cluster.nodes]
        for node in cluster.nodes:
            node.client.event(f"from-{node.name}", b"x" * 100, coalesce=False)
        wanted = {f"from-{node.name}" for node in cluster.nodes}
        # A stock agent alone may miss one and get it by its next push/pull: its budget is too small for so few.
        until(lambda: all(names == wanted for names in seen.values()), 40, lambda: str(seen))
        for client in clients:
            client.close()


def _listen(node: Node, names: set[str]) -> SerfClient:
    client = SerfClient(node.rpc_address)
    client.connect()
    records = client.stream("user")

    threading.Thread(target=_each, args=(records, names), daemon=True).start()
    return client


def _each(records: object, names: set[str]) -> None:
    try:
        for record in records:  # type: ignore[attr-defined]
            names.add(record["Name"])
    except SerfConnectionError:
        return  # closed at the test's end


def test_queries_are_acknowledged_by_all_from_both_kinds(tmp_path: Path) -> None:
    with Cluster(tmp_path, TWO_AND_TWO, ["-tag=role=web"]) as cluster:
        cluster.full()
        everybody = {node.name for node in cluster.nodes}
        for node in pair(cluster):
            _acknowledged(node, everybody, ack=True, timeout_s=2.0, relay_factor=1)
            two = ["mesh1", "serf0"]
            _acknowledged(node, set(two), nodes=two, tags={"role": "^w"}, ack=True, timeout_s=2.0)


def _acknowledged(node: Node, by: set[str], **query: Any) -> None:
    """An ack is one packet, and a stock agent alone may miss the query itself: so there are three tries."""
    seen: set[str] = set()
    for _ in range(3):
        seen = {who for kind, who, _ in node.client.query("ping", **query) if kind == "ack"}
        assert seen <= by
        if seen == by:
            return
    assert seen == by


def test_keys_rotate_from_both_kinds(tmp_path: Path) -> None:
    with Cluster(tmp_path, TWO_AND_TWO, [f"-encrypt={KEY}"]) as cluster:
        cluster.full()
        stock, ours = pair(cluster)
        for node, old, new in ((ours, KEY, OTHER), (stock, OTHER, KEY)):
            for report in (node.client.install_key(new), node.client.use_key(new), node.client.remove_key(old)):
                assert report.error == "", report
            assert node.client.list_keys().keys == {new: 4}
        cluster.full()


def test_force_leave_and_prune_from_both_kinds(tmp_path: Path) -> None:
    with Cluster(tmp_path, FIVE_AND_FIVE[:6]) as cluster:
        cluster.full()
        gone = cluster.nodes[4:6]
        for node in gone:
            node.kill()
        cluster.all_see({node.name: "failed" for node in gone}, 30)
        stock, ours = pair(cluster)
        ours.client.force_leave(gone[0].name)
        stock.client.force_leave(gone[1].name)
        cluster.all_see({node.name: "left" for node in gone}, 10)


def test_a22_a_restart_rejoins_by_the_snapshot_without_old_events(tmp_path: Path) -> None:
    with Cluster(tmp_path, TWO_AND_TWO) as cluster:
        cluster.full()
        ours = cluster.nodes[3]
        ours.kill()
        ours.flags = (*ours.flags, f"-snapshot={tmp_path / 'snapshot'}")
        ours.start(tmp_path)
        ours.ready()
        ours.client.join([cluster.nodes[0].address])
        cluster.nodes[0].client.event("before", b"", coalesce=False)
        until(lambda: int(ours.client.stats()["serf"]["event_time"]) > 1, 10)
        until(lambda: "event-clock" in (tmp_path / "snapshot").read_text(), 5)
        ours.kill()
        ours.start(tmp_path)
        ours.ready()
        seen: set[str] = set()
        client = _listen(ours, seen)
        cluster.full()
        cluster.nodes[0].client.event("after", b"", coalesce=False)
        until(lambda: "after" in seen, 10)
        assert "before" not in seen
        client.close()


def test_a_stopped_process_is_suspected_and_comes_back(tmp_path: Path) -> None:
    with Cluster(tmp_path, TWO_AND_TWO) as cluster:
        cluster.full()
        ours = cluster.nodes[3]
        others = cluster.nodes[:3]
        ours.signal(signal.SIGSTOP)
        cluster.all_see({ours.name: "failed"}, 30, others)
        ours.signal(signal.SIGCONT)
        cluster.full(60)


def test_sigint_leaves(tmp_path: Path) -> None:
    with Cluster(tmp_path, TWO_AND_TWO) as cluster:
        cluster.full()
        ours = cluster.nodes[3]
        ours.signal(signal.SIGINT)
        assert ours.wait(20) == 0
        cluster.all_see({ours.name: "left"}, 10)
