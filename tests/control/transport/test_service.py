"""Transports on loopback: what arrives, what is dropped and reported, what is refused."""

import asyncio
import contextlib
import random
import socket

import pytest

from control.transport import connection, incoming, links, service
from control.transport.service import listening
from control.transport.spool import BytesSource
from control.transport.wire import CHUNK_BYTES, Hello, Kind, encode, frame, preamble, seed_of
from tests.control.transport.twins import Note
from tests.ports import free_ports

# --- messages ---------------------------------------------------------------------------------------------------------


async def pair(make, **options):
    a, b = make("a", **options), make("b", **options)
    a.transport.set_peers({"b": b.address})
    b.transport.set_peers({"a": a.address})
    await a.connected("b")
    await b.connected("a")
    return a, b


async def test_messages_arrive_in_the_order_of_their_lane(make):
    a, b = await pair(make)
    for number in range(500):
        assert a.note("b", number, bytes(number))
        assert a.note("b", number, urgent=True)
        assert b.note("a", number)
    await b.until(lambda: len(b.notes) == 1000)
    await a.until(lambda: len(a.notes) == 500)
    assert [n.number for n in b.notes if not n.urgent] == list(range(500))
    assert [n.number for n in b.notes if n.urgent] == list(range(500))
    assert a.transport.counters.sent == b.transport.counters.received == 1000
    assert a.unreachable == []


async def test_large_messages_arrive(make):
    a, b = await pair(make)
    data = random.Random(1).randbytes(5_000_000)
    a.note("b", 1, data)
    await b.until(lambda: b.notes)
    assert b.notes[0].data == data


async def test_a_flood_of_appends_does_not_delay_a_heartbeat(make, middle):
    """Nothing of the bulk lane gets through at all, and the heartbeat arrives."""
    b = make("b")
    a = make("a")
    relay = await middle(b.address)
    a.transport.set_peers({"b": relay.address})
    await a.connected("b")
    b.transport.hold_bulk(True)
    for number in range(100):
        a.note("b", number, bytes(100_000))
    a.note("b", 7, urgent=True)
    await b.until(lambda: any(n.urgent for n in b.notes))
    # What was being read when the lane was held may come; the rest waits.
    assert len(b.notes) < 50
    b.transport.hold_bulk(False)
    await b.until(lambda: len(b.notes) == 101)


async def test_a_full_queue_drops_and_reports(make):
    a, b = await pair(make)
    b.transport.hold_bulk(True)
    taken = [a.note("b", number, bytes(1_000_000)) for number in range(60)]
    assert taken.count(True) <= links.QUEUE_BYTES[links.Lane.BULK] // 1_000_000 + 1
    assert not taken[-1]
    assert a.unreachable == [], "reported from within send"
    await a.until(lambda: a.unreachable)
    assert a.transport.counters.dropped["queue full"] == taken.count(False)
    assert a.note("b", urgent=True), "the other lane is free"
    b.transport.hold_bulk(False)
    await b.until(lambda: len(b.notes) == taken.count(True) + 1)


async def test_many_small_ones_are_bounded_too(make):
    a, b = await pair(make)
    taken = [a.note("b", number, urgent=True) for number in range(5_000)]
    assert taken.count(True) == links.QUEUE_MESSAGES[links.Lane.URGENT]
    await b.until(lambda: len(b.notes) == taken.count(True))


async def test_reports_come_at_most_once_in_a_while(make):
    a = make("a")
    [port] = free_ports(1)
    a.transport.set_peers({"b": f"127.0.0.1:{port}"})
    await a.until(lambda: a.unreachable)
    for number in range(1_000):
        a.note("b", number)
    await asyncio.sleep(0)
    assert len(a.unreachable) <= 2
    assert a.problem("b") == f"cannot reach manager b at 127.0.0.1:{port}: Connect call failed ('127.0.0.1', {port})"


async def test_unknown_peers_are_told(make):
    a = make("a")
    assert not a.note("nobody")
    assert not a.transport.send_snapshot("nobody", Note("a", "nobody", 1), BytesSource(b"x"))
    assert a.transport.counters.dropped["no such peer"] == 2


