"""SWIM on real sockets of the loopback: joining, streams, bounds, closing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest
from msgspec.structs import replace

from gossip.delegate import Address, Change, State
from gossip.keyring import KeyRing
from gossip.packet import Envelope
from gossip.profile import LOCAL
from gossip.service import INBOUND_MAX, Service, bind
from gossip.service_connection import THREAD_FROM
from gossip.stream import push_pull, seal, user
from gossip.swim import Swim
from gossip.swim_ports import SwimConfig
from gossip.wire import Ack, Ping, decode, encode, encode_node_state
from tests.sim.gossip.cluster import Recorder, member

QUICK = replace(LOCAL, probe_interval_s=0.1, probe_timeout_s=0.05, gossip_interval_s=0.02, stream_timeout_s=0.5)
KEY = b"k" * 32


class Running:
    """A service and what its delegate saw."""

    def __init__(self, name: str, host: str = "127.0.0.1", keys: tuple[bytes, ...] = ()) -> None:
        sockets = bind(Address(host, 0))
        self.seen = Recorder()
        self.address = Address(host, sockets.port)
        envelope = Envelope(KeyRing(keys, secrets.token_bytes))
        loop = asyncio.get_running_loop()
        config = SwimConfig(name, self.address, 1000, QUICK)
        self.swim = Swim(config, self.seen, random.Random(1), envelope, loop.time())
        self.service = Service(self.swim, envelope, sockets, loop)
        self.service.start()

    def join(self, *others: Running) -> None:
        self.swim.join([other.address for other in others], asyncio.get_running_loop().time())
        self.service.turn()


@contextlib.asynccontextmanager
async def running(*names: str, host: str = "127.0.0.1", keys: tuple[bytes, ...] = ()) -> AsyncIterator[list[Running]]:
    nodes = [Running(name, host, keys) for name in names]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.service.close()


async def until(true: Callable[[], bool], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not true():
            await asyncio.sleep(0.01)


async def open_to(node: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*node.address)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("keys", [(), (KEY,)])
async def test_three_join_find_a_death_and_see_a_leave(host: str, keys: tuple[bytes, ...]) -> None:
    async with running("a", "b", "c", host=host, keys=keys) as (a, b, c):
        b.join(a)
        c.join(a)
        await until(lambda: all(node.swim.alive_count == 3 for node in (a, b, c)))
        c.service.close()
        await until(lambda: a.swim.alive_count == b.swim.alive_count == 2)
        assert a.seen.of("c")[-1] is Change.FAILED
        b.swim.leave(asyncio.get_running_loop().time())
        b.service.turn()
        await until(lambda: a.seen.of("b")[-1] is Change.LEFT)
        assert a.seen.pings[0][1] < 1.0


async def test_who_listens_everywhere_takes_both_families() -> None:
    async with running("six", host="::") as (six,):
        for host in ("127.0.0.1", "::1"):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as asking:
                asking.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_sendto(asking, encode(Ping(1, "six")), (host, six.address.port))
                async with asyncio.timeout(2.0):
                    data = await loop.sock_recv(asking, 2000)
                assert b"payload" in data
        # and from a socket of IPv6 to a member of IPv4
        async with running("four") as (four,):
            six.join(four)
            await until(lambda: four.swim.counts["streams_in"] == 1 and six.swim.member("four") is not None)


async def test_a_ping_over_tcp_is_answered_and_the_stream_closed() -> None:
    async with running("a") as (a,):
        reader, writer = await open_to(a)
        writer.write(encode(Ping(5, "a")))
        assert decode(await reader.read()) == Ack(5)
        writer.close()


async def test_a_large_message_is_decoded_elsewhere_and_arrives() -> None:
    async with running("a", keys=(KEY,)) as (a,):
        message = random.Random(1).randbytes(2 * THREAD_FROM)
        ring = Envelope(KeyRing([KEY], secrets.token_bytes))
        _, writer = await open_to(a)
        writer.write(seal(user(message), ring, compress=False))
        await until(lambda: a.seen.messages == [message])
        writer.close()


async def test_a_large_push_pull_goes_both_ways() -> None:
    async with running("a") as (a,):
        mine = a.swim.me
        others = [
            member(f"member-{number}", number + 1, meta=random.Random(number).randbytes(300)) for number in range(1500)
        ]
        reader, writer = await open_to(a)
        writer.write(push_pull([encode_node_state(one) for one in others], b"state", True))
        assert await reader.read() == push_pull([encode_node_state(mine)], b"", True)
        await until(lambda: a.swim.alive_count == 1501)
        assert a.seen.merged == [b"state"]
        a.seen.state = bytes(3 << 20)  # more than the socket takes at once
        reader, writer = await open_to(a)
        writer.write(push_pull([], b"", False))
        async with asyncio.timeout(5.0):
            assert len(await reader.read()) > 500_000
        writer.close()


@pytest.mark.parametrize("junk", [b"\xff" * 100, b"\x06\xc1", b"\x0a\xff\xff\xff\xff", b"\x08\x80" + bytes(9)])
async def test_junk_on_a_stream_closes_it(junk: bytes) -> None:
    async with running("a") as (a,):
        reader, writer = await open_to(a)
        writer.write(junk)
        async with asyncio.timeout(3.0):
            assert await reader.read() == b""
        writer.close()
        await until(lambda: a.swim.counts["streams_in_failed"] + a.swim.counts["streams_in"] == 1)


async def test_streams_that_say_nothing_are_few_and_end() -> None:
    async with running("a") as (a,):
        opened = [await open_to(a) for _ in range(INBOUND_MAX + 10)]
        await until(lambda: a.swim.counts["streams_in_refused"] == 10)
        async with asyncio.timeout(3.0):
            assert {await reader.read() for reader, _ in opened} == {b""}
        reader, writer = await open_to(a)  # and there is room again
        writer.write(encode(Ping(5, "a")))
        assert decode(await reader.read()) == Ack(5)
        for _, other in opened:
            other.close()
        writer.close()


async def test_who_does_not_read_the_answer_is_cut_off() -> None:
    async with running("a") as (a,):
        a.seen.state = bytes(random.Random(1).randbytes(4 << 20))
        _, writer = await open_to(a)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(push_pull([], b"", False))
        await until(lambda: a.swim.counts["streams_in_failed"] == 1)
        writer.transport.abort()


async def test_junk_packets_are_counted_and_the_rest_goes_on() -> None:
    async with running("a") as (a,):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.connect(tuple(a.address))
            other.setblocking(False)
            for junk in (b"", b"\xff", b"\x00\x80", b"\x0c\x00\x00\x00\x00\x00", struct.pack("!BB", 7, 9)):
                other.send(junk)
            other.send(encode(Ping(9, "a")))
            async with asyncio.timeout(2.0):
                assert b"payload" in await asyncio.get_running_loop().sock_recv(other, 2000)
        assert a.swim.counts["packets_in"] == 6
        assert a.swim.counts["packets_bad"] + a.swim.counts["messages_bad"] == 5


async def test_a_join_that_nobody_answers_is_tried_again_until_somebody_does() -> None:
    async with running("a") as (a,):
        place = bind(Address("127.0.0.1", 0))
        late = Address("127.0.0.1", place.port)
        place.close()
        a.swim.join([late], asyncio.get_running_loop().time())
        a.service.turn()
        await until(lambda: a.swim.counts["streams_failed_remote"] == 1)
        assert not a.service._outbound
        assert a.swim.alive_count == 1


async def test_closing_leaves_nothing_behind() -> None:
    async with running("a", "b") as (a, b):
        b.join(a)
        await open_to(a)
        await until(lambda: a.swim.alive_count == 2 and len(a.service._inbound) == 1)
        a.service.close()
        a.service.close()
        a.service.turn()
        bind(a.address).close()  # the port is free again
        await until(lambda: b.swim.member("a").state is State.DEAD)  # type: ignore[union-attr]


async def test_a_port_that_is_taken_is_an_error() -> None:
    async with running("a") as (a,):
        with pytest.raises(OSError, match="in use"):
            bind(a.address)
