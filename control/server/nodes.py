"""Nodes and the cluster: join, update, remove, new tokens. Pure: a snapshot in, changes out, or a Refusal."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address

import msgspec

from control.lock import make_unlock_key
from control.model import Availability, Cluster, ClusterSpec, Node, NodeDescription, NodeSpec, NodeStatus, Role
from control.server.networks import route_clashes
from control.server.refusal import Refusal, mistaken
from control.spec import DescriptionError, cluster_mistakes, node_mistakes, read_description
from control.store.tables import Snapshot
from control.store.txn import Change, Delete, Put
from control.token import TokenError, make_token, parse_token, same, secret_digest

NODE_NUMBER_MAX = 32766  # what the data plane's addresses have room for (overlay.names)
_REMEDY = 'print one of this cluster with "mesh join-token worker" on a manager'
_AVAILABILITIES: dict[str, Availability] = {"": "active", "active": "active", "pause": "pause", "drain": "drain"}


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What a machine asks with. `address` is where it was heard from."""

    token: str
    description: bytes
    data_address: str
    availability: str
    node_id: str
    secret: str
    address: str


@dataclass(frozen=True, slots=True)
class Joined:
    """A member: what to write, and what to tell it."""

    changes: list[Change]
    node: Node
    secret: str


def join(snapshot: Snapshot, request: JoinRequest, new_id: str, new_secret: str) -> Joined:
    """A new member, or one that comes again with its id and secret and keeps its identity."""
    if request.node_id:
        return _rejoin(snapshot, request)
    cluster = snapshot.cluster()
    role = _role(cluster, request.token)
    description = _description(request.description)
    data_address = _data_address(request.data_address or request.address)
    availability = availability_of(request.availability)
    number = cluster.next_node_number
    if number > NODE_NUMBER_MAX:
        raise Refusal("FAILED_PRECONDITION", f"the cluster has had {NODE_NUMBER_MAX} nodes, and cannot number another")
    _check_place(snapshot, description, data_address)
    node = Node(
        id=new_id,
        spec=NodeSpec(role=role, availability=availability),
        number=number,
        description=description,
        status=NodeStatus(message="has joined", address=request.address, data_address=data_address),
        secret_digest=secret_digest(new_secret),
    )
    return Joined([Put(node), Put(msgspec.structs.replace(cluster, next_node_number=number + 1))], node, new_secret)


def _rejoin(snapshot: Snapshot, request: JoinRequest) -> Joined:
    node = snapshot.get(Node, request.node_id)
    if node is None or not same(secret_digest(request.secret), node.secret_digest):
        raise Refusal(
            "UNAUTHENTICATED",
            "this machine's identity is not that of a member of this cluster (it may have been removed): "
            f'use "mesh leave" on it, then join with a token; {_REMEDY}',
        )
    if not request.description:  # it only wants another certificate
        return Joined([], node, request.secret)
    description = _description(request.description)
    data_address = _data_address(request.data_address or request.address)
    status = msgspec.structs.replace(node.status, address=request.address, data_address=data_address)
    updated = msgspec.structs.replace(node, description=description, status=status)
    return Joined([Put(updated)] if updated != node else [], updated, request.secret)


def _role(cluster: Cluster, text: str) -> Role:
    """The role that a token gives. Raises Refusal."""
    try:
        token = parse_token(text)
    except TokenError as error:
        raise Refusal("UNAUTHENTICATED", str(error)) from error
    if not same(token.digest, _digest(cluster)):
        raise Refusal("UNAUTHENTICATED", f"the join token is of another cluster: {_REMEDY}")
    roles: tuple[tuple[Role, str], ...] = (("worker", cluster.worker_token), ("manager", cluster.manager_token))
    matching = [role for role, expected in roles if same(str(token), expected)]
    if not matching:
        raise Refusal("UNAUTHENTICATED", f"the join token is not valid, or not any more: {_REMEDY}")
    return matching[0]


def _digest(cluster: Cluster) -> str:
    """Of the root that join tokens name, "" if there are no tokens."""
    return parse_token(cluster.worker_token).digest if cluster.worker_token else ""


def _description(data: bytes) -> NodeDescription:
    try:
        return read_description(data)
    except DescriptionError as error:
        raise Refusal("INVALID_ARGUMENT", str(error)) from error


def _data_address(text: str) -> str:
    try:
        address = IPv4Address(text)
    except AddressValueError as error:
        raise Refusal(
            "INVALID_ARGUMENT", f'the node\'s data address must be an IPv4 address, not "{text[:60]}"'
        ) from error
    if address.is_loopback or address.is_multicast or address.is_unspecified:
        raise Refusal("INVALID_ARGUMENT", f"the node's data address {address} cannot be reached by other nodes")
    return str(address)


def availability_of(text: str) -> Availability:
    """An availability as given on a command line; "" is active. Raises Refusal."""
    availability = _AVAILABILITIES.get(text)
    if availability is None:
        raise Refusal("INVALID_ARGUMENT", f'availability must be active, pause or drain, not "{text[:40]}"')
    return availability


