"""What users type, resolved to objects: an id, a name, or a beginning of an id that only one object has. Pure."""

from __future__ import annotations

from typing import TypeVar

from control.lifecycle import is_terminal
from control.model import KIND_OF, Attachment, Cluster, Network, Node, Object, Service, Task, User
from control.server.refusal import Refusal
from control.store.tables import Snapshot

T = TypeVar("T", Cluster, Node, Network, Service, Task, User, Attachment)
Public = Cluster | Node | Network | Service | Task | User | Attachment

# What can be asked for over the API; resting addresses are the allocator's own business.
PUBLIC: dict[str, type[Public]] = {
    "cluster": Cluster,
    "node": Node,
    "network": Network,
    "service": Service,
    "task": Task,
    "user": User,
    "attachment": Attachment,
}
_LISTED = 5  # ambiguous ids shown in a refusal


def public_kind(kind: str) -> type[Public]:
    """The class of a kind. Raises Refusal."""
    cls = PUBLIC.get(kind)
    if cls is None:
        raise Refusal("INVALID_ARGUMENT", f'there is no kind of object "{kind[:40]}": there are {", ".join(PUBLIC)}')
    return cls


def find(snapshot: Snapshot, cls: type[T], reference: str) -> T:
    """The object that is meant. Raises Refusal (NOT_FOUND; INVALID_ARGUMENT if several could be)."""
    kind = KIND_OF[cls]
    if cls is Cluster and not reference:
        return next(iter(snapshot.all(cls)))
    if not reference:
        raise Refusal("INVALID_ARGUMENT", f"which {kind}? The reference is empty")
    exact = snapshot.get(cls, reference)
    if exact is not None:
        return exact
    if cls is User:  # its id is its name: whoever means "alice" does not mean "alice2"
        raise Refusal("NOT_FOUND", f'no user "{reference[:80]}"')
    named = [obj for obj in _named(snapshot, cls, reference) if isinstance(obj, cls)]
    found = named or snapshot.by_prefix(cls, reference)
    if len(found) > 1:
        ids = ", ".join(obj.id for obj in found[:_LISTED]) + (", …" if len(found) > _LISTED else "")
        raise Refusal("INVALID_ARGUMENT", f'"{reference[:80]}" may be one of several {kind}s: {ids}')
    if not found:
        raise Refusal("NOT_FOUND", f'no {kind} "{reference[:80]}"')
    return found[0]


def _named(snapshot: Snapshot, cls: type[T], name: str) -> list[Object]:
    if cls is Node:  # machines may share a name: then it says too little
        return [n for n in snapshot.all(Node) if n.description.hostname.lower() == name.lower()]
    if cls is Task:
        return _task_named(snapshot, name)
    if cls is Cluster:
        return [c for c in snapshot.all(Cluster) if c.spec.name == name]
    if cls is Attachment:
        return [a for a in snapshot.all(Attachment) if a.name == name]
    found = snapshot.by_name(cls, name)
    return [found] if found is not None else []


def _task_named(snapshot: Snapshot, name: str) -> list[Object]:
    """The task in <service>.<slot> that counts: the one that lives, else the last that did."""
    service_name, _, slot = name.rpartition(".")
    service = snapshot.by_name(Service, service_name) if service_name else None
    if service is None or not slot.isascii() or not slot.isdigit() or len(slot) > 9 or int(slot) == 0:
        return []
    tasks = sorted(snapshot.tasks_in_slot(service.id, int(slot)), key=_relevance)
    return [tasks[-1]] if tasks else []


def _relevance(task: Task) -> tuple[bool, int, int]:
    return (not is_terminal(task.status.state), -int(task.desired_state), task.meta.created_ms)
