"""DNS messages as bytes: questions taken apart, answers put together. Pure, packed by hand, bounded by the input.

Only what a server of A, AAAA, SRV, PTR and TXT records and a forwarder need (RFC 1035, 2308, 6891): a forwarded answer
is taken apart no further than its time-to-live fields. Tests compare with dnslib. A name is kept in *wire form*: each
label with its length in front, then a zero byte; `b"\\x03api\\x00"`. Lengths are at most 63, below the codes of
letters, so `bytes.lower` folds case without touching them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import msgspec

HEADER_LEN = 12
NAME_MAX = 255  # RFC 1035 2.3.4, wire form
LABEL_MAX = 63
MESSAGE_MAX = 65535  # of a length in two bytes, over TCP
UDP_MIN = 512  # what every client takes (RFC 1035 4.2.1)
UDP_MAX = 1232  # what never has to be fragmented (DNS flag day 2020)
OPT_LEN = 11

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
_OPCODE = 0x7800
DO = 0x8000  # in the flags of OPT

A, NS, SOA, PTR, TXT, AAAA, SRV, OPT = 1, 2, 6, 12, 16, 28, 33, 41
IXFR, AXFR, ANY = 251, 252, 255
IN, CLASS_ANY = 1, 255

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
BADVERS = 16  # the upper bits are in OPT

TYPES: Final = {"A": A, "NS": NS, "SOA": SOA, "PTR": PTR, "TXT": TXT, "AAAA": AAAA, "SRV": SRV, "ANY": ANY,
                "CNAME": 5, "MX": 15, "SVCB": 64, "HTTPS": 65}  # fmt: skip
TYPE_NAMES: Final = {number: name for name, number in TYPES.items()}

_HEADER = struct.Struct("!6H")
_COUNTS = struct.Struct("!5H")  # flags and the four counts: the header without the id
_TYPE_CLASS = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")  # type, class, ttl, length
_TTL = struct.Struct("!I")
_SOA_LEN_MIN = 22  # two names of one byte, five numbers of four
_POINTER_TO_QUESTION = b"\xc0\x0c"
_POINTERS_MAX = 126  # a name has at most 127 labels; more jumps than that are a loop


class WireError(ValueError):
    """Bytes that are not what they should be."""


# --- names --------------------------------------------------------------------------------------------------------


def to_wire(name: str) -> bytes:
    """Wire form, in lower case, of a name with or without its last dot. Raises WireError."""
    labels = [label.encode("ascii", "replace").lower() for label in name.removesuffix(".").split(".")] if name else []
    if name in ("", "."):
        return b"\0"
    if not all(1 <= len(label) <= LABEL_MAX for label in labels):
        raise WireError(f'"{name[:80]}" has a label that is empty or longer than {LABEL_MAX} bytes')
    wire = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    if len(wire) > NAME_MAX:
        raise WireError(f'"{name[:80]}" is longer than {NAME_MAX} bytes')
    return wire


def to_text(wire: bytes) -> str:
    """A name for people; bytes that are not printable ASCII, and dots inside labels, as `\\ddd`."""
    labels, at = [], 0
    while at < len(wire) and wire[at]:
        label = wire[at + 1 : at + 1 + wire[at]]
        labels.append("".join(chr(b) if 0x21 <= b <= 0x7E and b not in b".\\" else f"\\{b:03}" for b in label))
        at += 1 + wire[at]
    return ".".join(labels) or "."


def label_starts(data: bytes, at: int) -> tuple[list[int], int]:
    """Where each label of an uncompressed name begins, and where what follows the name begins. Raises WireError."""
    starts: list[int] = []
    first = at
    try:
        while length := data[at]:
            if length > LABEL_MAX:  # a pointer, or the label types that never came to be
                raise WireError("label too long, or compressed")
            starts.append(at)
            at += 1 + length
    except IndexError:
        raise WireError("name runs past the end") from None
    if at + 1 - first > NAME_MAX:
        raise WireError("name too long")
    return starts, at + 1


def _skip_name(data: bytes, at: int) -> int:
    """Where what follows a name begins. Checks that its pointers go backwards, and come to an end."""
    after = 0
    low = at  # each jump must go before all that was read
    for _ in range(_POINTERS_MAX):
        length = data[at]
        if length == 0:
            return after or at + 1
        if length <= LABEL_MAX:
            at += 1 + length
            continue
        if length < 0xC0:
            raise WireError("unknown kind of label")
        target = (length & 0x3F) << 8 | data[at + 1]
        if not HEADER_LEN <= target < low:
            raise WireError("pointer that does not go backwards")
        after = after or at + 2
        at = low = target
    raise WireError("name without end")


# --- questions ----------------------------------------------------------------------------------------------------


class Query(msgspec.Struct, frozen=True, gc=False):
    """A question that can be answered."""

    id: bytes  # two bytes
    flags: int
    name: bytes  # wire form, in the case it was asked in
    starts: tuple[int, ...]  # where each label begins in `name`
    qtype: int
    qclass: int
    edns_size: int = 0  # 0: no EDNS
    edns_version: int = 0
    dnssec_ok: bool = False
    plain: bool = True  # no EDNS options, or other things that differ from one question to the next

    @property
    def question(self) -> bytes:
        """The question section, as it was asked."""
        return self.name + _TYPE_CLASS.pack(self.qtype, self.qclass)

    @property
    def udp_limit(self) -> int:
        """The size of the largest answer that may go out over UDP."""
        return max(UDP_MIN, min(self.edns_size, UDP_MAX))


class Unanswerable(msgspec.Struct, frozen=True, gc=False):
    """Bytes that hold no question. With a `reply` where the header can be read, without it where it is no use."""

    reason: str
    reply: bytes | None = None


def parse_query(data: bytes) -> Query | Unanswerable:
    """Take a request apart. Total: never raises."""
    if len(data) < HEADER_LEN:
        return Unanswerable("short")
    _, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
    if flags & QR:
        return Unanswerable("not a query")  # answering answers would let two servers talk for ever
    if flags & _OPCODE:
        return Unanswerable("opcode", _bare(data, flags, NOTIMP))
    if questions != 1 or answers or authority:
        return Unanswerable("counts", _bare(data, flags, FORMERR))
    try:
        starts, at = label_starts(data, HEADER_LEN)
        qtype, qclass = _TYPE_CLASS.unpack_from(data, at)
        name = data[HEADER_LEN:at]
        shifted = tuple(start - HEADER_LEN for start in starts)
        if not additional:
            if len(data) != at + 4:
                raise WireError("trailing bytes")
            return Query(data[:2], flags, name, shifted, qtype, qclass)
        opt = _parse_additional(data, at + 4, additional)
    except (WireError, IndexError, struct.error):
        return Unanswerable("malformed", _bare(data, flags, FORMERR))
    if opt is None:
        return Query(data[:2], flags, name, shifted, qtype, qclass, plain=False)
    size, version, dnssec_ok, plain = opt
    return Query(data[:2], flags, name, shifted, qtype, qclass, max(size, UDP_MIN), version, dnssec_ok, plain)


def _parse_additional(data: bytes, at: int, count: int) -> tuple[int, int, bool, bool] | None:
    """(size, version, DO, nothing else) of the OPT record, if there is one. Raises when malformed."""
    opt = None
    for _ in range(count):  # ends at the end of the data at the latest
        after = _skip_name(data, at)
        kind, size, ttl, length = _RECORD.unpack_from(data, after)
        if kind == OPT:
            if opt is not None or data[at]:
                raise WireError("more than one OPT, or not of the root")
            opt = size, ttl >> 16 & 0xFF, bool(ttl & DO), not length and count == 1
        at = after + _RECORD.size + length
    if at != len(data):
        raise WireError("trailing bytes, or too few")
    return opt


def _bare(data: bytes, flags: int, rcode: int) -> bytes:
    """An error that repeats no more than the id: what follows could not be read."""
    return data[:2] + _COUNTS.pack(QR | flags & (_OPCODE | RD) | rcode, 0, 0, 0, 0)


def question(ident: int, name: bytes, qtype: int, qclass: int = IN, *, edns: bool, dnssec_ok: bool = False,
             checking_disabled: bool = False) -> bytes:  # fmt: skip
    """A question for another server, asking for recursion."""
    flags = RD | (CD if checking_disabled else 0)
    opt = _opt(0, UDP_MAX, dnssec_ok) if edns else b""
    return _HEADER.pack(ident, flags, 1, 0, 0, int(edns)) + name + _TYPE_CLASS.pack(qtype, qclass) + opt


# --- records and answers ------------------------------------------------------------------------------------------


def record(owner: bytes | None, kind: int, ttl_s: int, data: bytes) -> bytes:
    """One record in class IN; without an owner it is that of the question, by reference."""
    return (_POINTER_TO_QUESTION if owner is None else owner) + _RECORD.pack(kind, IN, ttl_s, len(data)) + data


def soa(owner: bytes, negative_ttl_s: int) -> bytes:
    """The record that says for how long a negative answer may be kept (RFC 2308)."""
    host, mail = b"\x02ns\x04mesh\0", b"\x0ahostmaster\x04mesh\0"
    times = struct.pack("!5I", 1, 3600, 600, 86400, negative_ttl_s)
    return record(owner, SOA, negative_ttl_s, host + mail + times)


def srv_data(priority: int, weight: int, port: int, target: bytes) -> bytes:
    """The data of an SRV record (RFC 2782)."""
    return struct.pack("!3H", priority, weight, port) + target


def txt_data(text: str) -> bytes:
    """The data of a TXT record, in pieces of 255 bytes."""
    raw = text.encode()
    pieces = [raw[i : i + 255] for i in range(0, len(raw), 255)] or [b""]
    return b"".join(bytes((len(piece),)) + piece for piece in pieces)


def _opt(rcode: int, size: int, dnssec_ok: bool) -> bytes:
    ttl = (rcode >> 4) << 24 | (DO if dnssec_ok else 0)
    return b"\0" + _RECORD.pack(OPT, size, ttl, 0)


def answer(
    query: Query,
    rcode: int,
    answers: Iterable[bytes] = (),
    authority: bytes = b"",
    additional: Iterable[bytes] = (),
    *,
    authoritative: bool = True,
    limit: int,
) -> bytes:
    """An answer of at most `limit` bytes: as many answers as fit, with TC set when that is not all (RFC 2181 9).

    A partial answer is worth more than an empty one to clients that do not ask again over TCP (old musl). Additional
    records that do not fit are left out without a word.
    """
    asked = query.question
    opt = _opt(rcode, UDP_MAX, query.dnssec_ok) if query.edns_size else b""
    room = limit - HEADER_LEN - len(asked) - len(opt) - len(authority)
    flags = QR | query.flags & (RD | CD) | RA | (AA if authoritative else 0) | rcode & 15
    kept: list[bytes] = []
    for item in answers:
        room -= len(item)
        if room < 0:
            flags |= TC
            break
        kept.append(item)
    extra: list[bytes] = []
    for item in () if flags & TC else additional:
        room -= len(item)
        if room < 0:
            break
        extra.append(item)
    counts = _COUNTS.pack(flags, 1, len(kept), 1 if authority else 0, len(extra) + (1 if opt else 0))
    return b"".join((query.id, counts, asked, *kept, authority, *extra, opt))


# --- answers of others --------------------------------------------------------------------------------------------


class Message(msgspec.Struct, frozen=True, gc=False):
    """An answer of another server, as much of it as is needed to keep and to repeat it."""

    rcode: int
    flags: int
    name_len: int  # of the question's name: references in `body` are only right behind a name of this length
    counts: tuple[int, int, int]  # answer, authority, additional; OPT left out
    body: bytes  # everything after the question
    ttl_offsets: tuple[int, ...]  # in `body`
    answer_ttl_s: int  # the least of the answer section; 0: it is empty
    negative_ttl_s: int  # of the SOA record in the authority section; 0: there is none

    @property
    def truncated(self) -> bool:
        return bool(self.flags & TC)


def parse_answer(data: bytes) -> tuple[int, bytes, int, int, Message]:
    """(id, name in lower case, type, class, message). Raises WireError on anything that is not an answer."""
    try:
        return _parse_answer(data)
    except (IndexError, struct.error):
        raise WireError("runs past the end") from None


def _parse_answer(data: bytes) -> tuple[int, bytes, int, int, Message]:
    ident, flags, questions, *counts = _HEADER.unpack_from(data)
    if not flags & QR or flags & _OPCODE or questions != 1:
        raise WireError("not an answer to a question")
    _, at = label_starts(data, HEADER_LEN)
    name = data[HEADER_LEN:at]
    qtype, qclass = _TYPE_CLASS.unpack_from(data, at)
    body_at = end = at = at + 4
    kept = [0, 0, 0]
    offsets: list[int] = []
    least_s: list[int] = []
    negative_s, extended, seen_opt = 0, 0, False
    for section in range(3):
        for _ in range(counts[section]):
            after = _skip_name(data, at)
            kind, _, ttl, length = _RECORD.unpack_from(data, after)
            at = after + _RECORD.size + length
            if at > len(data):
                raise WireError("record runs past the end")
            if kind == OPT:
                extended, seen_opt = ttl >> 24, True
            if seen_opt:  # OPT is cut off, and what follows it: references go backwards only, so the rest stays right
                continue
            ttl_s = ttl if ttl < 1 << 31 else 0  # RFC 2181 8
            if section == 0:
                least_s.append(ttl_s)
            elif section == 1 and kind == SOA and length >= _SOA_LEN_MIN:
                negative_s = min(ttl_s, _TTL.unpack_from(data, at - 4)[0])
            kept[section] += 1
            offsets.append(after + 4 - body_at)
            end = at
    message = Message(
        rcode=flags & 15 | extended << 4,
        flags=flags,
        name_len=len(name),
        counts=(kept[0], kept[1], kept[2]),
        body=data[body_at:end],
        ttl_offsets=tuple(offsets),
        answer_ttl_s=min(least_s, default=0),
        negative_ttl_s=negative_s,
    )
    return ident, name.lower(), qtype, qclass, message


def relay(query: Query, message: Message, *, age_s: int, ttl_max_s: int, limit: int) -> bytes:
    """Another server's answer as the answer to `query`, its times-to-live `age_s` further on, at most `ttl_max_s`.

    The name asked for is as long as that of the message (it differs in case at most): references stay right. What does
    not fit `limit` goes empty with TC.
    """
    assert len(query.name) == message.name_len
    flags = QR | RA | query.flags & (RD | CD) | message.flags & AD | message.rcode & 15
    asked = query.question
    opt = _opt(message.rcode, UDP_MAX, query.dnssec_ok) if query.edns_size else b""
    if HEADER_LEN + len(asked) + len(message.body) + len(opt) > limit:
        return query.id + _COUNTS.pack(flags | TC, 1, 0, 0, 1 if opt else 0) + asked + opt
    body = bytearray(message.body)
    for offset in message.ttl_offsets:
        (ttl_s,) = _TTL.unpack_from(body, offset)
        _TTL.pack_into(body, offset, max(0, min(ttl_s - age_s, ttl_max_s)))
    answers, authority, additional = message.counts
    counts = _COUNTS.pack(flags, 1, answers, authority, additional + (1 if opt else 0))
    return b"".join((query.id, counts, asked, body, opt))
