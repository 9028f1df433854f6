"""What the core of the dispatcher (`sessions`) is fed, and what it hands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from control.dispatcher.patience import Rumour
from control.dispatcher.writes import Write
from control.model import NodeState
from control.rpc import control_pb2 as pb
from control.store.tables import Event as StoreEvent
from control.store.tables import Snapshot

Code = Literal["UNAUTHENTICATED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE"]


# --- in -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream is there. `address` is the peer's, as seen from here."""

    stream: int
    address: str


@dataclass(frozen=True, slots=True)
class Heard:
    stream: int
    message: pb.NodeMessage


@dataclass(frozen=True, slots=True)
class Sent:
    """A message of a `Send` has left."""

    stream: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The stream is gone."""

    stream: int


@dataclass(frozen=True, slots=True)
class Committed:
    """The store has changed. `snapshot` is of that version or a newer one."""

    snapshot: Snapshot
    version: int
    events: tuple[StoreEvent, ...]


@dataclass(frozen=True, slots=True)
class Resynced:
    """The store has changed in ways that are not told."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Written:
    """The `Write` of this number is durable."""

    number: int


@dataclass(frozen=True, slots=True)
class Rumoured:
    """What gossip says of the nodes, by id, as this manager hears it. One that is not named counts as alive."""

    nodes: Mapping[str, Rumour]


Event = Opened | Heard | Sent | Closed | Committed | Resynced | Written | Rumoured


# --- out ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    stream: int
    message: pb.ManagerMessage


@dataclass(frozen=True, slots=True)
class Close:
    """End the stream with this status; messages not yet sent are dropped."""

    stream: int
    code: Code
    sentence: str


Output = Send | Close | Write


@dataclass(frozen=True, slots=True)
class Status:
    """For metrics and `mesh status`."""

    streams: int
    sessions: int
    nodes: dict[NodeState, int]
    version: int  # of the store, as told to the nodes
    counters: dict[str, int]
