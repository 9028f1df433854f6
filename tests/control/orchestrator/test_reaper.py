"""What is forgotten, when, and what must not be."""

from __future__ import annotations

import pytest

from control import allocator, orchestrator
from control.lifecycle import TaskState, is_terminal
from control.model import ClusterSpec, RestartPolicy, Task
from control.store.txn import Delete
from tests.control.cluster import World, network, node, service

S = TaskState


def world(limit: int = 5, replicas: int = 1, restart: RestartPolicy | None = None) -> World:
    made = World(spec=ClusterSpec(task_history_limit=limit))
    made.put(node("n1"), node("n2"), network())
    made.put(service(replicas=replicas, networks=["web"], task={"restart": restart or RestartPolicy(delay_s=0)}))
    made.settle()
    return made


def ended(made: World) -> list[Task]:
    return [t for t in made.tasks() if is_terminal(t.status.state)]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_so_many_ended_tasks_are_kept_per_slot_the_newest(limit: int) -> None:
    made = world(limit, replicas=2)
    made.failing = lambda task: task.slot == 1
    made.run(60)
    made.failing = lambda task: False
    made.settle()
    kept = ended(made)
    assert len(kept) == limit
    assert {t.slot for t in kept} <= {1}
    newest = max(t.meta.created_ms for t in made.running() if t.slot == 1)
    assert all(newest - t.meta.created_ms <= (limit + 1) * 4_000 for t in kept)


def test_as_many_are_kept_as_attempts_are_counted() -> None:
    made = world(1, restart=RestartPolicy(max_attempts=4, delay_s=0))
    made.failing = lambda task: True
    made.run(60)
    assert len(ended(made)) == 5


def test_a_removed_task_is_forgotten_only_when_its_node_has_stopped_it_and_its_address_rests() -> None:
    made = world(replicas=2)
    made.stuck = lambda task: True
    made.scale(1)
    made.run(30)
    (going,) = [t for t in made.tasks() if t.desired_state is S.REMOVE]
    made.report(going, S.SHUTDOWN)
    decision = orchestrator.decide(made.snapshot, made.now_ms, made.new_id)
    assert decision.changes == (), "its address has not been taken back"
    made.write(allocator.decide(made.snapshot, made.now_ms, made.new_id).changes)
    made.decide()
    assert going.id not in {t.id for t in made.tasks()}


def test_a_task_that_never_had_a_node_is_forgotten_at_once() -> None:
    made = World()
    made.put(network(), service(replicas=3, networks=["web"]))
    made.decide()
    assert {t.status.state for t in made.tasks()} == {S.PENDING}
    made.scale(0)
    made.decide()
    made.decide()
    assert made.tasks() == []


def test_nothing_is_deleted_that_may_still_run() -> None:
    made = world(0, replicas=3)
    made.set_state("n1", "down")
    made.stuck = lambda task: True
    made.scale(0)
    for _ in range(20):
        decision = orchestrator.decide(made.snapshot, made.now_ms, made.new_id)
        for _, change in decision.changes:
            if isinstance(change, Delete):
                held = made.get(Task, change.id)
                assert isinstance(held, Task)
                assert is_terminal(held.status.state) or held.status.state < S.ASSIGNED
        made.write(decision.changes)
        made.now_ms += 1000
    assert len(made.tasks()) == 3


def test_tasks_of_a_removed_service_go_when_they_have_stopped() -> None:
    made = world(replicas=2)
    made.failing = lambda task: task.slot == 1
    made.run(10)
    made.delete(type(made.service()), "s-api")
    made.settle()
    assert list(made.snapshot.all(Task)) == []
