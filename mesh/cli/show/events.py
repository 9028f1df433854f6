"""Changes of the cluster as lines: what happened to which object."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from control.model import KIND_OF, Cluster, Network, Node, Object, Service, Task
from mesh.cli.show.names import node_name, task_name
from mesh.cli.text.table import printable
from mesh.cli.text.template import Record

Happened = Literal["created", "updated", "removed"]


class Teller:
    """Turns changes into rows. Remembers the last state of each task, as long as the task exists."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def present(self, obj: Object) -> None:
        """Take note of what was there before."""
        if isinstance(obj, Task):
            self._states[obj.id] = obj.status.state.name.lower()

    def row(self, happened: Happened, obj: Object, now_ms: int) -> Record:
        """One event. The time is when the store changed, or `now_ms` for what is gone."""
        kind, action = KIND_OF[type(obj)], happened.removesuffix("d")
        if isinstance(obj, Task):
            state = obj.status.state.name.lower()
            if happened == "updated" and self._states.get(obj.id) != state:
                action = state
            self._states[obj.id] = state
            if happened == "removed":
                del self._states[obj.id]
        at_ms = now_ms if happened == "removed" else obj.meta.updated_ms or now_ms
        return Record(
            Time=datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            Type=kind,
            Action=action,
            ID=obj.id,
            Name=_name(obj),
            Attributes=_attributes(obj),
        )


def line(row: Record) -> str:
    """One event as a line, after `docker events`."""
    attributes = row["Attributes"]
    assert isinstance(attributes, dict)
    shown = ", ".join(f"{key}={value}" for key, value in {"name": row["Name"], **attributes}.items() if value != "")
    return printable(f"{row['Time']} {row['Type']} {row['Action']} {row['ID']} ({shown})")


def _name(obj: Object) -> str:
    match obj:
        case Node():
            return node_name(obj)
        case Network() | Service() | Cluster():
            return obj.spec.name
        case Task():
            return task_name(obj)
        case _:
            return obj.id


def _attributes(obj: Object) -> dict[str, str]:
    match obj:
        case Node():
            return {"state": obj.status.state, "availability": obj.spec.availability, "role": obj.spec.role}
        case Network():
            return {"subnet": obj.subnet}
        case Service():
            replicas = str(obj.spec.mode.replicated.replicas) if obj.spec.mode.replicated is not None else ""
            return {"replicas": replicas, "update": obj.update_status.state}
        case Task():
            return {
                "node": obj.node_id,
                "desired": obj.desired_state.name.lower(),
                "exit_code": "" if obj.status.exit_code is None else str(obj.status.exit_code),
                "error": obj.status.error,
            }
        case _:
            return {}
