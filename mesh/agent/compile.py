"""The heart of a node: what it knows, compiled into what its kernel and its name server should hold.

One pure function, `compile(view) -> NodePlan`. Everything the data plane does is decided here, in one place, from one
value; the reconcilers only make it true. The rules that matter:

- An address is routed as long as its task exists, whatever its state, so that draining connections live.
- A task gets new connections only while it is *ready*: running, wanted, on a node that is not down. For tasks of this
  node its own knowledge counts, which is fresher than the managers'.
- What gossip has heard since the managers spoke corrects them: suspected and dead nodes, tasks that are not well.
- A *draining* task keeps weight 0; a *lost* one (its node is down) is hidden from balancers and DNS, not forgotten.
- A published port is open on every node: its network gets a router here even without a task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal

from control.assignment import Endpoint, EndpointState, Peer, ServiceEntry
from control.constraint import all_match
from control.ipv6 import embedded
from control.lifecycle import TaskState, is_terminal
from control.model import BalancePolicy, Network, PortSpec
from dns.plan import Address, DnsPlan, Listener, NetworkNames, ServiceNames, TaskNames
from mesh.agent.view import Assignments, LocalTask, Rumours, View
from mesh.vip.plan import Backend, PublishedPort, ReturnPath, RouterPlan, VipPlan, VirtualService
from overlay import names
from overlay.plan import LocalEndpoint, OverlayNetwork, OverlayPlan, PublicKey, RemoteEndpoint, is_key
from overlay.plan import Peer as OverlayPeer

DNS_PORT = 53

Serving = Literal["ready", "draining", "hidden"]


@dataclass(frozen=True, slots=True)
class NodePlan:
    """Everything this node's kernel and name server should hold."""

    overlay: OverlayPlan
    vip: VipPlan
    dns: DnsPlan


@dataclass(frozen=True, slots=True)
class _Net:
    """A network with all that is known of it."""

    record: Network
    subnet: IPv4Network
    gateway: IPv4Address
    subnet6: IPv6Network | None
    services: list[ServiceEntry] = field(default_factory=list)
    endpoints: list[Endpoint] = field(default_factory=list)
    behind: dict[str, list[Endpoint]] = field(default_factory=lambda: defaultdict(list))  # the same, by service

    def both(self, address: str) -> tuple[Address, ...]:
        """An address of the network, and the IPv6 one that goes with it if the network has any."""
        return _both(address, self.record.subnet6)


# Addresses and backends are the same objects in every plan, so that a plan and the one before are compared by identity.
# As many are kept as the tasks of a large cluster have addresses on a few networks each.
_KEPT = 131_072


@lru_cache(maxsize=_KEPT)
def _both(address: str, subnet6: str) -> tuple[Address, ...]:
    first = IPv4Address(address)
    return (first, embedded(IPv6Network(subnet6), first)) if subnet6 else (first,)


@lru_cache(maxsize=_KEPT)
def _backends(address: str, subnet6: str, weight: int) -> tuple[Backend, ...]:
    """A task as a backend, by each of its addresses."""
    return tuple(Backend(one, weight) for one in _both(address, subnet6))


def _number(backend: Backend) -> int:
    return int(backend.address)


def compile(view: View) -> NodePlan:  # noqa: A001 - the architecture's name for it
    """What the node should hold, given all it knows. Total: an empty view gives empty plans."""
    assignments = view.assignments
    settings, me = assignments.settings(), assignments.peer(view.node_id)
    if settings is None or me is None:
        return empty_plan(view.data_address)
    peers = {p.node_id: p for p in assignments.of("peer", Peer) if p.data_address}
    nets = _networks(assignments)
    return NodePlan(
        overlay=OverlayPlan(
            node_number=me.number,
            underlay=ip_address(view.data_address),
            vxlan_port=settings.vxlan_port,
            wireguard_port=settings.wireguard_port,
            peers=tuple(
                OverlayPeer(p.number, ip_address(p.data_address), _keys(p))
                for p in peers.values()
                if p.node_id != view.node_id
            ),
            networks=tuple(_overlay_network(view, net, peers) for net in nets),
            name_server=names.NAME_SERVER if view.hosts_others else None,
        ),
        vip=VipPlan(
            routers=tuple(_router(view, net, peers) for net in nets),
            published=tuple(_published(view, nets)),
        ),
        dns=_names(view, nets, peers),
    )


