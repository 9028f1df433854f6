"""The heart of a node: what it knows, compiled into what its kernel and its name server should hold.

One pure function, `compile(view) -> NodePlan`. Everything the data plane does is decided here and in `fragments`, from
one value; the reconcilers only make it true.

A `Compiler` comes to the same for one view after the other, at the cost of what changed between them: each piece of a
plan is made from few inputs, and kept while they are as they were. A service with a backend less is one service,
however many others there are. What is equal is the same object from plan to plan: those who apply them go by that.
`compile` is a Compiler's first step, so there is one way to make a plan, and no second one to agree with it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import chain
from typing import Generic, TypeVar, cast

from control.assignment import Endpoint, Key, Peer, Record, RecordKind, ServiceEntry
from control.model import Network, PortSpec
from dns.plan import Address, DnsPlan, NetworkNames, ServiceNames
from mesh.agent import fragments
from mesh.agent.fragments import Net
from mesh.agent.view import Assignments, LocalTask, Rumours, View
from mesh.vip.plan import PublishedPort, ReturnPath, RouterPlan, VipPlan, VirtualService
from overlay import names
from overlay.plan import LocalEndpoint, OverlayNetwork, OverlayPlan, RemoteEndpoint
from overlay.plan import Peer as OverlayPeer

T = TypeVar("T")

# The order in which changed records are looked at: what others refer to first.
_ORDER: tuple[RecordKind, ...] = ("network", "service", "endpoint", "task")
# What every piece depends on: when it changes, everything is made anew.
_EVERYWHERE: tuple[RecordKind, ...] = ("settings", "node")


@dataclass(frozen=True, slots=True)
class NodePlan:
    """Everything this node's kernel and name server should hold."""

    overlay: OverlayPlan
    vip: VipPlan
    dns: DnsPlan


def compile(view: View) -> NodePlan:  # noqa: A001 - the architecture's name for it
    """What the node should hold, given all it knows. Total: an empty view gives empty plans."""
    return Compiler().compile(view)


def empty_plan(data_address: str) -> NodePlan:
    """The plan of a node that is in no cluster: nothing of ours."""
    nothing = OverlayPlan(0, ip_address(data_address), 0, (), ())
    return NodePlan(nothing, VipPlan((), ()), DnsPlan())


