"""A whole manager with its doors, on loopback."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from control.audit import AuditLog
from control.ca.contexts import Credentials
from control.ca.greeting import enrolment_address
from control.ca.requests import make_request
from control.ca.root import key_pem, new_key
from control.ca.verify import root_of_digest, verify_manager
from control.home import DiskHome
from control.manager import Bootstrapped, Manager
from control.model import ClusterSpec, NodeDescription
from control.rpc import control_pb2 as pb
from control.server.edge import Edge
from control.server.enrolment import enrol
from control.token import parse_token


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def free_pair() -> int:
    """A port that is free, and the one below it; not of those that the kernel gives to connections."""
    while True:
        port = random.SystemRandom().randrange(20001, 32000)
        try:
            for one in (port, port - 1):
                socket.create_server(("127.0.0.1", one)).close()
        except OSError:
            continue
        return port


@dataclass
class World:
    """A manager, and what it needs to be asked."""

    manager: Manager
    made: Bootstrapped
    address: str
    credentials: Credentials
    audit: Path

    async def join(
        self, name: str, token: str, *, key: object = None, csr: bytes | None = None, **more: str
    ) -> pb.JoinReply:
        description = msgspec.msgpack.encode(NodeDescription(hostname=name))
        key = new_key() if key is None else key
        asked = pb.JoinRequest(
            token=token,
            description=description,
            data_address=f"192.0.2.{10 + int(name[1:])}",
            csr=make_request(key) if csr is None else csr,  # type: ignore[arg-type]
            **more,  # type: ignore[arg-type]
        )
        return pb.JoinReply.FromString(await self.ask(asked.SerializeToString(), token))

    async def ask(self, request: bytes, token: str) -> bytes:
        wanted = parse_token(token or self.made.worker_token).digest
        now_s = wall_ms() / 1000
        _, answer = await enrol(
            enrolment_address(self.address),
            lambda leaf, chain, roots: verify_manager(leaf, chain, [root_of_digest(roots, wanted)], now_s),
            request,
        )
        return answer


@asynccontextmanager
async def a_world(directory: Path) -> AsyncIterator[World]:
    port, key = free_pair(), new_key()
    home, address = DiskHome(directory / "manager", "127.0.0.1:0"), f"127.0.0.1:{port}"
    made = await Manager.bootstrap(
        home,
        spec=ClusterSpec(),
        description=NodeDescription(hostname="h1"),
        availability="active",
        data_address="192.0.2.1",
        address=address,
        wall_ms=wall_ms,
        csr=make_request(key),
    )
    mine = Credentials(key_pem(key), made.chain, made.roots)
    audit = directory / "audit.log"
    manager = await Manager.open(
        home.seat(made.cluster_id, made.node_id, "127.0.0.1"),
        listen=address,
        wall_ms=wall_ms,
        edge=Edge(lambda: mine),
        audit=AuditLog(audit, wall_ms),
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(manager.run())
        await manager.store.leading()
        yield World(manager, made, address, mine, audit)
        task.cancel()
    await manager.close()


def certified(reply: pb.JoinReply, key: object) -> Credentials:
    return Credentials(key_pem(key), reply.certificate, reply.roots)  # type: ignore[arg-type]
