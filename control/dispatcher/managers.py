"""Where the managers are, for nodes to find them: pure."""

from __future__ import annotations

from control.model import Node, Object
from control.store.tables import Snapshot


def managers(snapshot: Snapshot) -> list[str]:
    """Where managers are to be reached, host:port, in the order of their numbers."""
    return [address for _, address in sorted(filter(None, map(reached, snapshot.all(Node))))]


def reached(obj: Object | None) -> tuple[int, str] | None:
    """All that `managers` takes of an object: the number of a manager that says where it is, and that."""
    if not isinstance(obj, Node) or obj.spec.role != "manager" or not obj.control_address:
        return None
    return obj.number, obj.control_address
