"""The tables: every object of the cluster at one version, with the indexes that the managers ask for.

A `Snapshot` never changes. `apply` makes the next one out of it and shares what is the same (`sortedmap`), so taking
one is free, holding one is safe, and the store keeps one per commit under way.

There is one table per kind, sorted by id, and one index for everything else: a sorted set of tuples of strings, each
beginning with the name of its index and ending with an id. `index_keys` says which tuples an object has; it is the only
place that knows, so the index of a snapshot is always the union of `index_keys` over its objects (tested).

*Claims* are index tuples of which there may be one holder only: names, addresses, published ports, numbers. The tables
keep them as they are told; `txn` refuses what would give a claim two holders.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from ipaddress import IPv4Network
from typing import Literal, TypeVar, cast

import msgspec

from control.lifecycle import is_terminal
from control.model import (
    KIND_OF,
    KINDS,
    Attachment,
    Authority,
    Cluster,
    Kind,
    Lease,
    Network,
    Node,
    Object,
    PortSpec,
    RestingAddress,
    Service,
    Task,
    User,
    Value,
)
from control.store.sortedmap import Editor, SortedMap, Values

T = TypeVar("T", bound=Object)
Action = Literal["create", "update", "delete"]
IndexKey = tuple[str, ...]
Space = Literal["cluster", "network name", "service name", "node number", "vni", "address", "port"]

_Tables = dict[type[Value], SortedMap[str, Object]]  # by the objects' class

_NAMED: dict[type[Value], Kind] = {Node: "node", Network: "network", Service: "service"}
_LAST_CHARACTER = "\U0010ffff"
_SLOT_DIGITS = 10  # so that slots sort as numbers: 2^31 slots


class Event(msgspec.Struct, frozen=True, gc=False):
    """One object's change. A deletion has no `after`, a creation no `before`."""

    action: Action
    before: Object | None
    after: Object | None

    @property
    def object(self) -> Object:
        """The object as it is now, or as it last was."""
        found = self.after if self.after is not None else self.before
        assert found is not None
        return found


def event(before: Object | None, after: Object | None) -> Event:
    """The event that leads from `before` to `after`; not both None."""
    action: Action = "create" if before is None else "delete" if after is None else "update"
    return Event(action, before, after)


