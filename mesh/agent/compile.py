"""The heart of a node: what it knows, compiled into what its kernel and its name server should hold.

One pure function, `compile(view) -> NodePlan`. Everything the data plane does is decided here, in one place, from one
value; the reconcilers only make it true. The rules that matter:

- An address is routed as long as its task exists, whatever its state, so that draining connections live.
- A task gets new connections only while it is *ready*: running, wanted, on a node that is not down. For tasks of this
  node its own knowledge counts, which is fresher than the managers'.
- A *draining* task keeps weight 0; a *lost* one (its node is down) is hidden from balancers and DNS, not forgotten.
- A published port is open on every node: its network gets a router here even without a task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Literal

from control.assignment import Endpoint, Peer, ServiceEntry
from control.lifecycle import TaskState, is_terminal
from control.model import Network, PortSpec
from dns.plan import DnsPlan, Listener, NetworkNames, ServiceNames, TaskNames
from mesh.agent.view import Assignments, LocalTask, View
from mesh.vip.plan import Backend, PublishedPort, ReturnPath, RouterPlan, VipPlan, VirtualService
from overlay import names
from overlay.plan import LocalEndpoint, OverlayNetwork, OverlayPlan, RemoteEndpoint
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
    services: list[ServiceEntry] = field(default_factory=list)
    endpoints: list[Endpoint] = field(default_factory=list)


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
            underlay=IPv4Address(view.data_address),
            vxlan_port=settings.vxlan_port,
            peers=tuple(
                OverlayPeer(p.number, IPv4Address(p.data_address)) for p in peers.values() if p.node_id != view.node_id
            ),
            networks=tuple(_overlay_network(view, net, peers) for net in nets),
        ),
        vip=VipPlan(
            routers=tuple(_router(view, net, peers) for net in nets),
            published=tuple(_published(view, nets)),
        ),
        dns=_names(view, nets, peers),
    )


def empty_plan(data_address: str) -> NodePlan:
    """The plan of a node that is in no cluster: nothing of ours."""
    nothing = OverlayPlan(0, IPv4Address(data_address), 0, (), ())
    return NodePlan(nothing, VipPlan((), ()), DnsPlan())


def _networks(assignments: Assignments) -> list[_Net]:
    """The networks that have their addresses, each with its services and endpoints, in a fixed order."""
    nets = {
        n.id: _Net(n, IPv4Network(n.subnet), IPv4Address(n.gateway))
        for n in assignments.of("network", Network)
        if n.subnet and n.vni
    }
    for endpoint in assignments.of("endpoint", Endpoint):
        if endpoint.network_id in nets:
            nets[endpoint.network_id].endpoints.append(endpoint)
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
    match endpoint.state:
        case "ready":
            return "ready"
        case "draining":
            return "draining"
        case "starting" | "lost":
            return "hidden"


# --- overlay ------------------------------------------------------------------------------------------------------


def _attached(task: LocalTask | None) -> str | None:
    """The namespace to put an interface into, or None."""
    return task.netns if task is not None and not is_terminal(task.state) else None


def _overlay_network(view: View, net: _Net, peers: Mapping[str, Peer]) -> OverlayNetwork:
    local, remote = [], []
    for endpoint in net.endpoints:
        address = IPv4Address(endpoint.address)
        if endpoint.node_id != view.node_id:
            if endpoint.node_id in peers:
                remote.append(RemoteEndpoint(address, peers[endpoint.node_id].number))
        elif netns := _attached(view.tasks.get(endpoint.task_id)):
            index = _interface_index(view, endpoint)
            local.append(LocalEndpoint(endpoint.task_id, address, netns, f"eth{index}", default_route=index == 0))
    return OverlayNetwork(
        id=net.record.id,
        vni=net.record.vni,
        subnet=net.subnet,
        gateway=net.gateway,
        internal=net.record.spec.internal,
        local=tuple(local),
        remote=tuple(remote),
    )


def _interface_index(view: View, endpoint: Endpoint) -> int:
    """Interfaces are numbered in the order in which the task's spec names its networks."""
    task = view.assignments.task(endpoint.task_id)
    networks = [a.network_id for a in task.addresses] if task is not None else []
    return networks.index(endpoint.network_id) if endpoint.network_id in networks else 0


