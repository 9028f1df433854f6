"""Services over the API."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from control.lifecycle import TaskState, Writer
from control.model import (
    KIND_OF,
    GlobalMode,
    NetworkAttachment,
    PortSpec,
    ReplicatedMode,
    Service,
    ServiceMode,
    ServiceSpec,
    Task,
    UpdateStatus,
)
from control.rpc import control_pb2 as pb
from control.store.txn import Put

S = TaskState
WEB_PORT = PortSpec(target=80, published=8080)


def scaled(spec: ServiceSpec, replicas: int) -> ServiceSpec:
    return msgspec.structs.replace(spec, mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas)))


def with_env(spec: ServiceSpec, value: str) -> ServiceSpec:
    assert spec.task.process is not None
    process = msgspec.structs.replace(spec.task.process, env={"V": value})
    return msgspec.structs.replace(spec, task=msgspec.structs.replace(spec.task, process=process))


def value_of(service: Service) -> str:
    assert service.spec.task.process is not None
    return service.spec.task.process.env.get("V", "")


# --- create -------------------------------------------------------------------------------------------------------


async def test_networks_are_kept_by_id_however_they_were_named(manager: Any, kit: Any) -> None:
    web, db = await manager.create_network("web"), await manager.create_network("db")
    spec = kit.service_spec("api")
    networks = (NetworkAttachment(network_id="web", aliases=("www",)), NetworkAttachment(network_id=db))
    spec = msgspec.structs.replace(spec, task=msgspec.structs.replace(spec.task, networks=networks))
    reply = await manager.control.CreateService(pb.CreateRequest(spec=msgspec.msgpack.encode(spec)))
    service = manager.get(Service, reply.id)
    assert service.spec.task.networks == (
        NetworkAttachment(network_id=web, aliases=("www",)),
        NetworkAttachment(network_id=db),
    )
    assert (service.spec_version, service.previous_spec) == (1, None)


async def test_unknown_networks_are_all_named(manager: Any, kit: Any) -> None:
    async with kit.refused("NOT_FOUND", 'service "api": no network "wbe"', 'service "api": no network "bd"'):
        await manager.create_service("api", "wbe", "bd")
    assert len(manager.store.view().all(Service)) == 0


async def test_one_network_by_two_names(manager: Any, kit: Any) -> None:
    id_ = await manager.create_network("web")
    async with kit.refused("INVALID_ARGUMENT", 'service "api": network "web" is named twice'):
        await manager.create_service("api", "web", id_)


async def test_a_name_is_taken_once(manager: Any, kit: Any) -> None:
    await manager.create_service("api")
    async with kit.refused("ALREADY_EXISTS", 'service "api" already exists'):
        await manager.create_service("api")


async def test_mistakes_come_one_a_line(manager: Any, kit: Any) -> None:
    async with kit.refused(
        "INVALID_ARGUMENT",
        'service "web": replicas must be 0 or more, not -3',
        'service "web": target port must be 1 to 65535, not 0',
        'service "web": published ports are reached over a network: attach it to one with --network',
    ):
        await manager.create_service(
            "web", mode=ServiceMode(replicated=ReplicatedMode(replicas=-3)), ports=(PortSpec(target=0),)
        )


async def test_a_service_on_no_network_is_warned_about(manager: Any) -> None:
    await manager.create_network("web")
    assert list((await manager.create_service_reply("api", "web")).warnings) == []
    (warning,) = (await manager.create_service_reply("lone")).warnings
    assert warning.startswith('service "lone" is on no network')


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        (WEB_PORT, WEB_PORT, True),
        (WEB_PORT, PortSpec(target=81, published=8080), True),
        (WEB_PORT, PortSpec(target=80, published=8080, mode="host"), True),
        (PortSpec(target=80, published=8080, mode="host"), WEB_PORT, True),
        (PortSpec(target=80, published=8080, mode="host"), PortSpec(target=80, published=8080, mode="host"), False),
        (WEB_PORT, PortSpec(target=80, published=8080, protocol="udp"), False),
        (WEB_PORT, PortSpec(target=80, published=8081), False),
        (PortSpec(target=80), PortSpec(target=80), False),
    ],
)
async def test_ports_of_two_services(manager: Any, kit: Any, first: PortSpec, second: PortSpec, clash: bool) -> None:
    await manager.create_network("net")
    await manager.create_service("api", "net", ports=(first,))
    if not clash:
        await manager.create_service("web", "net", ports=(second,))
        return
    async with kit.refused("ALREADY_EXISTS", 'cannot publish port 8080 of service "web": already used by "api"'):
        await manager.create_service("web", "net", ports=(second,))


async def test_an_automatic_port_that_was_given_is_taken(manager: Any, kit: Any) -> None:
    await manager.create_network("net")
    id_ = await manager.create_service("api", "net", ports=(PortSpec(target=80),))
    given = msgspec.structs.replace(manager.get(Service, id_), ports=(PortSpec(target=80, published=30000),))
    await put(manager, given)
    async with kit.refused("ALREADY_EXISTS", 'cannot publish port 30000 of service "web": already used by "api"'):
        await manager.create_service("web", "net", ports=(PortSpec(target=1, published=30000),))


async def test_ports_that_the_cluster_itself_needs(manager: Any, kit: Any) -> None:
    await manager.create_network("net")
    async with kit.refused(
        "ALREADY_EXISTS",
        'cannot publish port 4789/udp of service "web": it carries the networks between the nodes (VXLAN)',
        'cannot publish port 7377 of service "web": the manager "h1" is reached there',
    ):
        ports = (PortSpec(target=1, published=4789, protocol="udp"), PortSpec(target=1, published=7377))
        await manager.create_service("web", "net", ports=ports)


# --- update -------------------------------------------------------------------------------------------------------


async def test_scaling_makes_no_new_version(manager: Any, kit: Any) -> None:
    id_ = await manager.create_service("api")
    wire = await manager.update_service("api", scaled(kit.service_spec("api"), 7))
    service = msgspec.msgpack.decode(wire.value, type=Service)
    assert service == manager.get(Service, id_)
    assert service.spec.mode.replicated == ReplicatedMode(replicas=7)
    assert (service.spec_version, service.previous_spec) == (1, None)


async def test_what_tasks_run_makes_a_new_version(manager: Any, kit: Any) -> None:
    id_ = await manager.create_service("api")
    first = manager.get(Service, id_).spec
    await manager.update_service(id_, with_env(first, "2"))
    service = manager.get(Service, id_)
    assert (service.spec_version, service.previous_spec_version, service.previous_spec) == (2, 1, first)
    await manager.update_service(id_, scaled(service.spec, 9))
    service = manager.get(Service, id_)
    assert (service.spec_version, service.previous_spec) == (2, first), "scaling does not forget what was before"


async def test_host_ports_are_part_of_what_tasks_run(manager: Any, kit: Any) -> None:
    await manager.create_network("net")
    id_ = await manager.create_service("api", "net")
    with_port = kit.service_spec("api", "net", ports=(WEB_PORT,))
    await manager.update_service(id_, with_port)
    assert manager.get(Service, id_).spec_version == 1, "ingress ports are no business of the tasks"
    on_host = kit.service_spec("api", "net", ports=(PortSpec(target=80, published=8080, mode="host"),))
    await manager.update_service(id_, on_host)
    assert manager.get(Service, id_).spec_version == 2


async def test_an_update_that_says_nothing_new_writes_nothing(manager: Any, kit: Any) -> None:
    id_ = await manager.create_service("api")
    version = manager.store.view().version
    await manager.update_service(id_, kit.service_spec("api"))
    assert manager.store.view().version == version


async def test_an_update_of_a_paused_service_resumes_it(manager: Any, kit: Any) -> None:
    id_ = await manager.create_service("api")
    paused = UpdateStatus(state="paused", message="task failed")
    await put(manager, msgspec.structs.replace(manager.get(Service, id_), update_status=paused))
    await manager.update_service(id_, kit.service_spec("api"))
    assert manager.get(Service, id_).update_status == UpdateStatus()


async def test_an_update_of_what_has_changed_meanwhile(manager: Any, kit: Any) -> None:
    id_ = await manager.create_service("api")
    seen = manager.get(Service, id_)
    await manager.update_service(id_, scaled(seen.spec, 2), version=seen.meta.version)
    async with kit.refused("ABORTED", 'service "api" has changed meanwhile: read it again and decide again'):
        await manager.update_service(id_, scaled(seen.spec, 3), version=seen.meta.version)
    await manager.update_service(id_, scaled(seen.spec, 4))


async def test_name_and_mode_stay(manager: Any, kit: Any) -> None:
    await manager.create_service("api")
    async with kit.refused("INVALID_ARGUMENT", 'service "api": a service cannot be renamed (to "web")'):
        await manager.update_service("api", kit.service_spec("web"))
    async with kit.refused("INVALID_ARGUMENT", 'service "api": its mode cannot be changed: remove it and create it'):
        await manager.update_service("api", kit.service_spec("api", mode=ServiceMode(global_=GlobalMode())))


async def test_an_update_is_checked_like_a_creation(manager: Any, kit: Any) -> None:
    await manager.create_network("net")
    await manager.create_service("api", "net", ports=(WEB_PORT,))
    await manager.create_service("web", "net")
    async with kit.refused("NOT_FOUND", 'service "web": no network "x"'):
        await manager.update_service("web", kit.service_spec("web", "x"))
    async with kit.refused("ALREADY_EXISTS"):
        await manager.update_service("web", kit.service_spec("web", "net", ports=(WEB_PORT,)))
    async with kit.refused("NOT_FOUND", 'no service "nosuch"'):
        await manager.update_service("nosuch", kit.service_spec("nosuch"))
    await manager.update_service("api", kit.service_spec("api", "net", ports=(WEB_PORT,)))


# --- roll back ----------------------------------------------------------------------------------------------------


async def rollback(manager: Any, reference: str) -> Service:
    wire = await manager.control.RollbackService(pb.GetRequest(reference=reference))
    return msgspec.msgpack.decode(wire.value, type=Service)


async def test_rolling_back_twice_brings_the_update_again(manager: Any, kit: Any) -> None:
    id_ = await manager.create_service("api")
    await manager.update_service(id_, with_env(kit.service_spec("api"), "new"))
    await manager.update_service(id_, scaled(manager.get(Service, id_).spec, 5))
    back = await rollback(manager, "api")
    assert value_of(back) == ""
    assert (back.spec_version, back.previous_spec_version) == (1, 2), "tasks of the old version are up to date again"
    assert back.spec.mode.replicated == ReplicatedMode(replicas=5), "scaling is not taken back"
    assert (back.update_status.state, back.update_status.started_ms) == ("rollback_started", 1_000)
    again = await rollback(manager, "api")
    assert value_of(again) == "new"
    assert (again.spec_version, again.previous_spec_version) == (2, 1)


async def test_versions_are_never_used_again(manager: Any, kit: Any) -> None:
    id_ = await manager.create_service("api")
    await manager.update_service(id_, with_env(kit.service_spec("api"), "2"))
    await rollback(manager, id_)
    await manager.update_service(id_, with_env(kit.service_spec("api"), "3"))
    service = manager.get(Service, id_)
    assert (service.spec_version, service.previous_spec_version) == (3, 1)
    # As after an automatic rollback that forgot the bad version, whose tasks are still there.
    await put(manager, task_of(service, 1, spec_version=8))
    await manager.update_service(id_, with_env(kit.service_spec("api"), "4"))
    assert manager.get(Service, id_).spec_version == 9


async def test_rolling_back_needs_something_to_go_back_to(manager: Any, kit: Any) -> None:
    await manager.create_service("api")
    async with kit.refused("FAILED_PRECONDITION", 'service "api" has no previous version to go back to'):
        await rollback(manager, "api")


async def test_rolling_back_to_a_network_that_is_gone(manager: Any, kit: Any) -> None:
    await manager.create_network("old")
    await manager.create_service("api", "old")
    await manager.update_service("api", kit.service_spec("api"))
    await manager.remove("network", "old")
    async with kit.refused("FAILED_PRECONDITION", 'service "api": its previous version is on a network that is gone'):
        await rollback(manager, "api")


async def test_rolling_back_to_a_port_that_another_has_by_now(manager: Any, kit: Any) -> None:
    await manager.create_network("net")
    await manager.create_service("api", "net", ports=(WEB_PORT,))
    await manager.update_service("api", with_env(kit.service_spec("api", "net"), "2"))
    await manager.create_service("web", "net", ports=(WEB_PORT,))
    async with kit.refused("ALREADY_EXISTS", 'cannot publish port 8080 of service "api": already used by "web"'):
        await rollback(manager, "api")


# --- remove -------------------------------------------------------------------------------------------------------


async def put(manager: Any, *objects: Any) -> None:
    """Write objects behind the API's back."""
    await manager.store.commit([Put(o) for o in objects], Writer.ORCHESTRATOR)


