"""Rolling updates: in what order, how fast, what counts as failure, and what follows from it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from msgspec.structs import replace

from control import orchestrator
from control.lifecycle import TaskState, is_terminal
from control.model import (
    ClusterSpec,
    FailureAction,
    GlobalMode,
    NetworkAttachment,
    Placement,
    PortSpec,
    ReplicatedMode,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    ServiceMode,
    Task,
    UpdateOrder,
    UpdatePolicy,
)
from tests.control.cluster import World, network, node, service

S = TaskState
AT_ONCE = RestartPolicy(delay_s=0)


def world(nodes: int = 3, replicas: int = 3, restart: RestartPolicy = AT_ONCE, **fields: object) -> World:
    made = World(spec=fields.pop("spec", ClusterSpec()))  # type: ignore[arg-type]
    made.put(*(node(f"n{i}") for i in range(1, nodes + 1)))
    made.put(network(), service(replicas=replicas, task={"restart": restart}, **fields))
    made.settle()
    return made


def commands(made: World) -> Counter[str]:
    return Counter(t.spec.process.command[0] for t in made.running() if t.spec.process is not None)


def bad_new_ones(made: World) -> None:
    made.broken = lambda task: task.spec.process is not None and task.spec.process.command[0] == "bad"


# --- the normal course ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
@pytest.mark.parametrize("parallelism", [0, 1, 2])
def test_so_many_at_a_time_in_this_order(order: UpdateOrder, parallelism: int) -> None:
    made = world(replicas=4)
    made.rerun("new", UpdatePolicy(parallelism=parallelism, monitor_s=0, order=order))
    least, most = 4, 4
    for _ in range(80):
        made.run(0.5)
        least, most = min(least, len(made.running())), max(most, len(made.running()))
    at_once = parallelism or 4
    assert commands(made) == {"new": 4}
    if order == "stop-first":
        assert (least, most) == (4 - at_once, 4)
    else:
        assert least == 4
        assert 4 < most <= 4 + 2 * at_once
    assert made.status().state == "completed"
    assert made.status().completed_ms > made.status().started_ms


def test_the_delay_lies_between_the_places() -> None:
    made = world(replicas=3)
    made.rerun("new", UpdatePolicy(delay_s=10, monitor_s=0))
    times = []
    seen: set[str] = set()
    for _ in range(200):
        made.run(0.5)
        for task in made.running():
            if task.spec_version == 2 and task.id not in seen:
                seen.add(task.id)
                times.append(made.now_ms)
    assert len(times) == 3
    assert all(later - earlier >= 10_000 for earlier, later in pairwise(times))


def test_an_update_is_complete_only_when_the_last_task_is_past_its_monitor_period() -> None:
    made = world(replicas=1)
    made.rerun("new", UpdatePolicy(monitor_s=20))
    made.run(15)
    assert commands(made) == {"new": 1}
    assert made.status().state == "updating"
    made.run(15)
    assert made.status().state == "completed"


def test_stop_first_goes_on_when_the_old_task_does_not_stop_in_time() -> None:
    made = world(replicas=1)
    old = made.running()[0]
    made.stuck = lambda task: task.id == old.id
    made.rerun("new", UpdatePolicy(monitor_s=0))
    made.run(55)
    assert commands(made) == {"serve": 1}
    made.run(10)
    assert commands(made) == {"serve": 1, "new": 1}


def test_start_first_does_not_wait_for_old_tasks_to_stop() -> None:
    made = world(replicas=3)
    old = {t.id for t in made.running()}
    made.stuck = lambda task: task.id in old
    made.rerun("new", UpdatePolicy(monitor_s=0, order="start-first"))
    made.run(30)
    assert commands(made) == {"serve": 3, "new": 3}
    assert {t.desired_state for t in made.tasks() if t.id in old} == {S.SHUTDOWN}
    assert made.status().state == "completed"


def test_what_does_not_run_is_updated_first() -> None:
    made = world(replicas=3, restart=RestartPolicy(delay_s=1000))
    sick = made.running()[-1]
    made.report(sick, S.FAILED)
    made.run(2)
    made.rerun("new", UpdatePolicy(monitor_s=0, delay_s=30))
    made.run(5)
    assert [t.slot for t in made.running() if t.spec_version == 2] == [sick.slot]


def test_a_place_on_a_lost_node_does_not_hold_up_the_update() -> None:
    made = world(nodes=3, replicas=3)
    made.set_state("n1", "down")
    made.rerun("new", UpdatePolicy(monitor_s=0))
    made.run(60)
    ready = [t for t in made.running() if t.node_id != "n1"]
    assert {t.spec_version for t in ready} == {2}
    assert len(ready) == 3
    assert made.status().state == "completed"


def test_what_an_update_waits_for_is_said() -> None:
    made = world(replicas=2)
    made.update(policy=UpdatePolicy(), placement=Placement(constraints=("node.labels.disk==ssd",)))
    made.run(10)
    assert made.status().state == "updating"
    assert made.status().message == (
        "update in progress, waiting for api.1: no suitable node (scheduling constraints not satisfied on 3 nodes)"
    )


def test_the_number_of_replicas_is_no_reason_to_replace_anything() -> None:
    made = world(replicas=2)
    before = {t.id for t in made.running()}
    made.scale(3)
    made.settle()
    assert before < {t.id for t in made.running()}
    assert made.status().state == ""


def test_scaling_up_with_an_update_does_not_block_it_when_there_is_no_room() -> None:
    made = world(nodes=2, replicas=2)
    held = made.service()
    made.change(held, spec=replace(held.spec, mode=ServiceMode(replicated=ReplicatedMode(replicas=6))))
    made.update(policy=UpdatePolicy(monitor_s=0), placement=Placement(max_replicas_per_node=1))
    made.rerun("new", UpdatePolicy(monitor_s=0))
    made.run(60)
    assert commands(made) == {"new": 2}, "those that find no room are none of the update's"


# --- what is outdated -----------------------------------------------------------------------------------------------


def test_new_constraints_move_only_tasks_that_may_not_stay() -> None:
    made = World()
    made.put(*(node(f"n{i}", labels={"zone": "a" if i < 3 else "b"}) for i in (1, 2, 3)))
    made.put(service(replicas=3))
    made.settle()
    staying = {t.id for t in made.running() if t.node_id != "n3"}
    made.update(policy=UpdatePolicy(monitor_s=0), placement=Placement(constraints=("node.labels.zone==a",)))
    made.run(30)
    assert staying < {t.id for t in made.running()}
    assert "n3" not in made.spread()
    assert len(made.running()) == 3
    assert made.status().state == "completed"


def test_what_waits_under_old_constraints_is_replaced() -> None:
    made = World()
    made.put(node("n1"), service(replicas=1, placement=Placement(constraints=("node.labels.zone==a",))))
    made.run(5)
    assert made.running() == []
    made.update(placement=Placement())
    made.run(10)
    assert len(made.running()) == 1


def test_going_back_to_what_still_runs_restarts_nothing() -> None:
    made = world(replicas=3)
    before = {t.id for t in made.running()}
    made.rerun("new", UpdatePolicy(delay_s=100, monitor_s=0))
    made.run(5)
    untouched = {t.id for t in made.running()} & before
    assert len(untouched) == 2
    made.rerun("serve", UpdatePolicy(monitor_s=0))
    made.run(30)
    assert commands(made) == {"serve": 3}
    assert untouched < {t.id for t in made.running()}


def test_a_changed_mind_in_the_middle_of_start_first_spares_the_old_task() -> None:
    made = world(replicas=1)
    old = made.running()[0]
    made.rerun("new", UpdatePolicy(order="start-first"))
    made.run(0.5)
    assert len([t for t in made.tasks() if t.desired_state <= S.RUNNING]) == 2
    made.rerun("serve", UpdatePolicy(order="start-first"))
    made.run(10)
    assert [t.id for t in made.running()] == [old.id]


def test_a_host_port_belongs_to_what_tasks_run() -> None:
    port = PortSpec(target=80, published=8080, mode="host")
    made = world(replicas=2, networks=["web"], ports=(port,))
    before = {t.id for t in made.running()}
    held = made.service()
    made.change(held, spec=replace(held.spec, ports=(replace(port, published=8081),)), spec_version=2)
    made.run(60)
    assert {p.published for t in made.running() for p in t.ports} == {8081}
    assert not before & {t.id for t in made.running()}


def test_ports_of_the_routing_mesh_are_no_reason_to_replace_anything() -> None:
    made = world(replicas=2, networks=["web"])
    before = {t.id for t in made.running()}
    held = made.service()
    made.change(held, spec=replace(held.spec, ports=(PortSpec(target=80, published=8080),)), spec_version=2)
    made.run(30)
    assert {t.id for t in made.running()} == before


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "state", "replaced"), [("pause", "paused", 1), ("continue", "completed", 3)])
def test_what_follows_a_failure(action: FailureAction, state: str, replaced: int) -> None:
    made = world(replicas=3)
    before = {t.id for t in made.running()}
    bad_new_ones(made)
    made.rerun("bad", UpdatePolicy(failure_action=action))
    made.run(60)
    assert made.status().state == state
    assert len(before - {t.id for t in made.running()}) == replaced
    if action == "pause":
        assert made.status().message.startswith("update paused due to failure or early termination of task api.1")
        version, touched = made.service().meta.version, commands(made)
        made.run(60)
        assert made.service().meta.version == version
        assert commands(made) == touched


def test_a_failure_after_the_monitor_period_is_none() -> None:
    made = world(replicas=4)
    made.rerun("new", UpdatePolicy(monitor_s=2, delay_s=6))
    made.run(10)
    first = next(t for t in made.running() if t.spec_version == 2)
    assert first.settled
    made.report(first, S.FAILED)
    made.run(60)
    assert made.status().state == "completed"


def test_a_failure_within_the_monitor_period_is_one_although_it_ran() -> None:
    made = world(replicas=4)
    made.rerun("new", UpdatePolicy(monitor_s=20, delay_s=6))
    made.run(10)
    made.report(next(t for t in made.running() if t.spec_version == 2), S.FAILED)
    made.run(10)
    assert made.status().state == "paused"


@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize(("ratio", "state"), [(0.2, "paused"), (0.25, "completed")])
def test_the_ratio_is_of_all_places_of_the_update(ratio: float, state: str, limit: int) -> None:
    made = world(replicas=4, spec=ClusterSpec(task_history_limit=limit), restart=RestartPolicy(delay_s=2))
    made.broken = lambda task: task.spec_version == 2 and task.slot == 2
    made.rerun("new", UpdatePolicy(max_failure_ratio=ratio, monitor_s=3))
    made.run(60)
    assert made.status().state == state


def test_to_end_well_is_no_failure_when_that_is_what_the_task_is_for() -> None:
    made = world(replicas=2, restart=RestartPolicy(condition="on-failure"))
    made.completing = lambda task: task.spec_version == 2
    made.rerun("job", UpdatePolicy(monitor_s=5))
    made.run(40)
    assert made.status().state == "completed"
    assert {t.status.state for t in made.tasks() if t.spec_version == 2} == {S.COMPLETE}


def test_a_drained_node_is_no_failure_of_the_update() -> None:
    made = world(nodes=3, replicas=2)
    made.rerun("new", UpdatePolicy(monitor_s=20))
    made.run(5)
    made.set_availability(next(t.node_id for t in made.running() if t.spec_version == 2), "drain")
    made.run(120)
    assert made.status().state == "completed"
    assert commands(made) == {"new": 2}


def test_the_deadline_is_for_tasks_that_neither_run_nor_fail() -> None:
    made = world(replicas=2)
    made.stuck = lambda task: task.spec_version == 2
    made.rerun("new", UpdatePolicy(deadline_s=90))
    made.run(80)
    assert made.status().state == "updating"
    made.run(20)
    assert made.status().state == "paused"


def test_a_paused_update_does_not_spread_by_restarts_and_resumes_when_asked() -> None:
    made = world(replicas=3)
    bad_new_ones(made)
    made.rerun("bad")
    made.run(30)
    assert made.status().state == "paused"
    old = next(t for t in made.running() if t.spec_version == 1)
    made.report(old, S.FAILED)
    made.set_availability(next(t.node_id for t in made.running() if t.id != old.id), "drain")
    made.run(30)
    assert commands(made) == {"serve": 2}
    made.broken = lambda task: False
    made.change(made.service(), update_status=type(made.status())())
    made.run(60)
    assert commands(made) == {"bad": 3}
    assert made.status().state == "completed"


@pytest.mark.parametrize("action", ["pause", "continue"])
def test_start_first_never_loses_the_old_task_to_a_bad_new_one(action: FailureAction) -> None:
    made = world(replicas=2, restart=RestartPolicy(delay_s=3))
    before = {t.id for t in made.running()}
    bad_new_ones(made)
    made.rerun("bad", UpdatePolicy(order="start-first", failure_action=action))
    for _ in range(120):
        made.run(0.5)
        assert before <= {t.id for t in made.running()}
    tries = [t for t in made.tasks() if t.spec_version == 2]
    if action == "pause":
        assert len(tries) == 1
        assert len([t for t in made.tasks() if t.desired_state <= S.RUNNING]) == 2
    made.broken = lambda task: False
    made.rerun("good", UpdatePolicy(order="start-first"))
    made.run(60)
    assert commands(made) == {"good": 2}


# --- rollback -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_rolling_back_restores_what_ran_and_spares_what_was_not_touched(order: UpdateOrder) -> None:
    made = world(replicas=3)
    before = {t.id for t in made.running()}
    bad_new_ones(made)
    made.scale(5)
    made.settle()
    made.rerun("bad", UpdatePolicy(failure_action="rollback", order=order))
    made.run(90)
    assert made.status().state == "rollback_completed"
    assert commands(made) == {"serve": 5}, "the number of replicas is not what failed"
    assert len(before & {t.id for t in made.running()}) == (2 if order == "stop-first" else 3)
    assert made.service().previous_spec is None
    assert made.service().spec_version == 1
    version = made.snapshot.version
    made.run(30)
    assert made.snapshot.version == version


def test_a_rollback_that_fails_pauses_and_is_not_rolled_back() -> None:
    made = world(replicas=3)
    made.broken = lambda task: task.meta.created_ms > 1_000_000 + 30_000
    made.run(60)
    made.rerun("bad", UpdatePolicy(failure_action="rollback"))
    made.run(90)
    assert made.status().state == "rollback_paused"
    version = made.service().meta.version
    made.run(60)
    assert made.service().meta.version == version


def test_without_a_previous_version_it_pauses_and_says_so() -> None:
    made = world(replicas=2)
    bad_new_ones(made)
    made.rerun("bad", UpdatePolicy(failure_action="rollback"))
    made.change(made.service(), previous_spec=None)
    made.run(30)
    assert made.status().state == "paused"
    assert made.status().message.endswith("; cannot roll back: there is no previous version")


def test_it_does_not_roll_back_to_a_port_that_another_service_has_by_now() -> None:
    made = world(replicas=1, networks=["web"], ports=(PortSpec(target=80, published=8080),))
    bad_new_ones(made)
    held = made.service()
    made.change(held, spec=replace(held.spec, ports=()))
    made.run(2)
    made.rerun("bad", UpdatePolicy(failure_action="rollback"))
    held = made.service()
    assert held.previous_spec is not None
    made.change(held, previous_spec=replace(held.previous_spec, ports=(PortSpec(target=80, published=8080),)))
    made.put(service("rival", replicas=1, networks=["web"], ports=(PortSpec(target=80, published=8080),)))
    made.run(30)
    assert made.status().state == "paused"
    assert made.status().message.endswith('port 8080/tcp of its previous version is used by "rival" now')


def test_it_does_not_roll_back_to_a_network_that_is_gone() -> None:
    made = world(replicas=1)
    bad_new_ones(made)
    made.rerun("bad", UpdatePolicy(failure_action="rollback"))
    held = made.service()
    assert held.previous_spec is not None
    task = replace(held.previous_spec.task, networks=(NetworkAttachment(network_id="gone"),))
    made.change(held, previous_spec=replace(held.previous_spec, task=task))
    made.run(30)
    assert made.status().message.endswith("its previous version is on a network that is gone")


def test_a_rollback_asked_for_by_a_user_restores_what_ran() -> None:
    made = world(replicas=3)
    made.rerun("new", UpdatePolicy(monitor_s=0))
    made.run(30)
    held = made.service()
    assert held.previous_spec is not None
    made.change(
        held,
        spec=held.previous_spec,
        spec_version=held.previous_spec_version,
        previous_spec=held.spec,
        previous_spec_version=held.spec_version,
        update_status=replace(held.update_status, state="rollback_started", started_ms=made.now_ms),
    )
    made.run(60)
    assert commands(made) == {"serve": 3}
    assert made.status().state == "rollback_completed"


# --- what cannot be beside itself -----------------------------------------------------------------------------------


HOST_PORT = (PortSpec(target=80, published=8080, mode="host"),)


def test_start_first_with_a_host_port_on_every_node_stops_first() -> None:
    made = world(nodes=2, networks=["web"], ports=HOST_PORT, mode=ServiceMode(global_=GlobalMode()))
    made.rerun("new", UpdatePolicy(order="start-first", monitor_s=0))
    made.run(30)
    assert commands(made) == {"new": 2}


@pytest.mark.parametrize(
    "fields",
    [{"networks": ["web"], "ports": HOST_PORT}, {"placement": Placement(max_replicas_per_node=1)}],
    ids=["host port", "max replicas"],
)
def test_start_first_without_a_spare_node_lets_the_old_task_make_room(fields: dict[str, object]) -> None:
    made = world(nodes=2, replicas=2, **fields)
    made.rerun("new", UpdatePolicy(order="start-first", monitor_s=0))
    made.run(60)
    assert commands(made) == {"new": 2}
    assert made.status().state == "completed"


def test_start_first_with_a_spare_node_loses_nothing() -> None:
    made = world(nodes=3, replicas=2, networks=["web"], ports=HOST_PORT)
    made.rerun("new", UpdatePolicy(order="start-first", monitor_s=0))
    least = 2
    for _ in range(80):
        made.run(0.5)
        least = min(least, len(made.running()))
    assert commands(made) == {"new": 2}
    assert least == 2


def test_the_old_task_does_not_make_room_when_that_would_not_help() -> None:
    made = world(nodes=2, replicas=1, placement=Placement(max_replicas_per_node=1))
    old = made.running()[0]
    huge = ResourceRequirements(reservations=Resources(cpus=64))
    made.update(policy=UpdatePolicy(order="start-first"), resources=huge, placement=Placement())
    made.run(60)
    assert [t.id for t in made.running()] == [old.id]


# --- half of it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
@pytest.mark.parametrize("written", range(4))
def test_an_update_of_which_any_part_was_written_goes_on(order: UpdateOrder, written: int) -> None:
    made = world(replicas=2)
    made.rerun("new", UpdatePolicy(order=order, monitor_s=0))
    for _ in range(3):
        decision = orchestrator.decide(made.snapshot, made.now_ms, made.new_id)
        made.write(decision.changes[:written])
    made.run(60)
    assert commands(made) == {"new": 2}
    assert made.status().state == "completed"
    assert not [t for t in made.snapshot.all(Task) if t.desired_state <= S.RUNNING and is_terminal(t.status.state)]
