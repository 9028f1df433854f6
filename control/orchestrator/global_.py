"""Global services: one task on every node that fits. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from control.orchestrator.places import Place, Slot, View, removed, shut, takes_new
from control.orchestrator.replicated import TASKS_MADE_MAX
from control.store.txn import Change, Put


def cover(view: View, places: Mapping[Place, Slot]) -> tuple[list[Change], dict[Place, Slot]]:
    """Nodes whose tasks go, nodes that get one, and the places that stay.

    A node that is down keeps its task, which goes on when it returns: there is no other place for it. A paused node
    keeps what it has, and gets nothing new.
    """
    changes: list[Change] = []
    kept: dict[Place, Slot] = {}
    for place, slot in places.items():
        node = view.nodes.get(place[1])
        if node is None:
            changes += [removed(t) for t in slot.tasks]
        elif not view.fits(node):
            changes += [shut(t) for t in slot.wanted]
        elif node.status.state != "down":
            kept[place] = slot
    bare = [n for n in view.nodes.values() if (0, n.id) not in places and takes_new(n) and view.fits(n)]
    changes += [Put(view.first((0, node.id))) for node in bare[:TASKS_MADE_MAX]]
    return changes, kept
