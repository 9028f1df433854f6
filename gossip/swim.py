"""SWIM with Lifeguard as memberlist speaks it: one node's core. No I/O: bytes and times in, `drain` says what to send.

Whoever drives it calls `receive` for each packet, `accept_stream` and `finish_stream` for streams, `wake` when it is
`deadline`, and sends what `drain` has after each of these and after calls of what `Membership` lists. Parts: `members`
(the table), `swim_rules` (what becomes of members), `swim_probe` (who lives), `swim_sync` (push/pull), `swim_outbox`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from gossip import stream
from gossip.awareness import Awareness
from gossip.delegate import META_MAX, Address, Change, Delegate, Member, MemberEvent, State
from gossip.keyring import DecryptError
from gossip.members import EncodedMembers, Members
from gossip.packet import Envelope, open_packet
from gossip.stream import PushPull, StreamMessage, UserStream
from gossip.swim_outbox import Outbox
from gossip.swim_ports import Output, StreamFailure, SwimConfig, Timers
from gossip.swim_probe import Prober
from gossip.swim_rules import Rules
from gossip.swim_sync import Syncer
from gossip.wire import Ack, Alive, Dead, IndirectPing, Message, Nack, Ping, Suspect, User, WireError, decode


class Swim:
    """One node. Satisfies gossip.delegate.Membership."""

    def __init__(
        self,
        config: SwimConfig,
        delegate: Delegate,
        source: random.Random,
        envelope: Envelope,
        now: float = 0.0,
        encoded: EncodedMembers | None = None,
    ) -> None:
        """`encoded` may be shared by the nodes of a simulation. Nothing is sent before `start`."""
        self.config = config
        self.awareness = Awareness(config.profile.awareness_max)
        self._delegate = delegate
        meta = _checked(delegate.node_meta())
        me = Member(config.name, config.address, meta, config.versions, config.incarnation, State.ALIVE, now)
        self._members = Members(me, source, encoded)
        self._timers = Timers()
        watched = _Watched(delegate, self)
        self._outbox = Outbox(envelope, delegate, compress=config.compress)
        self._outbox.transmits = lambda: self.retransmits
        self._rules = Rules(config, self._members, self._outbox, self._timers, self.awareness, watched)
        self._syncer = Syncer(config, self._members, self._outbox, self._timers, self._rules, delegate, source)
        self._prober = Prober(
            config, self._members, self._outbox, self._timers, self.awareness, self._rules, delegate, source,
            self._rules.reaped, self._syncer.sync_with,
        )  # fmt: skip
        self._random = source
        self._gossiped_s = math.inf  # never, before the start
        self._heard = True  # whether there was anybody to tell

    @property
    def counts(self) -> Counter[str]:
        """What happened, by name; for stats."""
        return self._outbox.counts

    @property
    def degraded(self) -> list[str]:
        """Members that UDP does not reach, though they live."""
        return self._prober.links.degraded

    @property
    def udp_blocked(self) -> bool:
        """Whether this node's own UDP seems to lead nowhere."""
        return self._prober.links.blocked(self.alive_count - 1)

    # Driving

    def start(self, now: float) -> None:
        """Begin to probe, gossip and push/pull."""
        self._rules.announce(replace(self.me, since_s=now))
        self._rules.look_for_former()
        self._prober.start(now)
        self._syncer.start(now)
        self._gossiped_s = now - self._random.random() * self.config.profile.gossip_interval_s

    def bootstrap(self, members: Collection[Member]) -> None:
        """Know these from the start, without a word: a simulation begins with a cluster that has formed."""
        self._members.bootstrap(members)

    def deadline(self) -> float:
        """When `wake` wants to be called; it may be past, if there is news and nothing was told for a while."""
        return min(self._timers.deadline(), self._gossip_due_s())

    def wake(self, now: float) -> None:
        self._timers.run(now)
        if self._gossip_due_s() <= now:
            self._gossip(now)

    def drain(self) -> list[Output]:
        """What is to be sent, in order."""
        return self._outbox.drain()

    def receive(self, data: bytes, source: Address, now: float) -> None:
        """A packet came. Bad bytes are counted."""
        counts = self.counts
        counts["packets_in"] += 1
        counts["packet_bytes_in"] += len(data)
        try:
            opened = open_packet(data, self._outbox.envelope)
        except DecryptError:
            counts["packets_undecryptable"] += 1
            return
        except WireError:
            counts["packets_bad"] += 1
            return
        counts["messages_truncated"] += opened.truncated
        for raw in opened.messages:
            try:
                message = decode(raw)
            except WireError:
                counts["messages_bad"] += 1
                continue
            self._handle(message, source, now)

    def _handle(self, message: Message, source: Address, now: float) -> None:
        match message:
            case Ping():
                self._prober.ping(message, source)
            case Ack():
                self._prober.ack(message, source, now)
            case IndirectPing():
                self._prober.indirect_ping(message, source, now)
            case Nack():
                self._prober.nack(message)
            case Alive():
                self._rules.alive(message, source, now)
            case Suspect():
                self._rules.suspect(message, source, now)
            case Dead():
                self._rules.dead(message, source, now)
            case User(content):
                if content:
                    self._delegate.user_message(content, now)

    def send_failed(self, to: Address, now: float) -> None:
        """A packet to there could not be sent by this machine."""
        del now
        self.counts["packets_unsent"] += 1
        self._prober.send_failed(to)

    def accept_stream(self, message: StreamMessage, peer: Address, now: float) -> bytes | None:
        """Somebody opened a stream and sent this; the answer, if there is one."""
        del peer
        self.counts["streams_in"] += 1
        match message:
            case PushPull():
                return self._syncer.accept(message, now)
            case UserStream(content):
                if content:
                    self._delegate.user_message(content, now)
            case Ping() if message.node == self.config.name:
                return self._outbox.sealed(stream.ping(Ack(message.seq)))
            case _:
                self.counts["streams_astray"] += 1
        return None

    def finish_stream(
        self, token: int, message: StreamMessage | None, failure: StreamFailure | None, now: float
    ) -> None:
        """A stream that `drain` asked for is over: its answer (None if none was asked for), or why there is none."""
        self._outbox.finish(token, message, failure, now)

    def _gossip_due_s(self) -> float:
        """When to gossip: soon if there is news, never if there is nothing, as most of the time."""
        outbox, delegate = self._outbox, self._delegate
        hurry = self._heard and not outbox.hold_back
        if hurry and (outbox.broadcasts.fresh or delegate.has_broadcasts(fresh=True)):
            return self._gossiped_s + self.config.profile.fresh_interval_s
        if (
            len(outbox.broadcasts)
            or outbox.hold_back
            or delegate.has_broadcasts(fresh=False)
            or self._rules.accuses
            or self._prober.links.any_degraded
            or self.udp_blocked
        ):
            return self._gossiped_s + self.config.profile.gossip_interval_s
        return math.inf

    def _gossip(self, now: float) -> None:
        profile = self.config.profile
        self._gossiped_s = now
        self._rules.send_accusations(now)
        self._outbox.hold_back = self.udp_blocked and not self._rules.leaving
        if self._outbox.hold_back:
            self._syncer.carry(now)
        dead_since_s = now - profile.gossip_to_dead_s

        def fits(member: Member) -> bool:
            return member.state <= State.SUSPECT or (member.since_s > dead_since_s)

        nothing_left = False
        told = self._members.in_turn(profile.gossip_nodes, fits)
        self._heard = bool(told)
        for member in told:
            if self._prober.links.is_degraded(member.name) and member.state is State.ALIVE:
                if not self._outbox.hold_back:
                    self._syncer.carry(now, member)
            elif not nothing_left:
                nothing_left = not self._outbox.gossip(member.address)

    def watch(self, event: MemberEvent) -> None:
        """What a change of a member means for who is looked for."""
        match event.change:
            case Change.FAILED:
                self._syncer.lost(event.member)
            case Change.JOINED | Change.LEFT:
                self._syncer.found(event.member.name)
            case Change.UPDATED | Change.SUSPECTED | Change.REFUTED | Change.REAPED:
                pass

    # Membership

    @property
    def me(self) -> Member:
        return self._members.me

    @property
    def alive_count(self) -> int:
        return self._members.alive_count

    @property
    def retransmits(self) -> int:
        return self.config.profile.retransmits(self._members.alive_count, self._prober.links.loss)

    def member(self, name: str) -> Member | None:
        return self._members.get(name)

    def members(self) -> Collection[Member]:
        return self._members.all()

    def send_user(self, to: Address, message: bytes, now: float) -> bool:
        if any(one is not None and one.address == to for one in map(self._members.get, self.degraded)):
            self.send_user_stream(to, message, now)
            return True
        return self._outbox.send_only(to, b"\x08" + message)

    def send_user_stream(self, to: Address, message: bytes, now: float) -> None:
        del now
        self._outbox.open(to, stream.user(message), self.config.profile.stream_timeout_s, None)

    def update_meta(self, now: float) -> None:
        """Raises ValueError if the meta is too long."""
        del now
        if self._rules.leaving:
            return
        meta = _checked(self._delegate.node_meta())
        self._rules.announce(replace(self.me, meta=meta, incarnation=self.me.incarnation + 1))

    def join(self, seeds: Sequence[Address], now: float) -> None:
        self._syncer.join(seeds, now)

    def reached(self, seed: Address) -> bool:
        return self._syncer.reached(seed)

    def leave(self, now: float) -> None:
        if not self._rules.leaving:
            self._rules.leave(now)

    @property
    def left(self) -> bool:
        return self._rules.leaving and (self.alive_count == 0 or not self._outbox.broadcasts.waiting(self.config.name))

    def forget(self, name: str, now: float) -> None:
        self._rules.forget(name, now)


class _Watched:
    """The delegate as the rules see it: changes also go to the core itself, first."""

    def __init__(self, delegate: Delegate, core: Swim) -> None:
        self.conflict = delegate.conflict
        self.refuse_alive = delegate.refuse_alive
        self._delegate, self._core = delegate, core

    def member_changed(self, event: MemberEvent, now: float) -> None:
        self._core.watch(event)
        self._delegate.member_changed(event, now)


def _checked(meta: bytes) -> bytes:
    if len(meta) > META_MAX:
        raise ValueError(f"the meta of a member takes at most {META_MAX} bytes, not {len(meta)}")
    return meta