# --- breaks, and other addresses --------------------------------------------------------------------------------------


async def test_a_peer_that_comes_later_is_found(make):
    [port] = free_ports(1)
    a = make("a")
    a.transport.set_peers({"b": f"127.0.0.1:{port}"})
    await a.until(lambda: a.unreachable)
    b = make("b", sock=listening("127.0.0.1", port))
    await a.connected("b")
    assert a.problem("b") == ""
    a.note("b", 5, urgent=True)
    await b.until(lambda: b.notes)


async def test_a_broken_connection_is_reported_and_made_anew(make, middle):
    a, b = make("a"), make("b")
    relay = await middle(b.address)
    a.transport.set_peers({"b": relay.address})
    await a.connected("b")
    for _ in range(3):
        reported = len(a.unreachable)
        since = a.transport.status()[0].since_s
        relay.cut()
        await a.until(lambda r=reported: len(a.unreachable) > r)
        async with asyncio.timeout(10):
            while a.transport.status()[0].since_s == since or not a.transport.status()[0].connected:
                await asyncio.sleep(0.005)
        a.note("b", 1, urgent=True)
        await b.until(lambda: b.notes)
        b.notes.clear()


async def test_a_peer_that_hangs_is_given_up(make, middle, monkeypatch):
    monkeypatch.setattr(connection, "STALL_S", 0.2)
    a, b = make("a"), make("b")
    relay = await middle(b.address)
    a.transport.set_peers({"b": relay.address})
    await a.connected("b")
    relay.open.clear()
    for number in range(30):
        a.note("b", number, bytes(1_000_000))
    await a.until(lambda: a.unreachable)
    assert a.transport.counters.dropped["connection lost"] > 0


async def test_a_new_address_is_used_at_once(make):
    a, b = make("a"), make("b")
    [wrong] = free_ports(1)
    a.transport.set_peers({"b": f"127.0.0.1:{wrong}"})
    await a.until(lambda: a.unreachable)
    a.transport.set_peers({"b": b.address})
    await a.connected("b")


async def test_an_address_is_learned_from_whoever_calls(make):
    """All machines got new addresses: one that is found by one side is found by both."""
    a, b = make("a"), make("b")
    [wrong] = free_ports(1)
    b.transport.set_peers({"a": f"127.0.0.1:{wrong}"})
    await b.until(lambda: b.unreachable)
    a.transport.set_peers({"b": b.address})
    await b.connected("a")
    assert b.learned == [("a", a.address)]
    assert a.address in b.transport.status()[0].addresses
    b.note("a", 3, urgent=True)
    await a.until(lambda: a.notes)


async def test_one_that_nobody_knows_may_call_and_is_reported(make):
    a, b = make("a"), make("b", advertise="10.1.2.3:4567")
    b.transport.set_peers({"a": a.address})
    await b.connected("a")
    assert set(a.learned) == {("b", "10.1.2.3:4567")}
    b.note("a", 1)
    await a.until(lambda: a.notes)


async def test_a_peer_that_is_let_go_is_not_called_any_more(make):
    a, b = await pair(make)
    a.transport.set_peers({})
    assert a.transport.status() == ()
    assert not a.note("b")
    await b.until(lambda: True)
    a.transport.set_peers({"b": b.address})
    await a.connected("b")


async def test_another_node_at_the_address_is_not_mistaken(make):
    a, _, c = make("a"), make("b"), make("c")
    a.transport.set_peers({"b": c.address})
    await a.until(lambda: a.unreachable)
    assert a.problem("b") == f"cannot reach manager b at {c.address}: another node answers at this address"
    assert c.refused()["other node"] >= 1


@pytest.mark.parametrize(
    ("options", "reason", "problem"),
    [
        ({"cluster": "c2"}, "other cluster", "it belongs to another cluster"),
        ({"epoch": 2}, "other epoch", "it is of another epoch: one of the two was left behind by a recovery"),
        ({"welcome": lambda node: node != "a"}, "removed", "it says that this node is no manager any more"),
    ],
)
async def test_who_is_not_welcome_is_told_why(make, options, reason, problem):
    a, b = make("a"), make("b", **options)
    a.transport.set_peers({"b": b.address})
    await a.until(lambda: a.unreachable)
    assert a.problem("b") == f"cannot reach manager b at {b.address}: {problem}"
    assert b.refused()[reason] >= 1
    assert not a.note("b")
    assert b.notes == []


