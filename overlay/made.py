"""What was made of a plan the last time, and so what of the next one is to be looked at. Pure.

A plan comes as a whole, however small the change. What is the same object as before is passed over; of a network in
which only the places of tasks on other nodes changed, those are the change, and nothing else of it is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from overlay.plan import OverlayNetwork, OverlayPlan, RemoteEndpoint

Remotes = tuple[RemoteEndpoint, ...]
# Of what is compared at once: so long that few are made, so short that the one that differs is soon found.
_SLICE = 256


@dataclass(frozen=True, slots=True)
class Rerouted:
    """A network in which only routes to tasks of other nodes came and went."""

    network: OverlayNetwork
    came: Remotes
    went: Remotes


@dataclass(frozen=True, slots=True)
class News:
    """What of a plan is to be looked at. `whole`: the host as well, and whatever is there and not in the plan."""

    whole: bool
    networks: tuple[OverlayNetwork, ...]
    rerouted: tuple[Rerouted, ...] = ()

    @property
    def nothing(self) -> bool:
        """Whether the host is not to be looked at."""
        return not self.whole and not self.networks


@dataclass(slots=True)
class Made:
    """The networks that were made without a failure, and what all of them depend on."""

    _of_all: OverlayPlan | None = None  # without its networks
    _networks: dict[str, OverlayNetwork] = field(default_factory=dict)

    def news(self, plan: OverlayPlan, whole: bool) -> News:
        """What is to be looked at; from now on it counts as not made."""
        of_all = replace(plan, networks=())
        if whole or of_all != self._of_all or self._networks.keys() - {one.id for one in plan.networks}:
            self._of_all, self._networks = of_all, {}
            return News(True, plan.networks)
        networks, rerouted = [], []
        for one in plan.networks:
            before = self._networks.get(one.id)
            if before == one:
                continue
            found = _rerouted(before, one) if before is not None else None
            if found is None:
                networks.append(one)
            else:
                rerouted.append(found)
            self._networks.pop(one.id, None)
        return News(False, tuple(networks), tuple(rerouted))

    def done(self, networks: Iterable[OverlayNetwork]) -> None:
        """These are made."""
        self._networks.update((one.id, one) for one in networks)


def _rerouted(before: OverlayNetwork, now: OverlayNetwork) -> Rerouted | None:
    """None when more than that has changed."""
    if replace(now, remote=before.remote) != before:
        return None
    old, new = _middle(before.remote, now.remote)
    kept = set(map(id, old)).intersection(map(id, new))
    came = tuple(one for one in new if id(one) not in kept)
    went = tuple(one for one in old if id(one) not in kept)
    addresses = {one.address for one in came}
    return Rerouted(now, came, tuple(one for one in went if one.address not in addresses))


def _middle(old: Remotes, new: Remotes) -> tuple[Remotes, Remotes]:
    """Both without what they have in common at both ends."""
    start = _alike(old, new)
    old, new = old[start:], new[start:]
    end = _alike(old[::-1], new[::-1])
    return old[: len(old) - end], new[: len(new) - end]


def _alike(old: Remotes, new: Remotes) -> int:
    """How many are equal from the beginning; by slices, which are compared at the speed of memory."""
    at, most = 0, min(len(old), len(new))
    while at + _SLICE <= most and old[at : at + _SLICE] == new[at : at + _SLICE]:
        at += _SLICE
    while at < most and (old[at] is new[at] or old[at] == new[at]):
        at += 1
    return at
