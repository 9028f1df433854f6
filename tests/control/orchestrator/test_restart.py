"""Tasks that end, and nodes that are lost, drained or paused: who is replaced, when, and how often."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from control import orchestrator
from control.lifecycle import TaskState, Writer, is_terminal
from control.model import ClusterSpec, Node, RestartCondition, RestartPolicy, Task, UpdatePolicy
from control.store.tables import Snapshot
from control.store.txn import Delete
from tests.control.cluster import World, network, node, service

S = TaskState


def world(nodes: int = 3, replicas: int = 1, policy: RestartPolicy | None = None, **fields: object) -> World:
    made = World(**fields)  # type: ignore[arg-type]
    made.put(*(node(f"n{i}") for i in range(1, nodes + 1)))
    made.put(service(replicas=replicas, task={"restart": policy or RestartPolicy()}))
    made.settle()
    return made


def fail(made: World, task: Task, exit_code: int = 1) -> int:
    made.report(task, S.FAILED, exit_code=exit_code)
    return made.now_ms


def start_first(made: World) -> None:
    held = made.service()
    made.change(held, spec=replace(held.spec, update=UpdatePolicy(order="start-first")))


def started(made: World) -> set[str]:
    """Every task that was ever made and is still known."""
    return {t.id for t in made.tasks()}


# --- conditions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "after_failure", "after_success"),
    [("any", True, True), ("on-failure", True, False), ("none", False, False)],
)
def test_the_condition_decides_who_is_replaced(
    condition: RestartCondition, after_failure: bool, after_success: bool
) -> None:
    for state, expected in ((S.FAILED, after_failure), (S.REJECTED, after_failure), (S.COMPLETE, after_success)):
        made = World()
        made.put(node("n1"), service(replicas=1, task={"restart": RestartPolicy(condition=condition, delay_s=0)}))
        made.run(1)
        (task,) = made.tasks()
        made.report(task, state)
        made.settle()
        assert bool(made.running()) == expected, (condition, state)


@pytest.mark.parametrize("limit", [0, 5])
def test_what_has_ended_for_good_stays_so_whatever_happens_later(limit: int) -> None:
    made = world(2, 2, RestartPolicy(condition="none"), spec=ClusterSpec(task_history_limit=limit))
    first = made.running()[0]
    made.report(first, S.COMPLETE, exit_code=0)
    before = started(made)
    made.run(30)
    made.change(made.service(), spec_version=made.service().spec_version)  # any write of the service
    made.new_id = World(seed=7).new_id  # another leader
    made.scale(3)
    made.run(30)
    assert {t.slot for t in made.running()} == {1, 2, 3} - {first.slot}
    assert len(started(made) - before) == 1


def test_an_update_gives_what_has_ended_for_good_another_chance() -> None:
    made = world(1, 1, RestartPolicy(condition="none"))
    made.report(made.running()[0], S.COMPLETE)
    made.run(10)
    assert made.running() == []
    made.rerun("new")
    made.run(10)
    assert len(made.running()) == 1


# --- delay ----------------------------------------------------------------------------------------------------------


def test_a_replacement_is_prepared_during_the_delay_and_runs_after_it() -> None:
    made = world(policy=RestartPolicy(delay_s=5))
    failed_ms = fail(made, made.running()[0])
    made.run(3)
    held = next(t for t in made.tasks() if not is_terminal(t.status.state))
    assert (held.status.state, held.desired_state) == (S.READY, S.READY)
    while not made.running():
        made.run(0.5)
    assert failed_ms + 5_000 <= made.now_ms <= failed_ms + 7_000
    assert [t.id for t in made.running()] == [held.id]


def test_the_decision_says_when_the_delay_is_over() -> None:
    made = world(policy=RestartPolicy(delay_s=5))
    failed_ms = fail(made, made.running()[0])
    made.decide()
    decision = orchestrator.decide(made.snapshot, made.now_ms, made.new_id)
    assert decision.changes == ()
    assert decision.wake_at_ms == failed_ms + 5_000


def test_a_new_leader_keeps_the_deadline_of_the_one_before() -> None:
    made = world(policy=RestartPolicy(delay_s=10))
    failed_ms = fail(made, made.running()[0])
    made.run(6)
    made.new_id = World(seed=7).new_id
    before = started(made)
    while not made.running():
        made.run(0.5)
    assert failed_ms + 10_000 <= made.now_ms <= failed_ms + 12_000
    assert started(made) == before


@pytest.mark.parametrize("limit", [0, 5])
def test_what_cannot_even_be_prepared_is_not_tried_in_a_hot_loop(limit: int) -> None:
    made = World(spec=ClusterSpec(task_history_limit=limit))
    made.put(node("n1"), service(replicas=1, task={"restart": RestartPolicy(delay_s=5)}))
    made.unpreparable = lambda task: True
    seen: set[str] = set()
    for _ in range(200):
        made.run(0.1, step_s=0.1)
        seen |= started(made)
    assert 4 <= len(seen) <= 6  # twenty seconds


def test_the_replacement_waits_for_a_task_that_does_not_stop_but_not_for_ever() -> None:
    made = world(2)
    old = made.running()[0]
    made.stuck = lambda task: task.id == old.id
    made.set_availability(old.node_id, "drain")
    made.run(55)
    assert [t.id for t in made.running()] == [old.id]
    made.run(10)
    assert {t.node_id for t in made.running()} == {"n1", "n2"}
    made.stuck = lambda task: False
    made.run(5)
    assert [t.node_id != old.node_id for t in made.running()] == [True]


# --- attempts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 5])
def test_attempts_are_counted_per_slot_also_by_a_new_leader(limit: int) -> None:
    policy = RestartPolicy(max_attempts=2, delay_s=0)
    made = world(2, 2, policy, spec=ClusterSpec(task_history_limit=limit))
    made.failing = lambda task: task.slot == 1
    made.run(4)
    made.new_id = World(seed=7).new_id
    made.run(60)
    assert len([t for t in made.tasks() if t.slot == 1]) == 3
    assert [t.slot for t in made.running()] == [2]


def test_failures_that_are_older_than_the_window_are_forgotten() -> None:
    made = world(1, 1, RestartPolicy(max_attempts=1, window_s=10, delay_s=0))
    for _ in range(4):
        made.run(15)
        fail(made, made.running()[0])
        made.run(5)
        assert len(made.running()) == 1
    fail(made, made.running()[0])
    made.run(5)
    assert made.running() == []
    made.run(60)
    assert made.running() == [], "it ended for good: time does not bring it back"


# --- nodes ----------------------------------------------------------------------------------------------------------


def test_a_leader_finds_tasks_on_nodes_that_are_down_drained_unknown_and_paused() -> None:
    made = world(4, 4)
    by_node = {t.node_id: t.id for t in made.running()}
    made.set_state("n1", "down")
    made.set_availability("n2", "drain")
    made.set_state("n3", "unknown")
    made.set_availability("n4", "pause")
    made.put(node("n5"))
    made.settle()
    assert {t.node_id: t.id for t in made.running() if t.node_id in ("n3", "n4")} == {
        "n3": by_node["n3"],
        "n4": by_node["n4"],
    }
    lost = made.get(Task, by_node["n1"])
    assert isinstance(lost, Task)
    assert lost.desired_state is S.SHUTDOWN
    assert len([t for t in made.running() if t.node_id == "n5"]) == 2


def test_a_lost_task_is_replaced_without_delay() -> None:
    made = world(2, 1, RestartPolicy(delay_s=30))
    made.set_state(made.running()[0].node_id, "down")
    made.run(4)
    assert len({t.node_id for t in made.running() if made.node(t.node_id).status.state == "ready"}) == 1


def test_tasks_of_a_node_that_was_removed_are_replaced_and_forgotten() -> None:
    made = world(2, 2)
    made.delete(Node, "n1")
    made.settle()
    assert made.spread() == {"n2": 2}
    assert all(is_terminal(t.status.state) for t in made.tasks() if t.node_id == "n1")


def test_what_may_run_at_most_once_is_not_replaced_when_its_node_is_lost() -> None:
    made = world(2, 1, RestartPolicy(condition="none"))
    (task,) = made.running()
    made.set_state(task.node_id, "down")
    made.run(30)
    assert started(made) == {task.id}
    made.set_state(task.node_id, "ready")
    made.run(5)
    assert [t.id for t in made.running()] == [task.id], "it went on all the time"
    made.set_availability(task.node_id, "drain")
    made.run(30)
    assert made.running() == []
    assert started(made) == {task.id}


def test_draining_start_first_has_the_replacement_run_before_the_task_stops() -> None:
    made = world(2, 2)
    start_first(made)
    victim = made.running()[0].node_id
    made.set_availability(victim, "drain")
    least = 2
    for _ in range(40):
        made.run(0.5)
        least = min(least, len(made.running()))
    assert least == 2
    assert victim not in made.spread()
    assert len(made.running()) == 2


def test_draining_start_first_does_not_wait_for_ever() -> None:
    made = world(1, 1)
    start_first(made)
    made.set_availability("n1", "drain")
    made.run(50)
    assert len(made.running()) == 1
    made.run(20)
    assert made.running() == []


def test_draining_start_first_tries_again_when_the_replacement_fails() -> None:
    made = world(2, 1, RestartPolicy(delay_s=2))
    start_first(made)
    old = made.running()[0]
    made.broken = lambda task: task.id != old.id
    made.set_availability(old.node_id, "drain")
    made.run(10)
    assert [t.id for t in made.running()] == [old.id]
    assert 2 <= len(started(made)) <= 5
    made.broken = lambda task: False
    made.run(10)
    assert [t.node_id == old.node_id for t in made.running()] == [False]


# --- half of it -----------------------------------------------------------------------------------------------------


def test_a_replacement_of_which_only_the_first_half_was_written_is_finished() -> None:
    made = world()
    fail(made, made.running()[0])
    decision = orchestrator.decide(made.snapshot, made.now_ms, made.new_id)
    assert len(decision.changes) == 2
    made.write(decision.changes[:1])
    made.settle()
    assert len(made.running()) == 1


def test_a_replacement_of_which_only_the_second_half_was_written_is_finished() -> None:
    made = world(2)
    old = made.running()[0]
    made.set_availability(old.node_id, "drain")
    decision = orchestrator.decide(made.snapshot, made.now_ms, made.new_id)
    made.write([change for change in decision.changes if change[1].obj.id != old.id])  # type: ignore[union-attr]
    together = 0
    for _ in range(40):
        made.run(0.5)
        together = max(together, len(made.running()))
    assert together == 1
    assert [t.node_id for t in made.running()] != [old.node_id]


def test_a_service_that_is_removed_takes_its_tasks_along_also_those_that_have_no_node() -> None:
    made = World()
    made.put(network(), service(replicas=2, networks=["web"]))
    made.settle()
    assert {t.status.state for t in made.tasks()} == {S.PENDING}
    made.write([(Writer.ORCHESTRATOR, Delete(type(made.service()), "s-api"))])
    made.settle()
    assert list(made.snapshot.all(Task)) == []


def test_without_a_cluster_nothing_is_decided() -> None:
    lone = Snapshot.of([node("n1"), service(replicas=1)])
    assert orchestrator.decide(lone, 0, str).changes == ()