# --- balancing ----------------------------------------------------------------------------------------------------


def _backends(view: View, endpoints: Iterable[Endpoint]) -> tuple[Backend, ...]:
    weights: dict[Serving, int] = {"ready": 1, "draining": 0}
    states = ((IPv4Address(e.address), _serving(view, e)) for e in endpoints)
    return tuple(sorted((Backend(a, weights[s]) for a, s in states if s in weights), key=lambda b: b.address))


def _router(view: View, net: _Net, peers: Mapping[str, Peer]) -> RouterPlan:
    uplink = names.uplink(net.record.vni)
    of_service: dict[str, list[Endpoint]] = defaultdict(list)
    for endpoint in net.endpoints:
        of_service[endpoint.service_id].append(endpoint)
    services: list[VirtualService] = []
    for service in net.services:
        backends = _backends(view, of_service[service.service_id])
        services += (
            VirtualService(IPv4Address(vip.address), None, None, None, backends)
            for vip in service.vips
            if vip.network_id == net.record.id
        )
        services += (
            VirtualService(uplink.router_address, port.protocol, port.published, port.target, backends)
            for port in _ingress_ports(service, net.record.id)
        )
    services += (
        VirtualService(uplink.router_address, port.protocol, port.published, port.target, _backends(view, [endpoint]))
        for endpoint, port in _host_ports(view, net)
    )
    return RouterPlan(
        netns=f"{view.netns_dir}/{names.router_netns(net.record.id)}",
        subnet=net.subnet,
        gateway=net.gateway,
        vxlan_device=names.vxlan_device(net.record.vni),
        uplink_device=uplink.router_device,
        uplink_address=uplink.router_address,
        masquerade=not net.record.spec.internal,
        local_tasks=tuple(IPv4Address(e.address) for e in net.endpoints if e.node_id == view.node_id),
        return_paths=tuple(
            ReturnPath(p.number, names.router_mac(p.number), names.router_address(p.number))
            for p in peers.values()
            if p.node_id != view.node_id
        ),
        services=tuple(services),
    )


def _ingress_ports(service: ServiceEntry, network_id: str) -> list[PortSpec]:
    if service.ingress_network_id != network_id:
        return []
    return [p for p in service.ports if p.mode == "ingress" and p.published]


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
        ingress = [port for service in net.services for port in _ingress_ports(service, net.record.id)]
        host = [port for _, port in _host_ports(view, net)]
        for port in sorted(set(ingress + host), key=lambda p: (p.protocol, p.published)):
            yield PublishedPort(port.protocol, port.published, uplink.router_address, uplink.host_device)


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
        ),
        networks=tuple(
            NetworkNames(n.record.id, n.record.spec.name, n.gateway, tuple(_service_names(view, n)), (n.subnet,))
            for n in nets
        ),
        nodes={p.name: IPv4Address(p.data_address) for p in peers.values()},
        multihomed={
            (e.network_id, IPv4Address(e.address)): tuple(
                h.network_id for h in sorted(home, key=lambda h: _interface_index(view, h))
            )
            for home in homes.values()
            if len(home) > 1
            for e in home
        },
    )


def _host_listener(view: View) -> tuple[Listener, ...]:
    if view.dns_listen is None:
        return ()
    address, port = view.dns_listen
    return (Listener(None, ip_address(address), port, None),)


def _service_names(view: View, net: _Net) -> Iterable[ServiceNames]:
    for service in net.services:
        yield ServiceNames(
            name=service.name,
            aliases=service.aliases.get(net.record.id, ()),
            vips=tuple(IPv4Address(v.address) for v in service.vips if v.network_id == net.record.id),
            tasks=tuple(
                TaskNames(
                    id=endpoint.task_id,
                    slot=endpoint.slot,
                    hostname=endpoint.hostname,
                    aliases=(),
                    addresses=(IPv4Address(endpoint.address),),
                    ready=_serving(view, endpoint) == "ready",
                    local=endpoint.node_id == view.node_id,
                )
                for endpoint in net.endpoints
                if endpoint.service_id == service.service_id
            ),
            ttl_s=service.names.ttl_s,
            ports=tuple((port.name, port.protocol, port.port) for port in service.named_ports),
            local_first=service.names.local_first,
        )
