"""Whether a service has become what was asked for, and how that is shown meanwhile. Pure: `now` is passed in.

`assess` looks at a service and its tasks once; `Stability` says since when all looks have been good; the displays turn
looks into text, one for terminals (redrawn in place) and one for logs (a line when something changes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control.lifecycle import TaskState, is_terminal
from control.model import RestartPolicy, Service, Task, UpdateStatus
from mesh.cli.show.names import task_name
from mesh.cli.show.tasks import is_running
from mesh.cli.text.table import printable, short_id, shorten

# With more places than this only the sum is drawn (as Docker).
PLACES_SHOWN = 20
BAR_LENGTH = 40
# Different errors told to a log that has no end of them.
LINES_MAX = 1000

_STEPS = (
    TaskState.NEW,
    TaskState.PENDING,
    TaskState.ASSIGNED,
    TaskState.ACCEPTED,
    TaskState.PREPARING,
    TaskState.READY,
    TaskState.STARTING,
    TaskState.RUNNING,
)


@dataclass(frozen=True, slots=True)
class PlaceProgress:
    """How far one place of a service is.

    `state` is a word; `step` counts from 0 to len(_STEPS) - 1; `final`: nothing will be started here again.
    """

    name: str
    state: str
    step: int
    done: bool
    error: str = ""
    node_id: str = ""
    final: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """One look. `failure`, when set, is why there is nothing to wait for any more."""

    total: int
    places: tuple[PlaceProgress, ...]
    stopping: int
    updating: bool
    failure: str = ""

    @property
    def done(self) -> int:
        """Places that are as they should be."""
        return sum(1 for place in self.places if place.done)

    @property
    def converged(self) -> bool:
        """Everything is as it should be, and nothing more."""
        all_there = self.done == self.total == len(self.places)
        return all_there and not self.stopping and not self.updating


def assess(
    service: Service,
    tasks: Sequence[Task],
    down: frozenset[str],
    *,
    target_version: int,
    before: UpdateStatus,
    rolling_back: bool = False,
) -> Progress:
    """Look at a service after a change.

    `tasks` are all of its own; `down` the ids of nodes that are away; `target_version` the spec version that the change
    has made; `before` the update status then. `rolling_back`: the change is a rollback, so one that ends is no failure.
    """
    places: dict[tuple[int, str], list[Task]] = {}
    for task in sorted(tasks, key=lambda t: (t.slot, t.node_id if not t.slot else "", t.meta.created_ms, t.id)):
        places.setdefault((task.slot, "" if task.slot else task.node_id), []).append(task)
    looked = [_place(group, service, down) for group in places.values()]
    found = tuple(place for place in looked if place is not None)
    replicated = service.spec.mode.replicated
    wanted = [t for t in tasks if t.desired_state <= TaskState.RUNNING]
    # A global service has no number: until the orchestrator has made its tasks there is at least one to wait for.
    total = replicated.replicas if replicated is not None else max(1, len(found))
    stopping = sum(
        1
        for t in tasks
        if t.desired_state > TaskState.RUNNING and t.status.state >= TaskState.ASSIGNED
        and not is_terminal(t.status.state) and t.node_id not in down
    )  # fmt: skip
    return Progress(
        total=total,
        places=found,
        stopping=stopping,
        updating=service.update_status.state in ("updating", "rollback_started")
        or any(t.spec_version != service.spec_version for t in wanted),
        failure=_failure(service, found, target_version=target_version, before=before, rolling_back=rolling_back),
    )


def _place(tasks: Sequence[Task], service: Service, down: frozenset[str]) -> PlaceProgress | None:
    """One place, its tasks oldest first; None for one that is given up."""
    wanted = [t for t in tasks if t.desired_state <= TaskState.RUNNING]
    fresh = [t for t in wanted if t.spec_version == service.spec_version]
    if not wanted:
        return _ended(tasks[-1], service)
    task = (fresh or wanted)[-1]
    state = task.status.state
    done = bool(fresh) and is_running(task, down)
    lost = task.node_id in down
    earlier = next((t.status.error for t in reversed(tasks) if t is not task and t.status.error), "")
    return PlaceProgress(
        name=task_name(task),
        state="node is down" if lost else state.name.lower(),
        step=_STEPS.index(state) if fresh and state in _STEPS else 0,
        done=done,
        error="" if done else task.status.error or earlier,
        node_id=task.node_id,
    )


def _ended(task: Task, service: Service) -> PlaceProgress | None:
    """A place that nobody fills again, by the restart policy."""
    if (
        task.desired_state is TaskState.REMOVE
        or task.spec_version != service.spec_version
        or not _stays_ended(service.spec.task.restart)
        or task.status.state not in (TaskState.COMPLETE, TaskState.FAILED, TaskState.REJECTED)
    ):
        return None
    return PlaceProgress(
        name=task_name(task),
        state=task.status.state.name.lower(),
        step=len(_STEPS) - 1,
        done=task.status.state is TaskState.COMPLETE,
        error=task.status.error,
        node_id=task.node_id,
        final=True,
    )


def _stays_ended(policy: RestartPolicy) -> bool:
    return policy.condition != "any" or policy.max_attempts > 0


def _failure(
    service: Service,
    places: Sequence[PlaceProgress],
    *,
    target_version: int,
    before: UpdateStatus,
    rolling_back: bool,
) -> str:
    status, name = service.update_status, service.spec.name
    if status != before:
        if status.state in ("paused", "rollback_paused"):
            return f'service "{name}": {status.message or status.state.replace("_", " ")}'
        if status.state == "rollback_completed" and not rolling_back and service.spec_version != target_version:
            return f'service "{name}" was rolled back to its previous version: the update failed'
    for place in places:
        if place.final and not place.done:
            reason = place.error or "no reason given"
            return f'service "{name}": {place.name} {place.state} and is not restarted: {reason}'
    return ""


class Stability:
    """Since when every look has been good."""

    def __init__(self, stable_s: float) -> None:
        self._stable_s = stable_s
        self._since: float | None = None

    def observe(self, *, converged: bool, now: float) -> float | None:
        """Take a look into account; how many seconds it must stay like this (0: it has), or None if it is not good."""
        if not converged:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        return max(0.0, self._stable_s - (now - self._since))


# --- displays -------------------------------------------------------------------------------------------------------


class LineDisplay:
    """For logs and pipes: a line when something is new."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._overall = ""
        self._errors: dict[str, str] = {}
        self._lines = 0

    def frame(self, progress: Progress, left_s: float | None) -> str:
        """What to print now."""
        lines = []
        overall = overall_line(progress)
        if overall != self._overall:
            self._overall = overall
            lines.append(overall)
        for place in progress.places[:LINES_MAX]:
            if place.error and self._errors.get(place.name) != place.error:
                self._errors[place.name] = place.error
                lines.append(f"{place.name}: {place.state}: {printable(place.error)}")
        if left_s == 0:
            lines.append(f"verify: service {self._name} converged")
        lines = lines[: max(0, LINES_MAX - self._lines)]
        self._lines += len(lines)
        return "".join(line + "\n" for line in lines)


