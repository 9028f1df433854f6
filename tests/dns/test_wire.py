"""The codec against dnslib, and against bytes that are no messages."""

from __future__ import annotations

import contextlib
import random
from ipaddress import ip_address

import dnslib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dns import wire
from dns.wire import Message, Query, Unanswerable, WireError

LABEL = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", min_size=1, max_size=20)
NAME = st.lists(LABEL, min_size=1, max_size=6).map(".".join)


def query(name: str = "api", qtype: int = 1, **flags: bool) -> bytes:
    return wire.question(7, wire.to_wire(name), qtype, edns=flags.pop("edns", True), **flags)


def parsed(data: bytes) -> Query:
    found = wire.parse_query(data)
    assert isinstance(found, Query), found
    return found


def refused(data: bytes) -> tuple[str, int | None]:
    found = wire.parse_query(data)
    assert isinstance(found, Unanswerable)
    return found.reason, None if found.reply is None else found.reply[3] & 15


# --- questions ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(NAME, st.sampled_from(["A", "AAAA", "SRV", "PTR", "TXT", "ANY"]), st.booleans(), st.integers(0, 65535))
def test_questions_of_dnslib_are_understood(name: str, kind: str, edns: bool, size: int) -> None:
    record = dnslib.DNSRecord.question(name, kind)
    if edns:
        record.add_ar(dnslib.EDNS0(flags="do", udp_len=size))
    found = parsed(bytes(record.pack()))
    assert found.id == bytes(record.pack())[:2]
    assert wire.to_text(found.name) == name
    assert (found.qtype, found.qclass) == (record.q.qtype, 1)
    assert [found.name[s] for s in found.starts] == [len(label) for label in name.split(".")]
    assert found.dnssec_ok == edns
    assert found.udp_limit == (max(512, min(size, 1232)) if edns else 512)


@settings(max_examples=100, deadline=None)
@given(NAME, st.booleans(), st.booleans())
def test_our_questions_are_understood_by_dnslib(name: str, edns: bool, dnssec_ok: bool) -> None:
    data = wire.question(513, wire.to_wire(name), 28, edns=edns, dnssec_ok=dnssec_ok)
    record = dnslib.DNSRecord.parse(data)
    assert (record.header.id, record.header.rd, record.q.qtype) == (513, 1, 28)
    assert str(record.q.qname) == name.lower() + "."
    assert [rr.edns_len for rr in record.ar] == ([1232] if edns else [])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", ("short", None)),
        (query()[:11], ("short", None)),
        (query()[:2] + b"\x81\x00" + query()[4:], ("not a query", None)),
        (query()[:2] + b"\x28\x00" + query()[4:], ("opcode", wire.NOTIMP)),
        (query()[:4] + b"\0\2" + query()[6:], ("counts", wire.FORMERR)),
        (query()[:4] + b"\0\0" + query()[6:], ("counts", wire.FORMERR)),
        (query()[:6] + b"\0\1" + query()[8:], ("counts", wire.FORMERR)),
        (query() + b"\0", ("malformed", wire.FORMERR)),
        (query(edns=False) + b"x", ("malformed", wire.FORMERR)),
        (query()[:-1], ("malformed", wire.FORMERR)),
        (query(edns=False)[:-1], ("malformed", wire.FORMERR)),
        # a pointer to itself, the unused kinds of labels, a label and a name that are too long, a name without end
        (query(edns=False)[:12] + b"\xc0\x0c\0\1\0\1", ("malformed", wire.FORMERR)),
        (query(edns=False)[:12] + b"\x40a\0\0\1\0\1", ("malformed", wire.FORMERR)),
        (query(edns=False)[:12] + b"\x80a\0\0\1\0\1", ("malformed", wire.FORMERR)),
        (query(edns=False)[:12] + 5 * (b"\x3f" + 63 * b"a") + b"\0\0\1\0\1", ("malformed", wire.FORMERR)),
        (query(edns=False)[:12] + b"\x3fa", ("malformed", wire.FORMERR)),
        # two OPT records, and an OPT record that is not of the root
        (query()[:10] + b"\0\2" + query()[12:] + query()[-11:], ("malformed", wire.FORMERR)),
        (query()[:-11] + b"\1a" + query()[-11:], ("malformed", wire.FORMERR)),
    ],
)  # fmt: skip
def test_what_is_no_question(data: bytes, expected: tuple[str, int | None]) -> None:
    assert refused(data) == expected


