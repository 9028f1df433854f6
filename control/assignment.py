"""What the dispatcher hands to one node: its tasks, and the tables of the networks it takes part in.

A set of records with keys; a node holds the latest of each. Sent first complete, then as differences. These are the
only things a node learns from the managers, and all that `mesh.agent.compile` needs besides its own sandboxes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from control.model import (
    Attachment,
    BalancePolicy,
    EndpointMode,
    Lease,
    NamedPort,
    NamePolicy,
    Network,
    Node,
    NodeState,
    PortSpec,
    Task,
    TunnelKey,
    Value,
    VirtualAddress,
)

EndpointState = Literal["starting", "ready", "draining", "lost"]  # lost: its node is down; hidden, not deleted


class Settings(Value, frozen=True, kw_only=True):
    """What every node must know of the cluster. Key: "settings"."""

    cluster_id: str
    cluster_name: str
    vxlan_port: int
    heartbeat_period_s: float
    gossip_port: int = 7946
    gossip_keys: tuple[str, ...] = ()
    wireguard_port: int = 7947
    address_pools: tuple[str, ...] = ()  # where networks made through an engine take their subnets
    subnet_prefix_length: int = 20


class Peer(Value, frozen=True, kw_only=True):
    """A node of the cluster, this one included."""

    node_id: str
    number: int
    name: str
    data_address: str
    state: NodeState
    tunnel_keys: tuple[TunnelKey, ...] = ()


class ServiceEntry(Value, frozen=True, kw_only=True):
    """A service as its clients see it."""

    service_id: str
    name: str
    endpoint_mode: EndpointMode
    vips: tuple[VirtualAddress, ...]
    ports: tuple[PortSpec, ...]  # published, ingress mode ones on every node
    ingress_network_id: str = ""  # the network over which published ports reach the tasks
    aliases: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 - msgspec copies it
    # `aliases`: network id -> further names there; has a key for *every* network of the service, also without aliases
    named_ports: tuple[NamedPort, ...] = ()
    balance: BalancePolicy = BalancePolicy()
    names: NamePolicy = NamePolicy()


class Endpoint(Value, frozen=True, kw_only=True):
    """A task's address on one network."""

    task_id: str
    network_id: str
    service_id: str
    slot: int
    node_id: str
    address: str
    hostname: str
    state: EndpointState
    host_ports: tuple[PortSpec, ...] = ()
    weight: int = 1  # beside others of its service


class KnownNetwork(Value, frozen=True, kw_only=True):
    """A network of the cluster, whether or not this node takes part in it."""

    network: Network


Record = Settings | Peer | KnownNetwork | Node | Network | ServiceEntry | Endpoint | Task | Lease | Attachment
RecordKind = Literal[
    "settings", "peer", "catalog", "node", "network", "service", "endpoint", "task", "lease", "attachment"
]
RECORDS: dict[RecordKind, type[Record]] = {
    "settings": Settings,
    "peer": Peer,
    "catalog": KnownNetwork,
    "node": Node,  # of the node itself: what constraints look at, and nothing else
    "network": Network,
    "service": ServiceEntry,
    "endpoint": Endpoint,
    "task": Task,
    "lease": Lease,  # of the node itself
    "attachment": Attachment,  # likewise: what the managers have heard from it
}
Key = tuple[RecordKind, str]


def key_of(record: Record) -> Key:
    """The record's place in the set; a later record with the same key replaces it."""
    match record:
        case Settings():
            return ("settings", "")
        case Peer():
            return ("peer", record.node_id)
        case Node():
            return ("node", record.id)
        case Network():
            return ("network", record.id)
        case ServiceEntry():
            return ("service", record.service_id)
        case Endpoint():
            return ("endpoint", f"{record.task_id}/{record.network_id}")
        case Task():
            return ("task", record.id)
        case KnownNetwork():
            return ("catalog", record.network.id)
        case Lease():
            return ("lease", record.id)
        case Attachment():
            return ("attachment", record.id)


class NetworkWish(Value, frozen=True, kw_only=True):
    """A network that was made in a node's engine, and is to be the cluster's as long as it is there."""

    id: str
    name: str
    subnet: str
    internal: bool = False
    made: bool = False  # it was the cluster's already: if it is not any more, it has been removed


class AttachmentReport(Value, frozen=True, kw_only=True):
    """What a node says of containers of others: everything, each time.

    `wishes`: network id -> how many leases it wants to have there; what it has already it keeps.
    """

    attachments: tuple[Attachment, ...] = ()
    wishes: dict[str, int] = {}  # noqa: RUF012 - msgspec copies it
    networks: tuple[NetworkWish, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoders = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in RECORDS.items()}


def encode(record: Record) -> bytes:
    """The record as MessagePack, as the node keeps it on disk."""
    return _encoder.encode(record)


def decode(kind: RecordKind, data: bytes) -> Record:
    """Inverse of `encode`. Raises msgspec.DecodeError or msgspec.ValidationError."""
    return _decoders[kind].decode(data)
