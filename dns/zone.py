"""What the name server answers itself: names of networks, kept ready to be packed. Pure.

A network's names are computed from its services, each service giving *shares* of names: `api` from the service, the
same `api` from another service that has it as an alias. What a name answers is the union of its shares of the best
rank, computed from what is there, never counted up and down (moby#44009). Changing a service replaces its shares and
tells which names changed, so that exactly their packed answers are thrown away.

    name                              share of
    api, alias                        service: its VIPs, or the ready tasks (dnsrr)
    tasks.api, tasks.alias            service: the ready tasks
    2.api                             task in slot 2
    task alias                        task, like a service's alias
    host name, task id                task, unless a service has that name
    _http._tcp.api                    service: SRV to each ready task
    7.1.0.10.in-addr.arpa             PTR of tasks and VIPs

All of them with `.<network>.mesh` behind, too. Names exist as long as the desired state has them: a task that is not
ready keeps its names, without addresses (NODATA, never NXDOMAIN).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from dns import wire
from dns.plan import Address, NetworkNames, ServiceNames, TaskNames

DOMAIN = b"\x04mesh"
NODE = b"\x04node"
TASKS = b"\x05tasks"
# Negative answers may be kept this long: a name about to appear must not be missed for longer than gossip takes.
NEGATIVE_TTL_S = 1
# A service that answers with more records than this could not be sent in one message (16 bytes for each A record).
RECORDS_MAX = 4000

# Lower wins: a service's name, its aliases and those of tasks are what users chose for others to use; host names and
# ids come from the inside, and must not get between a user and a service (a one-replica `db` with host name `db`).
CHOSEN, INNER = 0, 1

Data = tuple[int, bytes]  # type, record data


class Share(msgspec.Struct, frozen=True, gc=False):
    """What one owner says about one name."""

    why: str
    rank: int = CHOSEN
    ttl_s: int = 0
    data: tuple[Data, ...] = ()
    near: tuple[Data, ...] = ()  # of `data`: to be handed out before the rest
    additional: tuple[tuple[bytes, int, bytes], ...] = ()  # owner, type, data


class RecordSet(msgspec.Struct, frozen=True, gc=False):
    """The records of one name and type, packed for an answer."""

    near: tuple[bytes, ...]
    far: tuple[bytes, ...]
    additional: tuple[bytes, ...] = ()

    @property
    def mixed(self) -> bool:
        """Whether the order is to change from one answer to the next."""
        return len(self.near) > 1 or len(self.far) > 1


class Entry(msgspec.Struct, frozen=True, gc=False):
    """Everything of one name. Types that are not there are NODATA."""

    records: dict[int, RecordSet]
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """Names (relative to their network) whose answers are no longer right. `all_`: everything may be."""

    names: frozenset[bytes] = frozenset()
    all_: bool = False


# --- shares -------------------------------------------------------------------------------------------------------


def label(text: str) -> bytes | None:
    """A label in wire form, lower case; None when it can be no label."""
    raw = text.encode("ascii", "replace").lower()
    return bytes((len(raw),)) + raw if 1 <= len(raw) <= wire.LABEL_MAX else None


def _dotted(text: str) -> bytes | None:
    """A relative name (`api.2`) in wire form without its root; None when it can be no name."""
    try:
        return wire.to_wire(text)[:-1] or None
    except wire.WireError:
        return None


def _addresses(addresses: Iterable[Address]) -> tuple[Data, ...]:
    return tuple((wire.A if a.version == 4 else wire.AAAA, a.packed) for a in addresses)


def reverse(address: Address) -> bytes:
    """The name under which an address is looked up, without its root."""
    return wire.to_wire(address.reverse_pointer)[:-1]


def service_shares(network: bytes, service: ServiceNames) -> dict[bytes, tuple[Share, ...]]:
    """All that a service says, by relative name. `network` is the network's label."""
    own = label(service.name)
    if own is None:
        return {}
    shares: dict[bytes, list[Share]] = {}
    for name, share in _shares(own, network, service):
        if len(name) + len(network) + len(DOMAIN) < wire.NAME_MAX:
            shares.setdefault(name, []).append(share)
    return {name: tuple(items) for name, items in shares.items()}