def _keys(peer: Peer) -> tuple[PublicKey, ...]:
    """The keys that a node has told, but for those that are none."""
    return tuple(
        PublicKey(one.slot, one.key) for one in peer.tunnel_keys if one.slot in names.KEY_SLOTS and is_key(one.key)
    )


def empty_plan(data_address: str) -> NodePlan:
    """The plan of a node that is in no cluster: nothing of ours."""
    nothing = OverlayPlan(0, ip_address(data_address), 0, (), ())
    return NodePlan(nothing, VipPlan((), ()), DnsPlan())


def _networks(assignments: Assignments) -> list[_Net]:
    """The networks that have their addresses, each with its services and endpoints, in a fixed order."""
    nets = {
        n.id: _Net(n, IPv4Network(n.subnet), IPv4Address(n.gateway), IPv6Network(n.subnet6) if n.subnet6 else None)
        for n in assignments.of("network", Network)
        if n.subnet and n.vni
    }
    for endpoint in assignments.of("endpoint", Endpoint):
        if endpoint.network_id in nets:
            net = nets[endpoint.network_id]
            net.endpoints.append(endpoint)
            net.behind[endpoint.service_id].append(endpoint)
    for service in assignments.of("service", ServiceEntry):
        for network_id in sorted(_service_networks(service)):
            if network_id in nets:
                nets[network_id].services.append(service)
    return list(nets.values())


def _service_networks(service: ServiceEntry) -> set[str]:
    ingress = {service.ingress_network_id} - {""}
    return {vip.network_id for vip in service.vips} | set(service.aliases) | ingress


def _serving(view: View, endpoint: Endpoint) -> Serving:
    """Whether new connections may go to an endpoint. Of its own tasks a node knows best."""
    task = view.tasks.get(endpoint.task_id) if endpoint.node_id == view.node_id else None
    if endpoint.node_id == view.node_id and task is None:
        return "hidden"  # not prepared here (yet, or any more)
    if task is not None:
        if task.state != TaskState.RUNNING:
            return "hidden"
        return "draining" if task.draining or endpoint.state == "draining" else "ready"
    return _remote(view.rumours, endpoint)


_STORED: dict[EndpointState, Serving] = {
    "ready": "ready",
    "draining": "draining",
    "starting": "hidden",
    "lost": "hidden",
}


def _remote(rumours: Rumours, endpoint: Endpoint) -> Serving:
    """Whether a task of another node serves: as the managers say, corrected by what gossip has heard since.

    A suspected node gets no new connections; one that is dead by gossip is hidden, and comes back with its tasks. A
    node that says more of its own tasks than the managers have heard yet is believed, but for what is to stop.
    """
    stored, liveness = _STORED[endpoint.state], rumours.nodes.get(endpoint.node_id, "alive")
    if liveness == "dead":
        return "hidden"
    said = rumours.tasks.get(endpoint.node_id)
    told = said.get(endpoint.task_id) if said is not None else None
    serving = stored if told is None else told.serving
    if endpoint.state == "draining":
        serving = min(serving, "draining", key=_LEAST)
    return min(serving, "draining", key=_LEAST) if liveness == "suspect" else serving


_RANK: dict[Serving, int] = {"hidden": 0, "draining": 1, "ready": 2}
_LEAST = _RANK.__getitem__


# --- overlay ------------------------------------------------------------------------------------------------------


def _attached(task: LocalTask | None) -> str | None:
    """The namespace to put an interface into, or None."""
    return task.netns if task is not None and not is_terminal(task.state) else None


def _overlay_network(view: View, net: _Net, peers: Mapping[str, Peer]) -> OverlayNetwork:
    local: list[LocalEndpoint] = []
    remote: list[RemoteEndpoint] = []
    for endpoint in net.endpoints:
        address, *more = net.both(endpoint.address)
        if endpoint.node_id != view.node_id:
            if endpoint.node_id in peers:
                number = peers[endpoint.node_id].number
                remote += (RemoteEndpoint(one, number) for one in (address, *more))
        elif netns := _attached(view.tasks.get(endpoint.task_id)):
            local.append(_local_endpoint(view, net, endpoint, netns))
    return OverlayNetwork(
        id=net.record.id,
        vni=net.record.vni,
        subnet=net.subnet,
        gateway=net.gateway,
        internal=net.record.spec.internal,
        local=tuple(local),
        remote=tuple(remote),
        subnet6=net.subnet6,
        gateway6=IPv6Address(net.record.gateway6) if net.record.gateway6 else None,
        encrypted=net.record.spec.encrypted,
    )