# --- strangers --------------------------------------------------------------------------------------------------------


async def said_to(manager, data: bytes) -> bytes:
    """What it answers until it closes."""
    reader, writer = await asyncio.open_connection(*manager.sock.getsockname())
    with contextlib.suppress(OSError):
        writer.write(data)
        await writer.drain()
    try:
        async with asyncio.timeout(10):
            with contextlib.suppress(OSError):
                return await reader.read()
            return b""
    finally:
        writer.close()


HELLO = encode(Hello("c1", 1, "x", "a", 0))


def hello(**changes) -> bytes:
    fields = {"cluster_id": "c1", "epoch": 1, "sender": "x", "receiver": "a", "lane": 0, **changes}
    return preamble(encode(Hello(**fields)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "bad magic"),
        (b"\x16\x03\x01" + bytes(20), "bad magic"),
        (hello()[:4] + b"\x00\x09" + hello()[6:], "bad version"),
        (hello()[:6] + b"\xff\xff" + hello()[8:], "bad length"),
        (hello()[:-1] + b"\x00", "bad checksum"),
        (preamble(b"\xc1"), "bad body"),
        (hello(lane=9), "bad hello"),
        (hello(sender=""), "bad hello"),
        (hello(address="nowhere"), "bad hello"),
        (hello(address=":99999"), "bad hello"),
        (hello(receiver="b"), "other node"),
        (hello(sender="a"), "other node"),
        (hello(cluster_id="c9"), "other cluster"),
        (hello(epoch=9), "other epoch"),
        (hello() + b"\0" * 10, "bad frame magic"),
        (hello() + b"\xa7\x01\x40\x00\x00\x00\x00\x00\x00\x00", "bad frame length"),
        (hello() + frame(Kind.MESSAGES, b"\x90", seed_of(b"other")), "bad frame checksum"),
        (hello() + frame(Kind.MESSAGES, b"\xc1", seed_of(HELLO)), "bad message"),
        (hello() + frame(Kind.CHUNK, b"", seed_of(HELLO)), "bad frame kind"),
        (hello(lane=2) + frame(Kind.MESSAGES, b"", seed_of(encode(Hello("c1", 1, "x", "a", 2)))), "bad frame kind"),
    ],
)
async def test_bytes_of_strangers_are_counted_and_the_connection_closed(make, data, reason):
    a = make("a")
    await said_to(a, data)
    async with asyncio.timeout(5):
        while reason not in a.refused():
            await asyncio.sleep(0.005)
    assert a.refused() == {reason: 1}
    assert a.notes == []


async def test_messages_in_the_name_of_another_are_refused(make):
    a = make("a")
    payload = a.transport._codec.encode([Note("y", "a", 1)])
    await said_to(a, hello() + frame(Kind.MESSAGES, payload, seed_of(HELLO)))
    async with asyncio.timeout(5):
        while not a.refused():
            await asyncio.sleep(0.005)
    assert a.refused() == {"bad message": 1}
    assert a.notes == []


async def test_who_says_nothing_is_shown_the_door(make, monkeypatch):
    monkeypatch.setattr(incoming, "HANDSHAKE_S", 0.1)
    a = make("a")
    silent = asyncio.open_connection(*a.sock.getsockname())
    reader, writer = await silent
    reader2, writer2 = await asyncio.open_connection(*a.sock.getsockname())
    writer2.write(hello()[:5])
    async with asyncio.timeout(5):
        assert await reader.read() == b""
        with contextlib.suppress(ConnectionResetError):
            assert await reader2.read() == b""
    async with asyncio.timeout(5):
        while a.refused() != {"too slow": 2}:
            await asyncio.sleep(0.005)
    writer.close()
    writer2.close()


