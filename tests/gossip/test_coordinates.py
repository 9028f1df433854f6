"""Vivaldi: places from round trips."""

from __future__ import annotations

import math
import random

import pytest

from gossip.coordinates import DIMENSIONS, HEIGHT_MIN, RTT_MAX_S, Coordinate, Vivaldi, distance_s


def settle(rtt_s: dict[frozenset[str], float], names: list[str], rounds: int) -> dict[str, Vivaldi]:
    source = random.Random(7)
    nodes = {name: Vivaldi(source) for name in names}
    for _ in range(rounds):
        for name in names:
            peer = source.choice([n for n in names if n != name])
            nodes[name].observe(peer, nodes[peer].coordinate, rtt_s[frozenset((name, peer))])
    return nodes


def test_distances_of_a_line_are_found() -> None:
    names = ["a", "b", "c", "d"]
    rtt_s = {frozenset((x, y)): 0.010 * abs(names.index(x) - names.index(y)) for x in names for y in names if x != y}
    nodes = settle(rtt_s, names, 500)
    for pair, true_s in rtt_s.items():
        x, y = sorted(pair)
        assert distance_s(nodes[x].coordinate, nodes[y].coordinate) == pytest.approx(true_s, rel=0.25, abs=0.002)


def test_first_observation_moves_as_serf_does() -> None:
    """Two fresh nodes: weight 1/2, so a quarter times a half of what is missing."""
    here = Vivaldi(random.Random(1))
    assert here.observe("b", Coordinate(), 0.2)
    moved = math.hypot(*here.coordinate.vec)
    assert moved == pytest.approx(0.25 * 0.5 * (0.2 - 2 * HEIGHT_MIN), rel=1e-3)


def test_the_median_of_three_ignores_a_spike() -> None:
    here, there = Vivaldi(random.Random(1)), Coordinate(vec=(0.01,) * DIMENSIONS)
    for rtt_s in (0.03, 0.03):
        here.observe("b", there, rtt_s)
    before = here.coordinate
    here.observe("b", there, 9.0)
    assert math.dist(before.vec, here.coordinate.vec) < 0.01


@pytest.mark.parametrize(
    ("coordinate", "rtt_s"),
    [
        (Coordinate(), -0.1),
        (Coordinate(), RTT_MAX_S + 0.1),
        (Coordinate(), math.nan),
        (Coordinate(vec=(0.0,) * (DIMENSIONS - 1)), 0.1),
        (Coordinate(vec=(math.inf,) * DIMENSIONS), 0.1),
        (Coordinate(error=math.nan), 0.1),
        (Coordinate(height=-math.inf), 0.1),
    ],
)
def test_a23_what_cannot_be_is_rejected(coordinate: Coordinate, rtt_s: float) -> None:
    here = Vivaldi(random.Random(1))
    assert not here.observe("b", coordinate, rtt_s)
    assert (here.coordinate, here.rejected) == (Coordinate(), 1)


def test_numbers_that_overflow_put_us_back_to_the_start() -> None:
    here = Vivaldi(random.Random(1))
    here.observe("b", Coordinate(vec=(1e300,) * DIMENSIONS, error=0.0), 0.1)
    here.observe("b", Coordinate(height=1e308, adjustment=1e308, vec=(1e200,) * DIMENSIONS), 0.1)
    assert here.coordinate.usable()


def test_a_round_trip_of_zero_is_usable() -> None:
    here = Vivaldi(random.Random(1))
    assert here.observe("b", Coordinate(), 0.0)
    assert here.coordinate.usable()


def test_a_negative_adjusted_distance_is_not_used() -> None:
    a = Coordinate(adjustment=-1.0)
    assert distance_s(a, a) == 2 * HEIGHT_MIN