def _local_endpoint(view: View, net: _Net, endpoint: Endpoint, netns: str) -> LocalEndpoint:
    index = _interface_index(view, endpoint)
    address = IPv4Address(endpoint.address)
    task = view.tasks[endpoint.task_id]
    return LocalEndpoint(
        endpoint.task_id,
        address,
        netns,
        task.interface or f"eth{index}",
        default_route=task.default_route if task.interface else index == 0,
        handed=task.handed,
        address6=embedded(net.subnet6, address) if net.subnet6 is not None else None,
    )


def _interface_index(view: View, endpoint: Endpoint) -> int:
    """Interfaces are numbered in the order in which the task's spec names its networks."""
    task = view.assignments.task(endpoint.task_id)
    networks = [a.network_id for a in task.addresses] if task is not None else []
    return networks.index(endpoint.network_id) if endpoint.network_id in networks else 0


# --- balancing ----------------------------------------------------------------------------------------------------


_WEIGHTS: dict[Serving, int] = {"ready": 1, "draining": 0}


def _spread(
    view: View,
    net: _Net,
    where: Iterable[Address],
    port: PortSpec | None,
    endpoints: Iterable[Endpoint],
    policy: BalancePolicy,
) -> Iterable[VirtualService]:
    """A virtual service on the addresses `where` (one of each family of the network) for one port, or for all."""
    states = [(e, _serving(view, e)) for e in endpoints]
    subnet6 = net.record.subnet6
    found = [_backends(e.address, subnet6, _WEIGHTS[state] * e.weight) for e, state in states if state in _WEIGHTS]
    for family, address in enumerate(where):
        yield VirtualService(
            address,
            port.protocol if port is not None else None,
            port.published if port is not None else None,
            port.target if port is not None else None,
            tuple(sorted((each[family] for each in found), key=_number)),
            scheduler=policy.scheduler,
            affinity_s=policy.affinity_s,
            idle_s=policy.idle_s,
        )


def _router(view: View, net: _Net, peers: Mapping[str, Peer]) -> RouterPlan:
    uplink = names.uplink(net.record.vni)
    services: list[VirtualService] = []
    entries = _entries(net)
    for service in net.services:
        behind, policy = net.behind[service.service_id], service.balance
        for vip in service.vips:
            if vip.network_id == net.record.id:
                services += _spread(view, net, net.both(vip.address), None, behind, policy)
        for port in _ingress_ports(view, service, net.record.id):
            services += _spread(view, net, entries, port, behind, policy)
    for endpoint, port in _host_ports(view, net):
        services += _spread(view, net, entries, port, [endpoint], BalancePolicy())
    return RouterPlan(
        netns=f"{view.netns_dir}/{names.router_netns(net.record.id)}",
        subnet=net.subnet,
        gateway=net.gateway,
        vxlan_device=names.vxlan_device(net.record.vni),
        uplink_device=uplink.router_device,
        uplink_address=uplink.router_address,
        masquerade=not net.record.spec.internal,
        local_tasks=tuple(a for e in net.endpoints if e.node_id == view.node_id for a in net.both(e.address)),
        return_paths=tuple(_return_path(p, net) for p in peers.values() if p.node_id != view.node_id),
        services=tuple(services),
        subnet6=net.subnet6,
        gateway6=IPv6Address(net.record.gateway6) if net.record.gateway6 else None,
        uplink_address6=uplink.router_address6 if net.subnet6 is not None else None,
    )


def _entries(net: _Net) -> tuple[Address, ...]:
    """Where connections from outside enter a router: its addresses towards the host."""
    uplink = names.uplink(net.record.vni)
    return (uplink.router_address,) if net.subnet6 is None else (uplink.router_address, uplink.router_address6)


def _return_path(peer: Peer, net: _Net) -> ReturnPath:
    return ReturnPath(
        peer.number,
        names.router_mac(peer.number),
        names.router_address(peer.number),
        names.router_address6(peer.number) if net.subnet6 is not None else None,
    )


