"""Placing on snapshots made by hand: SwarmKit's acceptance cases, restated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from control import scheduler
from control.lifecycle import TaskState, Writer, is_terminal
from control.model import (
    Availability,
    Cluster,
    Meta,
    Node,
    NodeState,
    NodeStatus,
    Placement,
    PortSpec,
    ProcessSpec,
    ResourceRequirements,
    Resources,
    Task,
    TaskSpec,
    TaskStatus,
)
from control.scheduler.scheduler import FAULTY_FAILURES, FAULTY_WINDOW_MS
from control.store.tables import Snapshot
from control.store.txn import Put
from tests.control.cluster import node

S = TaskState
NOW_MS = 10_000_000


class Tasks:
    """Makes tasks, each younger than the one before."""

    def __init__(self) -> None:
        self._made = 0

    def __call__(self, service: str = "a", node_id: str = "", state: TaskState | None = None, **fields: object) -> Task:
        self._made += 1
        spec = {k: fields.pop(k) for k in ("placement", "resources") if k in fields}
        observed = state if state is not None else S.RUNNING if node_id else S.PENDING
        task = Task(
            id=f"t{self._made:05}",
            meta=Meta(version=1, created_ms=self._made, updated_ms=NOW_MS - 1000),
            service_id=service,
            service_name=service,
            slot=self._made,
            node_id=node_id,
            spec=TaskSpec(process=ProcessSpec(command=("x",)), **spec),  # type: ignore[arg-type]
            status=TaskStatus(state=observed),
        )
        return replace(task, **fields)

    def many(self, count: int, service: str = "a", node_id: str = "", **fields: object) -> list[Task]:
        return [self(service, node_id, **fields) for _ in range(count)]


@pytest.fixture
def task() -> Tasks:
    return Tasks()


def machine(name: str, state: NodeState = "ready", availability: Availability = "active", **labels: str) -> Node:
    made = node(name, labels=labels, availability=availability)
    return replace(made, status=replace(made.status, state=state))


def machines(count: int) -> list[Node]:
    return [machine(f"n{i}") for i in range(1, count + 1)]


def decided(nodes: Iterable[Node], tasks: Iterable[Task], now_ms: int = NOW_MS) -> list[Task]:
    """The tasks that change."""
    decision = scheduler.decide(Snapshot.of([Cluster(id="c"), *nodes, *tasks], 1), now_ms, str)
    assert all(writer is Writer.SCHEDULER for writer, _ in decision.changes)
    return [c.obj for _, c in decision.changes if isinstance(c, Put) and isinstance(c.obj, Task)]


def placed(nodes: Iterable[Node], tasks: Iterable[Task], now_ms: int = NOW_MS) -> dict[str, str]:
    """task id -> node."""
    return {t.id: t.node_id for t in decided(nodes, tasks, now_ms) if t.status.state is S.ASSIGNED}


def reasons(nodes: Iterable[Node], tasks: Iterable[Task]) -> dict[str, str]:
    return {t.id: t.status.error for t in decided(nodes, tasks) if t.status.state is S.PENDING}


def settled(tasks: list[Task], where: dict[str, str]) -> list[Task]:
    """The tasks as they run where they were placed."""
    running = TaskStatus(state=S.RUNNING)
    return [replace(t, node_id=where[t.id], status=running) if t.id in where else t for t in tasks]


# --- spread ---------------------------------------------------------------------------------------------------------


def test_by_service_first_by_all_second(task: Tasks) -> None:
    nodes, tasks = machines(5), task.many(18)
    tasks = settled(tasks, placed(nodes, tasks))
    of_a = Counter(t.node_id for t in tasks)
    assert sorted(of_a.values()) == [3, 3, 4, 4, 4]
    tasks += task.many(2, "b")
    where = placed(nodes, tasks)
    assert set(where.values()) == {n for n, count in of_a.items() if count == 3}
    tasks = settled(tasks, where)
    tasks += task.many(3)
    tasks = settled(tasks, placed(nodes, tasks))
    of_a = Counter(t.node_id for t in tasks if t.service_id == "a")
    assert sorted(of_a.values()) == [4, 4, 4, 4, 5]
    tasks += [task("b")]
    assert of_a[placed(nodes, tasks)[tasks[-1].id]] == 4
    # One node is emptied: what is new of `a` goes there, what is new of `b` only until it is as full of `b` as others.
    tasks = [t for t in tasks if t.node_id != "n1" and t.node_id]
    tasks += [*task.many(4), *task.many(2, "b")]
    where = placed(nodes, tasks)
    assert {where[t.id] for t in tasks if t.service_id == "a" and t.id in where} == {"n1"}
    assert [where[t.id] for t in tasks if t.service_id == "b" and t.id in where].count("n1") <= 1


def test_nodes_that_are_not_ready_or_not_active_get_nothing(task: Tasks) -> None:
    nodes = [
        machine("n1", "down"),
        machine("n2", "unknown"),
        machine("n3", availability="pause"),
        machine("n4", availability="drain"),
        machine("n5"),
    ]
    assert set(placed(nodes, task.many(4)).values()) == {"n5"}
    assert set(reasons(nodes[:4], task.many(1)).values()) == {"no suitable node (4 nodes not available for new tasks)"}


def test_a_task_that_is_being_stopped_is_no_replica_but_holds_its_resources(task: Tasks) -> None:
    going = task("a", "n1", desired_state=S.SHUTDOWN, resources=reserved(cpus=4))
    assert placed(machines(2), [going, task("a", "n2"), new := task()])[new.id] == "n1"
    big = task(resources=reserved(cpus=4))
    assert placed(machines(1), [going, big]) == {}


# --- preferences ----------------------------------------------------------------------------------------------------

BY_ZONE = Placement(preferences=("spread=node.labels.az",))
BY_RACK = Placement(preferences=("spread=node.labels.az", "spread=node.labels.rack"))


def test_zones_are_balanced_before_nodes(task: Tasks) -> None:
    nodes = [machine("n1", az="1"), *(machine(f"n{i}", az="2") for i in (2, 3, 4, 5))]
    spread = Counter(placed(nodes, task.many(8, placement=BY_ZONE)).values())
    assert spread == {"n1": 4, "n2": 1, "n3": 1, "n4": 1, "n5": 1}


def test_what_a_full_zone_cannot_take_goes_to_the_others_evenly(task: Tasks) -> None:
    nodes = [
        machine("n1", az="1", rack="a"),
        *(machine(f"n{i}", az="2", rack="x") for i in (2, 3)),
        *(machine(f"n{i}", az="2", rack="y") for i in (4, 5)),
    ]
    spread = Counter(placed(nodes, task.many(12, placement=BY_RACK, resources=reserved(cpus=0.8))).values())
    assert spread["n1"] == 5
    assert sorted((spread["n2"] + spread["n3"], spread["n4"] + spread["n5"])) == [3, 4]
    assert abs(spread["n2"] - spread["n3"]) <= 1
    assert abs(spread["n4"] - spread["n5"]) <= 1


def test_an_unbalanced_service_is_evened_out_by_what_is_new_and_nothing_moves(task: Tasks) -> None:
    nodes = [machine("n1", az="1"), machine("n2", az="2"), machine("n3", az="3")]
    old = [*task.many(6, "a", "n1", placement=BY_ZONE), *task.many(1, "a", "n2", placement=BY_ZONE)]
    new = task.many(7, placement=BY_ZONE)
    where = placed(nodes, [*old, *new])
    assert set(where) == {t.id for t in new}
    assert Counter(where.values()) == {"n2": 3, "n3": 4}


def test_a_zone_counts_what_runs_on_nodes_that_take_nothing_new(task: Tasks) -> None:
    nodes = [machine("n1", availability="pause", az="1"), machine("n2", az="1"), machine("n3", az="2")]
    old = task.many(4, "a", "n1", placement=BY_ZONE)
    assert set(placed(nodes, [*old, *task.many(4, placement=BY_ZONE)]).values()) == {"n3"}


def test_nodes_without_the_label_are_a_zone_of_their_own(task: Tasks) -> None:
    nodes = [machine("n1", az="1"), machine("n2"), machine("n3")]
    spread = Counter(placed(nodes, task.many(4, placement=BY_ZONE)).values())
    assert spread == {"n1": 2, "n2": 1, "n3": 1}


# --- filters --------------------------------------------------------------------------------------------------------


def reserved(**what: float) -> ResourceRequirements:
    return ResourceRequirements(reservations=Resources(**what))  # type: ignore[arg-type]


def test_reservations_are_added_up_exactly(task: Tasks) -> None:
    small = machine("n1")
    small = replace(small, description=replace(small.description, cpus=0.3))
    tasks = task.many(4, resources=reserved(cpus=0.1))
    assert len(placed([small], tasks)) == 3


def test_a_large_node_takes_what_waits_for_room(task: Tasks) -> None:
    big = machine("n2")
    big = replace(big, description=replace(big.description, memory_bytes=64 << 30))
    want = task(resources=reserved(memory_bytes=32 << 30))
    assert reasons(machines(1), [want]) == {want.id: "no suitable node (insufficient resources on 1 node)"}
    assert placed([*machines(1), big], [want]) == {want.id: "n2"}


@pytest.mark.parametrize("state", [s for s in S if is_terminal(s) and s is not S.REMOVE])
def test_what_is_dead_holds_nothing(task: Tasks, state: TaskState) -> None:
    port = (PortSpec(target=80, published=8080, mode="host"),)
    dead = task("a", "n1", state, resources=reserved(cpus=4), ports=port)
    new = task(resources=reserved(cpus=4), ports=port, placement=Placement(max_replicas_per_node=1))
    assert placed(machines(1), [dead, new]) == {new.id: "n1"}


def test_host_ports_are_taken_once_per_protocol(task: Tasks) -> None:
    tcp = (PortSpec(target=53, published=53, mode="host"),)
    udp = (PortSpec(target=53, published=53, mode="host", protocol="udp"),)
    first, second, third = task("a", ports=tcp), task("b", ports=tcp), task("c", ports=tcp)
    other = task("d", ports=udp)
    where = placed(machines(2), [first, second, third, other])
    assert where[first.id] != where[second.id]
    assert third.id not in where
    assert other.id in where
    assert reasons(machines(2), [first, second, third])[third.id] == (
        "no suitable node (host-mode port already in use on 2 nodes)"
    )


def test_an_executor_that_a_node_lacks(task: Tasks) -> None:
    bare = machine("n1")
    bare = replace(bare, description=replace(bare.description, executors=("docker",)))
    want = task()
    assert reasons([bare], [want]) == {want.id: "no suitable node (no executor for it on 1 node)"}


def test_expressions_that_make_no_sense_hold_nowhere_and_prefer_nothing(task: Tasks) -> None:
    want = task(placement=Placement(constraints=("nonsense",)))
    assert reasons(machines(2), [want]) == {
        want.id: "no suitable node (scheduling constraints not satisfied on 2 nodes)"
    }
    odd = task("b", placement=Placement(preferences=("binpack=node.id",)))
    assert len(placed(machines(1), [odd])) == 1


def test_the_first_filter_that_fails_gives_the_reason(task: Tasks) -> None:
    nodes = [machine("n1", "down", zone="b"), machine("n2", zone="b"), machine("n3", zone="b"), machine("n4", zone="a")]
    want = task(placement=Placement(constraints=("node.labels.zone==a",)), resources=reserved(cpus=64))
    assert reasons(nodes, [want]) == {
        want.id: "no suitable node (insufficient resources on 3 nodes; 1 node not available for new tasks)"
    }


def test_a_reason_is_written_once_and_goes_when_the_task_is_placed(task: Tasks) -> None:
    (waiting,) = decided([], [task()])
    assert waiting.status.error == "no suitable node (there are none)"
    assert decided([], [waiting]) == []
    (ready,) = decided(machines(1), [waiting])
    assert (ready.status.state, ready.status.error) == (S.ASSIGNED, "")


# --- failures -------------------------------------------------------------------------------------------------------


def failures(task: Tasks, count: int, service: str = "a", version: int = 1, state: TaskState = S.FAILED) -> list[Task]:
    return [task(service, "n1", state, spec_version=version) for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "age_ms", "version", "service", "expected"),
    [
        (FAULTY_FAILURES, 0, 1, "a", "n2"),
        (FAULTY_FAILURES - 1, 0, 1, "a", "n1"),
        (FAULTY_FAILURES, FAULTY_WINDOW_MS, 1, "a", "n1"),
        (FAULTY_FAILURES, 0, 2, "a", "n1"),
        (FAULTY_FAILURES, 0, 1, "b", "n1"),
    ],
    ids=["faulty", "too few", "too long ago", "another version", "another service"],
)
def test_a_node_where_it_keeps_failing_comes_last(
    task: Tasks, count: int, age_ms: int, version: int, service: str, expected: str
) -> None:
    # n2 is busier: without the failures n1 is the better one.
    tasks = [*failures(task, count, service, version), *task.many(3, "busy", "n2"), new := task()]
    assert placed(machines(2), tasks, NOW_MS + age_ms)[new.id] == expected


def test_a_faulty_node_is_better_than_none(task: Tasks) -> None:
    new = task()
    assert placed(machines(1), [*failures(task, 9), new]) == {new.id: "n1"}


# --- who is looked at -----------------------------------------------------------------------------------------------


def test_tasks_with_a_node_come_first_and_are_only_checked(task: Tasks) -> None:
    free = task("a", resources=reserved(cpus=3))
    given_node = task("g", "n1", S.PENDING, slot=0, resources=reserved(cpus=3))
    assert placed(machines(1), [free, given_node]) == {given_node.id: "n1"}
    paused = [machine("n1", availability="pause")]
    assert reasons(paused, [given_node]) == {given_node.id: "no suitable node (its node not available for new tasks)"}
    assert reasons([], [given_node]) == {given_node.id: "no suitable node (its node is gone)"}


def test_tasks_that_are_not_pending_or_not_wanted_are_ignored(task: Tasks) -> None:
    tasks = [
        task(state=S.NEW),
        task(desired_state=S.SHUTDOWN),
        task(desired_state=S.REMOVE),
        task("a", "n1", S.NEW, slot=0, resources=reserved(cpus=4)),  # has its node, but holds nothing there yet
        wanted := task(resources=reserved(cpus=4)),
        held := task("b", desired_state=S.READY),
    ]
    assert set(placed(machines(1), tasks)) == {wanted.id, held.id}


def test_the_oldest_goes_first_when_there_is_not_room_for_all(task: Tasks) -> None:
    tasks = task.many(4, resources=reserved(cpus=2))
    assert set(placed(machines(1), reversed(tasks))) == {tasks[0].id, tasks[1].id}


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_limit_is_ever_exceeded_and_nobody_waits_who_fits(data: st.DataObject) -> None:
    task = Tasks()
    nodes = [
        replace(n, description=replace(n.description, cpus=data.draw(st.integers(1, 4))))
        for n in machines(data.draw(st.integers(1, 5)))
    ]
    tasks = []
    for service in "abc":
        limit = data.draw(st.integers(0, 2))
        cpus = data.draw(st.integers(0, 2))
        port = (PortSpec(target=1, published=data.draw(st.integers(1, 2)), mode="host"),) * data.draw(st.integers(0, 1))
        fields = {"placement": Placement(max_replicas_per_node=limit), "resources": reserved(cpus=cpus), "ports": port}
        tasks += task.many(data.draw(st.integers(0, 6)), service, **fields)
    where = placed(nodes, tasks)
    for machine_ in nodes:
        here = [t for t in tasks if where.get(t.id) == machine_.id]
        assert sum(t.spec.resources.reservations.cpus for t in here) <= machine_.description.cpus
        ports = [p.published for t in here for p in t.ports]
        assert len(ports) == len(set(ports))
        for service, count in Counter(t.service_id for t in here).items():
            most = next(t for t in here if t.service_id == service).spec.placement.max_replicas_per_node
            assert not most or count <= most
    assert placed(nodes, settled(tasks, where)) == {}, "one pass places all that fit"


def test_statuses_of_nodes_without_an_address_do_not_matter(task: Tasks) -> None:
    lone = replace(machine("n1"), status=NodeStatus(state="ready"))
    want = task(placement=Placement(constraints=("node.ip!=10.0.0.0/8",)))
    assert placed([lone], [want]) == {want.id: "n1"}
