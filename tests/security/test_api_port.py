"""The managers' API over TCP: every call of the contract, by everybody who might try, and junk on the port.

The services behind it are gRPC's own that answer UNIMPLEMENTED: whoever gets that was let through.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import pytest

from control import access
from control.access import Caller
from control.ca.contexts import Credentials, client_context
from control.ca.names import CertificateRole, Holder
from control.ca.root import DAY_S, Root, cross_sign, issue, key_pem, make_root, new_key, pem
from control.rpc import control_pb2, control_pb2_grpc
from control.server import doorkeeper
from control.server.doorkeeper import UNPROVED_MAX, Doorkeeper
from control.server.edge import Edge
from control.server.guard import Guard
from tests.security import h2
from tests.security.attacker import ended

NOW = time.time_ns() / 1e9
CLUSTER = "c" * 25
ROLES: tuple[CertificateRole, ...] = ("worker", "manager", "viewer", "operator", "admin")
METHODS = [
    (service, method)
    for service in control_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]  # fmt: skip


def a_root() -> Root:
    return make_root(CLUSTER, new_key(), NOW - 10 * DAY_S, os.urandom(16))


ROOT, OTHER = a_root(), a_root()


def credentials(
    role: CertificateRole = "manager",
    name: str = "m1",
    *,
    root: Root = ROOT,
    believes: Root = ROOT,
    at: float = NOW,
    life_s: float = DAY_S,
) -> Credentials:
    key = new_key()
    leaf = issue(root, Holder(CLUSTER, role, name), key.public_key(), at, os.urandom(16), life_s)
    chain = pem(leaf) if root.crossed is None else pem(leaf, root.crossed)
    return Credentials(key_pem(key), chain, pem(believes.certificate))


@dataclass
class Port:
    """A server with the guard, and what it noted."""

    address: str
    guard: Guard
    removed: set[str] = field(default_factory=set)
    audit: list[tuple[str, ...]] = field(default_factory=list)


@asynccontextmanager
async def a_port(own: Credentials | None = None) -> AsyncIterator[Port]:
    mine = own or credentials()
    edge = Edge(lambda: mine)
    port = Port("", Guard(lambda who, _: standing(who), lambda *row: port.audit.append(row), secure=True))

    def standing(who: Caller) -> Caller | str:
        assert who.holder is not None
        return "it was removed" if who.holder.id in port.removed else who

    server = edge.server([port.guard])
    for service in control_pb2.DESCRIPTOR.services_by_name.values():
        add = getattr(control_pb2_grpc, f"add_{service.name}Servicer_to_server")
        add(type("Everything", (_Answers, getattr(control_pb2_grpc, f"{service.name}Servicer")), {})(), server)
    port.address = f"127.0.0.1:{edge.listen(server, '127.0.0.1:0')}"
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


class _Answers:
    """Gives the calls with streams the form that ours have."""

    async def Watch(self, request: object, context: grpc.aio.ServicerContext[object, object]) -> AsyncIterator[object]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        yield

    Backup = DnsDump = Watch

    async def Session(self, requests: object, context: grpc.aio.ServicerContext[object, object]) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")

    Push = Session

    def __getattribute__(self, name: str) -> object:
        found = object.__getattribute__(self, name)
        if name[0].isupper() and name not in ("Watch", "Backup", "DnsDump", "Session", "Push"):
            return _unimplemented
        return found


async def _unimplemented(request: object, context: grpc.aio.ServicerContext[object, object]) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")


async def call(channel: grpc.aio.Channel, service: str, method: str, *, about: str = "m1", kind: str = "node") -> str:
    """The name of the status that a call ends with."""
    found = control_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    request = getattr(control_pb2, found.input_type.name)()
    for name in ("reference", "node_id"):
        if name in found.input_type.fields_by_name:
            setattr(request, name, about)
    if "kind" in found.input_type.fields_by_name:
        request.kind = kind
    path, data = f"/mesh.control.v1.{service}/{method}", request.SerializeToString()
    try:
        if found.client_streaming and not found.server_streaming:
            await channel.stream_unary(path)(iter([data]), timeout=10)
        elif found.client_streaming:
            async for _ in channel.stream_stream(path)(iter([data]), timeout=10):
                pass
        elif found.server_streaming:
            async for _ in channel.unary_stream(path)(data, timeout=10):
                pass
        else:
            await channel.unary_unary(path)(data, timeout=10)
    except grpc.aio.AioRpcError as error:
        if "from Core" in (error.details() or ""):  # gRPC's own: the refusal was there before it had written
            return await call(channel, service, method, about=about, kind=kind)
        return error.code().name
    return "OK"


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_gets_through_with_what_the_table_says(role: CertificateRole) -> None:
    who, reasons = Caller(Holder(CLUSTER, role, "x1")), {}
    expected, found = {}, {}
    async with a_port() as port, Edge(lambda: credentials(role, "x1")).channel(port.address) as channel:
        for service, method in METHODS:
            for about, kind in itertools.product(("x1", "x2"), ("node", "service")):
                key = (f"{service.name}/{method.name}", about, kind)
                fields = set(method.input_type.fields_by_name.keys())
                subject = about if fields & {"reference", "node_id"} or method.client_streaming else None
                reasons[key] = access.refusal(key[0], who, subject, kind)
                if method.client_streaming and access.right(key[0], role) is not None:
                    reasons[key] = ""  # the service compares the first message
                expected[key] = "PERMISSION_DENIED" if reasons[key] else "UNIMPLEMENTED"
                found[key] = await call(channel, service.name, method.name, about=about, kind=kind)
        assert found == expected
        assert sum(port.guard.refused.values()) == sum(bool(reason) for reason in reasons.values())
        refused = {row[0] for row in port.audit if row[4].startswith("refused")}
        assert refused == {key[0] for key, reason in reasons.items() if reason}


STRANGERS: dict[str, Credentials] = {
    "another cluster's": credentials("admin", root=OTHER),
    "expired": credentials("admin", at=NOW - DAY_S, life_s=3600.0),
    "not yet valid": credentials("admin", at=NOW + DAY_S),
    "cross-signed by another": credentials("admin", root=cross_sign(a_root(), OTHER, NOW, os.urandom(16))),
}  # fmt: skip


@pytest.mark.parametrize("attempt", STRANGERS)
async def test_strangers_do_not_get_past_tls(attempt: str) -> None:
    async with a_port() as port:
        async with Edge(lambda: STRANGERS[attempt]).channel(port.address) as channel:
            for service, method in METHODS:
                assert await call(channel, service.name, method.name) == "UNAVAILABLE"
        async with Edge(credentials).channel(port.address) as channel:
            assert await call(channel, "Control", "List") == "UNIMPLEMENTED"  # nobody else is disturbed


async def test_without_a_certificate_nobody_gets_past_tls() -> None:
    async with a_port() as port:
        bare = grpc.ssl_channel_credentials(pem(ROOT.certificate))
        options = (("grpc.ssl_target_name_override", "manager.mesh"),)
        async with grpc.aio.secure_channel(port.address, bare, options=options) as channel:
            assert await call(channel, "Control", "List") == "UNAVAILABLE"
        async with grpc.aio.insecure_channel(port.address) as channel:
            assert await call(channel, "Control", "List") == "UNAVAILABLE"


async def test_a_removed_node_is_refused_on_the_connection_that_it_has() -> None:
    async with a_port() as port, Edge(lambda: credentials("worker", "w1")).channel(port.address) as channel:
        assert await call(channel, "Quorum", "Look") == "UNIMPLEMENTED"
        port.removed.add("w1")
        for service, method in METHODS:
            assert await call(channel, service.name, method.name, about="w1") == "UNAUTHENTICATED"


def _same(mine: Credentials) -> Credentials:
    return mine


async def test_only_a_manager_hands_calls_on() -> None:
    for role in ROLES:
        mine = credentials(role, "x")
        async with a_port() as port, Edge(partial(_same, mine)).channel(port.address) as channel:
            look: Any = channel.unary_unary("/mesh.control.v1.Quorum/Look")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await look(b"", metadata=(("mesh-hop", "1"), ("mesh-caller", "10.0.0.1")), timeout=10)
            assert (raised.value.code().name == "UNIMPLEMENTED") is (role == "manager")


@pytest.mark.parametrize("role", ["worker", "viewer", "operator", "admin"])
async def test_nobody_but_a_manager_can_answer_as_one(role: CertificateRole) -> None:
    async with a_port(credentials(role)) as port, Edge(credentials).channel(port.address) as channel:
        assert await call(channel, "Quorum", "Look") == "UNAVAILABLE"


async def test_a_manager_of_another_cluster_is_not_talked_to() -> None:
    async with (
        a_port(credentials(root=OTHER, believes=ROOT)) as port,
        Edge(credentials).channel(port.address) as channel,
    ):
        assert await call(channel, "Quorum", "Look") == "UNAVAILABLE"


def _raw(channel: grpc.aio.Channel, method: str) -> Any:
    return channel.unary_unary(f"/mesh.control.v1.Control/{method}")


@pytest.mark.parametrize("path", ["/mesh.control.v1.Control/Everything", "/x", "", "/\udced\udcff.v1/Look"])
async def test_calls_that_nobody_knows_are_dropped_and_end_nothing(path: str) -> None:
    """Also such whose path is no UTF-8: gRPC's own server would be ended by it."""
    async with a_port() as port, Edge(credentials).channel(port.address) as channel:
        assert await call(channel, "Control", "List") == "UNIMPLEMENTED"
        context = client_context(credentials("worker"))
        context.set_alpn_protocols(["h2"])
        host, number = port.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(number), ssl=context)
        begun = h2.call(path.encode(errors="surrogateescape"), "manager.mesh")
        for _ in range(3):
            writer.write(h2.PREFACE + h2.settings() + begun + h2.data(bytes(5)))
        async with asyncio.timeout(60):
            while await reader.read(65536):
                pass
        writer.close()
        for _ in range(3):
            assert await call(channel, "Control", "List") == "UNIMPLEMENTED"
        async with Edge(credentials).channel(port.address) as another:
            assert await call(another, "Control", "List") == "UNIMPLEMENTED"


