"""What each node must be told: the store's objects, turned into the records of `control.assignment`. Pure.

Thousands of nodes share most of what they are told, so records are kept in *layers*, each made once: one for
everybody (settings, peers), one per network (the network, its services, its endpoints), one per node (its own tasks).
A node's set is the union of the layers it takes part in. Layers are never changed in place; one that is the same
object as before has not changed, and the difference of two layers serves every node that has both.

`advance` follows the store's events and touches only what they touch; it gives what building anew would give (tested).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import msgspec

from control.assignment import Endpoint, EndpointState, Key, KnownNetwork, Peer, Record, ServiceEntry, Settings, key_of
from control.dispatcher.attached import attached_records, own_service_id, with_namesakes
from control.lifecycle import TaskState, is_terminal
from control.model import (
    Attachment,
    Authority,
    Cluster,
    Lease,
    Meta,
    Network,
    Node,
    NodeDescription,
    NodeSpec,
    NodeStatus,
    Object,
    RestingAddress,
    Service,
    Task,
    TaskAddress,
    TaskSpec,
    TaskStatus,
    User,
)
from control.store.tables import Event, Snapshot

Layer = Mapping[Key, Record]
LayerId = str

EVERYBODY: LayerId = "*"
EMPTY: Layer = MappingProxyType({})


def network_layer(network_id: str) -> LayerId:
    """The layer of a network."""
    return f"network/{network_id}"


def node_layer(node_id: str) -> LayerId:
    """The layer of a node's own tasks."""
    return f"node/{node_id}"


@dataclass(frozen=True, slots=True)
class Difference:
    """What leads from one set of records to another: put all of `changed`, drop all of `removed`."""

    changed: Mapping[Key, Record]
    removed: frozenset[Key]

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


@dataclass(frozen=True, slots=True)
class Tables:
    """All layers as of one store version."""

    version: int = 0
    layers: Mapping[LayerId, Layer] = field(default_factory=lambda: MappingProxyType({}))
    ingress: frozenset[LayerId] = frozenset()  # of networks that carry a published port: every node has a router there

    def layer(self, layer_id: LayerId) -> Layer:
        """A layer; empty if nothing is in it."""
        return self.layers.get(layer_id, EMPTY)

    def layers_of(self, node_id: str) -> tuple[LayerId, ...]:
        """The layers that a node takes part in, in a fixed order. Follows from its own layer and `ingress` alone."""
        networks = {
            network_layer(place.network_id)
            for record in self.layer(node_layer(node_id)).values()
            for place in _places(record)
        }
        return (EVERYBODY, node_layer(node_id), *sorted(networks | self.ingress))


def _places(record: Record) -> tuple[TaskAddress | Attachment, ...]:
    """Where something that a node has of its own is on networks."""
    match record:
        case Task():
            return () if is_terminal(record.status.state) else record.addresses
        case Attachment():
            return (record,)
        case _:
            return ()


def assignments(tables: Tables, node_id: str) -> dict[Key, Record]:
    """All records of a node: the union of its layers. A service on two networks is in both, with the same record."""
    records: dict[Key, Record] = {}
    for layer_id in tables.layers_of(node_id):
        records.update(tables.layer(layer_id))
    return records


def difference(old: Layer, new: Layer) -> Difference:
    """What leads from `old` to `new`."""
    changed = {key: record for key, record in new.items() if old.get(key) is not record and old.get(key) != record}
    return Difference(changed, frozenset(old.keys() - new.keys()))


def build(snapshot: Snapshot) -> Tables:
    """All layers, made anew."""
    return _edit(Tables(), snapshot, (), snapshot.objects(), snapshot.version)


