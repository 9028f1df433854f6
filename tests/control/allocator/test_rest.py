"""Addresses that are given back: they rest, whoever held them and however they were let go."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from control import allocator
from control.lifecycle import TaskState, Writer, is_terminal
from control.model import (
    RESTING_VNIS,
    ClusterSpec,
    Network,
    NetworkAttachment,
    RestingAddress,
    Service,
    Task,
)
from control.store.tables import event
from control.store.txn import Delete, Put
from tests.control.cluster import World, network, node, service

S = TaskState
REST_S = 60.0


def world(replicas: int = 2, rest_s: float = REST_S, subnet: str = "") -> World:
    made = World(spec=ClusterSpec(address_rest_s=rest_s))
    made.put(node("n1"), node("n2"), network(subnet=subnet), service(replicas=replicas, networks=["web"]))
    made.settle()
    return made


def resting(made: World) -> dict[str, int]:
    return {r.address: r.until_ms for r in made.snapshot.all(RestingAddress)}


def addresses(made: World) -> set[str]:
    return {a.address for t in made.running() for a in t.addresses}


def test_an_address_rests_when_its_task_was_scaled_away() -> None:
    made = world(3)
    before = addresses(made)
    made.scale(1)
    made.run(3)
    gone = before - addresses(made)
    assert len(gone) == 2
    assert set(resting(made)) == gone
    assert all(until_ms > made.now_ms + (REST_S - 5) * 1000 for until_ms in resting(made).values())
    assert len(made.tasks()) == 1, "the tasks themselves are forgotten"
    made.run(REST_S + 5)
    assert resting(made) == {}


def test_an_ended_task_has_no_address_any_more_and_rests_it_only_once() -> None:
    made = world(1)
    (task,) = made.running()
    (held,) = task.addresses
    made.report(task, S.FAILED)
    made.run(30)
    until_ms = resting(made)[held.address]
    assert not any(t.addresses for t in made.tasks() if is_terminal(t.status.state))
    made.run(REST_S)
    assert made.now_ms > until_ms
    assert resting(made) == {}
    made.run(REST_S)
    assert resting(made) == {}


def test_what_never_had_a_node_gives_its_address_back_at_once() -> None:
    made = World()
    made.put(network(), service(replicas=2, networks=["web"]))
    made.settle()
    made.scale(0)
    made.settle()
    assert resting(made) == {}


def test_addresses_go_round_before_one_is_used_again() -> None:
    made = world(1, rest_s=0)
    seen = []
    for _ in range(5):
        (task,) = made.running()
        seen.append(task.addresses[0].address)
        made.report(task, S.FAILED)
        made.run(10)
    assert len(set(seen)) == 5
    assert resting(made) == {}


def test_the_decision_says_when_the_first_one_is_free_again() -> None:
    made = world(1)
    made.report(made.running()[0], S.FAILED)
    made.decide()
    decision = allocator.decide(made.snapshot, made.now_ms, made.new_id)
    assert decision.changes == ()
    assert decision.wake_at_ms == min(resting(made).values())


def test_a_full_network_tells_addresses_at_rest_from_others() -> None:
    made = world(4, subnet="10.9.0.0/29")
    made.report(made.running()[0], S.FAILED)
    made.run(10)
    waiting = next(t for t in made.tasks() if t.status.state is S.NEW)
    assert waiting.status.error == 'network "web" has no free addresses (5 of 5 in use or at rest)'
    made.run(REST_S)
    assert len(made.running()) == 4


def test_a_vip_that_a_service_loses_rests_but_only_when_its_tasks_have_left_the_network() -> None:
    made = world(2)
    made.put(network("db"))
    (vip,) = made.service().vips
    made.update(networks=(NetworkAttachment(network_id="db"),))
    stuck = {t.id for t in made.running()}
    made.stuck = lambda task: task.id in stuck
    made.run(5)
    assert [v.network_id for v in made.service().vips] == ["db", "web"]
    assert resting(made) == {}
    made.stuck = lambda task: False
    made.run(30)
    assert [v.network_id for v in made.service().vips] == ["db"]
    assert vip.address in resting(made)


def test_the_vip_goes_with_the_endpoint_mode() -> None:
    made = world(2)
    (vip,) = made.service().vips
    made.change(made.service(), spec=replace(made.service().spec, endpoint_mode="dnsrr"))
    made.run(1)
    assert made.service().vips == ()
    assert vip.address in resting(made)


def test_who_frees_an_address_may_leave_the_time_to_the_allocator() -> None:
    made = world(1)
    made.put(RestingAddress(id="web/10.128.0.99", network_id="web", address="10.128.0.99", until_ms=0))
    made.decide()
    assert resting(made) == {"10.128.0.99": made.now_ms + int(REST_S * 1000)}


def test_a_vxlan_id_rests_too() -> None:
    made = world(1)
    made.put(network("old"))
    made.decide()
    vni = made.network("old").vni
    rest = RestingAddress(id=f"{RESTING_VNIS}/{vni}", network_id=RESTING_VNIS, address=str(vni), until_ms=0)
    made.write([(Writer.ORCHESTRATOR, Delete(Network, "old")), (Writer.ORCHESTRATOR, Put(rest))])
    made.put(network("new"))
    made.decide()
    assert made.network("new").vni == vni + 1
    made.run(REST_S + 2)
    made.put(network("newer"))
    made.decide()
    assert made.network("newer").vni == vni


def test_what_rests_on_a_network_that_is_gone_is_forgotten() -> None:
    made = world(1)
    made.scale(0)
    made.run(3)
    assert resting(made)
    made.delete(Service, "s-api")
    made.delete(Network, "web")
    made.run(2)
    assert resting(made) == {}


def test_an_address_that_somebody_has_by_mistake_is_not_put_to_rest() -> None:
    made = world(2)
    first, second = made.running()
    twin = replace(first, id="twin", slot=9, meta=replace(first.meta, version=1), addresses=second.addresses)
    ended = replace(twin, status=replace(twin.status, state=S.FAILED))
    made.snapshot = made.snapshot.apply(made.snapshot.version + 1, [event(None, ended)])
    made.write(allocator.decide(made.snapshot, made.now_ms, made.new_id).changes)
    assert resting(made) == {}
    assert not made.get(Task, "twin").addresses  # type: ignore[attr-defined]


@pytest.mark.parametrize("part", [1, 2])
def test_of_which_only_a_part_was_written(part: int) -> None:
    made = world(2)
    (first, second) = made.running()
    held = {a.address for t in (first, second) for a in t.addresses}
    for task in (first, second):
        made.report(task, S.FAILED)
    made.write(allocator.decide(made.snapshot, made.now_ms, made.new_id).changes[:part])
    made.write(allocator.decide(made.snapshot, made.now_ms, made.new_id).changes)
    assert set(resting(made)) == held