async def test_a_message_that_is_too_long_ends_the_call_only() -> None:
    async with a_port() as port, Edge(lambda: credentials("admin")).channel(port.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await _raw(channel, "List")(b"\0" * (5 << 20), timeout=10)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call(channel, "Control", "List") == "UNIMPLEMENTED"


_SERVER = """
import asyncio, sys
import control  # as the daemon does, before gRPC
from control.ca.contexts import Credentials
from control.server import doorkeeper
from control.server.doorkeeper import UNPROVED_MAX, Doorkeeper
from control.server.edge import Edge

async def main():
    parts = [part.encode() for part in sys.stdin.read().split("|")]
    edge = Edge(lambda mine=Credentials(*parts): mine)
    server = edge.server()
    print(edge.listen(server, "127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_older_tls_finds_no_cipher() -> None:
    """In a process of its own, since gRPC reads its settings once."""
    mine = credentials()
    command = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write("|".join(part.decode() for part in (mine.key, mine.chain, mine.roots)))
            server.stdin.close()
            port = int(server.stdout.readline())
            assert _version(port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
            with pytest.raises(OSError, match=r"HANDSHAKE_FAILURE|handshake failure|EOF|reset"):
                _version(port, ssl.TLSVersion.TLSv1_2)
        finally:
            server.kill()


def _version(port: int, version: ssl.TLSVersion) -> str | None:
    context = client_context(credentials())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port)) as sock, context.wrap_socket(sock) as wrapped:
        return wrapped.version()


async def test_junk_on_the_port_disturbs_nobody() -> None:
    async with a_port() as port, Edge(credentials).channel(port.address) as channel:
        host, number = port.address.split(":")
        for junk in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\xff\xff" + b"\0" * 99,
            b"PRI * HTTP/2.0\r\n\r\n",
            os.urandom(512),
        ):
            reader, writer = await asyncio.open_connection(host, int(number))
            writer.write(junk)
            async with asyncio.timeout(20):
                await _until_closed(reader)
            writer.close()
        assert await call(channel, "Control", "List") == "UNIMPLEMENTED"


async def _until_closed(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(4096):
            pass
    except ConnectionError:
        pass


async def test_a_thousand_half_open_connections_are_bounded_and_in_nobodys_way() -> None:
    async with a_port() as port:
        host, number = port.address.split(":")
        keeper = Doorkeeper(int(number))
        port.guard.proved = keeper.proved
        loop, opened = asyncio.get_running_loop(), []
        try:
            async with Edge(credentials).channel(port.address) as first:
                assert await call(first, "Control", "List") == "UNIMPLEMENTED"
                for _ in range(1000):
                    opened.append(socket.socket())
                    opened[-1].setblocking(False)
                    await loop.sock_connect(opened[-1], (host, int(number)))
                async with Edge(credentials).channel(port.address) as channel:
                    assert await call(channel, "Control", "List") == "UNIMPLEMENTED"
                async with asyncio.timeout(60):
                    while keeper.ended < 1000 - UNPROVED_MAX:  # gRPC takes them one by one
                        keeper.look()
                        await asyncio.sleep(0.05)
                    while not ended(opened[0]):  # gRPC has closed it
                        await asyncio.sleep(0.05)
                assert await call(first, "Control", "List") == "UNIMPLEMENTED"
                assert keeper.ended <= 1000 - UNPROVED_MAX + 10, "those that were proved are not among them"
        finally:
            for sock in opened:
                sock.close()


async def test_the_doorkeeper_looks_by_itself_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorkeeper, "UNPROVED_MAX", 10)
    monkeypatch.setattr(doorkeeper, "LOOK_S", 0.05)
    # Files of tests before that are closed now hide that there are more descriptors; gRPC ends a handshake after 10 s.
    monkeypatch.setattr(doorkeeper, "LOOK_ANYWAY_S", 1.0)
    async with a_port() as port, asyncio.TaskGroup() as group:
        host, number = port.address.split(":")
        keeper = Doorkeeper(int(number))
        keeper.look()
        task = group.create_task(keeper.run())
        opened = [await asyncio.open_connection(host, int(number)) for _ in range(40)]
        async with asyncio.timeout(60):
            while keeper.ended < 30:
                await asyncio.sleep(0.05)
            await _until_closed(opened[0][0])
        task.cancel()
        for _, writer in opened:
            writer.close()
