"""The pieces of a node's plan: what one endpoint, one service or one network of what a node knows comes to. Pure.

`compile` puts them together, and makes anew only those whose inputs have changed. So each function here says by its
arguments what it depends on; of the view, that is `serving` of the endpoints it is given, the fixed part (who this
node is and where), and this node's own record. The rules that matter:

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
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal

from control.assignment import Endpoint, EndpointState, Peer, ServiceEntry
from control.constraint import all_match
from control.ipv6 import embedded
from control.lifecycle import TaskState, is_terminal
from control.model import BalancePolicy, Network, PortSpec
from dns.plan import Address, Listener, NetworkNames, ServiceNames, TaskNames
from mesh.agent.view import LocalTask, Rumours, View
from mesh.vip.plan import Backend, PublishedPort, ReturnPath, RouterPlan, VirtualService
from overlay import names
from overlay.plan import LocalEndpoint, OverlayNetwork, PublicKey, RemoteEndpoint, is_key

DNS_PORT = 53

Serving = Literal["ready", "draining", "hidden"]


@dataclass(frozen=True, slots=True)
class Net:
    """A network that has its addresses."""

    record: Network
    subnet: IPv4Network
    gateway: IPv4Address
    subnet6: IPv6Network | None
    gateway6: IPv6Address | None

    def both(self, address: str) -> tuple[Address, ...]:
        """An address of the network, and the IPv6 one that goes with it if the network has any."""
        return _both(address, self.record.subnet6)


def net_of(record: Network | None) -> Net | None:
    """None while it has no addresses."""
    if record is None or not record.subnet or not record.vni:
        return None
    return Net(
        record,
        IPv4Network(record.subnet),
        IPv4Address(record.gateway),
        IPv6Network(record.subnet6) if record.subnet6 else None,
        IPv6Address(record.gateway6) if record.gateway6 else None,
    )


# Addresses and backends are the same objects in every plan, so that a plan and the one before are compared by identity.
# As many are kept as the tasks of a large cluster have addresses on a few networks each.
_KEPT = 131_072


@lru_cache(maxsize=_KEPT)
def _both(address: str, subnet6: str) -> tuple[Address, ...]:
    first = IPv4Address(address)
    return (first, embedded(IPv6Network(subnet6), first)) if subnet6 else (first,)


@lru_cache(maxsize=_KEPT)
def _backends(address: str, subnet6: str, weight: int, silent: bool) -> tuple[Backend, ...]:
    """A task as a backend, by each of its addresses."""
    return tuple(Backend(one, weight, silent) for one in _both(address, subnet6))


def _number(backend: Backend) -> int:
    return int(backend.address)


def keys(peer: Peer) -> tuple[PublicKey, ...]:
    """The keys that a node has told, but for those that are none."""
    return tuple(
        PublicKey(one.slot, one.key) for one in peer.tunnel_keys if one.slot in names.KEY_SLOTS and is_key(one.key)
    )


def networks_of(service: ServiceEntry) -> set[str]:
    ingress = {service.ingress_network_id} - {""}
    return {vip.network_id for vip in service.vips} | set(service.aliases) | ingress


def serving(view: View, endpoint: Endpoint) -> Serving:
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


def _is_silent(view: View, endpoint: Endpoint) -> bool:
    """Whether the task's node is suspected to be gone."""
    return endpoint.node_id != view.node_id and view.rumours.nodes.get(endpoint.node_id) == "suspect"


_RANK: dict[Serving, int] = {"hidden": 0, "draining": 1, "ready": 2}
_LEAST = _RANK.__getitem__


# --- overlay ------------------------------------------------------------------------------------------------------


def _attached(task: LocalTask | None) -> str | None:
    """The namespace to put an interface into, or None."""
    return task.netns if task is not None and not is_terminal(task.state) else None


def remote_endpoints(view: View, net: Net, endpoint: Endpoint, peers: Mapping[str, Peer]) -> tuple[RemoteEndpoint, ...]:
    """Where a task of another node is reached."""
    if endpoint.node_id == view.node_id or endpoint.node_id not in peers:
        return ()
    number = peers[endpoint.node_id].number
    return tuple(RemoteEndpoint(one, number) for one in net.both(endpoint.address))


