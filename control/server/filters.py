"""`--filter key=value`, as in Docker. Pure.

Keys are AND-ed, values of one key OR-ed. Names and ids match by their beginning, labels as `key` or `key=value`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from control.lifecycle import DESIRED_STATES, TaskState
from control.model import KIND_OF, Attachment, Cluster, Network, Node, Object, Service, Task, User
from control.server.references import find
from control.server.refusal import Refusal
from control.store.tables import Snapshot

Predicate = Callable[[Object], bool]
Matcher = Callable[[Any, str], bool]  # (object of its kind, value)

# A request with more is a mistake, not a question.
VALUES_MAX = 1000


def _label(labels: Mapping[str, str], value: str) -> bool:
    key, equals, wanted = value.partition("=")
    return key in labels and (not equals or labels[key] == wanted)


def _mode(service: Service) -> str:
    return "global" if service.spec.mode.global_ is not None else "replicated"


_MATCHERS: dict[type[Object], dict[str, Matcher]] = {
    Cluster: {},
    Node: {
        "id": lambda node, v: node.id.startswith(v),
        "name": lambda node, v: node.description.hostname.startswith(v),
        "role": lambda node, v: node.spec.role == v,
        "label": lambda node, v: _label(node.spec.labels, v),
    },
    Network: {
        "id": lambda network, v: network.id.startswith(v),
        "name": lambda network, v: network.spec.name.startswith(v),
        "label": lambda network, v: _label(network.spec.labels, v),
    },
    Service: {
        "id": lambda service, v: service.id.startswith(v),
        "name": lambda service, v: service.spec.name.startswith(v),
        "label": lambda service, v: _label(service.spec.labels, v),
        "mode": lambda service, v: _mode(service) == v,
    },
    Task: {
        "id": lambda task, v: task.id.startswith(v),
        "name": lambda task, v: f"{task.service_name}.{task.slot}".startswith(v),
        "service": lambda task, v: v in (task.service_id, task.service_name),
        "node": lambda task, v: task.node_id == v,
        "desired-state": lambda task, v: task.desired_state.name.lower() == v,
    },
    User: {"name": lambda user, v: user.id.startswith(v)},
    Attachment: {
        "id": lambda attachment, v: attachment.id.startswith(v),
        "name": lambda attachment, v: attachment.name.startswith(v),
        "network": lambda attachment, v: attachment.network_id == v,
        "node": lambda attachment, v: attachment.node_id == v,
        "service": lambda attachment, v: attachment.service == v,
    },
}
# Keys whose values are words of ours; anything else is a slip.
_WORDS: dict[str, frozenset[str]] = {
    "role": frozenset({"manager", "worker"}),
    "mode": frozenset({"replicated", "global"}),
    "desired-state": frozenset(state.name.lower() for state in DESIRED_STATES if state is not TaskState.COMPLETE),
}


def predicate(snapshot: Snapshot, cls: type[Object], filters: Mapping[str, Sequence[str]]) -> Predicate:
    """Whether an object of `cls` passes. Services and nodes of tasks may be any reference, as of `snapshot`.

    Raises Refusal.
    """
    chosen: list[tuple[Matcher, tuple[str, ...]]] = []
    if sum(len(values) for values in filters.values()) > VALUES_MAX:
        raise Refusal("INVALID_ARGUMENT", f"more than {VALUES_MAX} filter values")
    for key, values in filters.items():
        matcher = _MATCHERS[cls].get(key)
        if matcher is None:
            known = ", ".join(_MATCHERS[cls]) or "none"
            raise Refusal("INVALID_ARGUMENT", f'{KIND_OF[cls]}s have no filter "{key[:40]}": there are {known}')
        chosen.append((matcher, tuple(_value(snapshot, cls, key, value) for value in values)))
    return lambda obj: all(any(matches(obj, value) for value in values) for matches, values in chosen)


def _value(snapshot: Snapshot, cls: type[Object], key: str, value: str) -> str:
    words = _WORDS.get(key)
    if words is not None and value not in words:
        raise Refusal("INVALID_ARGUMENT", f"filter {key}={value[:40]}: must be one of {', '.join(sorted(words))}")
    try:
        if cls is Task and key == "service":
            return find(snapshot, Service, value).id
        if key == "node":
            return find(snapshot, Node, value).id
        if key == "network":
            return find(snapshot, Network, value).id
    except Refusal as refusal:
        if refusal.code != "NOT_FOUND":
            raise
    return value  # also of a service that is gone while its last tasks are still here