def task_of(service: Service, slot: int, **fields: Any) -> Task:
    return Task(
        id=f"task{slot:03d}",
        service_id=service.id,
        service_name=service.spec.name,
        slot=slot,
        spec=service.spec.task,
        **fields,
    )


@pytest.mark.parametrize("count", [0, 3, 400])
async def test_removing_a_service_tells_its_tasks_to_go(manager: Any, count: int) -> None:
    id_ = await manager.create_service("api")
    service = manager.get(Service, id_)
    for first in range(0, count, 100):
        await put(manager, *(task_of(service, slot) for slot in range(first + 1, min(count, first + 100) + 1)))
    reply = await manager.remove("service", "api")
    assert reply.id == id_
    assert manager.get(Service, id_) is None
    tasks = list(manager.store.view().all(Task))
    assert len(tasks) == count, "the reaper removes them when they have ended"
    assert {t.desired_state for t in tasks} <= {S.REMOVE}


async def test_nobody_decides_in_the_middle_of_a_removal(quiet: Any) -> None:
    """The orchestrator would replace the tasks that have been told to go."""
    service = quiet.get(Service, await quiet.create_service("api"))
    for first in (0, 150):
        await put(quiet, *(task_of(service, first + slot) for slot in range(1, 151)))
    quiet.backend.hold()
    async with asyncio.TaskGroup() as group:
        removal = group.create_task(quiet.remove("service", "api"))
        steps = 0
        while not removal.done():
            await asyncio.sleep(0.02)
            assert quiet.decisions.locked() or quiet.get(Service, service.id) is None
            quiet.backend.release(1)
            steps += 1
            quiet.backend.hold()
    assert steps >= 2