def _shares(own: bytes, network: bytes, service: ServiceNames) -> Iterator[tuple[bytes, Share]]:
    suffix = network + DOMAIN + b"\0"
    ready = [task for task in service.tasks if task.ready][:RECORDS_MAX]
    tasks = _addresses(a for task in ready for a in task.addresses)
    near = _addresses(a for task in ready if task.local for a in task.addresses) if service.local_first else ()
    aliases = [name for name in map(label, service.aliases) if name is not None]
    for name in dict.fromkeys((own, *aliases)):
        what = f'service "{service.name}"' if name == own else f'alias of service "{service.name}"'
        if service.vips:
            yield name, Share(f"{what}: its virtual address", ttl_s=service.ttl_s, data=_addresses(service.vips))
        else:
            why = f"{what}: {len(ready)} of {len(service.tasks)} tasks are ready"
            yield name, Share(why, ttl_s=service.ttl_s, data=tasks, near=near)
        why = f"tasks of {what}: {len(ready)} of {len(service.tasks)} are ready"
        yield TASKS + name, Share(why, ttl_s=service.ttl_s, data=tasks, near=near)
        yield from _srv_shares(name, own, suffix, service, ready)
    for vip in service.vips:
        yield _ptr(vip, own + suffix, service, f'virtual address of service "{service.name}"')
    for task in service.tasks:
        yield from _task_shares(task, own, suffix, service)


def _srv_shares(
    name: bytes, own: bytes, suffix: bytes, service: ServiceNames, ready: list[TaskNames]
) -> Iterator[tuple[bytes, Share]]:
    targets = [(_target(task, own, suffix), task) for task in ready]
    additional = tuple((target, *data) for target, task in targets for data in _addresses(task.addresses))
    for port_name, protocol, port in service.ports:
        port_label, protocol_label = label(f"_{port_name or port}"), label(f"_{protocol}")
        if port_label is None or protocol_label is None:
            continue
        why = f'port {port}/{protocol} of service "{service.name}" on {len(ready)} ready tasks'
        data = tuple((wire.SRV, wire.srv_data(0, 1, port, target)) for target, _ in targets)
        yield port_label + protocol_label + name, Share(why, ttl_s=service.ttl_s, data=data, additional=additional)
        yield protocol_label + name, Share(f'the ports of service "{service.name}" are below it')


def _target(task: TaskNames, own: bytes, suffix: bytes) -> bytes:
    """The full name of one task, in the form that stays the longest: slot, or else id."""
    return ((label(str(task.slot)) or b"") + own if task.slot else label(task.id) or own) + suffix


def _task_shares(task: TaskNames, own: bytes, suffix: bytes, service: ServiceNames) -> Iterator[tuple[bytes, Share]]:
    data = _addresses(task.addresses) if task.ready else ()
    state = "ready" if task.ready else "not ready"
    why = f'task {task.id} of service "{service.name}", {state}'
    if task.slot and (slot := label(str(task.slot))):
        yield slot + own, Share(f'slot {task.slot} of service "{service.name}", {state}', CHOSEN, service.ttl_s, data)
    for alias in filter(None, map(label, task.aliases)):
        yield alias, Share(f"alias of {why}", CHOSEN, service.ttl_s, data)
    for inner in dict.fromkeys(filter(None, (_dotted(task.hostname), label(task.id)))):
        yield inner, Share(why, INNER, service.ttl_s, data)
    for address in task.addresses:
        yield _ptr(address, _target(task, own, suffix), service, f"address of {why}")


def _ptr(address: Address, target: bytes, service: ServiceNames, why: str) -> tuple[bytes, Share]:
    return reverse(address), Share(why, CHOSEN, service.ttl_s, ((wire.PTR, target),))


# --- entries ------------------------------------------------------------------------------------------------------


