"""Waiting for a service: in time that passes only while somebody sleeps."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest
from msgspec.structs import replace

from control.lifecycle import TaskState
from control.model import GlobalMode, NodeStatus, Service, ServiceMode, Task, TaskStatus, UpdateStatus
from mesh.cli.show.progress import BAR_LENGTH, LineDisplay, PlaceProgress, Progress, Stability, TerminalDisplay, assess
from tests.mesh.cli.fake import Mesh, make_node, make_service, make_task

H1, H2 = make_node(1), make_node(2)
API = make_service("api", 2)


def look(tasks: list[Task], service: Service = API, down: frozenset[str] = frozenset()) -> Progress:
    return assess(service, tasks, down, target_version=service.spec_version, before=UpdateStatus())


def as_policy(service: Service, condition: str) -> Service:
    restart = replace(service.spec.task.restart, condition=condition)
    return replace(service, spec=replace(service.spec, task=replace(service.spec.task, restart=restart)))


RUNNING = [make_task(API, 1, H1), make_task(API, 2, H2)]
OLD = replace(make_task(API, 2, H1), id="old", desired_state=TaskState.SHUTDOWN)
NEXT = replace(API, spec_version=2)


@pytest.mark.parametrize(
    ("progress", "done", "stopping", "converged"),
    [
        (look([]), 0, 0, False),
        (look(RUNNING), 2, 0, True),
        (look(RUNNING[:1]), 1, 0, False),
        (look(RUNNING, down=frozenset({H2.id})), 1, 0, False),
        (look([*RUNNING, OLD]), 2, 1, False),
        (look([*RUNNING, OLD], down=frozenset({H1.id})), 1, 0, False),
        (look([*RUNNING, replace(OLD, status=TaskStatus(state=TaskState.SHUTDOWN))]), 2, 0, True),
        (look([*RUNNING, make_task(API, 3, H1)]), 3, 0, False),
        (look([RUNNING[0], make_task(API, 2, H2, TaskState.STARTING)]), 1, 0, False),
        (look(RUNNING, NEXT), 0, 0, False),
        (look([replace(t, spec_version=2) for t in RUNNING], NEXT), 2, 0, True),
        (look(RUNNING, replace(API, update_status=UpdateStatus(state="updating"))), 2, 0, False),
        (look(RUNNING, replace(API, update_status=UpdateStatus(state="completed"))), 2, 0, True),
        (look([], replace(make_service("none", 0))), 0, 0, True),
    ],
)
def test_assess(progress: Progress, done: int, stopping: int, converged: bool) -> None:
    assert (progress.done, progress.stopping, progress.converged, progress.failure) == (done, stopping, converged, "")


def test_a_global_service_waits_for_its_first_task() -> None:
    agent = replace(API, spec=replace(API.spec, mode=ServiceMode(global_=GlobalMode())))
    assert not look([], agent).converged
    tasks = [replace(make_task(agent, 0, H1), id="a"), replace(make_task(agent, 0, H2, TaskState.READY), id="b")]
    assert (look(tasks, agent).done, look(tasks, agent).total, look(tasks, agent).converged) == (1, 2, False)
    assert look([replace(t, status=TaskStatus(state=TaskState.RUNNING)) for t in tasks], agent).converged


def test_ended_tasks_that_nobody_restarts() -> None:
    ended = replace(RUNNING[1], desired_state=TaskState.SHUTDOWN, status=TaskStatus(state=TaskState.COMPLETE))
    failed = replace(ended, status=TaskStatus(state=TaskState.FAILED, error="exit code 3"))
    for condition in ("none", "on-failure"):
        assert look([RUNNING[0], ended], as_policy(API, condition)).converged
    assert look([RUNNING[0], failed], as_policy(API, "none")).failure == (
        'service "api": api.2 failed and is not restarted: exit code 3'
    )
    # Restarted without end: there is something to wait for, and its reason is shown.
    replacement = replace(make_task(API, 2, H1, TaskState.READY), id="new")
    waiting = look([RUNNING[0], failed, replace(replacement, meta=replace(failed.meta, created_ms=9 * 10**12))])
    assert (waiting.failure, waiting.places[1].state, waiting.places[1].error) == ("", "ready", "exit code 3")


@pytest.mark.parametrize(
    ("status", "version", "failure"),
    [
        (UpdateStatus(state="paused", message="update paused: 1 failed"), 1, 'service "api": update paused: 1 failed'),
        (UpdateStatus(state="rollback_paused"), 1, 'service "api": rollback paused'),
        (
            UpdateStatus(state="rollback_completed"),
            2,
            'service "api" was rolled back to its previous version: the update failed',
        ),
        (UpdateStatus(state="rollback_completed"), 1, ""),
        (UpdateStatus(state="completed"), 1, ""),
    ],
)
def test_updates_that_fail(status: UpdateStatus, version: int, failure: str) -> None:
    service = replace(API, update_status=status)
    progress = assess(service, RUNNING, frozenset(), target_version=version, before=UpdateStatus())
    assert progress.failure == failure
    same = assess(service, RUNNING, frozenset(), target_version=version, before=status)
    assert same.failure == ""  # it was so before this change


def test_stability_begins_anew_after_every_bad_look() -> None:
    stability = Stability(5.0)
    looks = [(True, 0.0), (True, 3.0), (False, 4.0), (True, 6.0), (True, 10.9), (True, 11.0)]
    assert [stability.observe(converged=good, now=now) for good, now in looks] == [
        5.0, 2.0, None, 5.0, pytest.approx(0.1), 0.0,
    ]  # fmt: skip
    assert Stability(0.0).observe(converged=True, now=1.0) == 0.0


# --- displays -------------------------------------------------------------------------------------------------------


def test_lines_only_tell_what_is_new() -> None:
    display = LineDisplay("api")
    first = Progress(
        total=2, places=(PlaceProgress("api.1", "pending", 1, False, "no node\nfits"),), stopping=0, updating=False
    )
    assert display.frame(look([]), None) == "overall progress: waiting for new tasks\n"
    assert display.frame(first, None) == ("overall progress: 0 out of 2 tasks\napi.1: pending: no node\\nfits\n")
    assert display.frame(first, None) == ""
    assert display.frame(look([*RUNNING, OLD]), None) == "overall progress: 2 out of 2 tasks, 1 stopping\n"
    three = look([*RUNNING, make_task(API, 3, H1)])
    assert display.frame(three, None) == "overall progress: 2 out of 2 tasks, 1 too many\n"
    assert display.frame(look(RUNNING), 2.0) == "overall progress: 2 out of 2 tasks\n"
    assert display.frame(look(RUNNING), 0) == "verify: service api converged\n"


def test_a_terminal_is_drawn_over_and_never_wraps() -> None:
    display = TerminalDisplay("api", 80)
    names = {H1.id: "h1", H2.id: "h2"}
    starting = look([RUNNING[0], make_task(API, 2, H2, TaskState.STARTING)])
    clear = "\x1b[2K"
    filled = BAR_LENGTH * 6 // 7
    assert display.frame(starting, None, names) == (
        f"{clear}overall progress: 1 out of 2 tasks\n"
        f"{clear}1/2: running    [{'=' * (BAR_LENGTH - 1)}>] h1\n"
        f"{clear}2/2: starting   [{('=' * (filled - 1) + '>').ljust(BAR_LENGTH)}] h2\n"
        f"{clear}\n\x1b[J"
    )
    again = display.frame(look(RUNNING), 4.2, names)
    assert again.startswith("\x1b[4A")
    assert "verify: waiting 5 seconds to see whether it stays like this" in again
    long = Progress(
        total=1, places=(PlaceProgress("api.1", "pending", 1, False, "e" * 500),), stopping=0, updating=False
    )
    narrow = TerminalDisplay("api", 40).frame(long, None, {})
    assert max(len(line.replace(clear, "")) for line in narrow.split("\n")) <= 40
    many = Progress(
        total=21, places=tuple(PlaceProgress(f"a.{i}", "new", 0, False) for i in range(21)), stopping=0, updating=False
    )
    assert TerminalDisplay("api", 80).frame(many, None, {}).count("\n") == 2


# --- the command ----------------------------------------------------------------------------------------------------


def place(mesh: Mesh, *steps: tuple[float, Callable[[Service], list[Task]]]) -> None:
    """At the given times the new service has these tasks."""
    mesh.daemon.add(H1, H2)
    for at, tasks in steps:

        def step(tasks: Callable[[Service], list[Task]] = tasks) -> None:
            service = mesh.daemon.objects["newservice"]
            assert isinstance(service, Service)
            mesh.daemon.objects = {k: o for k, o in mesh.daemon.objects.items() if not isinstance(o, Task)}
            mesh.daemon.add(*tasks(service))

        mesh.clock.at(at, step)


CREATE = ("service", "create", "--name", "api", "--replicas", "2")


def test_create_waits_until_it_is_stable(mesh: Mesh) -> None:
    place(
        mesh,
        (1.0, lambda s: [make_task(s, 1, H1), make_task(s, 2, H2, TaskState.STARTING)]),
        (2.0, lambda s: [make_task(s, 1, H1), make_task(s, 2, H2)]),
        (4.0, lambda s: [make_task(s, 1, H1)]),
        (5.0, lambda s: [make_task(s, 1, H1), make_task(s, 2, H2)]),
    )
    result = mesh(*CREATE, "true")
    assert (result.code, result.out) == (0, "newservice\n")
    assert result.err == (
        "overall progress: waiting for new tasks\n"
        "overall progress: 1 out of 2 tasks\n"
        "overall progress: 2 out of 2 tasks\n"
        "overall progress: 1 out of 2 tasks\n"
        "overall progress: 2 out of 2 tasks\n"
        "verify: service api converged\n"
    )
    assert 10.0 <= mesh.clock.now < 10.5


def test_quiet_waits_without_a_word(mesh: Mesh) -> None:
    place(mesh, (1.0, lambda s: [make_task(s, 1, H1), make_task(s, 2, H2)]))
    result = mesh(*CREATE, "-q", "--update-monitor", "1s", "true")
    assert (result.code, result.out, result.err) == (0, "newservice\n", "")
    assert 2.0 <= mesh.clock.now < 2.5


def test_waiting_ends_in_time(mesh: Mesh) -> None:
    pending = TaskStatus(state=TaskState.PENDING, error="no suitable node (2 nodes not available)")
    place(mesh, (1.0, lambda s: [make_task(s, 1, H1), make_task(s, 2, None, status=pending)]))
    result = mesh(*CREATE, "--wait-timeout", "30s", "true")
    assert (result.code, result.out) == (124, "newservice\n")
    assert result.err.splitlines()[-2:] == [
        "api.2: pending: no suitable node (2 nodes not available)",
        'error: service "api" has not converged within 30s (1 out of 2 tasks); it goes on: see mesh service ps api',
    ]
    assert mesh.clock.now == pytest.approx(30.0, abs=0.3)


def test_a_manager_may_be_away_for_a_moment_but_not_for_long(mesh: Mesh) -> None:
    place(mesh, (6.0, lambda s: [make_task(s, 1, H1), make_task(s, 2, H2)]))
    away = (grpc.StatusCode.UNAVAILABLE, "no manager answers")
    mesh.clock.at(1.0, lambda: mesh.daemon.refuse.update(List=away))
    mesh.clock.at(5.0, mesh.daemon.refuse.clear)
    assert mesh(*CREATE, "true").code == 0
    mesh.clock.at(0.0, lambda: mesh.daemon.refuse.update(List=away))
    result = mesh(*CREATE, "true")
    assert (result.code, result.err.splitlines()[-1]) == (5, "error: no manager answers")


def test_an_update_that_is_paused_fails(mesh: Mesh) -> None:
    mesh.daemon.add(H1, API, *RUNNING)

    def pause() -> None:
        service = mesh.daemon.objects[API.id]
        assert isinstance(service, Service)
        mesh.daemon.add(replace(service, update_status=UpdateStatus(state="paused", message="update paused: 1 failed")))

    mesh.clock.at(2.0, pause)
    result = mesh("service", "update", "--env-add", "A=1", "api")
    assert (result.code, result.out) == (1, "api\n")
    assert result.err == ('overall progress: 0 out of 2 tasks\nerror: service "api": update paused: 1 failed\n')


def test_scaling_down_waits_for_the_tasks_to_stop(mesh: Mesh) -> None:
    down = replace(H2, status=NodeStatus(state="down"))
    mesh.daemon.add(H1, down, API, RUNNING[0], replace(RUNNING[1], desired_state=TaskState.REMOVE, node_id=H1.id))
    mesh.clock.at(3.0, lambda: mesh.daemon.objects.pop(RUNNING[1].id) and None)
    result = mesh("service", "scale", "api=1")
    assert (result.code, result.out) == (0, "api scaled to 1\n")
    assert result.err.splitlines()[0] == "overall progress: 1 out of 1 tasks, 1 stopping"
    assert 8.0 <= mesh.clock.now < 8.5


def test_ctrl_c_says_that_it_goes_on(mesh: Mesh) -> None:
    place(mesh)

    def interrupt() -> None:
        raise KeyboardInterrupt

    mesh.clock.at(1.0, interrupt)
    result = mesh(*CREATE, "true")
    assert result.code == 130
    assert "the change goes on without you: see mesh service ps api\n" in result.err


def test_a_service_that_is_removed_meanwhile(mesh: Mesh) -> None:
    place(mesh)
    mesh.clock.at(1.0, lambda: mesh.daemon.objects.pop("newservice") and None)
    result = mesh(*CREATE, "true")
    assert (result.code, result.err.splitlines()[-1]) == (3, 'error: no service "newservice"')


def test_a_rollback_waits_for_its_end(mesh: Mesh) -> None:
    rolling = replace(API, update_status=UpdateStatus(state="rollback_started", message="rolled back by the user"))
    mesh.daemon.add(H1, H2, rolling, *RUNNING)
    mesh.clock.at(2.0, lambda: mesh.daemon.add(replace(API, update_status=UpdateStatus(state="rollback_completed"))))
    assert mesh("service", "rollback", "api").code == 0
    assert 7.0 <= mesh.clock.now < 7.5
