"""What the Serf layer is given, what it needs of SWIM, and the events that come out of it. Values only."""

from __future__ import annotations

import msgspec

from gossip.profile import Profile
from gossip.serf.keys import KeyResult
from gossip.serf.messages import Query
from gossip.serf.queries import QueryAnswer, QueryDone
from gossip.serf.roster import MemberChange

EVENT_BYTES_MAX = 512  # name and payload of an event, and the whole of it on the wire: Serf's default
QUERY_BYTES_MAX = 1024
RESPONSE_BYTES_MAX = 1024
DAY_S = 24 * 3600.0  # Serf's ReconnectTimeout and TombstoneTimeout


class UserEventSeen(msgspec.Struct, frozen=True):
    """An event, from here or from elsewhere."""

    ltime: int
    name: str
    payload: bytes
    coalesce: bool


class QuerySeen(msgspec.Struct, frozen=True):
    """A query that this node may answer by `SerfCore.respond` until the deadline."""

    query: Query
    deadline_s: float


class KeyDone(msgspec.Struct, frozen=True):
    """All have answered a key query of this node, or its time is over."""

    query: int
    result: KeyResult


class ConflictOver(msgspec.Struct, frozen=True):
    """The vote about this node's name: whether this node keeps it."""

    kept: bool
    matching: int
    responses: int


Event = MemberChange | UserEventSeen | QuerySeen | QueryAnswer | QueryDone | KeyDone | ConflictOver


class Refused(ValueError):
    """What was asked for cannot be done; the text is for the user."""


class SerfConfig(msgspec.Struct, frozen=True):
    """What does not change while a node runs."""

    name: str
    profile: Profile
    reconnect_timeout_s: float = DAY_S
    tombstone_timeout_s: float = DAY_S
    event_bytes_max: int = EVENT_BYTES_MAX
    query_bytes_max: int = QUERY_BYTES_MAX
    response_bytes_max: int = RESPONSE_BYTES_MAX
    resolve_conflicts: bool = True