def advance(tables: Tables, snapshot: Snapshot, events: Iterable[Event], version: int) -> Tables:
    """The layers after `events`, the last of which is of `version`; `snapshot` is of that version or a newer one."""
    before: list[Object] = []
    now: dict[tuple[type[Object], str], Object | None] = {}
    for event in events:
        obj = event.object
        if event.before is not None:
            before.append(event.before)
        now[type(obj), obj.id] = snapshot.get(type(obj), obj.id)
        if isinstance(obj, Node):  # its state and name are in the records of its tasks
            now.update(((Task, task.id), task) for task in snapshot.tasks_on_node(obj.id))
        for attachment in with_namesakes(event, snapshot):
            before.append(attachment)
            now[Attachment, attachment.id] = attachment
    return _edit(tables, snapshot, before, (obj for obj in now.values() if obj is not None), version)


def _edit(tables: Tables, snapshot: Snapshot, before: Iterable[Object], now: Iterable[Object], version: int) -> Tables:
    edits: dict[LayerId, dict[Key, Record | None]] = {}
    services_changed = False
    for obj in before:
        services_changed = services_changed or isinstance(obj, Service)
        for layer_id, key in _keys(obj, snapshot):
            edits.setdefault(layer_id, {})[key] = None
    for obj in now:
        services_changed = services_changed or isinstance(obj, Service)
        for layer_id, record in _records(obj, snapshot):
            edits.setdefault(layer_id, {})[key_of(record)] = record
    layers = dict(tables.layers)
    for layer_id, edit in edits.items():
        layer = _edited(layers.get(layer_id, EMPTY), edit)
        if layer:
            layers[layer_id] = layer
        else:
            layers.pop(layer_id, None)
    ingress = _ingress_layers(snapshot) if services_changed else tables.ingress
    return Tables(version, MappingProxyType(layers), ingress)


def _edited(layer: Layer, edit: Mapping[Key, Record | None]) -> Layer:
    """The layer after an edit; the same object if that changes nothing."""
    edit = {key: record for key, record in edit.items() if layer.get(key) != record}
    if not edit:
        return layer
    out = dict(layer)
    for key, record in edit.items():
        if record is None:
            out.pop(key, None)
        else:
            out[key] = record
    return MappingProxyType(out)


# --- objects to records -------------------------------------------------------------------------------------------


def _keys(obj: Object, snapshot: Snapshot) -> Iterator[tuple[LayerId, Key]]:
    """Where the records of an object may be that was there before, when `snapshot` was not yet."""
    for layer_id, record in _records(obj, snapshot):
        yield layer_id, key_of(record)
    if isinstance(obj, Attachment):  # whether or not there was a service of its name then
        yield network_layer(obj.network_id), ("service", own_service_id(obj.network_id, obj.service))


def _records(obj: Object, snapshot: Snapshot) -> Iterator[tuple[LayerId, Record]]:
    """What an object puts into which layers."""
    match obj:
        case Cluster():
            yield EVERYBODY, _settings(obj)
        case Node():
            yield EVERYBODY, _peer(obj)
            yield node_layer(obj.id), _own_node(obj)
        case Network():
            told = msgspec.structs.replace(obj, meta=Meta())
            yield network_layer(obj.id), told
            yield EVERYBODY, KnownNetwork(network=told)
        case Service():
            entry = _service_entry(obj)
            for network_id in {*entry.aliases, *(v.network_id for v in entry.vips)}:
                yield network_layer(network_id), entry
        case Task():
            if obj.node_id and obj.status.state >= TaskState.ASSIGNED:
                yield node_layer(obj.node_id), _own_task(obj)
                for endpoint in _endpoints(obj, snapshot.get(Node, obj.node_id)):
                    yield network_layer(endpoint.network_id), endpoint
        case Lease() | Attachment():
            yield from _records_of_others(obj, snapshot)
        case RestingAddress() | Authority() | User():
            pass


def _records_of_others(obj: Lease | Attachment, snapshot: Snapshot) -> Iterator[tuple[LayerId, Record]]:
    """What containers of others put into which layers."""
    if isinstance(obj, Attachment):
        for record in attached_records(obj, snapshot):
            yield network_layer(obj.network_id), record
    elif not obj.block:
        return  # a wish
    yield node_layer(obj.node_id), msgspec.structs.replace(obj, meta=Meta())


