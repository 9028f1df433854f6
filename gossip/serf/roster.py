"""Who is there, by Serf's words: alive, leaving, left, failed; and what was meant for whom we do not know yet. Pure.

    swim joined -> ALIVE (LEAVING if a leave intent came before)     leave intent: ALIVE -> LEAVING, FAILED -> LEFT
    swim gone:  LEAVING -> LEFT, ALIVE -> FAILED (LEFT if it said so) join intent:  LEAVING -> ALIVE

Intents count only if their Lamport time is newer than the last one about that member. Failed and left members are kept
for a day, so that they come back under their old time, and then reaped.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from gossip.delegate import Address, Member
from gossip.serf.messages import Join, Leave, decode_tags

INTENT_TIMEOUT_S = 300.0  # Serf's RecentIntentTimeout
# Intents about nodes that we do not know, one for each name. A join of a large cluster brings one for every member.
INTENTS_MAX = 8192
# Members remembered, gone ones included; above it the gone ones that are longest gone are forgotten first.
MEMBERS_MAX = 16384
# How long a leaving member may take to be gone before a prune forgets it (Serf: BroadcastTimeout, LeavePropagateDelay).
PRUNE_AFTER_S = 6.0


class Status(enum.Enum):
    """Of a member; the values are those of Serf's RPC."""

    NONE = "none"
    ALIVE = "alive"
    LEAVING = "leaving"
    LEFT = "left"
    FAILED = "failed"


class SerfMember(msgspec.Struct, frozen=True):
    """One member; replaced, never changed."""

    name: str
    address: Address
    tags: dict[str, str]
    status: Status
    versions: bytes
    status_ltime: int = 0
    gone_at_s: float = 0.0
    suspect: bool = False  # SWIM suspects it: still alive by Serf's words, but no longer to be relied upon


class Kind(enum.Enum):
    """What happened to a member; the values are the events of Serf's RPC. SUSPECT and REFUTE are ours."""

    JOIN = "member-join"
    LEAVE = "member-leave"
    FAILED = "member-failed"
    UPDATE = "member-update"
    REAP = "member-reap"
    SUSPECT = "member-suspect"
    REFUTE = "member-refute"


class MemberChange(msgspec.Struct, frozen=True):
    """An event about one member, with the member after it."""

    kind: Kind
    member: SerfMember


class _Intent(msgspec.Struct, frozen=True, gc=False):
    leaving: bool
    ltime: int
    since_s: float


class Verdict(msgspec.Struct, frozen=True):
    """What an intent did: whether to pass it on, whether this node must contradict it, and what happened by it."""

    rebroadcast: bool = False
    refute: bool = False
    changes: tuple[MemberChange, ...] = ()


_IGNORED = Verdict()


