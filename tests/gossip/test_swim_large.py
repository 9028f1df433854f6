"""A hundred nodes in virtual time, loosely held to the figures of docs; larger ones: `tests.sim.gossip.run`."""

from __future__ import annotations

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
