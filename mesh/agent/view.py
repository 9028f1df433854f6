"""What one node knows: the records its manager sent, and the state of its own tasks. Pure values.

The records are kept as the dispatcher numbers them: complete once, then differences. A gap is an error of the
stream, and the cure is to start over (`SequenceGap`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Protocol, TypeVar, cast

from control.assignment import Key, Peer, Record, RecordKind, Settings, key_of
from control.lifecycle import TaskState
from control.model import Node, Task

R = TypeVar("R", bound=Record)

# So many messages back it is remembered what each changed: between two plans there are few, and whoever asks for more
# compares everything.
STEPS_MAX = 64


class SequenceGapError(Exception):
    """A difference arrived that does not apply to what we hold; the session has to start over."""


@dataclass(frozen=True, slots=True)
class LocalTask:
    """What this node knows of a task of its own, fresher than what the managers have heard."""

    state: TaskState
    netns: str | None  # path of its namespace, once prepared
    draining: bool = False  # asked to stop, still serving open connections
    interface: str = ""  # of a container of others: the interface's name in its namespace, instead of eth0, eth1, …
    handed: bool = False  # or its engine takes the interface from the host
    default_route: bool = False  # of such a container: whether it gets one from us


class _Mark:
    """Tells one state of the records from all others."""


@dataclass(frozen=True, slots=True)
class _Step:
    """The keys that a message may have changed, in the state that `before` marks."""

    before: _Mark
    keys: frozenset[Key]


@dataclass(frozen=True, slots=True)
class Assignments:
    """The records in force. `sequence` 0: nothing heard yet in this session."""

    sequence: int = 0
    records: Mapping[Key, Record] = field(default_factory=lambda: MappingProxyType({}))
    _steps: tuple[_Step, ...] = field(default=(), compare=False, repr=False)
    _mark: _Mark = field(default_factory=_Mark, compare=False, repr=False)
    _sorted: dict[RecordKind, tuple[Record, ...]] = field(default_factory=dict, compare=False, repr=False)

    def updated(
        self, applies_to: int, results_in: int, records: Iterable[Record], removed: Iterable[Key]
    ) -> Assignments:
        """These assignments after one message of the dispatcher. Raises SequenceGapError."""
        if applies_to not in (0, self.sequence):
            raise SequenceGapError(f"got a difference on top of {applies_to}, have {self.sequence}")
        gone, news = list(removed), {key_of(record): record for record in records}
        if not applies_to:
            return Assignments(results_in, MappingProxyType(news))
        return self._with(results_in, news, gone)

    def restarted(self) -> Assignments:
        """The same records in a new session."""
        return replace(self, sequence=0)

    def beside(self, more: Mapping[Key, Record]) -> Assignments:
        """These assignments with further records, which come from elsewhere."""
        return self._with(self.sequence, more, ())

    def _with(self, sequence: int, news: Mapping[Key, Record], gone: Iterable[Key]) -> Assignments:
        # As a mapping proxy it would be read key by key; its own copy is one of memory.
        held = self.records.copy() if isinstance(self.records, MappingProxyType) else dict(self.records)
        for key in gone:
            held.pop(key, None)
        held.update(news)
        keys = frozenset((*news, *gone))
        touched = {kind for kind, _ in keys}
        kept = {kind: found for kind, found in self._sorted.items() if kind not in touched}
        steps = (*self._steps, _Step(self._mark, keys))[-STEPS_MAX:]
        return Assignments(sequence, MappingProxyType(held), steps, _sorted=kept)

    def changed_since(self, before: Assignments) -> Iterable[Key]:
        """At least the keys whose records are not those of `before`: few if they have a common past, or else all."""
        if self.records is before.records:
            return ()
        here = {mark: at for at, mark in enumerate(self._past())}
        for at, mark in reversed(list(enumerate(before._past()))):
            if mark in here:
                since = (*before._steps[at:], *self._steps[here[mark] :])
                return frozenset().union(*(step.keys for step in since))
        return self.records.keys() | before.records.keys()

    def _past(self) -> list[_Mark]:
        """The states it came from, and itself."""
        return [*(step.before for step in self._steps), self._mark]

    def of(self, kind: RecordKind, cls: type[R]) -> list[R]:
        """All records of a kind, in the order of their keys, so that plans do not depend on arrival."""
        found = self._sorted.get(kind)
        if found is None:
            found = tuple(self.records[key] for key in sorted(k for k in self.records if k[0] == kind))
            self._sorted[kind] = found
        return cast("list[R]", list(found))

    def settings(self) -> Settings | None:
        """The cluster's settings; None before the first message ever."""
        return cast("Settings | None", self.records.get(("settings", "")))

    def task(self, task_id: str) -> Task | None:
        """A task of this node by id."""
        return cast("Task | None", self.records.get(("task", task_id)))

    def own_node(self) -> Node | None:
        """This node, as constraints look at it."""
        return next(iter(self.of("node", Node)), None)

    def peer(self, node_id: str) -> Peer | None:
        """A node of the cluster by id."""
        return cast("Peer | None", self.records.get(("peer", node_id)))


Liveness = Literal["alive", "suspect", "dead"]


@dataclass(frozen=True, slots=True)
class Told:
    """What a task's own node says of it by gossip. It only qualifies an endpoint that the store has placed there."""

    serving: Literal["ready", "draining", "hidden"]
    weight: int = 1


class Said(Protocol):
    """All that a node says of its own tasks."""

    def get(self, task_id: str) -> Told | None:
        """What it says of one; None: nothing."""


@dataclass(frozen=True, slots=True)
class Rumours:
    """What gossip says, which is faster than the managers and can invent nothing.

    `nodes`: node id -> whether it lives; absent: not heard of. `tasks`: node id -> what it says of its own tasks.
    `strangers`: members that are no nodes of the cluster: name -> address.
    """

    nodes: Mapping[str, Liveness] = field(default_factory=dict)
    tasks: Mapping[str, Said] = field(default_factory=dict)
    strangers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """The whole input of `compile`."""

    node_id: str
    data_address: str
    netns_dir: str
    assignments: Assignments
    tasks: Mapping[str, LocalTask]  # own tasks by id
    dns_listen: tuple[str, int] | None = None  # where the host asks for names
    rumours: Rumours = field(default_factory=Rumours)
    hosts_others: bool = False  # containers of others ask for names at one address on every network
