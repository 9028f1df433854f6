"""Networks over the API: what is made, and all that is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import msgspec
import pytest

from control.model import Network, NetworkSpec, NodeDescription, NodeStatus
from control.rpc import control_pb2 as pb


async def test_a_network_is_created_as_asked(manager: Any) -> None:
    id_ = await manager.create_network("web", subnet="10.20.0.0/20", internal=True, labels={"a": "b"})
    assert manager.get(Network, id_).spec == NetworkSpec(
        name="web", subnet="10.20.0.0/20", internal=True, labels={"a": "b"}
    )


async def test_names_are_taken_once(manager: Any, kit: Any) -> None:
    await manager.create_network("web")
    async with kit.refused("ALREADY_EXISTS", 'network "web" already exists'):
        await manager.create_network("web")


async def test_mistakes_come_one_a_line(manager: Any, kit: Any) -> None:
    async with kit.refused(
        "INVALID_ARGUMENT",
        'network "tasks": its name has a meaning of its own in DNS: choose another',
        'network "tasks": subnet must be a /8 to /29, not 10.0.0.0/30',
    ):
        await manager.create_network("tasks", subnet="10.0.0.0/30")
    assert len(manager.store.view().all(Network)) == 0


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x93\x01\x02\x03", msgspec.msgpack.encode({"name": 7, "labels": 7})])
async def test_junk_instead_of_a_spec(manager: Any, kit: Any, junk: bytes) -> None:
    for call in (manager.control.CreateNetwork, manager.control.CreateService):
        async with kit.refused("INVALID_ARGUMENT"):
            await call(pb.CreateRequest(spec=junk))
    for call in (manager.control.UpdateService, manager.control.UpdateNode, manager.control.UpdateCluster):
        async with kit.refused("INVALID_ARGUMENT"):
            await call(pb.UpdateRequest(reference="x", spec=junk))


async def test_overlap_with_another_network(manager: Any, kit: Any) -> None:
    await manager.create_network("web", subnet="10.20.0.0/16")
    async with kit.refused(
        "FAILED_PRECONDITION", 'network "db": subnet 10.20.16.0/20 overlaps network "web" (10.20.0.0/16)'
    ):
        await manager.create_network("db", subnet="10.20.16.0/20")
    await manager.create_network("db", subnet="10.21.0.0/16")


async def test_overlap_with_a_subnet_the_allocator_gave(kit: Any) -> None:
    given = Network(id="n1", spec=NetworkSpec(name="web"), subnet="10.128.0.0/20")
    async with kit.serving([kit.cluster(), kit.node(1), given]) as manager, kit.refused("FAILED_PRECONDITION"):
        await manager.create_network("db", subnet="10.128.8.0/24")


async def test_overlap_with_what_a_node_routes_names_node_and_route(kit: Any) -> None:
    routed = kit.node(2, description=NodeDescription(hostname="h2", routes=("10.9.0.0/16", "default", "::/0")))
    async with kit.serving([kit.cluster(), kit.node(1), routed]) as manager:
        async with kit.refused(
            "FAILED_PRECONDITION", 'network "web": subnet 10.9.4.0/24 overlaps the route 10.9.0.0/16 of node "h2"'
        ):
            await manager.create_network("web", subnet="10.9.4.0/24")
        await manager.create_network("web", subnet="10.10.0.0/24")


async def test_a_default_route_overlaps_nothing(kit: Any) -> None:
    routed = kit.node(2, description=NodeDescription(hostname="h2", routes=("0.0.0.0/0",)))
    async with kit.serving([kit.cluster(), kit.node(1), routed]) as manager:
        await manager.create_network("web", subnet="10.9.4.0/24")


async def test_a_subnet_around_a_nodes_own_address(kit: Any) -> None:
    there = kit.node(2, status=NodeStatus(state="ready", data_address="10.9.4.7"))
    async with (
        kit.serving([kit.cluster(), kit.node(1), there]) as manager,
        kit.refused(
            "FAILED_PRECONDITION", 'network "web": subnet 10.9.4.0/24 contains the address 10.9.4.7 of node "h2"'
        ),
    ):
        await manager.create_network("web", subnet="10.9.4.0/24")


async def outcomes(manager: Any, *calls: Any) -> list[bool]:
    """Which of these concurrent calls succeed, when none is durable before all have been made."""

    async def attempt(call: Any) -> bool:
        try:
            await call
        except grpc.aio.AioRpcError:
            return False
        return True

    manager.backend.hold()
    async with asyncio.TaskGroup() as group:
        attempts = [group.create_task(attempt(call)) for call in calls]
        await asyncio.sleep(0.1)
        manager.backend.release()
    return [a.result() for a in attempts]


async def test_concurrent_creations_cannot_overlap(quiet: Any) -> None:
    """What each of them only read must still be true when it is written."""
    found = await outcomes(quiet, *(quiet.create_network(f"n{i}", subnet="10.30.0.0/16") for i in range(4)))
    assert sorted(found) == [False, False, False, True]
    assert len(quiet.store.view().all(Network)) == 1


async def test_a_network_is_not_removed_under_a_new_service(quiet: Any) -> None:
    await quiet.create_network("web")
    assert await outcomes(quiet, quiet.create_service("api", "web"), quiet.remove("network", "web")) in (
        [True, False],
        [False, True],
    )


async def test_a_machine_does_not_join_into_a_new_network(quiet: Any) -> None:
    routed = msgspec.msgpack.encode(NodeDescription(hostname="h3", routes=("10.30.0.0/16",)))
    found = await outcomes(quiet, quiet.create_network("web", subnet="10.30.0.0/16"), quiet.join(description=routed))
    assert sorted(found) == [False, True]


async def test_removal(manager: Any, kit: Any) -> None:
    id_ = await manager.create_network("web")
    service_ids = [await manager.create_service(name, "web") for name in ("b", "a")]
    async with kit.refused(
        "FAILED_PRECONDITION", 'network "web" is used by services "a", "b": remove or update them first'
    ):
        await manager.remove("network", "web")
    for service_id in service_ids:
        await manager.remove("service", service_id)
    reply = await manager.remove("network", "web")
    assert reply.id == id_
    assert manager.get(Network, id_) is None
    async with kit.refused("NOT_FOUND", 'no network "web"'):
        await manager.remove("network", "web")
