"""Containers of others, as their network is told of them: endpoints of the service they are for. Pure.

If a service of that name is on the network, they are behind its VIP with its tasks. If not, the name is a service of
its own there, which is answered with the addresses of all that have it.
"""

from __future__ import annotations

from collections.abc import Iterator

from control.assignment import Endpoint, EndpointState, ServiceEntry
from control.model import Attachment, Node, Service
from control.store.tables import Event, Snapshot


def own_service_id(network_id: str, name: str) -> str:
    """The id of the service that only attachments make. No id of the managers looks like it."""
    return f"attached/{network_id}/{name.lower()}"


def attached_records(attachment: Attachment, snapshot: Snapshot) -> Iterator[Endpoint | ServiceEntry]:
    """What its network is told."""
    service = _service(attachment, snapshot)
    if service is None:
        yield _entry(attachment, snapshot)
    yield Endpoint(
        task_id=attachment.id,
        network_id=attachment.network_id,
        service_id=service.id if service is not None else own_service_id(attachment.network_id, attachment.service),
        slot=0,
        node_id=attachment.node_id,
        address=attachment.address,
        hostname=attachment.name,
        state=_state(attachment, snapshot.get(Node, attachment.node_id)),
        host_ports=attachment.ports,
        weight=attachment.weight,
    )


def with_namesakes(event: Event, snapshot: Snapshot) -> list[Attachment]:
    """The attachments whose records an event may have changed besides its own object's.

    A service takes them in, or gives them free; those of one name share one record; a node's state is in theirs.
    """
    found: list[Attachment] = []
    for obj in (event.before, event.after):
        match obj:
            case Service():
                found += snapshot.attachments_of_service(obj.spec.name)
            case Attachment():
                found += snapshot.attachments_of_service(obj.service)
            case Node():
                found += snapshot.attachments_on_node(obj.id)
            case _:
                pass
    return found


def _service(attachment: Attachment, snapshot: Snapshot) -> Service | None:
    """The service of that name on that network."""
    service = snapshot.by_name(Service, attachment.service)
    on = {n.network_id for n in service.spec.task.networks} if service is not None else set()
    return service if attachment.network_id in on else None


def _entry(attachment: Attachment, snapshot: Snapshot) -> ServiceEntry:
    """The same for all that share a name on a network: what any of them says holds for the name."""
    sharing = [a for a in snapshot.attachments_of_service(attachment.service) if a.network_id == attachment.network_id]
    return ServiceEntry(
        service_id=own_service_id(attachment.network_id, attachment.service),
        name=attachment.service.lower(),
        endpoint_mode="dnsrr",
        vips=(),
        ports=(),
        aliases={attachment.network_id: tuple(sorted({alias for a in sharing for alias in a.aliases}))},
        named_ports=tuple(sorted({port for a in sharing for port in a.named_ports}, key=lambda p: (p.name, p.port))),
    )


def _state(attachment: Attachment, node: Node | None) -> EndpointState:
    if node is None or node.status.state == "down":
        return "lost"
    if not attachment.ready:
        return "starting"
    return "ready" if attachment.weight else "draining"