def local_endpoints(view: View, net: Net, endpoint: Endpoint) -> tuple[LocalEndpoint, ...]:
    """The interface of a task of this node, once it has a namespace."""
    task = view.tasks.get(endpoint.task_id)
    if endpoint.node_id != view.node_id or task is None or not (netns := _attached(task)):
        return ()
    return (_local_endpoint(view, net, endpoint, netns),)


def own_addresses(view: View, net: Net, endpoint: Endpoint) -> tuple[Address, ...]:
    """Those of a task of this node."""
    return net.both(endpoint.address) if endpoint.node_id == view.node_id else ()


def overlay_network(net: Net, local: tuple[LocalEndpoint, ...], remote: tuple[RemoteEndpoint, ...]) -> OverlayNetwork:
    """A network, of its pieces."""
    return OverlayNetwork(
        id=net.record.id,
        vni=net.record.vni,
        subnet=net.subnet,
        gateway=net.gateway,
        internal=net.record.spec.internal,
        local=local,
        remote=remote,
        subnet6=net.subnet6,
        gateway6=net.gateway6,
        encrypted=net.record.spec.encrypted,
    )


def _local_endpoint(view: View, net: Net, endpoint: Endpoint, netns: str) -> LocalEndpoint:
    index = interface_index(view, endpoint)
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


def interface_index(view: View, endpoint: Endpoint) -> int:
    """Interfaces are numbered in the order in which the task's spec names its networks."""
    task = view.assignments.task(endpoint.task_id)
    networks = [a.network_id for a in task.addresses] if task is not None else []
    return networks.index(endpoint.network_id) if endpoint.network_id in networks else 0


# --- balancing ----------------------------------------------------------------------------------------------------


_WEIGHTS: dict[Serving, int] = {"ready": 1, "draining": 0}


def _spread(
    view: View,
    net: Net,
    where: Iterable[Address],
    port: PortSpec | None,
    endpoints: Iterable[Endpoint],
    policy: BalancePolicy,
) -> Iterable[VirtualService]:
    """A virtual service on the addresses `where` (one of each family of the network) for one port, or for all."""
    states = [(e, serving(view, e)) for e in endpoints]
    subnet6 = net.record.subnet6
    found = [
        _backends(e.address, subnet6, _WEIGHTS[state] * e.weight, _is_silent(view, e))
        for e, state in states
        if state in _WEIGHTS
    ]
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


def virtual_services(view: View, net: Net, service: ServiceEntry, behind: list[Endpoint]) -> Iterable[VirtualService]:
    """A service at its addresses on a network, and at the ports that it publishes over it."""
    for vip in service.vips:
        if vip.network_id == net.record.id:
            yield from _spread(view, net, net.both(vip.address), None, behind, service.balance)
    for port in ingress_ports(view, service, net.record.id):
        yield from _spread(view, net, _entries(net), port, behind, service.balance)


def hosted_services(view: View, net: Net, endpoint: Endpoint) -> Iterable[VirtualService]:
    """A task of this node at the ports that it has of its host."""
    for port in host_ports(view, endpoint):
        yield from _spread(view, net, _entries(net), port, [endpoint], BalancePolicy())


def router(
    view: View,
    net: Net,
    ways_back: tuple[ReturnPath, ...],
    local_tasks: tuple[Address, ...],
    services: tuple[VirtualService, ...],
    meshed: bool,
) -> RouterPlan:
    """The balancer of a network, of its pieces. `meshed`: whether a port is published over it, here or elsewhere."""
    uplink = names.uplink(net.record.vni)
    return RouterPlan(
        netns=router_netns(view, net),
        subnet=net.subnet,
        gateway=net.gateway,
        vxlan_device=names.vxlan_device(net.record.vni),
        uplink_device=uplink.router_device,
        uplink_address=uplink.router_address,
        masquerade=not net.record.spec.internal,
        local_tasks=local_tasks,
        return_paths=ways_back,
        services=services,
        subnet6=net.subnet6,
        gateway6=net.gateway6,
        uplink_address6=uplink.router_address6 if net.subnet6 is not None else None,
        meshed=meshed,
        task_devices=tuple(names.veth_device(one) for one in local_tasks if isinstance(one, IPv4Address)),
    )


def is_entered(service: ServiceEntry, network_id: str) -> bool:
    """Whether connections from outside come to a service over a network, by whatever node."""
    return service.ingress_network_id == network_id and any(port.mode == "ingress" for port in service.ports)