def test_an_error_repeats_the_id_and_nothing_that_could_not_be_read() -> None:
    found = wire.parse_query(query()[:4] + b"\0\2" + query()[6:])
    assert isinstance(found, Unanswerable)
    assert found.reply == b"\x00\x07\x81\x01" + 8 * b"\0"


def test_options_make_a_question_one_of_a_kind() -> None:
    cookie = dnslib.DNSRecord.question("api")
    cookie.add_ar(dnslib.EDNS0(opts=[dnslib.EDNSOption(10, b"12345678")]))
    assert not parsed(bytes(cookie.pack())).plain
    assert parsed(query()).plain
    assert parsed(query(edns=False)).plain


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_noise_never_raises(data: bytes) -> None:
    wire.parse_query(data)
    with contextlib.suppress(WireError):
        wire.parse_answer(data)


def test_mutated_questions_never_raise_and_every_reply_is_a_message() -> None:
    rng = random.Random(1)
    seeds = [query(), query("a.very.long.name.of.many.labels", 255), query(edns=False)]
    for _ in range(5000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        found = wire.parse_query(bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.2 else data))
        reply = found.reply if isinstance(found, Unanswerable) else wire.answer(found, wire.NXDOMAIN, limit=512)
        if reply is not None:
            assert len(reply) >= 12
            assert reply[2] & 0x80


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a..b", ".a", "x" * 64, ".".join(["x" * 63] * 4 + ["y"])])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(WireError):
        wire.to_wire(name)


def test_names_in_both_forms() -> None:
    assert wire.to_wire("Api.Web.mesh.") == b"\x03api\x03web\x04mesh\0"
    assert wire.to_wire(".") == wire.to_wire("") == b"\0"
    assert wire.to_text(b"\0") == "."
    assert wire.to_text(b"\x04a.\x00b\x01c\0") == "a\\046\\000b.c"


# --- answers ------------------------------------------------------------------------------------------------------


def test_an_answer_as_dnslib_reads_it() -> None:
    asked = parsed(query("_http._tcp.api", wire.SRV))
    target = wire.to_wire("1.api.web.mesh")
    data = wire.answer(
        asked,
        wire.NOERROR,
        [wire.record(None, wire.SRV, 5, wire.srv_data(0, 1, 8080, target))],
        additional=[wire.record(target, wire.A, 5, ip_address("10.0.0.9").packed)],
        limit=512,
    )
    record = dnslib.DNSRecord.parse(data)
    assert (record.header.qr, record.header.aa, record.header.ra, record.header.rcode) == (1, 1, 1, 0)
    assert [str(rr) for rr in record.rr] == ["_http._tcp.api.         5       IN      SRV     0 1 8080 1.api.web.mesh."]
    assert [str(rr.rdata) for rr in record.ar if rr.rtype == wire.A] == ["10.0.0.9"]
    assert record.ar[-1].rtype == wire.OPT


