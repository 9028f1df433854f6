"""The tasks of this node, from assigned to gone: the core that decides what the executor does next.

Sans-IO. The shell feeds what happened (`assign`, `receive`) and performs what `drain` hands out; each action comes
back as one event. At most one action of a task is under way, besides the wait for its end. Whatever the managers want
meanwhile is looked at when the action is done. Two tables below are the whole machine:

- NEXT: in a phase at rest, with what is wanted -> the next phase and the action that leads on.
- ON_EVENT: in a phase with an action under way, what happened -> the next phase and the state to report.

A task that is no longer assigned is stopped and removed, but only once the manager has sent its complete list.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from control.lifecycle import TaskState, is_terminal
from control.model import DRAIN_S, HealthCheck, Task, TaskStatus
from mesh.agent.view import LocalTask
from mesh.executor.protocol import Adopted, Exit, Sandbox

# A task that must stop waits for all nodes to take it out of their balancers; this long if the managers do not say that
# they have. A node that fails is found out sooner; one that hangs must not keep tasks alive.
WITHDRAW_MAX_S = 10.0
# Without a manager's word (the task is none of theirs any more): what the withdrawal usually takes, with a margin.
UNASKED_WITHDRAW_S = 1.0
# After this pause a failed stop or removal is tried again: a busy mount or cgroup goes away by itself.
RETRY_S = 5.0


class Phase(enum.Enum):
    """Where a task of this node is. The first group waits for something, the second is at rest."""

    PREPARING = "preparing"
    STARTING = "starting"
    CHECKING = "checking"  # until its health check succeeds for the first time
    RUNNING = "running"  # at rest as to what is wanted, and waiting for its end
    WITHDRAWING = "withdrawing"  # until no node sends it connections
    DRAINING = "draining"  # its open connections have their grace
    STOPPING = "stopping"
    REMOVING = "removing"
    ATTACHING = "attaching"  # waiting for the overlay
    ACCEPTED = "accepted"
    READY = "ready"
    ENDED = "ended"
    STUCK = "stuck"  # could not be removed; tried again later


class Wanted(enum.Enum):
    """What the managers want of a task."""

    HOLD = "hold"  # prepare it, do not start it
    RUN = "run"
    STOP = "stop"
    GONE = "gone"


# --- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepared:
    task_id: str
    sandbox: Sandbox


@dataclass(frozen=True, slots=True)
class Attached:
    """Its interfaces are in its namespace and its networks are routed."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Started:
    task_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class Healthy:
    """Its health check has succeeded, or it has none."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """Its health check has failed for good; the sentence is for the user."""

    task_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The action under way did not succeed; the sentence is for the user."""

    task_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """No node sends it new connections any more, or this was waited for long enough."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Drained:
    task_id: str


@dataclass(frozen=True, slots=True)
class Exited:
    task_id: str
    exit: Exit


@dataclass(frozen=True, slots=True)
class Removed:
    task_id: str


@dataclass(frozen=True, slots=True)
class RetryDue:
    task_id: str


Event = Prepared | Attached | Started | Healthy | Unhealthy | Failed | Withdrawn | Drained | Exited | Removed | RetryDue


# --- actions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepare:
    task: Task


@dataclass(frozen=True, slots=True)
class Start:
    task: Task


@dataclass(frozen=True, slots=True)
class Wait:
    """Report the end of a started task (Exited)."""

    task_id: str


@dataclass(frozen=True, slots=True)
class Check:
    """Probe its health until it succeeds (Healthy) or has failed for good (Unhealthy)."""

    task: Task


@dataclass(frozen=True, slots=True)
class Watch:
    """Probe its health until it has failed for good (Unhealthy)."""

    task: Task


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Wait `most_s`, then Withdrawn, if that has not come before."""

    task_id: str
    most_s: float


