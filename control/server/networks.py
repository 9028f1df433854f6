"""Networks: create, remove. Pure: a snapshot in, changes out, or a Refusal."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address

from control.lifecycle import is_terminal
from control.model import Network, NetworkSpec, Node
from control.server.refusal import Refusal, mistaken
from control.spec import network_mistakes, prefix
from control.store.tables import Snapshot
from control.store.txn import Change, Delete, Put

_LISTED = 5  # names shown in a refusal


def create_network(snapshot: Snapshot, spec: NetworkSpec, new_id: str) -> list[Change]:
    """A new network; the allocator gives it its subnet, if the user did not, and the rest."""
    mistaken(network_mistakes(spec))
    if snapshot.by_name(Network, spec.name) is not None:
        raise Refusal("ALREADY_EXISTS", f'network "{spec.name}" already exists')
    if spec.subnet:
        subnet = IPv4Network(spec.subnet)
        clashes = [f'network "{spec.name}": subnet {subnet} {clash}' for clash in _clashes(snapshot, subnet)]
        if clashes:
            raise Refusal("FAILED_PRECONDITION", "\n".join(clashes))
    if spec.subnet6:
        _check_subnet6(snapshot, spec)
    return [Put(Network(id=new_id, spec=spec))]


def _check_subnet6(snapshot: Snapshot, spec: NetworkSpec) -> None:
    subnet = IPv6Network(spec.subnet6)
    for network in snapshot.all(Network):
        taken = network.subnet6 or network.spec.subnet6
        if taken and IPv6Network(taken).overlaps(subnet):
            clash = f'overlaps network "{network.spec.name}" ({taken})'
            raise Refusal("FAILED_PRECONDITION", f'network "{spec.name}": IPv6 subnet {subnet} {clash}')


def remove_network(snapshot: Snapshot, network: Network) -> list[Change]:
    """Remove a network that nobody uses."""
    name = f'network "{network.spec.name}"'
    services = sorted(s.spec.name for s in snapshot.services_on_network(network.id))
    if services:
        shown = ", ".join(f'"{s}"' for s in services[:_LISTED]) + (", …" if len(services) > _LISTED else "")
        noun = "service" if len(services) == 1 else "services"
        raise Refusal("FAILED_PRECONDITION", f"{name} is used by {noun} {shown}: remove or update them first")
    live = sum(1 for task in snapshot.tasks_on_network(network.id) if not is_terminal(task.status.state))
    if live:
        raise Refusal("FAILED_PRECONDITION", f"{name} still has {live} tasks that are stopping: try again soon")
    boxes = sorted(a.name for a in snapshot.attachments_on_network(network.id))
    if boxes:
        shown = ", ".join(f'"{b}"' for b in boxes[:_LISTED]) + (", …" if len(boxes) > _LISTED else "")
        noun = "container" if len(boxes) == 1 else "containers"
        raise Refusal("FAILED_PRECONDITION", f"{name} is used by {noun} {shown}: remove or detach them first")
    return [Delete(Network, network.id, network.meta.version)]


def _clashes(snapshot: Snapshot, subnet: IPv4Network) -> Iterator[str]:
    """What in the cluster has addresses in `subnet` already, as ends of sentences."""
    for network in snapshot.all(Network):
        taken = prefix(network.subnet or network.spec.subnet)
        if taken is not None and taken.overlaps(subnet):
            yield f'overlaps network "{network.spec.name}" ({taken})'
    for node in snapshot.all(Node):
        name = node.description.hostname or node.id
        routes = [route for text in node.description.routes if (route := prefix(text)) is not None]
        overlapping = [route for route in routes if route.overlaps(subnet)]
        if overlapping:
            yield f'overlaps the route {overlapping[0]} of node "{name}"'
        elif node.status.data_address and ip_address(node.status.data_address) in subnet:
            yield f'contains the address {node.status.data_address} of node "{name}"'


def route_clashes(snapshot: Snapshot, routes: tuple[str, ...]) -> list[tuple[IPv4Network, Network]]:
    """Routes of a machine that overlap networks of the cluster."""
    networks = [(p, n) for n in snapshot.all(Network) if (p := prefix(n.subnet or n.spec.subnet)) is not None]
    found = []
    for text in routes:
        route = prefix(text)
        if route is not None:
            found += [(route, network) for subnet, network in networks if subnet.overlaps(route)]
    return found