class TerminalDisplay:
    """For a terminal: the whole state, drawn again over itself. `columns` is its width; `nodes` are names by id."""

    def __init__(self, name: str, columns: int) -> None:
        self._name, self._columns, self._drawn = name, max(20, columns), 0

    def frame(self, progress: Progress, left_s: float | None, nodes: Mapping[str, str]) -> str:
        """What to print now: back up over the last frame, then the new one."""
        lines = [overall_line(progress)]
        if len(progress.places) <= PLACES_SHOWN:
            lines += [self._place(i, place, progress, nodes) for i, place in enumerate(progress.places, start=1)]
        lines.append(self._verdict(progress, left_s))
        back = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._drawn = len(lines)
        # Each line is cut to the width: a wrapped one would be drawn over only by half.
        return back + "".join(f"\x1b[2K{shorten(line, self._columns - 1)}\n" for line in lines) + "\x1b[J"

    def _place(self, number: int, place: PlaceProgress, progress: Progress, nodes: Mapping[str, str]) -> str:
        total = max(progress.total, len(progress.places))
        head = f"{number}/{total}: {place.state:<10}"
        if place.error and not place.done:
            return f"{head} {printable(place.error)}"
        filled = BAR_LENGTH * place.step // (len(_STEPS) - 1)
        bar = ("=" * max(0, filled - 1) + (">" if filled else "")).ljust(BAR_LENGTH)
        where = f" {printable(nodes.get(place.node_id, short_id(place.node_id)))}" if place.node_id else ""
        return f"{head} [{bar}]{where}"

    def _verdict(self, progress: Progress, left_s: float | None) -> str:
        if left_s is None:
            return ""
        if left_s > 0:
            return f"verify: waiting {int(left_s + 0.999)} seconds to see whether it stays like this"
        return f"verify: service {self._name} converged"


def overall_line(progress: Progress) -> str:
    """The sum of it."""
    excess = max(0, len(progress.places) - progress.total)
    more = (f", {excess} too many" if excess else "") + (f", {progress.stopping} stopping" if progress.stopping else "")
    if not progress.places and progress.total:
        return f"overall progress: waiting for new tasks{more}"
    return f"overall progress: {min(progress.done, progress.total)} out of {progress.total} tasks{more}"
