"""The local socket: whose connection it is reaches the audit log, and nothing of what is said is lost on the way."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import LocalServicer, LocalStub, add_LocalServicer_to_server
from control.server.guard import Guard
from mesh.daemon import doorman
from mesh.daemon.doorman import Doorman

pytestmark = pytest.mark.root
NOBODY = 65534


@pytest.fixture
def directory() -> Iterator[Path]:
    """That everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="meshd") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@asynccontextmanager
async def a_door(path: Path, serve: object) -> AsyncIterator[Doorman]:
    """With a server of bytes behind it."""
    door = Doorman(path)
    door.prepare()
    inner = await asyncio.start_unix_server(serve, str(door.inside))  # type: ignore[arg-type]
    await door.open(0)
    try:
        yield door
    finally:
        door.close()
        inner.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b" over")
    writer.close()


async def test_bytes_and_their_end_go_both_ways(directory: Path) -> None:
    async with a_door(directory / "s", echo), asyncio.timeout(60):
        reader, writer = await asyncio.open_unix_connection(str(directory / "s"))
        sent = os.urandom(1 << 20)
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(reader.read(-1))
            writer.write(sent)
            writer.write_eof()
        assert answer.result() == sent + b" over"
        writer.close()


async def test_who_may_enter(directory: Path) -> None:
    async with a_door(directory / "s", echo) as door:
        assert stat.S_IMODE((directory / "s").stat().st_mode) == 0o660
        assert stat.S_IMODE(door.inside.parent.stat().st_mode) == 0o700


async def test_more_connections_than_there_may_be_are_ended(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorman, "CONNECTIONS_MAX", 2)
    async with a_door(directory / "s", echo), asyncio.timeout(60):
        kept = []
        for _ in range(2):
            kept.append(await asyncio.open_unix_connection(str(directory / "s")))
            kept[-1][1].write(b"x")
            assert await kept[-1][0].read(1) == b"x"
        reader, writer = await asyncio.open_unix_connection(str(directory / "s"))
        assert await reader.read(1) == b""
        kept[0][1].write(b"y")
        assert await kept[0][0].read(1) == b"y"
        for _, one in (*kept, (reader, writer)):
            one.close()


class _Info(LocalServicer):
    async def Info(self, request: pb.InfoRequest, context: object) -> pb.InfoReply:
        return pb.InfoReply()

    async def Leave(self, request: pb.LeaveRequest, context: object) -> pb.LeaveReply:
        return pb.LeaveReply()


_others = {name: None for name in getattr(LocalServicer, "__abstractmethods__", ()) if name not in ("Info", "Leave")}
_Whole = type("_Whole", (_Info,), _others)


async def test_the_user_is_in_the_audit_log(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[str, ...]] = []
    door = Doorman(directory / "s")
    door.prepare()
    server = grpc.aio.server(interceptors=(Guard(lambda who, _: who, lambda *row: rows.append(row), secure=False),))
    add_LocalServicer_to_server(_Whole(), server)
    server.add_insecure_port(f"unix:{door.inside}")
    await server.start()
    await door.open(0)
    (directory / "s").chmod(0o666)
    try:
        for uid in (0, NOBODY):
            async with as_user(uid, directory / "s") as path, grpc.aio.insecure_channel(f"unix:{path}") as channel:
                await LocalStub(channel).Leave(pb.LeaveRequest(), timeout=30)
    finally:
        door.close()
        await server.stop(0)
    assert [(row[0], row[1], row[4]) for row in rows] == [
        ("Local/Leave", "uid 0 on the local socket", "done"),
        ("Local/Leave", f"uid {NOBODY} on the local socket", "done"),
    ]


@asynccontextmanager
async def as_user(uid: int, path: Path) -> AsyncIterator[Path]:
    """A socket whose connections are made to `path` by this user: what counts is who connects, not who writes."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        os.seteuid(uid)
        try:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(path))
        finally:
            os.seteuid(0)
        inside, outside = await asyncio.open_unix_connection(sock=sock)
        async with asyncio.TaskGroup() as group:
            group.create_task(doorman._pass_on(reader, outside))
            group.create_task(doorman._pass_on(inside, writer))

    server = await asyncio.start_unix_server(relay, f"{path}-{uid}")
    try:
        yield Path(f"{path}-{uid}")
    finally:
        server.close()