def ways_back(view: View, net: Net, peers: Iterable[Peer]) -> tuple[ReturnPath, ...]:
    """To the other nodes."""
    return tuple(_return_path(p, net) for p in peers if p.node_id != view.node_id)


def router_netns(view: View, net: Net) -> str:
    """The path of its namespace."""
    return f"{view.netns_dir}/{names.router_netns(net.record.id)}"


def _entries(net: Net) -> tuple[Address, ...]:
    """Where connections from outside enter a router: its addresses towards the host."""
    uplink = names.uplink(net.record.vni)
    return (uplink.router_address,) if net.subnet6 is None else (uplink.router_address, uplink.router_address6)


def _return_path(peer: Peer, net: Net) -> ReturnPath:
    return ReturnPath(
        peer.number,
        names.router_mac(peer.number),
        names.router_address(peer.number),
        names.router_address6(peer.number) if net.subnet6 is not None else None,
    )


def ingress_ports(view: View, service: ServiceEntry, network_id: str) -> list[PortSpec]:
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


def host_ports(view: View, endpoint: Endpoint) -> tuple[PortSpec, ...]:
    """Host-mode ports of a task of this node; one on several networks is reached over its first."""
    if endpoint.node_id != view.node_id or not endpoint.host_ports or interface_index(view, endpoint):
        return ()
    return tuple(port for port in endpoint.host_ports if port.published)


def published(net: Net, ports: Iterable[PortSpec]) -> Iterable[PublishedPort]:
    """The ports that the host hands to a network's router, each once."""
    uplink = names.uplink(net.record.vni)
    for port in sorted(dict.fromkeys(ports), key=lambda p: (p.protocol, p.published)):
        yield PublishedPort(
            port.protocol,
            port.published,
            uplink.router_address,
            uplink.host_device,
            router_address6=uplink.router_address6 if net.subnet6 is not None else None,
            addresses=(ip_address(port.address),) if port.address else (),
        )


# --- names --------------------------------------------------------------------------------------------------------


def listeners(view: View, nets: list[Net]) -> Iterable[Listener]:
    """Where names are asked for."""
    if view.dns_listen is not None:
        address, port = view.dns_listen
        yield Listener(None, ip_address(address), port, None)
    for net in nets:
        yield Listener(router_netns(view, net), net.gateway, DNS_PORT, net.record.id)
    if view.hosts_others and nets:  # where containers of others ask, on any network or on none of ours
        yield Listener(None, names.NAME_SERVER, DNS_PORT, None)
        for net in nets:
            yield Listener(router_netns(view, net), names.NAME_SERVER, DNS_PORT, net.record.id)


def multihomed(view: View, endpoints: Iterable[Endpoint]) -> dict[tuple[str, Address], tuple[str, ...]]:
    """The networks of each task of this node that is on several, by network and address.

    A container of others has an attachment of its own for each: they are one where they share a namespace.
    """
    homes: dict[str, list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        local = view.tasks.get(endpoint.task_id)
        homes[local.netns if local is not None and local.netns else endpoint.task_id].append(endpoint)
    return {
        (e.network_id, IPv4Address(e.address)): tuple(
            h.network_id for h in sorted(home, key=lambda h: interface_index(view, h))
        )
        for home in homes.values()
        if len(home) > 1
        for e in home
    }


def network_names(net: Net, services: tuple[ServiceNames, ...]) -> NetworkNames:
    """All names of a network, of its pieces."""
    return NetworkNames(net.record.id, net.record.spec.name, net.gateway, services, _subnets(net))


def _subnets(net: Net) -> tuple[IPv4Network | IPv6Network, ...]:
    return (net.subnet,) if net.subnet6 is None else (net.subnet, net.subnet6)


def service_names(view: View, net: Net, service: ServiceEntry, behind: list[Endpoint]) -> ServiceNames:
    """A service's names on a network, and those of its tasks."""
    return ServiceNames(
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
                ready=serving(view, endpoint) == "ready",
                local=endpoint.node_id == view.node_id,
            )
            for endpoint in behind
        ),
        ttl_s=service.names.ttl_s,
        ports=tuple((port.name, port.protocol, port.port) for port in service.named_ports),
        local_first=service.names.local_first,
    )
