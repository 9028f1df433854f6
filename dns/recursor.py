"""Names of others: from the cache, or by asking. Sans-IO; joins `cache` and `forward`.

`begin` gives an answer at once when there is one; otherwise the client waits, and `take` tells later whom to send what.
Nobody waits for ever: a flight ends with an answer, a stale answer, or "server failure".
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from dns import wire
from dns.cache import POSITIVE_TTL_MAX_S, Cache, Hit, Key
from dns.forward import AskTcp, AskUdp, Close, Done, Forwarder, Stale
from dns.wire import SERVFAIL, Message, Query

# After nobody could be asked, stale answers are given without asking again for this long (RFC 8767 5 suggests 30 s;
# here a client would then see the old address of a moved name for as long after the servers are back).
RECHECK_S = 5.0


class Waiting(msgspec.Struct, frozen=True):
    """A client that waits: what it asked, how large its answer may be, and where to (the shell's business)."""

    query: Query
    limit: int
    reply_to: object


class Fetched(msgspec.Struct, frozen=True, gc=False):
    """An answer that was at hand. `repeatable`: the same for whoever asks within a second."""

    answer: bytes
    repeatable: bool


Socket = AskUdp | AskTcp | Close


class Recursor:
    """All names that are not ours."""

    def __init__(self, random_bits: Callable[[int], int], cache: Cache | None = None) -> None:
        self.cache = cache or Cache()
        self.forwarder = Forwarder(random_bits)
        self.served_stale = 0

    def begin(self, waiting: Waiting, client: bytes, now_s: float) -> Fetched | None:
        """The answer, or None: it will come out of `take`."""
        query = waiting.query
        key = Key(query.name.lower(), query.qtype, query.qclass, query.dnssec_ok, bool(query.flags & wire.CD))
        hit = self.cache.get(key, now_s)
        if hit is not None and not hit.stale:
            return Fetched(_relay(waiting, hit), repeatable=True)
        if self.forwarder.ask(key, query.name, waiting, client, stale=hit is not None, now_s=now_s):
            return None
        if hit is not None:
            self.served_stale += 1
            return Fetched(_relay(waiting, hit), repeatable=False)
        failure = wire.answer(query, SERVFAIL, authoritative=False, limit=waiting.limit)
        return Fetched(failure, repeatable=False)

    def take(self, now_s: float) -> tuple[list[Socket], list[tuple[Waiting, bytes]]]:
        """What to do with sockets, and whom to send what."""
        sockets: list[Socket] = []
        answers: list[tuple[Waiting, bytes]] = []
        for output in self.forwarder.drain():
            match output:
                case AskUdp() | AskTcp() | Close():
                    sockets.append(output)
                case Done(key, waiters, message):
                    answers += self._done(key, waiters, message, now_s)
                case Stale(key, waiters):
                    answers += self._stale(waiters, self.cache.get(key, now_s))
        return sockets, answers

    def _done(
        self, key: Key, waiters: tuple[object, ...], message: Message | None, now_s: float
    ) -> list[tuple[Waiting, bytes]]:
        if message is None or message.rcode == SERVFAIL:
            hit = self.cache.get(key, now_s)
            if hit is not None and hit.message.rcode != SERVFAIL:
                self.cache.postpone(key, now_s, RECHECK_S)
                return self._stale(waiters, hit)
        if message is None:
            message = Message(SERVFAIL, 0, len(key.name), (0, 0, 0), b"", (), 0, 0)
        self.cache.put(key, message, now_s)
        hit = Hit(message, 0, False, POSITIVE_TTL_MAX_S)
        return [(w, _relay(w, hit)) for w in waiters if isinstance(w, Waiting)]

    def _stale(self, waiters: tuple[object, ...], hit: Hit | None) -> list[tuple[Waiting, bytes]]:
        if hit is None:  # evicted since
            return [
                (w, wire.answer(w.query, SERVFAIL, authoritative=False, limit=w.limit))
                for w in waiters
                if isinstance(w, Waiting)
            ]
        self.served_stale += len(waiters)
        return [(w, _relay(w, hit)) for w in waiters if isinstance(w, Waiting)]


def _relay(waiting: Waiting, hit: Hit) -> bytes:
    return wire.relay(waiting.query, hit.message, age_s=hit.age_s, ttl_max_s=hit.ttl_max_s, limit=waiting.limit)