class Snapshot:
    """All objects at one version. Collections come in the order of ids unless said otherwise."""

    __slots__ = ("_index", "_tables", "_version")

    def __init__(self) -> None:
        """The empty store: version 0, nothing in it."""
        self._version = 0
        self._tables: _Tables = {cls: SortedMap() for cls in KINDS.values()}
        self._index: SortedMap[IndexKey, str] = SortedMap()

    @classmethod
    def of(cls, objects: Iterable[Object], version: int = 0) -> Snapshot:
        """A snapshot of these objects as they are, unchecked: after a load, and for tests of pure cores."""
        return cls().apply(version, [event(None, obj) for obj in objects])

    @property
    def version(self) -> int:
        """Number of the last commit in it."""
        return self._version

    def get(self, cls: type[T], id: str) -> T | None:  # noqa: A002 - the field's name
        """The object with exactly this id."""
        found = self._tables[cls].get(id)
        assert found is None or isinstance(found, cls)
        return found

    def all(self, cls: type[T]) -> Collection[T]:
        """All objects of a kind, as a sized view."""
        return Values(self._typed(cls))

    def objects(self) -> Iterable[Object]:
        """Everything."""
        for table in self._tables.values():
            yield from table.values()

    def by_name(self, cls: type[T], name: str) -> T | None:
        """A network or service by its name, a node by its hostname (the first by id); case does not matter."""
        found = self._find(cls, "name", _NAMED.get(cls, ""), name.lower())
        return found[0] if found else None

    def by_prefix(self, cls: type[T], prefix: str) -> list[T]:
        """All whose id begins with `prefix`."""
        return self._typed(cls).values_between(prefix, _after_prefix(prefix))

    def cluster(self) -> Cluster:
        """The cluster's own record. LookupError before `mesh init`."""
        for cluster in self.all(Cluster):
            return cluster
        raise LookupError("the store has no cluster yet")

    def tasks_of_service(self, service_id: str) -> Collection[Task]:
        """In the order of slots."""
        return self._find(Task, "task/service", service_id)

    def tasks_in_slot(self, service_id: str, slot: int) -> Collection[Task]:
        """Successive tasks of one slot."""
        return self._find(Task, "task/service", service_id, _slot(slot))

    def tasks_on_node(self, node_id: str) -> Collection[Task]:
        """All that were placed there, ended ones too."""
        return self._find(Task, "task/node", node_id)

    def tasks_on_network(self, network_id: str) -> Collection[Task]:
        """All whose spec names the network or that have an address on it, ended ones too."""
        return self._find(Task, "task/network", network_id)

    def services_on_network(self, network_id: str) -> Collection[Service]:
        """All whose tasks are to be on the network or that have a VIP on it."""
        return self._find(Service, "service/network", network_id)

    def leases_of_node(self, node_id: str) -> Collection[Lease]:
        """All blocks of addresses that it has or wishes for."""
        return self._find(Lease, "lease/node", node_id)

    def attachments_on_node(self, node_id: str) -> Collection[Attachment]:
        """All that the node has told of."""
        return self._find(Attachment, "attachment/node", node_id)

    def attachments_on_network(self, network_id: str) -> Collection[Attachment]:
        """All containers of others on a network."""
        return self._find(Attachment, "attachment/network", network_id)

    def attachments_of_service(self, name: str) -> Collection[Attachment]:
        """All, on any network, that answer to a name; case does not matter."""
        return self._find(Attachment, "attachment/service", name.lower())

    def address_holder(self, network_id: str, address: str) -> Object | None:
        """Who has the address: a live task, a VIP, the network's gateway, a lease, or a resting address."""
        return self.claimant("address", f"{network_id} {address}")

    def addresses_taken(self, network_id: str) -> set[str]:
        """All addresses of the network that have a holder."""
        low = ("claim", "address", f"{network_id} ")
        high = ("claim", "address", f"{network_id}!")  # "!" is the character after " "
        return {key[2].partition(" ")[2] for key in self._index.keys_between(low, high)}

    def port_owner(self, protocol: str, port: int) -> Service | None:
        """The service that publishes the port on every node."""
        owner = self.claimant("port", f"{port}/{protocol}")
        assert owner is None or isinstance(owner, Service)
        return owner

    def claimant(self, space: Space, value: str) -> Object | None:
        """Who holds a claim."""
        holders = self.claimants(space, value)
        return holders[0] if holders else None

    def claimants(self, space: Space, value: str) -> list[Object]:
        """All holders of a claim: at most one in any snapshot that passed `txn.check`."""
        out: list[Object] = []
        for key in self._index.keys_between(("claim", space, value), ("claim", space, value + "\0")):
            found = self._tables[KINDS[key[3]]].get(key[4])  # type: ignore[index]
            assert found is not None
            out.append(found)
        return out

    def apply(self, version: int, events: Sequence[Event], rekeyed: Iterable[Event] | None = None) -> Snapshot:
        """The snapshot after these events, whose `before`s are in this one.

        `rekeyed`: those of them whose `same_keys` is false, if somebody has asked already.
        """
        out = Snapshot.__new__(Snapshot)
        out._version = version
        tables: dict[type[Value], Editor[str, Object]] = {}
        index: Editor[IndexKey, str] | None = None
        for change in events:
            after = change.after
            obj = after if after is not None else change.object
            table = tables.get(type(obj))
            if table is None:
                table = tables[type(obj)] = self._tables[type(obj)].edit()
            if after is None:
                table.delete(obj.id)
            else:
                table.set(obj.id, after)
        for change in rekeyed_of(events) if rekeyed is None else rekeyed:
            had = index_keys(change.before) if change.before is not None else frozenset()
            has = index_keys(change.after) if change.after is not None else frozenset()
            if had != has:
                index = index or self._index.edit()
                for key in had - has:
                    index.delete(key)
                for key in has - had:
                    index.set(key, key[-1])
        out._tables = self._tables | {cls: table.done() for cls, table in tables.items()}
        out._index = index.done() if index is not None else self._index
        return out

    def _typed(self, cls: type[T]) -> SortedMap[str, T]:
        return cast("SortedMap[str, T]", self._tables[cls])  # each table holds objects of its own class only

    def _find(self, cls: type[T], *prefix: str) -> list[T]:
        table = self._typed(cls)
        out = []
        for id_ in self._index.values_between(prefix, (*prefix[:-1], prefix[-1] + "\0")):
            found = table.get(id_)
            assert found is not None
            out.append(found)
        return out


