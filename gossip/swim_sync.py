"""Push/pull: two nodes tell each other all they know, over a stream; joining; and finding again who was lost.

Who failed is looked for again for a day, and seeds for ever: so a partition heals however long it lasted. When this
node's own UDP is blocked, or that to some members, streams also carry what would have gone into packets.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence

import msgspec

from gossip import stream
from gossip.delegate import Address, Delegate, Member, State
from gossip.members import Members
from gossip.stream import PushPull, StreamError, StreamMessage
from gossip.swim_outbox import Outbox, StreamDone
from gossip.swim_ports import StreamFailure, SwimConfig, Timers
from gossip.swim_rules import Rules
from gossip.wire import Dead, Suspect, alive_of

SEEDS_MAX = 1024  # the oldest give way; the agent joins as many at most, and managers are five
LOST_MAX = 4096  # failed members that are looked for again
JOINS_AT_ONCE = 8
# Alone, a seed is the only way to anybody: it is tried more often than a failed member.
ALONE_RETRY_S = 2.0
ALONE_SEEDS = 3
# Of all members together about this many try each seed or lost member in an interval: 2,400 would flood one that
# comes back.
RETRY_SHARE = 8
# Where packets do not go, push/pull brings the members instead: this many times as often as usual (5 s for few nodes).
BLOCKED_SYNC_SHARE = 6
# Who has joined misses what is told while it does, by nodes that do not know it yet; when half of 2,400 nodes start at
# once that is much, and the next push/pull may be half a minute away. So it compares once more this long after.
SECOND_LOOK_S = 2.0
# Streams with a message each: an event is due 12 times, and ten events at once should still be told within 2 s.
BLOCKED_PER_TICK = 12
BACKLOG_MAX = 256


class Lost(msgspec.Struct, frozen=True):
    """A member that failed."""

    address: Address
    since_s: float


class Syncer:
    """One node's push/pulls."""

    def __init__(
        self,
        config: SwimConfig,
        members: Members,
        outbox: Outbox,
        timers: Timers,
        rules: Rules,
        delegate: Delegate,
        source: random.Random,
    ) -> None:
        self._config, self._profile = config, config.profile
        self._members, self._outbox, self._timers = members, outbox, timers
        self._rules, self._delegate, self._random = rules, delegate, source
        self._seeds: dict[Address, float] = {}  # and when it answered last, by whatever name
        self._joins: deque[Address] = deque()
        self._joining = 0
        self._joined = False
        self._lost: dict[str, Lost] = {}
        self._backlog: deque[tuple[bytes, Address | None]] = deque()  # and for whom; None: anybody
        self._next_blocked_sync_s = 0.0

    def start(self, now: float) -> None:
        self._timers.at(now + self._random.random() * self._profile.push_pull_interval_s, self._tick)
        self._timers.at(now + self._retry_in_s(), self._retry)

    # Push/pull

    def _tick(self, now: float) -> None:
        if self._rules.leaving:
            return
        self._timers.at(now + self._profile.push_pull_s(self._members.alive_count), self._tick)
        self._sync_with_somebody(now)

    def _sync_with_somebody(self, now: float) -> None:
        for member in self._members.some(1, lambda m: m.state is State.ALIVE):
            self.sync_with(member.address, now, None)

    def sync_with(self, to: Address, now: float, done: StreamDone | None, *, join: bool = False) -> bool:
        """Push/pull with whoever is there. `done` is told once what came is merged; False: too many streams."""
        del now

        def finished(message: StreamMessage | None, failure: StreamFailure | None, now: float) -> None:
            if isinstance(message, PushPull):
                if not self._merge(message, join, now):
                    message, failure = None, StreamFailure.REMOTE
            elif message is not None:
                if isinstance(message, StreamError):
                    self._outbox.counts["syncs_refused"] += 1
                message, failure = None, StreamFailure.REMOTE
            if done is not None:
                done(message, failure, now)

        return self._outbox.open(to, self._state(join), self._profile.stream_timeout_s, finished)

    def _state(self, join: bool) -> bytes:
        return stream.push_pull(self._members.encoded(), self._delegate.local_state(join), join)

    def accept(self, message: PushPull, now: float) -> bytes:
        """The answer to somebody's push/pull, and what it says is merged."""
        answer = self._outbox.sealed(self._state(message.join))
        self._merge(message, message.join, now)
        return answer

    def _merge(self, said: PushPull, join: bool, now: float) -> bool:
        """Take over what another node knows; False: it is refused as a whole."""
        refused = _clash([*self._members.all(), *said.nodes])
        if refused is None and join:
            refused = self._delegate.refuse_merge(said.nodes)
        if refused is not None:
            self._outbox.counts["merges_refused"] += 1
            return False
        me = self._config.name
        for node in said.nodes:
            match node.state:
                case State.ALIVE:
                    self._rules.alive(alive_of(node), None, now)
                case State.LEFT:
                    self._rules.dead(Dead(node.incarnation, node.name, node.name), None, now)
                case State.SUSPECT | State.DEAD if self._rules.is_former(node, now):
                    self._rules.retire(node.incarnation)
                case State.SUSPECT | State.DEAD:  # what others say is dead is not dead yet: it may refute
                    self._rules.suspect(Suspect(node.incarnation, node.name, me), None, now)
        if said.state:
            self._delegate.merge_remote_state(said.state, join, now)
        self._outbox.counts["merges"] += 1
        return True

    # Joining and finding again

    def join(self, seeds: Sequence[Address], now: float) -> None:
        for seed in seeds:
            if seed == self._config.address:
                continue
            self._seeds[seed] = -math.inf
            if seed not in self._joins:
                self._joins.append(seed)
            while len(self._seeds) > SEEDS_MAX:
                self._seeds.pop(next(iter(self._seeds)))
        while len(self._joins) > SEEDS_MAX:
            self._joins.popleft()
        self._pump(now)

    def reached(self, seed: Address) -> bool:
        """Whether it has answered, be it as a member of another address (NAT, or one that listens everywhere)."""
        return self._seeds.get(seed, -math.inf) > -math.inf or (
            seed != self._config.address and self._members.answers_at(seed)
        )

    def _pump(self, now: float) -> None:
        """Begin the joins that wait, as many as may run at once."""
        while self._joins and self._joining < JOINS_AT_ONCE and not self._rules.leaving:
            seed = self._joins.popleft()
            if self._members.answers_at(seed):  # heard of by an earlier join
                continue

            def done(message: StreamMessage | None, _: StreamFailure | None, now: float, seed: Address = seed) -> None:
                self._joining -= 1
                if message is not None:
                    self._look_again(now)
                    if seed in self._seeds:
                        self._seeds[seed] = now
                self._pump(now)

            if not self.sync_with(seed, now, done, join=True):
                self._joins.appendleft(seed)
                break
            self._joining += 1

    def _look_again(self, now: float) -> None:
        """After the first join that was answered."""
        if not self._joined:
            self._joined = True
            self._timers.at(now + SECOND_LOOK_S * (0.5 + self._random.random()), self._second_look)

    def _second_look(self, now: float) -> None:
        if not self._rules.leaving:
            self._sync_with_somebody(now)

    def lost(self, member: Member) -> None:
        """A member failed."""
        self._lost.pop(member.name, None)
        self._lost[member.name] = Lost(member.address, member.since_s)
        if len(self._lost) > LOST_MAX:
            self._lost.pop(next(iter(self._lost)))

    def found(self, name: str) -> None:
        """It is back, or has left."""
        self._lost.pop(name, None)

    def _retry_in_s(self) -> float:
        interval_s = self._profile.reconnect_interval_s
        if self._members.alive_count == 1:
            interval_s = min(ALONE_RETRY_S, interval_s)
        return interval_s * (0.5 + self._random.random())

    def _retry(self, now: float) -> None:
        if self._rules.leaving:
            return
        self._timers.at(now + self._retry_in_s(), self._retry)
        alive = self._members.alive_count
        quiet_s = now - 10 * self._profile.reconnect_interval_s  # one that answered by another address
        seeds = [s for s, at in self._seeds.items() if at <= quiet_s and not self._members.answers_at(s)]
        if seeds and self._random.random() * alive < RETRY_SHARE * len(seeds):
            count = min(ALONE_SEEDS if alive == 1 else 1, len(seeds))
            self._joins.extend(seed for seed in self._random.sample(seeds, count) if seed not in self._joins)
        oldest_s = now - self._profile.reconnect_timeout_s
        while self._lost and next(iter(self._lost.values())).since_s <= oldest_s:  # they come in this order
            self._lost.pop(next(iter(self._lost)))
        if self._lost and self._random.random() * alive < len(self._lost):
            self._joins.append(self._random.choice(list(self._lost.values())).address)
        self._pump(now)

    # Without UDP

    def carry(self, now: float, to: Member | None = None) -> None:
        """What UDP would have brought to a member, or to anybody while it is blocked; at each tick of gossip."""
        if now >= self._next_blocked_sync_s:
            often_s = self._profile.push_pull_s(self._members.alive_count) / BLOCKED_SYNC_SHARE
            self._next_blocked_sync_s = now + often_s
            if to is None:
                self._sync_with_somebody(now)
            else:
                self.sync_with(to.address, now, None)
        if len(self._backlog) < BACKLOG_MAX:
            address = to.address if to is not None else None
            self._backlog.extend((message, address) for message in self._delegate.broadcasts(0, self._outbox.room))
        for _ in range(min(BLOCKED_PER_TICK, len(self._backlog))):
            message, address = self._backlog.popleft()
            if address is not None:
                self._outbox.open(address, stream.user(message), self._profile.stream_timeout_s, None)
                continue
            for member in self._members.some(1, lambda m: m.state is State.ALIVE):
                self._outbox.open(member.address, stream.user(message), self._profile.stream_timeout_s, None)


def _clash(nodes: Sequence[Member]) -> str | None:
    """Why these cannot be in one cluster: versions of somebody alive that somebody else does not speak."""
    speaking = [node.versions for node in nodes if node.state is State.ALIVE and any(node.versions)]
    for low, high, current in ((0, 1, 2), (3, 4, 5)):
        least = max((versions[low] for versions in speaking), default=0)
        most = min((versions[high] for versions in speaking), default=0)
        for versions in speaking:
            if not least <= versions[current] <= most:
                return f"version {versions[current]} is not spoken by all, who speak {least} to {most}"
    return None
