"""What becomes of members as others speak of them: alive, suspect, dead, and what this node answers when it is meant.

The rules are memberlist's, with four holes closed (reference/gossip-wire.md, 2 and 6): the incarnation that is stored
always follows accusations, so nothing old revives; who is alive and taken for dead is told so, and can refute; nobody
can push an incarnation to its end; and a member may come back from another address once it is dead.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Protocol

from msgspec.structs import replace

from gossip import stream
from gossip.awareness import Awareness
from gossip.delegate import Address, Change, Member, MemberEvent, State
from gossip.members import Members
from gossip.stream import StreamMessage
from gossip.suspicion import Suspicion, suspicion
from gossip.swim_outbox import Outbox
from gossip.swim_ports import (
    FIRST_INCARNATION_MAX,
    INCARNATION_MAX,
    JUMP_MAX,
    StreamFailure,
    SwimConfig,
    Timer,
    Timers,
)
from gossip.wire import Ack, Alive, Dead, Ping, Suspect, alive_of, encode

# Members that are known at once: more than any pool of gossip should have. Who has a key could invent names for ever.
MEMBERS_MAX = 16384
ACCUSE_AGAIN_S = 1.0  # to one member; what is lost is said again as the stale alive is heard again
ACCUSE_PER_TICK = 50  # after a mass restart thousands are due at once
ANNOUNCE_AGAIN_S = 1.0  # this node, to those who accuse one that it was before
# What is said of the address where this node was before is about this node itself, for so long after the start: then
# all have heard of it.
FORMER_S = 60.0


class Watcher(Protocol):
    """The part of gossip.delegate.Delegate that is told here."""

    def conflict(self, existing: Member, other: Member, now: float) -> None: ...

    def refuse_alive(self, peer: Member) -> str | None: ...

    def member_changed(self, event: MemberEvent, now: float) -> None: ...


class Rules:
    """The state machine of all members. `source` is where a packet came from, None for push/pull and this node."""

    def __init__(
        self,
        config: SwimConfig,
        members: Members,
        outbox: Outbox,
        timers: Timers,
        awareness: Awareness,
        delegate: Watcher,
    ) -> None:
        self.counts: Counter[str] = outbox.counts
        self.leaving = False
        self._config = config
        self._members = members
        self._outbox = outbox
        self._timers = timers
        self._awareness = awareness
        self._delegate = delegate
        self._suspicions: dict[str, tuple[Suspicion, Timer]] = {}
        self._to_accuse: dict[str, Address] = {}  # in order
        self._accused_s: dict[str, float] = {}
        self._announced_s = -math.inf
        self._former = config.former if config.former != config.address else None
        self._looks = False  # for somebody who is still there
        self._former_said = -1  # the incarnation that was heard of meanwhile

    # Alive

    def alive(self, said: Alive, source: Address | None, now: float) -> None:
        known = self._members.get(said.node)
        if not self._plausible(said.incarnation, known) or not _speaks(said.versions):
            self.counts["implausible"] += 1
            return
        member = Member(
            said.node, said.address, said.meta, said.versions, said.incarnation, State.ALIVE,
            known.since_s if known is not None and known.state is State.ALIVE else now,
        )  # fmt: skip
        if said.node == self._config.name:
            self._alive_of_me(member, source, now)
        elif known is None:
            if len(self._members.all()) >= MEMBERS_MAX:
                self.counts["members_refused"] += 1
            elif self._admits(member):
                self._put(member, None, now, Change.JOINED)
                self._tell(said.node, encode(said))
        else:
            self._alive_of_known(said, member, known, now)

    def _alive_of_known(self, said: Alive, member: Member, known: Member, now: float) -> None:
        gone = known.state > State.SUSPECT
        if said.address != known.address and not gone:
            self._delegate.conflict(known, member, now)
            return
        if said.incarnation <= known.incarnation:
            if gone:
                self._accuse(known, said.address, now)
            return
        if not self._admits(member):
            return
        self._end_suspicion(member.name)
        self._accused_s.pop(member.name, None)
        changes: list[Change] = []
        if gone:
            changes.append(Change.JOINED)
        elif known.state is State.SUSPECT:
            changes.append(Change.REFUTED)
        if not gone and (known.meta, known.versions) != (member.meta, member.versions):
            changes.append(Change.UPDATED)
        self._put(member, known, now, *changes)
        self._tell(said.node, encode(said))

    def _alive_of_me(self, said: Member, source: Address | None, now: float) -> None:
        me = self._members.me
        if self.is_former(said, now):
            self.retire(said.incarnation)
            return
        if self.leaving or said.incarnation < me.incarnation:
            return
        if said.address != me.address:
            self._delegate.conflict(me, said, now)
        elif said.incarnation > me.incarnation or (said.meta, said.versions) != (me.meta, me.versions):
            self._refute(said.incarnation, source)

    def _admits(self, member: Member) -> bool:
        if self._delegate.refuse_alive(member) is None:
            return True
        self.counts["members_refused"] += 1
        return False

    # Suspect

    def suspect(self, said: Suspect, source: Address | None, now: float) -> None:
        known = self._accused(said.node, said.incarnation, source, now)
        if known is None:
            return
        if known.state is State.SUSPECT:
            self._confirm(known, said, now)
        elif known.state is State.ALIVE:
            member = replace(known, state=State.SUSPECT, incarnation=said.incarnation, since_s=now)
            began = suspicion(self._config.profile, self._members.alive_count, said.by, now)
            self._watch(said.node, began)
            self._put(member, known, now, Change.SUSPECTED)
            self._tell(said.node, encode(said))
            self.counts["suspected"] += 1
        elif said.incarnation > known.incarnation:
            self._members.put(replace(known, incarnation=said.incarnation))

    def _confirm(self, known: Member, said: Suspect, now: float) -> None:
        if said.incarnation > known.incarnation:
            self._members.put(replace(known, incarnation=said.incarnation))
        began, timer = self._suspicions[said.node]
        if began.confirm(said.by):
            timer.cancel()
            self._watch(said.node, began)
            self._tell(said.node, encode(said))

    def _watch(self, name: str, began: Suspicion) -> None:
        self._suspicions[name] = began, self._timers.at(began.deadline_s, partial(self._time_out, name))

    def _time_out(self, name: str, now: float) -> None:
        known = self._members.get(name)
        if known is not None and known.state is State.SUSPECT:
            self.counts["failed"] += 1
            self.dead(Dead(known.incarnation, name, self._config.name), None, now)

    def _end_suspicion(self, name: str) -> None:
        if (found := self._suspicions.pop(name, None)) is not None:
            found[1].cancel()

    # Dead

    def dead(self, said: Dead, source: Address | None, now: float) -> None:
        known = self._accused(said.node, said.incarnation, source, now)
        if known is None:
            return
        left = said.by == said.node
        state = State.LEFT if left or known.state is State.LEFT else State.DEAD
        if known.state is state:
            if said.incarnation > known.incarnation:
                self._members.put(replace(known, incarnation=said.incarnation))
            return
        self._end_suspicion(said.node)
        member = replace(known, state=state, incarnation=said.incarnation, since_s=now)
        self._put(member, known, now, Change.LEFT if left else Change.FAILED)
        self._tell(said.node, encode(said))

    def forget(self, name: str, now: float) -> None:
        """Turn who failed into one who left."""
        known = self._members.get(name)
        if known is not None and known.state is State.DEAD:
            self.dead(Dead(known.incarnation, name, name), None, now)

    def reaped(self, member: Member, now: float) -> None:
        """The table has forgotten a dead member."""
        self._accused_s.pop(member.name, None)
        self._to_accuse.pop(member.name, None)
        self._outbox.broadcasts.forget(member.name)
        self._delegate.member_changed(MemberEvent(Change.REAPED, member, member), now)

    # This node

    def announce(self, member: Member) -> None:
        """This node as it is from now on, to everybody."""
        self._members.put(member)
        self._tell(member.name, encode(alive_of(member)))

    def look_for_former(self) -> None:
        """Does somebody answer by this node's name where it was before? Then one is the other's copy, and the name is
        voted on as any other."""
        if self._former is not None:
            ping = stream.ping(Ping(0, self._config.name, self._config.address, self._config.name))
            self._looks = self._outbox.open(self._former, ping, self._config.profile.probe_interval_s, self._looked)

    def _looked(self, message: StreamMessage | None, failure: StreamFailure | None, now: float) -> None:
        del failure, now
        self._looks = False
        if isinstance(message, Ack):
            self._former = None
        elif self._former_said >= 0:
            self.retire(self._former_said)

    def is_former(self, said: Member, now: float) -> bool:
        """Whether this is what this node was before, at another address."""
        me = self._members.me
        return (said.name, said.address) == (me.name, self._former) and now < me.since_s + FORMER_S

    def retire(self, incarnation: int) -> None:
        """Somebody takes this node for what it was before, elsewhere: that one has left, and here is the one of now.

        Else others would wait until they miss it, and this one would lose its name to it by a vote. Who has left may
        come back elsewhere at once; with memberlist, who failed may not at all.
        """
        me = self._members.me
        if self.leaving or not self._plausible(incarnation, me):
            return
        if self._looks:
            self._former_said = max(self._former_said, incarnation)
            return
        self._outbox.broadcasts.queue(encode(Dead(incarnation, me.name, me.name)), (me.name, self._former))
        self.announce(replace(me, incarnation=max(me.incarnation, incarnation + 1)))

    def leave(self, now: float) -> None:
        """Everybody is told; what is said about this node is no longer refuted."""
        self.leaving = True
        me = self._members.me
        self._members.put(replace(me, state=State.LEFT, since_s=now))
        self._tell(me.name, encode(Dead(me.incarnation, me.name, me.name)))

    def _accused(self, name: str, incarnation: int, source: Address | None, now: float) -> Member | None:
        """The other member that an accusation is about, if it is to be heeded; about this node it is refuted."""
        known = self._members.get(name)
        if known is None:
            return None
        if not self._plausible(incarnation, known):
            self.counts["implausible"] += 1
            return None
        if name == self._config.name:
            if not self.leaving:
                if incarnation >= known.incarnation:
                    self._refute(incarnation, source)
                elif now >= self._announced_s + ANNOUNCE_AGAIN_S:  # they mean the one that was here before
                    self._announced_s = now
                    self._say_alive(source)
            return None
        return known if incarnation >= known.incarnation else None

    def _refute(self, incarnation: int, source: Address | None) -> None:
        me = self._members.me
        self._members.put(replace(me, incarnation=max(me.incarnation, incarnation) + 1))
        self._awareness.apply(1)
        self.counts["refuted"] += 1
        self._say_alive(source)

    def _say_alive(self, source: Address | None) -> None:
        """To everybody, and to who accuses at once."""
        message = encode(alive_of(self._members.me))
        self._tell(self._config.name, message)
        if source is not None:
            self._outbox.send_only(source, message)

    # Accusing those who do not know that they are taken for dead

    def _accuse(self, known: Member, address: Address, now: float) -> None:
        if now >= self._accused_s.get(known.name, -math.inf) + ACCUSE_AGAIN_S:
            self._to_accuse[known.name] = address

    @property
    def accuses(self) -> bool:
        """Whether `send_accusations` has something to do."""
        return bool(self._to_accuse)

    def send_accusations(self, now: float) -> None:
        """Some of those that wait; to be called at each tick of gossip."""
        for name in list(self._to_accuse)[:ACCUSE_PER_TICK]:
            address = self._to_accuse.pop(name)
            known = self._members.get(name)
            if known is None or known.state <= State.SUSPECT:
                continue
            self._accused_s[name] = now
            by = name if known.state is State.LEFT else self._config.name
            self._outbox.send_only(address, encode(Dead(known.incarnation, name, by)))

    # Helpers

    def _plausible(self, incarnation: int, known: Member | None) -> bool:
        if known is None:  # its clock may be as wrong as it likes
            return incarnation <= FIRST_INCARNATION_MAX
        return incarnation <= min(max(known.incarnation, self._config.incarnation) + JUMP_MAX, INCARNATION_MAX)

    def _tell(self, name: str, message: bytes) -> None:
        self._outbox.broadcasts.queue(message, name)

    def _put(self, member: Member, before: Member | None, now: float, *changes: Change) -> None:
        self._members.put(member)
        for change in changes:
            self._delegate.member_changed(MemberEvent(change, member, before), now)


def _speaks(versions: bytes) -> bool:
    """Whether these are versions at all (memberlist's check of an alive message)."""
    return versions[0] > 0 and versions[1] >= versions[0]