def _after_prefix(prefix: str) -> str | None:
    """The least string above all that begin with `prefix`; None if there is none."""
    prefix = prefix.rstrip(_LAST_CHARACTER)
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else None


def _slot(slot: int) -> str:
    return f"{slot:0{_SLOT_DIGITS}d}"


# --- index keys ---------------------------------------------------------------------------------------------------


def index_keys(obj: Object) -> frozenset[IndexKey]:
    """All index tuples of an object, its claims among them. Each ends with the object's id."""
    keys: set[IndexKey] = {("claim", space, value, KIND_OF[type(obj)], obj.id) for space, value in claims(obj)}
    match obj:
        case Node():
            keys.add(("name", "node", obj.description.hostname.lower(), obj.id))
        case Network():
            keys.add(("name", "network", obj.spec.name.lower(), obj.id))
        case Service():
            keys.add(("name", "service", obj.spec.name.lower(), obj.id))
            for network_id in {n.network_id for n in obj.spec.task.networks} | {v.network_id for v in obj.vips}:
                keys.add(("service/network", network_id, obj.id))
        case Task():
            keys.add(("task/service", obj.service_id, _slot(obj.slot), obj.id))
            if obj.node_id:
                keys.add(("task/node", obj.node_id, obj.id))
            for network_id in {n.network_id for n in obj.spec.networks} | {a.network_id for a in obj.addresses}:
                keys.add(("task/network", network_id, obj.id))
        case Lease():
            keys.add(("lease/node", obj.node_id, obj.id))
        case Attachment():
            keys.add(("attachment/node", obj.node_id, obj.id))
            keys.add(("attachment/network", obj.network_id, obj.id))
            keys.add(("attachment/service", obj.service.lower(), obj.id))
        case Cluster() | RestingAddress() | Authority() | User():
            pass
    return frozenset(keys)


def same_keys(before: Object | None, after: Object | None) -> bool:
    """Whether both certainly have the same index tuples and claims. Most changes are those of a task's status."""
    return (
        isinstance(before, Task)
        and isinstance(after, Task)
        and before.id == after.id
        and before.service_id == after.service_id
        and before.slot == after.slot
        and before.node_id == after.node_id
        and before.addresses == after.addresses
        and before.spec.networks == after.spec.networks
        and is_terminal(before.status.state) == is_terminal(after.status.state)
    )


def rekeyed_of(events: Iterable[Event]) -> list[Event]:
    """Those that may change the index."""
    return [change for change in events if not same_keys(change.before, change.after)]


Claim = tuple[Space, str]


def claims(obj: Object) -> set[Claim]:
    """What only this object may hold. Names without regard to case: DNS has none."""
    match obj:
        case Cluster():
            return {("cluster", "")}
        case Node():
            return {("node number", str(obj.number))}
        case Network():
            held: set[Claim] = {("network name", obj.spec.name.lower())}
            if obj.vni:
                held.add(("vni", str(obj.vni)))
            if obj.gateway:
                held.add(("address", f"{obj.id} {obj.gateway}"))
            return held
        case Service():
            held = {("service name", obj.spec.name.lower())}
            held.update(("address", f"{v.network_id} {v.address}") for v in obj.vips if v.address)
            # What the spec asks for counts before the allocator has seen it, so that two services created one after
            # the other cannot both have it; what the service still has counts until the allocator takes it away.
            held.update(("port", port_claim(p)) for p in (*obj.spec.ports, *obj.ports) if _on_every_node(p))
            return held
        case Task():
            if is_terminal(obj.status.state):
                return set()
            return {("address", f"{a.network_id} {a.address}") for a in obj.addresses if a.address}
        case RestingAddress():
            return {("address", f"{obj.network_id} {obj.address}")}
        case Lease():
            return {("address", f"{obj.network_id} {address}") for address in leased(obj)}
        case Attachment() | Authority() | User():
            return set()  # an attachment's address is its node's already


def leased(lease: Lease) -> tuple[str, ...]:
    """The addresses of a lease, in order; none while it is only wished for."""
    return tuple(str(address) for address in IPv4Network(lease.block)) if lease.block else ()


def port_claim(port: PortSpec) -> str:
    """The claim of a published port: "8080/tcp"."""
    return f"{port.published}/{port.protocol}"


def _on_every_node(port: PortSpec) -> bool:
    return port.mode == "ingress" and port.published != 0
