"""The Serf layer as one core: SWIM's delegate below, commands from above, events out of `drain`. No I/O.

It sends nothing itself but through `Membership.send_user` and the queues that `broadcasts` is asked for. Whoever drives
it calls `wake` at `deadline`, and `drain` after every call of anything.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from gossip.broadcasts import Broadcasts
from gossip.coordinates import Coordinate, Vivaldi
from gossip.delegate import META_MAX, Change, Member, MemberEvent, Membership, State
from gossip.keyring import KeyRing
from gossip.serf.clock import LamportClock, SeenRing
from gossip.serf.keys import (
    PREFIX,
    KeyCommand,
    KeyCount,
    answer_key_query,
    fitting_response,
    parse_key,
)
from gossip.serf.messages import (
    FLAG_ACK,
    FLAG_NO_BROADCAST,
    Join,
    KeyRequest,
    Leave,
    NodeFilter,
    PushPull,
    Query,
    QueryResponse,
    Relay,
    TagFilter,
    Type,
    UserEvent,
    Vote,
    decode,
    decode_coordinate,
    decode_filter,
    encode,
    encode_coordinate,
    encode_filters,
    encode_tags,
)
from gossip.serf.pack import BadMessage
from gossip.serf.pattern import PatternError, compile_pattern
from gossip.serf.ports import ConflictOver, Event, KeyDone, QuerySeen, Refused, SerfConfig, UserEventSeen
from gossip.serf.queries import TIMEOUT_MAX_S, TIMEOUT_MULT, OpenQueries, QueryDone
from gossip.serf.roster import Kind, MemberChange, Roster, SerfMember, Status

NAME_MAX = 128
REAP_INTERVAL_S = 15.0
# Events that wait for `drain`; it is called after every packet, so a queue of this length means that nobody calls it.
OUT_MAX = 8192
# A lost vote about our name is not asked again sooner: every alive message of the other one brings a conflict.
CONFLICT_AGAIN_S = 30.0
CONFLICT = PREFIX + "conflict"
PING = PREFIX + "ping"
_KEY_QUERIES = frozenset(command.query for command in KeyCommand)


class SerfCore:
    """One node's Serf layer. Implements gossip.delegate.Delegate."""

    def __init__(
        self,
        config: SerfConfig,
        *,
        tags: Mapping[str, str],
        ring: KeyRing,
        source: random.Random,
        now: float,
        extension: Callable[[bytes, float], None] | None = None,
        ready: Callable[[], None] | None = None,
    ) -> None:
        """`extension` is given user messages whose type is not Serf's; `ready` is called when `drain` has something."""
        self.config = config
        self.clock, self.event_clock, self.query_clock = LamportClock(), LamportClock(), LamportClock()
        self.roster = Roster(config.name)
        self.vivaldi = Vivaldi(source)
        self.coordinates: dict[str, Coordinate] = {}
        self.counts: Counter[str] = Counter()
        self.intents, self.events, self.queries = Broadcasts(), Broadcasts(), Broadcasts()
        self.ring = ring
        self.ring_changed = False  # set when a key query changed the ring; whoever writes it to disk unsets it
        self.tags = dict(tags)
        self.leaving = False
        self.ignore_old_events = True  # whether a join without replay skips what happened before it
        self._membership: Membership | None = None
        self._random = source
        self._extension = extension
        self._ready = ready
        self._seen_events: SeenRing[tuple[str, bytes]] = SeenRing()
        self._seen_queries: SeenRing[int] = SeenRing()
        self._open = OpenQueries()
        self._key_counts: dict[int, KeyCount] = {}
        self._votes: dict[int, list[bool]] = {}
        self._conflict_at_s = -math.inf
        self._next_reap_s = now + REAP_INTERVAL_S
        self._out: deque[Event] = deque(maxlen=OUT_MAX)
        self._ack_payload = b""

    def start(self, below: Membership, now: float) -> None:
        """SWIM is there, and this node its first member. To be called before anything else but the delegate's part."""
        self._membership = below
        self._emit(self.roster.joined(below.me, now))

    @property
    def _below(self) -> Membership:
        assert self._membership is not None, "not started"
        return self._membership

    # Driving

    def deadline(self) -> float:
        """When `wake` wants to be called."""
        return min(d for d in (self._next_reap_s, self._open.deadline(), self.roster.next_prune()) if d is not None)

    def wake(self, now: float) -> None:
        """Time has passed."""
        for ltime in self._open.over(now):
            self._finish(ltime)
        for change in self.roster.prune(now):
            self._reaped(change)
        if now >= self._next_reap_s:
            self._next_reap_s = now + REAP_INTERVAL_S
            for change in self.roster.reap(now, self.config.reconnect_timeout_s, self.config.tombstone_timeout_s):
                self._reaped(change)

    def drain(self) -> list[Event]:
        """What has happened since the last call."""
        out = list(self._out)
        self._out.clear()
        return out

    # Commands from above; they raise Refused

    def user_event(self, name: str, payload: bytes, coalesce: bool, now: float) -> None:
        """Tell everybody."""
        limit = self.config.event_bytes_max
        if len(name.encode("utf-8", "surrogateescape")) + len(payload) > limit:
            raise Refused(f"user event exceeds configured limit of {limit} bytes before encoding")
        event = UserEvent(self.event_clock.time, name, payload, coalesce)
        raw = encode(event)
        if len(raw) > limit:
            raise Refused(f"user event exceeds configured limit of {limit} bytes after encoding")
        self.event_clock.increment()
        self._take_event(event)
        self.events.queue(raw)
        del now

    def query(  # the fields of a query
        self,
        name: str,
        payload: bytes,
        now: float,
        *,
        nodes: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        ack: bool = False,
        relay_factor: int = 0,
        timeout_s: float = 0.0,
    ) -> int:
        """Ask everybody who passes the filters; the number by which answers and the end are told. 0 s: the default."""
        if self._open.full:
            raise Refused("too many queries are open")
        timeout_s = min(timeout_s, TIMEOUT_MAX_S) if timeout_s > 0 else self.default_query_timeout_s()
        query = Query(
            ltime=self.query_clock.time,
            id=self._random.getrandbits(31),
            source=self._below.me.address,
            source_node=self.config.name,
            filters=encode_filters(nodes, tags or {}),
            flags=FLAG_ACK if ack else 0,
            relay_factor=relay_factor,
            timeout_ns=int(timeout_s * 1e9),
            name=name,
            payload=payload,
        )
        raw = encode(query)
        if len(raw) > self.config.query_bytes_max:
            raise Refused(f"query exceeds limit of {self.config.query_bytes_max} bytes")
        self._open.start(query, now + timeout_s)
        self._take_query(query, now)
        self.queries.queue(raw)
        return query.ltime

    def default_query_timeout_s(self) -> float:
        """How long a query takes to reach everybody and come back, generously."""
        rounds = TIMEOUT_MULT * math.ceil(math.log10(self._below.alive_count + 1))
        return self.config.profile.gossip_interval_s * rounds

    def respond(self, query: QuerySeen, payload: bytes, now: float) -> None:
        """Answer a query."""
        if now > query.deadline_s:
            raise Refused("response is past the deadline")
        response = QueryResponse(query.query.ltime, query.query.id, self.config.name, 0, payload)
        raw = encode(response)
        if len(raw) > self.config.response_bytes_max:
            raise Refused(f"response exceeds limit of {self.config.response_bytes_max} bytes")
        self._answer(query.query, response, raw, now)

    def key_query(self, command: KeyCommand, key: str, now: float) -> int:
        """Ask everybody to install, use, remove or list keys; a KeyDone with this number follows."""
        try:
            payload = encode(KeyRequest(parse_key(key)))
        except ValueError as error:
            raise Refused(str(error)) from error
        # Counted before asking: this node answers within the call.
        count = self._key_counts[self.query_clock.time] = KeyCount(self._below.alive_count)
        try:
            return self.query(command.query, payload, now)
        except Refused:
            self._key_counts = {ltime: c for ltime, c in self._key_counts.items() if c is not count}
            raise

    def set_tags(self, tags: Mapping[str, str], now: float) -> None:
        """Replace this node's tags."""
        if len(encode_tags(tags)) > META_MAX:
            raise Refused(f"encoded length of tags exceeds limit of {META_MAX} bytes")
        self.tags = dict(tags)
        self._below.update_meta(now)
        me = self.roster.get(self.config.name)
        if me is not None:
            seen = Member(me.name, self._below.me.address, self.node_meta(), me.versions, 0, State.ALIVE, now)
            self._emit(self.roster.updated(seen))

    def joined_cluster(self, now: float) -> None:
        """A join succeeded: say that this node means to stay."""
        self._say_stay(now)

    def force_leave(self, node: str, prune: bool, now: float) -> None:
        """Declare a failed node to have left: no longer looked for, and with `prune` no longer remembered."""
        self._say_leave(Leave(self.clock.time, node, prune), now)
        member = self.roster.get(node)
        if node != self.config.name and (member is None or member.status is Status.LEFT):
            self._below.forget(node, now)

    def leave_begins(self, now: float) -> None:
        """This node leaves: say so."""
        self.leaving = True
        self._say_leave(Leave(self.clock.time, self.config.name), now)

    def restore_clocks(self, clock: int, event_clock: int, query_clock: int) -> None:
        """Go on from a snapshot; what happened before it is not told again."""
        self.clock.witness(clock)
        self.event_clock.witness(event_clock)
        self.query_clock.witness(query_clock)
        self._seen_events.minimum = event_clock + 1
        self._seen_queries.minimum = query_clock + 1

    # Delegate: what SWIM asks and tells

    def node_meta(self) -> bytes:
        """The tags."""
        return encode_tags(self.tags)

    def user_message(self, message: bytes, now: float) -> None:
        """A message of this layer came."""
        if self._extension is not None and message and message[0] > Type.RELAY:
            self._extension(message, now)
            return
        try:
            self._take(message, now)
        except BadMessage:
            self.counts["bad_messages"] += 1

    def broadcasts(self, overhead: int, limit: int) -> Sequence[bytes]:
        """For one packet: intents first, membership rests on them; then queries, whose time is short; then events."""
        if self._membership is None:
            return ()
        taken: list[bytes] = []
        for queue in (self.intents, self.queries, self.events):
            if len(queue):
                part = queue.take(overhead, limit, self._below.retransmits)
                limit -= sum(len(message) + overhead for message in part)
                taken += part
        return taken

    def has_broadcasts(self, fresh: bool) -> bool:
        """Whether somebody has still to be told something; `fresh`: something that nobody was told yet."""
        queues = (self.intents, self.queries, self.events)
        return self._membership is not None and any(queue.fresh if fresh else len(queue) for queue in queues)

    def local_state(self, join: bool) -> bytes:
        """Clocks, status times, those who left, recent events."""
        del join
        state = PushPull(
            ltime=self.clock.time,
            status_ltimes=self.roster.status_times(),
            left=self.roster.left_names(),
            event_ltime=self.event_clock.time,
            events=tuple(self._seen_events),
            query_ltime=self.query_clock.time,
        )
        return encode(state)

    def merge_remote_state(self, state: bytes, join: bool, now: float) -> None:
        """Take over what another node knows and we do not."""
        try:
            remote = decode(state)
        except BadMessage:
            self.counts["bad_messages"] += 1
            return
        if not isinstance(remote, PushPull):
            self.counts["bad_messages"] += 1
            return
        # Nothing of the very time was sent yet: it is the time of the next message.
        for clock, ltime in (
            (self.clock, remote.ltime),
            (self.event_clock, remote.event_ltime),
            (self.query_clock, remote.query_ltime),
        ):
            if ltime > 0 and not clock.witness(ltime - 1):
                self.counts["clock_jumps"] += 1
        left = frozenset(remote.left)
        for name in remote.left:  # first, and one later than the join: the leave came after it
            self._merge_intent(Leave(remote.status_ltimes.get(name, 0) + 1, name), now)
        for name, ltime in remote.status_ltimes.items():
            if name not in left:
                self._merge_intent(Join(ltime, name), now)
        if join and self.ignore_old_events:
            self._seen_events.minimum = max(self._seen_events.minimum, remote.event_ltime)
        for ltime, events in remote.events:
            for name, payload in events:
                self._take_event(UserEvent(ltime, name, payload))

    def ack_payload(self) -> bytes:
        """Our coordinate."""
        if not self._ack_payload:
            self._ack_payload = encode_coordinate(self.vivaldi.coordinate)
        return self._ack_payload

    def ping_complete(self, member: Member, rtt_s: float, payload: bytes, now: float) -> None:
        """Learn from a round trip."""
        del now
        if not payload:
            return
        try:
            coordinate = decode_coordinate(payload)
        except BadMessage:
            self.counts["bad_coordinates"] += 1
            return
        if not self.vivaldi.observe(member.name, coordinate, rtt_s):
            self.counts["bad_coordinates"] += 1
            return
        self._ack_payload = b""
        if self.roster.get(member.name) is not None:  # bounds the table by the members
            self.coordinates[member.name] = coordinate
        self.coordinates[self.config.name] = self.vivaldi.coordinate

    def conflict(self, existing: Member, other: Member, now: float) -> None:
        """Somebody else uses a name: if it is ours, all vote on whose it is."""
        self.counts["conflicts"] += 1
        del other
        if existing.name != self.config.name or not self.config.resolve_conflicts or self.leaving:
            return
        if now - self._conflict_at_s < CONFLICT_AGAIN_S:
            return
        self._conflict_at_s = now
        votes = self._votes[self.query_clock.time] = []
        try:
            self.query(CONFLICT, self.config.name.encode("utf-8", "surrogateescape"), now)
        except Refused:
            self._votes = {ltime: v for ltime, v in self._votes.items() if v is not votes}

    def refuse_merge(self, peers: Sequence[Member]) -> str | None:
        """Nobody is refused by this layer."""
        del peers
        return None

    def refuse_alive(self, peer: Member) -> str | None:
        """A name that is too long would not fit into messages about it."""
        return None if 0 < len(peer.name) <= NAME_MAX else f"a name of {len(peer.name)} characters"

    def member_changed(self, event: MemberEvent, now: float) -> None:
        """SWIM found out something about a member."""
        name = event.member.name
        match event.change:
            case Change.JOINED:
                self._emit(self.roster.joined(event.member, now))
            case Change.UPDATED:
                self._emit(self.roster.updated(event.member))
            case Change.SUSPECTED:
                self._emit(self.roster.suspected(name, True))
            case Change.REFUTED:
                self._emit(self.roster.suspected(name, False))
            case Change.FAILED | Change.LEFT:
                self._emit(self.roster.gone(name, now, said_so=event.change is Change.LEFT))
            case Change.REAPED:  # Serf remembers for longer
                self.vivaldi.forget(name)

    # What members say

    def _take(self, message: bytes, now: float) -> None:
        match decode(message):
            case Leave() as leave:
                if self._witness(self.clock, leave.ltime) and self._intend(leave, now):
                    self.intents.queue(message, leave.node)
            case Join() as join:
                if self._witness(self.clock, join.ltime) and self._intend(join, now):
                    self.intents.queue(message, join.node)
            case UserEvent() as event:
                if self._take_event(event):
                    self.events.queue(message)
            case Query() as query:
                if self._take_query(query, now):
                    self.queries.queue(message)
            case QueryResponse() as response:
                self._take_response(response, now)
            case Relay(to, _, inner):
                self._below.send_user(to, inner, now)
            case _:
                self.counts["bad_messages"] += 1

    def _witness(self, clock: LamportClock, ltime: int) -> bool:
        if clock.witness(ltime):
            return True
        self.counts["clock_jumps"] += 1
        return False

    def _intend(self, intent: Leave | Join, now: float) -> bool:
        """Apply an intent; whether others should hear of it."""
        if isinstance(intent, Join):
            return self.roster.join_intent(intent, now).rebroadcast
        verdict = self.roster.leave_intent(intent, now, staying=not self.leaving)
        for change in verdict.changes:
            self._reaped(change) if change.kind is Kind.REAP else self._emit(change)
        if verdict.refute:
            self._say_stay(now)
        return verdict.rebroadcast

    def _merge_intent(self, intent: Leave | Join, now: float) -> None:
        """An intent out of a push/pull: it is not passed on, everybody gets it in the same way."""
        if self._witness(self.clock, intent.ltime):
            self._intend(intent, now)

    def _say_stay(self, now: float) -> None:
        join = Join(self.clock.time, self.config.name)
        self.clock.witness(join.ltime)
        self._intend(join, now)
        self.intents.queue(encode(join), join.node)

    def _say_leave(self, leave: Leave, now: float) -> None:
        self.clock.increment()
        self._intend(leave, now)
        if self.roster.others_alive():
            self.intents.queue(encode(leave), leave.node)

    def _take_event(self, event: UserEvent) -> bool:
        if not self._witness(self.event_clock, event.ltime):
            return False
        if not self._seen_events.add(event.ltime, (event.name, event.payload), self.event_clock.time):
            return False
        self.counts["events"] += 1
        self._emit(UserEventSeen(event.ltime, event.name, event.payload, event.coalesce))
        return True

    def _take_query(self, query: Query, now: float) -> bool:
        """Whether others should hear of it."""
        if not self._witness(self.query_clock, query.ltime):
            return False
        if not self._seen_queries.add(query.ltime, query.id, self.query_clock.time):
            return False
        self.counts["queries"] += 1
        if self._meant(query):
            if query.wants_ack:
                ack = QueryResponse(query.ltime, query.id, self.config.name, FLAG_ACK, b"")
                self._answer(query, ack, encode(ack), now)
            seen = QuerySeen(query, now + min(query.timeout_ns / 1e9, TIMEOUT_MAX_S))
            if query.name.startswith(PREFIX):
                self._answer_internal(seen, now)
            else:
                self._emit(seen)
        return not query.flags & FLAG_NO_BROADCAST

    def _meant(self, query: Query) -> bool:
        try:
            return all(self._passes(decode_filter(item)) for item in query.filters)
        except (BadMessage, PatternError):
            self.counts["bad_filters"] += 1
            return False

    def _passes(self, item: NodeFilter | TagFilter) -> bool:
        match item:
            case NodeFilter(names):
                return self.config.name in names
            case TagFilter(tag, expression):
                return compile_pattern(expression).search(self.tags.get(tag, ""))

    def _answer_internal(self, seen: QuerySeen, now: float) -> None:
        query = seen.query
        if query.name in _KEY_QUERIES:
            answer, changed = answer_key_query(query.name, query.payload, self.ring)
            self.ring_changed |= changed
            response = QueryResponse(query.ltime, query.id, self.config.name, 0, b"")
            raw = fitting_response(response, answer, self.config.response_bytes_max)
            decoded = decode(raw)
            assert isinstance(decoded, QueryResponse)
            self._answer(query, decoded, raw, now)
        elif query.name == CONFLICT:
            name = query.payload.decode("utf-8", "surrogateescape")
            if name != self.config.name:  # the two who fight over it have no vote
                member = self.roster.get(name)
                self.respond(seen, encode(Vote(name, member.address if member else None)), now)
        elif query.name != PING:
            self.counts["unknown_queries"] += 1

    def _answer(self, query: Query, response: QueryResponse, raw: bytes, now: float) -> None:
        """Send a response to who asked, and copies by way of others when that was asked for."""
        if query.source == self._below.me.address and query.source_node == self.config.name:
            self._take_response(response, now)
            return
        self._below.send_user(query.source, raw, now)
        others = self.roster.others_alive()
        if not query.relay_factor or len(self.roster) < query.relay_factor + 1:
            return
        relayed = encode(Relay(query.source, query.source_node, raw))
        if len(relayed) <= self.config.response_bytes_max:
            for member in self._random.sample(others, min(query.relay_factor, len(others))):
                self._below.send_user(member.address, relayed, now)

    def _take_response(self, response: QueryResponse, now: float) -> None:
        answer = self._open.answer(response, now)
        if answer is None:
            return
        if (count := self._key_counts.get(answer.query)) is not None:
            if not answer.ack and count.add(answer.node, answer.payload):
                self._open.close(answer.query)
                self._finish(answer.query)
        elif (votes := self._votes.get(answer.query)) is not None:
            if not answer.ack:
                self._count_vote(votes, answer.payload)
        else:
            self._emit(answer)

    def _count_vote(self, votes: list[bool], payload: bytes) -> None:
        try:
            vote = decode(payload)
        except BadMessage:
            vote = None
        if isinstance(vote, Vote):
            votes.append(vote.address == self._below.me.address)
        else:
            self.counts["bad_messages"] += 1

    def _finish(self, ltime: int) -> None:
        """The time of a query of ours is over."""
        if (count := self._key_counts.pop(ltime, None)) is not None:
            self._emit(KeyDone(ltime, count.result()))
        elif (votes := self._votes.pop(ltime, None)) is not None:
            matching = sum(votes)
            self._emit(ConflictOver(matching >= len(votes) // 2 + 1, matching, len(votes)))
        else:
            self._emit(QueryDone(ltime))

    def _reaped(self, change: MemberChange) -> None:
        self.vivaldi.forget(change.member.name)
        self.coordinates.pop(change.member.name, None)
        self._emit(change)

    def _emit(self, event: Event | None) -> None:
        if event is None:
            return
        if len(self._out) == OUT_MAX:
            self.counts["events_dropped"] += 1
        self._out.append(event)
        if self._ready is not None and len(self._out) == 1:
            self._ready()

    # Looking

    def members(self) -> list[SerfMember]:
        """All members."""
        return self.roster.all()

    def stats(self) -> dict[str, str]:
        """The block "serf" of Serf's stats."""
        numbers = {
            "members": len(self.roster),
            "failed": self.roster.failed_count,
            "left": self.roster.left_count,
            "member_time": self.clock.time,
            "event_time": self.event_clock.time,
            "query_time": self.query_clock.time,
            "intent_queue": len(self.intents),
            "event_queue": len(self.events),
            "query_queue": len(self.queries),
            "coordinate_resets": self.vivaldi.resets,
        }
        shown = {name: str(number) for name, number in numbers.items()}
        return shown | {"encrypted": "true" if self.ring else "false"}
