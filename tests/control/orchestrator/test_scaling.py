"""Which slots go and come when a replicated service is scaled."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from control import orchestrator
from control.lifecycle import TaskState
from control.model import Cluster, Meta, RestartPolicy, Task, TaskStatus
from control.orchestrator.replicated import TASKS_MADE_MAX
from control.store.tables import Snapshot
from control.store.txn import Put
from tests.control.cluster import World, node, service

S = TaskState


def placed(slot: int, node_id: str, state: TaskState = S.RUNNING) -> Task:
    return Task(
        id=f"t{slot}",
        meta=Meta(version=1, created_ms=slot),
        service_id="s-api",
        service_name="api",
        slot=slot,
        node_id=node_id,
        spec=service().spec.task,
        desired_state=S.RUNNING,
        status=TaskStatus(state=state),
    )


def scaled_down(tasks: list[Task], replicas: int) -> set[str]:
    """Ids of those that are to go."""
    nodes = [node(f"n{i}") for i in range(1, 6)]
    snapshot = Snapshot.of([Cluster(id="c"), *nodes, service(replicas=replicas), *tasks], 1)
    decision = orchestrator.decide(snapshot, 10_000, str)
    gone = [c.obj for _, c in decision.changes if isinstance(c, Put) and isinstance(c.obj, Task)]
    assert {t.desired_state for t in gone} <= {S.REMOVE}
    assert all(isinstance(c, Put) for _, c in decision.changes), "told to go, not deleted"
    return {t.id for t in gone}


def test_what_has_no_node_goes_first_then_what_crowds_one() -> None:
    tasks = [placed(i, n) for i, n in enumerate(["n1", "n1", "n1", "n1", "n2", "n2"], 1)]
    waiting = placed(7, "", S.PENDING)
    assert scaled_down([*tasks, waiting], 6) == {"t7"}
    assert scaled_down(tasks, 4) == {"t3", "t4"}
    assert scaled_down(tasks, 2) == {"t2", "t3", "t4", "t6"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["n1", "n2", "n3"]), st.booleans()), min_size=1, max_size=12), st.data())
def test_scaling_down_keeps_what_runs_and_evens_the_nodes_out(
    where: list[tuple[str, bool]], data: st.DataObject
) -> None:
    tasks = [placed(i, n, S.RUNNING if runs else S.STARTING) for i, (n, runs) in enumerate(where, 1)]
    replicas = data.draw(st.integers(0, len(tasks)))
    gone = scaled_down(tasks, replicas)
    kept = [t for t in tasks if t.id not in gone]
    assert len(kept) == replicas
    if kept and any(t.id in gone for t in tasks if t.status.state is S.RUNNING):
        assert all(t.status.state is S.RUNNING for t in kept)
        before = Counter(t.node_id for t in tasks if t.status.state is S.RUNNING)
        after = Counter(t.node_id for t in kept)
        touched = [n for n in before if after[n] < before[n]]
        assert all(after[n] >= max(after.values()) - 1 for n in touched)


def test_free_numbers_are_used_again_from_the_lowest() -> None:
    made = World()
    made.put(*(node(f"n{i}") for i in (1, 2)), service(replicas=4))
    made.settle()
    made.scale(2)
    made.settle()
    made.scale(4)
    made.settle()
    assert [t.slot for t in made.running()] == [1, 2, 3, 4]


def test_a_large_service_is_made_in_parts() -> None:
    made = World()
    made.put(service(replicas=TASKS_MADE_MAX + 5))
    decision = orchestrator.decide(made.snapshot, made.now_ms, made.new_id)
    assert len(decision.changes) == TASKS_MADE_MAX
    made.write(decision.changes)
    assert len(orchestrator.decide(made.snapshot, made.now_ms, made.new_id).changes) == 5


def test_scaling_to_nothing_and_back() -> None:
    made = World()
    made.put(node("n1"), service(replicas=3, task={"restart": RestartPolicy()}))
    made.settle()
    made.scale(0)
    made.settle()
    assert made.tasks() == []
    made.scale(2)
    made.settle()
    assert len(made.running()) == 2
