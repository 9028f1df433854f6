"""Probing: one member after the other is pinged, by UDP, then through others and by TCP; and pinging for others.

    up to three pings ── timeout ──▶ indirect pings and a stream ── until interval × (score + 1) ──▶ suspect
      └─ ack: good                     └─ ack, or the stream's answer: alive, by a detour

Local health (awareness) falls with each good probe, and rises when one fails and those who were to help said nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from gossip import stream
from gossip.awareness import Awareness
from gossip.delegate import Address, Delegate, Member, State
from gossip.members import Members
from gossip.stream import PushPull, StreamMessage
from gossip.swim_links import Links
from gossip.swim_outbox import Outbox
from gossip.swim_ports import StreamFailure, SwimConfig, Timer, Timers
from gossip.swim_rules import Rules
from gossip.wire import U32_MAX, Ack, IndirectPing, Nack, Ping, Suspect

# Pings for others that wait for an answer. One node is asked by three of those who miss somebody: at 2,400 nodes even
# a partition down the middle brings no more at once, and who asks in vain has two others.
RELAYS_MAX = 1024
# Pings of one probe before detours are sought. memberlist sends one: at a quarter of loss each way 44 % of its probes
# then trouble four other nodes and open a stream, of ours 8 %.
PINGS = 3
_NACKS_FROM, _STREAM_PING_FROM = 4, 3  # protocol versions that have them


class _Probe:
    """One that is under way."""

    __slots__ = (
        "began_s",
        "detour",
        "end",
        "expected_nacks",
        "helpers",
        "local_errors",
        "member",
        "nacks",
        "next_stage",
        "pings",
        "sends",
        "seq",
    )

    def __init__(self, seq: int, member: Member, now: float) -> None:
        self.seq = seq
        self.member = member
        self.began_s = now
        self.pings = {seq: now}  # by number, when each was sent
        self.helpers: set[Address] = set()
        self.expected_nacks = self.nacks = 0
        self.sends = 1
        self.local_errors = 0
        self.detour = False  # it is alive, but did not answer the ping itself
        self.next_stage: Timer | None = None
        self.end: Timer | None = None


class _Relay:
    """A ping for somebody else."""

    __slots__ = ("nack", "seq", "timer", "to")

    def __init__(self, to: Address, seq: int, nack: bool) -> None:
        self.to, self.seq, self.nack = to, seq, nack
        self.timer: Timer | None = None


class Prober:
    """One node's probes, at most one at a time, and its relays."""

    def __init__(
        self,
        config: SwimConfig,
        members: Members,
        outbox: Outbox,
        timers: Timers,
        awareness: Awareness,
        rules: Rules,
        delegate: Delegate,
        source: random.Random,
        on_reaped: Callable[[Member, float], None],
        sync_with: Callable[
            [Address, float, Callable[[StreamMessage | None, StreamFailure | None, float], None]], bool
        ],
    ) -> None:
        """`on_reaped`: a dead member was forgotten; `sync_with`: a push/pull in the place of a ping by TCP."""
        self.links = Links()
        self._config, self._profile = config, config.profile
        self._members, self._outbox, self._timers = members, outbox, timers
        self._awareness, self._rules, self._delegate = awareness, rules, delegate
        self._random = source
        self._on_reaped, self._sync_with = on_reaped, sync_with
        self._seq = source.randrange(U32_MAX)
        self._current: _Probe | None = None
        self._relays: dict[int, _Relay] = {}

    def start(self, now: float) -> None:
        """Begin, somewhere within the first interval: nodes started together should not probe together."""
        self._timers.at(now + self._random.random() * self._profile.probe_period_s, self._tick)

    # Own probes

    def _tick(self, now: float) -> None:
        if self._rules.leaving:
            return
        member, reaped = self._members.next_probe(lambda m: now - m.since_s > self._profile.gossip_to_dead_s)
        for gone in reaped:
            self.links.forget(gone.name)
            self._on_reaped(gone, now)
        if member is None:
            self._timers.at(now + self._profile.probe_period_s, self._tick)
        else:
            self._begin(member, now)

    def _begin(self, member: Member, now: float) -> None:
        probe = self._current = _Probe(self._next_seq(), member, now)
        self._send_ping(probe, probe.seq)
        end_s = now + self._awareness.scale_s(self._profile.probe_interval_s)
        self._wait(probe, now)
        probe.end = self._timers.at(end_s, partial(self._end, probe))

    def _send_ping(self, probe: _Probe, seq: int) -> None:
        member, ping = probe.member, self._ping(seq, probe.member.name)
        if member.state is State.SUSPECT:  # so that it hears of the accusation and can refute it at once
            self._outbox.send(member.address, ping, Suspect(member.incarnation, member.name, self._config.name))
        else:
            self._outbox.send(member.address, ping)

    def _ping_again(self, probe: _Probe, now: float) -> None:
        """A packet was lost, most often: one more costs far less than detours do, for this node and four others."""
        seq = self._next_seq()
        probe.pings[seq] = now
        probe.sends += 1
        self._send_ping(probe, seq)
        self._wait(probe, now)

    def _wait(self, probe: _Probe, now: float) -> None:
        """For an answer, until the next ping is due, or detours are."""
        if len(probe.pings) < PINGS:
            at_s = probe.began_s + self._profile.probe_timeout_s * len(probe.pings) / PINGS
            probe.next_stage = self._timers.at(max(now, at_s), partial(self._ping_again, probe))
        else:
            at_s = probe.began_s + self._profile.probe_timeout_s
            probe.next_stage = self._timers.at(max(now, at_s), partial(self._seek_detours, probe))

    def _seek_detours(self, probe: _Probe, now: float) -> None:
        target, end = probe.member, probe.end
        helpers = self._members.some(
            self._profile.indirect_checks, lambda m: m.state is State.ALIVE and m.name != target.name
        )
        for helper in helpers:
            nacks = helper.versions[1] >= _NACKS_FROM
            probe.expected_nacks += nacks
            probe.helpers.add(helper.address)
            request = IndirectPing(
                probe.seq, target.address, target.name, nacks, self._config.address, self._config.name
            )
            self._outbox.send(helper.address, request)
        probe.sends += len(helpers)
        if target.versions[1] < _STREAM_PING_FROM or end is None:
            return
        done = partial(self._stream_done, probe)
        if target.state is State.SUSPECT:  # UDP did not bring the accusation there
            sent = self._sync_with(target.address, now, done)
        else:
            plain = stream.ping(self._ping(probe.seq, target.name))
            sent = self._outbox.open(target.address, plain, end.at_s - now, done)
        probe.sends += sent

    def _stream_done(
        self, probe: _Probe, message: StreamMessage | None, failure: StreamFailure | None, now: float
    ) -> None:
        if failure is StreamFailure.LOCAL:
            probe.local_errors += 1
        elif isinstance(message, PushPull) or (isinstance(message, Ack) and message.seq == probe.seq):
            self._by_detour(probe, now)

    def _by_detour(self, probe: _Probe, now: float) -> None:
        """It lives. Its own answer, late, is still worth waiting for until the next probe is due."""
        if probe is not self._current or probe.detour:
            return
        probe.detour = True
        if probe.end is not None:
            probe.end.cancel()
        probe.end = self._timers.at(max(now, probe.began_s + self._profile.probe_interval_s), partial(self._end, probe))

    def _succeed(self, probe: _Probe, sent_s: float, payload: bytes, now: float) -> None:
        """It answered a ping itself, that of `sent_s`."""
        rtt_s = now - sent_s
        self.links.direct(probe.member.name)
        for at_s in probe.pings.values():
            self.links.pinged(at_s >= sent_s)
        self._finish(probe)
        self._awareness.apply(-1)
        self._timers.at(max(now, probe.began_s + self._profile.probe_period_s), self._tick)
        if rtt_s <= self._profile.probe_timeout_s:
            self._delegate.ping_complete(probe.member, rtt_s, payload, now)

    def _end(self, probe: _Probe, now: float) -> None:
        late_s = now - probe.end.at_s if probe.end is not None else 0.0
        self._finish(probe)
        name = probe.member.name
        if probe.detour:
            self._outbox.counts["probes_by_detour"] += 1
            self.links.detour(name)
            for _ in probe.pings:
                self.links.pinged(False)
            self._awareness.apply(-1)
        elif probe.local_errors >= probe.sends:  # it says nothing about the other one
            self._outbox.counts["probes_unsent"] += 1
            self._awareness.apply(1)
        elif late_s > self._profile.probe_timeout_s:  # this process stood still, and may not have read the answer yet
            self._outbox.counts["probes_late"] += 1
            self._awareness.apply(1)
        else:
            self._outbox.counts["probes_failed"] += 1
            missed = probe.expected_nacks - probe.nacks
            self._awareness.apply(max(0, missed) if probe.expected_nacks else 1)
            self._rules.suspect(Suspect(probe.member.incarnation, name, self._config.name), None, now)
        self._tick(now)

    def _finish(self, probe: _Probe) -> None:
        self._current = None
        for timer in (probe.next_stage, probe.end):
            if timer is not None:
                timer.cancel()

    def send_failed(self, to: Address) -> None:
        """A packet did not leave this machine."""
        probe = self._current
        if probe is not None and (to == probe.member.address or to in probe.helpers):
            probe.local_errors += 1

    # What others answer and ask

    def ack(self, said: Ack, source: Address, now: float) -> None:
        probe = self._current
        if probe is not None and said.seq in probe.pings:
            if source in probe.helpers and source != probe.member.address:
                self._by_detour(probe, now)
            else:
                self._succeed(probe, probe.pings[said.seq], said.payload, now)
        elif (relay := self._relays.pop(said.seq, None)) is not None:
            if relay.timer is not None:
                relay.timer.cancel()
            self._outbox.send(relay.to, Ack(relay.seq))
        else:
            self._outbox.counts["acks_unasked"] += 1

    def nack(self, said: Nack) -> None:
        if self._current is not None and said.seq == self._current.seq:
            self._current.nacks += 1

    def ping(self, said: Ping, source: Address) -> None:
        """Answer, if this node is meant: another one may have been at this address before."""
        if said.node != self._config.name:
            self._outbox.counts["pings_astray"] += 1
            return
        self._outbox.send(said.source or source, Ack(said.seq, self._delegate.ack_payload()))

    def indirect_ping(self, said: IndirectPing, source: Address, now: float) -> None:
        """Ping for somebody else; say so if there is no answer."""
        if len(self._relays) >= RELAYS_MAX:
            self._outbox.counts["relays_refused"] += 1
            return
        seq = self._next_seq()
        relay = self._relays[seq] = _Relay(said.source or source, said.seq, said.nack)
        relay.timer = self._timers.at(now + self._profile.probe_timeout_s, partial(self._relay_over, seq))
        self._outbox.send(said.target, self._ping(seq, said.node))

    def _relay_over(self, seq: int, now: float) -> None:
        del now
        relay = self._relays.pop(seq, None)
        if relay is not None and relay.nack:
            self._outbox.send(relay.to, Nack(relay.seq))

    def _ping(self, seq: int, node: str) -> Ping:
        return Ping(seq, node, self._config.address, self._config.name)

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & U32_MAX
        return self._seq
