"""Nodes that change under their tasks: who has to go, and who is left alone."""

from __future__ import annotations

from msgspec.structs import replace

from control.lifecycle import TaskState
from control.model import Placement, ResourceRequirements, Resources, UpdatePolicy
from tests.control.cluster import World, node, service

S = TaskState
ON_WORKERS = Placement(constraints=("node.role==worker",))
IN_A = Placement(constraints=("node.labels.zone==a",))
CONSTRAINED = "its node no longer fulfils the placement constraints"
SHRUNK = "its node no longer has the resources that it reserves"


def world(*nodes: str, **fields: object) -> World:
    made = World()
    made.put(*(node(name, labels={"zone": "a"}) for name in nodes))
    made.put(service(replicas=2, **fields))
    made.settle()
    return made


def errors(made: World) -> list[str]:
    return [t.status.error for t in made.tasks() if t.status.state is S.REJECTED]


def test_a_worker_that_becomes_a_manager_loses_what_is_for_workers() -> None:
    made = world("n1", "n2", placement=ON_WORKERS)
    made.change(made.node("n1"), spec=replace(made.node("n1").spec, role="manager"))
    made.settle()
    assert made.spread() == {"n2": 2}
    assert errors(made) == [CONSTRAINED]


def test_the_newest_go_when_a_node_shrinks() -> None:
    reserve = ResourceRequirements(reservations=Resources(cpus=1.5, memory_bytes=1 << 30))
    made = world("n1", task={"resources": reserve})
    first, second = made.running()
    for smaller in ({"cpus": 2.0}, {"cpus": 2.0, "memory_bytes": 1 << 20}):
        description = replace(made.node("n1").description, **smaller)  # type: ignore[arg-type]
        made.change(made.node("n1"), description=description)
        made.decide()
    made.decide()
    assert errors(made) == [SHRUNK, SHRUNK]
    assert second.id == next(t.id for t in made.tasks() if t.slot == second.slot)
    assert first.slot != second.slot


def test_the_constraint_of_the_service_counts_although_the_tasks_copy_lacks_it() -> None:
    made = world("n1", "n2")
    made.update(policy=UpdatePolicy(monitor_s=0), placement=IN_A)
    made.run(30)
    # Nothing was replaced for it, so nothing was updated: this is what a completed update of something else leaves.
    assert {t.spec_version for t in made.running()} == {1}
    made.change(made.service(), update_status=replace(made.status(), state="completed"))
    made.label("n1")
    made.run(30)
    assert made.spread() == {"n2": 2}
    assert errors(made) == [CONSTRAINED]


def test_a_new_constraint_is_the_business_of_the_update() -> None:
    made = world("n1", "n2", "n3")
    made.label("n1")
    made.label("n2")
    made.settle()
    made.update(policy=UpdatePolicy(monitor_s=0, delay_s=20), placement=IN_A)
    made.run(10)
    assert errors(made) == []
    assert len(made.running()) == 2
    made.run(60)
    assert made.spread() == {"n3": 2}


def test_a_constraint_that_was_taken_away_is_not_enforced() -> None:
    made = world("n1", "n2", placement=IN_A)
    made.update(policy=UpdatePolicy(monitor_s=0), placement=Placement())
    made.run(30)
    made.label("n1")
    made.run(30)
    assert errors(made) == []
    assert made.spread() == {"n1": 1, "n2": 1}


def test_paused_and_lost_nodes_are_left_alone_and_so_is_what_has_ended() -> None:
    made = world("n1", "n2", placement=IN_A)
    before = {t.id for t in made.running()}
    made.set_availability("n1", "pause")
    made.label("n1")
    made.run(10)
    assert {t.id for t in made.running()} == before
    made.report(next(t for t in made.running() if t.node_id == "n2"), S.COMPLETE)
    made.label("n2")
    made.decide()
    assert errors(made) == []


def test_an_expression_that_makes_no_sense_is_fulfilled_by_nobody() -> None:
    made = world("n1", placement=Placement(constraints=("zone=a",)))
    assert made.running() == []
