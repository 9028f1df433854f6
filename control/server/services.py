"""Services: create, update, roll back, remove. Pure: a snapshot in, changes out, or a Refusal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from control.lifecycle import TaskState
from control.model import (
    Network,
    NetworkAttachment,
    Node,
    PortSpec,
    Service,
    ServiceSpec,
    TaskSpec,
    UpdateStatus,
)
from control.registry import kept
from control.server.references import find
from control.server.refusal import Refusal, mistaken
from control.spec import port_name, service_mistakes
from control.store.tables import Snapshot
from control.store.txn import Change, Delete, Put

# Tasks told to go in one commit, together with the service: under the store's limit for one commit.
REMOVED_AT_ONCE = 150

_PAUSED = frozenset({"paused", "rollback_paused"})


@dataclass(frozen=True, slots=True)
class Creation:
    """A new service, and what its user should know besides."""

    changes: list[Change]
    warnings: tuple[str, ...]


def create_service(snapshot: Snapshot, spec: ServiceSpec, new_id: str) -> Creation:
    """A new service. Its networks may be given by any reference; they are kept by id."""
    spec = kept(spec, None)
    mistaken(service_mistakes(spec))
    if snapshot.by_name(Service, spec.name) is not None:
        raise Refusal("ALREADY_EXISTS", f'service "{spec.name}" already exists')
    spec = resolved(snapshot, spec)
    check_ports(snapshot, spec, own_id=new_id)
    return Creation([Put(Service(id=new_id, spec=spec))], _warnings(spec))


def update_service(snapshot: Snapshot, service: Service, spec: ServiceSpec) -> list[Change]:
    """Another spec for a service; no change if it says nothing new and no update is paused."""
    if spec.name != service.spec.name:
        raise Refusal(
            "INVALID_ARGUMENT", f'service "{service.spec.name}": a service cannot be renamed (to "{spec.name[:63]}")'
        )
    spec = kept(spec, service.spec)
    mistaken(service_mistakes(spec))
    if (spec.mode.global_ is None) != (service.spec.mode.global_ is None):
        raise Refusal("INVALID_ARGUMENT", f'service "{spec.name}": its mode cannot be changed: remove it and create it')
    spec = resolved(snapshot, spec)
    check_ports(snapshot, spec, own_id=service.id)
    updated = msgspec.structs.replace(service, spec=spec)
    if what_tasks_run(spec) != what_tasks_run(service.spec):
        updated = msgspec.structs.replace(
            updated,
            spec_version=next_spec_version(snapshot, service),
            previous_spec=service.spec,
            previous_spec_version=service.spec_version,
            update_status=UpdateStatus(),
        )
    elif service.update_status.state in _PAUSED:
        updated = msgspec.structs.replace(updated, update_status=UpdateStatus())  # as Docker: an update resumes
    return [Put(updated)] if updated != service else []


def rollback_service(snapshot: Snapshot, service: Service, now_ms: int) -> list[Change]:
    """Back to what the tasks ran before the last update; doing it twice brings the update again.

    The number of replicas stays: scaling is not what is being taken back.
    """
    previous = service.previous_spec
    if previous is None:
        raise Refusal("FAILED_PRECONDITION", f'service "{service.spec.name}" has no previous version to go back to')
    spec = msgspec.structs.replace(previous, mode=service.spec.mode)
    missing = [a.network_id for a in spec.task.networks if snapshot.get(Network, a.network_id) is None]
    if missing:
        raise Refusal(
            "FAILED_PRECONDITION", f'service "{spec.name}": its previous version is on a network that is gone'
        )
    check_ports(snapshot, spec, own_id=service.id)
    rolled_back = msgspec.structs.replace(
        service,
        spec=spec,
        spec_version=service.previous_spec_version,
        previous_spec=service.spec,
        previous_spec_version=service.spec_version,
        update_status=UpdateStatus(state="rollback_started", message="rolled back by the user", started_ms=now_ms),
    )
    return [Put(rolled_back)]


def remove_service(snapshot: Snapshot, service: Service) -> tuple[list[Change], bool]:
    """The next step of removing a service, and whether it is the last.

    First its tasks are told to go, so that none is left unwanted by nobody; with the last of them the service goes.
    """
    staying = [t for t in snapshot.tasks_of_service(service.id) if t.desired_state < TaskState.REMOVE]
    now = staying[:REMOVED_AT_ONCE]
    changes: list[Change] = [Put(msgspec.structs.replace(t, desired_state=TaskState.REMOVE)) for t in now]
    last = len(staying) == len(now)
    if last:
        changes.append(Delete(Service, service.id))
    return changes, last


# --- in common ----------------------------------------------------------------------------------------------------


def resolved(snapshot: Snapshot, spec: ServiceSpec) -> ServiceSpec:
    """The spec with its networks by id. Raises Refusal, naming all that do not exist."""
    attachments: list[NetworkAttachment] = []
    unknown: list[str] = []
    for attachment in spec.task.networks:
        try:
            network = find(snapshot, Network, attachment.network_id)
        except Refusal as refusal:
            if refusal.code != "NOT_FOUND":
                raise
            unknown.append(f'service "{spec.name}": no network "{attachment.network_id}"')
            continue
        if any(a.network_id == network.id for a in attachments):
            raise Refusal("INVALID_ARGUMENT", f'service "{spec.name}": network "{network.spec.name}" is named twice')
        attachments.append(msgspec.structs.replace(attachment, network_id=network.id))
    if unknown:
        raise Refusal("NOT_FOUND", "\n".join(unknown))
    return msgspec.structs.replace(spec, task=msgspec.structs.replace(spec.task, networks=tuple(attachments)))


def check_ports(snapshot: Snapshot, spec: ServiceSpec, own_id: str) -> None:
    """Refuse ports that another service, or the cluster itself, has on the nodes. Raises Refusal.

    Two services may both have a port in host mode: the scheduler keeps their tasks on different nodes.
    """
    wanted = [port for port in spec.ports if port.published]
    if not wanted:
        return
    taken = _taken_ports(snapshot, own_id)
    clashes = []
    for port in wanted:
        for owner, mode in taken.get((port.protocol, port.published), ()):
            if port.mode == "ingress" or mode == "ingress":
                clashes.append(f'cannot publish port {port_name(port)} of service "{spec.name}": {owner}')
                break
    if clashes:
        raise Refusal("ALREADY_EXISTS", "\n".join(clashes))


def _taken_ports(snapshot: Snapshot, own_id: str) -> dict[tuple[str, int], list[tuple[str, str]]]:
    """(protocol, port) -> who has it, as the end of a sentence, and how."""
    taken: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for service in snapshot.all(Service):
        if service.id != own_id:
            for port in _ports_of(service):
                owner = (f'already used by "{service.spec.name}"', port.mode)
                taken.setdefault((port.protocol, port.published), []).append(owner)
    vxlan = snapshot.cluster().spec.vxlan_port
    taken.setdefault(("udp", vxlan), []).append(("it carries the networks between the nodes (VXLAN)", "ingress"))
    wireguard = snapshot.cluster().spec.wireguard_port
    for number in (wireguard, wireguard + 1):
        taken.setdefault(("udp", number), []).append(("it carries encrypted networks (WireGuard)", "ingress"))
    for protocol in ("tcp", "udp"):
        gossip = (protocol, snapshot.cluster().spec.gossip_port)
        taken.setdefault(gossip, []).append(("nodes hear of each other there (gossip)", "ingress"))
    for node in snapshot.all(Node):
        _, _, control = node.control_address.rpartition(":")
        if control.isascii() and control.isdigit():
            name = node.description.hostname or node.id
            owner = (f'the manager "{name}" is reached there', "ingress")
            taken.setdefault(("tcp", int(control)), []).append(owner)
    return taken


def _ports_of(service: Service) -> Iterable[PortSpec]:
    """What it asks for, and what it still has."""
    return {port for port in (*service.spec.ports, *service.ports) if port.published}


def what_tasks_run(spec: ServiceSpec) -> tuple[TaskSpec, tuple[PortSpec, ...]]:
    """The part of a spec that each task has its own copy of: a change means new tasks."""
    return spec.task, tuple(port for port in spec.ports if port.mode == "host")


def next_spec_version(snapshot: Snapshot, service: Service) -> int:
    """A version that no task of the service was ever made for."""
    used = {service.spec_version, service.previous_spec_version}
    used.update(task.spec_version for task in snapshot.tasks_of_service(service.id))
    return max(used) + 1


def _warnings(spec: ServiceSpec) -> tuple[str, ...]:
    if not spec.task.networks:
        return (f'service "{spec.name}" is on no network: it can reach nothing and nothing can reach it',)
    return ()
