"""Attachments as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from control.model import Attachment
from mesh.cli.show.names import named
from mesh.cli.text.table import short_id
from mesh.cli.text.template import Record

COLUMNS = {
    "ID": "ATTACHMENT ID",
    "Name": "CONTAINER",
    "Node": "NODE",
    "Network": "NETWORK",
    "Address": "ADDRESS",
    "Service": "SERVICE",
    "State": "STATE",
}
MORE = {
    "Container": "CONTAINER ID",
    "Aliases": "ALIASES",
    "Weight": "WEIGHT",
    "Ports": "PORTS",
    "CreatedAt": "CREATED AT",
}


def attachment_rows(
    attachments: Sequence[Attachment],
    nodes: Mapping[str, str],
    networks: Mapping[str, str],
    down: frozenset[str],
    *,
    no_trunc: bool,
) -> list[Record]:
    """In the order of names; `nodes` and `networks` are names by id, `down` the nodes that cannot be heard of."""
    return [
        Record(
            ID=one.id if no_trunc else short_id(one.id),
            Name=one.name,
            Node=named(nodes, one.node_id),
            Network=named(networks, one.network_id),
            Address=one.address,
            Service=one.service,
            State=_state(one, down),
            Container=one.container if no_trunc else short_id(one.container),
            Aliases=", ".join(one.aliases),
            Weight=one.weight,
            Ports=", ".join(f"{port.published}->{port.target}/{port.protocol}" for port in one.ports),
            CreatedAt=one.meta.created_ms,
        )
        for one in sorted_attachments(attachments)
    ]


def sorted_attachments(attachments: Sequence[Attachment]) -> list[Attachment]:
    """By name, as rows are."""
    return sorted(attachments, key=lambda one: (one.name, one.network_id, one.id))


def _state(one: Attachment, down: frozenset[str]) -> str:
    if one.node_id in down:
        return "Lost"
    if not one.ready:
        return "Unhealthy"
    return "Ready" if one.weight else "Draining"
