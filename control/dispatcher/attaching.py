"""What nodes say of containers of others, and the changes of the store that this comes to. Pure.

A node is believed in what is its own: addresses of its leases, on networks that exist. The rest is dropped, as are
attachments beyond a bound; nothing that a node says concerns another node's records.
"""

from __future__ import annotations

import contextlib
import re

import msgspec
from msgspec.structs import replace

from control.assignment import AttachmentReport
from control.model import Attachment, Lease, Meta, Network, NetworkSpec, Node
from control.server.networks import create_network, remove_network
from control.server.refusal import Refusal
from control.spec import is_hostname, is_label
from control.store.tables import Snapshot, leased
from control.store.txn import Change, Delete, Put

# Of one node: more than an engine runs; a report of so many is half a megabyte.
ATTACHMENTS_MAX = 2048
# Blocks of one network that a node may have: as many containers as above.
LEASES_MAX = 128
# Of one node, made in its engine; the label says which node's a network is.
NETWORKS_MAX = 256
MADE_IN_LABEL = "com.meshd.made-in"
ALIASES_MAX, PORTS_MAX, WEIGHT_MAX = 32, 64, 100
_ID = re.compile(r"[0-9a-z]{1,64}")


def read_report(data: bytes) -> AttachmentReport | None:
    """A report as it came; None if it cannot be read or is too long."""
    try:
        report = msgspec.msgpack.decode(data, type=AttachmentReport)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    within = len(report.attachments) <= ATTACHMENTS_MAX and len(report.networks) <= NETWORKS_MAX
    return report if within else None


def attachment_changes(node_id: str, report: AttachmentReport, snapshot: Snapshot) -> list[Change]:
    """Changes for Writer.DISPATCHER that make the store say what the node says."""
    if snapshot.get(Node, node_id) is None:
        return []
    leases = snapshot.leases_of_node(node_id)
    wished = [_lease(node_id, network_id, number) for network_id, number in _wishes(report, snapshot)]
    held = {lease.id for lease in leases}
    changes: list[Change] = [Put(lease) for lease in wished if lease.id not in held]
    own = {(lease.network_id, address) for lease in leases for address in leased(lease)}
    wanted = {a.id: a for a in report.attachments if _is_right(a, node_id) and (a.network_id, a.address) in own}
    for before in snapshot.attachments_on_node(node_id):
        after = wanted.pop(before.id, None)
        if after is None:
            changes.append(Delete(Attachment, before.id, before.meta.version))
        elif replace(before, meta=Meta()) != replace(after, meta=Meta()):
            changes.append(Put(replace(after, meta=before.meta)))
    for new in wanted.values():
        if snapshot.get(Attachment, new.id) is None:  # else it is another node's
            changes.append(Put(replace(new, meta=Meta())))
    return changes


def network_changes(node_id: str, report: AttachmentReport, snapshot: Snapshot) -> list[Change]:
    """The next change that makes networks of the node's engine the cluster's, or removes those that it has no more.

    One at a time, so that each is checked against those before it; what clashes or is in use is left alone.
    """
    wanted = {wish.id for wish in report.networks}
    for network in snapshot.all(Network):
        if network.spec.labels.get(MADE_IN_LABEL) == node_id and network.id not in wanted:
            with contextlib.suppress(Refusal):
                return remove_network(snapshot, network)
    for wish in report.networks:
        if not wish.made and _ID.fullmatch(wish.id) and snapshot.get(Network, wish.id) is None:
            labels = {MADE_IN_LABEL: node_id}
            spec = NetworkSpec(name=wish.name, subnet=wish.subnet, internal=wish.internal, labels=labels)
            with contextlib.suppress(Refusal):
                return create_network(snapshot, spec, wish.id)
    return []


def _wishes(report: AttachmentReport, snapshot: Snapshot) -> list[tuple[str, int]]:
    """Network and number of each lease that is wanted."""
    return [
        (network_id, number)
        for network_id, count in report.wishes.items()
        if snapshot.get(Network, network_id) is not None
        for number in range(min(count, LEASES_MAX))
    ]


def _lease(node_id: str, network_id: str, number: int) -> Lease:
    return Lease(id=f"{network_id}/{node_id}/{number}", node_id=node_id, network_id=network_id)


def _is_right(a: Attachment, node_id: str) -> bool:
    """Whether others can be told of it as it is."""
    return (
        a.node_id == node_id
        and _ID.fullmatch(a.id) is not None
        and is_hostname(a.name)
        and is_label(a.service)
        and len(a.aliases) <= ALIASES_MAX
        and all(is_label(alias) for alias in a.aliases)
        and len(a.named_ports) + len(a.ports) <= PORTS_MAX
        and all(is_label(port.name) and 0 < port.port < 65536 for port in a.named_ports)
        and all(p.mode == "host" and 0 < p.published < 65536 and 0 < p.target < 65536 for p in a.ports)
        and 0 <= a.weight <= WEIGHT_MAX
    )
