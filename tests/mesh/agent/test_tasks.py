"""The task machine of a node: every way up, every way down, and what a restart finds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from control.lifecycle import TaskState, Writer, is_terminal, may_observe
from control.model import DRAIN_S, HealthCheck, ProcessSpec, Task, TaskSpec, TaskStatus
from mesh.agent.tasks import (
    NEXT,
    ON_EVENT,
    UNASKED_WITHDRAW_S,
    WITHDRAW_MAX_S,
    Attached,
    Check,
    Drain,
    Drained,
    Event,
    Exited,
    Failed,
    Healthy,
    Phase,
    Prepare,
    Prepared,
    Remove,
    Removed,
    RetryDue,
    RetryLater,
    Start,
    Started,
    Stop,
    Tasks,
    Unhealthy,
    Wait,
    Wanted,
    Watch,
    Withdraw,
    Withdrawn,
)
from mesh.executor.protocol import Adopted, Exit, Sandbox

SPEC = TaskSpec(process=ProcessSpec(command=("serve",)), stop_signal="SIGINT", stop_grace_s=3.0)


def task(desired: TaskState = TaskState.RUNNING, observed: TaskState = TaskState.ASSIGNED, name: str = "t1") -> Task:
    return Task(
        id=name,
        service_id="s1",
        service_name="api",
        slot=1,
        node_id="n1",
        spec=SPEC,
        desired_state=desired,
        status=TaskStatus(state=observed),
    )


def assigned(tasks: Tasks, *wanted: Task) -> None:
    tasks.assign(wanted, 0, complete=True)


def state(tasks: Tasks, name: str = "t1") -> TaskState:
    return tasks.statuses()[name].state


def running() -> Tasks:
    tasks = Tasks()
    assigned(tasks, task())
    for event in (Prepared("t1", Sandbox("t1", "/run/netns/x")), Attached("t1"), Started("t1", 42)):
        tasks.receive(event, 0)
    tasks.drain()
    return tasks


def test_a_task_is_prepared_attached_started_and_waited_for() -> None:
    tasks = Tasks()
    assigned(tasks, task())
    assert tasks.drain() == [Prepare(task())]
    assert state(tasks) == TaskState.PREPARING
    tasks.receive(Prepared("t1", Sandbox("t1", "/run/netns/x")), 0)
    assert tasks.drain() == []
    assert tasks.attaching() == {"t1"}
    tasks.receive(Attached("t1"), 0)
    assert tasks.drain() == [Start(task())]
    tasks.receive(Started("t1", 42), 7)
    assert tasks.drain() == [Wait("t1")]
    assert tasks.statuses()["t1"] == TaskStatus(state=TaskState.RUNNING, at_ms=7, message="started", pid=42)
    assert tasks.pid("t1") == 42


def test_a_task_desired_ready_is_held_before_its_start() -> None:
    tasks = Tasks()
    assigned(tasks, task(TaskState.READY))
    tasks.receive(Prepared("t1", Sandbox("t1", "x")), 0)
    tasks.receive(Attached("t1"), 0)
    assert state(tasks) == TaskState.READY
    assert [type(a) for a in tasks.drain()] == [Prepare]
    assigned(tasks, task(TaskState.RUNNING))
    assert [type(a) for a in tasks.drain()] == [Start]


def test_a_task_to_stop_is_drained_before_its_signal() -> None:
    tasks = running()
    assigned(tasks, task(TaskState.SHUTDOWN))
    assert tasks.drain() == [Withdraw("t1", WITHDRAW_MAX_S)], "first every node takes it out"
    assert tasks.local()["t1"].draining
    assert state(tasks) == TaskState.RUNNING
    tasks.receive(Withdrawn("t1"), 0)
    assert tasks.drain() == [Drain("t1", DRAIN_S)], "then what is open has its time"
    assert tasks.local()["t1"].draining
    tasks.receive(Withdrawn("t1"), 0)
    assert tasks.drain() == [], "the wait may end besides"
    tasks.receive(Drained("t1"), 0)
    assert tasks.drain() == [Stop("t1", "SIGINT", 3.0)]
    tasks.receive(Exited("t1", Exit(130)), 0)
    status = tasks.statuses()["t1"]
    assert (status.state, status.exit_code, status.error) == (TaskState.SHUTDOWN, 130, "")


CHECK, IMAGES_CHECK = HealthCheck(tcp=80), HealthCheck(command=("true",))


def checked(desired: TaskState = TaskState.RUNNING) -> Task:
    made = task(desired)
    return replace(made, spec=replace(made.spec, health=CHECK))


def started_with_check() -> Tasks:
    tasks = Tasks()
    assigned(tasks, checked())
    tasks.receive(Prepared("t1", Sandbox("t1", "x")), 0)
    tasks.receive(Attached("t1"), 0)
    tasks.drain()
    tasks.receive(Started("t1", 42), 0)
    return tasks


def test_a_task_with_a_health_check_runs_from_its_first_success_on() -> None:
    tasks = started_with_check()
    assert tasks.drain() == [Wait("t1"), Check(checked())]
    assert state(tasks) == TaskState.STARTING
    assigned(tasks, checked())
    assert tasks.drain() == [], "one probing at a time"
    tasks.receive(Healthy("t1"), 0)
    assert tasks.drain() == [Watch(checked())]
    assert state(tasks) == TaskState.RUNNING


def test_an_image_s_health_check_counts_unless_the_service_has_one() -> None:
    for own, counts in ((None, IMAGES_CHECK), (CHECK, CHECK)):
        tasks = Tasks()
        assigned(tasks, task() if own is None else checked())
        tasks.receive(Prepared("t1", Sandbox("t1", "x", IMAGES_CHECK)), 0)
        tasks.receive(Attached("t1"), 0)
        tasks.drain()
        tasks.receive(Started("t1", 42), 0)
        probed = [action.task.spec.health for action in tasks.drain() if isinstance(action, Check)]
        assert probed == [counts]


@pytest.mark.parametrize("before", [False, True], ids=["at its start", "later"])
def test_a_task_that_is_unhealthy_is_stopped_and_has_failed_with_the_reason(before: bool) -> None:
    tasks = started_with_check()
    if before:
        tasks.receive(Healthy("t1"), 0)
    tasks.drain()
    tasks.receive(Unhealthy("t1", "unhealthy: GET / was answered 500"), 0)
    assert tasks.drain() == [Stop("t1", "SIGINT", 3.0)]
    assert tasks.local()["t1"].draining, "no new connections from now on"
    assert not tasks.probed("t1")
    tasks.receive(Exited("t1", Exit(0)), 0)
    status = tasks.statuses()["t1"]
    assert (status.state, status.error) == (TaskState.FAILED, "unhealthy: GET / was answered 500")


def test_a_task_that_never_served_is_stopped_without_draining() -> None:
    tasks = started_with_check()
    tasks.drain()
    assigned(tasks, checked(TaskState.SHUTDOWN))
    assert [type(a) for a in tasks.drain()] == [Stop]
    tasks.receive(Unhealthy("t1", ""), 0)
    tasks.receive(Exited("t1", Exit(0)), 0)
    assert state(tasks) == TaskState.SHUTDOWN


def test_the_health_of_adopted_tasks_is_watched_on() -> None:
    tasks = Tasks()
    tasks.adopt([Adopted("t1", Sandbox("t1", "x"), 42, None)], 0)
    assigned(tasks, checked())
    assert tasks.drain() == [Wait("t1"), Watch(checked())]
    assert state(tasks) == TaskState.RUNNING


def test_a_task_that_was_withdrawn_while_it_started_is_not_waited_for_again() -> None:
    tasks = Tasks()
    assigned(tasks, task())
    tasks.receive(Prepared("t1", Sandbox("t1", "x")), 0)
    tasks.receive(Attached("t1"), 0)
    assigned(tasks, task(TaskState.SHUTDOWN))
    tasks.receive(Withdrawn("t1"), 0)
    tasks.drain()
    tasks.receive(Started("t1", 42), 0)
    assert tasks.drain() == [Wait("t1"), Withdraw("t1", 0.0)]


def test_a_service_says_how_long_its_connections_drain() -> None:
    tasks = running()
    asked = task(TaskState.SHUTDOWN)
    assigned(tasks, replace(asked, spec=replace(asked.spec, drain_s=30.0)))
    tasks.drain()
    tasks.receive(Withdrawn("t1"), 0)
    assert tasks.drain() == [Drain("t1", 30.0)]


def test_a_stop_that_fails_is_tried_again_after_a_pause() -> None:
    tasks = running()
    assigned(tasks, task(TaskState.SHUTDOWN))
    tasks.receive(Withdrawn("t1"), 0)
    tasks.receive(Drained("t1"), 0)
    tasks.drain()
    tasks.receive(Failed("t1", "busy"), 0)
    assert [type(a) for a in tasks.drain()] == [RetryLater]
    tasks.receive(RetryDue("t1"), 0)
    assert [type(a) for a in tasks.drain()] == [Stop]


@pytest.mark.parametrize(
    ("code", "expected", "error"),
    [(0, TaskState.COMPLETE, ""), (3, TaskState.FAILED, "ended with exit code 3")],
)
def test_a_task_that_ends_by_itself_is_complete_or_failed(code: int, expected: TaskState, error: str) -> None:
    tasks = running()
    tasks.receive(Exited("t1", Exit(code)), 0)
    status = tasks.statuses()["t1"]
    assert (status.state, status.exit_code, status.error) == (expected, code, error)
    assert tasks.drain() == []
    assert tasks.pid("t1") is None


def test_preparing_that_fails_is_rejected_and_starting_that_fails_is_failed() -> None:
    tasks = Tasks()
    assigned(tasks, task())
    tasks.receive(Failed("t1", "no such root"), 0)
    assert (state(tasks), tasks.statuses()["t1"].error) == (TaskState.REJECTED, "no such root")
    tasks = Tasks()
    assigned(tasks, task())
    tasks.receive(Prepared("t1", Sandbox("t1", "x")), 0)
    tasks.receive(Attached("t1"), 0)
    tasks.receive(Failed("t1", "command not found"), 0)
    assert (state(tasks), tasks.statuses()["t1"].error) == (TaskState.FAILED, "command not found")


def test_a_task_stopped_before_it_started_is_shut_down_without_an_action() -> None:
    tasks = Tasks()
    assigned(tasks, task(TaskState.SHUTDOWN))
    assert tasks.drain() == []
    assert state(tasks) == TaskState.SHUTDOWN


def test_what_is_wanted_while_an_action_is_under_way_counts_when_it_is_done() -> None:
    tasks = Tasks()
    assigned(tasks, task())
    tasks.drain()
    assigned(tasks, task(TaskState.SHUTDOWN))
    assert tasks.drain() == []
    tasks.receive(Prepared("t1", Sandbox("t1", "x")), 0)
    assert tasks.drain() == []
    assert state(tasks) == TaskState.SHUTDOWN


def test_a_task_no_longer_assigned_is_stopped_and_removed_and_forgotten() -> None:
    tasks = running()
    assigned(tasks)
    assert tasks.drain() == [Withdraw("t1", UNASKED_WITHDRAW_S)], "nobody will say that it is withdrawn"
    tasks.receive(Withdrawn("t1"), 0)
    assert [type(a) for a in tasks.drain()] == [Drain]
    tasks.receive(Drained("t1"), 0)
    assert [type(a) for a in tasks.drain()] == [Stop]
    tasks.receive(Exited("t1", Exit(143)), 0)
    assert tasks.drain() == [Remove("t1")]
    assert tasks.local() == {}
    tasks.receive(Removed("t1"), 0)
    assert tasks.statuses() == {}


def test_a_removal_that_fails_is_tried_again() -> None:
    tasks = running()
    tasks.receive(Exited("t1", Exit(0)), 0)
    assigned(tasks)
    assert tasks.drain() == [Remove("t1")]
    tasks.receive(Failed("t1", "busy"), 0)
    assert [type(a) for a in tasks.drain()] == [RetryLater]
    tasks.receive(RetryDue("t1"), 0)
    assert tasks.drain() == [Remove("t1")]


def test_adopted_tasks_run_on_and_nothing_is_removed_before_the_managers_have_spoken() -> None:
    tasks = Tasks()
    tasks.adopt([Adopted("t1", Sandbox("t1", "x"), 42, None), Adopted("t2", Sandbox("t2", "y"), 43, None)], 0)
    tasks.assign([], 0, complete=False)
    assert tasks.drain() == [Wait("t1"), Wait("t2")]
    assert state(tasks, "t2") == TaskState.RUNNING
    assigned(tasks, task(observed=TaskState.RUNNING))
    assert tasks.drain() == [Withdraw("t2", UNASKED_WITHDRAW_S)]
    assert state(tasks) == TaskState.RUNNING


def test_an_adopted_task_that_was_only_prepared_goes_on_from_there() -> None:
    tasks = Tasks()
    tasks.adopt([Adopted("t1", Sandbox("t1", "x"), None, None)], 0)
    assigned(tasks, task())
    assert tasks.attaching() == {"t1"}
    tasks.receive(Attached("t1"), 0)
    assert [type(a) for a in tasks.drain()] == [Start]


def test_an_adopted_task_that_ended_meanwhile_is_reported() -> None:
    tasks = Tasks()
    tasks.adopt([Adopted("t1", Sandbox("t1", "x"), 42, Exit(137, "its shim vanished"))], 0)
    assigned(tasks, task(observed=TaskState.RUNNING))
    assert tasks.drain() == []
    assert (state(tasks), tasks.statuses()["t1"].error) == (TaskState.FAILED, "its shim vanished")


def test_a_task_that_ended_in_an_earlier_life_is_not_started_again() -> None:
    tasks = Tasks()
    assigned(tasks, task(observed=TaskState.FAILED))
    assert tasks.drain() == []
    assert tasks.statuses() == {}


def test_statuses_are_handed_out_once_per_change() -> None:
    tasks = running()
    assert set(tasks.drain_statuses()) == {"t1"}
    assert tasks.drain_statuses() == {}
    tasks.receive(Exited("t1", Exit(0)), 0)
    assert tasks.drain_statuses()["t1"].state == TaskState.COMPLETE


def test_every_phase_at_rest_reacts_to_stop_and_gone_or_waits_for_an_event() -> None:
    waiting = {phase for phase, _ in ON_EVENT}
    for phase, wanted in itertools.product(Phase, (Wanted.STOP, Wanted.GONE)):
        at_rest_as_wanted = (phase, wanted) == (Phase.ENDED, Wanted.STOP)
        assert (phase, wanted) in NEXT or phase in waiting or at_rest_as_wanted, (phase, wanted)


EVENTS: list[Event] = [
    Prepared("t1", Sandbox("t1", "x")),
    Attached("t1"),
    Started("t1", 1),
    Healthy("t1"),
    Unhealthy("t1", "unhealthy"),
    Failed("t1", "no"),
    Withdrawn("t1"),
    Drained("t1"),
    Exited("t1", Exit(1)),
    Exited("t1", Exit(0)),
    RetryDue("t1"),
]
WANTED = st.sampled_from([TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE, None])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(EVENTS), WANTED), max_size=30))
def test_whatever_happens_reported_states_are_ones_that_an_agent_may_write(
    steps: list[Event | TaskState | None],
) -> None:
    tasks = Tasks()
    assigned(tasks, task(TaskState.READY))
    before = TaskState.ASSIGNED
    for step in steps:
        if step is None:
            assigned(tasks)
        elif isinstance(step, TaskState):
            assigned(tasks, task(step))
        else:
            tasks.receive(step, 0)
        statuses = tasks.statuses()
        if "t1" not in statuses:
            return
        after = statuses["t1"].state
        assert may_observe(Writer.AGENT, before, after), (before, after)
        assert len([a for a in tasks.drain() if not isinstance(a, Wait)]) <= 1
        if is_terminal(after):
            assert tasks.pid("t1") is None
        before = after
