"""Replicated services: so many slots, numbered from 1. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from control.lifecycle import TaskState
from control.orchestrator.places import Place, Slot, View, removed
from control.store.txn import Change, Put

# New tasks of one service in one decision: the rest follows when these are written. A leader that makes 100,000 at once
# hears no node meanwhile.
TASKS_MADE_MAX = 1000


def scale(view: View, places: Mapping[Place, Slot]) -> tuple[list[Change], dict[Place, Slot]]:
    """Slots that go or come, and those that stay."""
    mode = view.service.spec.mode.replicated
    replicas = mode.replicas if mode is not None else 0
    surplus = len(places) - replicas
    if surplus > 0:
        gone = {slot.place for slot in _least_worth(places.values())[:surplus]}
        changes: list[Change] = [removed(t) for place in sorted(gone) for t in places[place].tasks]
        return changes, {place: slot for place, slot in places.items() if place not in gone}
    missing = min(-surplus, TASKS_MADE_MAX)
    free = (n for n in range(1, replicas + 1) if (n, "") not in places)
    # `free` has enough: of the first `replicas` numbers, no more than len(places) are taken.
    return [Put(view.first((next(free), ""))) for _ in range(missing)], dict(places)


def _least_worth(places: Iterable[Slot]) -> list[Slot]:
    """Slots in the order in which they go: first what does not run, then what crowds its node most, higher ones first.

    The n-th slot on a node (by number) is the n-th worth keeping there, so that nodes end up equally full.
    """
    crowd: Counter[str] = Counter()
    keys: list[tuple[bool, int, int]] = []
    slots = sorted(places, key=lambda s: s.place)
    for slot in slots:
        running = [t for t in slot.wanted if t.status.state is TaskState.RUNNING]
        node_id = running[-1].node_id if running else ""
        crowd[node_id] += bool(running)
        keys.append((not running, crowd[node_id] if running else 0, slot.place[0]))
    order = sorted(range(len(slots)), key=lambda i: keys[i], reverse=True)
    return [slots[i] for i in order]
