"""Network coordinates: Vivaldi in 8 dimensions with height, as Serf does it. Pure; times are seconds.

Dabek, Cox, Kaashoek, Morris, "Vivaldi: A Decentralized Network Coordinate System" (SIGCOMM 2004), section 3.4; the
adjustment term and the pull to the centre are from Ledlie, Gardner, Seltzer (NSDI 2007). Constants are those of
serf/coordinate/config.go, since nodes of one cluster must agree on them.
"""

from __future__ import annotations

import math
import random
from collections import deque

import msgspec

DIMENSIONS = 8
ERROR_MAX = 1.5
CE = 0.25  # how fast the error estimate follows
CC = 0.25  # how far one observation moves us
ADJUSTMENT_WINDOW = 20
HEIGHT_MIN = 10.0e-6
LATENCY_FILTER = 3  # observations of a peer whose median is used
GRAVITY_RHO = 150.0
RTT_MAX_S = 10.0
ZERO = 1.0e-6  # seconds; nearer than this is the same place


class Coordinate(msgspec.Struct, frozen=True, gc=False):
    """A place; all in seconds but for `error`, which has no unit."""

    vec: tuple[float, ...] = (0.0,) * DIMENSIONS
    error: float = ERROR_MAX
    adjustment: float = 0.0
    height: float = HEIGHT_MIN

    def usable(self) -> bool:
        """Whether it has our dimension and no number is infinite or NaN."""
        numbers = (*self.vec, self.error, self.adjustment, self.height)
        return len(self.vec) == DIMENSIONS and all(math.isfinite(number) for number in numbers)


def raw_distance_s(a: Coordinate, b: Coordinate) -> float:
    """Estimated round trip without adjustments."""
    return math.dist(a.vec, b.vec) + a.height + b.height


def distance_s(a: Coordinate, b: Coordinate) -> float:
    """Estimated round trip between two places, both of the same dimension."""
    raw = raw_distance_s(a, b)
    adjusted = raw + a.adjustment + b.adjustment
    return adjusted if adjusted > 0 else raw


class Vivaldi:
    """This node's own place, moved by each observed round trip. Holds LATENCY_FILTER numbers for each peer observed."""

    def __init__(self, source: random.Random) -> None:
        self.coordinate = Coordinate()
        self.resets = 0
        self.rejected = 0
        self._random = source
        self._adjustments: deque[float] = deque([0.0] * ADJUSTMENT_WINDOW, ADJUSTMENT_WINDOW)
        self._latencies: dict[str, deque[float]] = {}

    def observe(self, peer: str, other: Coordinate, rtt_s: float) -> bool:
        """A ping to `peer`, which is at `other`, took so long. False: it cannot be used."""
        if not other.usable() or not 0 <= rtt_s <= RTT_MAX_S:
            self.rejected += 1
            return False
        latencies = self._latencies.setdefault(peer, deque(maxlen=LATENCY_FILTER))
        latencies.append(rtt_s)
        median_s = max(sorted(latencies)[len(latencies) // 2], ZERO)
        here = self._pull(self.coordinate, other, median_s)
        self._adjustments.append(median_s - raw_distance_s(here, other))
        here = msgspec.structs.replace(here, adjustment=sum(self._adjustments) / (2 * ADJUSTMENT_WINDOW))
        self.coordinate = self._to_centre(here)
        if not self.coordinate.usable():
            self.coordinate = Coordinate()
            self.resets += 1
        return True

    def forget(self, peer: str) -> None:
        """A peer is gone."""
        self._latencies.pop(peer, None)

    def _pull(self, here: Coordinate, other: Coordinate, rtt_s: float) -> Coordinate:
        estimate_s = distance_s(here, other)
        wrongness = abs(estimate_s - rtt_s) / rtt_s
        weight = here.error / max(here.error + other.error, ZERO)
        error = min(CE * weight * wrongness + here.error * (1 - CE * weight), ERROR_MAX)
        here = msgspec.structs.replace(here, error=error)
        return self._push(here, other, CC * weight * (rtt_s - estimate_s))

    def _to_centre(self, here: Coordinate) -> Coordinate:
        centre = Coordinate()
        pull = distance_s(centre, here) / GRAVITY_RHO
        return self._push(here, centre, -(pull * pull))  # not **, which raises where this is infinite

    def _push(self, here: Coordinate, other: Coordinate, force_s: float) -> Coordinate:
        """Move away from `other` by so much (towards it if negative)."""
        difference = tuple(a - b for a, b in zip(here.vec, other.vec, strict=True))
        length = math.hypot(*difference)
        height = here.height
        if length > ZERO:
            height = max((here.height + other.height) * force_s / length + here.height, HEIGHT_MIN)
        else:
            difference = tuple(self._random.random() - 0.5 for _ in difference)
            length = max(math.hypot(*difference), ZERO)
        vec = tuple(a + d / length * force_s for a, d in zip(here.vec, difference, strict=True))
        return msgspec.structs.replace(here, vec=vec, height=height)
