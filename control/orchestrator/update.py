"""Rolling updates and rollbacks, as a machine on the service's `update_status` and its tasks. Pure.

    "" | completed | rollback_completed  --outdated places-->            updating
    updating          --nothing left, all new tasks settled-->           completed
    updating          --too many failures: pause-->                      paused
    updating          --too many failures: rollback-->                   rollback_started
    rollback_started  --nothing left, all new tasks settled-->           rollback_completed
    rollback_started  --too many failures-->                             rollback_paused
    paused | rollback_paused  --a user's update or rollback (control.server)-->  "" | rollback_started

A place is *outdated* while no wanted task in it runs what the service wants. It is begun by making a new task, which
carries the update's start (`rollout_ms`), and is *busy* until that one has run for the policy's delay, or has failed.
At most `parallelism` places are busy. The new task is *settled* when it has run for the monitor period; ended before
that, or not running by the deadline, it is a failure. So all that is to be remembered stands in the store.

When the update is paused, steps that were begun are finished, but no new ones are taken: a new task that failed beside
its old one is given up, and the old one stays. That, and letting a held task run, is the business of `restart`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from control.lifecycle import TaskState, is_terminal
from control.model import Network, Service, Task, UpdatePolicy, UpdateStatus
from control.orchestrator.places import (
    ENDED_BY_ITSELF,
    Place,
    Slot,
    View,
    earliest,
    place_of,
    shut,
)
from control.orchestrator.restart import delay_after_ms, may_restart
from control.store.txn import Change, Put

UNDER_WAY = frozenset({"updating", "rollback_started"})
_PAUSED = frozenset({"paused", "rollback_paused"})


@dataclass(frozen=True, slots=True)
class Step:
    """What an update does now: changes, the places that nobody else may touch, and when to look again."""

    changes: tuple[Change, ...] = ()
    touched: frozenset[Place] = frozenset()
    wake_at_ms: int | None = None


@dataclass(slots=True)
class _Survey:
    """Where all places are."""

    outdated: list[Slot] = field(default_factory=list)  # may be begun
    later: int = 0  # outdated, to be tried again when their restart delay is over
    busy: int = 0
    unsettled: int = 0
    settling: list[Task] = field(default_factory=list)  # have run for long enough
    failed: list[Task] = field(default_factory=list)  # one for each place
    total: int = 0  # places that were begun or are to be
    waiting: str = ""  # why a new task does not get on
    wakes: list[int] = field(default_factory=list)


def roll(view: View, places: Mapping[Place, Slot]) -> Step:
    """The next steps of an update, if there is one."""
    status = view.service.update_status
    if status.state in _PAUSED:
        return Step()
    if status.state not in UNDER_WAY:
        survey = _Look(view, view.service.spec.update, 0).survey(places)
        if not survey.outdated:
            return Step((), frozenset(), earliest(survey.wakes))
        begun = _with_state(view.service, "updating", view.now_ms, "update in progress")
        return _begin_places(view, view.service.spec.update, survey, view.now_ms, [begun])
    rolling_back = status.state == "rollback_started"
    policy = view.service.spec.rollback if rolling_back else view.service.spec.update
    survey = _Look(view, policy, status.started_ms).survey(places)
    if survey.failed and len(survey.failed) / survey.total > policy.max_failure_ratio:
        acted = _on_failure(view, policy, survey.failed[-1], rolling_back)
        if acted is not None:
            return Step((acted,))
    if not (survey.outdated or survey.later or survey.busy or survey.unsettled):
        state, message = (
            ("rollback_completed", "rollback completed") if rolling_back else ("completed", "update completed")
        )
        return Step((_with_state(view.service, state, view.now_ms, message),))
    return _begin_places(view, policy, survey, status.started_ms, _news(view, rolling_back, survey.waiting))


def _news(view: View, rolling_back: bool, waiting: str) -> list[Change]:
    """Say what an update waits for, when that has changed."""
    message = "rollback in progress" if rolling_back else "update in progress"
    message += f", waiting for {waiting}" if waiting else ""
    status = view.service.update_status
    if message == status.message:
        return []
    return [Put(replace(view.service, update_status=replace(status, message=message)))]


# --- looking ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Look:
    """`started_ms`: what the new tasks of this update carry; 0: there is none yet."""

    view: View
    policy: UpdatePolicy
    started_ms: int

    def survey(self, places: Mapping[Place, Slot]) -> _Survey:
        """All places, sorted out."""
        survey = _Survey()
        for slot in places.values():
            self._place(survey, slot)
        # Those that do not run first: nothing is lost by them.
        survey.outdated.sort(key=lambda s: (any(t.status.state is TaskState.RUNNING for t in s.wanted), s.place))
        return survey

    def _place(self, survey: _Survey, slot: Slot) -> None:
        made = [t for t in slot.tasks if self.started_ms and t.rollout_ms == self.started_ms]
        failure = next((t for t in reversed(made) if self._has_failed(t)), None)
        if failure is not None:
            survey.failed.append(failure)
        wanted = slot.wanted
        current = [t for t in wanted if not self.view.is_outdated(t)]
        outdated = not current and self._may_begin(slot, wanted)
        survey.total += bool(made) or outdated
        if outdated:
            due_ms = self._retry_ms(slot)
            if due_ms > self.view.now_ms:
                survey.later += 1
                survey.wakes.append(due_ms)
            else:
                survey.outdated.append(slot)
        elif failure is not None:
            self._busy_until(survey, failure.meta.updated_ms + self._delay_ms())
        elif current and current[-1] in made and not current[-1].settled:
            self._follow(survey, current[-1])

    def _may_begin(self, slot: Slot, wanted: tuple[Task, ...]) -> bool:
        if not self.view.can_be_filled(slot.place):
            return False
        newest = slot.newest
        if not wanted:
            return self.view.runs_another_spec(newest)
        # Beside the old task a new one has failed already: once more, if the restart policy has nothing against it.
        return newest in wanted or self.view.runs_another_spec(newest) or may_restart(self.view, slot, newest)

    def _retry_ms(self, slot: Slot) -> int:
        newest = slot.newest
        if not slot.wanted or newest in slot.wanted or self.view.runs_another_spec(newest):
            return 0
        return newest.meta.updated_ms + delay_after_ms(self.view, newest)

    def _follow(self, survey: _Survey, task: Task) -> None:
        """A new task that has not failed."""
        state = task.status.state
        if is_terminal(state):
            return  # it has done its work, or was made to stop: either way it is no new task any more
        if state is not TaskState.RUNNING:
            survey.busy += 1
            survey.unsettled += 1
            if task.status.error:
                survey.waiting = survey.waiting or f"{_name(task)}: {task.status.error}"
            if self.policy.deadline_s:
                survey.wakes.append(task.meta.created_ms + int(self.policy.deadline_s * 1000))
            return
        since_ms = task.meta.updated_ms
        self._busy_until(survey, since_ms + self._delay_ms())
        settled_ms = since_ms + max(self._delay_ms(), int(self.policy.monitor_s * 1000))
        if self.view.now_ms >= settled_ms:
            survey.settling.append(task)
        else:
            survey.unsettled += 1
            survey.wakes.append(settled_ms)

    def _busy_until(self, survey: _Survey, until_ms: int) -> None:
        if self.view.now_ms < until_ms:
            survey.busy += 1
            survey.wakes.append(until_ms)

    def _delay_ms(self) -> int:
        return int(self.policy.delay_s * 1000)

    def _has_failed(self, task: Task) -> bool:
        """Whether a new task ended too early, or takes too long."""
        if task.settled:
            return False
        state = task.status.state
        if state is TaskState.COMPLETE:
            return task.spec.restart.condition == "any"  # else to end well is what it is for
        if state in ENDED_BY_ITSELF:
            return True
        late = self.policy.deadline_s and self.view.now_ms >= task.meta.created_ms + int(self.policy.deadline_s * 1000)
        return bool(late) and state < TaskState.RUNNING and task.desired_state <= TaskState.RUNNING


# --- stepping -----------------------------------------------------------------------------------------------------


def _begin_places(view: View, policy: UpdatePolicy, survey: _Survey, started_ms: int, changes: list[Change]) -> Step:
    touched: set[Place] = set()
    for task in survey.settling:
        changes.append(Put(replace(task, settled=True)))
        touched.add(place_of(task))
    room = policy.parallelism - survey.busy if policy.parallelism else len(survey.outdated)
    for slot in survey.outdated[: max(0, room)]:
        changes += _begin(view, policy, slot, started_ms)
        touched.add(slot.place)
    return Step(tuple(changes), frozenset(touched), earliest(survey.wakes))


def _begin(view: View, policy: UpdatePolicy, slot: Slot, started_ms: int) -> list[Change]:
    """Begin with one place: the new task, and what becomes of the old ones."""
    old = slot.wanted
    running = [t for t in old if t.status.state is TaskState.RUNNING and view.is_alive(t)]
    if policy.order == "start-first" and running and not _excludes_itself(view):
        changes: list[Change] = [shut(t) for t in old if t is not running[-1]]
        return [*changes, Put(view.updated(slot.place, TaskState.RUNNING, started_ms))]
    waits = any(view.is_alive(t) for t in slot.tasks)
    desired = TaskState.READY if waits else TaskState.RUNNING
    return [*(shut(t) for t in old), Put(view.updated(slot.place, desired, started_ms))]


def _excludes_itself(view: View) -> bool:
    """Whether the new task can never be beside the old one: both on the same node, with the same port of it."""
    return view.is_global and any(port.mode == "host" for port in view.service.spec.ports)


# --- failing ------------------------------------------------------------------------------------------------------


def _on_failure(view: View, policy: UpdatePolicy, failed: Task, rolling_back: bool) -> Change | None:
    """What the policy says after too many failures; None: go on."""
    cause = f"due to failure or early termination of task {_name(failed)}{_reason(failed)}"
    if policy.failure_action == "continue":
        return None
    if rolling_back:  # a rollback is never rolled back
        return _with_state(view.service, "rollback_paused", view.now_ms, f"rollback paused {cause}")
    if policy.failure_action == "pause":
        return _with_state(view.service, "paused", view.now_ms, f"update paused {cause}")
    obstacle = _obstacle(view)
    if obstacle:
        return _with_state(view.service, "paused", view.now_ms, f"update paused {cause}; cannot roll back: {obstacle}")
    return _with_state(_rolled_back(view.service), "rollback_started", view.now_ms, f"update rolled back {cause}")


def _obstacle(view: View) -> str:
    """Why the service cannot go back to its previous spec; empty if it can."""
    previous = view.service.previous_spec
    if previous is None:
        return "there is no previous version"
    if any(view.snapshot.get(Network, a.network_id) is None for a in previous.task.networks):
        return "its previous version is on a network that is gone"
    for port in previous.ports:
        owner = view.snapshot.port_owner(port.protocol, port.published) if port.published else None
        if port.mode == "ingress" and owner is not None and owner.id != view.service.id:
            return f'port {port.published}/{port.protocol} of its previous version is used by "{owner.spec.name}" now'
    return ""


def _rolled_back(service: Service) -> Service:
    """The service as before its last update. The number of replicas stays: scaling is not what failed."""
    assert service.previous_spec is not None
    return replace(
        service,
        spec=replace(service.previous_spec, mode=service.spec.mode),
        spec_version=service.previous_spec_version,
        previous_spec=None,
        previous_spec_version=0,
    )


def _name(task: Task) -> str:
    return f"{task.service_name}.{task.slot}" if task.slot else f"{task.service_name}.{task.node_id}"


def _reason(task: Task) -> str:
    if task.status.error:
        return f": {task.status.error}"
    return f" (exit code {task.status.exit_code})" if task.status.exit_code is not None else ""


def _with_state(service: Service, state: str, now_ms: int, message: str) -> Change:
    ended = state in ("completed", "rollback_completed")
    status = UpdateStatus(
        state=state,
        message=message,
        started_ms=now_ms if state in UNDER_WAY else service.update_status.started_ms,
        completed_ms=now_ms if ended else 0,
    )
    return Put(replace(service, update_status=status))
