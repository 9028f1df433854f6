"""Where tasks go, and what is said when they go nowhere. Restates SwarmKit's acceptance cases in our own words."""

from __future__ import annotations

from collections import Counter

import pytest
from msgspec.structs import replace

from control.constraint import Constraint, ConstraintError, parse_constraint, parse_preference
from control.lifecycle import TaskState, Writer
from control.model import (
    Node,
    NodeStatus,
    Placement,
    PortSpec,
    ResourceRequirements,
    Resources,
    Task,
    TaskStatus,
    TunnelKey,
)
from control.scheduler.scheduler import FAULTY_FAILURES
from control.store.txn import Put
from tests.control.cluster import World, network, node, service


def cluster(*nodes: Node) -> World:
    made = World()
    made.put(*nodes)
    return made


def equal(count: int) -> World:
    return cluster(*(node(f"n{i}") for i in range(1, count + 1)))


def error_of(made: World, name: str = "api") -> str:
    made.decide()
    made.decide()
    return next(t.status.error for t in made.tasks(name) if t.status.state < TaskState.ASSIGNED)


def test_a_service_is_spread_first_by_its_own_tasks_then_by_all() -> None:
    made = equal(5)
    made.put(service("a", replicas=18))
    made.settle()
    assert sorted(made.spread("a").values()) == [3, 3, 4, 4, 4]
    light = {n for n, count in made.spread("a").items() if count == 3}
    made.put(service("b", replicas=2))
    made.settle()
    assert set(made.spread("b")) == light


def test_a_preference_balances_branches_before_nodes() -> None:
    made = cluster(node("n1", labels={"az": "1"}), *(node(f"n{i}", labels={"az": "2"}) for i in (2, 3, 4, 5)))
    made.put(service(replicas=8, placement=Placement(preferences=("spread=node.labels.az",))))
    made.settle()
    assert made.spread() == {"n1": 4, "n2": 1, "n3": 1, "n4": 1, "n5": 1}


def test_two_levels_of_preferences_and_a_node_that_is_full() -> None:
    made = cluster(
        node("n1", labels={"az": "1", "rack": "a"}),
        *(node(f"n{i}", labels={"az": "2", "rack": "x"}) for i in (2, 3)),
        *(node(f"n{i}", labels={"az": "2", "rack": "y"}) for i in (4, 5)),
    )
    wants = ResourceRequirements(reservations=Resources(cpus=0.8))  # five fit on a node of four
    preferences = ("spread=node.labels.az", "spread=node.labels.rack")
    made.put(service(replicas=12, placement=Placement(preferences=preferences), task={"resources": wants}))
    made.settle()
    spread = made.spread()
    assert spread["n1"] == 5
    assert sorted((spread["n2"] + spread["n3"], spread["n4"] + spread["n5"])) == [3, 4]


def test_without_a_ready_node_the_task_waits_and_says_so_until_there_is_one() -> None:
    made = World()
    made.put(service(replicas=1))
    assert error_of(made) == "no suitable node (there are none)"
    late = node("n1")
    made.put(replace(late, status=NodeStatus(state="down", data_address="10.66.0.1")))
    assert error_of(made) == "no suitable node (1 node not available for new tasks)"
    held = made.get(Node, "n1")
    made.change(held, status=late.status)  # type: ignore[arg-type]
    made.settle()
    assert [t.status.error for t in made.running()] == [""]


def test_reasons_are_counted_and_the_commonest_comes_first() -> None:
    small = [node(f"n{i}") for i in (1, 2)]
    made = cluster(*small, replace(node("n3"), status=NodeStatus(state="down", data_address="10.66.0.3")))
    wants = ResourceRequirements(reservations=Resources(memory_bytes=64 << 30))
    made.put(service(replicas=1, task={"resources": wants}))
    assert error_of(made) == (
        "no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks)"
    )


def test_an_encrypted_network_needs_a_node_that_has_told_a_key() -> None:
    made = equal(3)
    made.put(network("secret", encrypted=True))
    made.put(service(replicas=2, networks=("secret",)))
    assert error_of(made) == "no suitable node (no WireGuard for its encrypted network on 3 nodes)"
    said = replace(made.node("n2").description, tunnel_keys=(TunnelKey(slot=0, key="A" * 43 + "="),))
    made.change(made.node("n2"), description=said)
    made.settle()
    assert made.spread() == {"n2": 2}