async def test_a_slow_frame_has_an_end(make, monkeypatch):
    monkeypatch.setattr(connection, "FRAME_S", 0.2)
    a = make("a")
    reader, writer = await asyncio.open_connection(*a.sock.getsockname())
    writer.write(hello() + b"\xa7\x01")
    async with asyncio.timeout(5):
        with contextlib.suppress(OSError):
            while not reader.at_eof():  # a byte now and then does not help
                writer.write(b"\0")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await reader.read(1000)
    assert a.refused()["too slow"] == 1
    writer.close()


async def test_a_thousand_half_open_connections_are_bounded_and_in_nobodys_way(make):
    a, b = make("a"), make("b")
    strangers = []
    for i in range(1_000):
        sock = socket.socket()
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(a.sock.getsockname())
        strangers.append(sock)
        if i % 50 == 0:
            await asyncio.sleep(0.01)
            assert a.transport._incoming.handshakes <= incoming.HANDSHAKES_MAX
    b.transport.set_peers({"a": a.address})
    await b.connected("a")
    b.note("a", 1, urgent=True)
    await a.until(lambda: a.notes)
    assert a.transport._incoming.handshakes <= incoming.HANDSHAKES_MAX
    assert a.refused()["handshakes full"] > 500
    for sock in strangers:
        sock.close()


async def test_connections_that_were_welcome_are_bounded(make, monkeypatch):
    monkeypatch.setattr(incoming, "CONNECTIONS_MAX", 3)
    a = make("a")
    streams = []
    for i in range(5):
        reader, writer = await asyncio.open_connection(*a.sock.getsockname())
        writer.write(hello(sender=f"x{i}"))
        await reader.readexactly(12)
        streams.append(writer)
    assert a.refused() == {"full": 2}
    assert len(a.transport._incoming._open) == 3
    # A lane that is there already is replaced, not counted twice.
    reader, writer = await asyncio.open_connection(*a.sock.getsockname())
    writer.write(hello(sender="x0"))
    await reader.readexactly(12)
    await asyncio.sleep(0)
    assert len(a.transport._incoming._open) == 3
    for stream in [*streams, writer]:
        stream.close()


# --- snapshots --------------------------------------------------------------------------------------------------------

STATE = random.Random(2).randbytes(6 * CHUNK_BYTES + 99)


async def test_a_snapshot_arrives_whole_and_is_reported(make):
    a, b = await pair(make)
    message = Note("a", "b", 42)
    assert a.transport.send_snapshot("b", message, BytesSource(STATE))
    await b.until(lambda: b.snapshots)
    [(sender, got, path)] = b.snapshots
    assert (sender, got, path.read_bytes()) == ("a", message, STATE)
    await a.until(lambda: a.sent_snapshots)
    assert a.sent_snapshots == [("b", True)]
    assert a.unreachable == []


async def test_a_snapshot_goes_on_after_breaks_and_damage(make, middle):
    a, b = make("a"), make("b")
    relay = await middle(b.address)
    a.transport.set_peers({"b": relay.address})
    await a.connected("b")
    relay.passed, relay.break_after = 0, 2 * CHUNK_BYTES
    a.transport.send_snapshot("b", Note("a", "b", 1), BytesSource(STATE))
    async with asyncio.timeout(10):
        while relay.break_after is not None:
            await asyncio.sleep(0.001)
    relay.flip_at = relay.passed + CHUNK_BYTES  # noticed by the checksum of the chunk
    await a.until(lambda: a.sent_snapshots)
    assert a.sent_snapshots == [("b", True)]
    assert b.snapshots[0][2].read_bytes() == STATE
    assert b.refused()["bad frame checksum"] == 1
    # It went on instead of beginning anew: what was lost in the two breaks is less than what had arrived.
    assert relay.passed < len(STATE) * 1.9


async def test_a_snapshot_that_cannot_arrive_is_reported(make, monkeypatch):
    monkeypatch.setattr(links, "RETRY_MIN_S", 0.001)
    a = make("a")
    [port] = free_ports(1)
    a.transport.set_peers({"b": f"127.0.0.1:{port}"})
    await a.until(lambda: a.unreachable)
    assert a.transport.send_snapshot("b", Note("a", "b", 1), BytesSource(STATE))
    await a.until(lambda: a.sent_snapshots)
    assert a.sent_snapshots == [("b", False)]
    assert sum(a.transport.counters.dropped.values()) >= service.SNAPSHOT_ATTEMPTS


