"""The small cores: packed answers, streams, shares, upstreams, records, and the feed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dns import fairness, feed, stream, wire
from dns.fairness import Fairness
from dns.hot import Hot
from dns.plan import DnsPlan, Listener, NetworkNames, ServiceNames, TaskNames
from dns.records import RecordsError, parse_records, records_zone
from dns.stream import Stream
from dns.upstreams import Upstream, choose, parse_resolv_conf, parse_upstream
from dns.zone import NetworkZone, service_shares

# --- packed answers -----------------------------------------------------------------------------------------------


def packed(name: str, number: int = 1) -> tuple[bytes, bytes, bytes]:
    """(key, name, answer) as the resolver makes them."""
    spelled = b"\x03" + name.encode() + b"\0"
    key = b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + spelled + b"\0\x41\0\1"  # type 65 is an upper-case A
    return key, spelled.lower(), b"\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00" + spelled + b"\0\x41\0\1" + bytes([number])


def test_spelling_is_the_askers() -> None:
    hot = Hot()
    hot.put(*packed("api"))
    for spelling in ("api", "aPi", "API"):
        key, _, answer = packed(spelling)
        assert hot.find(key) == answer
    assert len(hot) == 1
    assert hot.find(packed("apx")[0]) is None
    assert hot.find(b"") is None
    assert hot.find(b"\xff" * 40) is None


def test_what_is_used_survives_and_what_is_not_goes() -> None:
    hot = Hot()
    hot.generation_max = 10
    hot.put(*packed("api"))
    for i in range(100, 200):
        hot.put(*packed(str(i)))
        assert hot.find(packed("api")[0]) is not None
        assert len(hot) <= 20
    assert hot.find(packed("100")[0]) is None


def test_forgetting_reaches_both_generations() -> None:
    hot = Hot()
    hot.generation_max = 2
    for name in ("aaa", "bbb", "ccc"):
        hot.put(*packed(name))
    for name in ("aaa", "ccc"):
        hot.forget(packed(name)[1])
        assert hot.find(packed(name)[0]) is None
    assert hot.find(packed("bbb")[0]) is not None
    hot.clear()
    assert len(hot) == 0


def test_brief_answers_go_with_the_second() -> None:
    hot = Hot()
    hot.put(*packed("api"))
    hot.put_brief(*packed("bbb"))
    assert hot.find(packed("bbb")[0]) is not None
    hot.tick()
    assert hot.find(packed("bbb")[0]) is None
    assert hot.find(packed("api")[0]) is not None


def test_room_grows_with_the_number_of_names() -> None:
    hot = Hot(lambda: 100_000)
    hot.generation_max = 10
    for i in range(100, 900):
        hot.put(*packed(str(i)))
    assert len(hot) == 800
    assert hot.generation_max == 262_144


def test_long_questions_are_not_kept() -> None:
    hot = Hot()
    hot.put(b"k" * 161, b"\0", b"a")
    hot.put(b"k" * 16, b"\0", b"a" * 601)
    assert len(hot) == 0


# --- streams ------------------------------------------------------------------------------------------------------


def framed(*messages: bytes) -> bytes:
    return b"".join(len(m).to_bytes(2, "big") + m for m in messages)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=10), st.integers(1, 20))
def test_questions_come_out_whole_however_they_arrive(messages: list[bytes], piece: int) -> None:
    made, data, out = Stream(0.0), framed(*messages), []
    for i in range(0, len(data), piece):
        out += made.receive(data[i : i + piece], 0.0)
    assert out == messages


def test_a_client_that_sends_more_than_it_is_answered_waits() -> None:
    made = Stream(0.0)
    first = made.receive(framed(*[b"q"] * (stream.PENDING_MAX + 5)), 0.0)
    assert len(first) == stream.PENDING_MAX
    assert not made.readable
    made.answered(b"a", 0.0)
    assert made.questions_ready(0.0) == [b"q"]
    assert not made.readable


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    made = Stream(0.0)
    for _ in range(4):
        made.receive(framed(b"q"), 0.0)
        made.answered(b"a" * 65_535, 0.0)
    made.receive(framed(b"q"), 0.0)
    made.answered(b"a", 0.0)
    assert not made.readable
    made.written(65_537, 1.0)
    assert made.readable


def test_slow_clients_are_cut_off_however_busy_they_look() -> None:
    made = Stream(0.0)
    made.receive(b"\0", 1.0)
    for second in range(2, 6):
        made.receive(b"\xff", float(second))
    assert made.deadline_s() == 1.0 + stream.MESSAGE_S
    idle = Stream(0.0)
    assert idle.deadline_s() == stream.IDLE_S
    idle.receive(framed(b"q"), 3.0)
    idle.answered(b"a" * 100, 3.0)
    idle.written(1, 7.0)
    assert idle.deadline_s() == 3.0 + stream.MESSAGE_S
    idle.written(101, 7.5)
    assert idle.deadline_s() == 7.5 + stream.IDLE_S


def test_a_client_that_has_sent_all_still_gets_its_answers() -> None:
    made = Stream(0.0)
    made.receive(framed(b"q"), 0.0)
    made.receive(b"", 0.0)
    assert not made.done
    made.answered(b"a", 0.0)
    assert not made.done
    made.written(3, 0.0)
    assert made.done


def test_mutated_streams_neither_raise_nor_grow() -> None:
    """100,000 pieces of framing gone wrong: every question that comes out was in the stream, as its length says."""
    rng = random.Random(13)
    whole = b"".join(len(m).to_bytes(2, "big") + m for m in (b"x" * 30, b"", b"y" * 600, b"z" * 3))
    pieces = 0
    while pieces < 100_000:
        made, sent, got = Stream(0.0), bytearray(), bytearray()
        data = bytearray(whole * 3)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        while data and not made.done:
            piece = bytes(data[: rng.choice((1, 2, 3, 17, 700))])
            del data[: len(piece)]
            pieces += 1
            sent += piece
            ready = made.receive(piece, pieces / 1000)
            while ready:
                for question in ready:
                    got += len(question).to_bytes(2, "big") + question
                    made.answered(question[:12] if len(question) > 12 else None, pieces / 1000)
                ready = made.questions_ready(pieces / 1000)
            made.written(len(made.output), pieces / 1000)
            assert sent.startswith(got)
            assert made.pending == 0
            assert not made.output
        assert made.deadline_s() <= pieces / 1000 + stream.IDLE_S


# --- shares -------------------------------------------------------------------------------------------------------


def test_alone_a_client_may_have_everything() -> None:
    made = Fairness()
    assert not any(made.over([1] * 50, i / 2000, behind=False) for i in range(1000))


def test_but_not_more_than_can_be_answered() -> None:
    made = Fairness()
    assert not made.over((fairness.SHARE + 1) * [1], 0.01, behind=False)
    assert made.over([1], 0.02, behind=True) == {1}
    assert not made.over([1], 0.03, behind=False)
    assert not made.over([1], 0.03 + fairness.WINDOW_S, behind=True)


def test_with_others_around_each_gets_its_share() -> None:
    made = Fairness()
    answered: Counter[int] = Counter()
    for _ in range(1000):
        batch = [2] + 19 * [1]
        over = made.over(batch, 0.01, behind=False)
        answered.update(client for client in batch if client not in over)
    assert answered[2] == 1000
    assert fairness.SHARE - 19 < answered[1] <= fairness.SHARE
    assert not made.over([1], 0.2, behind=False)


def test_who_was_there_a_moment_ago_counts_as_waiting() -> None:
    """Else the one who storms would have the first part of each window for itself."""
    made = Fairness()
    made.over([1, 2], 0.0, behind=False)
    assert made.over((fairness.SHARE + 1) * [1], fairness.WINDOW_S, behind=False) == {1}


def test_counting_is_bounded() -> None:
    made = Fairness()
    for i in range(3 * fairness.CLIENTS_MAX):
        made.over([i], 0.0, behind=False)
    assert len(made._counts) <= fairness.CLIENTS_MAX


# --- upstreams ----------------------------------------------------------------------------------------------------


def test_resolv_conf() -> None:
    text = """# nameserver 192.0.2.9
