"""The tasks of one service, sorted into the places that successive tasks fill. Pure.

A *place* is a slot of a replicated service or a node of a global one. In a place there is at most one *current* task
(the newest that is not on its way out), besides older ones that still end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from control.lifecycle import TaskState, is_terminal
from control.model import Node, Task
from control.store.tables import Snapshot

Place = tuple[int, str]  # (slot, "") or (0, node id)


@dataclass(frozen=True, slots=True)
class Slot:
    """A place with its tasks, oldest first; those wanted REMOVEd are left out."""

    place: Place
    tasks: tuple[Task, ...]

    @property
    def newest(self) -> Task:
        """The latest task."""
        return self.tasks[-1]

    @property
    def current(self) -> tuple[Task, ...]:
        """Tasks that are wanted to run, oldest first: one, or two in the middle of a replacement."""
        return tuple(t for t in self.tasks if t.desired_state <= TaskState.RUNNING)

    def ending(self, before: Task) -> tuple[Task, ...]:
        """Older tasks than `before` that have not ended."""
        older = self.tasks[: self.tasks.index(before)]
        return tuple(t for t in older if not is_terminal(t.status.state))


def place_of(task: Task) -> Place:
    """Where a task stands."""
    return (task.slot, "") if task.slot else (0, task.node_id)


def slots(tasks: Iterable[Task]) -> dict[Place, Slot]:
    """The places of a service that have a task not wanted REMOVEd."""
    found: dict[Place, list[Task]] = defaultdict(list)
    for task in tasks:
        if task.desired_state != TaskState.REMOVE:
            found[place_of(task)].append(task)
    return {place: Slot(place, tuple(sorted(group, key=age))) for place, group in sorted(found.items())}


def age(task: Task) -> tuple[int, int, str]:
    """Sorts tasks oldest first; the version breaks ties within a millisecond."""
    return task.meta.created_ms, task.meta.version if not task.meta.created_ms else 0, task.id


def is_lost(snapshot: Snapshot, task: Task) -> bool:
    """Whether a task that has not ended must be replaced, because its node is down or gone."""
    if not task.node_id or is_terminal(task.status.state):
        return False
    node = snapshot.get(Node, task.node_id)
    return node is None or node.status.state == "down"


def is_evicted(snapshot: Snapshot, task: Task) -> bool:
    """Whether a task must leave its node, which is being drained."""
    node = snapshot.get(Node, task.node_id) if task.node_id else None
    return node is not None and node.spec.availability == "drain"
