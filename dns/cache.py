"""Answers of other servers, kept for as long as they allow. Pure, bounded in bytes.

Positive answers live as long as the least of their records, negative ones as the SOA record with them says (RFC 2308;
without one they are not kept), failures for a moment (RFC 9520). Answers past their time are kept on for a day: when no
server answers, or none in time, a stale answer is better than none (RFC 8767).
"""

from __future__ import annotations

import msgspec

from dns.wire import NOERROR, NXDOMAIN, SERVFAIL, Message

# Memory for all answers; what was not used for the longest time goes first.
BYTES_MAX = 16 * 1024 * 1024
# Python's objects around an answer, measured: key, message, entry, two dictionary slots.
ENTRY_OVERHEAD = 700
# Nobody's mistake (a record with a week to live) shall stay for longer than this.
POSITIVE_TTL_MAX_S = 86_400
NEGATIVE_TTL_MAX_S = 900  # RFC 2308 5 suggests one to three hours; names of tests and deployments appear faster
FAILURE_TTL_S = 2
STALE_MAX_S = 86_400  # RFC 8767 5
STALE_TTL_S = 30  # what a stale answer says of itself at most (RFC 8767 4)


class Key(msgspec.Struct, frozen=True, gc=False):
    """What answers are alike for."""

    name: bytes  # lower case
    qtype: int
    qclass: int
    dnssec_ok: bool = False
    checking_disabled: bool = False


class _Kept(msgspec.Struct, frozen=True, gc=False):
    message: Message
    stored_s: float
    expires_s: float
    size: int
    again_s: float = 0.0  # until then nobody is asked again, although the answer is stale


class Hit(msgspec.Struct, frozen=True, gc=False):
    """A kept answer. One that is `stale` is for when nobody answers."""

    message: Message
    age_s: int
    stale: bool
    ttl_max_s: int


def lifetime_s(message: Message) -> int:
    """How long an answer may be kept, in seconds; 0: not at all."""
    if message.truncated:
        return 0
    if message.rcode == NOERROR and message.counts[0]:
        return min(message.answer_ttl_s, POSITIVE_TTL_MAX_S)
    if message.rcode in (NOERROR, NXDOMAIN):
        return min(message.negative_ttl_s, NEGATIVE_TTL_MAX_S)
    return FAILURE_TTL_S if message.rcode == SERVFAIL else 0


class Cache:
    """By question, least recently used first."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._kept: dict[Key, _Kept] = {}
        self._bytes_max = bytes_max
        self.size = 0  # bytes, estimated
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key, now_s: float) -> Hit | None:
        """What is kept for a question, fresh or stale."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        if now_s >= kept.expires_s + STALE_MAX_S:
            self.size -= kept.size
            return None
        self._kept[key] = kept  # to the end: used last
        if now_s < kept.expires_s:
            return Hit(kept.message, int(now_s - kept.stored_s), False, POSITIVE_TTL_MAX_S)
        # A stale answer's records are all said to live a little longer, so its age does not count.
        return Hit(kept.message, 0, now_s >= kept.again_s, STALE_TTL_S)

    def put(self, key: Key, message: Message, now_s: float) -> None:
        """Keep an answer. A failure does not displace a good answer that could be served stale."""
        ttl_s = lifetime_s(message)
        before = self._kept.get(key)
        failure = message.rcode not in (NOERROR, NXDOMAIN)
        if ttl_s <= 0 or (failure and before is not None and before.message.rcode in (NOERROR, NXDOMAIN)):
            return
        if before is not None:
            del self._kept[key]
            self.size -= before.size
        size = ENTRY_OVERHEAD + len(key.name) + len(message.body) + 8 * len(message.ttl_offsets)
        self._kept[key] = _Kept(message, now_s, now_s + ttl_s, size)
        self.size += size
        while self.size > self._bytes_max:
            oldest = next(iter(self._kept))
            self.size -= self._kept.pop(oldest).size
            self.evicted += 1

    def postpone(self, key: Key, now_s: float, delay_s: float) -> None:
        """Nobody could be asked: make do with the stale answer for a while, instead of asking again each time."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept[key] = msgspec.structs.replace(kept, again_s=now_s + delay_s)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.size = 0