@pytest.mark.parametrize("limit", [512, 700, 1232, 65535])
@pytest.mark.parametrize("edns", [True, False])
def test_answers_are_as_full_as_they_can_be(limit: int, edns: bool) -> None:
    asked = parsed(query("tasks.api", edns=edns))
    records = [wire.record(None, wire.A, 5, i.to_bytes(4, "big")) for i in range(300)]
    data = wire.answer(asked, wire.NOERROR, records, additional=records[:5], limit=limit)
    record = dnslib.DNSRecord.parse(data)
    truncated = limit < 65535
    assert bool(record.header.tc) == truncated
    assert len(data) <= limit
    assert not truncated or len(data) > limit - 16
    assert len(record.rr) == (300 if not truncated else (limit - 12 - 15 - 11 * edns) // 16)
    assert len(record.ar) == (edns if truncated else 5 + edns)


def test_long_texts_are_cut_into_pieces() -> None:
    asked = parsed(query("api", wire.TXT))
    data = wire.answer(asked, 0, [wire.record(None, wire.TXT, 5, wire.txt_data("x" * 600))], limit=65535)
    assert [len(piece) for piece in dnslib.DNSRecord.parse(data).rr[0].rdata.data] == [255, 255, 90]


def test_an_extended_error_has_its_upper_bits_in_opt() -> None:
    data = wire.answer(parsed(query()), wire.BADVERS, limit=512)
    assert data[3] & 15 == 0
    assert dnslib.DNSRecord.parse(data).ar[0].ttl >> 24 == 1


# --- answers of others --------------------------------------------------------------------------------------------


def upstream_answer(*zone: str, rcode: int = 0, soa: str = "", edns: bool = True) -> bytes:
    record = dnslib.DNSRecord.parse(query("www.example.com")).reply()
    for line in zone:
        record.add_answer(*dnslib.RR.fromZone(line))
    if soa:
        record.add_auth(*dnslib.RR.fromZone(soa))
    if edns:
        record.add_ar(dnslib.EDNS0(udp_len=4096))
    record.header.rcode = rcode
    return bytes(record.pack())


def test_an_answer_of_another_server_is_taken_apart_and_repeated() -> None:
    data = upstream_answer("www.example.com 300 CNAME web.example.com", "web.example.com 60 A 192.0.2.1")
    ident, name, qtype, qclass, message = wire.parse_answer(data)
    assert (ident, name, qtype, qclass) == (7, wire.to_wire("www.example.com"), 1, 1)
    assert (message.counts, message.answer_ttl_s, message.negative_ttl_s) == ((2, 0, 0), 60, 0)
    asked = parsed(wire.question(99, b"\x03WwW\x07example\x03com\0", 1, edns=False))
    record = dnslib.DNSRecord.parse(wire.relay(asked, message, age_s=20, ttl_max_s=86400, limit=512))
    assert record.header.id == 99
    assert str(record.q.qname) == "WwW.example.com."
    assert [(rr.ttl, str(rr.rdata)) for rr in record.rr] == [(280, "web.example.com."), (40, "192.0.2.1")]
    assert not record.ar
    assert not record.header.aa


def test_a_negative_answer_says_how_long_it_may_be_kept() -> None:
    soa = "example.com 900 SOA ns.example.com root.example.com 1 2 3 4 120"
    *_, message = wire.parse_answer(upstream_answer(rcode=3, soa=soa))
    assert (message.rcode, message.negative_ttl_s, message.counts) == (3, 120, (0, 1, 0))


def test_a_repeated_answer_that_does_not_fit_goes_empty() -> None:
    data = upstream_answer(*(f"www.example.com 60 A 192.0.2.{i}" for i in range(60)))
    *_, message = wire.parse_answer(data)
    record = dnslib.DNSRecord.parse(
        wire.relay(parsed(query("www.example.com", edns=False)), message, age_s=0, ttl_max_s=9, limit=512)
    )
    assert record.header.tc
    assert not record.rr


def test_truncated_answers_are_refused_at_every_length() -> None:
    data = upstream_answer("www.example.com 60 A 192.0.2.1", soa="example.com 9 SOA a. b. 1 2 3 4 5")
    for length in range(len(data)):
        with pytest.raises(WireError):
            wire.parse_answer(data[:length])


def test_pointers_forwards_and_in_circles_are_refused() -> None:
    data = upstream_answer("www.example.com 60 A 192.0.2.1", edns=False)
    at = data.index(b"\xc0\x0c\0\1\0\1")
    for target in (at, at + 8, 0, 11, 0x3FFF):
        with pytest.raises(WireError):
            wire.parse_answer(data[:at] + (0xC000 | target).to_bytes(2, "big") + data[at + 2 :])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_mutated_answers_are_repeated_or_refused(data: st.DataObject) -> None:
    original = upstream_answer("www.example.com 60 CNAME a.example.com", "a.example.com 60 A 192.0.2.1")
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 5))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        _, name, qtype, _, message = wire.parse_answer(bytes(mutated))
    except WireError:
        return
    assert isinstance(message, Message)
    asked = parsed(wire.question(1, name, qtype, edns=True))
    assert len(wire.relay(asked, message, age_s=1, ttl_max_s=60, limit=1232)) <= 1232