def _settings(cluster: Cluster) -> Settings:
    spec = cluster.spec
    return Settings(
        cluster_id=cluster.id,
        cluster_name=spec.name,
        vxlan_port=spec.vxlan_port,
        heartbeat_period_s=spec.heartbeat_period_s,
        gossip_port=spec.gossip_port,
        gossip_keys=cluster.gossip_keys,
        wireguard_port=spec.wireguard_port,
        address_pools=spec.address_pools,
        subnet_prefix_length=spec.subnet_prefix_length,
    )


def _peer(node: Node) -> Peer:
    return Peer(
        node_id=node.id,
        number=node.number,
        name=node.description.hostname,
        data_address=node.status.data_address,
        state=node.status.state,
        tunnel_keys=node.description.tunnel_keys,
    )


def _own_node(node: Node) -> Node:
    """A node as it is told of itself: what constraints can ask for (control.constraint)."""
    said = node.description
    return Node(
        id=node.id,
        number=node.number,
        spec=NodeSpec(role=node.spec.role, labels=node.spec.labels),
        description=NodeDescription(hostname=said.hostname, os=said.os, architecture=said.architecture),
        status=NodeStatus(data_address=node.status.data_address),
    )


def _service_entry(service: Service) -> ServiceEntry:
    networks = service.spec.task.networks
    return ServiceEntry(
        service_id=service.id,
        name=service.spec.name,
        endpoint_mode=service.spec.endpoint_mode,
        vips=service.vips,
        ports=service.ports,
        ingress_network_id=ingress_network(service),
        aliases={attachment.network_id: attachment.aliases for attachment in networks},
        named_ports=service.spec.named_ports,
        balance=service.spec.balance,
        names=service.spec.names,
    )


def ingress_network(service: Service) -> str:
    """The network over which published ports reach the tasks: the first of the service; "" without such ports."""
    networks = service.spec.task.networks
    published = any(port.mode == "ingress" for port in service.ports)
    return networks[0].network_id if published and networks else ""


def _ingress_layers(snapshot: Snapshot) -> frozenset[LayerId]:
    return frozenset(network_layer(n) for service in snapshot.all(Service) if (n := ingress_network(service)))


def _own_task(task: Task) -> Task:
    """A task as its node gets it: without what the node itself has reported, which would only come back as a change."""
    ended = is_terminal(task.status.state)
    state = task.status.state if ended else TaskState.ASSIGNED
    return msgspec.structs.replace(task, meta=Meta(), status=TaskStatus(state=state))


def _endpoints(task: Task, node: Node | None) -> Iterator[Endpoint]:
    state = endpoint_state(task, node)
    if state is None:
        return
    hostname = _hostname(task, node)
    for address in task.addresses:
        yield Endpoint(
            task_id=task.id,
            network_id=address.network_id,
            service_id=task.service_id,
            slot=task.slot,
            node_id=task.node_id,
            address=address.address,
            hostname=hostname,
            state=state,
            host_ports=task.ports,
        )


def endpoint_state(task: Task, node: Node | None) -> EndpointState | None:
    """Whether a placed task may be sent connections; None for one that has ended and needs no address any more."""
    if is_terminal(task.status.state):
        return None
    if node is None or node.status.state == "down":
        return "lost"
    if task.desired_state >= TaskState.SHUTDOWN:
        return "draining"
    wanted = task.desired_state >= TaskState.RUNNING
    return "ready" if wanted and task.status.state == TaskState.RUNNING else "starting"


def _hostname(task: Task, node: Node | None) -> str:
    """What the task calls itself: as its spec says, else <service>.<slot>, for global services <service>.<node>."""
    asked = _asked_hostname(task.spec)
    if asked:
        return asked
    name = node.description.hostname if node is not None and node.description.hostname else task.node_id
    return f"{task.service_name}.{task.slot}" if task.slot else f"{task.service_name}.{name}"


def _asked_hostname(spec: TaskSpec) -> str:
    if spec.process is not None:
        return spec.process.hostname
    return spec.container.hostname if spec.container is not None else ""
