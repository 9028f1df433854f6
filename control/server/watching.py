"""What one caller of Watch is told. Pure: commits in, events out.

It keeps which objects the caller knows, so that one that no longer passes the filter is taken away again, and so that
a caller that fell behind is told just what has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from control.model import Object
from control.rpc import control_pb2 as pb
from control.server.filters import Predicate
from control.server.objects import to_wire
from control.store.tables import Event, Snapshot

Told = tuple["pb.Event.Action.ValueType", Object]


class Watching:
    """The state of one watch: what the caller knows."""

    def __init__(self, cls: type[Object], passes: Predicate) -> None:
        self._cls, self._passes = cls, passes
        self._known: dict[str, Object] = {}

    def begin(self, snapshot: Snapshot) -> Iterator[Told]:
        """What is there already."""
        for obj in snapshot.all(self._cls):
            if self._passes(obj):
                self._known[obj.id] = obj
                yield pb.Event.PRESENT, obj

    def follow(self, events: Iterable[Event]) -> Iterator[Told]:
        """What a commit changes."""
        for event in events:
            if isinstance(event.object, self._cls):
                yield from self._become(event.object.id, event.after)

    def resync(self, snapshot: Snapshot) -> Iterator[Told]:
        """What has changed since the caller was last told anything."""
        for obj_id in [i for i in self._known if snapshot.get(self._cls, i) is None]:
            yield from self._become(obj_id, None)
        for obj in snapshot.all(self._cls):
            if self._known.get(obj.id) is not obj:
                yield from self._become(obj.id, obj)

    def _become(self, obj_id: str, after: Object | None) -> Iterator[Told]:
        before = self._known.get(obj_id)
        if after is not None and self._passes(after):
            self._known[obj_id] = after
            if before is None:
                yield pb.Event.CREATED, after
            elif before.meta.version != after.meta.version:
                yield pb.Event.UPDATED, after
        elif before is not None:
            del self._known[obj_id]
            yield pb.Event.REMOVED, before


def message(told: Told) -> pb.Event:
    """One event as it goes over the wire."""
    return pb.Event(action=told[0], object=to_wire(told[1]))
