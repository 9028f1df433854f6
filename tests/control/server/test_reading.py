"""Lists, filters and watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from control.lifecycle import TaskState, Writer
from control.model import KINDS, GlobalMode, NodeSpec, ReplicatedMode, Service, ServiceMode, Task
from control.rpc import control_pb2 as pb
from control.server import api
from control.store import watch as history
from control.store.txn import Delete, Put

EVENT = pb.Event


def filters(**values: Any) -> dict[str, pb.StringList]:
    return {
        key.replace("_", "-"): pb.StringList(values=[value] if isinstance(value, str) else value)
        for key, value in values.items()
    }


async def listed(manager: Any, kind: str, **values: Any) -> list[str]:
    reply = await manager.control.List(pb.ListRequest(kind=kind, filters=filters(**values)))
    objects = [msgspec.msgpack.decode(o.value, type=KINDS[kind]) for o in reply.objects]  # type: ignore[index]
    assert all(o.kind == kind for o in reply.objects)
    return [name(o) for o in objects]


def name(obj: Any) -> str:
    match obj:
        case Task():
            return f"{obj.service_name}.{obj.slot}"
        case _ if hasattr(obj, "description"):
            return str(obj.description.hostname)
        case _:
            return str(obj.spec.name)


async def put(manager: Any, *objects: Any) -> None:
    await manager.store.commit([Put(o) for o in objects], Writer.ORCHESTRATOR)


@pytest.fixture
async def filled(kit: Any) -> AsyncIterator[Any]:
    nodes = [
        kit.node(1),
        kit.node(2, spec=NodeSpec(labels={"zone": "a"})),
        kit.node(3, spec=NodeSpec(labels={"zone": "b", "ssd": ""})),
    ]
    async with kit.serving([kit.cluster(), *nodes]) as manager:
        await manager.create_network("web", labels={"tier": "front"})
        await manager.create_network("db")
        await manager.create_service("api", "web", labels={"team": "a"})
        await manager.create_service("api2", mode=ServiceMode(replicated=ReplicatedMode()))
        await manager.create_service("agent", mode=ServiceMode(global_=GlobalMode()))
        for service in list(manager.store.view().all(Service)):
            for slot in (1, 2):
                await put(
                    manager,
                    Task(
                        id=f"{service.spec.name}-{slot}",
                        service_id=service.id,
                        service_name=service.spec.name,
                        slot=slot,
                        node_id=f"node{slot}",
                        spec=service.spec.task,
                        desired_state=TaskState.READY if slot == 1 else TaskState.RUNNING,
                    ),
                )
        yield manager


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("cluster", {}, ["default"]),
        ("node", {}, ["h1", "h2", "h3"]),
        ("node", {"role": "manager"}, ["h1"]),
        ("node", {"role": ["manager", "worker"]}, ["h1", "h2", "h3"]),
        ("node", {"label": "zone"}, ["h2", "h3"]),
        ("node", {"label": "zone=b"}, ["h3"]),
        ("node", {"label": "zone="}, []),
        ("node", {"label": "ssd="}, ["h3"]),
        ("node", {"label": ["zone=a", "zone=b"]}, ["h2", "h3"]),
        ("node", {"label": "zone", "name": "h3"}, ["h3"]),
        ("node", {"name": "h"}, ["h1", "h2", "h3"]),
        ("node", {"id": "node2"}, ["h2"]),
        ("network", {}, ["web", "db"]),
        ("network", {"name": "w"}, ["web"]),
        ("network", {"label": "tier=front"}, ["web"]),
        ("service", {"name": "api"}, ["api", "api2"]),
        ("service", {"mode": "global"}, ["agent"]),
        ("service", {"mode": "replicated", "label": "team"}, ["api"]),
        ("task", {"service": "api"}, ["api.1", "api.2"]),
        ("task", {"service": ["api", "agent"], "node": "h1"}, ["agent.1", "api.1"]),
        ("task", {"node": "node2"}, ["agent.2", "api.2", "api2.2"]),
        ("task", {"name": "api2.1"}, ["api2.1"]),
        ("task", {"id": "api-"}, ["api.1", "api.2"]),
        ("task", {"desired_state": "ready"}, ["agent.1", "api.1", "api2.1"]),
        ("task", {"desired_state": "running", "service": "api"}, ["api.2"]),
        ("task", {"service": "nosuch"}, []),
    ],
)
async def test_lists(filled: Any, kind: str, values: dict[str, Any], expected: list[str]) -> None:
    assert await listed(filled, kind, **values) == expected


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        ("node", {"color": "red"}, 'nodes have no filter "color": there are id, name, role, label'),
        ("cluster", {"name": "x"}, 'clusters have no filter "name": there are none'),
        ("node", {"role": "boss"}, "filter role=boss: must be one of manager, worker"),
        ("service", {"mode": "none"}, "filter mode=none: must be one of global, replicated"),
        (
            "task",
            {"desired_state": "dead"},
            "filter desired-state=dead: must be one of ready, remove, running, shutdown",
        ),
        (
            "unicorn",
            {},
            'there is no kind of object "unicorn": there are cluster, node, network, service, task, user, attachment',
        ),
        ("node", {"id": ["x"] * 1001}, "more than 1000 filter values"),
    ],
)
async def test_filters_that_make_no_sense(
    manager: Any, kit: Any, kind: str, values: dict[str, Any], sentence: str
) -> None:
    async with kit.refused("INVALID_ARGUMENT", sentence):
        await listed(manager, kind, **values)
    async with kit.refused("INVALID_ARGUMENT", sentence):
        await manager.control.Watch(pb.WatchRequest(kind=kind, filters=filters(**values))).read()


async def test_the_last_tasks_of_a_removed_service_can_be_found(filled: Any) -> None:
    (service,) = [s for s in filled.store.view().all(Service) if s.spec.name == "api"]
    await filled.remove("service", "api")
    assert await listed(filled, "task", service="api") == ["api.1", "api.2"]
    assert await listed(filled, "task", service=service.id) == ["api.1", "api.2"]


async def test_a_list_that_is_too_long_is_refused(manager: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "LIST_MAX_BYTES", 100)
    async with kit.refused("FAILED_PRECONDITION", "too many nodes for one answer: use a filter, or watch them"):
        await listed(manager, "node")


# --- watches ------------------------------------------------------------------------------------------------------


class Watch:
    """One watch, read step by step."""

    def __init__(self, manager: Any, kind: str, **values: Any) -> None:
        self.kind = kind
        self.call = manager.control.Watch(pb.WatchRequest(kind=kind, filters=filters(**values)))

    async def next(self) -> tuple[int, str]:
        async with asyncio.timeout(5):
            event = await self.call.read()
        if event.action == EVENT.LIVE:
            return event.action, ""
        return event.action, name(msgspec.msgpack.decode(event.object.value, type=KINDS[self.kind]))  # type: ignore[index]

    async def some(self, count: int) -> list[tuple[int, str]]:
        return [await self.next() for _ in range(count)]


async def test_a_watch_begins_with_what_is_there(filled: Any) -> None:
    watch = Watch(filled, "service", name="api")
    assert await watch.some(3) == [(EVENT.PRESENT, "api"), (EVENT.PRESENT, "api2"), (EVENT.LIVE, "")]
    await filled.create_service("other")
    await filled.create_service("api3")
    await filled.update_service("api", msgspec.structs.replace(service_of(filled, "api").spec, labels={"x": "y"}))
    await filled.remove("service", "api3")
    assert await watch.some(3) == [(EVENT.CREATED, "api3"), (EVENT.UPDATED, "api"), (EVENT.REMOVED, "api3")]
    watch.call.cancel()


def service_of(manager: Any, name: str) -> Service:
    (found,) = [s for s in manager.store.view().all(Service) if s.spec.name == name]
    return found


async def test_what_no_longer_passes_the_filter_is_taken_away(filled: Any) -> None:
    watch = Watch(filled, "service", label="team=a")
    assert await watch.some(2) == [(EVENT.PRESENT, "api"), (EVENT.LIVE, "")]
    spec = service_of(filled, "api").spec
    await filled.update_service("api", msgspec.structs.replace(spec, labels={"team": "b"}))
    assert await watch.next() == (EVENT.REMOVED, "api")
    await filled.update_service("api", msgspec.structs.replace(spec, labels={"team": "a"}))
    assert await watch.next() == (EVENT.CREATED, "api")
    watch.call.cancel()


async def test_a_caller_that_falls_behind_is_told_what_counts(filled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue is the store's history, which is bounded: what it missed comes as one difference."""
    monkeypatch.setattr(history, "HISTORY_COMMITS", 4)
    watch = Watch(filled, "service")
    assert (await watch.some(4))[-1] == (EVENT.LIVE, "")
    spec = service_of(filled, "api").spec
    for i in range(30):
        service = service_of(filled, "api")
        relabelled = msgspec.structs.replace(spec, labels={"i": str(i)})
        await put(filled, msgspec.structs.replace(service, spec=relabelled))
    gone = service_of(filled, "api2")
    await filled.store.commit([Delete(Service, gone.id)], Writer.ORCHESTRATOR)
    seen: list[tuple[int, str]] = []
    while (EVENT.REMOVED, "api2") not in seen:
        seen.append(await watch.next())
    assert (EVENT.UPDATED, "api") in seen
    assert all(event in ((EVENT.UPDATED, "api"), (EVENT.REMOVED, "api2")) for event in seen)
    watch.call.cancel()


async def test_watches_are_bounded(manager: Any, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "WATCHES_MAX", 2)
    watches = [Watch(manager, "network") for _ in range(2)]
    for watch in watches:
        assert await watch.next() == (EVENT.LIVE, "")
    async with kit.refused("UNAVAILABLE", "this manager serves 2 watches already: try again later"):
        await Watch(manager, "network").next()
    watches[0].call.cancel()
    async with asyncio.timeout(5):
        while True:  # the server hears of the hang-up a moment later
            third = Watch(manager, "network")
            try:
                assert await third.next() == (EVENT.LIVE, "")
                break
            except Exception:  # noqa: BLE001 - refused once more
                await asyncio.sleep(0.01)
    for watch in (watches[1], third):
        watch.call.cancel()