def _check_place(snapshot: Snapshot, description: NodeDescription, data_address: str) -> None:
    """Refuse a newcomer that would take something away from the others."""
    name = description.hostname
    for node in snapshot.all(Node):
        other = node.description.hostname or node.id
        if node.status.state != "ready":
            continue  # perhaps this very machine in an earlier life
        if other.lower() == name.lower():
            raise Refusal(
                "ALREADY_EXISTS",
                f'a node called "{other}" is a member already: give this machine another name, '
                f'or remove the other with "mesh node rm --force {other}"',
            )
        if node.status.data_address == data_address:
            raise Refusal(
                "FAILED_PRECONDITION",
                f'cannot join with data address {data_address}: node "{other}" has it; if that is this machine in an '
                f'earlier life, remove it with "mesh node rm --force {other}"',
            )
    clashes = [
        f'node "{name}" routes {route}, which overlaps network "{network.spec.name}" ({network.subnet})'
        for route, network in route_clashes(snapshot, description.routes)
    ]
    if clashes:
        raise Refusal("FAILED_PRECONDITION", "\n".join(clashes))


# --- changes by the user ------------------------------------------------------------------------------------------


def update_node(snapshot: Snapshot, node: Node, spec: NodeSpec) -> list[Change]:
    """Another availability, role or labels."""
    name = node.description.hostname or node.id
    mistaken(node_mistakes(spec, name))
    if node.spec.role == "manager" and spec.role != "manager" and is_last_manager(snapshot, node):
        raise Refusal("FAILED_PRECONDITION", f'node "{name}" is the only manager: it cannot be demoted')
    address = node.control_address if spec.role == "manager" else ""
    updated = msgspec.structs.replace(node, spec=spec, control_address=address)
    return [Put(updated)] if updated != node else []


def remove_node(snapshot: Snapshot, node: Node, *, force: bool) -> list[Change]:
    """Forget a node. The dispatcher then ends its session and orphans its tasks."""
    name = node.description.hostname or node.id
    if node.spec.role == "manager" and is_last_manager(snapshot, node):
        raise Refusal("FAILED_PRECONDITION", f'node "{name}" is the only manager and cannot be removed')
    if node.spec.role == "manager" and not force:
        raise Refusal(
            "FAILED_PRECONDITION",
            f'node "{name}" is a manager: "mesh node demote {name}" first, or remove it with --force',
        )
    if node.status.state != "down" and not force:
        raise Refusal(
            "FAILED_PRECONDITION",
            f'node "{name}" is {node.status.state}, not down: run "mesh leave" on it first, or remove it with --force',
        )
    return [Delete(Node, node.id)]


def is_last_manager(snapshot: Snapshot, node: Node) -> bool:
    """Whether no other node can be reached as a manager."""
    managers = {n.id for n in snapshot.all(Node) if n.spec.role == "manager" and n.control_address}
    return managers == {node.id}


def update_cluster(cluster: Cluster, spec: ClusterSpec, unlock_random: bytes) -> list[Change]:
    """Other settings. Only what every node can follow while it runs. `unlock_random` is for a key, if one is needed."""
    mistaken(cluster_mistakes(spec))
    if spec.vxlan_port != cluster.spec.vxlan_port:
        raise Refusal("FAILED_PRECONDITION", "the VXLAN port of a cluster is chosen at init and cannot be changed")
    if spec.gossip_port != cluster.spec.gossip_port:
        raise Refusal("FAILED_PRECONDITION", "the gossip port of a cluster is chosen at init and cannot be changed")
    if spec.wireguard_port != cluster.spec.wireguard_port:
        raise Refusal("FAILED_PRECONDITION", "the WireGuard port of a cluster is chosen at init and cannot be changed")
    updated = with_lock(msgspec.structs.replace(cluster, spec=spec), unlock_random)
    return [Put(updated)] if updated != cluster else []


def with_lock(cluster: Cluster, unlock_random: bytes) -> Cluster:
    """A cluster with an unlock key if it is to have one, and without if not."""
    if cluster.spec.autolock == bool(cluster.unlock_key):
        return cluster
    key = make_unlock_key(unlock_random) if cluster.spec.autolock else ""
    return msgspec.structs.replace(cluster, unlock_key=key, unlock_version=cluster.unlock_version + 1)


def rotate_unlock_key(cluster: Cluster, unlock_random: bytes) -> list[Change]:
    """Another unlock key. Managers that are up lock themselves with it; one that is away keeps the one before."""
    if not cluster.unlock_key:
        raise Refusal("FAILED_PRECONDITION", 'the cluster has no unlock key: "mesh cluster update --autolock" first')
    version, key = cluster.unlock_version + 1, make_unlock_key(unlock_random)
    return [Put(msgspec.structs.replace(cluster, unlock_key=key, unlock_version=version))]


def rotate_token(cluster: Cluster, role: str, random_bytes: bytes) -> tuple[list[Change], str]:
    """A new join token for a role; the old one is worth nothing any more. Members are not affected."""
    token = make_token(parse_token(cluster.worker_token).digest, random_bytes)
    match role:
        case "worker":
            return [Put(msgspec.structs.replace(cluster, worker_token=token))], token
        case "manager":
            return [Put(msgspec.structs.replace(cluster, manager_token=token))], token
        case _:
            raise Refusal("INVALID_ARGUMENT", f'there are tokens for worker and manager, not for "{role[:40]}"')