class Changing(BytesSource):
    """Not what it says."""

    @property
    def sha256(self):
        return bytes(32)


async def test_a_snapshot_that_is_not_what_was_offered_is_not_taken(make):
    a, b = await pair(make)
    a.transport.send_snapshot("b", Note("a", "b", 1), Changing(STATE))
    await a.until(lambda: a.sent_snapshots)
    assert a.sent_snapshots == [("b", False)]
    assert b.snapshots == []
    assert list(b.directory.iterdir()) == []


async def test_a_later_snapshot_takes_the_place_of_an_earlier(make):
    a, b = await pair(make)
    for number in range(3):
        a.transport.send_snapshot("b", Note("a", "b", number), BytesSource(STATE + bytes(number)))
    await a.until(lambda: a.sent_snapshots)
    assert a.sent_snapshots == [("b", True)]
    assert b.snapshots[-1][1].number == 2


async def test_messages_go_on_beside_a_snapshot(make):
    a, b = await pair(make)
    a.transport.send_snapshot("b", Note("a", "b", 1), BytesSource(STATE * 4))
    while not b.snapshots:
        a.note("b", 1, urgent=True)
        await asyncio.sleep(0.001)
        assert not a.unreachable
    assert len(b.notes) > 5


# --- TLS --------------------------------------------------------------------------------------------------------------


async def test_mutual_tls(make, tls_of):
    a, b = make("a", tls=tls_of("a")), make("b", tls=tls_of("b"))
    a.transport.set_peers({"b": b.address})
    await a.connected("b")
    a.note("b", 1, bytes(2_000_000))
    a.note("b", 2, urgent=True)
    await b.until(lambda: len(b.notes) == 2)
    a.transport.send_snapshot("b", Note("a", "b", 3), BytesSource(STATE))
    await a.until(lambda: a.sent_snapshots)
    assert a.sent_snapshots == [("b", True)]


async def test_a_certificate_speaks_for_its_own_node_only(make, tls_of):
    a, b, c = make("a", tls=tls_of("c")), make("b", tls=tls_of("b")), make("c", tls=tls_of("c"))
    a.transport.set_peers({"b": b.address})  # it says it is a, with the certificate of c
    await a.until(lambda: a.unreachable)
    assert a.problem("b").endswith("it sees the certificate of another node")
    assert b.refused()["not you"] >= 1
    c.transport.set_peers({"x": b.address})  # what answers for x is b
    await c.until(lambda: c.unreachable)
    assert c.problem("x").endswith("the certificate is of another node")


async def test_strangers_get_nowhere_with_tls(make, tls_of, monkeypatch):
    a, b = make("a", tls=tls_of("stranger", "otherca")), make("b", tls=tls_of("b"))
    a.transport.set_peers({"b": b.address})
    await a.until(lambda: a.unreachable)
    await said_to(b, hello(receiver="b"))  # without TLS at all
    async with asyncio.timeout(10):
        while b.refused().get("TLS", 0) < 1:
            await asyncio.sleep(0.01)
    assert b.transport.counters.connections == 0


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_it_stops_at_once_whatever_is_under_way(make, middle):
    a, b = await pair(make)
    relay = await middle(b.address)
    c = make("c")
    c.transport.set_peers({"b": relay.address, "a": a.address})
    await c.connected("a", "b")
    relay.open.clear()
    for number in range(20):
        c.note("b", number, bytes(1_000_000))
    c.transport.send_snapshot("b", Note("c", "b", 1), BytesSource(STATE))
    stranger = socket.create_connection(c.sock.getsockname())
    await asyncio.sleep(0.05)
    async with asyncio.timeout(2):
        await c.stop()
        await a.stop()
    stranger.close()


async def test_what_the_handler_raises_ends_the_transport(make):
    a, b = await pair(make)

    def received(sender, messages):
        raise RuntimeError("a bug")

    b.received = received
    a.note("b", 1)
    await asyncio.wait([b.task], timeout=10)
    with pytest.raises(ExceptionGroup):
        b.task.result()
    b.task = asyncio.get_running_loop().create_task(asyncio.sleep(0))
