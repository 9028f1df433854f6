"""Nodes as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from control.model import Node
from mesh.cli.show.names import ago, node_name
from mesh.cli.show.plain import record
from mesh.cli.show.pretty import Line, aligned
from mesh.cli.text.size import format_size
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


Standing = Mapping[str, str]  # of managers, by node id: leader, reachable, unreachable


def manager_status(node: Node, standing: Standing) -> str:
    """Leader, Reachable, Unreachable; "" of a worker. "Joining" is one that takes no part yet."""
    if node.spec.role != "manager":
        return ""
    return standing.get(node.id, "joining").capitalize()


def node_rows(nodes: Sequence[Node], self_id: str, standing: Standing) -> list[Record]:
    """Rows in the order of names."""
    return [
        Record(
            ID=node.id,
            Hostname=node_name(node),
            Name=node_name(node),
            Status=node.status.state.capitalize(),
            Availability=node.spec.availability.capitalize(),
            ManagerStatus=manager_status(node, standing),
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


def node_records(nodes: Sequence[Node], self_id: str, standing: Standing) -> list[Record]:
    """Whole objects for JSON, in the order of rows."""
    return [
        record(node, self=node.id == self_id, manager_status=manager_status(node, standing).lower())
        for node in sorted_nodes(nodes)
    ]


def pretty_node(node: Node, now_ms: int) -> str:
    """`node inspect --pretty`."""
    about, status = node.description, node.status
    lines: list[Line] = [(0, "ID", node.id), (0, "Hostname", about.hostname), (0, "Number", str(node.number))]
    if node.spec.labels:
        lines += [(0, "Labels", ""), *((1, key, value) for key, value in sorted(node.spec.labels.items()))]
    lines += [
        (0, "Role", node.spec.role),
        (0, "Joined", ago(node.meta.created_ms, now_ms)),
        (0, "Status", ""),
        (1, "State", status.state.capitalize()),
        *([(1, "Message", status.message)] if status.message else []),
        (1, "Availability", node.spec.availability.capitalize()),
        (1, "Address", status.address),
        (1, "Data address", status.data_address),
        (0, "Platform", ""),
        (1, "System", f"{about.os} {about.kernel}".strip()),
        (1, "Architecture", about.architecture),
        (0, "Resources", ""),
        (1, "CPUs", f"{about.cpus:g}"),
        (1, "Memory", format_size(about.memory_bytes)),
        (0, "Mesh", ""),
        (1, "Version", about.version),
        (1, "Executors", ", ".join(about.executors)),
        (1, "Balancer", about.balancer),
        (1, "MTU", str(about.mtu)),
    ]
    return aligned(lines)
