"""Containers of others, added to what a node knows. Pure.

Their node knows of them before the managers do, and also while no manager answers: so it adds them to the records it
was sent. What the managers have made of one (which service takes it in) counts, once they have said it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from control.assignment import Endpoint, Key, KnownNetwork, Record, ServiceEntry, key_of
from control.lifecycle import TaskState
from control.model import Attachment
from mesh.agent.view import Assignments, LocalTask, View


@dataclass(frozen=True, slots=True)
class Guest:
    """A container of others on one network, as its node has it."""

    attachment: Attachment
    netns: str  # path of its network namespace
    interface: str
    default_route: bool = False  # an engine sets it for its own networks
    handed: bool = False  # the engine takes its interface, and names it


def with_attached(view: View, attached: Iterable[Guest]) -> View:
    """The view, with these containers in it."""
    records: dict[Key, Record] = {}
    tasks = dict(view.tasks)
    for one in attached:
        for record in _records(one.attachment, view.assignments):
            records[key_of(record)] = record
        tasks[one.attachment.id] = local_task(one)
    if not records:
        return view
    return replace(view, assignments=view.assignments.beside(records), tasks=tasks)


def local_task(one: Guest) -> LocalTask:
    """How it is, as of a task."""
    well = TaskState.RUNNING if one.attachment.ready else TaskState.STARTING
    draining = not one.attachment.weight
    return LocalTask(well, one.netns, draining, one.interface, one.handed, one.default_route)


def known_network(assignments: Assignments, network_id: str) -> KnownNetwork | None:
    """A network of the catalogue."""
    found = assignments.records.get(("catalog", network_id))
    return found if isinstance(found, KnownNetwork) else None


def _records(a: Attachment, assignments: Assignments) -> Iterable[Record]:
    known = known_network(assignments, a.network_id)
    if known is not None and ("network", a.network_id) not in assignments.records:
        yield known.network
    told = assignments.records.get(("endpoint", f"{a.id}/{a.network_id}"))
    service_id = told.service_id if isinstance(told, Endpoint) else f"attached/{a.network_id}/{a.service.lower()}"
    if isinstance(told, Endpoint):
        yield msgspec.structs.replace(told, address=a.address, host_ports=a.ports, weight=a.weight)
        return
    if ("service", service_id) not in assignments.records:
        yield ServiceEntry(
            service_id=service_id,
            name=a.service.lower(),
            endpoint_mode="dnsrr",
            vips=(),
            ports=(),
            aliases={a.network_id: a.aliases},
            named_ports=a.named_ports,
        )
    yield Endpoint(
        task_id=a.id,
        network_id=a.network_id,
        service_id=service_id,
        slot=0,
        node_id=a.node_id,
        address=a.address,
        hostname=a.name,
        state="ready" if a.ready else "starting",
        host_ports=a.ports,
        weight=a.weight,
    )