async def test_removing_what_cannot_be_removed(manager: Any, kit: Any) -> None:
    async with kit.refused("NOT_FOUND", 'no service "api"'):
        await manager.remove("service", "api")
    async with kit.refused("INVALID_ARGUMENT", "a cluster cannot be removed"):
        await manager.remove("cluster", "")
    async with kit.refused("INVALID_ARGUMENT"):
        await manager.remove("resting_address", "x")


# --- references ---------------------------------------------------------------------------------------------------


async def get(manager: Any, kind: str, reference: str) -> Any:
    wire = await manager.control.Get(pb.GetRequest(kind=kind, reference=reference))
    classes = {name: cls for cls, name in KIND_OF.items()}
    assert wire.kind == kind
    return msgspec.msgpack.decode(wire.value, type=classes[kind])


async def test_references(manager: Any, kit: Any) -> None:
    one, two = await manager.create_service("one"), await manager.create_service("two")
    for reference in (one, "one", "ONE"):
        assert (await get(manager, "service", reference)).id == one
    common = one[:10]
    assert two.startswith(common)
    async with kit.refused("INVALID_ARGUMENT", f'"{common}" may be one of several services: {one}, {two}'):
        await get(manager, "service", common)
    async with kit.refused("NOT_FOUND", 'no service "three"'):
        await get(manager, "service", "three")
    async with kit.refused("INVALID_ARGUMENT", "which service? The reference is empty"):
        await get(manager, "service", "")
    async with kit.refused("INVALID_ARGUMENT"):
        await get(manager, "unicorn", "x")