class Roster:
    """All members, this node included."""

    def __init__(self, own_name: str) -> None:
        self._own = own_name
        self._members: dict[str, SerfMember] = {}
        self._intents: dict[str, _Intent] = {}
        self._prunes: dict[str, float] = {}  # name -> when to forget it
        self.left_count = 0
        self.failed_count = 0

    def get(self, name: str) -> SerfMember | None:
        """A member."""
        return self._members.get(name)

    def all(self) -> list[SerfMember]:
        """All members."""
        return list(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def others_alive(self) -> list[SerfMember]:
        """The alive members without this node."""
        return [m for m in self._members.values() if m.status is Status.ALIVE and m.name != self._own]

    def status_times(self) -> dict[str, int]:
        """Lamport time of the last intent about each member."""
        return {name: member.status_ltime for name, member in self._members.items()}

    def left_names(self) -> tuple[str, ...]:
        """Those who left."""
        return tuple(m.name for m in self._members.values() if m.status is Status.LEFT)

    # What SWIM says

    def joined(self, seen: Member, now: float) -> MemberChange:
        """A member is alive that was not."""
        known = self._members.get(seen.name)
        status, ltime = Status.ALIVE, known.status_ltime if known else 0
        intent = self._intents.pop(seen.name, None)
        if known is None and intent is not None:
            status, ltime = (Status.LEAVING if intent.leaving else Status.ALIVE), intent.ltime
        if known is None and len(self._members) >= MEMBERS_MAX:
            self._forget_oldest()
        self._prunes.pop(seen.name, None)
        member = _member(seen, status, ltime)
        self._put(member)
        return MemberChange(Kind.JOIN, member)

    def gone(self, name: str, now: float, *, said_so: bool) -> MemberChange | None:
        """SWIM lost a member; `said_so`: by its own word. None if there is nothing to tell."""
        member = self._members.get(name)
        if member is None or member.status not in (Status.ALIVE, Status.LEAVING):
            return None
        left = said_so or member.status is Status.LEAVING
        after = msgspec.structs.replace(
            member, status=Status.LEFT if left else Status.FAILED, gone_at_s=now, suspect=False
        )
        self._put(after)
        return MemberChange(Kind.LEAVE if left else Kind.FAILED, after)

    def updated(self, seen: Member) -> MemberChange | None:
        """A member has other tags or another address."""
        known = self._members.get(seen.name)
        if known is None:
            return None
        after = msgspec.structs.replace(
            known, address=seen.address, tags=decode_tags(seen.meta), versions=seen.versions, suspect=False
        )
        self._put(after)
        return MemberChange(Kind.UPDATE, after)

    def suspected(self, name: str, suspect: bool) -> MemberChange | None:
        """A member is suspected, or no longer."""
        known = self._members.get(name)
        if known is None or known.suspect == suspect:
            return None
        after = msgspec.structs.replace(known, suspect=suspect)
        self._put(after)
        return MemberChange(Kind.SUSPECT if suspect else Kind.REFUTE, after)

    # What members mean

    def leave_intent(self, leave: Leave, now: float, *, staying: bool) -> Verdict:
        """Somebody means to leave or is made to. `staying`: this node does not leave, and says so if it is meant."""
        member = self._members.get(leave.node)
        if member is None:
            return Verdict(rebroadcast=self._buffer(leave.node, _Intent(True, leave.ltime, now)))
        if leave.ltime <= member.status_ltime:
            return _IGNORED
        if leave.node == self._own and staying:
            return Verdict(refute=True)
        # The time counts also where the status stays: otherwise two leaves about one member are passed on for ever.
        after = msgspec.structs.replace(member, status_ltime=leave.ltime)
        changes: list[MemberChange] = []
        match member.status:
            case Status.ALIVE:
                after = msgspec.structs.replace(after, status=Status.LEAVING)
            case Status.FAILED:
                after = msgspec.structs.replace(after, status=Status.LEFT)
                changes.append(MemberChange(Kind.LEAVE, after))
            case Status.LEAVING | Status.LEFT | Status.NONE:
                pass
        self._put(after)
        if leave.prune:
            if after.status is Status.LEAVING:
                self._prunes[after.name] = now + PRUNE_AFTER_S
            else:
                changes.append(self._erase(after.name))
        return Verdict(rebroadcast=True, changes=tuple(changes))

    def join_intent(self, join: Join, now: float) -> Verdict:
        """Somebody means to stay."""
        member = self._members.get(join.node)
        if member is None:
            return Verdict(rebroadcast=self._buffer(join.node, _Intent(False, join.ltime, now)))
        if join.ltime <= member.status_ltime:
            return _IGNORED
        status = Status.ALIVE if member.status is Status.LEAVING else member.status
        self._put(msgspec.structs.replace(member, status=status, status_ltime=join.ltime))
        return Verdict(rebroadcast=True)

    # Time

    def reap(self, now: float, reconnect_timeout_s: float, tombstone_timeout_s: float) -> list[MemberChange]:
        """Forget who has been gone for too long, and intents that nobody came for."""
        self._intents = {n: i for n, i in self._intents.items() if now - i.since_s <= INTENT_TIMEOUT_S}
        limits = {Status.FAILED: reconnect_timeout_s, Status.LEFT: tombstone_timeout_s}
        over = [m.name for m in self._members.values() if m.status in limits and now - m.gone_at_s > limits[m.status]]
        return [self._erase(name) for name in over]

    def next_prune(self) -> float | None:
        """When `prune` has something to do."""
        return min(self._prunes.values(), default=None)

    def prune(self, now: float) -> list[MemberChange]:
        """Forget the leaving members that were to be forgotten."""
        due = [name for name, at in self._prunes.items() if at <= now]
        for name in due:
            del self._prunes[name]
        return [self._erase(name) for name in due if name in self._members]

    def _buffer(self, name: str, intent: _Intent) -> bool:
        known = self._intents.get(name)
        if known is not None and intent.ltime <= known.ltime:
            return False
        if known is None and len(self._intents) >= INTENTS_MAX:
            return False
        self._intents[name] = intent
        return True

    def _put(self, member: SerfMember) -> None:
        self._count(self._members.get(member.name), -1)
        self._members[member.name] = member
        self._count(member, 1)

    def _erase(self, name: str) -> MemberChange:
        member = self._members.pop(name)
        self._count(member, -1)
        return MemberChange(Kind.REAP, member)

    def _count(self, member: SerfMember | None, by: int) -> None:
        if member is not None and member.status is Status.LEFT:
            self.left_count += by
        elif member is not None and member.status is Status.FAILED:
            self.failed_count += by

    def _forget_oldest(self) -> None:
        gone: Iterable[SerfMember] = (m for m in self._members.values() if m.status in (Status.FAILED, Status.LEFT))
        oldest = min(gone, key=lambda m: m.gone_at_s, default=None)
        if oldest is not None:
            self._erase(oldest.name)


def _member(seen: Member, status: Status, ltime: int) -> SerfMember:
    return SerfMember(seen.name, seen.address, decode_tags(seen.meta), status, seen.versions, ltime)
