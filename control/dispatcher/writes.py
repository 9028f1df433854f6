"""What the dispatcher wants written, and the changes of the store that this comes to. Pure.

A `Write` says what was heard, not what the objects shall look like: the changes are made from the snapshot at the
moment of the commit, and made again from a newer one after a conflict. Doing so twice changes nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from control.assignment import AttachmentReport
from control.lifecycle import TaskState, Writer, is_terminal, may_observe
from control.model import Node, NodeDescription, NodeState, Task, TaskStatus
from control.store.tables import Snapshot
from control.store.txn import Put


@dataclass(frozen=True, slots=True)
class NodeUpdate:
    """News of a node; None: as it was."""

    state: NodeState | None = None
    message: str = ""  # goes with `state`
    description: NodeDescription | None = None
    address: str | None = None
    data_address: str | None = None

    def then(self, later: NodeUpdate) -> NodeUpdate:
        """Both, the later one winning."""
        return NodeUpdate(
            state=later.state or self.state,
            message=later.message if later.state else self.message,
            description=later.description or self.description,
            address=later.address if later.address is not None else self.address,
            data_address=later.data_address if later.data_address is not None else self.data_address,
        )


@dataclass(frozen=True, slots=True)
class Write:
    """Everything to be written at once. `orphaned`: nodes whose tasks nobody will ever hear of again."""

    number: int
    reports: Mapping[str, TaskStatus] = field(default_factory=dict)
    nodes: Mapping[str, NodeUpdate] = field(default_factory=dict)
    orphaned: frozenset[str] = frozenset()
    attached: Mapping[str, AttachmentReport] = field(default_factory=dict)


def report_changes(write: Write, snapshot: Snapshot) -> list[Put]:
    """Changes for Writer.AGENT: statuses that say something new and may still be written."""
    changes = []
    for task_id, status in write.reports.items():
        task = snapshot.get(Task, task_id)
        if task is not None and is_news(task.status, status):
            changes.append(Put(msgspec.structs.replace(task, status=status)))
    return changes


def node_changes(write: Write, snapshot: Snapshot, now_ms: int) -> list[Put]:
    """Changes for Writer.DISPATCHER."""
    changes: list[Put] = []
    for node_id, update in write.nodes.items():
        node = snapshot.get(Node, node_id)
        if node is not None and (updated := _updated(node, update)) != node:
            changes.append(Put(updated))
    for node_id in sorted(write.orphaned):
        for task in snapshot.tasks_on_node(node_id):
            if is_placed(task):
                status = TaskStatus(state=TaskState.ORPHANED, at_ms=now_ms, message="its node is gone for good")
                changes.append(Put(msgspec.structs.replace(task, status=status)))
    return changes


def is_placed(task: Task) -> bool:
    """Whether only a node can say how it is with the task: placed there, and not ended."""
    return task.status.state >= TaskState.ASSIGNED and not is_terminal(task.status.state)


def is_news(before: TaskStatus, after: TaskStatus) -> bool:
    """Whether a node's report is to be written: it goes forward, or tells more of the same live state."""
    if is_same(before, after) or before.state < TaskState.ASSIGNED or is_terminal(before.state):
        return False
    return may_observe(Writer.AGENT, before.state, after.state)


def is_same(before: TaskStatus, after: TaskStatus) -> bool:
    """Whether a report only says another time: a daemon that was started anew tells what goes on since long ago."""
    return msgspec.structs.replace(after, at_ms=before.at_ms) == before


def _updated(node: Node, update: NodeUpdate) -> Node:
    status = node.status
    if update.state is not None:
        status = msgspec.structs.replace(status, state=update.state, message=update.message)
    if update.address is not None:
        status = msgspec.structs.replace(status, address=update.address)
    if update.data_address is not None:
        status = msgspec.structs.replace(status, data_address=update.data_address)
    return msgspec.structs.replace(node, status=status, description=update.description or node.description)
