"""What managers say to each other, as frozen structs; the transport's codec takes `Message` as it is.

**Before or after the sync.** A message that promises something (a vote, "I have these entries", a new term) may leave
only when what it promises is durable; any other may leave at once. `EARLY` of each class says which it is, and
`Core.ready` sorts by it: there is no other place that decides (reference/raft-and-store.md 2.2, rule 1).

Senders and receivers are *member ids* (`control.raft.configuration`): a node that lost its disk joins as another.
Source of the protocol: Ongaro's thesis, chapters 3, 4, 6, 9.6 and 10.2.1.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from control.raft.configuration import node_of
from control.store.record import Entry, SnapshotMeta

# Of an encoded message beside its entries: two ids of some 30 bytes and a few numbers.
HEAD_BYTES = 96
# Of an encoded entry beside its data.
ENTRY_BYTES = 16


class Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What every message begins with. `term` is the sender's, but for PreVote and a granted PreVoteReply."""

    EARLY: ClassVar[bool] = False  # whether it may leave before what is known to the sender is durable
    URGENT: ClassVar[bool] = True  # whether it goes ahead of entries
    sender: str
    receiver: str
    term: int


class PreVote(Head, frozen=True, array_like=True, gc=False, tag=1):
    """Would you vote for me in `term`, which I have not entered? Promises nothing."""

    EARLY = True
    last_index: int
    last_term: int


class PreVoteReply(Head, frozen=True, array_like=True, gc=False, tag=2):
    """Granted: `term` is the one asked for. Otherwise it is the sender's own."""

    granted: bool


class Vote(Head, frozen=True, array_like=True, gc=False, tag=3):
    """Vote for me. The candidate's own vote must be durable first: it could vote for another after a crash."""

    last_index: int
    last_term: int
    transfer: bool = False  # the leader asked for this election: its lease does not protect it


class VoteReply(Head, frozen=True, array_like=True, gc=False, tag=4):
    """The vote must survive a crash of the voter."""

    granted: bool


class Append(Head, frozen=True, array_like=True, gc=False, tag=5):
    """Entries that follow (prev_index, prev_term). Early: a leader writes its own log at the same time, and counts
    itself only when that is done (thesis 10.2.1)."""

    EARLY = True
    URGENT = False
    prev_index: int
    prev_term: int
    commit: int
    entries: tuple[Entry, ...] = ()


class AppendReply(Head, frozen=True, array_like=True, gc=False, tag=6):
    """Everything up to `index` is the leader's, and durable here."""

    URGENT = False
    index: int


class AppendRefusal(Head, frozen=True, array_like=True, gc=False, tag=7):
    """There is nothing, or another entry, at `prev_index`. (hint_index, hint_term) is where the logs may meet."""

    URGENT = False
    prev_index: int
    hint_index: int
    hint_term: int


class Heartbeat(Head, frozen=True, array_like=True, gc=False, tag=8):
    """`commit` never goes beyond what the receiver has acknowledged. `round` counts questions "do I still lead?"."""

    EARLY = True
    commit: int
    round: int


class HeartbeatReply(Head, frozen=True, array_like=True, gc=False, tag=9):
    """Early: that this member knows no later term now cannot become untrue by a crash. `reluctant`: it had better not
    lead. A version that does not know of that leaves it out, or does not look at it."""

    EARLY = True
    round: int
    reluctant: bool = False


class TermOver(Head, frozen=True, array_like=True, gc=False, tag=10):
    """To one who still leads an earlier term: it must not hold a member in a later term off for ever (case 8)."""


class InstallSnapshot(Head, frozen=True, array_like=True, gc=False, tag=11):
    """The entries that the receiver needs are gone: here is the state. Its bytes go by the transport's chunks; the
    receiver's core hears of it when it has them all."""

    EARLY = True
    URGENT = False
    snapshot: SnapshotMeta


class TimeoutNow(Head, frozen=True, array_like=True, gc=False, tag=12):
    """Lead in my place: campaign at once (thesis 3.10)."""

    EARLY = True


class ReadRequest(Head, frozen=True, array_like=True, gc=False, tag=13):
    """At which index may I read? `read_id` is never used twice, also not for a retry (etcd #20418)."""

    EARLY = True
    read_id: int


class ReadReply(Head, frozen=True, array_like=True, gc=False, tag=14):
    """A quorum has confirmed the leader after the request came: whoever has applied `index` may read."""

    EARLY = True
    read_id: int
    index: int


Message = (
    PreVote
    | PreVoteReply
    | Vote
    | VoteReply
    | Append
    | AppendReply
    | AppendRefusal
    | Heartbeat
    | HeartbeatReply
    | TermOver
    | InstallSnapshot
    | TimeoutNow
    | ReadRequest
    | ReadReply
)


def entries_bytes(entries: tuple[Entry, ...]) -> int:
    """About how long they are encoded."""
    return sum(len(entry.data) + ENTRY_BYTES for entry in entries)


# --- for the transport (`control.transport.codec.StructCodec`) --------------------------------------------------------


def size_bytes(message: Message) -> int:
    """About how long it is encoded."""
    match message:
        case Append(entries=entries):
            return HEAD_BYTES + entries_bytes(entries)
        case InstallSnapshot(snapshot=snapshot):
            return HEAD_BYTES + len(snapshot.data)
        case _:
            return HEAD_BYTES


def ends(message: Message) -> tuple[str, str]:
    """The nodes that it is from and for."""
    return node_of(message.sender), node_of(message.receiver)


def urgent(message: Message) -> bool:
    """Whether it goes ahead of entries: heartbeats, votes, and what answers them."""
    return message.URGENT
