"""Lifeguard's formulas against memberlist's own figures (acceptance cases A5 and A12), and local health."""

from __future__ import annotations

import pytest

from gossip.awareness import Awareness
from gossip.profile import LAN, Profile
from gossip.suspicion import Suspicion, duration_s, suspicion
from tests.sim.gossip.spread import chance


@pytest.mark.parametrize(
    ("confirmations", "passed_s", "left_s"), [(0, 0, 30.0), (1, 2, 14.0), (2, 3, 4.81), (3, 4, -2.0)]
)
def test_a5_the_time_falls_with_the_logarithm_of_confirmations(
    confirmations: int, passed_s: float, left_s: float
) -> None:
    assert duration_s(confirmations, 3, 2.0, 30.0) - passed_s == pytest.approx(left_s)


def test_a5_dogpile() -> None:
    began = Suspicion("a", 3, 0.5, 1.0, 10.0)
    times = [began.deadline_s - 10.0]
    for by in "bcd":
        assert began.confirm(by)
        times.append(began.deadline_s - 10.0)
    assert times == pytest.approx([1.0, 0.75, 0.604, 0.5], abs=0.0011)


def test_a5_nobody_confirms_twice_and_enough_is_enough() -> None:
    began = Suspicion("a", 1, 1.0, 2.0, 0.0)
    assert not began.confirm("a")
    assert began.confirm("b")
    assert not began.confirm("b")
    assert not began.confirm("c")
    assert began.deadline_s == 1.0


def test_a5_few_nodes_do_not_stretch_the_time() -> None:
    profile = Profile(suspicion_mult=5)
    assert suspicion(profile, 4, "a", 0.0).deadline_s == 5.0
    assert suspicion(profile, 5, "a", 0.0).deadline_s == 30.0


@pytest.mark.parametrize(("nodes", "time_s"), [(5, 1.0), (10, 1.0), (50, 1.698), (100, 2.0), (500, 2.698), (1000, 3.0)])
def test_a12_suspicion_scales(nodes: int, time_s: float) -> None:
    assert Profile(suspicion_mult=3).suspicion_min_s(nodes) / 3 == pytest.approx(time_s, abs=0.001)


@pytest.mark.parametrize(("nodes", "times"), [(1, 1), (32, 1), (33, 2), (64, 2), (65, 3), (128, 3), (2400, 8)])
def test_a12_push_pull_scales(nodes: int, times: int) -> None:
    assert LAN.push_pull_s(nodes) == 30.0 * times


@pytest.mark.parametrize(("floor", "mult", "nodes", "times"), [(0, 3, 99, 6), (12, 4, 5, 12), (12, 4, 2400, 16)])
def test_a12_retransmits_scale(floor: int, mult: int, nodes: int, times: int) -> None:
    """With memberlist's rule (no floor) 6; ours never sends less than 12 times."""
    assert Profile(retransmit_floor=floor, retransmit_mult=mult).retransmits(nodes) == times


def test_awareness_stays_in_its_bounds() -> None:
    awareness = Awareness(8)
    awareness.apply(-1)
    assert (awareness.score, awareness.scale_s(2.0)) == (0, 2.0)
    awareness.apply(100)
    assert (awareness.score, awareness.scale_s(2.0)) == (7, 16.0)
    awareness.apply(-3)
    assert awareness.score == 4


@pytest.mark.parametrize(
    ("nodes", "times"), [(1, 12), (9, 12), (99, 12), (100, 16), (999, 16), (2400, 16), (10_000, 20)]
)
def test_a_broadcast_is_sent_often_enough_to_miss_nobody(nodes: int, times: int) -> None:
    assert LAN.retransmits(nodes) == times


def test_fewer_sends_would_miss_somebody() -> None:
    """The epidemic alone, seeded: what the floors are for."""
    assert chance(9, 4, 0.0, work=100_000) > 3
    assert chance(9, 12, 0.1, work=100_000) == 0
    assert chance(150, 8, 0.25, work=1) > chance(150, 16, 0.25, work=1) + 10
