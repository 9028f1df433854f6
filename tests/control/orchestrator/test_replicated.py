"""Services at their number of tasks: scaling, nodes that come and go, restarts and updates, in virtual time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from control.lifecycle import TaskState, Writer, is_terminal
from control.model import (
    GlobalMode,
    Node,
    NodeSpec,
    NodeStatus,
    Placement,
    ProcessSpec,
    ReplicatedMode,
    RestartPolicy,
    Service,
    ServiceMode,
    Task,
    UpdatePolicy,
)
from control.store.txn import Delete
from tests.control.cluster import World, network, node, service


def world(nodes: int = 3, **fields: object) -> World:
    made = World(**fields)  # type: ignore[arg-type]
    made.put(*(node(f"n{i}") for i in range(1, nodes + 1)))
    return made


def scaled(made: World, replicas: int, name: str = "api") -> None:
    held = made.get(Service, f"s-{name}")
    assert isinstance(held, Service)
    mode = ServiceMode(replicated=ReplicatedMode(replicas=replicas))
    made.change(held, spec=replace(held.spec, mode=mode))


def node_state(made: World, name: str, state: str) -> None:
    held = made.get(Node, name)
    assert isinstance(held, Node)
    made.change(held, status=NodeStatus(state=state, data_address=held.status.data_address))  # type: ignore[arg-type]


def updated(made: World, command: str, policy: UpdatePolicy) -> None:
    held = made.get(Service, "s-api")
    assert isinstance(held, Service)
    task = replace(held.spec.task, process=ProcessSpec(command=(command,)))
    made.change(
        held,
        previous_spec=held.spec,
        previous_spec_version=held.spec_version,
        spec=replace(held.spec, task=task, update=policy),
        spec_version=held.spec_version + 1,
    )


def test_a_service_gets_its_replicas_spread_over_the_nodes_with_addresses_of_their_own() -> None:
    made = world()
    made.put(network(), service(replicas=4, networks=["web"]))
    made.settle()
    assert sorted(made.spread().values()) == [1, 1, 2]
    addresses = [a.address for t in made.running() for a in t.addresses]
    assert len(set(addresses)) == 4
    assert [t.slot for t in made.running()] == [1, 2, 3, 4]


def test_a_settled_cluster_decides_nothing_and_a_new_leader_decides_nothing() -> None:
    made = world()
    made.put(network(), service(networks=["web"]))
    made.settle()
    version = made.snapshot.version
    made.new_id = World(seed=99).new_id
    made.decide()
    assert made.snapshot.version == version


def test_scaling_down_takes_what_does_not_run_then_the_fullest_node() -> None:
    made = world(nodes=2)
    made.put(service(replicas=3))
    made.settle()
    crowded = max(made.spread(), key=lambda n: made.spread()[n])
    scaled(made, 2)
    made.settle()
    assert sorted(made.spread().values()) == [1, 1]
    assert made.spread()[crowded] == 1
    assert len(made.tasks()) == 2


def test_scaling_up_fills_free_slots() -> None:
    made = world()
    made.put(service(replicas=2))
    made.settle()
    scaled(made, 5)
    made.settle()
    assert [t.slot for t in made.running()] == [1, 2, 3, 4, 5]


def test_tasks_of_a_node_that_is_down_are_replaced_elsewhere_and_stopped_when_it_returns() -> None:
    made = world()
    made.put(service(replicas=3))
    made.settle()
    node_state(made, "n1", "down")
    made.settle()
    alive = [t for t in made.running() if t.node_id != "n1"]
    assert len(alive) == 3
    node_state(made, "n1", "ready")
    made.settle()
    assert len(made.running()) == 3
    assert all(t.node_id != "n1" for t in made.running())


def test_tasks_on_an_unknown_or_paused_node_are_left_alone_and_a_drained_node_is_emptied() -> None:
    made = world()
    made.put(service(replicas=3))
    made.settle()
    before = {t.id for t in made.running()}
    node_state(made, "n1", "unknown")
    held = made.get(Node, "n2")
    assert isinstance(held, Node)
    made.change(held, spec=NodeSpec(availability="pause"))
    made.settle()
    assert {t.id for t in made.running()} == before
    held = made.get(Node, "n2")
    assert isinstance(held, Node)
    made.change(held, spec=NodeSpec(availability="drain"))
    made.settle()
    assert "n2" not in made.spread()
    assert len(made.running()) == 3


def test_a_failed_task_is_replaced_in_its_slot_after_the_delay() -> None:
    made = world()
    made.put(service(replicas=1, task={"restart": RestartPolicy(delay_s=5)}))
    made.settle()
    first = made.running()[0]
    made.failing = lambda t: t.id == first.id
    made.agents()
    failed_ms = made.now_ms
    made.failing = lambda t: False
    while not made.running():
        assert made.now_ms < failed_ms + 30_000
        made.run(0.5)
    assert made.now_ms - failed_ms >= 5_000
    assert made.running()[0].slot == first.slot


@pytest.mark.parametrize(("condition", "restarted"), [("any", True), ("on-failure", True), ("none", False)])
def test_the_restart_condition_decides_about_failed_tasks(condition: str, restarted: bool) -> None:
    made = world()
    made.put(service(replicas=1, task={"restart": RestartPolicy(condition=condition, delay_s=0)}))  # type: ignore[arg-type]
    made.settle()
    first = made.running()[0]
    made.failing = lambda t: t.id == first.id
    made.settle()
    assert bool(made.running()) == restarted
    assert len(made.tasks()) == (2 if restarted else 1)


def test_attempts_are_limited_per_slot_and_kept_in_history() -> None:
    made = world()
    made.put(service(replicas=2, task={"restart": RestartPolicy(max_attempts=2, delay_s=0)}))
    made.failing = lambda t: t.slot == 1
    made.settle(300)
    assert len([t for t in made.tasks() if t.slot == 1]) == 3
    assert [t.slot for t in made.running()] == [2]


def test_history_is_bounded_per_slot() -> None:
    made = world()
    made.put(service(replicas=1, task={"restart": RestartPolicy(delay_s=0)}))
    made.failing = lambda t: True
    made.run(120)
    assert len(made.tasks()) <= made.spec.task_history_limit + 2


def test_tasks_of_a_removed_service_are_stopped_and_deleted() -> None:
    made = world()
    made.put(network(), service(replicas=3, networks=["web"]))
    made.settle()
    made.write([(Writer.ORCHESTRATOR, Delete(Service, "s-api"))])
    made.settle()
    assert list(made.snapshot.all(Task)) == []


def test_a_node_that_loses_its_label_loses_the_tasks_that_need_it() -> None:
    made = World()
    made.put(node("n1", labels={"zone": "a"}), node("n2", labels={"zone": "a"}))
    made.put(service(replicas=2, placement=Placement(constraints=("node.labels.zone==a",))))
    made.settle()
    held = made.get(Node, "n1")
    assert isinstance(held, Node)
    made.change(held, spec=NodeSpec())
    made.settle()
    assert made.spread() == {"n2": 2}


def test_a_global_service_has_one_task_on_every_node_that_fits() -> None:
    made = world(nodes=3)
    made.put(service(mode=ServiceMode(global_=GlobalMode())))
    made.settle()
    assert made.spread() == {"n1": 1, "n2": 1, "n3": 1}
    made.put(node("n4"))
    held = made.get(Node, "n1")
    assert isinstance(held, Node)
    made.change(held, spec=NodeSpec(availability="drain"))
    made.settle()
    assert made.spread() == {"n2": 1, "n3": 1, "n4": 1}
    held = made.get(Node, "n1")
    assert isinstance(held, Node)
    made.change(held, spec=NodeSpec())
    made.settle()
    assert made.spread() == {"n1": 1, "n2": 1, "n3": 1, "n4": 1}


def test_a_global_task_that_fails_is_started_again_on_its_node() -> None:
    made = world(nodes=2)
    made.put(service(mode=ServiceMode(global_=GlobalMode()), task={"restart": RestartPolicy(delay_s=0)}))
    made.settle()
    first = made.running()[0]
    made.failing = lambda t: t.id == first.id
    made.settle()
    assert made.spread() == {"n1": 1, "n2": 1}


def test_a_global_task_on_a_node_that_was_down_goes_on_when_it_returns() -> None:
    made = world(nodes=2)
    made.put(service(mode=ServiceMode(global_=GlobalMode())))
    made.settle()
    before = {t.id for t in made.running()}
    node_state(made, "n1", "down")
    made.settle()
    node_state(made, "n1", "ready")
    made.settle()
    assert {t.id for t in made.running()} == before


@pytest.mark.parametrize("order", ["stop-first", "start-first"])
def test_an_update_replaces_all_slots_a_few_at_a_time(order: str) -> None:
    made = world()
    made.put(service(replicas=4))
    made.settle()
    updated(made, "new", UpdatePolicy(parallelism=1, monitor_s=0, order=order))  # type: ignore[arg-type]
    least = 4
    for _ in range(200):
        made.run(0.5)
        least = min(least, len(made.running()))
    assert {t.spec.process.command[0] for t in made.running() if t.spec.process} == {"new"}
    assert len(made.running()) == 4
    assert least == (3 if order == "stop-first" else 4)
    held = made.get(Service, "s-api")
    assert isinstance(held, Service)
    assert held.update_status.state == "completed"


def test_a_failing_update_pauses_and_leaves_the_other_slots() -> None:
    made = world()
    made.put(service(replicas=3, task={"restart": RestartPolicy(delay_s=0)}))
    made.settle()
    made.broken = lambda t: t.spec_version == 2
    updated(made, "bad", UpdatePolicy(parallelism=1, monitor_s=5))
    made.run(60)
    held = made.get(Service, "s-api")
    assert isinstance(held, Service)
    assert held.update_status.state == "paused"
    assert Counter(t.spec_version for t in made.running())[1] == 2


def test_a_failing_update_rolls_back_when_asked_to_and_leaves_untouched_slots_alone() -> None:
    made = world()
    made.put(service(replicas=3, task={"restart": RestartPolicy(delay_s=0)}))
    made.settle()
    before = {t.id for t in made.running()}
    made.broken = lambda t: t.spec_version == 2
    updated(made, "bad", UpdatePolicy(parallelism=1, monitor_s=5, failure_action="rollback"))
    made.run(120)
    held = made.get(Service, "s-api")
    assert isinstance(held, Service)
    assert held.update_status.state == "rollback_completed"
    assert {t.spec_version for t in made.running()} == {1}
    assert len(made.running()) == 3
    assert len(before & {t.id for t in made.running()}) == 2


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("scale"), st.integers(0, 6)),
        st.tuples(st.just("down"), st.integers(1, 3)),
        st.tuples(st.just("up"), st.integers(1, 3)),
        st.tuples(st.just("fail"), st.integers(1, 6)),
        st.tuples(st.just("update"), st.integers(0, 100)),
        st.tuples(st.just("run"), st.integers(1, 20)),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_whatever_happens_it_converges_to_one_task_per_slot_and_no_address_twice(
    steps: list[tuple[str, int]],
) -> None:
    made = world()
    made.put(network(), service(replicas=3, networks=["web"], task={"restart": RestartPolicy(delay_s=1)}))
    replicas = 3
    for what, n in steps:
        match what:
            case "scale":
                replicas = n
                scaled(made, n)
            case "down":
                node_state(made, f"n{n}", "down")
            case "up":
                node_state(made, f"n{n}", "ready")
            case "fail":
                made.failing = lambda t, n=n: t.slot == n and t.spec_version == 1  # type: ignore[misc]
                made.agents()
                made.failing = lambda t: False
            case "update":
                updated(made, f"v{n}", UpdatePolicy(parallelism=2, monitor_s=0))
        made.run(n if what == "run" else 1)
        _check(made)
    for i in (1, 2, 3):
        node_state(made, f"n{i}", "ready")
    made.run(200, step_s=1.0)
    _check(made)
    held = made.get(Service, "s-api")
    assert isinstance(held, Service)
    assert len(made.running()) == replicas
    assert all(t.spec == held.spec.task for t in made.running())


def _check(made: World) -> None:
    live = [t for t in made.tasks() if not is_terminal(t.status.state)]
    started = Counter(
        t.slot
        for t in live
        if t.desired_state is TaskState.RUNNING and isinstance(n := made.snapshot.get(Node, t.node_id), Node)
        and n.status.state == "ready"
    )  # fmt: skip
    assert all(count == 1 for count in started.values()), started
    addresses = [a.address for t in live for a in t.addresses]
    assert len(addresses) == len(set(addresses))