@dataclass(frozen=True, slots=True)
class Drain:
    """Wait `delay_s`, then Drained."""

    task_id: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    task_id: str
    signal: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class Remove:
    task_id: str


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Wait `delay_s`, then RetryDue."""

    task_id: str
    delay_s: float


Action = Prepare | Start | Wait | Check | Watch | Withdraw | Drain | Stop | Remove | RetryLater


# --- the tables ---------------------------------------------------------------------------------------------------

_P, _W, _S = Phase, Wanted, TaskState
_LEAVING = (Phase.WITHDRAWING, Phase.DRAINING, Phase.STOPPING)

# (phase, wanted) -> (next phase, state to report or None, action class or None)
NEXT: dict[tuple[Phase, Wanted], tuple[Phase, TaskState | None, type[Action] | None]] = {
    (_P.ACCEPTED, _W.HOLD): (_P.PREPARING, _S.PREPARING, Prepare),
    (_P.ACCEPTED, _W.RUN): (_P.PREPARING, _S.PREPARING, Prepare),
    (_P.ACCEPTED, _W.STOP): (_P.ENDED, _S.SHUTDOWN, None),
    (_P.ACCEPTED, _W.GONE): (_P.REMOVING, None, Remove),
    (_P.ATTACHING, _W.STOP): (_P.ENDED, _S.SHUTDOWN, None),
    (_P.ATTACHING, _W.GONE): (_P.REMOVING, None, Remove),
    (_P.READY, _W.RUN): (_P.STARTING, _S.STARTING, Start),
    (_P.READY, _W.STOP): (_P.ENDED, _S.SHUTDOWN, None),
    (_P.READY, _W.GONE): (_P.REMOVING, None, Remove),
    (_P.CHECKING, _W.STOP): (_P.STOPPING, None, Stop),
    (_P.CHECKING, _W.GONE): (_P.STOPPING, None, Stop),
    (_P.RUNNING, _W.STOP): (_P.WITHDRAWING, None, Withdraw),
    (_P.RUNNING, _W.GONE): (_P.WITHDRAWING, None, Withdraw),
    (_P.ENDED, _W.GONE): (_P.REMOVING, None, Remove),
}

# (phase, event) -> (next phase, state to report or None, action class or None). Exited gives its own state.
ON_EVENT: dict[tuple[Phase, type[Event]], tuple[Phase, TaskState | None, type[Action] | None]] = {
    (_P.PREPARING, Prepared): (_P.ATTACHING, None, None),
    (_P.PREPARING, Failed): (_P.ENDED, _S.REJECTED, None),
    (_P.ATTACHING, Attached): (_P.READY, _S.READY, None),
    (_P.STARTING, Started): (_P.CHECKING, None, Wait),
    (_P.CHECKING, Healthy): (_P.RUNNING, _S.RUNNING, None),
    (_P.CHECKING, Unhealthy): (_P.STOPPING, None, Stop),
    (_P.CHECKING, Exited): (_P.ENDED, None, None),
    (_P.RUNNING, Unhealthy): (_P.STOPPING, None, Stop),
    (_P.STARTING, Failed): (_P.ENDED, _S.FAILED, None),
    (_P.RUNNING, Exited): (_P.ENDED, None, None),
    (_P.WITHDRAWING, Exited): (_P.ENDED, None, None),
    (_P.WITHDRAWING, Withdrawn): (_P.DRAINING, None, Drain),
    (_P.DRAINING, Exited): (_P.ENDED, None, None),
    (_P.DRAINING, Drained): (_P.STOPPING, None, Stop),
    (_P.STOPPING, Exited): (_P.ENDED, None, None),
    (_P.STOPPING, Failed): (_P.STOPPING, None, RetryLater),
    (_P.STOPPING, RetryDue): (_P.STOPPING, None, Stop),
    (_P.REMOVING, Failed): (_P.STUCK, None, RetryLater),
    (_P.STUCK, RetryDue): (_P.REMOVING, None, Remove),
}


@dataclass(slots=True)
class _Entry:
    """One task. `task` is None for one that was adopted and that no manager has spoken of yet."""

    task_id: str
    phase: Phase
    state: TaskState
    task: Task | None = None
    netns: str | None = None
    image_health: HealthCheck | None = None
    pid: int = 0
    exit: Exit | None = None
    error: str = ""
    unhealthy: str = ""  # why it is being stopped, if its health check failed
    watched: bool = False  # its health is being probed
    withdrawn: bool = False  # no node sends it new connections
    dirty: bool = True  # its status has not been handed out since it changed
    at_ms: int = 0


@dataclass(slots=True)
class Tasks:
    """The core. Feed it, then `drain`."""

    _entries: dict[str, _Entry] = field(default_factory=dict)
    _actions: list[Action] = field(default_factory=list)
    _complete: bool = False  # the managers' complete list has been heard

    def adopt(self, found: Iterable[Adopted], now_ms: int) -> None:
        """Take over the tasks that the executor found at start."""
        for adopted in found:
            entry = _Entry(adopted.task_id, Phase.ATTACHING, _S.PREPARING, netns=adopted.sandbox.netns, at_ms=now_ms)
            entry.image_health = adopted.sandbox.health
            self._entries[adopted.task_id] = entry
            if adopted.exit is not None:
                entry.phase, entry.pid = Phase.ENDED, adopted.pid or 0
                _end(entry, adopted.exit, asked=False)
            elif adopted.pid is not None:
                entry.phase, entry.state, entry.pid = Phase.RUNNING, _S.RUNNING, adopted.pid
                self._actions.append(Wait(adopted.task_id))

    def assign(self, tasks: Iterable[Task], now_ms: int, *, complete: bool) -> None:
        """The tasks that this node must have. Not `complete` (a copy from disk): nothing is taken to be gone."""
        self._complete = self._complete or complete
        assigned = {task.id: task for task in tasks}
        for task in assigned.values():
            entry = self._entries.get(task.id)
            if entry is None:
                if is_terminal(task.status.state):
                    continue  # it ended in an earlier life of this node, and the managers know
                entry = _Entry(task.id, Phase.ACCEPTED, _S.ACCEPTED, at_ms=now_ms)
                self._entries[task.id] = entry
            entry.task = task
        for entry in self._entries.values():
            if entry.task_id not in assigned and self._complete:
                entry.task = None
        for entry in list(self._entries.values()):
            self._advance(entry, now_ms)

    def receive(self, event: Event, now_ms: int) -> None:
        """Something happened to a task. Events that fit no more (it moved on) are ignored."""
        entry = self._entries.get(event.task_id)
        if entry is None:
            return
        if isinstance(event, Removed):
            if entry.phase is Phase.REMOVING:
                del self._entries[event.task_id]
            return
        if isinstance(event, Withdrawn):
            entry.withdrawn = True  # also if it comes before its time: the task may still be starting
        step = ON_EVENT.get((entry.phase, type(event)))
        if step is None:
            return
        self._note(entry, event)
        self._move(entry, step, now_ms)
        if entry.phase is Phase.CHECKING and _health(entry) is None:
            self._move(entry, ON_EVENT[Phase.CHECKING, Healthy], now_ms)
        self._advance(entry, now_ms)

    def drain(self) -> list[Action]:
        """The actions to perform now, each once."""
        actions, self._actions = self._actions, []
        return actions

    def drain_statuses(self) -> dict[str, TaskStatus]:
        """The statuses that changed since the last call, by task id."""
        changed = [e for e in self._entries.values() if e.dirty]
        for entry in changed:
            entry.dirty = False
        return {e.task_id: _status(e) for e in changed}

    def statuses(self) -> dict[str, TaskStatus]:
        """All statuses, for a new session."""
        return {e.task_id: _status(e) for e in self._entries.values()}

    def local(self) -> Mapping[str, LocalTask]:
        """The tasks as `compile` wants them."""
        return {
            e.task_id: LocalTask(e.state, e.netns, draining=e.phase in _LEAVING)
            for e in self._entries.values()
            if e.phase not in (Phase.REMOVING, Phase.STUCK)
        }

    def probed(self, task_id: str) -> bool:
        """Whether the health of a task is still of interest."""
        entry = self._entries.get(task_id)
        return entry is not None and entry.phase in (Phase.CHECKING, Phase.RUNNING)

    def attaching(self) -> frozenset[str]:
        """Tasks that wait for their interfaces."""
        return frozenset(e.task_id for e in self._entries.values() if e.phase is Phase.ATTACHING)

    def pid(self, task_id: str) -> int | None:
        """The process of a running task."""
        entry = self._entries.get(task_id)
        return entry.pid if entry is not None and entry.pid and not is_terminal(entry.state) else None

    def known(self) -> dict[str, Task | None]:
        """All tasks here with what the managers said of them."""
        return {e.task_id: e.task for e in self._entries.values()}

    # --- inside -----------------------------------------------------------------------------------------------------

    def _wanted(self, entry: _Entry) -> Wanted | None:
        """What is wanted now; None: not known yet, leave it as it is."""
        if entry.task is None:
            return Wanted.GONE if self._complete else None
        if entry.task.desired_state >= _S.SHUTDOWN:
            return Wanted.STOP
        return Wanted.RUN if entry.task.desired_state >= _S.RUNNING else Wanted.HOLD

    def _advance(self, entry: _Entry, now_ms: int) -> None:
        """Follow NEXT until the task waits for something, or is as wanted."""
        self._probe(entry)
        for _ in Phase:  # no chain is longer than there are phases
            wanted = self._wanted(entry)
            step = NEXT.get((entry.phase, wanted)) if wanted is not None else None
            if step is None:
                return
            self._move(entry, step, now_ms)

    def _probe(self, entry: _Entry) -> None:
        """Have its health probed, from its start on or from its adoption."""
        health = _health(entry)
        if entry.task is None or health is None:
            return
        task = replace(entry.task, spec=replace(entry.task.spec, health=health))
        if entry.phase is Phase.CHECKING and not entry.watched:
            self._actions.append(Check(task))
        elif entry.phase is Phase.RUNNING and not entry.watched:
            self._actions.append(Watch(task))
        entry.watched = entry.phase in (Phase.CHECKING, Phase.RUNNING)

    def _move(self, entry: _Entry, step: tuple[Phase, TaskState | None, type[Action] | None], now_ms: int) -> None:
        phase, state, action = step
        entry.phase = phase
        if state is not None and state > entry.state:
            entry.state = state
        entry.dirty, entry.at_ms = True, now_ms
        if action is not None:
            self._actions.append(self._action(entry, action))

    def _action(self, entry: _Entry, action: type[Action]) -> Action:
        task = entry.task
        if action is Stop:
            spec = task.spec if task is not None else None
            return Stop(
                entry.task_id,
                spec.stop_signal if spec is not None else "SIGTERM",
                spec.stop_grace_s if spec is not None else 10.0,
            )
        if action is Withdraw:
            return Withdraw(entry.task_id, _withdraw_s(entry))
        if action is Drain:
            return Drain(entry.task_id, task.spec.drain_s if task is not None else DRAIN_S)
        if action is RetryLater:
            return RetryLater(entry.task_id, RETRY_S)
        if action is Prepare or action is Start:
            assert task is not None, "only an assigned task is prepared or started"
            return Prepare(task) if action is Prepare else Start(task)
        return Wait(entry.task_id) if action is Wait else Remove(entry.task_id)

    def _note(self, entry: _Entry, event: Event) -> None:
        """Keep what an event tells besides the transition."""
        match event:
            case Prepared(sandbox=sandbox):
                entry.netns, entry.image_health = sandbox.netns, sandbox.health
            case Started(pid=pid):
                entry.pid = pid
            case Failed(error=error):
                entry.error = error
            case Unhealthy(error=error):
                entry.unhealthy = error
            case Healthy():
                entry.watched = False  # from now on as one that runs
            case Exited(exit=ended):
                _end(entry, ended, asked=entry.phase is Phase.STOPPING and not entry.unhealthy)
            case Attached() | Withdrawn() | Drained() | Removed() | RetryDue():
                pass


def _health(entry: _Entry) -> HealthCheck | None:
    """What the service says, else what the image says."""
    return (entry.task.spec.health or entry.image_health) if entry.task is not None else None


def _withdraw_s(entry: _Entry) -> float:
    """How long to wait for the nodes to take a task out."""
    if entry.withdrawn:
        return 0.0
    return WITHDRAW_MAX_S if entry.task is not None else UNASKED_WITHDRAW_S


def _end(entry: _Entry, ended: Exit, *, asked: bool) -> None:
    entry.exit = ended
    if entry.unhealthy:
        entry.state, entry.error = _S.FAILED, entry.unhealthy
        return
    entry.error = "" if asked else ended.message
    if asked:
        entry.state = _S.SHUTDOWN
    else:
        entry.state = _S.COMPLETE if ended.code == 0 else _S.FAILED
    if entry.state is _S.FAILED and not entry.error:
        entry.error = f"ended with exit code {ended.code}"


_MESSAGES = {
    _S.ACCEPTED: "accepted",
    _S.PREPARING: "preparing",
    _S.READY: "prepared",
    _S.STARTING: "starting",
    _S.RUNNING: "started",
    _S.COMPLETE: "finished",
    _S.SHUTDOWN: "shut down",
    _S.FAILED: "failed",
    _S.REJECTED: "rejected",
}


def _status(entry: _Entry) -> TaskStatus:
    return TaskStatus(
        state=entry.state,
        at_ms=entry.at_ms,
        message=_MESSAGES[entry.state],
        error=entry.error,
        exit_code=entry.exit.code if entry.exit is not None else None,
        pid=0 if is_terminal(entry.state) else entry.pid,
    )