def test_resources_are_free_again_as_soon_as_a_task_has_ended() -> None:
    made = equal(1)
    wants = ResourceRequirements(reservations=Resources(cpus=3))
    made.put(service("a", replicas=1, task={"resources": wants}), service("b", replicas=1, task={"resources": wants}))
    made.settle()
    assert len(made.running("a")) + len(made.running("b")) == 1
    first = (made.running("a") + made.running("b"))[0]
    loser = "b" if first.service_name == "a" else "a"
    made.stuck = lambda t: t.service_name == first.service_name and t.id != first.id
    made.failing = lambda t: t.id == first.id
    made.agents()
    made.settle()
    assert len(made.running(loser)) == 1


def test_host_ports_and_replicas_per_node_are_limits() -> None:
    made = equal(2)
    made.put(service("a", replicas=3, ports=(PortSpec(target=80, published=8080, mode="host"),)))
    made.put(service("b", replicas=3, placement=Placement(max_replicas_per_node=1)))
    made.settle()
    assert made.spread("a") == {"n1": 1, "n2": 1}
    assert made.spread("b") == {"n1": 1, "n2": 1}
    assert error_of(made, "a") == "no suitable node (host-mode port already in use on 2 nodes)"
    assert error_of(made, "b") == "no suitable node (max replicas per node limit exceeded on 2 nodes)"


STEPS_TO_FAILURE = (
    (Writer.ALLOCATOR, TaskState.PENDING),
    (Writer.SCHEDULER, TaskState.ASSIGNED),
    (Writer.AGENT, TaskState.FAILED),
)


def test_a_node_where_a_service_keeps_failing_comes_last() -> None:
    made = equal(2)
    made.put(service("busy", replicas=6, placement=Placement(constraints=("node.id==n2",))))
    made.settle()
    spec = service("api", replicas=1)
    made.put(spec)
    for i in range(FAULTY_FAILURES):
        task = Task(
            id=f"f{i}", service_id=spec.id, service_name="api", slot=9, spec=spec.spec.task, node_id="n1",
            desired_state=TaskState.RUNNING,
        )  # fmt: skip
        made.put(task)
        for writer, state in STEPS_TO_FAILURE:
            held = made.get(Task, task.id)
            assert isinstance(held, Task)
            made.write([(writer, Put(replace(held, status=TaskStatus(state=state))))])
    made.decide()
    made.decide()
    placed = [t.node_id for t in made.tasks() if t.status.state is TaskState.ASSIGNED]
    assert placed
    assert set(placed) == {"n2"}, "n1 has fewer tasks, but this service failed there five times"


def test_a_task_that_is_not_wanted_any_more_is_not_placed() -> None:
    made = World()
    made.put(service(replicas=2))
    made.decide()
    for task in made.tasks():
        made.change(task, desired_state=TaskState.SHUTDOWN)
    made.put(node("n1"))
    made.decide()
    assert {t.node_id for t in made.tasks() if t.desired_state is TaskState.SHUTDOWN} <= {""}


def test_many_tasks_on_many_nodes_are_spread_evenly() -> None:
    made = equal(100)
    made.put(service(replicas=500))
    made.decide()
    made.decide()
    counts = Counter(t.node_id for t in made.tasks())
    assert set(counts.values()) == {5}
    assert len(counts) == 100


NODE = node("n1", labels={"Zone": "East"}, architecture="x86_64", os="linux")


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("node.labels.zone==east", True),
        ("node.labels.zone != EAST", False),
        ("node.labels.missing!=x", True),
        ("node.labels.missing==x", False),
        ("node.hostname==N1", True),
        ("node.id==n1", True),
        ("node.role==manager", False),
        ("node.platform.arch==amd64", True),
        ("node.platform.os==Linux", True),
        ("node.ip==10.66.0.1", True),
        ("node.ip==10.66.0.0/24", True),
        ("node.ip!=10.66.0.0/24", False),
    ],
)
def test_constraints_hold_or_not(text: str, holds: bool) -> None:
    assert parse_constraint(text).matches(NODE) is holds


@pytest.mark.parametrize("text", ["", "node.role", "node.role=manager", "colour==red", "node.labels.==x", "node.ip==x"])
def test_constraints_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConstraintError):
        parse_constraint(text)


def test_an_expression_is_read_into_its_parts() -> None:
    assert parse_constraint(" node.labels.a == b=c ") == Constraint("node.labels.a", "==", "b=c")
    assert parse_preference("spread=node.labels.az") == "node.labels.az"
    with pytest.raises(ConstraintError, match="spread=KEY"):
        parse_preference("pack=node.labels.az")
