"""Nodes as rows."""

from __future__ import annotations

from collections.abc import Sequence

from control.model import Node
from mesh.cli.show.names import node_name
from mesh.cli.show.plain import record
from mesh.cli.text.template import Record

COLUMNS = {
    "ID": "ID",
    "Hostname": "HOSTNAME",
    "Status": "STATUS",
    "Availability": "AVAILABILITY",
    "ManagerStatus": "MANAGER STATUS",
    "EngineVersion": "VERSION",
    "Address": "ADDRESS",
}
MORE = {"Name": "NAME", "Self": "SELF", "Role": "ROLE", "Number": "NUMBER", "Labels": "LABELS"}


def manager_status(node: Node, managers: int) -> str:
    """Leader, Reachable, Unreachable; "" of a worker. The only manager leads."""
    if node.spec.role != "manager":
        return ""
    if node.status.state == "down":
        return "Unreachable"
    return "Leader" if managers == 1 else "Reachable"


def node_rows(nodes: Sequence[Node], self_id: str) -> list[Record]:
    """Rows in the order of names."""
    managers = sum(1 for node in nodes if node.spec.role == "manager")
    return [
        Record(
            ID=node.id,
            Hostname=node_name(node),
            Name=node_name(node),
            Status=node.status.state.capitalize(),
            Availability=node.spec.availability.capitalize(),
            ManagerStatus=manager_status(node, managers),
            EngineVersion=node.description.version,
            Address=node.status.data_address or node.status.address,
            Role=node.spec.role,
            Number=node.number,
            Labels=node.spec.labels,
            Self=node.id == self_id,
        )
        for node in sorted_nodes(nodes)
    ]


def marked(rows: Sequence[Record]) -> list[Record]:
    """The rows for a table: the id of the node that was asked has a star."""
    return [Record({**row, "ID": f"{row['ID']} {'*' if row['Self'] else ' '}"}) for row in rows]


def sorted_nodes(nodes: Sequence[Node]) -> list[Node]:
    """By name, as rows are."""
    return sorted(nodes, key=lambda node: (node_name(node), node.number))


def node_records(nodes: Sequence[Node], self_id: str) -> list[Record]:
    """Whole objects for JSON, in the order of rows."""
    managers = sum(1 for node in nodes if node.spec.role == "manager")
    return [
        record(node, self=node.id == self_id, manager_status=manager_status(node, managers).lower())
        for node in sorted_nodes(nodes)
    ]