; nameserver 192.0.2.9
nameserver 192.0.2.1
 nameserver\t192.0.2.2 # and this
nameserver 2001:DB8::1
nameserver fe80::1%eth0
nameserver 192.0.2.1
nameserver not-an-address
nameserver
search example.com
options ndots:3
"""
    assert parse_resolv_conf(text) == (
        Upstream("192.0.2.1"),
        Upstream("192.0.2.2"),
        Upstream("2001:db8::1"),
        Upstream("fe80::1", 53, "eth0"),
    )
    assert parse_resolv_conf("") == ()
    assert parse_resolv_conf("\0\xff\n" * 100_000) == ()


def test_ourselves_are_not_asked() -> None:
    found = [Upstream(f"192.0.2.{i}") for i in range(6)]
    own = {(ip_address("192.0.2.1"), 53), (ip_address("192.0.2.0"), 5353)}
    assert [u.address for u in choose(found, own)] == ["192.0.2.0", "192.0.2.2", "192.0.2.3"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", Upstream("192.0.2.1")),
        ("192.0.2.1:5353", Upstream("192.0.2.1", 5353)),
        ("::1", Upstream("::1")),
        ("[::1]:5353", Upstream("::1", 5353)),
    ],
)
def test_upstreams_as_written(text: str, expected: Upstream) -> None:
    assert parse_upstream(text) == expected


@pytest.mark.parametrize("text", ["", "example.com", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:70000", "x:53"])
def test_upstreams_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"name server|port"):
        parse_upstream(text)


# --- records ------------------------------------------------------------------------------------------------------


def test_records() -> None:
    zone = records_zone(
        parse_records("# zone\n\napi.example A 192.0.2.1 # one\nAPI.example a 192.0.2.2\nx TXT two words\n"), 60
    )
    found = zone.find(b"\x03api\x07example")
    assert found is not None
    assert len(found.records[wire.A].far) == 2
    assert zone.find(b"\x01x") is not None


def test_all_mistakes_are_told_at_once() -> None:
    lines = ["api A", "api A 192.0.2", "api AAAA 192.0.2.1", "api MX 1 a", "a..b A 192.0.2.1", "s SRV 1 2 3", "ok A 192.0.2.1"]  # fmt: skip  # noqa: E501
    with pytest.raises(RecordsError) as error:
        parse_records("\n".join(lines))
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [f"line {i}" for i in range(1, 7)]
    with pytest.raises(RecordsError, match="and 80 more"):
        parse_records("bad\n" * 100)


# --- the zone -----------------------------------------------------------------------------------------------------


def service(name: str, *tasks: TaskNames, aliases: tuple[str, ...] = ()) -> ServiceNames:
    return ServiceNames(name, aliases, (IPv4Address("10.0.0.2"),), tasks)


def some_task(ident: str, *, ready: bool = True, hostname: str = "") -> TaskNames:
    return TaskNames(ident, 1, hostname or ident, ("blue",), (IPv4Address("10.0.0.9"),), ready, False)


def test_a_change_names_exactly_what_changed() -> None:
    zone = NetworkZone("n", "web")
    zone.put_service(service("api", some_task("t1"), aliases=("front",)))
    assert zone.put_service(service("api", some_task("t1"), aliases=("front",))).names == frozenset()
    changed = zone.put_service(service("api", some_task("t1", ready=False), aliases=("front",)))
    names = {wire.to_text(name) for name in changed.names}
    assert names == {"tasks.api", "tasks.front", "1.api", "t1", "blue", "9.0.0.10.in-addr.arpa"}
    assert not changed.all_
    assert zone.put_service(service("api", some_task("t1"))).all_  # an alias is gone


def test_an_alias_of_two_services_outlives_one_of_them() -> None:
    zone = NetworkZone("n", "web")
    zone.put_service(service("green", some_task("t1")))
    zone.put_service(service("red", some_task("t2")))
    zone.put("green", {})
    assert zone.find(b"\x04blue") is not None
    zone.put("red", {})
    assert zone.find(b"\x04blue") is None
    assert len(zone) == 0
    assert list(zone.owners) == []


@pytest.mark.parametrize("name", ["", "x" * 64, "ü" * 70])
def test_names_that_cannot_be_are_left_out(name: str) -> None:
    assert service_shares(b"\x03web", service(name)) == {}
    with_host = service_shares(b"\x03web", service("api", some_task("t1", hostname=name or "a..b")))
    assert b"\x03api" in with_host


# --- the feed -----------------------------------------------------------------------------------------------------

PLAN = DnsPlan(
    listeners=(Listener(None, IPv4Address("127.0.0.1"), 53, "n"),),
    networks=(
        NetworkNames("n", "web", IPv4Address("10.0.0.1"), (service("api", some_task("t1")), service("db"))),
        NetworkNames("m", "back", IPv4Address("10.1.0.1"), (service("db"),), (IPv4Network("10.1.0.0/24"),)),
    ),
    nodes={"h1": IPv4Address("192.0.2.1"), "h2": IPv4Address("192.0.2.2")},
    multihomed={("n", IPv4Address("10.0.0.9")): ("n", "m")},
)


def kinds(old: DnsPlan, new: DnsPlan) -> list[str]:
    return [type(message).__name__ for message in feed.changes(old, new)]


def test_only_differences_are_told() -> None:
    assert kinds(PLAN, PLAN) == []
    assert kinds(DnsPlan(), PLAN) == ["SetNetwork", "PutService", "PutService", "SetNetwork", "PutService", "PutNodes", "PutHomes"]  # fmt: skip  # noqa: E501
    assert kinds(PLAN, DnsPlan()) == ["DropNetwork", "DropNetwork", "DropNodes", "DropHomes"]
    web, back = PLAN.networks
    changed = replace(web, services=(service("api", some_task("t1", ready=False)),))
    assert kinds(PLAN, replace(PLAN, networks=(changed, back))) == ["PutService", "DropService"]
    assert kinds(PLAN, replace(PLAN, networks=(replace(web, gateway=IPv4Address("10.0.0.3")), back))) == ["SetNetwork"]
    renamed = replace(web, name="www")
    assert kinds(PLAN, replace(PLAN, networks=(renamed, back))) == ["SetNetwork", "PutService", "PutService"]
    assert kinds(PLAN, replace(PLAN, nodes={"h2": IPv4Address("192.0.2.3")})) == ["PutNodes", "DropNodes"]


def test_messages_survive_the_way() -> None:
    frames = feed.Frames()
    data = b"".join(feed.encode(m) for m in feed.changes(DnsPlan(), PLAN))
    out: list[feed.ToServer] = []
    for i in range(0, len(data), 7):
        frames.feed(data[i : i + 7])
        while (frame := frames.next()) is not None:
            out.append(feed.decode_to_server(frame))
    assert out == list(feed.changes(DnsPlan(), PLAN))
    assert len(frames) == 0
    services = [feed.service_of(m) for m in out if isinstance(m, feed.PutService)]
    assert services == [s for n in PLAN.networks for s in n.services]
    networks = [feed.network_of(m) for m in out if isinstance(m, feed.SetNetwork)]
    assert networks == [replace(n, services=()) for n in PLAN.networks]


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(feed.FeedError):
        feed.decode_to_server(msgspec.msgpack.encode(["Nonsense", 1]))
    with pytest.raises(feed.FeedError):
        feed.decode_from_server(b"\xff")
    frames = feed.Frames()
    frames.feed(b"\xff\xff\xff\xff")
    with pytest.raises(feed.FeedError):
        frames.next()
