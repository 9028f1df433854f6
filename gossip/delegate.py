"""What the SWIM core and the layer above it (Serf's, or a test) say to each other: values, and one Protocol.

`swim.Swim` is given a `Delegate` and calls it, synchronously, while it handles a packet, a stream or a timer; a
delegate may call back into `Swim` (what `Membership` lists) from within. Neither side does I/O: what is to be sent
comes out of `Swim.drain()`. Names are memberlist's: NodeMeta, NotifyMsg, GetBroadcasts, LocalState, MergeRemoteState,
AckPayload, NotifyPingComplete, NotifyConflict, NotifyMerge, NotifyAlive are the methods of `Delegate`, in this order.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import msgspec

META_MAX = 512  # bytes of a member's meta (memberlist's MetaMaxSize): it is in every alive message


class Address(NamedTuple):
    """Where packets and streams go. `host` is an IPv4 or IPv6 address as text, never a name."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class State(enum.IntEnum):
    """Of a member, as on the wire of push/pull."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


class Member(msgspec.Struct, frozen=True, gc=False):
    """One member as known here; replaced, never changed, so that it may be kept and compared by identity."""

    name: str
    address: Address
    meta: bytes  # at most META_MAX
    versions: bytes  # six: protocol min, max, current; the delegate's min, max, current
    incarnation: int
    state: State
    since_s: float  # when the state was entered, by the clock of `now`


class Change(enum.Enum):
    """What happened to a member."""

    JOINED = "joined"  # unknown, dead or left before; now alive
    UPDATED = "updated"  # alive before and after, with another meta or address
    SUSPECTED = "suspected"
    REFUTED = "refuted"  # alive again after suspicion
    FAILED = "failed"
    LEFT = "left"
    REAPED = "reaped"  # forgotten by the core; the layer above may remember it for longer


class MemberEvent(msgspec.Struct, frozen=True, gc=False):
    """A change, with the member after it and before it (None: unknown before)."""

    change: Change
    member: Member
    before: Member | None


class Delegate(Protocol):
    """The layer above. Every method is called from within the core and must neither block nor take long."""

    def node_meta(self) -> bytes:
        """This node's meta, at most META_MAX bytes. Asked at the start and by `Swim.update_meta`."""
        ...

    def user_message(self, message: bytes, now: float) -> None:
        """A message for this layer came, by packet or by stream. The first byte is the layer's own type."""
        ...

    def broadcasts(self, overhead: int, limit: int) -> Sequence[bytes]:
        """Messages to put into a packet: the sum of their lengths plus `overhead` for each is at most `limit`.

        Called for each packet that has room; who returns a message counts it as sent once (broadcasts.Broadcasts does).
        """
        ...

    def has_broadcasts(self, fresh: bool) -> bool:
        """Whether `broadcasts` would have something for an empty packet; `fresh`: something that was never sent.

        Asked after each packet: must be cheap.
        """
        ...

    def local_state(self, join: bool) -> bytes:
        """What to send in a push/pull; `join`: it is the first one with that cluster."""
        ...

    def merge_remote_state(self, state: bytes, join: bool, now: float) -> None:
        """What another node sent in a push/pull (never called for an empty state). Bad bytes are its to count."""
        ...

    def ack_payload(self) -> bytes:
        """What to put into acks of direct pings (Serf: this node's coordinate). May be empty."""
        ...

    def ping_complete(self, member: Member, rtt_s: float, payload: bytes, now: float) -> None:
        """A direct ping of `member` came back within time, with its payload, by UDP."""
        ...

    def conflict(self, existing: Member, other: Member, now: float) -> None:
        """Somebody at another address uses a name that is taken; `existing` may be this node itself."""
        ...

    def refuse_merge(self, peers: Sequence[Member]) -> str | None:
        """The reason not to merge with the cluster of these peers, or None. Asked once for each joining push/pull."""
        ...

    def refuse_alive(self, peer: Member) -> str | None:
        """The reason not to admit this peer, or None. Asked for each alive message that would change something."""
        ...

    def member_changed(self, event: MemberEvent, now: float) -> None:
        """A member joined, left, failed, and so on. Not called about this node itself."""
        ...


class Membership(Protocol):
    """What the layer above may ask of the core; `swim.Swim` is one. `now` is the time of the call."""

    @property
    def me(self) -> Member:
        """This node, as others are told of it."""
        ...

    @property
    def alive_count(self) -> int:
        """Members alive or suspected, this node included: the N of all formulas."""
        ...

    @property
    def retransmits(self) -> int:
        """How many times a broadcast is to be sent by each node: for `Broadcasts.take` of the layer's own queues."""
        ...

    def member(self, name: str) -> Member | None: ...

    def members(self) -> Collection[Member]:
        """All that are known, this node included, dead and left ones until they are reaped."""
        ...

    def send_user(self, to: Address, message: bytes, now: float) -> bool:
        """Send a message to one node by packet, once, best effort. False: longer than a packet takes, not sent."""
        ...

    def send_user_stream(self, to: Address, message: bytes, now: float) -> None:
        """Send a message to one node by a stream; a failure is only counted."""
        ...

    def update_meta(self, now: float) -> None:
        """Ask the delegate for this node's meta again and tell everybody."""
        ...

    def join(self, seeds: Sequence[Address], now: float) -> None:
        """Push/pull with each of these, and keep trying those that nobody alive answers at, for ever."""
        ...

    def reached(self, seed: Address) -> bool:
        """Whether somebody answered at this address since it was last joined, or a member lives there."""
        ...

    def leave(self, now: float) -> None:
        """Tell everybody that this node leaves; `left` turns true when enough have been told."""
        ...

    @property
    def left(self) -> bool: ...

    def forget(self, name: str, now: float) -> None:
        """Turn a failed member into one that left (Serf's force-leave), here and, by gossip, everywhere."""
        ...


class NullDelegate:
    """Membership and nothing else: for the core on its own, and to derive from in tests."""

    def node_meta(self) -> bytes:
        return b""

    def user_message(self, message: bytes, now: float) -> None:
        del message, now

    def broadcasts(self, overhead: int, limit: int) -> Sequence[bytes]:
        del overhead, limit
        return ()

    def has_broadcasts(self, fresh: bool) -> bool:
        del fresh
        return False

    def local_state(self, join: bool) -> bytes:
        del join
        return b""

    def merge_remote_state(self, state: bytes, join: bool, now: float) -> None:
        del state, join, now

    def ack_payload(self) -> bytes:
        return b""

    def ping_complete(self, member: Member, rtt_s: float, payload: bytes, now: float) -> None:
        del member, rtt_s, payload, now

    def conflict(self, existing: Member, other: Member, now: float) -> None:
        del existing, other, now

    def refuse_merge(self, peers: Sequence[Member]) -> str | None:
        del peers
        return None

    def refuse_alive(self, peer: Member) -> str | None:
        del peer
        return None

    def member_changed(self, event: MemberEvent, now: float) -> None:
        del event, now