def entry(shares: Iterable[Share]) -> Entry:
    """What a name answers: the union of its shares of the best rank, each record once, with the least time-to-live."""
    all_ = list(shares)
    best = min((share.rank for share in all_), default=CHOSEN)
    used = [share for share in all_ if share.rank == best]
    near = dict.fromkeys(data for share in used for data in share.near)
    far = {data: None for share in used for data in share.data if data not in near}
    additional = dict.fromkeys(item for share in used for item in share.additional)
    ttl_s = min((share.ttl_s for share in used if share.data), default=0)
    extra = tuple(wire.record(owner, kind, ttl_s, data) for owner, kind, data in additional)
    return Entry(
        records={
            kind: RecordSet(
                near=tuple(wire.record(None, kind, ttl_s, data) for k, data in near if k == kind),
                far=tuple(wire.record(None, kind, ttl_s, data) for k, data in far if k == kind),
                additional=extra if kind == wire.SRV else (),
            )
            for kind in dict.fromkeys(kind for kind, _ in (*near, *far))
        },
        why=tuple(dict.fromkeys(share.why for share in used)),
    )


Owner = str


class NetworkZone:
    """The names of one network. Changed in place; entries are built when first asked for, and kept."""

    def __init__(self, network_id: str, name: str) -> None:
        self.id, self.name = network_id, name
        self.label = label(name) or b""
        self._shares: dict[bytes, dict[Owner, tuple[Share, ...]]] = {}
        self._names: dict[Owner, tuple[bytes, ...]] = {}
        self._entries: dict[bytes, Entry] = {}

    def __len__(self) -> int:
        return len(self._shares)

    @property
    def owners(self) -> Iterable[Owner]:
        """Who has shares here."""
        return self._names.keys()

    def __contains__(self, name: bytes) -> bool:
        return name in self._shares

    def names(self) -> Iterable[bytes]:
        """All relative names."""
        return self._shares.keys()

    def put(self, owner: Owner, shares: Mapping[bytes, tuple[Share, ...]]) -> Changed:
        """Replace everything that an owner says; an empty mapping makes it say nothing."""
        before = {name: self._shares[name][owner] for name in self._names.get(owner, ())}
        changed = {name for name in before.keys() | shares.keys() if before.get(name) != shares.get(name)}
        came_or_went = False
        for name in changed:
            self._entries.pop(name, None)
            came_or_went |= self._set(name, owner, shares.get(name))
        if shares:
            self._names[owner] = tuple(shares)
        else:
            self._names.pop(owner, None)
        return Changed(frozenset(changed), all_=came_or_went)

    def put_service(self, service: ServiceNames) -> Changed:
        """Replace a service's names."""
        return self.put(service.name, service_shares(self.label, service))

    def _set(self, name: bytes, owner: Owner, shares: tuple[Share, ...] | None) -> bool:
        """Whether a service's name or an alias came or went: answers for names below it depend on that."""
        existed = name in self._shares
        if shares is None:
            remaining = self._shares[name]
            del remaining[owner]
            if not remaining:
                del self._shares[name]
        else:
            self._shares.setdefault(name, {})[owner] = shares
        return existed != (name in self._shares) and name.startswith(TASKS)

    def find(self, name: bytes) -> Entry | None:
        """What a relative name in lower case answers; None: no such name."""
        found = self._entries.get(name)
        if found is None and (owners := self._shares.get(name)) is not None:
            # In the order of owners, whatever the order of their changes.
            found = self._entries[name] = entry(share for owner in sorted(owners) for share in owners[owner])
        return found


@dataclass(slots=True)
class Zone:
    """All that this node knows."""

    networks: dict[str, NetworkZone] = field(default_factory=dict)
    nodes: dict[bytes, Entry] = field(default_factory=dict)  # by label

    def put_nodes(self, nodes: Mapping[str, Address], ttl_s: int) -> None:
        """Add or replace names of nodes. A host name of several labels is found under all of it."""
        for name, address in nodes.items():
            if (key := _dotted(name)) is not None:
                self.nodes[key] = entry([Share(f'node "{name}"', ttl_s=ttl_s, data=_addresses([address]))])

    def drop_nodes(self, names: Iterable[str]) -> None:
        """Forget names of nodes."""
        for name in names:
            self.nodes.pop(_dotted(name) or b"", None)

    def set_network(self, network: NetworkNames) -> None:
        """Replace a whole network."""
        made = NetworkZone(network.id, network.name)
        for service in network.services:
            made.put_service(service)
        self.networks[network.id] = made
