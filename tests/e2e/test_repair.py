"""What others break in the kernel is repaired at once, not at the next regular look."""

from __future__ import annotations

import time

import pytest

from tests.e2e.conftest import Cluster

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(180)]
SOON_S = 5.0  # the regular look comes every 30 s


@pytest.mark.parametrize(
    "damage",
    [
        ("nft", "flush", "ruleset"),
        ("ip", "link", "del", "vx4096"),
        ("ip", "route", "flush", "proto", "109"),
        ("sysctl", "-qw", "net.ipv4.ip_forward=0"),
    ],
    ids=lambda damage: " ".join(damage[:3]),
)
def test_a_router_that_was_broken_carries_traffic_again_at_once(cluster: Cluster, damage: tuple[str, ...]) -> None:
    cluster.serve("api", 2, "--network", "web", "--publish", "8080:80")
    router = cluster.lab.exec("h1", ["ls", "/run/netns"]).stdout.split()
    name = next(one for one in router if one.startswith("mesh-") and not one.startswith("mesh-t-"))
    time.sleep(1.0)
    broken = cluster.lab.exec("h1", ["ip", "netns", "exec", name, *damage])
    assert broken.returncode == 0, broken.stderr
    began = time.monotonic()
    url = f"http://{cluster.lab.address('h1')}:8080/"

    def answers() -> bool:
        return all(cluster.outside("curl", "-s", "-m", "1", url).returncode == 0 for _ in range(4))

    cluster.until("it answers again", answers, timeout_s=20)
    assert time.monotonic() - began < SOON_S + 4
