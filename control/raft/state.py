"""What a member knows, and the transitions that every role shares.

The roles are modules of functions over it: `follower`, `election`, `leader`; `core` is the way in and out.
"""

from __future__ import annotations

import random

import msgspec

from control.raft.configuration import Configuration, decode_configuration
from control.raft.log import Log
from control.raft.messages import Message
from control.raft.progress import Progress
from control.raft.reads import Reads
from control.raft.ready import Options, Restored, Role, SoftState
from control.store.record import SnapshotMeta

# A member that had better not lead (its disk is nearly full) waits so many election timeouts longer than the others;
# it is still better than no leader.
RELUCTANCE = 3
# A campaign is given up after this part of an election time, and up to a whole one more: half a second with the usual
# options, a few round trips between far machines and a slow sync.
UNDECIDED = 3
NEVER = -(1 << 62)  # a tick
# Readys that the disk has not ended. While it hangs, answers that wait for it are dropped: they would be out of date.
IN_FLIGHT_MAX = 1024


class Write(msgspec.Struct):
    """One Ready that the disk is writing. `upto`: see `control.raft.log`."""

    number: int
    upto: int
    term: int
    vote: str
    tick: int
    snapshot: SnapshotMeta | None


class State:
    """See the module."""

    __slots__ = (
        "changes",
        "configuration",
        "dismissed",
        "durable_vote",
        "early",
        "elapsed",
        "flush",
        "id",
        "late",
        "leader",
        "log",
        "members",
        "noop_index",
        "options",
        "outgoing",
        "pending_change",
        "progress",
        "promotable",
        "promoting",
        "reads",
        "reluctant",
        "rng",
        "role",
        "snapshot",
        "term",
        "ticks",
        "timeout",
        "transfer_began",
        "transferee",
        "vote",
        "voters",
        "votes",
        "withheld",
        "withheld_from",
    )

    def __init__(self, member_id: str, restored: Restored, options: Options, rng: random.Random) -> None:
        self.id = member_id
        self.options = options
        self.rng = rng
        hard, snapshot = restored.hard_state, restored.snapshot
        self.term = hard.term
        self.vote = hard.vote  # never forgotten within a term: a second vote could elect a second leader
        self.durable_vote = (hard.term, hard.vote)
        applied = snapshot.index if snapshot is not None else 0
        self.log = Log(restored.base_index, restored.base_term, restored.entries, max(hard.commit, applied), applied)
        self.snapshot: SnapshotMeta | None = snapshot  # the newest durable one
        self.role = Role.FOLLOWER
        self.leader = ""
        self.ticks = 0  # since the start
        self.elapsed = 0  # since the leader was heard, a vote given, or a campaign begun
        self.timeout = 0
        self.reluctant = False
        self.votes: dict[str, bool] = {}
        # As a leader:
        self.progress: dict[str, Progress] = {}
        self.noop_index = 0
        self.outgoing = False  # the change that is pending takes this leader's own vote
        self.withheld, self.withheld_from = "", 0  # who lost its vote by which entry, and is not told yet
        self.dismissed: list[tuple[int, Progress]] = []  # were removed; are told when that index is committed
        self.pending_change = 0  # index of the last change of the configuration that may be in the log, not applied
        self.changes: list[int] = []  # indexes of those in the log that are not applied
        self.promoting: dict[str, int] = {}  # who is to get a vote -> index of the change, not applied here
        self.transferee = ""
        self.transfer_began = NEVER
        self.flush = False  # followers may have to be sent something
        # Outputs:
        self.early: list[Message] = []
        self.late: list[Message] = []
        self.reads = Reads(rng)
        self.configuration = Configuration()
        self.voters: tuple[str, ...] = ()
        self.promotable = False
        self.configure(decode_configuration(snapshot.data) if snapshot is not None else Configuration())
        self.draw_timeout()

    # --- outputs ------------------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """At once, or after the sync: the message's class says which."""
        if message.EARLY:
            self.early.append(message)
        elif len(self.log.in_flight) < IN_FLIGHT_MAX:
            self.late.append(message)

    def leads(self) -> bool:
        """A leader does so for others once all of the earlier terms is given out."""
        return self.role is Role.LEADER and self.log.applied >= self.noop_index

    def soft_state(self) -> SoftState:
        """Who leads."""
        return SoftState(self.role, self.term, self.leader, self.leads())

    # --- shared transitions -------------------------------------------------------------------------------------------

    def configure(self, configuration: Configuration) -> None:
        """It is in force from now on."""
        self.configuration = configuration
        self.voters = configuration.voters
        self.members = frozenset(member.id for member in configuration.members)
        self.promotable = self.id in self.voters

    def enter_term(self, term: int) -> None:
        """A later term: no vote is given in it yet."""
        assert term > self.term
        self.term, self.vote = term, ""

    def follow(self, term: int, leader: str) -> None:
        """Be a follower, of `leader` if it is known."""
        if term > self.term:
            self.enter_term(term)
        if leader != self.leader or self.role is not Role.FOLLOWER:
            self.reads.abort()
        self.take_role(Role.FOLLOWER, leader)

    def take_role(self, role: Role, leader: str) -> None:
        """Forget what the former role needed."""
        self.role, self.leader = role, leader
        self.votes.clear()
        self.progress.clear()
        self.dismissed.clear()
        self.withheld = ""
        self.outgoing = False
        self.changes.clear()
        self.promoting.clear()
        self.transferee, self.transfer_began = "", NEVER
        self.flush = False
        self.draw_timeout()

    def draw_timeout(self) -> None:
        """A fresh election timeout begins: one to two election times, so that seldom two campaign at once.

        Less for an election to be decided: when two of them have split the votes, nobody is any wiser for waiting.
        """
        span = self.options.election_ticks
        self.elapsed = 0
        least = span // UNDECIDED if self.role in (Role.PRE_CANDIDATE, Role.CANDIDATE) else span
        self.timeout = least + self.rng.randrange(span) + (RELUCTANCE * span if self.reluctant else 0)

    def in_lease(self) -> bool:
        """Whether a leader is alive as far as known: then it is not voted out (thesis 6, 9.6; case 6).

        A leader itself is, as `leader.check_quorum` makes it step down in time.
        """
        if self.role is Role.LEADER:
            return True
        return self.leader != "" and self.elapsed < self.options.election_ticks

    def stalled(self) -> bool:
        """Whether the disk has not ended a write for an election time."""
        writes = self.log.in_flight
        return bool(writes) and self.ticks - self._oldest() > self.options.election_ticks

    def _oldest(self) -> int:
        write = self.log.in_flight[0]
        assert isinstance(write, Write)
        return write.tick
