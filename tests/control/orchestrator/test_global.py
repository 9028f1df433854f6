"""Global services: one task on every node that fits, and what nodes that come, go and change do to it."""

from __future__ import annotations

import pytest

from control.lifecycle import TaskState, is_terminal
from control.model import GlobalMode, Node, Placement, RestartPolicy, ServiceMode, UpdatePolicy
from tests.control.cluster import World, node, service

S = TaskState


def world(nodes: int = 3, restart: RestartPolicy | None = None, **fields: object) -> World:
    made = World()
    made.put(*(node(f"n{i}") for i in range(1, nodes + 1)))
    task = {"restart": restart or RestartPolicy(delay_s=0)}
    made.put(service(mode=ServiceMode(global_=GlobalMode()), task=task, **fields))
    made.settle()
    return made


def ids(made: World) -> dict[str, str]:
    return {t.node_id: t.id for t in made.running()}


def test_tasks_are_told_their_node_and_have_no_slot() -> None:
    made = world()
    assert made.spread() == {"n1": 1, "n2": 1, "n3": 1}
    assert {t.slot for t in made.running()} == {0}


def test_a_new_node_gets_a_task_and_one_that_is_not_ready_none() -> None:
    made = world(1)
    made.put(node("n2"), node("n3"))
    made.set_state("n3", "unknown")
    made.settle()
    assert made.spread() == {"n1": 1, "n2": 1}
    made.set_state("n3", "ready")
    made.settle()
    assert made.spread() == {"n1": 1, "n2": 1, "n3": 1}


def test_a_paused_node_keeps_its_task_and_gets_no_other() -> None:
    made = world(2)
    before = ids(made)
    made.set_availability("n1", "pause")
    made.settle()
    assert ids(made) == before
    made.report(next(t for t in made.running() if t.node_id == "n1"), S.FAILED)
    made.settle()
    assert made.spread() == {"n2": 1}
    assert not [t for t in made.tasks() if t.status.state < S.ASSIGNED], "nothing waits for a paused node"
    made.set_availability("n1", "active")
    made.settle()
    assert made.spread() == {"n1": 1, "n2": 1}


@pytest.mark.parametrize("condition", ["any", "none"])
def test_draining_removes_and_activating_brings_back(condition: str) -> None:
    made = world(2, RestartPolicy(condition=condition, delay_s=0))  # type: ignore[arg-type]
    made.set_availability("n1", "drain")
    made.settle()
    assert made.spread() == {"n2": 1}
    made.set_availability("n1", "active")
    made.settle()
    assert made.spread() == {"n1": 1, "n2": 1}


def test_a_node_that_no_longer_fits_loses_its_task_in_order() -> None:
    made = World()
    made.put(node("n1", labels={"zone": "a"}), node("n2", labels={"zone": "a"}))
    fits = Placement(constraints=("node.labels.zone==a",))
    made.put(service(mode=ServiceMode(global_=GlobalMode()), placement=fits))
    made.settle()
    made.label("n1", zone="b")
    made.settle()
    assert made.spread() == {"n2": 1}
    gone = next(t for t in made.tasks() if t.node_id == "n1")
    assert gone.status.state is S.SHUTDOWN, "stopped, not rejected"
    made.label("n1", zone="a")
    made.settle()
    assert made.spread() == {"n1": 1, "n2": 1}


def test_a_node_that_is_lost_keeps_its_task_which_goes_on_when_it_returns() -> None:
    made = world(2)
    before = ids(made)
    made.set_state("n1", "down")
    made.settle()
    made.set_state("n1", "ready")
    made.settle()
    assert ids(made) == before


def test_a_leader_removes_tasks_of_nodes_that_do_not_exist() -> None:
    made = world(2)
    made.delete(Node, "n1")
    made.settle()
    assert [t.node_id for t in made.tasks()] == ["n2"]


def test_an_update_goes_over_the_nodes_and_leaves_those_out_that_cannot_have_it() -> None:
    made = world(4)
    made.set_state("n3", "down")
    made.set_availability("n4", "pause")
    made.rerun("new", UpdatePolicy(monitor_s=0))
    least = 4
    for _ in range(60):
        made.run(0.5)
        least = min(least, len(made.running()))
    assert least == 3, "one at a time"
    assert {t.node_id: t.spec_version for t in made.running()} == {"n1": 2, "n2": 2, "n3": 1, "n4": 1}
    assert made.status().state == "completed"
    made.set_state("n3", "ready")
    made.set_availability("n4", "active")
    made.run(30)
    assert {t.spec_version for t in made.running()} == {2}
    assert made.status().state == "completed"


def test_a_failing_update_pauses_with_one_node_touched() -> None:
    made = world(3)
    made.broken = lambda task: task.spec_version == 2
    made.rerun("bad")
    made.run(30)
    assert made.status().state == "paused"
    assert sorted(t.spec_version for t in made.running()) == [1, 1]


def test_attempts_are_counted_per_node() -> None:
    made = world(2, RestartPolicy(max_attempts=1, delay_s=0))
    made.failing = lambda task: task.node_id == "n1"
    made.run(30)
    assert len([t for t in made.tasks() if t.node_id == "n1"]) == 2
    assert made.spread() == {"n2": 1}
    assert all(is_terminal(t.status.state) for t in made.tasks() if t.node_id == "n1")
