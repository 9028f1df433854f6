"""Asking others, in virtual time: servers that are dead, slow, broken, or not who they seem."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import dnslib
import pytest

from dns import forward, wire
from dns.cache import Cache, Key, lifetime_s
from dns.forward import AskTcp, AskUdp, Close, Done, Forwarder, Stale, Token
from dns.recursor import Recursor, Waiting
from dns.upstreams import Upstream
from dns.wire import Message, Query

ONE, TWO, THREE = (Upstream(f"192.0.2.{i}") for i in (1, 2, 3))
NAME = wire.to_wire("www.example.com")
KEY = Key(NAME, wire.A, wire.IN)


def reply(data: bytes, *, rcode: int = 0, answers: int = 1, soa: bool = False, tc: bool = False) -> bytes:
    """What a server would say to a question."""
    record = dnslib.DNSRecord.parse(data).reply()
    record.header.rcode, record.header.tc = rcode, int(tc)
    for i in range(answers if rcode == 0 else 0):
        record.add_answer(*dnslib.RR.fromZone(f"www.example.com 60 A 198.51.100.{i}"))
    if soa:
        record.add_auth(*dnslib.RR.fromZone("example.com 60 SOA a. b. 1 2 3 4 30"))
    return bytes(record.pack())


@dataclass
class World:
    """A forwarder, its clock, and what it asked for."""

    forwarder: Forwarder
    now_s: float = 100.0
    open: dict[Token, AskUdp | AskTcp] = field(default_factory=dict)
    done: list[Done | Stale] = field(default_factory=list)
    asked: list[tuple[Upstream, str]] = field(default_factory=list)

    def look(self) -> None:
        for output in self.forwarder.drain():
            match output:
                case AskUdp() | AskTcp():
                    assert output.token not in self.open
                    self.open[output.token] = output
                    self.asked.append((output.upstream, "tcp" if isinstance(output, AskTcp) else "udp"))
                case Close(token):
                    del self.open[token]
                case Done() | Stale():
                    self.done.append(output)

    def ask(self, waiter: object = "w", client: bytes = b"c", key: Key = KEY, *, stale: bool = False) -> bool:
        taken = self.forwarder.ask(key, key.name, waiter, client, stale=stale, now_s=self.now_s)
        self.look()
        return taken

    def sleep(self, seconds: float) -> None:
        until = self.now_s + seconds
        while (deadline := self.forwarder.deadline()) is not None and deadline <= until:
            self.now_s = max(self.now_s, deadline)
            self.forwarder.wake(self.now_s)
            self.look()
        self.now_s = until

    def answer(self, upstream: Upstream, *, source: Upstream | None = None, **kind: bool | int) -> None:
        token, asked = next((t, a) for t, a in self.open.items() if a.upstream == upstream)
        whence = source or upstream
        self.forwarder.receive(token, (whence.address, whence.port), reply(asked.data, **kind), self.now_s)  # type: ignore[arg-type]
        self.look()

    def raw(self, upstream: Upstream, data: bytes) -> None:
        token = next(t for t, a in self.open.items() if a.upstream == upstream)
        self.forwarder.receive(token, (upstream.address, upstream.port), data, self.now_s)
        self.look()

    def broken(self, upstream: Upstream) -> None:
        self.forwarder.failed(next(t for t, a in self.open.items() if a.upstream == upstream), self.now_s)
        self.look()

    @property
    def result(self) -> Message | None:
        assert len(self.done) == 1
        (done,) = self.done
        assert isinstance(done, Done)
        assert not self.open
        assert self.forwarder.deadline() is None
        return done.message


@pytest.fixture
def world() -> World:
    counter = itertools.count(1)
    forwarder = Forwarder(lambda _bits: next(counter) & 0xFFFF)
    forwarder.set_upstreams((ONE, TWO, THREE))
    return World(forwarder)


def test_the_first_server_answers(world: World) -> None:
    assert world.ask()
    world.sleep(0.1)
    world.answer(ONE)
    assert world.result is not None
    assert world.asked == [(ONE, "udp")]


def test_a_slow_server_is_raced(world: World) -> None:
    world.ask()
    world.sleep(forward.HEDGE_S + 0.05)
    assert world.asked == [(ONE, "udp"), (TWO, "udp")]
    world.answer(TWO)
    assert world.result is not None


def test_a_dead_server_costs_no_time(world: World) -> None:
    world.ask()
    world.broken(ONE)
    assert [u for u, _ in world.asked] == [ONE, TWO]
    world.answer(TWO)
    assert world.result is not None


@pytest.mark.parametrize("rcode", [wire.SERVFAIL, wire.REFUSED])
def test_a_server_that_fails_is_passed_over(world: World, rcode: int) -> None:
    world.ask()
    world.answer(ONE, rcode=rcode)
    world.answer(TWO)
    assert world.result is not None
    assert world.result.rcode == wire.NOERROR


def test_when_all_fail_the_client_hears_it_at_once(world: World) -> None:
    world.ask()
    for upstream in (ONE, TWO, THREE):
        world.answer(upstream, rcode=wire.SERVFAIL)
    assert world.result is not None
    assert world.result.rcode == wire.SERVFAIL


def test_when_none_is_there_the_client_hears_it_at_once(world: World) -> None:
    world.ask()
    for upstream in (ONE, TWO, THREE):
        world.broken(upstream)
    assert world.result is None


def test_silence_ends(world: World) -> None:
    world.ask()
    world.sleep(forward.TIMEOUT_S + 0.1)
    assert world.result is None
    assert len(world.asked) <= forward.ATTEMPTS_MAX


def test_a_lost_datagram_is_sent_again_with_another_id(world: World) -> None:
    world.forwarder.set_upstreams((ONE,))
    world.ask()
    first = next(iter(world.open.values())).data
    world.sleep(forward.ROUND_S + 0.1)
    second = next(iter(world.open.values())).data
    assert first[:2] != second[:2]
    world.answer(ONE)
    assert world.result is not None


def test_no_such_name_of_a_later_server_waits_for_the_earlier(world: World) -> None:
    world.ask()
    world.sleep(forward.HEDGE_S + 0.05)
    world.answer(TWO, rcode=wire.NXDOMAIN, soa=True)
    assert not world.done
    world.answer(ONE)
    assert world.result is not None
    assert world.result.rcode == wire.NOERROR


def test_no_such_name_is_believed_when_the_earlier_says_nothing(world: World) -> None:
    world.ask()
    world.sleep(forward.HEDGE_S + 0.05)
    world.answer(TWO, rcode=wire.NXDOMAIN, soa=True)
    world.sleep(forward.HOLD_S + 0.1)
    assert world.result is not None
    assert world.result.rcode == wire.NXDOMAIN


def test_no_such_name_is_believed_when_the_earlier_fails(world: World) -> None:
    world.ask()
    world.sleep(2 * forward.HEDGE_S + 0.05)
    world.answer(TWO, rcode=wire.NXDOMAIN, soa=True)
    world.broken(ONE)
    world.sleep(0.05)
    assert world.result is not None
    assert world.result.rcode == wire.NXDOMAIN


def test_no_such_name_of_the_first_is_believed_at_once(world: World) -> None:
    world.ask()
    world.answer(ONE, rcode=wire.NXDOMAIN, soa=True)
    assert world.result is not None


@pytest.mark.parametrize("what", ["id", "question", "source", "not an answer", "noise"])
def test_who_is_not_asked_is_not_believed(world: World, what: str) -> None:
    world.ask()
    asked = next(iter(world.open.values())).data
    good = reply(asked)
    match what:
        case "id":
            world.raw(ONE, bytes([good[0] ^ 1]) + good[1:])
        case "question":
            world.raw(ONE, good.replace(b"\x03www", b"\x03wwx"))
        case "source":
            world.answer(ONE, source=Upstream(ONE.address, 5353))
        case "not an answer":
            world.raw(ONE, asked)
        case _:
            world.raw(ONE, b"\xff" * 40)
    assert not world.done
    assert world.forwarder.counters.forged == 1
    world.answer(ONE)
    assert world.result is not None


def test_many_forgeries_move_the_question_to_tcp(world: World) -> None:
    world.ask()
    for _ in range(forward.FORGED_MAX + 1):
        world.raw(ONE, b"\xff" * 40)
    assert world.asked == [(ONE, "udp"), (ONE, "tcp")]
    world.answer(ONE)
    assert world.result is not None


def test_a_truncated_answer_is_fetched_over_tcp(world: World) -> None:
    world.ask()
    world.answer(ONE, tc=True, answers=0)
    assert world.asked == [(ONE, "udp"), (ONE, "tcp")]
    world.answer(ONE, answers=40)
    assert world.result is not None
    assert world.result.counts[0] == 40


def test_a_server_that_knows_no_edns_is_asked_without_it(world: World) -> None:
    world.ask()
    first = next(iter(world.open.values())).data
    world.raw(ONE, first[:2] + b"\x81\x01" + 8 * b"\0")
    second = next(iter(world.open.values())).data
    assert (first[11], second[11]) == (1, 0)
    world.answer(ONE)
    assert world.result is not None
    world.done.clear()
    world.ask()
    assert next(iter(world.open.values())).data[11] == 0


def test_a_server_that_keeps_failing_is_asked_last_for_a_while(world: World) -> None:
    for _ in range(forward.FAILURES_MAX):
        world.ask()
        world.broken(ONE)
        world.answer(TWO)
    world.asked.clear()
    world.ask()
    assert world.asked == [(TWO, "udp")]
    world.answer(TWO)
    world.now_s += forward.PENALTY_S + 1
    world.asked.clear()
    world.ask()
    assert world.asked == [(ONE, "udp")]


def test_clients_that_want_the_same_share_a_flight(world: World) -> None:
    for i in range(forward.WAITERS_MAX):
        assert world.ask(i)
    assert not world.ask("one too many")
    world.answer(ONE)
    assert world.done[0].waiters == tuple(range(forward.WAITERS_MAX))
    assert len(world.asked) == 1


def name_key(i: int) -> Key:
    return Key(wire.to_wire(f"n{i}.example.com"), wire.A, wire.IN)


def test_one_client_has_a_bounded_share_and_gets_it_back(world: World) -> None:
    taken = [world.ask(i, b"greedy", name_key(i)) for i in range(forward.FLIGHTS_PER_CLIENT_MAX + 10)]
    assert sum(taken) == forward.FLIGHTS_PER_CLIENT_MAX
    assert world.ask("w", b"other", KEY)
    world.sleep(forward.TIMEOUT_S + 0.1)
    assert len(world.forwarder) == 0
    assert world.ask("again", b"greedy", name_key(0))


def test_all_together_are_bounded(world: World) -> None:
    taken = [world.ask(i, i.to_bytes(4, "big"), name_key(i)) for i in range(forward.FLIGHTS_MAX + 10)]
    assert sum(taken) == forward.FLIGHTS_MAX
    assert len(world.open) == forward.FLIGHTS_MAX


def test_without_servers_nobody_waits(world: World) -> None:
    world.forwarder.set_upstreams(())
    assert not world.ask()


def test_servers_that_left_the_configuration_may_still_answer(world: World) -> None:
    world.ask()
    world.forwarder.set_upstreams((THREE,))
    world.answer(ONE)
    assert world.result is not None


def test_a_stale_answer_comes_before_the_patience_of_clients_ends(world: World) -> None:
    world.ask(stale=True)
    world.sleep(forward.STALE_AFTER_S + 0.1)
    assert world.done == [Stale(KEY, ("w",))]
    assert len(world.forwarder) == 1


# --- cache --------------------------------------------------------------------------------------------------------


def message(ttl_s: int = 60, *, rcode: int = 0, negative_ttl_s: int = 0, size: int = 0) -> Message:
    body = bytes(size) + wire.record(None, wire.A, ttl_s, b"\1\2\3\4") if rcode == 0 else b""
    offsets = (size + 6,) if rcode == 0 else ()
    counts = (1, 0, 0) if rcode == 0 else (0, 0, 0)
    return Message(rcode, 0x8180 | rcode, len(NAME), counts, body, offsets, ttl_s if rcode == 0 else 0, negative_ttl_s)


@pytest.mark.parametrize(
    ("kept", "seconds"),
    [
        (message(60), 60),
        (message(0), 0),
        (message(10**9), 86_400),
        (message(rcode=3, negative_ttl_s=30), 30),
        (message(rcode=3), 0),
        (message(rcode=3, negative_ttl_s=99_999), 900),
        (message(rcode=2), 2),
        (message(rcode=5), 0),
    ],
)
def test_how_long_answers_are_kept(kept: Message, seconds: int) -> None:
    assert lifetime_s(kept) == seconds


def test_an_answer_grows_old_then_stale_then_goes() -> None:
    cache = Cache()
    cache.put(KEY, message(60), 1000.0)
    for now_s, expected in ((1000.0, (0, False)), (1059.9, (59, False)), (1060.0, (0, True)), (87_459.0, (0, True))):
        hit = cache.get(KEY, now_s)
        assert hit is not None
        assert (hit.age_s, hit.stale) == expected
    assert cache.get(KEY, 87_461.0) is None
    assert (len(cache), cache.size) == (0, 0)


def test_a_failure_does_not_displace_a_good_answer() -> None:
    cache = Cache()
    cache.put(KEY, message(60), 0.0)
    cache.put(KEY, message(rcode=2), 100.0)
    hit = cache.get(KEY, 100.0)
    assert hit is not None
    assert hit.message.rcode == 0


def test_memory_is_bounded_and_what_is_used_stays() -> None:
    cache = Cache(bytes_max=100_000)
    used = name_key(0)
    for i in range(1000):
        cache.put(name_key(i), message(60, size=i % 50), 0.0)
        assert cache.get(used, 0.0) is not None
        assert cache.size <= 100_000
    assert len(cache) < 140
    assert cache.evicted > 800


# --- both together ------------------------------------------------------------------------------------------------


class Both:
    """A recursor with one server, whose sockets the test holds."""

    def __init__(self, cache: Cache | None = None) -> None:
        self.recursor = Recursor(lambda _bits: 4711, cache)
        self.recursor.forwarder.set_upstreams((ONE,))
        self.now_s = 0.0
        self.asked: dict[Token, bytes] = {}
        self.answers: list[tuple[object, bytes]] = []

    def begin(self, where: str = "c") -> bytes | None:
        query = wire.parse_query(wire.question(9, NAME, wire.A, edns=False))
        assert isinstance(query, Query)
        fetched = self.recursor.begin(Waiting(query, 512, where), b"client", self.now_s)
        self.take()
        return None if fetched is None else fetched.answer

    def take(self) -> None:
        sockets, answers = self.recursor.take(self.now_s)
        for action in sockets:
            if isinstance(action, Close):
                del self.asked[action.token]
            else:
                self.asked[action.token] = action.data
        self.answers += [(waiting.reply_to, answer) for waiting, answer in answers]

    def answer(self, **kind: int) -> None:
        ((token, data),) = self.asked.items()
        self.recursor.forwarder.receive(token, (ONE.address, ONE.port), reply(data, **kind), self.now_s)  # type: ignore[arg-type]
        self.take()

    def sleep(self, seconds: float) -> None:
        until = self.now_s + seconds
        while (deadline := self.recursor.forwarder.deadline()) is not None and deadline <= until:
            self.now_s = max(self.now_s, deadline)
            self.recursor.forwarder.wake(self.now_s)
            self.take()
        self.now_s = until


def data_of(answer: bytes | None) -> list[tuple[int, str]]:
    assert answer is not None
    record = dnslib.DNSRecord.parse(answer)
    assert record.header.rcode == 0
    return [(rr.ttl, str(rr.rdata)) for rr in record.rr]


def test_the_second_client_is_answered_from_the_cache() -> None:
    both = Both()
    assert both.begin() is None
    both.answer()
    assert [data_of(answer) for _, answer in both.answers] == [[(60, "198.51.100.0")]]
    both.now_s += 20
    assert data_of(both.begin()) == [(40, "198.51.100.0")]
    assert both.answers[0][1][:2] == b"\0\x09"


def test_a_stale_answer_is_served_while_nobody_answers_and_replaced_when_one_does() -> None:
    both = Both()
    both.begin()
    both.answer()
    both.now_s += 100
    both.answers.clear()
    assert both.begin() is None
    both.sleep(2.0)
    assert [data_of(answer) for _, answer in both.answers] == [[(30, "198.51.100.0")]]
    both.sleep(5.0)  # the flight ends: for a moment nobody is asked
    assert data_of(both.begin()) == [(30, "198.51.100.0")]
    both.sleep(6.0)
    assert both.begin() is None
    both.answer(answers=2)
    assert len(data_of(both.begin())) == 2


def test_nothing_known_and_nobody_there_is_a_failure_for_a_moment() -> None:
    both = Both()
    assert both.begin() is None
    both.sleep(forward.TIMEOUT_S + 0.1)
    assert [answer[3] & 15 for _, answer in both.answers] == [wire.SERVFAIL]
    again = both.begin()
    assert again is not None
    assert again[3] & 15 == wire.SERVFAIL
    both.now_s += 3
    assert both.begin() is None


def test_negative_answers_are_kept() -> None:
    both = Both()
    both.begin()
    both.answer(rcode=3, soa=1)
    both.now_s += 29
    answer = both.begin()
    assert answer is not None
    assert answer[3] & 15 == wire.NXDOMAIN
    both.now_s += 2
    assert both.begin() is None


def test_mutated_answers_of_others_neither_raise_nor_get_through_as_others() -> None:
    """Each of 100,000 is believed, refused, or passed on as the answer to what was asked; and nothing piles up."""
    both, rng = Both(Cache(bytes_max=10_000)), random.Random(11)
    asked = wire.question(4711, NAME, wire.A, edns=True)
    soa = {"rcode": 3, "soa": True}
    seeds = [reply(asked), reply(asked, answers=60), reply(asked, **soa), reply(asked, tc=True), asked]  # type: ignore[arg-type]
    waits = False
    for _ in range(100_000):
        if not waits:
            both.now_s += 100_000  # what is kept is too old even to be stale
            waits = both.begin() is None
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 2, 0x3F, 0x40, 0xC0, 0xFF, rng.randrange(256)))
        token = next(iter(both.asked))
        both.recursor.forwarder.receive(token, (ONE.address, ONE.port), bytes(data), both.now_s)
        both.take()
        if both.answers:
            ((_, answer),) = both.answers
            assert answer[:2] == b"\0\x09"
            assert answer[2] & 0x80
            assert answer[12 : 16 + len(NAME)] == NAME + b"\0\1\0\1"
            assert len(answer) <= 512
            both.answers.clear()
            waits = False
        assert len(both.asked) == waits
    assert both.recursor.forwarder.counters.forged > 10_000
    assert both.recursor.forwarder.counters.answered > 10_000
    assert both.recursor.cache.size <= 10_000
