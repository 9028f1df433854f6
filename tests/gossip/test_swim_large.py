"""A hundred nodes in virtual time, loosely held to the figures of docs; larger ones: `tests.sim.gossip.run`."""

from __future__ import annotations

from tests.sim.gossip import large
from tests.sim.gossip.run import simulate


def test_a_hundred_nodes_at_a_tenth_of_loss() -> None:
    """Times are virtual: the same on every machine."""
    figures = simulate(100, 0.1, seed=3, kills=1)
    assert figures.missed == 0
    assert max(figures.spread_s) < 2.0
    assert figures.suspected_s[0] < 6.0
    assert figures.failed_all_s[0] < 18.0
    assert figures.falsely_failed == 0
    assert figures.idle_packets < 8.0  # two probes a second, their answers, and detours of what was lost
    assert figures.message_bytes < 4000


def test_a_rack_that_is_lost_at_once_is_believed_lost_and_nobody_else() -> None:
    line = large.rack(100, 0.1)
    assert "25 lost" in line
    assert line.endswith("false 0")


def test_half_a_cluster_that_starts_anew_is_known_again_and_nobody_failed() -> None:
    assert large.restart(100, 0.1).endswith("false 0")


def test_halves_that_were_apart_for_minutes_are_one_again() -> None:
    assert "200 s apart" in large.partition(30, 0.1, away_s=200.0)


def test_changes_of_many_owners_reach_all_tables() -> None:
    assert "2520 tasks" in large.endpoints(60, 0.1, changes=3)
