"""Asking other name servers: which, when, how often, and what to believe. Sans-IO.

One *flight* for each question, however many clients wait for it; one *attempt* for each server asked, over a socket of
its own with a port and an id chosen at random. The shell owns the sockets: it performs `drain()`, hands what comes to
`receive` and `failed`, and calls `wake` at `deadline()`.

Servers are asked in the order of the configuration, those that failed lately last; the next one after HEDGE_S without
an answer, or at once when one fails. The first good answer wins, with one exception: "no such name" from a server
further down waits until those before it have answered or had their time, because with split horizons the first server
knows names that the others do not. All servers round after round until TIMEOUT_S.

Believed is an answer that comes from the address asked, on the port it was asked from, with the attempt's id and its
question (RFC 5452). After FORGED_MAX others on one attempt, the question goes over TCP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from dns import wire
from dns.cache import Key
from dns.upstreams import Upstream
from dns.wire import FORMERR, NOERROR, NOTIMP, NXDOMAIN, Message, WireError

# Questions under way. Each holds up to ATTEMPTS_MAX sockets: stay well below the file limit of the process.
FLIGHTS_MAX = 1024
# Of one client: a container in a loop must not take everybody's places.
FLIGHTS_PER_CLIENT_MAX = 128
# Clients that wait for the same answer. The rest asks again, and then it is in the cache.
WAITERS_MAX = 256
# Attempts of one flight at one time, and in its life.
ATTEMPTS_MAX = 8
# Wait this long for one server before the next is asked as well. Most servers answer in less.
HEDGE_S = 0.15
# After a round through all servers, wait this long before the next: a lost datagram, or all are slow.
ROUND_S = 1.0
# A client has asked again by then (glibc after 5 s), and will give up soon.
TIMEOUT_S = 4.5
# A client with a stale answer at hand is not made to wait for longer (RFC 8767 5).
STALE_AFTER_S = 1.8
# Hold "no such name" of a later server for this long for the sake of those before it.
HOLD_S = 1.0
FORGED_MAX = 20
# All flights are looked at this often, instead of finding the first deadline anew at every step of each.
TICK_S = 0.025
# A server that failed this often in a row is asked last for a while.
FAILURES_MAX = 3
PENALTY_S = 10.0

Token = int


# --- what the shell is to do --------------------------------------------------------------------------------------


class AskUdp(msgspec.Struct, frozen=True, gc=False):
    """Send `data` from a new socket to a server, and hand over what comes."""

    token: Token
    upstream: Upstream
    data: bytes


class AskTcp(msgspec.Struct, frozen=True, gc=False):
    """The same over a new TCP connection."""

    token: Token
    upstream: Upstream
    data: bytes


class Close(msgspec.Struct, frozen=True, gc=False):
    """The attempt is over: close its socket."""

    token: Token


class Done(msgspec.Struct, frozen=True):
    """The answer for all who wait. None: nobody answered in time."""

    key: Key
    waiters: tuple[object, ...]
    message: Message | None


class Stale(msgspec.Struct, frozen=True):
    """These have waited long enough, and there is a stale answer. The flight goes on."""

    key: Key
    waiters: tuple[object, ...]


Output = AskUdp | AskTcp | Close | Done | Stale


# --- state --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Health:
    failures: int = 0
    penalty_until_s: float = 0.0
    no_edns: bool = False  # it said FORMERR or NOTIMP to EDNS


@dataclass(slots=True)
class _Attempt:
    token: Token
    flight: _Flight
    upstream: Upstream
    rank: int  # in the order of this flight
    ident: int
    edns: bool
    tcp: bool
    started_s: float
    forged: int = 0


@dataclass(slots=True)
class _Flight:
    key: Key
    name: bytes  # as the first client spelled it
    order: tuple[Upstream, ...]
    started_s: float
    next_s: float  # when the next server is asked
    stale: bool  # there is a stale answer for those who wait
    step: int = 0  # how many attempts were begun
    waiters: list[object] = field(default_factory=list)
    attempts: dict[Token, _Attempt] = field(default_factory=dict)
    held: tuple[int, Message, float] | None = None  # rank, a negative answer, until when
    failure: Message | None = None  # the last "server failure", for when there is nothing better

    def deadline_s(self) -> float:
        times = [self.next_s, self.started_s + TIMEOUT_S]
        if self.stale and self.waiters:
            times.append(self.started_s + STALE_AFTER_S)
        if self.held is not None:
            times.append(self.held[2])
        return min(times)


@dataclass(slots=True)
class Counters:
    """What happened since the start."""

    asked: int = 0
    answered: int = 0
    failed: int = 0
    forged: int = 0
    refused: int = 0  # too many under way


class Forwarder:
    """All flights. `random_bits(n)` gives n unpredictable bits."""

    def __init__(self, random_bits: Callable[[int], int]) -> None:
        self._random_bits = random_bits
        self._upstreams: tuple[Upstream, ...] = ()
        self._health: dict[Upstream, _Health] = {}
        self._flights: dict[Key, _Flight] = {}
        self._attempts: dict[Token, _Attempt] = {}
        self._per_client: dict[bytes, int] = {}
        self._clients: dict[Key, bytes] = {}
        self._tokens = 0
        self._woken_s = 0.0
        self._out: list[Output] = []
        self.counters = Counters()

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        return self._upstreams

    def __len__(self) -> int:
        return len(self._flights)

    def set_upstreams(self, upstreams: tuple[Upstream, ...]) -> None:
        """Ask these from now on. Flights under way keep theirs."""
        self._upstreams = upstreams
        self._health = {u: self._health.get(u, _Health()) for u in upstreams}

    # --- in ---------------------------------------------------------------------------------------------------------

    def ask(self, key: Key, name: bytes, waiter: object, client: bytes, *, stale: bool, now_s: float) -> bool:
        """Find out for a client. False: cannot now (no servers, too much under way), answer with a failure."""
        flight = self._flights.get(key)
        if flight is not None:
            if len(flight.waiters) >= WAITERS_MAX:
                self.counters.refused += 1
                return False
            flight.waiters.append(waiter)
            return True
        busy = self._per_client.get(client, 0)
        if not self._upstreams or len(self._flights) >= FLIGHTS_MAX or busy >= FLIGHTS_PER_CLIENT_MAX:
            self.counters.refused += 1
            return False
        self._per_client[client] = busy + 1
        self._clients[key] = client
        if not self._flights:
            self._woken_s = now_s
        flight = _Flight(key, name, self._order(now_s), now_s, now_s, stale, waiters=[waiter])
        self._flights[key] = flight
        self.counters.asked += 1
        self._advance(flight, now_s)
        return True

    def receive(self, token: Token, source: tuple[str, int], data: bytes, now_s: float) -> None:
        """Something came on an attempt's socket."""
        attempt = self._attempts.get(token)
        if attempt is None:
            return
        message = self._believe(attempt, source, data)
        if message is None:
            self.counters.forged += 1
            attempt.forged += 1
            if attempt.tcp:
                self._lost(attempt, now_s)
            elif attempt.forged > FORGED_MAX:
                self._again(attempt, now_s, tcp=True)
            return
        if message.truncated and not attempt.tcp:
            self._again(attempt, now_s, tcp=True)
        elif message.rcode in (FORMERR, NOTIMP) and attempt.edns:
            self._health_of(attempt.upstream).no_edns = True
            self._again(attempt, now_s, edns=False)
        else:
            self._judge(attempt, message, now_s)

    def failed(self, token: Token, now_s: float) -> None:
        """An attempt's socket broke: nobody listens there, no route, or a TCP connection ended."""
        attempt = self._attempts.get(token)
        if attempt is not None:
            self._lost(attempt, now_s)

    def wake(self, now_s: float) -> None:
        """Do what is due."""
        self._woken_s = now_s
        for flight in [f for f in self._flights.values() if f.deadline_s() <= now_s]:
            self._advance(flight, now_s)

    # --- out --------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When to wake at the latest."""
        return self._woken_s + TICK_S if self._flights else None

    @property
    def pending(self) -> bool:
        """Whether there is something to drain."""
        return bool(self._out)

    def drain(self) -> list[Output]:
        """What is to be done now, in this order."""
        out, self._out = self._out, []
        return out

    # --- flights ----------------------------------------------------------------------------------------------------

    def _order(self, now_s: float) -> tuple[Upstream, ...]:
        healthy = [u for u in self._upstreams if self._health[u].penalty_until_s <= now_s]
        return (*healthy, *(u for u in self._upstreams if u not in healthy))

    def _advance(self, flight: _Flight, now_s: float) -> None:
        """Whatever is due for one flight."""
        if flight.held is not None and (now_s >= flight.held[2] or not self._before(flight, flight.held[0])):
            return self._finish(flight, flight.held[1])
        if now_s >= flight.started_s + TIMEOUT_S:
            for attempt in flight.attempts.values():
                self._blame(attempt, now_s)
            return self._finish(flight, flight.held[1] if flight.held else flight.failure)
        if flight.stale and flight.waiters and now_s >= flight.started_s + STALE_AFTER_S:
            self._out.append(Stale(flight.key, tuple(flight.waiters)))
            flight.waiters.clear()
        while flight.next_s <= now_s:
            self._next(flight, now_s)
        return None

    def _next(self, flight: _Flight, now_s: float) -> None:
        """Ask the next server of the round."""
        count = len(flight.order)
        if flight.step >= ATTEMPTS_MAX:
            flight.next_s = flight.started_s + TIMEOUT_S
            return
        rank = flight.step % count
        upstream = flight.order[rank]
        for older in [a for a in flight.attempts.values() if a.rank == rank]:
            self._blame(older, now_s)
            self._end(older)
        flight.step += 1
        flight.next_s = now_s + (ROUND_S if flight.step % count == 0 else HEDGE_S)
        self._start(flight, upstream, rank, now_s, edns=not self._health_of(upstream).no_edns, tcp=False)

    def _before(self, flight: _Flight, rank: int) -> bool:
        """Whether a server before `rank` may still answer."""
        return any(attempt.rank < rank for attempt in flight.attempts.values())

    def _finish(self, flight: _Flight, message: Message | None) -> None:
        for attempt in list(flight.attempts.values()):
            self._end(attempt)
        del self._flights[flight.key]
        client = self._clients.pop(flight.key)
        self._per_client[client] -= 1
        if not self._per_client[client]:
            del self._per_client[client]
        if message is None:
            self.counters.failed += 1
        else:
            self.counters.answered += 1
        self._out.append(Done(flight.key, tuple(flight.waiters), message))

    # --- attempts ---------------------------------------------------------------------------------------------------

    def _start(self, flight: _Flight, upstream: Upstream, rank: int, now_s: float, *, edns: bool, tcp: bool) -> None:
        self._tokens += 1
        ident = self._random_bits(16)
        attempt = _Attempt(self._tokens, flight, upstream, rank, ident, edns, tcp, now_s)
        self._attempts[attempt.token] = flight.attempts[attempt.token] = attempt
        key = flight.key
        data = wire.question(ident, flight.name, key.qtype, key.qclass, edns=edns,
                             dnssec_ok=key.dnssec_ok and edns, checking_disabled=key.checking_disabled)  # fmt: skip
        self._out.append((AskTcp if tcp else AskUdp)(attempt.token, upstream, data))

    def _end(self, attempt: _Attempt) -> None:
        del self._attempts[attempt.token]
        del attempt.flight.attempts[attempt.token]
        self._out.append(Close(attempt.token))

    def _again(self, attempt: _Attempt, now_s: float, *, tcp: bool = False, edns: bool | None = None) -> None:
        """Ask the same server in another way. Each way leads to one that is not tried a third time."""
        self._end(attempt)
        how = attempt.edns if edns is None else edns
        self._start(attempt.flight, attempt.upstream, attempt.rank, now_s, edns=how, tcp=tcp or attempt.tcp)

    def _believe(self, attempt: _Attempt, source: tuple[str, int], data: bytes) -> Message | None:
        if source != (attempt.upstream.address, attempt.upstream.port):
            return None
        try:
            ident, name, qtype, qclass, message = wire.parse_answer(data)
        except WireError:
            return self._questionless(attempt, data)
        key = attempt.flight.key
        if ident != attempt.ident or (name, qtype, qclass) != (key.name, key.qtype, key.qclass):
            return None
        return message

    @staticmethod
    def _questionless(attempt: _Attempt, data: bytes) -> Message | None:
        """Servers too old for EDNS say FORMERR with a header only."""
        if len(data) != wire.HEADER_LEN or data[:2] != attempt.ident.to_bytes(2, "big") or not data[2] & 0x80:
            return None
        rcode = data[3] & 15
        return Message(rcode, 0, 0, (0, 0, 0), b"", (), 0, 0) if rcode in (FORMERR, NOTIMP) else None

    def _judge(self, attempt: _Attempt, message: Message, now_s: float) -> None:
        flight = attempt.flight
        negative = message.rcode == NXDOMAIN or (message.rcode == NOERROR and not message.counts[0])
        if message.rcode not in (NOERROR, NXDOMAIN):
            flight.failure = message if message.name_len else flight.failure
            self._lost(attempt, now_s)
            return
        health = self._health_of(attempt.upstream)
        health.failures, health.penalty_until_s = 0, 0.0
        if negative and self._before(flight, attempt.rank):
            if flight.held is None or attempt.rank < flight.held[0]:
                until_s = flight.held[2] if flight.held is not None else now_s + HOLD_S
                flight.held = attempt.rank, message, until_s
            self._end(attempt)
            return
        self._finish(flight, message)

    def _lost(self, attempt: _Attempt, now_s: float) -> None:
        """No use of this attempt: ask the next at once, if one has not been asked yet."""
        flight = attempt.flight
        self._blame(attempt, now_s)
        self._end(attempt)
        if flight.step < len(flight.order):
            flight.next_s = now_s
        elif not flight.attempts:  # all have spoken: waiting for the next round would only make the client wait
            return self._finish(flight, flight.held[1] if flight.held else flight.failure)
        self._advance(flight, now_s)
        return None

    def _health_of(self, upstream: Upstream) -> _Health:
        return self._health.get(upstream) or _Health()  # it may have left the configuration

    def _blame(self, attempt: _Attempt, now_s: float) -> None:
        health = self._health_of(attempt.upstream)
        health.failures += 1
        if health.failures >= FAILURES_MAX:
            health.penalty_until_s = now_s + PENALTY_S
