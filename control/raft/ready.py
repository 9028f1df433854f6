"""What goes into the core and comes out of it, beside messages.

**The order of things** (reference/raft-and-store.md 2.2). For each `Ready`, in the order in which they were taken:

1. `messages` may leave at once, and while the disk works.
2. `snapshot`: its file is there already (the transport has brought it). Make it durable, only then let the log speak of
   it, and hand the disk nothing later before that is done; put its state in place of the state machine's.
3. `entries` replace those at their index and above; they and `hard_state` go to the disk as one write, all or nothing
   (a configuration must not be known to be in the log and forgotten to be committed). `must_sync` False: may be lazy.
4. When all of that is durable, and so is every earlier Ready: send `messages_after`, and call `Core.advance(number)`.
   Later ones may be taken and their writes begun meanwhile. A Ready with `to_disk` False has nothing for this.
5. `committed` may be applied at once: they are durable here and agreed on. Before the next call of the core.

A write that fails is the end of the process, never tried again: nobody knows what is on the disk then (rule 4).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from control.raft.configuration import Configuration, Reset, encode
from control.raft.messages import Message
from control.store.record import Entry, HardState, SnapshotMeta

NOTHING_PROMISED = HardState()


class Kind(enum.IntEnum):
    """Of an entry."""

    DATA = 0
    CHANGE = 1  # of the configuration: a `ConfChange`
    NOOP = 2  # the first of a leader


class Role(enum.Enum):
    """What a member is at the moment. Learners and removed members are followers that never campaign."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Inconsistent(Exception):
    """What must not be: data that was promised is gone, or two leaders disagree. The process must end."""


@dataclass(frozen=True, slots=True)
class Options:
    """Times in ticks, sizes in bytes."""

    tick_s: float = 0.1
    # 200 ms: a Python process can be held up for tens of them by its collector.
    heartbeat_ticks: int = 2
    # 1.5 to 3 s, drawn anew for each term: seven heartbeats may get lost.
    election_ticks: int = 15
    # An entry holds at most 1.5 MiB of objects; one message holds at least one entry.
    append_bytes: int = 1024 * 1024
    # To one member, unanswered: some 100 ms of a gigabit link.
    inflight_messages: int = 256
    inflight_bytes: int = 8 * 1024 * 1024
    # Proposed and not committed: refused beyond that, not queued without bound (case 20).
    uncommitted_bytes: int = 32 * 1024 * 1024
    # Given out to be applied at once: a heartbeat must get in between.
    apply_bytes: int = 2 * 1024 * 1024
    # Unanswered questions for a read index, here.
    reads_max: int = 4096


@dataclass(frozen=True, slots=True)
class Restored:
    """What the disk holds at the start. `entries` follow (base_index, base_term), at most `snapshot.index`."""

    hard_state: HardState = NOTHING_PROMISED
    snapshot: SnapshotMeta | None = None
    base_index: int = 0
    base_term: int = 0
    entries: Sequence[Entry] = ()


def bootstrap(configuration: Configuration) -> Restored:
    """The disk of the first manager of a new cluster: write it (hard state and entries) before anything else."""
    entry = Entry(1, 1, Kind.CHANGE, encode(Reset(configuration)))
    return Restored(HardState(1, "", 1), None, 0, 0, (entry,))


@dataclass(frozen=True, slots=True)
class SoftState:
    """Who leads, as far as known. `leading`: this member does, and has given out everything of earlier terms."""

    role: Role
    term: int
    leader: str  # member id, "" unknown
    leading: bool


class ReadState(msgspec.Struct, frozen=True, gc=False):
    """The answer to `Core.read_index`: once `index` is applied, a read is linearizable. None: ask again."""

    read_id: int
    index: int | None


class Ready(msgspec.Struct, frozen=True):
    """See the module."""

    number: int
    to_disk: bool  # whether `advance` is waited for
    hard_state: HardState | None
    entries: tuple[Entry, ...]
    snapshot: SnapshotMeta | None
    must_sync: bool
    messages: tuple[Message, ...]
    messages_after: tuple[Message, ...]
    committed: tuple[Entry, ...]
    reads: tuple[ReadState, ...]
    soft_state: SoftState | None  # None: as before


class Why(enum.Enum):
    """Reasons of a refusal."""

    NOT_LEADER = "this manager does not lead"
    TRANSFERRING = "the leadership is just being handed over"
    TOO_MUCH = "too much is proposed and not agreed on yet"
    NOT_YET = "the leader has not agreed on anything in its term yet"
    CHANGE_PENDING = "another change of the managers is under way"
    MISTAKE = "that change makes no sense"
    LEADS = "that manager leads: have it hand the leadership over first"
    QUORUM = "those who are left, and can be reached, would not be a majority"
    NOT_CAUGHT_UP = "that manager does not have everything yet"


@dataclass(frozen=True, slots=True)
class Refusal:
    """It was not done, and will not be. `leader` is whom to ask instead, if known."""

    why: Why
    leader: str = ""
    text: str = ""


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """It is in the leader's log; if (index, term) is committed, so is it. `index` is that of the last one."""

    index: int
    term: int


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """How far another member is, as its leader sees it."""

    id: str
    state: str
    match: int
    silent_ticks: int


@dataclass(frozen=True, slots=True)
class Status:
    """For `mesh quorum status`, and tests."""

    id: str
    soft: SoftState
    vote: str
    commit: int
    applied: int
    last_index: int
    first_index: int
    configuration: Configuration
    peers: tuple[PeerStatus, ...]
    late_ticks: int  # that were skipped, because the process was held up
    dropped: int  # messages that were not from, or for, a member
