"""The door for newcomers: who is let in, what is said before there is trust, and what junk costs."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from cryptography import x509

from control.ca import greeting
from control.ca.contexts import Credentials, enrolment_client_context
from control.ca.names import CertificateRole, Holder
from control.ca.root import CaError, Root, issue, key_pem, make_root, new_key, pem
from control.ca.verify import root_of_digest, verify_manager
from control.server import enrolment
from control.server.enrolment import EnrolmentServer, enrol
from control.server.refusal import Refusal

CLUSTER = "c" * 25
NOW = time.time_ns() / 1e9
_numbers = itertools.count(1)


def serial() -> bytes:
    return next(_numbers).to_bytes(16, "big")


def a_root() -> Root:
    return make_root(CLUSTER, new_key(), NOW, serial())


def credentials_of(root: Root, role: CertificateRole = "manager", says: Root | None = None) -> Credentials:
    key = new_key()
    leaf = issue(root, Holder(CLUSTER, role, "m1"), key.public_key(), NOW, serial())
    return Credentials(key_pem(key), pem(leaf), pem((says or root).certificate))


def by_token(root: Root) -> enrolment.Believe:
    """What a newcomer with a token of this root does."""

    def believe(leaf: x509.Certificate, chain: list[x509.Certificate], roots: list[x509.Certificate]) -> Holder:
        return verify_manager(leaf, chain, [root_of_digest(roots, root.digest)], NOW)

    return believe


class Door:
    """A server, and what it was asked."""

    def __init__(self, credentials: Credentials) -> None:
        self.asked: list[tuple[bytes, str]] = []
        self.refusal: Refusal | None = None
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = EnrolmentServer(self.socket, lambda: credentials, self._decide)

    async def _decide(self, request: bytes, address: str) -> bytes:
        self.asked.append((request, address))
        if self.refusal is not None:
            raise self.refusal
        return b"welcome, " + request


@asynccontextmanager
async def a_door(credentials: Credentials) -> AsyncIterator[Door]:
    door = Door(credentials)
    with door.socket:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(door.server.run())
            yield door
            task.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_newcomer_with_the_right_digest_is_answered() -> None:
    root = a_root()
    async with a_door(credentials_of(root)) as door:
        manager, answer = await enrol(door.address, by_token(root), b"please")
        assert (manager.id, answer) == ("m1", b"welcome, please")
        assert door.asked == [(b"please", "127.0.0.1")]


@pytest.mark.parametrize("lie", ["another cluster", "our root, not its key", "a worker", "another root in between"])
async def test_nothing_is_said_to_one_who_is_not_believed(lie: str) -> None:
    root, other = a_root(), a_root()
    match lie:
        case "another cluster":
            credentials = credentials_of(other)
        case "our root, not its key":
            credentials = credentials_of(other, says=root)
        case "a worker":
            credentials = credentials_of(root, "worker")
        case _:
            between = credentials_of(other)
            credentials = Credentials(between.key, between.chain + pem(other.certificate), pem(root.certificate))
    async with a_door(credentials) as door:
        with pytest.raises(CaError):
            await enrol(door.address, by_token(root), b"secret token")
        await until(lambda: door.server.refused.total() > 0)
        assert door.asked == []


async def test_a_refusal_keeps_its_code_and_its_sentence() -> None:
    root = a_root()
    async with a_door(credentials_of(root)) as door:
        door.refusal = Refusal("UNAUTHENTICATED", "that token is not valid")
        with pytest.raises(Refusal, match="that token is not valid") as raised:
            await enrol(door.address, by_token(root), b"x")
        assert raised.value.code == "UNAUTHENTICATED"
        assert door.server.refused["UNAUTHENTICATED"] == 1


async def test_one_address_cannot_ask_without_end(caplog: pytest.LogCaptureFixture) -> None:
    root = a_root()
    async with a_door(credentials_of(root)) as door:
        for _ in range(100):
            try:
                await enrol(door.address, by_token(root), b"x")
            except Refusal as refusal:
                assert "wait a minute" in str(refusal)  # noqa: PT017 - one of the next ones is it
                break
        assert door.server.refused["too often"] == 1
        assert 20 <= len(door.asked) < 30


async def _tls(door: Door) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = door.address.split(":")
    return await asyncio.open_connection(host, int(port), ssl=enrolment_client_context())


@pytest.mark.parametrize(
    "junk", [b"\0" * 64, b"\xff" * 64, (1 << 30).to_bytes(4, "big")], ids=["nothing", "junk", "1 GiB"]
)
async def test_bad_lengths_end_the_connection(junk: bytes) -> None:
    root = a_root()
    async with a_door(credentials_of(root)) as door:
        reader, writer = await _tls(door)
        writer.write(junk)
        async with asyncio.timeout(5):
            await reader.read()
        writer.transport.abort()
        assert door.asked == []
        assert door.server.refused["bad bytes"] == 1
        await enrol(door.address, by_token(root), b"x")  # nobody else is disturbed


async def test_a_thousand_half_open_connections_leave_room() -> None:
    root = a_root()
    async with a_door(credentials_of(root)) as door:
        host, port = door.address.split(":")
        loop, opened = asyncio.get_running_loop(), []
        try:
            for _ in range(1000):
                opened.append(socket.socket())
                opened[-1].setblocking(False)
                await loop.sock_connect(opened[-1], (host, int(port)))
            await until(lambda: door.server.refused["full"] > 800)
            assert len(door.server._open) <= enrolment.CONNECTIONS_MAX
            await enrol(door.address, by_token(root), b"x")
        finally:
            for sock in opened:
                sock.close()


async def test_an_older_tls_is_refused() -> None:
    async with a_door(credentials_of(a_root())) as door:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        host, port = door.address.split(":")
        with pytest.raises(OSError):  # noqa: PT011 - an alert, or a reset
            await asyncio.open_connection(host, int(port), ssl=context)
        await until(lambda: door.server.refused["bad bytes"] == 1)


async def test_cleartext_is_refused() -> None:
    async with a_door(credentials_of(a_root())) as door:
        reader, writer = await asyncio.open_connection(*door.address.split(":"))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()
        await until(lambda: door.server.refused["bad bytes"] == 1)


async def test_something_else_that_listens_there_is_told_apart() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        with pytest.raises((OSError, EOFError, greeting.BadFrame)):
            await enrol(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", by_token(a_root()), b"x")
