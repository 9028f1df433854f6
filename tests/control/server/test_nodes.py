"""Joining, and what users may do with nodes, settings and tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import msgspec
import pytest

from control.model import Cluster, ClusterSpec, Network, NetworkSpec, Node, NodeDescription, NodeSpec, NodeStatus
from control.rpc import control_pb2 as pb
from control.server.nodes import NODE_NUMBER_MAX
from control.token import make_token, parse_token, secret_digest

# --- join ---------------------------------------------------------------------------------------------------------


async def test_a_machine_joins_with_a_token(manager: Any) -> None:
    reply = await manager.join(availability="pause")
    node = manager.get(Node, reply.node_id)
    assert reply.node_number == node.number == 3
    assert reply.cluster_id == "cluster1"
    assert list(reply.managers) == ["192.0.2.1:7377"]
    assert node.secret_digest == secret_digest(reply.secret), "the secret itself is kept nowhere"
    assert reply.secret not in repr(list(manager.store.view().objects()))
    assert node.spec == NodeSpec(role="worker", availability="pause")
    assert node.description.hostname == "h3"
    assert node.status == NodeStatus(
        state="unknown", message="has joined", address="127.0.0.1", data_address="192.0.2.3"
    )
    assert manager.get(Cluster, "cluster1").next_node_number == 4


async def test_the_token_says_the_role(manager: Any, kit: Any) -> None:
    for number, (role, token) in enumerate((("worker", kit.worker_token), ("manager", kit.manager_token)), start=8):
        reply = await manager.join(
            token=token,
            description=msgspec.msgpack.encode(NodeDescription(hostname=role)),
            data_address=f"192.0.2.{number}",
        )
        assert (reply.role, manager.get(Node, reply.node_id).spec.role) == (role, role)


async def test_numbers_are_never_given_twice(manager: Any) -> None:
    async with asyncio.TaskGroup() as group:
        joins = [
            group.create_task(
                manager.join(
                    description=msgspec.msgpack.encode(NodeDescription(hostname=f"n{i}")), data_address=f"192.0.2.{i}"
                )
            )
            for i in range(10, 30)
        ]
    numbers = [join.result().node_number for join in joins]
    assert sorted(numbers) == list(range(3, 23))
    assert len({join.result().secret for join in joins}) == 20


async def test_a_removed_nodes_number_is_not_used_again(manager: Any) -> None:
    first = await manager.join()
    await manager.remove("node", first.node_id, force=True)
    second = await manager.join()
    assert second.node_number == first.node_number + 1


NAMELESS = msgspec.msgpack.encode(NodeDescription())
REMEDY = 'print one of this cluster with "mesh join-token worker" on a manager'


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        ("", 'this is not a join token (they begin with "MTKN-1-"): print one with "mesh join-token"'),
        ("SWMTKN-1-a-b", 'this is not a join token (they begin with "MTKN-1-"): print one with "mesh join-token"'),
        ("MTKN-1-short", 'the join token is damaged or cut short: print it again with "mesh join-token"'),
        (
            make_token("e" * 50, b"w" * 16),
            f"the join token is of another cluster: {REMEDY}",
        ),
        (
            make_token("d" * 50, b"x" * 16),
            f"the join token is not valid, or not any more: {REMEDY}",
        ),
    ],
)
async def test_a_wrong_token(quiet: Any, kit: Any, token: str, sentence: str) -> None:
    version = quiet.store.view().version
    async with kit.refused("UNAUTHENTICATED", sentence):
        await quiet.join(token=token)
    assert quiet.store.view().version == version


async def test_a_cluster_without_tokens_lets_nobody_in(kit: Any) -> None:
    closed = msgspec.structs.replace(kit.cluster(), worker_token="", manager_token="")
    async with kit.serving([closed, kit.node(1)]) as manager, kit.refused("UNAUTHENTICATED"):
        await manager.join()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"availability": "lazy"}, 'availability must be active, pause or drain, not "lazy"'),
        ({"data_address": "h3"}, 'the node\'s data address must be an IPv4 address, not "h3"'),
        ({"data_address": "127.0.0.1"}, "the node's data address 127.0.0.1 cannot be reached by other nodes"),
        ({"data_address": ""}, "the node's data address 127.0.0.1 cannot be reached by other nodes"),
        (
            {"description": msgspec.msgpack.encode(NodeDescription())},
            'the name of the node must be a host name, not ""',
        ),
    ],
)
async def test_a_join_with_a_mistake(manager: Any, kit: Any, fields: dict[str, Any], sentence: str) -> None:
    async with kit.refused("INVALID_ARGUMENT", sentence):
        await manager.join(**fields)


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x80" * 1000, msgspec.msgpack.encode({"hostname": 1})])
async def test_a_join_with_an_unreadable_description(manager: Any, kit: Any, junk: bytes) -> None:
    async with kit.refused("INVALID_ARGUMENT"):
        await manager.join(description=junk)


async def test_a_name_that_a_live_member_has(quiet: Any, kit: Any) -> None:
    async with kit.refused(
        "ALREADY_EXISTS",
        'a node called "h2" is a member already: give this machine another name, '
        'or remove the other with "mesh node rm --force h2"',
    ):
        await quiet.join(description=msgspec.msgpack.encode(NodeDescription(hostname="H2")))


async def test_an_address_that_a_live_member_has(quiet: Any, kit: Any) -> None:
    async with kit.refused("FAILED_PRECONDITION"):
        await quiet.join(data_address="192.0.2.2")


async def test_a_machine_in_another_life_may_come_again(kit: Any) -> None:
    gone = kit.node(2, status=NodeStatus(state="down", data_address="192.0.2.2"))
    async with kit.serving([kit.cluster(), kit.node(1), gone], dispatch=False) as manager:
        reply = await manager.join(
            description=msgspec.msgpack.encode(NodeDescription(hostname="h2")), data_address="192.0.2.2"
        )
        assert reply.node_id != "node2"


async def test_a_machine_whose_routes_overlap_a_network(kit: Any) -> None:
    web = Network(id="n1", spec=NetworkSpec(name="web"), subnet="10.20.0.0/20")
    async with kit.serving([kit.cluster(), kit.node(1), web]) as manager:
        routed = NodeDescription(hostname="h3", routes=("10.20.8.0/24", "192.168.0.0/16"))
        async with kit.refused(
            "FAILED_PRECONDITION", 'node "h3" routes 10.20.8.0/24, which overlaps network "web" (10.20.0.0/20)'
        ):
            await manager.join(description=msgspec.msgpack.encode(routed))


async def test_there_is_a_last_number(kit: Any) -> None:
    full = msgspec.structs.replace(kit.cluster(), next_node_number=NODE_NUMBER_MAX + 1)
    async with kit.serving([full, kit.node(1)]) as manager, kit.refused("FAILED_PRECONDITION"):
        await manager.join()


async def test_a_member_that_joins_again_keeps_its_identity(manager: Any, kit: Any) -> None:
    reply = await manager.join(token="", node_id="node2", secret="secret2", data_address="192.0.2.77")
    assert (reply.node_id, reply.node_number, reply.secret) == ("node2", 2, "secret2")
    node = manager.get(Node, "node2")
    assert node.status.data_address == "192.0.2.77"
    assert node.description.hostname == "h3"
    assert manager.get(Cluster, "cluster1").next_node_number == 3
    for fields in ({"secret": "guess"}, {"secret": ""}, {"node_id": "nobody"}):
        async with kit.refused("UNAUTHENTICATED"):
            await manager.join(**({"token": kit.worker_token, "node_id": "node2", "secret": "secret2"} | fields))


# --- update, remove -----------------------------------------------------------------------------------------------


async def update_node(manager: Any, reference: str, spec: NodeSpec, version: int = 0) -> Node:
    request = pb.UpdateRequest(reference=reference, version=version, spec=msgspec.msgpack.encode(spec))
    return msgspec.msgpack.decode((await manager.control.UpdateNode(request)).value, type=Node)


async def test_availability_and_labels(manager: Any) -> None:
    spec = NodeSpec(availability="drain", labels={"zone": "a"})
    assert (await update_node(manager, "h2", spec)).spec == spec
    assert manager.get(Node, "node2").spec == spec
    version = manager.store.view().version
    await update_node(manager, "h2", spec)
    assert manager.store.view().version == version


async def test_what_cannot_be_done_to_a_node(manager: Any, kit: Any) -> None:
    async with kit.refused("FAILED_PRECONDITION", 'node "h1" is the only manager: it cannot be demoted'):
        await update_node(manager, "h1", NodeSpec(role="worker"))
    async with kit.refused("INVALID_ARGUMENT", 'node "h2": "" cannot be the key of a label'):
        await update_node(manager, "h2", NodeSpec(labels={"": "x"}))
    async with kit.refused("NOT_FOUND", 'no node "h9"'):
        await update_node(manager, "h9", NodeSpec())
    async with kit.refused("ABORTED"):
        await update_node(manager, "h2", NodeSpec(), version=10**9)
    async with kit.refused("INVALID_ARGUMENT"):
        request = pb.UpdateRequest(reference="h2", spec=msgspec.msgpack.encode({"availability": "lazy"}))
        await manager.control.UpdateNode(request)


async def test_a_node_is_removed_when_it_is_down_or_by_force(kit: Any) -> None:
    down = kit.node(3, status=NodeStatus(state="down"))
    async with kit.serving([kit.cluster(), kit.node(1), kit.node(2), down], dispatch=False) as manager:
        await manager.remove("node", "h3")
        async with kit.refused(
            "FAILED_PRECONDITION",
            'node "h2" is ready, not down: run "mesh leave" on it first, or remove it with --force',
        ):
            await manager.remove("node", "h2")
        await manager.remove("node", "h2", force=True)
        async with kit.refused("FAILED_PRECONDITION", 'node "h1" is the only manager and cannot be removed'):
            await manager.remove("node", "h1", force=True)
        assert [n.id for n in manager.store.view().all(Node)] == ["node1"]


# --- the cluster --------------------------------------------------------------------------------------------------


async def test_settings(manager: Any, kit: Any) -> None:
    async def update(spec: ClusterSpec) -> Any:
        return await manager.control.UpdateCluster(pb.UpdateRequest(spec=msgspec.msgpack.encode(spec)))

    await update(ClusterSpec(heartbeat_period_s=1.0, task_history_limit=2))
    assert manager.get(Cluster, "cluster1").spec.heartbeat_period_s == 1.0
    assert manager.get(Cluster, "cluster1").worker_token == kit.worker_token
    async with kit.refused("INVALID_ARGUMENT", "cluster: heartbeat period must be 0.1 to 60, not 0 s"):
        await update(ClusterSpec(heartbeat_period_s=0))
    async with kit.refused("FAILED_PRECONDITION"):
        await update(ClusterSpec(vxlan_port=4790))


@pytest.mark.parametrize("role", ["worker", "manager"])
async def test_a_new_token_makes_the_old_one_worthless(manager: Any, kit: Any, role: str) -> None:
    old = {"worker": kit.worker_token, "manager": kit.manager_token}
    reply = await manager.control.RotateToken(pb.RotateTokenRequest(role=role))
    parse_token(reply.token)
    assert reply.token not in old.values()
    async with kit.refused("UNAUTHENTICATED"):
        await manager.join(token=old[role])
    valid = {**old, role: reply.token}
    joined = await manager.join(token=valid["worker"])
    assert manager.get(Node, joined.node_id).spec.role == "worker"
    description = msgspec.msgpack.encode(NodeDescription(hostname="h4"))
    joined = await manager.join(token=valid["manager"], description=description, data_address="192.0.2.4")
    assert manager.get(Node, joined.node_id).spec.role == "manager"


async def test_there_are_two_tokens(manager: Any, kit: Any) -> None:
    async with kit.refused("INVALID_ARGUMENT", 'there are tokens for worker and manager, not for "king"'):
        await manager.control.RotateToken(pb.RotateTokenRequest(role="king"))


# --- errors of the store ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("outcome", "code"), [("refused", "RESOURCE_EXHAUSTED"), ("unknown, done", "UNAVAILABLE")])
async def test_a_store_that_cannot_write(kit: Any, outcome: str, code: str) -> None:
    async with kit.serving([kit.cluster(), kit.node(1)], dispatch=False) as manager:
        manager.backend.next_outcomes(outcome)
        async with kit.refused(code):
            await manager.create_network("web")


async def test_a_manager_that_does_not_lead(kit: Any) -> None:
    async with kit.serving([kit.cluster(), kit.node(1)], dispatch=False) as manager:
        manager.backend.depose("node7")
        with pytest.raises(grpc.aio.AioRpcError, match="node7") as caught:
            await manager.create_network("web")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
