"""What a commit may do: the rules of the store, as one pure function.

`prepare` takes the snapshot that the commit goes on top of (durable, plus all that is under way), and gives what would
become of it, or raises one of `control.store.errors`. Nothing here waits, so a decision never spans an `await`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from control.lifecycle import DESIRED_STATES, RUNNABLE_TO, TaskState, Writer, may_delete, may_desire, may_observe
from control.model import (
    KIND_OF,
    Attachment,
    Authority,
    Cluster,
    Lease,
    Meta,
    Network,
    Node,
    Object,
    RestingAddress,
    Service,
    Task,
    User,
)
from control.store.errors import (
    AddressConflict,
    ForbiddenTransition,
    NameConflict,
    NumberConflict,
    PortConflict,
    StoreError,
    TooLarge,
    VersionConflict,
)
from control.store.tables import Claim, Event, Snapshot, claims, event, rekeyed_of

__all__ = [
    "AddressConflict",
    "Change",
    "Delete",
    "ForbiddenTransition",
    "NameConflict",
    "NumberConflict",
    "PortConflict",
    "Prepared",
    "Put",
    "StoreError",
    "TooLarge",
    "VersionConflict",
    "prepare",
]


class Put(msgspec.Struct, frozen=True, gc=False):
    """Write an object. `obj.meta.version` is the version it was read at; 0 creates it."""

    obj: Object


class Delete(msgspec.Struct, frozen=True, gc=False):
    """Remove an object, of this version only if one is given."""

    cls: type[Object]
    id: str
    version: int = 0


Change = Put | Delete


class Prepared(msgspec.Struct, frozen=True):
    """A commit that may happen: what to write, what it means, and the snapshot it leads to."""

    events: tuple[Event, ...]  # one per change, in the same order; stamped with the versions that objects will have
    after: Snapshot


def prepare(snapshot: Snapshot, changes: Iterable[Change], writer: Writer, now_ms: int) -> Prepared:
    """What the changes mean, if `writer` may make them on top of `snapshot`. Raises StoreError.

    The commit's version is the one after the snapshot's.
    """
    version = snapshot.version + 1
    events: list[Event] = []
    for change in changes:
        if isinstance(change, Put):
            obj = change.obj
            before = snapshot.get(type(obj), obj.id)
            events.append(event(before, _check_put(before, obj, writer, version, now_ms)))
        else:
            events.append(event(_check_delete(snapshot.get(change.cls, change.id), change, writer), None))
    _check_once(events)
    rekeyed = rekeyed_of(events)
    after_all = snapshot.apply(version, events, rekeyed)
    _check_claims(after_all, rekeyed)
    return Prepared(tuple(events), after_all)


def _check_once(events: Sequence[Event]) -> None:
    """Nothing is changed twice."""
    seen: set[tuple[type[Object], str]] = set()
    for change in events:
        obj = change.object
        key = type(obj), obj.id
        if key in seen:
            raise VersionConflict(f"{_words(type(obj))} {obj.id} is changed twice in one commit")
        seen.add(key)


def _check_put(before: Object | None, obj: Object, writer: Writer, version: int, now_ms: int) -> Object:
    known = obj.meta.version
    if before is None:
        if known:
            raise VersionConflict(f"{name_of(obj)} no longer exists")
        created_ms = now_ms
    else:
        if not known:
            raise VersionConflict(f"{name_of(obj)} already exists")
        if known != before.meta.version:
            raise VersionConflict(
                f"{name_of(obj)} has changed meanwhile (read at version {known}, now {before.meta.version})"
            )
        created_ms = before.meta.created_ms
    if isinstance(obj, Task):
        assert before is None or isinstance(before, Task)
        _check_task(before, obj, writer)
    return msgspec.structs.replace(obj, meta=Meta(version=version, created_ms=created_ms, updated_ms=now_ms))


def _check_delete(before: Object | None, change: Delete, writer: Writer) -> Object:
    if before is None:
        raise VersionConflict(f"{_words(change.cls)} {change.id} no longer exists")
    if change.version not in (0, before.meta.version):
        raise VersionConflict(
            f"{name_of(before)} has changed meanwhile (read at version {change.version}, now {before.meta.version})"
        )
    if isinstance(before, Task) and not may_delete(before.status.state, before.desired_state):
        raise ForbiddenTransition(
            f"{name_of(before)} cannot be removed by the {writer.value} while it is {_state(before.status.state)}"
            f" and wanted {_state(before.desired_state)}"
        )
    return before


# --- tasks --------------------------------------------------------------------------------------------------------


def _check_task(before: Task | None, task: Task, writer: Writer) -> None:
    if TaskState.ASSIGNED <= task.status.state <= TaskState.RUNNING and not task.node_id:
        raise ForbiddenTransition(f"{name_of(task)} cannot be {_state(task.status.state)} without a node")
    if before is None:
        _check_new_task(task, writer)
        return
    if (task.service_id, task.slot) != (before.service_id, before.slot):
        raise ForbiddenTransition(f"{name_of(before)} cannot move to another service or slot: tasks are replaced")
    if before.node_id and task.node_id != before.node_id:
        raise ForbiddenTransition(f"{name_of(before)} cannot move to another node: tasks are replaced")
    if not may_observe(writer, before.status.state, task.status.state):
        raise ForbiddenTransition(
            f"the {writer.value} may not take {name_of(before)} from {_state(before.status.state)}"
            f" to {_state(task.status.state)}"
        )
    if not may_desire(writer, before.desired_state, task.desired_state):
        raise ForbiddenTransition(
            f"the {writer.value} may not want {name_of(before)} {_state(task.desired_state)}"
            f" when it is wanted {_state(before.desired_state)}"
        )


def _check_new_task(task: Task, writer: Writer) -> None:
    """A life begins at NEW, with its orchestrator, and is wanted to run sooner or later."""
    if writer is not Writer.ORCHESTRATOR:
        raise ForbiddenTransition(f"the {writer.value} may not create {name_of(task)}")
    if task.status.state is not TaskState.NEW:
        raise ForbiddenTransition(f"{name_of(task)} cannot be created as {_state(task.status.state)}")
    if task.desired_state not in DESIRED_STATES or task.desired_state > RUNNABLE_TO:
        raise ForbiddenTransition(f"{name_of(task)} cannot be created to be {_state(task.desired_state)}")


# --- claims -------------------------------------------------------------------------------------------------------


def _check_claims(after: Snapshot, rekeyed: Iterable[Event]) -> None:
    """Refuse a second holder of anything that was claimed here; what was there before has been checked before."""
    for change in rekeyed:
        if change.after is None:
            continue
        held = claims(change.before) if change.before is not None else set()
        for claim in sorted(claims(change.after) - held):
            holders = after.claimants(*claim)
            if len(holders) > 1:
                other = next(h for h in holders if h is not change.after)
                raise _conflict(claim, change.after, other)


def _conflict(claim: Claim, obj: Object, other: Object) -> StoreError:
    space, value = claim
    match space:
        case "cluster":
            return NameConflict(f"there is a cluster already: {name_of(other)}")
        case "network name" | "service name":
            return NameConflict(f"{name_of(obj)} already exists")
        case "node number":
            return NumberConflict(f"{name_of(obj)} cannot have number {value}: already used by {name_of(other)}")
        case "vni":
            return NumberConflict(f"{name_of(obj)} cannot have VXLAN id {value}: already used by {name_of(other)}")
        case "address":
            address = value.partition(" ")[2]
            return AddressConflict(f"{name_of(obj)} cannot have address {address}: {_holds(other)}")
        case "port":
            port = value.removesuffix("/tcp")
            return PortConflict(f"cannot publish port {port} of {name_of(obj)}: already used by {name_of(other)}")


def _holds(other: Object) -> str:
    return "it is at rest" if isinstance(other, RestingAddress) else f"already used by {name_of(other)}"


# --- words --------------------------------------------------------------------------------------------------------


def name_of(obj: Object) -> str:
    """The object as a user knows it: `service "web"`."""
    match obj:
        case Cluster():
            return f'cluster "{obj.spec.name}"'
        case Node():
            return f'node "{obj.description.hostname or obj.id}"'
        case Network():
            return f'network "{obj.spec.name}"'
        case Service():
            return f'service "{obj.spec.name}"'
        case Task():
            return f'task "{obj.service_name}.{obj.slot}" ({obj.id})'
        case RestingAddress():
            return f"resting address {obj.address}"
        case Lease():
            return f"the lease of {obj.block or 'addresses'} to node {obj.node_id}"
        case Attachment():
            return f'container "{obj.name}"'
        case Authority():
            return "the cluster's certificate authority"
        case User():
            return f'user "{obj.id}"'


def _words(cls: type[Object]) -> str:
    return KIND_OF[cls].replace("_", " ")


def _state(state: TaskState) -> str:
    return state.name.lower()
