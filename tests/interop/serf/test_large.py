"""Larger mixed clusters: ten and ten, halves that are parted and heal, a member at another address."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.serf.cluster import Cluster, Kind, Node, until
from tests.interop.serf.test_clusters import KEY, TWO_AND_TWO

TEN_AND_TEN: list[Kind] = ["serf", "mesh"] * 10
TABLE = "meshparted"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("flags", [[], [f"-encrypt={KEY}"]], ids=["plain", "encrypted"])
def test_ten_and_ten_lose_two_of_each_and_get_them_back(tmp_path: Path, flags: list[str]) -> None:
    with Cluster(tmp_path, TEN_AND_TEN, flags) as cluster:
        cluster.full(60)
        gone = cluster.nodes[4:8]
        for node in gone:
            node.kill()
        cluster.all_see({node.name: "failed" for node in gone}, 60)
        healthy = {node.name: "alive" for node in cluster.running()}
        assert all(healthy.items() <= node.statuses().items() for node in cluster.running()), "nobody else fails"
        for node in gone:
            node.start(cluster.log)
            node.ready()
            node.client.join([cluster.nodes[0].address])
        cluster.full(60)
        for node in cluster.nodes[10:12]:
            node.client.leave()
            node.wait(20)
        cluster.all_see({node.name: "left" for node in cluster.nodes[10:12]}, 30)


def test_who_left_comes_back_at_another_address(tmp_path: Path) -> None:
    """Stock agents take it from a member that left; from one that failed only ours do."""
    with Cluster(tmp_path, TWO_AND_TWO) as cluster:
        cluster.full()
        stock, ours = cluster.nodes[2:4]
        for node in (stock, ours):
            node.client.leave()
            node.wait(20)
        cluster.all_see({stock.name: "left", ours.name: "left"}, 20)
        for node in (stock, ours):
            node.host = "127.0.0.2"
            node.start(cluster.log)
            node.ready()
            node.client.join([cluster.nodes[0].address])
        cluster.full()
        moved = {stock.name: "127.0.0.2", ours.name: "127.0.0.2"}
        until(lambda: all(moved.items() <= _hosts(node).items() for node in cluster.running()), 20)


def _hosts(node: Node) -> dict[str, str]:
    return {member.name: member.address for member in node.client.members()}


@pytest.fixture
def halves() -> Iterator[tuple[str, str]]:
    """Two namespaces with a link between them, and one to here for the RPC of each."""
    names = (f"mga{os.getpid()}", f"mgb{os.getpid()}")
    try:
        for at, name in enumerate(names):
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", f"{name}r", "type", "veth", "peer", "name", "rpc", "netns", name)
            _run("ip", "address", "add", f"10.249.{at}.1/24", "dev", f"{name}r")
            _run("ip", "link", "set", f"{name}r", "up")
            _run("ip", "-n", name, "address", "add", f"10.249.{at}.2/24", "dev", "rpc")
        _run("ip", "-n", names[0], "link", "add", "peer", "type", "veth", "peer", "name", "peer", "netns", names[1])
        for at, name in enumerate(names):
            _run("ip", "-n", name, "address", "add", f"10.249.9.{at + 1}/24", "dev", "peer")
            for device in ("lo", "rpc", "peer"):
                _run("ip", "-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
            subprocess.run(["ip", "link", "delete", f"{name}r"], check=False, capture_output=True)


def _run(*words: str, given: str | None = None) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, input=given)


@pytest.mark.root
@pytest.mark.timeout(180)
@pytest.mark.parametrize("flags", [[], [f"-encrypt={KEY}"]], ids=["plain", "encrypted"])
def test_halves_that_are_parted_lose_each_other_and_heal(
    tmp_path: Path, halves: tuple[str, str], flags: list[str]
) -> None:
    cluster = Cluster(tmp_path, ["serf", "mesh"] * 4, flags)
    for at, node in enumerate(cluster.nodes):
        half = at // 4
        node.prefix = ("ip", "netns", "exec", halves[half])
        node.host, node.rpc_host = f"10.249.9.{half + 1}", f"10.249.{half}.2"
    with cluster:
        cluster.full(30)
        left, right = cluster.nodes[:4], cluster.nodes[4:]
        drop = f'table inet {TABLE} {{ chain away {{ type filter hook input priority 0; iifname "peer" drop; }}; }}'
        for name in halves:
            _run("ip", "netns", "exec", name, "nft", "-f", "-", given=drop)
        cluster.all_see({node.name: "failed" for node in right}, 60, left)
        cluster.all_see({node.name: "failed" for node in left}, 60, right)
        for side in (left, right):
            cluster.all_see({node.name: "alive" for node in side}, 1, side)
        for name in halves:
            _run("ip", "netns", "exec", name, "nft", "delete", "table", "inet", TABLE)
        # A stock agent tries one lost member each 30 s, by chance; ours tries more often: they bring the others along.
        cluster.full(90)
