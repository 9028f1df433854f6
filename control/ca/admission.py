"""How many may ask for a certificate: a bucket for each address, and one for all. Pure: `now` is passed in.

Guessing a token is hopeless (128 bits); this bounds what asking costs the managers. The bucket for all is large enough
for a rack that comes up at once, the one for an address for a machine that tries again and again behind one router.
"""

from __future__ import annotations

from collections import OrderedDict

ALL_RATE_PER_S, ALL_BURST = 50.0, 500.0
ONE_RATE_PER_S, ONE_BURST = 1.0, 20.0
ADDRESSES_MAX = 4096  # the longest unheard is forgotten: its bucket would be full again anyway


class Admission:
    """See the module."""

    def __init__(self) -> None:
        self._all = (ALL_BURST, 0.0)
        self._each: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, address: str, now_s: float) -> bool:
        """Whether a request of this address may be looked at now; if so, it is counted."""
        mine = _filled(self._each.get(address, (ONE_BURST, now_s)), now_s, ONE_RATE_PER_S, ONE_BURST)
        everybody = _filled(self._all, now_s, ALL_RATE_PER_S, ALL_BURST)
        welcome = mine >= 1.0 and everybody >= 1.0
        self._each[address] = (mine - welcome, now_s)
        self._each.move_to_end(address)
        if len(self._each) > ADDRESSES_MAX:
            self._each.popitem(last=False)
        self._all = (everybody - welcome, now_s)
        return welcome


def _filled(bucket: tuple[float, float], now_s: float, rate_per_s: float, burst: float) -> float:
    level, then_s = bucket
    return min(burst, level + max(0.0, now_s - then_s) * rate_per_s)
