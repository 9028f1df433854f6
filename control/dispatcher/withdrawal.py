"""Tasks that are to stop, until every node has taken them out of its balancers and its names. Pure.

A task that must stop may still be chosen by a node that has not heard of it. So its own node keeps it running until all
nodes that can send it connections hold a version of the store in which it is draining. Nodes that are down are not
waited for; a node that is up and does not catch up delays the stop only as long as the task's node is willing to wait
(mesh.agent.tasks.WITHDRAW_MAX_S).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from control.lifecycle import TaskState, is_terminal
from control.model import Task
from control.store.tables import Event


@dataclass(slots=True)
class _Batch:
    """Tasks that began to drain with one version, and the nodes that do not hold it yet."""

    version: int
    tasks: Mapping[str, str]  # task id -> its node
    waiting: set[str]


class Withdrawals:
    """What is waited for. A batch a flush (at most 20 a second), each gone with its last node."""

    def __init__(self) -> None:
        self._batches: list[_Batch] = []

    def begin(self, version: int, tasks: Iterable[Task], nodes: Iterable[str]) -> None:
        """These tasks drain as of `version`; wait for `nodes`."""
        found = {task.id: task.node_id for task in tasks}
        if found:
            self._batches.append(_Batch(version, found, set(nodes)))

    def restart(self) -> None:
        """Forget all: everything is begun again."""
        self._batches = []

    def check(self, node_id: str, holds: Callable[[int], bool]) -> None:
        """A node holds more, or is not waited for any more (`holds` of any version is then true)."""
        for batch in self._batches:
            if node_id in batch.waiting and holds(batch.version):
                batch.waiting.discard(node_id)

    def finished(self) -> Iterator[tuple[str, list[str]]]:
        """(node, its tasks that every node has withdrawn), each task once."""
        done = [batch for batch in self._batches if not batch.waiting]
        self._batches = [batch for batch in self._batches if batch.waiting]
        for batch in done:
            for node_id in sorted(set(batch.tasks.values())):
                yield node_id, sorted(task for task, node in batch.tasks.items() if node == node_id)

    def pending(self, task_id: str) -> bool:
        """Whether a task is still waited for."""
        return any(task_id in batch.tasks for batch in self._batches)


def is_draining(task: Task) -> bool:
    """Placed, asked to stop, and not ended."""
    return bool(task.node_id) and task.desired_state >= TaskState.SHUTDOWN and not is_terminal(task.status.state)


def began_to_drain(events: Iterable[Event]) -> list[Task]:
    """The tasks that some of the events asked to stop."""
    found: dict[str, Task] = {}
    for event in events:
        match event.before, event.after:
            case Task() as before, Task() as after if is_draining(after) and not is_draining(before):
                found[after.id] = after
            case _:
                pass
    return list(found.values())