def _ingress_ports(view: View, service: ServiceEntry, network_id: str) -> list[PortSpec]:
    """The ports that are published on this node over that network."""
    if service.ingress_network_id != network_id:
        return []
    me = view.assignments.own_node()
    return [
        port
        for port in service.ports
        if port.mode == "ingress"
        and port.published
        and (not port.constraints or (me is not None and all_match(me, port.constraints)))
    ]


def _host_ports(view: View, net: _Net) -> list[tuple[Endpoint, PortSpec]]:
    """Host-mode ports of this node's own tasks; a task on several networks is reached over its first."""
    return [
        (endpoint, port)
        for endpoint in net.endpoints
        if endpoint.node_id == view.node_id and _interface_index(view, endpoint) == 0
        for port in endpoint.host_ports
        if port.published
    ]


def _published(view: View, nets: Iterable[_Net]) -> Iterable[PublishedPort]:
    for net in nets:
        uplink = names.uplink(net.record.vni)
        ingress = [port for service in net.services for port in _ingress_ports(view, service, net.record.id)]
        host = [port for _, port in _host_ports(view, net)]
        for port in sorted(dict.fromkeys(ingress + host), key=lambda p: (p.protocol, p.published)):
            yield PublishedPort(
                port.protocol,
                port.published,
                uplink.router_address,
                uplink.host_device,
                router_address6=uplink.router_address6 if net.subnet6 is not None else None,
                addresses=(ip_address(port.address),) if port.address else (),
            )


# --- names --------------------------------------------------------------------------------------------------------


def _names(view: View, nets: list[_Net], peers: Mapping[str, Peer]) -> DnsPlan:
    homes: dict[str, list[Endpoint]] = defaultdict(list)
    for net in nets:
        for endpoint in net.endpoints:
            if endpoint.node_id == view.node_id:
                homes[endpoint.task_id].append(endpoint)
    return DnsPlan(
        listeners=(
            *_host_listener(view),
            *(
                Listener(f"{view.netns_dir}/{names.router_netns(n.record.id)}", n.gateway, DNS_PORT, n.record.id)
                for n in nets
            ),
            *_common_listeners(view, nets),
        ),
        networks=tuple(
            NetworkNames(n.record.id, n.record.spec.name, n.gateway, tuple(_service_names(view, n)), _subnets(n))
            for n in nets
        ),
        nodes={
            **{name: ip_address(address) for name, address in view.rumours.strangers.items()},
            **{p.name: ip_address(p.data_address) for p in peers.values()},
        },
        multihomed={
            (e.network_id, IPv4Address(e.address)): tuple(
                h.network_id for h in sorted(home, key=lambda h: _interface_index(view, h))
            )
            for home in homes.values()
            if len(home) > 1
            for e in home
        },
    )


def _subnets(net: _Net) -> tuple[IPv4Network | IPv6Network, ...]:
    return (net.subnet,) if net.subnet6 is None else (net.subnet, net.subnet6)


def _host_listener(view: View) -> tuple[Listener, ...]:
    if view.dns_listen is None:
        return ()
    address, port = view.dns_listen
    return (Listener(None, ip_address(address), port, None),)


def _common_listeners(view: View, nets: list[_Net]) -> Iterable[Listener]:
    """Where containers of others ask, on any network or on none of ours."""
    if view.hosts_others and nets:
        yield Listener(None, names.NAME_SERVER, DNS_PORT, None)
        for net in nets:
            netns = f"{view.netns_dir}/{names.router_netns(net.record.id)}"
            yield Listener(netns, names.NAME_SERVER, DNS_PORT, net.record.id)


def _service_names(view: View, net: _Net) -> Iterable[ServiceNames]:
    for service in net.services:
        yield ServiceNames(
            name=service.name,
            aliases=service.aliases.get(net.record.id, ()),
            vips=tuple(a for v in service.vips if v.network_id == net.record.id for a in net.both(v.address)),
            tasks=tuple(
                TaskNames(
                    id=endpoint.task_id,
                    slot=endpoint.slot,
                    hostname=endpoint.hostname,
                    aliases=(),
                    addresses=net.both(endpoint.address),
                    ready=_serving(view, endpoint) == "ready",
                    local=endpoint.node_id == view.node_id,
                )
                for endpoint in net.behind[service.service_id]
            ),
            ttl_s=service.names.ttl_s,
            ports=tuple((port.name, port.protocol, port.port) for port in service.named_ports),
            local_first=service.names.local_first,
        )
