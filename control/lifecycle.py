"""The life of a task: its states, and who may write which transition.

The model is SwarmKit's: two separate fields. `desired_state` says what the managers want, `status.state` what has
been observed; both only ever advance. The observed state is written by managers up to ASSIGNED and by the task's
own node from there on. Numbers have gaps so that states can be put between them later.

The two tables at the bottom are the whole truth; the store refuses every write that is not in them.
"""

from __future__ import annotations

import enum


class TaskState(enum.IntEnum):
    """Observed and desired states of a task, in the order of a life."""

    NEW = 0  # made by an orchestrator
    PENDING = 64  # has all its addresses and ports
    ASSIGNED = 192  # has a node
    ACCEPTED = 256  # the node knows of it
    PREPARING = 320  # image, root file system, network
    READY = 384  # could be started
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576  # ended by itself with exit code 0
    SHUTDOWN = 640  # ended because it was asked to
    FAILED = 704  # ended by itself with another exit code, or could not be started
    REJECTED = 768  # could not be prepared, or may no longer be on its node
    REMOVE = 800  # desired only: stop it, then forget it
    ORPHANED = 832  # its node has been away too long to know


class Writer(enum.Enum):
    """Who asks the store for a change of a task."""

    ORCHESTRATOR = "orchestrator"  # replicated, global, jobs, updater, restart supervisor, reaper
    ALLOCATOR = "allocator"
    SCHEDULER = "scheduler"
    DISPATCHER = "dispatcher"  # on its own behalf: nodes that are gone
    AGENT = "agent"  # the dispatcher on behalf of the task's own node
    ENFORCER = "enforcer"  # constraints that no longer hold


TERMINAL_FROM = TaskState.COMPLETE
RUNNABLE_TO = TaskState.RUNNING

DESIRED_STATES = frozenset(
    {TaskState.READY, TaskState.RUNNING, TaskState.COMPLETE, TaskState.SHUTDOWN, TaskState.REMOVE}
)


def is_terminal(state: TaskState) -> bool:
    """Whether a task observed in `state` has ended for good."""
    return state >= TERMINAL_FROM


_S = TaskState
_ON_NODE = (_S.ASSIGNED, _S.ACCEPTED, _S.PREPARING, _S.READY, _S.STARTING, _S.RUNNING)
_LIVE = (_S.NEW, _S.PENDING, *_ON_NODE)

Transition = tuple[TaskState, TaskState]


def _ahead(first: TaskState, last: TaskState) -> frozenset[Transition]:
    """All forward steps between two states on the way up, so that reports may be coalesced."""
    way = [s for s in _LIVE if first <= s <= last]
    return frozenset((a, b) for i, a in enumerate(way) for b in way[i + 1 :])


# writer -> the transitions of the observed state that it may write.
OBSERVED: dict[Writer, frozenset[Transition]] = {
    Writer.ORCHESTRATOR: frozenset(),
    Writer.ALLOCATOR: frozenset({(_S.NEW, _S.PENDING)}),
    Writer.SCHEDULER: frozenset({(_S.PENDING, _S.ASSIGNED)}),
    Writer.DISPATCHER: frozenset((s, _S.ORPHANED) for s in _ON_NODE),
    Writer.ENFORCER: frozenset((s, _S.REJECTED) for s in _LIVE),
    Writer.AGENT: (
        _ahead(_S.ASSIGNED, _S.RUNNING)
        | frozenset((s, end) for s in _ON_NODE for end in (_S.COMPLETE, _S.SHUTDOWN, _S.FAILED))
        | frozenset((s, _S.REJECTED) for s in _ON_NODE if s < _S.RUNNING)
    ),
}

# Only orchestrators move the desired state, and only forward.
DESIRED_WRITERS = frozenset({Writer.ORCHESTRATOR})


def may_observe(writer: Writer, before: TaskState, after: TaskState) -> bool:
    """Whether `writer` may move a task's observed state from `before` to `after` (staying put is always allowed)."""
    return before == after or (before, after) in OBSERVED[writer]


def may_desire(writer: Writer, before: TaskState, after: TaskState) -> bool:
    """Whether `writer` may move a task's desired state from `before` to `after`."""
    return before == after or (writer in DESIRED_WRITERS and after in DESIRED_STATES and after > before)


def may_delete(observed: TaskState, desired: TaskState) -> bool:
    """Whether a task may leave the store: it has ended, or it never reached a node and is not wanted any more."""
    return is_terminal(observed) or (observed < TaskState.ASSIGNED and desired > RUNNABLE_TO)