class _Shelf(Generic[T]):
    """Pieces by key, and all of them in the order of their keys.

    Most shelves have pieces of one width only: there a change is made in the list of all, and costs a move in memory.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, tuple[T, ...]] = {}
        self._keys: list[str] = []
        self._width = 0  # of every piece; 0: they differ
        self._flat: list[T] = []  # if they do not
        self._all: tuple[T, ...] | None = ()

    def __contains__(self, key: str) -> bool:
        return key in self._pieces

    def put(self, key: str, piece: Iterable[T]) -> None:
        """Replace what is there of that key. What is equal stays the same object."""
        new, old = tuple(piece), self._pieces.get(key, ())
        if new == old:
            return
        if not self._pieces:
            self._width = len(new)
        elif len(new) not in (0, self._width):
            self._width, self._flat = 0, []
        at = bisect_left(self._keys, key)
        if self._width:
            self._flat[at * self._width : at * self._width + len(old)] = new
        if not old:
            self._keys.insert(at, key)
        if new:
            self._pieces[key] = new
        else:
            del self._pieces[key]
            del self._keys[at]
        self._all = None

    def all(self) -> tuple[T, ...]:
        """Every piece; the same object while nothing changes."""
        if self._all is None:
            in_order = self._flat if self._width else chain.from_iterable(map(self._pieces.__getitem__, self._keys))
            self._all = tuple(in_order)
        return self._all


@dataclass(slots=True)
class _Pieces:
    """All of one network that is made of endpoints and services."""

    local: _Shelf[LocalEndpoint] = field(default_factory=_Shelf)
    remote: _Shelf[RemoteEndpoint] = field(default_factory=_Shelf)
    own: _Shelf[Address] = field(default_factory=_Shelf)
    hosted: _Shelf[VirtualService] = field(default_factory=_Shelf)
    host_ports: _Shelf[PortSpec] = field(default_factory=_Shelf)
    services: _Shelf[VirtualService] = field(default_factory=_Shelf)
    ports: _Shelf[PortSpec] = field(default_factory=_Shelf)
    names: _Shelf[ServiceNames] = field(default_factory=_Shelf)
    entered: _Shelf[str] = field(default_factory=_Shelf)  # services with ports on whatever node


@dataclass(slots=True)
class _Place:
    """A network as it was told, and what is on it; `net` is None while it has no addresses, or is not told of."""

    net: Net | None = None
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    services: dict[str, ServiceEntry] = field(default_factory=dict)
    behind: dict[str, list[str]] = field(default_factory=dict)  # keys of endpoints by service, in order
    pieces: _Pieces = field(default_factory=_Pieces)
    ways_back: tuple[ReturnPath, ...] | None = None
    overlay: OverlayNetwork | None = None
    router: RouterPlan | None = None
    published: tuple[PublishedPort, ...] = ()
    names: NetworkNames | None = None


_At = tuple[str, str]  # a network, and a key in it


class Compiler:
    """Makes the plan of one view after the other."""

    def __init__(self) -> None:
        """It has seen nothing: the first plan is made from nothing."""
        self._view: View | None = None
        self._clear()

    def _clear(self) -> None:
        self._places: dict[str, _Place] = {}
        self._by_task: dict[str, tuple[_At, ...]] = {}
        self._by_node: dict[str, set[_At]] = {}
        self._endpoints: set[_At] = set()  # whose pieces are to be made anew
        self._services: set[_At] = set()
        self._peers: dict[str, Peer] = {}  # those with an address
        self._overlay_peers: tuple[OverlayPeer, ...] = ()
        self._addresses: dict[str, Address] = {}  # of the peers, by name

    def compile(self, view: View) -> NodePlan:
        """What the node should hold, given all it knows."""
        settings, me = view.assignments.settings(), view.assignments.peer(view.node_id)
        before, self._view = self._view, None  # until all has gone well
        if settings is None or me is None:
            return empty_plan(view.data_address)
        self._take_in(before, view)
        touched = {network_id for network_id, _ in self._endpoints | self._services}
        self._make_endpoints(view)
        self._make_services(view)
        places = [place for _, place in sorted(self._places.items()) if place.net is not None]
        for place in places:
            if place.net is not None and (place.router is None or place.net.record.id in touched):
                self._put_together(view, place, place.net)
        plan = NodePlan(
            overlay=OverlayPlan(
                node_number=me.number,
                underlay=ip_address(view.data_address),
                vxlan_port=settings.vxlan_port,
                wireguard_port=settings.wireguard_port,
                peers=self._overlay_peers,
                networks=tuple(place.overlay for place in places if place.overlay is not None),
                name_server=names.NAME_SERVER if view.hosts_others else None,
            ),
            vip=VipPlan(
                routers=tuple(place.router for place in places if place.router is not None),
                published=tuple(port for place in places for port in place.published),
            ),
            dns=self._names(view, places),
        )
        self._view = view
        return plan

    # --- what changed -------------------------------------------------------------------------------------------------

    def _take_in(self, before: View | None, view: View) -> None:
        """Note what is to be made anew."""
        changed = _changed(before.assignments if before is not None else Assignments(), view.assignments)
        if before is None or _fixed(before) != _fixed(view) or self._meet(view, changed):
            before = None
            self._clear()
            self._meet(view, {"peer": [("peer", "")]})
            changed = _changed(Assignments(), view.assignments)
        for kind in _ORDER:
            for _, name in sorted(changed.get(kind, ())):  # in order, each finds its place at the end
                self._record(kind, name, view.assignments.records.get((kind, name)))
        if before is not None:
            self._own_tasks(before.tasks, view.tasks)
            self._rumours(before.rumours, view.rumours)

    def _meet(self, view: View, changed: Mapping[RecordKind, list[Key]]) -> bool:
        """Get to know the peers, if any changed. Whether that, or what else changed, concerns every piece."""
        if any(kind in changed for kind in _EVERYWHERE):
            return True
        if "peer" not in changed:
            return False
        numbers = {node_id: peer.number for node_id, peer in self._peers.items()}
        self._peers = {p.node_id: p for p in view.assignments.of("peer", Peer) if p.data_address}
        self._overlay_peers = tuple(
            OverlayPeer(p.number, ip_address(p.data_address), fragments.keys(p))
            for p in self._peers.values()
            if p.node_id != view.node_id
        )
        self._addresses = {p.name: ip_address(p.data_address) for p in self._peers.values()}
        return numbers != {node_id: peer.number for node_id, peer in self._peers.items()}

    def _record(self, kind: RecordKind, name: str, now: Record | None) -> None:
        match kind:
            case "network":
                self._network(name, cast("Network | None", now))
            case "service":
                self._service(name, cast("ServiceEntry | None", now))
            case "endpoint":
                self._endpoint(name, cast("Endpoint | None", now))
            case _:  # a task of this node: which of its networks is its first
                self._endpoints.update(self._by_task.get(name, ()))

    def _network(self, network_id: str, now: Network | None) -> None:
        place = self._places.setdefault(network_id, _Place())
        place.net = fragments.net_of(now)
        place.pieces, place.ways_back, place.overlay, place.router = _Pieces(), None, None, None
        place.published, place.names = (), None
        self._endpoints |= {(network_id, key) for key in place.endpoints}
        self._services |= {(network_id, service_id) for service_id in place.services}
        self._tidy(network_id)

    def _service(self, service_id: str, now: ServiceEntry | None) -> None:
        networks = fragments.networks_of(now) if now is not None else set()
        for network_id, place in self._places.items():
            if network_id not in networks and place.services.pop(service_id, None) is not None:
                self._services.add((network_id, service_id))
        for network_id in networks:
            assert now is not None
            self._places.setdefault(network_id, _Place()).services[service_id] = now
            self._services.add((network_id, service_id))

    def _endpoint(self, key: str, now: Endpoint | None) -> None:
        network_id = key.rpartition("/")[2]
        at, place = (network_id, key), self._places.setdefault(network_id, _Place())
        before = place.endpoints.pop(key, None)
        if before is not None:
            keys = place.behind[before.service_id]
            del keys[bisect_left(keys, key)]
            if not keys:
                del place.behind[before.service_id]
            self._by_task[before.task_id] = tuple(one for one in self._by_task[before.task_id] if one != at)
            if not self._by_task[before.task_id]:
                del self._by_task[before.task_id]
            self._by_node[before.node_id].discard(at)
            if not self._by_node[before.node_id]:
                del self._by_node[before.node_id]
            self._services.add((network_id, before.service_id))
        if now is not None:
            place.endpoints[key] = now
            insort(place.behind.setdefault(now.service_id, []), key)
            self._by_task[now.task_id] = (*self._by_task.get(now.task_id, ()), at)
            self._by_node.setdefault(now.node_id, set()).add(at)
        self._endpoints.add(at)

    def _own_tasks(self, before: Mapping[str, LocalTask], now: Mapping[str, LocalTask]) -> None:
        for task_id in before.keys() | now.keys():
            if before.get(task_id) != now.get(task_id):
                self._endpoints.update(self._by_task.get(task_id, ()))

    def _rumours(self, before: Rumours, now: Rumours) -> None:
        for node_id in before.nodes.keys() | now.nodes.keys():
            if before.nodes.get(node_id, "alive") != now.nodes.get(node_id, "alive"):
                self._endpoints.update(self._by_node.get(node_id, ()))
        for node_id in before.tasks.keys() | now.tasks.keys():
            old, new = before.tasks.get(node_id), now.tasks.get(node_id)
            if old is new:
                continue
            for network_id, key in self._by_node.get(node_id, ()):
                task_id = self._places[network_id].endpoints[key].task_id
                if (old.get(task_id) if old else None) != (new.get(task_id) if new else None):
                    self._endpoints.add((network_id, key))

    def _tidy(self, network_id: str) -> None:
        place = self._places[network_id]
        if place.net is None and not place.endpoints and not place.services:
            del self._places[network_id]

    # --- what is made of it -------------------------------------------------------------------------------------------

    def _make_endpoints(self, view: View) -> None:
        for network_id, key in sorted(self._endpoints):
            if (place := self._places.get(network_id)) is None:
                continue
            endpoint, net, pieces = place.endpoints.get(key), place.net, place.pieces
            if endpoint is not None:
                self._services.add((network_id, endpoint.service_id))
            if endpoint is None or net is None:
                for shelf in (pieces.local, pieces.remote, pieces.own, pieces.hosted, pieces.host_ports):
                    shelf.put(key, ())
                continue
            pieces.remote.put(key, fragments.remote_endpoints(view, net, endpoint, self._peers))
            if endpoint.node_id == view.node_id or key in pieces.own:
                pieces.local.put(key, fragments.local_endpoints(view, net, endpoint))
                pieces.own.put(key, fragments.own_addresses(view, net, endpoint))
                pieces.hosted.put(key, fragments.hosted_services(view, net, endpoint))
                pieces.host_ports.put(key, fragments.host_ports(view, endpoint))
        for network_id in {network_id for network_id, _ in self._endpoints if network_id in self._places}:
            self._tidy(network_id)
        self._endpoints = set()

    def _make_services(self, view: View) -> None:
        for network_id, service_id in sorted(self._services):
            if (place := self._places.get(network_id)) is None:
                continue
            service, net, pieces = place.services.get(service_id), place.net, place.pieces
            if service is None or net is None:
                for shelf in (pieces.services, pieces.ports, pieces.names, pieces.entered):
                    shelf.put(service_id, ())
                continue
            behind = [place.endpoints[key] for key in place.behind.get(service_id, ())]
            pieces.services.put(service_id, fragments.virtual_services(view, net, service, behind))
            pieces.ports.put(service_id, fragments.ingress_ports(view, service, network_id))
            pieces.entered.put(service_id, (service_id,) if fragments.is_entered(service, network_id) else ())
            pieces.names.put(service_id, (fragments.service_names(view, net, service, behind),))
        for network_id in {network_id for network_id, _ in self._services if network_id in self._places}:
            self._tidy(network_id)
        self._services = set()

    def _put_together(self, view: View, place: _Place, net: Net) -> None:
        pieces = place.pieces
        place.overlay = fragments.overlay_network(net, pieces.local.all(), pieces.remote.all())
        services = pieces.services.all() + pieces.hosted.all()
        if place.ways_back is None:  # as long as no node comes or goes: then all is made anew
            place.ways_back = fragments.ways_back(view, net, self._peers.values())
        meshed = bool(pieces.entered.all() or pieces.host_ports.all())
        place.router = fragments.router(view, net, place.ways_back, pieces.own.all(), services, meshed)
        place.published = tuple(fragments.published(net, (*pieces.ports.all(), *pieces.host_ports.all())))
        place.names = fragments.network_names(net, pieces.names.all())

    def _names(self, view: View, places: list[_Place]) -> DnsPlan:
        nets = [place.net for place in places if place.net is not None]
        known = {net.record.id for net in nets}
        own = sorted(at for at in self._by_node.get(view.node_id, ()) if at[0] in known)
        return DnsPlan(
            listeners=tuple(fragments.listeners(view, nets)),
            networks=tuple(place.names for place in places if place.names is not None),
            nodes={
                **{name: ip_address(address) for name, address in view.rumours.strangers.items()},
                **self._addresses,
            },
            multihomed=fragments.multihomed(view, (self._places[network].endpoints[key] for network, key in own)),
        )


def _fixed(view: View) -> tuple[object, ...]:
    return view.node_id, view.data_address, view.netns_dir, view.dns_listen, view.hosts_others


def _changed(before: Assignments, now: Assignments) -> dict[RecordKind, list[Key]]:
    """The keys whose records are others, by kind."""
    found: dict[RecordKind, list[Key]] = {}
    old, new = before.records, now.records
    for key in now.changed_since(before):
        was, one = old.get(key), new.get(key)
        if was is not one and was != one:
            found.setdefault(key[0], []).append(key)
    return found