async def test_a_name_goes_before_the_beginning_of_an_id(manager: Any) -> None:
    first = await manager.create_service("one")
    named = await manager.create_service("id0")  # ids here begin with id0
    assert first.startswith("id0")
    assert (await get(manager, "service", "id0")).id == named


async def test_tasks_by_service_and_slot(manager: Any, kit: Any) -> None:
    id_ = await manager.create_service("api")
    service = manager.get(Service, id_)
    old = task_of(service, 1)
    new = msgspec.structs.replace(old, id="task999")
    await put(manager, old)
    await put(manager, new)
    await put(manager, msgspec.structs.replace(manager.get(Task, old.id), desired_state=S.SHUTDOWN))
    assert (await get(manager, "task", "api.1")).id == "task999"
    for reference in ("api.2", "api.0", "api.x", "nosuch.1", ".1", "api.", "api.99999999999999999999"):
        async with kit.refused("NOT_FOUND"):
            await get(manager, "task", reference)


async def test_nodes_with_one_name_are_told_apart_by_id(manager: Any, kit: Any) -> None:
    assert (await get(manager, "node", "h2")).id == "node2"
    await put(manager, msgspec.structs.replace(kit.node(9), description=kit.node(2).description))
    async with kit.refused("INVALID_ARGUMENT", '"h2" may be one of several nodes: node2, node9'):
        await get(manager, "node", "h2")
    assert (await get(manager, "node", "node9")).id == "node9"


async def test_the_cluster_needs_no_name(manager: Any) -> None:
    assert (await get(manager, "cluster", "")).id == "cluster1"
    assert (await get(manager, "cluster", "default")).id == "cluster1"


async def test_no_answer_holds_a_nodes_secret(manager: Any) -> None:
    node = await get(manager, "node", "h2")
    assert manager.get(type(node), "node2").secret_digest != ""
    assert node.secret_digest == ""
